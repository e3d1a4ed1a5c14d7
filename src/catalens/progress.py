"""Progress of long commands: one callback for all stages, a rich bar for people, silence for programs.

with bars(console) as progress:
    progress("downloading", 12, 3040, "1 failed")
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars


class Progress(Protocol):
    """Callback of a stage's name, what is done of how much (None: unknown), and a note."""

    def __call__(self, stage: str, done: int, total: int | None = None, note: str = "") -> None:
        """Report how far a stage is."""


def silent(stage: str, done: int, total: int | None = None, note: str = "") -> None:
    """Ignore progress."""


@contextmanager
def bars(console: Console) -> Iterator[Progress]:
    """Show one bar for each stage, with its rate and note."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[rate]}"),
        TextColumn("[yellow]{task.fields[note]}"),
    )
    with Bars(*columns, console=console) as shown:
        tasks: dict[str, TaskID] = {}

        def update(stage: str, done: int, total: int | None = None, note: str = "") -> None:
            if stage not in tasks:
                tasks[stage] = shown.add_task(stage, total=total, completed=done, rate="", note="")
            speed = shown.tasks[tasks[stage]].speed
            rate = f"{speed:.0f}/s" if speed else ""
            shown.update(tasks[stage], completed=done, total=total, rate=rate, note=escape(note))

        yield update
