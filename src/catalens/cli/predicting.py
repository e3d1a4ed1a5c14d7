"""The command that uses a run on any number of pictures: `predict`."""

import sys
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from catalens.cli.app import accept_error_of, app, console, say, share_of
from catalens.config import from_flags
from catalens.errors import PictureError, RecipeError
from catalens.progress import bars

if TYPE_CHECKING:
    from catalens.inference.batch import BatchSpec, Load, Outcome
    from catalens.inference.inputs import Input


@app.command(
    epilog="Example:  catalens predict runs/demo photo.jpg another.png\n\n"
    "Example:  catalens predict runs/demo shop.csv --image photo_url --out predictions.parquet"
)
def predict(
    run: Annotated[Path, typer.Argument(help="Folder of a finished run.")],
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="Pictures, folders of them, quoted globs; or one CSV, TSV, Parquet, JSONL or catalogue.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="A .jsonl, .csv or .parquet file; without it, JSON lines on stdout.")
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="Column of the picture: paths, URLs or bytes; else guessed.")
    ] = None,
    id: Annotated[str | None, typer.Option(help="Column of the id; else guessed, or the row's number.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a catalogue; all of it by default.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures predicted about together.")] = 16,
    accept_error: Annotated[
        str | None,
        typer.Option(help="Share of wrong values among those not marked for review: 5%, or title=2%,price=10%."),
    ] = None,
    free_categories: Annotated[
        bool, typer.Option("--free-categories", help="Also categories that the catalogue does not have.")
    ] = False,
    engine: Annotated[str, typer.Option(help="native, or ray for tables beyond one machine.")] = "native",
    max_bad: Annotated[str, typer.Option(help="Largest share of pictures that may fail.")] = "0%",
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace --out, and start anew what was begun.")
    ] = False,
    raw: Annotated[
        bool,
        typer.Option(
            "--raw", help="A .csv for machines: no apostrophe before what a spreadsheet takes for a formula."
        ),
    ] = False,
    allow_private_hosts: Annotated[
        bool, typer.Option("--allow-private-hosts", help="Also fetch from loopback and private addresses.")
    ] = False,
    encoding: Annotated[str | None, typer.Option(help="Encoding of a CSV; else detected.")] = None,
    delimiter: Annotated[str | None, typer.Option(help="Delimiter of a CSV; else detected.")] = None,
) -> None:
    """Read pictures with a finished run: fields, confidences, and what a person should look at, or an `error`.

    With --out a command that was stopped goes on from where it was. Exit code 6 where more than --max-bad failed.
    """
    from catalens.inference import load_predictor
    from catalens.inference.batch import BatchSpec, run_version
    from catalens.inference.inputs import InputSpec, open_input

    bearable = share_of(max_bad)
    spec = from_flags(
        BatchSpec,
        {
            "batch_size": batch_size,
            "engine": engine,
            "download": {"allow_private_hosts": allow_private_hosts},
            "raw": raw,
        },
    )
    if raw and (out is None or out.suffix != ".csv"):
        raise RecipeError("--raw is for CSV: leave it out, or give --out a name that ends in .csv")
    if out is None and (overwrite or engine == "ray"):
        raise RecipeError(f"{'--overwrite' if overwrite else '--engine ray'} needs --out: give the file to write")
    read = InputSpec(image=image, id=id, split=split, encoding=encoding, delimiter=delimiter)
    source = open_input(sources, read, say)
    how = {
        "accept_error": accept_error_of(accept_error) if accept_error else None,
        "free_categories": free_categories,
    }
    place = run.absolute() if engine == "ray" else run  # workers have folders of their own
    load = partial(load_predictor, place, batch_size=batch_size, **how)
    if out is None:
        outcome = _printed(source, load, spec)
    else:
        made_by = {"run": run_version(run), **how, "engine": "native"}  # as manifests of earlier versions have it
        outcome = _written(out, source, load, spec, made_by, overwrite)
    _report(outcome, out)
    if outcome.failed > bearable * outcome.total:
        raise typer.Exit(PictureError.exit_code)


def _printed(source: "Input", load: "Load", spec: "BatchSpec") -> "Outcome":
    from catalens.inference.batch import predict_lines

    stdout = sys.stdout  # while there is a bar, rich leads sys.stdout to the console

    def write(lines: str) -> None:
        stdout.write(lines)
        stdout.flush()

    if stdout.isatty():
        return predict_lines(source, load, spec, write)
    with bars(console) as progress:
        return predict_lines(source, load, spec, write, progress)


def _written(
    out: Path, source: "Input", load: "Load", spec: "BatchSpec", made_by: Mapping[str, Any], overwrite: bool
) -> "Outcome":
    from catalens.inference.batch import predict_to

    with bars(console) as progress:
        return predict_to(out, source, load, spec, made_by, overwrite, progress)


def _report(outcome: "Outcome", out: Path | None) -> None:
    if out is not None:
        say(f"{out}: {outcome.total:,} rows, {outcome.to_review:,} to review")
    if not outcome.calibrated:
        say("not calibrated: confidences are the model's own, and --accept-error marks all; run `catalens evaluate`")
    if not outcome.failed:
        return
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in outcome.reasons.most_common(10))
    say(f"{outcome.failed:,} of {outcome.total:,} pictures failed: {reasons}")
    for name in outcome.named:
        say(f"  {name}")
    if outcome.failed > len(outcome.named):
        say(f"  and {outcome.failed - len(outcome.named):,} more, each with its `error` in the output")
