"""Stages of the pipeline that need several rooms, each in one call, for `import catalens` and the command line.

    run = train("recipes/tiny.yaml", "runs/first", overrides=["training.epochs=3"]).folder
    evaluate(run, split="test").metrics["model"]["fields"]["title"]["exact"]

Heavy libraries are imported when a stage is called.
"""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

from catalens.config import Recipe, load_recipe, load_resolved, make_recipe
from catalens.errors import CheckpointError, RecipeError, first_line

if TYPE_CHECKING:
    from catalens.evaluation.evaluate import Evaluation
    from catalens.training.train import Trained


def train(
    recipe: Recipe | Path | str | None = None,
    out: Path | str | None = None,
    *,
    resume: Path | str | None = None,
    model: str | None = None,
    overrides: Sequence[str] = (),
    console: Console | None = None,
) -> "Trained":
    """Fine-tune a model as the recipe says, score it at each validation round, keep the best, calibrate it.

    Leaves a run in `out`, by default `runs/<name of the recipe's file>`; `resume` is a run to go on with, by its own
    recipe. `model` and `overrides`, such as `training.epochs=3`, replace what the recipe says. Under torchrun every
    process calls this. Raises RecipeError where the recipe is wrong or this machine cannot do what it says,
    TrainingError where the folder is taken or training cannot go on, CatalogError, CheckpointError, and
    TooManyBadRowsError where more than 5 % of the rows cannot be used.
    """
    if resume is not None:
        if recipe or out or model or overrides:
            raise RecipeError("--resume goes on with the run's own recipe: give nothing else")
        recipe, out = _recipe_of(resume), resume
    elif recipe is None:
        raise RecipeError("give a recipe, such as recipes/tiny.yaml, or --resume RUN")
    elif isinstance(recipe, Path | str):
        out = out or Path("runs") / Path(recipe).stem
        recipe = load_recipe(recipe, [*([f"model={json.dumps(model)}"] if model else []), *overrides])
    elif model or overrides:
        recipe = make_recipe(recipe.model_dump(mode="json") | ({"model": model} if model else {}), overrides)
    if out is None:
        raise RecipeError("give the folder of the run: --out")
    from catalens.evaluation.evaluate import calibrate, validation_scorer
    from catalens.training.train import train as train_run

    out, console = Path(out), console or Console(stderr=True)
    trained = train_run(recipe, out, validation_scorer(recipe), console, resume is not None)
    try:
        calibrate(out, console)
    except Exception as error:  # whatever it is, of a GPU's memory or of a disk: the run is whole all the same
        finished = f"{out} is finished; `catalens evaluate {out}` calibrates it"
        text = f"not calibrated ({first_line(error)}): {finished}"
        console.print(text, highlight=False, markup=False, soft_wrap=True)
    return trained


def evaluate(
    run: Path | str,
    *,
    split: str | None = None,
    rows: int | None = None,
    overrides: Sequence[str] = (),
    console: Console | None = None,
) -> "Evaluation":
    """Score a run by free generation, beside baselines, the untrained model, blanked and shuffled pictures.

    Writes `metrics.json`, `predictions.parquet` and `report.html` into `run/evaluation/`, or a folder beside it where
    `split` or `rows` (a sample of so many) are not the recipe's. Raises CheckpointError where the run is not
    finished, CatalogError where its catalogue or the split is not there, or has changed since the training.
    """
    asked = [f"evaluation.{name}={value}" for name, value in (("split", split), ("rows", rows)) if value]
    recipe = _recipe_of(run, [*asked, *overrides])
    from catalens.evaluation.evaluate import evaluate as evaluate_run

    return evaluate_run(run, recipe, console)


def _recipe_of(run: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    path = Path(run) / "recipe.yaml"
    if not path.is_file():
        raise CheckpointError(f"{run} is not a run (no recipe.yaml): give the folder that `catalens train` made")
    return load_resolved(path, overrides)
