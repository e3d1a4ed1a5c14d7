"""Drawn sample catalogues: product pictures with fields, from a seed.

    DrawnRow(product_code='80412379', title='Gold-Trim Striped Red Tote Bag', category3_code='BAGS',
             full_price=1523.0, image=b'\\xff\\xd8...', expected_price=1472.0)

Every row is a pure function of the seed, its place and the assortment, so any number of workers draws
the same bytes. Variants (photographs of one product) follow each other and share all but the picture.
"""

import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from multiprocessing import get_context
from typing import TypeVar

import numpy as np

from catalens.sampling.assortment import BASE, DEMO, Assortment, Kind, plan_product, plan_rows
from catalens.sampling.picture import photograph

__all__ = ["BASE", "DEMO", "Assortment", "DrawnRow", "Kind", "draw_catalog", "in_pool", "noise_floor"]

Drawn = TypeVar("Drawn")

PORTION = 16  # rows a worker draws at a time
AHEAD = 32  # portions for each worker that are drawn before the next are handed out


@dataclass(frozen=True)
class DrawnRow:
    """A photograph of a product with the fields a shop's table has. Prices in whole currency units."""

    product_code: str
    title: str
    category3_code: str
    full_price: float
    image: bytes  # an encoded JPEG, PNG or WebP file
    expected_price: float  # what the picture tells: the price before the noise


def draw_catalog(
    rows: int, seed: int, assortment: Assortment = DEMO, workers: int = 1, noise: float = 0.08
) -> Iterator[DrawnRow]:
    """Draw `rows` rows in order.

    `noise` is the standard deviation of the logarithm of the price. More than one worker means a process
    pool, started by spawning: a script needs its `if __name__ == "__main__"`. Raises ValueError on a
    negative `rows` or `noise`, or less than one worker.
    """
    if rows < 0 or noise < 0 or workers < 1:
        raise ValueError(f"rows={rows} and noise={noise} must not be negative, workers={workers} not below 1")
    draw = partial(_draw_row, seed=seed, assortment=assortment, noise=noise)
    return in_pool(draw, plan_rows(rows, seed, assortment, noise), workers)


def noise_floor(prices: Sequence[float], expected_prices: Sequence[float]) -> dict[str, float]:
    """The error that is left to someone who reads every picture perfectly and knows the price formula.

    Over drawn rows `mdape`, the median absolute percentage error as a share of 1, and `mae` in currency units. Raises
    ValueError when there are none.
    """
    if not len(prices):
        raise ValueError("a noise floor needs at least one row")
    error = np.abs(np.asarray(prices) - np.asarray(expected_prices))
    return {"mdape": float(np.median(error / np.asarray(prices))), "mae": float(error.mean())}


def _draw_row(place: tuple[int, int], seed: int, assortment: Assortment, noise: float) -> DrawnRow:
    number, shot = place
    product = plan_product(seed, number, assortment, noise)
    return DrawnRow(
        product_code=product.code,
        title=product.title,
        category3_code=product.category,
        full_price=product.price,
        image=photograph(product, random.Random(f"catalens/{seed}/product/{number}/photograph/{shot}")),
        expected_price=product.expected_price,
    )


def in_pool(
    draw: Callable[[tuple[int, int]], Drawn], places: Iterator[tuple[int, int]], workers: int
) -> Iterator[Drawn]:
    """What `draw` makes of each (product, photograph), in order, by processes; with one worker right here.

    Not all at once: what is drawn waits in memory for its reader. `draw` has to be picklable.
    """
    if workers == 1:
        yield from map(draw, places)
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        while some := list(islice(places, workers * AHEAD * PORTION)):
            yield from pool.map(draw, some, chunksize=PORTION)
