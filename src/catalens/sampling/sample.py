"""Drawn sample catalogues: product pictures with fields, from a seed.

    DrawnRow(product_code='80412379', title='Gold-Trim Striped Red Tote Bag', category3_code='BAGS',
             full_price=1523.0, image=b'\\xff\\xd8...', expected_price=1472.0)

Every row is a pure function of the seed, its number and the assortment, so any number of workers draws
the same bytes. Variants (photographs of one product) follow each other and share all but the picture.
"""

import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np

from catalens.catalog.pictures import PictureFacts, picture_facts
from catalens.catalog.splits import DEFAULT_FRACTIONS, split_of
from catalens.catalog.storage import CatalogCard, Roles
from catalens.catalog.writer import CatalogWriter
from catalens.progress import Progress, silent
from catalens.sampling.assortment import DEMO, Assortment, plan_product, plan_rows
from catalens.sampling.picture import photograph

Drawn = TypeVar("Drawn")
Index = tuple[int, int]  # numbers of a product and of its photograph

SAMPLE_ROLES = Roles(
    id="product_code", fields={"title": "text", "category3_code": "category", "full_price": "number"}
)
CHUNK = 16  # rows a worker draws at a time
AHEAD = 32  # chunks for each worker that are drawn before the next are handed out


class DrawnRow(NamedTuple):
    """A photograph of a product with the fields a shop's table has. Prices in whole currency units."""

    product_code: str
    title: str
    category3_code: str
    full_price: float
    image: bytes  # an encoded JPEG, PNG or WebP file
    expected_price: float  # what the picture tells: the price before the noise
    facts: PictureFacts


def sample_catalog(
    out: Path | str,
    rows: int = 1000,
    seed: int = 0,
    assortment: Assortment = DEMO,
    noise: float = 0.08,
    workers: int = 1,
    fractions: Mapping[str, float] = DEFAULT_FRACTIONS,
    progress: Progress = silent,
) -> CatalogCard:
    """Draw `rows` pictures of products into the catalogue `out`; the same arguments give the same bytes.

    `noise` is the standard deviation of the log-normal factor on each price: the card's figures hold what nobody can
    know from a picture, as `mdape` and `mae`. Raises CatalogError where `out` exists.
    """
    provenance = {
        "command": "sample",
        "rows": rows,
        "seed": seed,
        "assortment": assortment.name,
        "noise": noise,
        "fractions": dict(fractions),
    }
    if assortment.noise:
        provenance["noise_by_category"] = True
    prices: list[tuple[float, float]] = []
    with CatalogWriter(out, SAMPLE_ROLES, provenance) as writer:
        for done, row in enumerate(draw_catalog(rows, seed, assortment, workers, noise), start=1):
            split = split_of(row.product_code, fractions)
            writer.add(split, row.image, row.product_code, row._asdict(), row.facts)
            prices.append((row.full_price, row.expected_price))
            progress("drawing", done, rows)
        writer.figures = noise_floor(prices)
    return writer.card


def draw_catalog(
    rows: int, seed: int, assortment: Assortment = DEMO, workers: int = 1, noise: float = 0.08
) -> Iterator[DrawnRow]:
    """Draw `rows` rows in order, as `sample_catalog` does.

    More than one worker means a process pool, started by spawning: a script needs its `if __name__ == "__main__"`.
    """
    plan = plan_rows(rows, lambda number: plan_product(seed, number, assortment, noise).photographs)
    return in_pool(partial(_draw_row, seed=seed, assortment=assortment, noise=noise), plan, workers)


def _draw_row(index: Index, seed: int, assortment: Assortment, noise: float) -> DrawnRow:
    number, shot = index
    plan = plan_product(seed, number, assortment, noise)
    image = photograph(plan.look, random.Random(f"catalens/{seed}/product/{number}/photograph/{shot}"))
    facts = picture_facts(image)
    return DrawnRow(plan.code, plan.title, plan.category, plan.price, image, plan.expected_price, facts)


def in_pool(draw: Callable[[Index], Drawn], plan: Iterator[Index], workers: int) -> Iterator[Drawn]:
    """Map the picklable `draw` over (product, photograph) in order, by processes; with one worker right here.

    Not all at once: what is drawn waits in memory for its reader.
    """
    if workers == 1:
        yield from map(draw, plan)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        while some := list(islice(plan, workers * AHEAD * CHUNK)):
            yield from pool.map(draw, some, chunksize=CHUNK)


def noise_floor(prices: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Reckon the error that is left to someone who reads every picture perfectly and knows the price formula.

    Of (price, price before the noise), `mdape`, the median absolute percentage error as a share of 1, and `mae` in
    currency units. Raises ValueError when there are none.
    """
    if not prices:
        raise ValueError("a noise floor needs at least one row")
    price, expected = np.array(prices).T
    error = np.abs(price - expected)
    return {"mdape": float(np.median(error / price)), "mae": float(error.mean())}
