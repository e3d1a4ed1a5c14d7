"""The command line: `catalens demo | sample | prepare | check | train | evaluate | predict | recipe-schema`.

Heavy libraries are imported inside the commands, so that `catalens --help` answers at once.
"""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from catalens import __version__
from catalens.config import Kind, Recipe, from_flags, load_recipe
from catalens.errors import CatalensError, CheckError, CheckpointError, PictureError, RecipeError

if TYPE_CHECKING:
    from catalens.catalog.storage import CatalogCard

EPILOG = (
    "Exit codes: 0 done, 1 other error, 2 recipe or flag, 3 table or catalogue, 4 too many bad rows, "
    "5 text that does not read back, 6 picture, 7 model or run, 8 training, 9 problems found by a check, "
    "130 interrupted."
)

app = typer.Typer(
    help="From a table of product pictures to a fine-tuned Phi-3-Vision with honest scores.\n\n"
    "Try it on drawn pictures:  catalens demo",
    epilog=EPILOG,
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    add_completion=False,
)
console = Console(stderr=True)

Out = Annotated[Path, typer.Option(help="Folder to make; it must not exist yet.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="KEY=VALUE", help="Override the recipe: --set training.epochs=3"),
]


def main() -> None:
    """Run the command line; errors of ours are one sentence and an exit code, never a traceback."""
    # Threads that spin while they wait make a small model many times slower on a machine that does anything else.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one row is too little to share between threads
    try:
        app()
    except CatalensError as error:
        console.print(f"[bold red]error:[/] {escape(str(error))}", highlight=False)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        console.print("interrupted")
        sys.exit(130)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


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


@app.command(epilog="Example:  catalens sample catalogs/practice --rows 5000 --seed 7")
def sample(
    out: Annotated[Path, typer.Argument(help="Folder to make; it must not exist yet.")],
    rows: Annotated[int, typer.Option(min=1, help="Pictures to draw.")] = 1000,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    noise: Annotated[float, typer.Option(min=0, help="Log-normal noise on prices, as a standard deviation.")] = 0.08,
    splits: Annotated[str, typer.Option(help="Shares of train, validation and test.")] = "0.8,0.1,0.1",
    workers: Annotated[int, typer.Option(min=0, help="Processes that draw; 0: one a core.")] = 0,
) -> None:
    """Draw a catalogue of product pictures whose title, category and price can be read from the picture."""
    from catalens.catalog.sampling import sample_catalog

    with _bar() as bar:
        task = bar.add_task("drawing", total=rows)
        card = sample_catalog(
            out,
            rows,
            seed,
            noise=noise,
            workers=workers or os.cpu_count() or 1,
            fractions=_fractions(splits),
            progress=lambda done: bar.update(task, completed=done),
        )
    _report_catalog(out, card)
    floor = card.figures
    console.print(f"noise floor of the price: median error {floor['mdape']:.1%}, mean error {floor['mae']:.1f}")


@app.command(
    epilog="Example:  catalens prepare DBQ/Burberry.Product.prices.United.States\n\n"
    "Example:  catalens prepare shop.csv --image photo_url --id sku --text title --number price --out catalogs/shop"
)
def prepare(
    source: Annotated[
        str,
        typer.Argument(help="A .csv, .tsv, .parquet or .jsonl file or URL, a folder of pictures, or a dataset's id."),
    ],
    out: Annotated[
        Path | None, typer.Option(help="Folder to make; catalogs/<name of the source> by default.")
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="Column with URLs, paths or bytes of pictures; else guessed.")
    ] = None,
    id: Annotated[
        str | None, typer.Option(help="Column that names the product; variants share it; else guessed.")
    ] = None,
    text: Annotated[list[str] | None, typer.Option(help="Text column to learn; repeatable.")] = None,
    category: Annotated[list[str] | None, typer.Option(help="Category column to learn; repeatable.")] = None,
    number: Annotated[list[str] | None, typer.Option(help="Number column to learn; repeatable.")] = None,
    splits: Annotated[str, typer.Option(help="Shares of train, validation and test.")] = "0.8,0.1,0.1",
    max_bad: Annotated[str, typer.Option(help="Largest share of rows that may be left out.")] = "5%",
    retry: Annotated[str | None, typer.Option(metavar="failed", help="Ask again for pictures that failed.")] = None,
    max_side: Annotated[int | None, typer.Option(min=16, help="Make larger pictures smaller, in pixels.")] = None,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 64,
    per_host: Annotated[int, typer.Option(min=1, help="Requests at a time to one host.")] = 16,
    rate: Annotated[float, typer.Option(min=0.5, help="Most requests a second to one host.")] = 50,
    allow_private_hosts: Annotated[
        bool, typer.Option(help="Also fetch from loopback and private addresses.")
    ] = False,
    ignore_noai: Annotated[bool, typer.Option(help="Fetch what a server marks as noai or noimageai.")] = False,
    decimal: Annotated[str, typer.Option(help="Sign before the digits after the point in numbers.")] = ".",
    thousands: Annotated[str, typer.Option(help="Sign between groups of digits in numbers.")] = "",
    encoding: Annotated[str | None, typer.Option(help="Encoding of a CSV; else detected.")] = None,
    delimiter: Annotated[str | None, typer.Option(help="Delimiter of a CSV; else detected.")] = None,
    engine: Annotated[str, typer.Option(help="local, or ray for tables beyond one machine.")] = "local",
) -> None:
    """Make a catalogue of a table: pictures fetched and checked, near-duplicates tied, split by product, stored.

    A run that was stopped goes on from where it was; a second run asks only for what is missing.
    """
    from catalens.catalog.preparing import PrepareSpec
    from catalens.catalog.preparing import prepare as prepare_source
    from catalens.catalog.roles import Columns

    fields: list[tuple[str, Kind]] = [
        *((name, "text") for name in text or []),
        *((name, "category") for name in category or []),
        *((name, "number") for name in number or []),
    ]
    names = [name for name in (image, id, *(name for name, _ in fields)) if name]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise RecipeError(f"column {twice!r} has two roles: give each column one of --image, --id, --text, ...")
    if retry not in (None, "failed"):
        raise RecipeError(f"--retry {retry}: the only choice is failed")
    spec = from_flags(
        PrepareSpec,
        {
            "fractions": _fractions(splits),
            "max_bad": _share(max_bad),
            "numbers": {"decimal": decimal, "thousands": thousands},
            "max_side": max_side,
            "encoding": encoding,
            "delimiter": delimiter,
            "engine": engine,
            "download": {
                "concurrency": concurrency,
                "per_host": per_host,
                "per_host_rate": rate,
                "allow_private_hosts": allow_private_hosts,
                "obey_noai": not ignore_noai,
            },
        },
    )
    columns = Columns(image, id, dict(fields))
    with _stages() as heard:
        folder, card = prepare_source(source, out, columns, spec, retry == "failed", heard, _say)
    _report_catalog(folder, card)


@app.command(epilog="Example:  catalens check catalogs/demo --recipe recipes/tiny.yaml")
def check(
    catalog: Annotated[Path, typer.Argument(help="Folder of a catalogue.")],
    recipe: Annotated[Path | None, typer.Option(help="Reckon with its prompt, model and batch size.")] = None,
    out: Annotated[
        Path | None, typer.Option(help="File of the page; check.html in the catalogue by default.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on warnings, too.")] = False,
) -> None:
    """Say what is wrong with a catalogue and what training on it costs, before an expensive run.

    Exit code 9 where something is wrong enough to make scores false or stop a run; with --strict also where a warning
    is given; else 0. Nothing is downloaded: a model that is not on disk is reckoned as Phi-3-Vision.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # a title beyond the model's length is a finding
    from catalens.catalog.checking import check_catalog
    from catalens.catalog.checking.terminal import print_check
    from catalens.collation import plan_check

    plan = plan_check(catalog, load_recipe(recipe) if recipe else None)
    with _bar() as bar:
        task = bar.add_task("checking", total=None)
        checked = check_catalog(catalog, out, plan, lambda done, all: bar.update(task, completed=done, total=all))
    print_check(checked, Console())
    print(f"page: {checked.page}")
    if checked.count("error") or (strict and checked.count("warning")):
        raise CheckError(f"{catalog} is not ready to train on: mend what {checked.page} names, each with its fix")


@app.command(epilog="Example:  catalens train recipes/tiny.yaml --set training.epochs=3 --out runs/first")
def train(
    recipe: Annotated[Path, typer.Argument(help="A recipe; see recipes/ and `catalens recipe-schema`.")],
    out: Annotated[Path | None, typer.Option(help="Folder of the run; runs/<name of the recipe> by default.")] = None,
    model: Annotated[str | None, typer.Option(help="A hub id, a folder, or tiny; replaces the recipe's.")] = None,
    overrides: Overrides = None,
) -> None:
    """Fine-tune a model as the recipe says; the best checkpoint is kept, every figure is tracked."""
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
    from catalens.evaluation import evaluate as evaluate_run
    from catalens.evaluation.terminal import print_scores

    sets = [f"evaluation.split={split}"] if split else []
    sets += [f"evaluation.rows={rows}"] if rows else []
    recipe = load_recipe(_in_run(run), [*sets, *(overrides or [])])
    result = evaluate_run(run, recipe, console)
    print_scores(result.metrics, result.prompt, Console())
    print(f"report: {result.folder / 'report.html'}")


@app.command(epilog="Example:  catalens predict runs/demo photo.jpg another.png")
def predict(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    photos: Annotated[list[Path], typer.Argument(help="Pictures.")],
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures written about together.")] = 16,
) -> None:
    """Print one JSON line a picture: its fields, or an `error`; exit code 6 where any failed."""
    from catalens.catalog.pictures import open_picture
    from catalens.checkpoint import load_run
    from catalens.examples import parse_answer
    from catalens.inference import Writer

    loaded = load_run(run)
    longest = loaded.recipe.evaluation.max_new_tokens
    writer = Writer(loaded.model, loaded.processor, loaded.prompt, batch_size, longest)
    failed = 0
    for start in range(0, len(photos), batch_size):
        batch: list[tuple[Path, bytes | None, str | None]] = []
        for path in photos[start : start + batch_size]:
            try:
                data = path.read_bytes()
                open_picture(data)
                batch.append((path, data, None))
            except (OSError, PictureError) as error:
                reason = error.strerror if isinstance(error, OSError) else str(error)
                batch.append((path, None, f"picture cannot be read: {reason}"))
        answers = iter(writer.answers([data for _, data, _ in batch if data is not None]))
        for path, data, error in batch:
            line: dict[str, Any] = {"file": str(path)}
            if data is not None:
                text = next(answers)
                answer = parse_answer(loaded.prompt, text)
                error = None if answer.values is not None else f"answer {text!r} {answer.error}"
                line |= answer.values or {}
            if error is not None:
                line["error"] = error
                failed += 1
            print(json.dumps(line, ensure_ascii=False), flush=True)
    if failed:
        raise typer.Exit(PictureError.exit_code)


@app.command("recipe-schema", epilog="Example:  catalens recipe-schema > recipe.schema.json")
def recipe_schema() -> None:
    """Print the JSON schema of a recipe, for editors."""
    print(json.dumps(Recipe.model_json_schema(), indent=2))


def _train(recipe: Recipe, out: Path) -> None:
    from catalens.evaluation import validation_scorer
    from catalens.training import train as train_run

    trained = train_run(recipe, out, validation_scorer(recipe), console)
    console.print(
        f"best checkpoint: step {trained.best_step} of {trained.steps} by {recipe.training.best_by}, "
        f"{trained.seconds:.0f} s; run in {out}",
        highlight=False,
        markup=False,
    )


def _in_run(run: Path) -> Path:
    path = run / "recipe.yaml"
    if not path.is_file():
        raise CheckpointError(f"{run} is not a run (no recipe.yaml): give the folder that `catalens train` made")
    return path


def _report_catalog(out: Path, card: "CatalogCard") -> None:
    counts = ", ".join(f"{rows} {split}" for split, rows in card.rows.items())
    console.print(f"{out}: {counts} rows of {sum(card.products.values())} products", highlight=False, markup=False)
    for reason, count in card.left_out.items():
        console.print(f"[yellow]left out {count}:[/] {escape(f'{reason} (named in {out}/rejected.parquet)')}")


def _say(text: str) -> None:
    console.print(text, highlight=False, markup=False, soft_wrap=True)


@contextmanager
def _stages() -> Iterator[Callable[[str, int, int | None, str], None]]:
    """A bar for each stage of a long command, with its rate and what goes wrong."""
    with _bar(TextColumn("{task.fields[rate]}"), TextColumn("[yellow]{task.fields[note]}")) as bar:
        tasks: dict[str, Any] = {}

        def heard(stage: str, done: int, total: int | None, note: str) -> None:
            if stage not in tasks:
                tasks[stage] = bar.add_task(stage, total=total, completed=done, rate="", note="")
            speed = bar.tasks[tasks[stage]].speed
            rate = f"{speed:.0f}/s" if speed else ""
            bar.update(tasks[stage], completed=done, total=total, rate=rate, note=escape(note))

        yield heard


def _bar(*more: TextColumn) -> Progress:
    columns = (
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
    return Progress(TextColumn("{task.description}"), *columns, *more, console=console)


def _fractions(text: str) -> dict[str, float]:
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = []
    if len(shares) != 3 or not abs(sum(shares) - 1) < 1e-6 or min(shares) < 0:
        raise RecipeError(f"--splits {text}: give three shares that sum to 1, such as 0.8,0.1,0.1")
    return dict(zip(("train", "validation", "test"), shares, strict=True))


def _share(text: str) -> float:
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1
    if not 0 <= share <= 1:
        raise RecipeError(f"--max-bad {text}: give a share such as 5% or 0.05")
    return share
