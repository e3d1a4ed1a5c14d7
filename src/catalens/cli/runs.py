"""Commands that train, score and compare models: `demo`, `train`, `evaluate`, `compare`, `recipe-schema`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

import catalens
from catalens.cli.app import Terminal, answer, app, console
from catalens.cli.catalogs import sample
from catalens.config import Recipe
from catalens.config.characters import visible_json
from catalens.errors import RecipeError
from catalens.progress import bars

if TYPE_CHECKING:
    from catalens.pages.compare import Comparison

Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Override the recipe: --set training.epochs=3")
]


@app.command(epilog="Example:  catalens demo --rows 3040")
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/demo"),
    catalog: Annotated[Path, typer.Option(help="Folder of the drawn catalogue; drawn if absent.")] = Path(
        "catalogs/demo"
    ),
    rows: Annotated[int, typer.Option(min=100, help="Pictures to draw.")] = 3040,
    overrides: Overrides = None,
) -> None:
    """Draw a catalogue, fine-tune the tiny Phi-3-Vision on it, score it beside baselines: minutes on a laptop."""
    from catalens.checkpoint import DEMO_RECIPE

    recipe = catalens.load_recipe(DEMO_RECIPE, [f"catalog={json.dumps(str(catalog))}", *(overrides or [])])
    if catalog.exists():
        console.print(f"using the catalogue in {catalog} as it is; remove it to draw {rows} rows", markup=False)
    else:
        sample(catalog, rows=rows, splits="0.79,0.10,0.11")
    if out.exists():
        spares = (out.with_name(f"{out.name}-{n}") for n in range(2, 10**6))
        spare = out.rename(next(path for path in spares if not path.exists()))
        console.print(f"{out} was there: moved to {spare}", markup=False)
    catalens.train(recipe, out, console=console)
    evaluate(out)


@app.command(
    epilog="Example:  catalens train recipes/tiny.yaml --set training.epochs=3 --out runs/first\n\n"
    "Example:  catalens train --resume runs/first"
)
def train(
    recipe: Annotated[
        Path | None, typer.Argument(help="A recipe; see recipes/ and `catalens recipe-schema`.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the run; runs/<name of the recipe> by default.")] = None,
    model: Annotated[str | None, typer.Option(help="Hub id, folder, run or tiny; replaces the recipe's.")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with a run that was stopped.")] = None,
    overrides: Overrides = None,
) -> None:
    """Fine-tune a model as the recipe says; the best checkpoint is kept, every figure is tracked.

    A run that was stopped, by a kill or a full disk, goes on from its last checkpoint with --resume.

    On several GPUs: torchrun --nproc-per-node 4 -m catalens train RECIPE (docs/training.md).
    """
    catalens.train(recipe, out, resume=resume, model=model, overrides=overrides or [], console=console)


@app.command(epilog="Example:  catalens evaluate runs/demo --split test")
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    split: Annotated[str | None, typer.Option(help="Split to score; the recipe's by default.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Score a sample of this many rows.")] = None,
    overrides: Overrides = None,
) -> None:
    """Score a run by free generation, beside baselines, the untrained model, blanked and shuffled pictures."""
    result = catalens.evaluate(run, split=split, rows=rows, overrides=overrides or [], console=console)
    from catalens.devices import processes
    from catalens.pages.terminal import print_scores

    if processes().is_main_process:
        print_scores(result.metrics, result.prompt, Terminal())
        answer(f"report: {result.folder / 'report.html'}")


@app.command("recipe-schema", epilog="Example:  catalens recipe-schema > recipe.schema.json")
def recipe_schema() -> None:
    """Print the JSON schema of a recipe, for editors."""
    print(json.dumps(Recipe.model_json_schema(), indent=2))


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

    with bars(console) as progress:
        evaluated = []
        for done, run in enumerate(runs):
            progress("reading", done, len(runs), run.name)
            evaluated.append(Evaluation.load(run, split))
        progress("reading", len(runs), len(runs))
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
    """Print the first figure of each field, every run's with its interval, and a sentence for each claim."""
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
