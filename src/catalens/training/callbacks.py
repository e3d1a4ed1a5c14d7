"""What a run tells while it trains: a progress bar, `metrics.jsonl`, the tracker."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from catalens.tracking import Tracker


class Recorder(TrainerCallback):
    """Writes every logged figure to `metrics.jsonl` and to the tracker, under the same names.

    `loss` becomes `train/loss`, `eval_title.exact` becomes `validation/title.exact`.
    """

    def __init__(self, path: Path, tracker: Tracker) -> None:
        self.path, self.tracker = path, tracker

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """One line a step that logs."""
        values = {_public_name(name): value for name, value in (logs or {}).items() if isinstance(value, int | float)}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps({"step": state.global_step, **values}) + "\n")
        self.tracker.log(values, state.global_step)


class Bar(TrainerCallback):
    """A progress bar with the last loss, and one line for each validation round."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self.progress = Progress(
            TextColumn("training"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("steps"),
            TimeElapsedColumn(),
            TextColumn("left"),
            TimeRemainingColumn(),
            TextColumn("{task.fields[loss]}"),
            console=console,
        )
        self._task = self.progress.add_task("training", total=None, loss="")

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Show the bar."""
        self.progress.update(self._task, total=state.max_steps)
        self.progress.start()

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Move the bar."""
        self.progress.update(self._task, completed=state.global_step)

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        """Show the loss; print a validation round."""
        logs = logs or {}
        if "loss" in logs:
            speed = f", {logs['samples_per_second']:.3g} samples/s" if "samples_per_second" in logs else ""
            self.progress.update(self._task, loss=f"loss {logs['loss']:.3f}{speed}")
        if "eval_loss" in logs:
            figures = {_public_name(name): value for name, value in logs.items() if name.startswith("eval_")}
            shown = [
                f"{name.removeprefix('validation/')} {value:.3f}"
                for name, value in figures.items()
                if not is_timing(name) and name.count("/") == 1  # intervals are in metrics.jsonl
            ]
            line = f"step {state.global_step}: validation " + ", ".join(shown)
            self.console.print(line, highlight=False, markup=False, soft_wrap=True)


class LastStep(TrainerCallback):
    """The last step is always validated and saved, wherever the rounds fall."""

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask for both at the end."""
        if state.global_step >= state.max_steps:
            control.should_evaluate = control.should_save = True


def is_timing(name: str) -> bool:
    """Whether a figure of the Trainer says how long, not how well."""
    return name.endswith(("runtime", "_per_second"))


def _public_name(name: str) -> str:
    name = name.removeprefix("train_")
    return f"validation/{name.removeprefix('eval_')}" if name.startswith("eval_") else f"train/{name}"
