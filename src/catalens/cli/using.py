"""Commands that use a run: `predict` on any number of pictures, `serve` to answer others."""

import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import catalens
from catalens.cli.app import (
    AcceptError,
    Config,
    Delimiter,
    Encoding,
    Image,
    ImageRoot,
    MaxPictures,
    Pictures,
    PrivateHosts,
    Quote,
    Sheet,
    UserAgent,
    accept_error_of,
    app,
    console,
    say,
    share_of,
)
from catalens.config import from_flags
from catalens.errors import PictureError, RecipeError
from catalens.progress import bars, silent

if TYPE_CHECKING:
    from collections.abc import Callable

    from catalens.inference.predictor import Predictor
    from catalens.inference.records import Outcome
    from catalens.progress import Progress


Engine = Annotated[
    str | None,
    typer.Option(help="torch; onnx or vllm for an export of that name. By default onnx for its export, else torch."),
]
Server = Annotated[
    str | None, typer.Option(help="URL of a vLLM that serves the export, in the place of one in this process.")
]


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
            help="Pictures, folders of them, quoted globs; or one table (as `prepare` takes them) or catalogue.",
        ),
    ],
    out: Annotated[
        Path | None, typer.Option(help="A .jsonl, .csv or .parquet file; without it, JSON lines on stdout.")
    ] = None,
    image: Image = None,
    id: Annotated[str | None, typer.Option(help="Column of the id; else guessed, or the row's number.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of a catalogue; all of it by default.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures predicted about together.")] = 16,
    accept_error: AcceptError = None,
    free_categories: Annotated[
        bool, typer.Option("--free-categories", help="Also categories that the catalogue does not have.")
    ] = False,
    max_bad: Annotated[str, typer.Option(help="Largest share of pictures that may fail.")] = "0%",
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace --out and what was begun of it.")] = False,
    raw: Annotated[
        bool, typer.Option("--raw", help="A .csv for machines: no apostrophe before what looks like a formula.")
    ] = False,
    pictures: Pictures = "first",
    max_pictures: MaxPictures = 4,
    image_root: ImageRoot = None,
    allow_private_hosts: PrivateHosts = False,
    encoding: Encoding = None,
    delimiter: Delimiter = None,
    quote: Quote = None,
    sheet: Sheet = None,
    config: Config = None,
    user_agent: UserAgent = None,
    engine: Engine = None,
    server: Server = None,
) -> None:
    """Read pictures with a finished run: fields, confidences, and what a person should look at, or an `error`.

    With --out a command that was stopped goes on from where it was. Exit code 6 where more than --max-bad failed.
    """
    flags = locals()
    from catalens.inference.photos import are_photos, predict_photos
    from catalens.inference.predictor import engine_of

    bearable, how = share_of(max_bad), {"accept_error": accept_error_of(accept_error)}
    how |= {"free_categories": free_categories}
    ran = engine_of(run, engine, server)
    load = partial(catalens.load_predictor, run, batch_size=batch_size, engine=ran, server=server, **how)
    how |= {"engine": ran} if ran == "vllm" else {}  # the folder may be run by torch as well
    plain = not any((image, id, split, image_root, encoding, delimiter, quote, sheet, config, overwrite, raw))
    if ran == "onnx" and out is None and plain and are_photos(sources):
        outcome = _predicted(partial(predict_photos, sources, load), None)
    else:
        outcome = _predict_sources(run, sources, load, how, flags, out)
    _report(outcome, out, bearable, _calibrating(run, ran))


def _predict_sources(
    run: Path,
    sources: list[str],
    load: "Callable[[], Predictor]",
    how: dict[str, Any],
    flags: dict[str, Any],
    out: Path | None,
) -> "Outcome":
    """Predict about whatever sources there are, by the command's `flags`."""
    try:
        from catalens.inference.batch import BatchSpec, predict_lines, predict_to, run_version
        from catalens.inference.inputs import InputSpec, open_input
        from catalens.inference.predictor import question_inputs
    except ModuleNotFoundError as error:
        raise RecipeError(f"{error.name} is not installed here: give files of pictures, without --out") from error
    spec, columns, overwrite = from_flags(BatchSpec, flags), from_flags(InputSpec, flags), flags["overwrite"]
    if spec.raw and (out is None or out.suffix != ".csv"):
        raise RecipeError("--raw is for CSV: leave it out, or give --out a name that ends in .csv")
    if out is None and overwrite:
        raise RecipeError("--overwrite needs --out: give the file to write")
    source = open_input(sources, columns, say, question_inputs(run))
    if out is None:
        return _predicted(partial(predict_lines, source, load, spec), None)
    made_by = {"run": run_version(run), **how}
    return _predicted(lambda _, progress: predict_to(out, source, load, spec, made_by, overwrite, progress), out)


def _predicted(work: "Callable[[Callable[[str], object], Progress], Outcome]", out: Path | None) -> "Outcome":
    """Work with what writes a line to stdout, and a bar, but where lines go to a terminal."""
    stdout = sys.stdout  # while there is a bar, rich leads sys.stdout to the console
    with nullcontext(silent) if out is None and stdout.isatty() else bars(console) as progress:
        return work(partial(print, end="", file=stdout, flush=True), progress)


def _calibrating(run: Path | None, engine: str) -> str:
    """Name the command after which confidences are calibrated."""
    return f"`catalens export --check {run}` where vLLM is installed" if engine == "vllm" else "`catalens evaluate`"


def _report(outcome: "Outcome", out: Path | None, bearable: float, calibrating: str) -> None:
    """Print what came of all pictures; exit where a larger share failed than is bearable."""
    if out is not None:
        say(f"{out}: {outcome.total:,} rows, {outcome.to_review:,} to review")
    if not outcome.calibrated:
        say(f"not calibrated: confidences are the model's own, and --accept-error marks all; run {calibrating}")
    if not outcome.failed:
        return
    reasons = ", ".join(f"{count:,} {reason}" for reason, count in outcome.reasons.most_common(10))
    say(f"{outcome.failed:,} of {outcome.total:,} pictures failed: {reasons}")
    for name in outcome.named:
        say(f"  {name}")
    if outcome.failed > len(outcome.named):
        say(f"  and {outcome.failed - len(outcome.named):,} more, each with its `error` in the output")
    if outcome.failed > bearable * outcome.total:
        raise typer.Exit(PictureError.exit_code)


@app.command(epilog="Example:  catalens serve\n\nExample:  catalens serve runs/demo --port 8080 --accept-error 5%")
def serve(
    run: Annotated[
        Path | None, typer.Argument(help="Folder of a finished run; the tiny model that ships here by default.")
    ] = None,
    host: Annotated[
        str, typer.Option(help="Address to listen on; one that others reach needs a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port to listen on; 0: a free one.")] = 8000,
    batch_size: Annotated[int, typer.Option(min=1, help="Pictures read together, at most.")] = 16,
    queue: Annotated[int, typer.Option(min=1, help="Pictures that may wait; more get 429.")] = 256,
    max_bytes: Annotated[int, typer.Option(min=1024, help="Largest body of a request.")] = 32 * 2**20,
    max_pixels: Annotated[int, typer.Option(min=1, help="Largest picture; 64000000 at most.")] = 16_000_000,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Seconds for a body to come (408), then for its answer (503).")
    ] = 60,
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="Fetch pictures by URL, from public addresses only.")
    ] = False,
    token_file: Annotated[
        Path | None, typer.Option(help="File with the token that clients send; else CATALENS_TOKEN.")
    ] = None,
    accept_error: AcceptError = None,
    engine: Engine = None,
    server: Server = None,
) -> None:
    """Answer POST /v1/predict and /v1/chat/completions, and show a page to drop photos on, at http://127.0.0.1:8000.

    SIGTERM or Ctrl-C finishes what was accepted, then ends; a second one ends at once.
    """
    from catalens.inference.predictor import engine_of
    from catalens.serving.app import create_app
    from catalens.serving.page import read_card
    from catalens.serving.requests import ServeSettings
    from catalens.serving.server import address_of, names_for, open_socket, read_token, run_server

    token = read_token(token_file)
    settings = from_flags(ServeSettings, locals() | {"hosts": names_for(host, token)})
    listening = open_socket(host, port)
    ran = engine_of(run, engine, server)
    predictor = catalens.load_predictor(
        run, batch_size=batch_size, accept_error=accept_error_of(accept_error), engine=ran, server=server
    )
    card = read_card(run)
    print(address_of(listening), flush=True)
    if accept_error and not predictor.calibrated:
        say(f"not calibrated: --accept-error marks every value for review; run {_calibrating(run, ran)}")
    say(f"serving {card.name}; Ctrl-C finishes what was accepted and ends")
    run_server(create_app(predictor, settings, card), listening)
