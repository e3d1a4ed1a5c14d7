"""Commands that train and score models: `demo`, `train`, `evaluate`, `recipe-schema`."""

import json
from pathlib import Path
from typing import Annotated

import typer

from catalens.cli.app import Terminal, answer, app, console, say
from catalens.cli.catalogs import sample
from catalens.config import Recipe, load_recipe
from catalens.errors import CheckpointError, RecipeError, first_line

Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override the recipe: --set training.epochs=3"),
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

    recipe = load_recipe(DEMO_RECIPE, [f"catalog={json.dumps(str(catalog))}", *(overrides or [])])
    if catalog.exists():
        console.print(f"using the catalogue in {catalog} as it is; remove it to draw {rows} rows", markup=False)
    else:
        sample(catalog, rows=rows, splits="0.84,0.05,0.11")
    if out.exists():
        spare = next(
            out.with_name(f"{out.name}-{n}") for n in range(2, 10**6) if not out.with_name(f"{out.name}-{n}").exists()
        )
        out.rename(spare)
        console.print(f"{out} was there: moved to {spare}", markup=False)
    _train(recipe, out)
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
    model: Annotated[str | None, typer.Option(help="A hub id, a folder, or tiny; replaces the recipe's.")] = None,
    resume: Annotated[Path | None, typer.Option(metavar="RUN", help="Go on with a run that was stopped.")] = None,
    overrides: Overrides = None,
) -> None:
    """Fine-tune a model as the recipe says; the best checkpoint is kept, every figure is tracked.

    A run that was stopped, by a kill or a full disk, goes on from its last checkpoint with --resume.

    On several GPUs: torchrun --nproc-per-node 4 -m catalens train RECIPE (docs/training.md).
    """
    if resume is not None:
        if recipe or out or model or overrides:
            raise RecipeError("--resume goes on with the run's own recipe: give nothing else")
        _train(load_recipe(_in_run(resume)), resume, resume=True)
        return
    if recipe is None:
        raise RecipeError("give a recipe, such as recipes/tiny.yaml, or --resume RUN")
    resolved = load_recipe(recipe, [*([f"model={json.dumps(model)}"] if model else []), *(overrides or [])])
    _train(resolved, out or Path("runs") / recipe.stem)


@app.command(epilog="Example:  catalens evaluate runs/demo --split test")
def evaluate(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    split: Annotated[str | None, typer.Option(help="Split to score; the recipe's by default.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Score a sample of this many rows.")] = None,
    overrides: Overrides = None,
) -> None:
    """Score a run by free generation, beside baselines, the untrained model, blanked and shuffled pictures."""
    from catalens.checkpoint import processes
    from catalens.evaluation.evaluate import evaluate as evaluate_run
    from catalens.pages.terminal import print_scores

    sets = [f"evaluation.split={split}"] if split else []
    sets += [f"evaluation.rows={rows}"] if rows else []
    recipe = load_recipe(_in_run(run), [*sets, *(overrides or [])])
    result = evaluate_run(run, recipe, console)
    if processes().is_main_process:
        print_scores(result.metrics, result.prompt, Terminal())
        answer(f"report: {result.folder / 'report.html'}")


@app.command("recipe-schema", epilog="Example:  catalens recipe-schema > recipe.schema.json")
def recipe_schema() -> None:
    """Print the JSON schema of a recipe, for editors."""
    print(json.dumps(Recipe.model_json_schema(), indent=2))


def _train(recipe: Recipe, out: Path, resume: bool = False) -> None:
    from catalens.evaluation.evaluate import calibrate, validation_scorer
    from catalens.training.train import train as train_run

    train_run(recipe, out, validation_scorer(recipe), console, resume)
    try:
        calibrate(out, console)
    except Exception as error:  # whatever it is, of a GPU's memory or of a disk: the run is whole all the same
        reason = first_line(error)
        say(f"not calibrated ({reason}): {out} is finished; `catalens evaluate {out}` calibrates it")


def _in_run(run: Path) -> Path:
    path = run / "recipe.yaml"
    if not path.is_file():
        raise CheckpointError(f"{run} is not a run (no recipe.yaml): give the folder that `catalens train` made")
    return path
