"""Drawn sample catalogues: product pictures with fields, from a seed.

    DrawnRow(product_code='80412379', title='Gold-Trim Striped Red Tote Bag', category3_code='BAGS',
             full_price=1523.0, image=b'\\xff\\xd8...', expected_price=1472.0)

Every row is a pure function of the seed, its place and the assortment, so any number of workers draws
the same bytes. Variants (photographs of one product) follow each other and share all but the picture.
"""

import random
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from itertools import islice
from multiprocessing import get_context
from typing import Any, TypeVar

import numpy as np

from catalens.catalog.drawing.assortment import BASE, DEMO, Assortment, Kind, plan_product, plan_rows
from catalens.catalog.drawing.picture import photograph

__all__ = ["BASE", "DEMO", "Assortment", "DrawnRow", "Kind", "NoiseFloor", "draw_catalog", "in_pool", "noise_floor"]

Drawn = TypeVar("Drawn")

_CHUNK = 32  # rows a worker draws at a time: about half a second


@dataclass(frozen=True)
class DrawnRow:
    """A photograph of a product with the fields a shop's table has. Prices in whole currency units."""

    product_code: str
    title: str
    category3_code: str
    full_price: float
    image: bytes  # an encoded JPEG, PNG or WebP file
    expected_price: float  # what the picture tells: the price before the noise


@dataclass(frozen=True)
class NoiseFloor:
    """The error that is left to someone who reads every picture perfectly and knows the price formula."""

    median_ape: float  # median absolute percentage error, as a share of 1
    mae: float  # mean absolute error, currency units


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
    chunks = _chunks(rows, seed, assortment, noise)
    return in_pool(_draw_chunk, chunks, workers)


def noise_floor(prices: Sequence[float], expected_prices: Sequence[float]) -> NoiseFloor:
    """The noise floor measured on drawn rows. Raises ValueError when there are none."""
    if not len(prices):
        raise ValueError("a noise floor needs at least one row")
    error = np.abs(np.asarray(prices) - np.asarray(expected_prices))
    return NoiseFloor(float(np.median(error / np.asarray(prices))), float(error.mean()))


_Chunk = tuple[tuple[tuple[int, int], ...], int, Assortment, float]


def _chunks(rows: int, seed: int, assortment: Assortment, noise: float) -> Iterator[_Chunk]:
    """The work in portions: (product, photograph) numbers and all that drawing them needs."""
    plan = plan_rows(rows, seed, assortment, noise)
    while places := tuple(islice(plan, _CHUNK)):
        yield places, seed, assortment, noise


def _draw_chunk(
    places: tuple[tuple[int, int], ...], seed: int, assortment: Assortment, noise: float
) -> list[DrawnRow]:
    """Draw the rows of one portion."""
    drawn: list[DrawnRow] = []
    for number, shot in places:
        product = plan_product(seed, number, assortment, noise)
        dice = random.Random(f"catalens/{seed}/product/{number}/photograph/{shot}")
        drawn.append(
            DrawnRow(
                product_code=product.code,
                title=product.title,
                category3_code=product.category,
                full_price=product.price,
                image=photograph(product, dice),
                expected_price=product.expected_price,
            )
        )
    return drawn


def in_pool(work: Callable[..., list[Drawn]], portions: Iterator[tuple[Any, ...]], workers: int) -> Iterator[Drawn]:
    """What `work` makes of each portion's arguments, in order: by processes, a few portions ahead of the reader.

    With one worker it is done right here. `work` and the arguments have to be picklable.
    """
    if workers == 1:
        yield from (made for portion in portions for made in work(*portion))
        return
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        ahead: deque[Future[list[Drawn]]] = deque()
        try:
            for portion in portions:
                ahead.append(pool.submit(work, *portion))
                if len(ahead) > 2 * workers:
                    yield from ahead.popleft().result()
            while ahead:
                yield from ahead.popleft().result()
        finally:  # a reader that stops early waits for no unread rows
            pool.shutdown(cancel_futures=True)
