"""Commands that make and check catalogues: `sample`, `prepare`, `check`."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape

import catalens
from catalens.cli.app import (
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
    Terminal,
    UserAgent,
    answer,
    app,
    console,
    fractions_of,
    say,
    share_of,
)
from catalens.config import Kind, from_flags
from catalens.errors import CheckError, RecipeError
from catalens.progress import bars

if TYPE_CHECKING:
    from catalens.catalog.storage import CatalogCard


@app.command(
    epilog="Example:  catalens sample catalogs/practice --rows 5000 --seed 7\n\n"
    "Example:  catalens sample catalogs/like-shop --like catalogs/shop"
)
def sample(
    out: Annotated[Path, typer.Argument(help="Folder to make; it must not exist yet.")],
    like: Annotated[Path | None, typer.Option(help="A catalogue, or a profile.json, to draw one like.")] = None,
    rows: Annotated[int | None, typer.Option(min=1, help="Pictures; 1000, or as many as in --like.")] = None,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    noise: Annotated[
        float | None, typer.Option(min=0, help="Log-normal noise on prices, as a standard deviation; 0.08.")
    ] = None,
    noise_by_category: Annotated[
        bool, typer.Option("--noise-by-category", help="A quarter to three times the noise, by category.")
    ] = False,
    splits: Annotated[
        str | None, typer.Option(help="Shares of train, validation and test; 0.8,0.1,0.1, or as in --like.")
    ] = None,
    workers: Annotated[int, typer.Option(min=0, help="Processes that draw; 0: one a core.")] = 0,
) -> None:
    """Draw a catalogue of product pictures whose title, category and price can be read from the picture.

    With --like its words, numbers and pictures are as those of a real catalogue, and nothing of that is in it:
    profile.json and fidelity.html, beside it, say how like it is.
    """
    workers = workers or os.cpu_count() or 1
    if like is not None:
        if noise is not None or noise_by_category:
            raise RecipeError("--noise: leave it out, with --like the noise comes from the profile")
        fractions = fractions_of(splits) if splits else None
        with bars(console) as progress:
            made = catalens.mimic(out, like, rows, seed, fractions=fractions, workers=workers, progress=progress)
        from catalens.mimicking.page import print_fidelity

        _report_catalog(out, made.card)
        print_fidelity(made.fidelity, Terminal())
        answer(f"page: {out / 'fidelity.html'}")
        return
    from catalens.sampling.assortment import DEMO

    rows, noise, fractions = rows or 1000, 0.08 if noise is None else noise, fractions_of(splits or "0.8,0.1,0.1")
    shop = DEMO.uneven if noise_by_category else DEMO
    with bars(console) as progress:
        card = catalens.sample(out, rows, seed, shop, noise, workers, fractions, progress)
    _report_catalog(out, card)
    floor = card.figures
    console.print(f"noise floor of the price: median error {floor['mdape']:.1%}, mean error {floor['mae']:.3g}")


@app.command(
    epilog="Example:  catalens prepare DBQ/Burberry.Product.prices.United.States\n\n"
    "Example:  catalens prepare shop.csv --image photo_url --id sku --text title --number price --out catalogs/shop"
)
def prepare(
    source: Annotated[
        str,
        typer.Argument(help="A CSV, workbook, feed, JSON or Parquet file or URL, a folder of pictures, a dataset."),
    ],
    out: Annotated[Path | None, typer.Option(help="Folder to make; else catalogs/<name of the source>.")] = None,
    image: Image = None,
    id: Annotated[str | None, typer.Option(help="Column of the product; variants share it; else guessed.")] = None,
    text: Annotated[list[str] | None, typer.Option(help="Text column to learn; repeatable.")] = None,
    category: Annotated[list[str] | None, typer.Option(help="Category column to learn; repeatable.")] = None,
    number: Annotated[list[str] | None, typer.Option(help="Number column to learn; repeatable.")] = None,
    splits: Annotated[
        str | None, typer.Option(help="Shares of train, validation and test; else the source's own, or 0.8,0.1,0.1.")
    ] = None,
    input: Annotated[
        list[str] | None, typer.Option(help="Text column that a question may give to the model; repeatable.")
    ] = None,
    pictures: Pictures = "first",
    max_pictures: MaxPictures = 4,
    image_root: ImageRoot = None,
    missing: Annotated[str, typer.Option(help="Rows that lack some of their fields: keep, or refuse.")] = "keep",
    max_bad: Annotated[str, typer.Option(help="Largest share of rows that may be left out.")] = "5%",
    retry: Annotated[str | None, typer.Option(metavar="failed", help="Ask again for pictures that failed.")] = None,
    max_side: Annotated[int | None, typer.Option(min=16, help="Make larger pictures smaller, in pixels.")] = None,
    strip_metadata: Annotated[
        bool, typer.Option("--strip-metadata", help="Take EXIF with its position, XMP and comments out of pictures.")
    ] = False,
    concurrency: Annotated[int, typer.Option(min=1, help="Requests at a time.")] = 64,
    per_host: Annotated[int, typer.Option(min=1, help="Requests at a time to one host.")] = 16,
    rate: Annotated[float, typer.Option(min=0.5, help="Most requests a second to one host.")] = 50,
    allow_private_hosts: PrivateHosts = False,
    ignore_noai: Annotated[bool, typer.Option(help="Fetch what a server marks as noai or noimageai.")] = False,
    decimal: Annotated[str | None, typer.Option(help="Sign before the fraction of numbers; else told.")] = None,
    thousands: Annotated[str | None, typer.Option(help="Sign between groups of digits; else told by them.")] = None,
    encoding: Encoding = None,
    delimiter: Delimiter = None,
    quote: Quote = None,
    sheet: Sheet = None,
    config: Config = None,
    user_agent: UserAgent = None,
) -> None:
    """Make a catalogue of a table: pictures fetched and checked, near-duplicates tied, split by product, stored.

    A run that was stopped goes on from where it was; a second run, also of a table or flags that have changed, asks
    only for pictures that it has not seen.
    """
    flags = locals() | {"max_bad": share_of(max_bad), "per_host_rate": rate, "obey_noai": not ignore_noai}
    columns = _columns_of(image, id, {"text": text, "category": category, "number": number}, input or [])
    if retry not in (None, "failed"):
        raise RecipeError(f"--retry {retry}: the only choice is failed")
    spec = from_flags(catalens.PrepareSpec, flags | {"fractions": fractions_of(splits) if splits else None})
    with bars(console) as progress:
        folder, card = catalens.prepare(source, out, columns, spec, retry == "failed", progress, say)
    _report_catalog(folder, card)


@app.command(epilog="Example:  catalens check catalogs/demo --recipe recipes/tiny.yaml")
def check(
    catalog: Annotated[Path, typer.Argument(help="Folder of a catalogue.")],
    recipe: Annotated[Path | None, typer.Option(help="Reckon with its prompt, model and batch size.")] = None,
    out: Annotated[Path | None, typer.Option(help="File of the page; else check.html in the catalogue.")] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Fail on warnings, too.")] = False,
) -> None:
    """Say what is wrong with a catalogue and what training on it costs, before an expensive run.

    Exit code 9 where something is wrong enough to make scores false or stop a run; with --strict also where a warning
    is given; else 0. Nothing is downloaded: a model that is not on disk is reckoned as Phi-3-Vision.
    """
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # a title beyond the model's length is a finding
    with bars(console) as progress:
        loaded = catalens.load_recipe(recipe) if recipe else None
        checked = catalens.check(catalog, loaded, out, progress=progress)
    from catalens.checking.page import print_check

    print_check(checked.view, Terminal())
    answer(f"page: {checked.page}")
    if checked.count("error") or (strict and checked.count("warning")):
        raise CheckError(f"{catalog} is not ready to train on: mend what {checked.page} names, each with its fix")


def _columns_of(
    image: str | None, id: str | None, fields: dict[Kind, list[str] | None], inputs: list[str]
) -> "catalens.Columns":
    kinds: list[tuple[str, Kind]] = [(name, kind) for kind, names in fields.items() for name in names or []]
    named = (image if image != id else None, id, *(name for name, _ in kinds), *inputs)
    names = [name for name in named if name]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise RecipeError(f"column {twice!r} has two roles: give each column one of --image, --id, --text, ...")
    return catalens.Columns(image, id, dict(kinds), inputs)


def _report_catalog(out: Path, card: "CatalogCard") -> None:
    counts = ", ".join(f"{rows} {split}" for split, rows in card.rows.items())
    console.print(f"{out}: {counts} rows of {sum(card.products.values())} products", highlight=False, markup=False)
    for reason, count in card.left_out.items():
        console.print(f"[yellow]left out {count}:[/] {escape(f'{reason} (named in {out}/rejected.parquet)')}")
