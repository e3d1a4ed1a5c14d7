"""The application and its console, and flags that several commands share."""

import logging
import os
import signal
import sys
import warnings
from collections.abc import Iterable
from types import FrameType
from typing import Annotated

import typer
from rich.console import Console, ConsoleOptions, RenderableType
from rich.markup import escape
from rich.segment import Segment

from catalens import __version__
from catalens.config.characters import visible
from catalens.errors import CatalensError, RecipeError

EPILOG = (
    "Exit codes: 0 done, 1 other error, 2 recipe or flag, 3 table or catalogue, 4 too many bad rows, "
    "5 text that does not read back, 6 picture, 7 model or run, 8 training, 9 problems found by a check, "
    "10 inference, 130 interrupted."
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


class Terminal(Console):
    """A console that shows text and nothing else, whatever table, server or model it came from.

    All that is printed goes through `render`, cells of tables and notes of progress bars too; what rich itself sends
    to a terminal is marked as control or comes after.
    """

    def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
        """Segments without control characters but newlines."""
        for text, style, control in super().render(renderable, options):
            yield Segment(text if control else visible(text), style, control)


console = Terminal(stderr=True)

Image = Annotated[
    str | None,
    typer.Option(
        help="Column with URLs, paths or bytes of pictures, or a path like 'images/{id}.jpg'; else guessed."
    ),
]
Encoding = Annotated[str | None, typer.Option(help="Encoding of a CSV; else detected.")]
Delimiter = Annotated[str | None, typer.Option(help="Delimiter of a CSV; else detected.")]
Quote = Annotated[str | None, typer.Option(help="Quotes in cells of a CSV: double, backslash, none; else detected.")]
Sheet = Annotated[str | None, typer.Option(help="Sheet of a workbook; else the first with cells.")]
Config = Annotated[str | None, typer.Option(help="Configuration of a Hugging Face dataset.")]
ImageRoot = Annotated[str | None, typer.Option(help="Folder or URL of the pictures; else that of the table.")]
Pictures = Annotated[
    str, typer.Option(help="Of several pictures of a row: first, each as a row, or all of them in one.")
]
MaxPictures = Annotated[int, typer.Option(min=2, max=16, help="Of --pictures all: most in one row.")]
UserAgent = Annotated[str | None, typer.Option(help="Name by which servers are asked; some refuse unknown ones.")]
PrivateHosts = Annotated[bool, typer.Option(help="Also fetch from loopback and private addresses.")]
AcceptError = Annotated[
    str | None,
    typer.Option(help="Share of wrong values among those not marked for review: 5%, or title=2%,price=10%."),
]
INTERRUPTED = 130
GOES_ON = "interrupted; `prepare`, `train --resume` and `predict --out` go on from where they were"
"""Exit code after Ctrl-C."""


def main() -> None:
    """Run the command line; errors of ours, and files out of reach, are a sentence and an exit code."""
    # Threads that spin while they wait make a small model many times slower on a machine that does anything else.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # one row is too little to share between threads
    warnings.formatwarning = lambda message, *_: f"note: {message}\n"
    # what libraries tell one another
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)  # it can do without a package
    interrupts: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        interrupts.append(number)
        signal.default_int_handler(number, frame)

    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, interrupt)
    try:
        app()
    except CatalensError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        if not error.errno or error.filename is None:
            raise
        _fail(f"{error.filename}: {error.strerror}", CatalensError.exit_code)
    except SystemExit as end:
        if end.code == INTERRUPTED:  # typer has caught the KeyboardInterrupt and says nothing
            console.print(GOES_ON)
        raise
    except Exception:
        if not interrupts:
            raise
        console.print(GOES_ON)  # code that is not Python buries the KeyboardInterrupt under an error of its own
        sys.exit(INTERRUPTED)


def _fail(text: str, exit_code: int) -> None:
    console.print(f"[bold red]error:[/] {escape(text)}", highlight=False)
    sys.exit(exit_code)


@app.callback(invoke_without_command=True)
def _version(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit


def say(text: str) -> None:
    """Print a line that may hold anything, on the console."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def answer(text: str) -> None:
    """Print a line that may hold anything, on standard output."""
    Terminal().print(text, highlight=False, markup=False, soft_wrap=True)


def fractions_of(text: str) -> dict[str, float]:
    """Read the shares of the three splits from `--splits`; RecipeError where they are none."""
    try:
        shares = [float(part) for part in text.split(",")]
    except ValueError:
        shares = []
    if len(shares) != 3 or not abs(sum(shares) - 1) < 1e-6 or min(shares) < 0:
        raise RecipeError(f"--splits {text}: give three shares that sum to 1, such as 0.8,0.1,0.1")
    return dict(zip(("train", "validation", "test"), shares, strict=True))


def share_of(text: str, flag: str = "--max-bad") -> float:
    """Read a share from a flag, as `5%` or `0.05`; RecipeError where it is none."""
    try:
        share = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        share = -1
    if not 0 <= share <= 1:
        raise RecipeError(f"{flag} {text}: give a share such as 5% or 0.05")
    return share


def accept_error_of(text: str | None) -> dict[str, float] | float | None:
    """Read `5%` for all columns, `title=5%,full_price=20%` by column; RecipeError where it is neither."""
    if text is None or "=" not in text:
        return None if text is None else share_of(text, "--accept-error")
    targets: dict[str, float] = {}
    for part in text.split(","):
        column, _, share = (piece.strip() for piece in part.partition("="))
        if not column or not share or column in targets:
            raise RecipeError(f"--accept-error {text}: give 5%, or each column once, such as title=5%,price=20%")
        targets[column] = share_of(share, f"--accept-error {column}")
    return targets
