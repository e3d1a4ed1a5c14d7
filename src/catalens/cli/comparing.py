"""The command that holds runs against each other: `compare`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from catalens.cli.app import Terminal, answer, app, console
from catalens.config.characters import visible_json
from catalens.errors import RecipeError
from catalens.progress import bars

if TYPE_CHECKING:
    from catalens.pages.compare import Comparison


@app.command(
    epilog="Example:  catalens compare runs/first runs/second\n\n"
    "Example:  catalens compare runs/* --split validation --json"
)
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Evaluated runs; each is held against the first.")],
    out: Annotated[Path, typer.Option(help="File of the page.")] = Path("compare.html"),
    split: Annotated[str | None, typer.Option(help="Split to compare on; the recipe's by default.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the figures as JSON.")] = False,
) -> None:
    """Say whether a run is really better than the first one: paired differences on the same rows, and a page."""
    from catalens.evaluation.compare import compare as compare_runs
    from catalens.evaluation.compare import figures, with_pictures
    from catalens.pages.base import refuse_to_overwrite
    from catalens.pages.compare import write_comparison
    from catalens.predictions import Evaluation

    with bars(console) as heard:
        evaluated = []
        for done, run in enumerate(runs):
            heard("reading", done, len(runs), run.name)
            evaluated.append(Evaluation.load(run, split))
        heard("reading", len(runs), len(runs), "")
        comparison = compare_runs(evaluated)
        try:
            refuse_to_overwrite(out)
            write_comparison(out, comparison, with_pictures(comparison.disagreements, comparison.runs[0]))
        except OSError as error:
            raise RecipeError(f"--out {out}: cannot be written ({error.strerror}): name another file") from error
    if as_json:
        print(visible_json(json.dumps(figures(comparison), indent=2, ensure_ascii=False)))
        return
    _print(comparison, Terminal())
    answer(f"page: {out}")


def _print(comparison: "Comparison", console: Console) -> None:
    """The first figure of each field, every run's with its interval, and a sentence for each claim."""
    from catalens.pages.compare import figure_lines
    from catalens.pages.format import rows_of

    rows = rows_of(len(comparison.rows), comparison.products, comparison.runs[0].metrics["split"])
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, title=f"{rows}, common to all runs, 95 % intervals")
    table.add_column("", max_width=24)
    for run in comparison.runs:
        table.add_column(escape(run.name), justify="right", overflow="fold")
    for line in figure_lines(comparison):
        cells = [f"{one['value']}\n[dim]{one['interval']}[/]" for one in line["figures"]]
        table.add_row(f"{escape(line['field'].label)}, {line['metric'].label}", *cells)
    console.print(table)
    for claim in comparison.claims:
        style = ("green" if claim.better else "red") if claim.shown else "dim"
        console.print(claim.sentence, style=style, highlight=False, markup=False)
