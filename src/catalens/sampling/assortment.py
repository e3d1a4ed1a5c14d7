"""Assortment of a drawn shop, and the plan of its products: numbers and words only, no pictures.

    80412379 | Gold-Trim Striped Red Tote Bag | BAGS | 1523.0

A product is drawn from its shop's mix of kinds, then given a colour, a pattern and a trim, all of which show in the
picture and stand in the title. Its price is base(kind) x pattern factor x trim factor x lognormal noise: someone who
reads the picture perfectly knows it up to the noise and no better. The tables are `assets/assortments.yaml`.
"""

import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import yaml


def read_asset(name: str) -> dict[str, Any]:
    """Read a data file of the package."""
    return yaml.safe_load((Path(__file__).parents[1] / "assets" / name).read_text(encoding="utf-8"))


class Kind(NamedTuple):
    """A kind of product as one shop sells it."""

    name: str  # the words in the title, and the name of the shape
    category: str
    base_price: float  # plain, without trim, whole currency units
    popularity: float  # share of products, relative


class Assortment(NamedTuple):
    """A shop's kinds of products."""

    name: str
    kinds: tuple[Kind, ...]
    noise: Mapping[str, float] = {}
    """By category: factor on the noise of its prices, 1 where there is none."""

    @property
    def uneven(self) -> "Assortment":
        """The same shop with prices that tell more in some categories than in others: a quarter to three times the
        noise."""
        names = list(dict.fromkeys(kind.category for kind in self.kinds))
        steps = max(1, len(names) - 1)
        return self._replace(noise={name: 0.25 * 12 ** (n / steps) for n, name in enumerate(names)})


class Look(NamedTuple):
    """All that is seen of a product."""

    kind: str
    colour: str
    pattern: str
    trim: str


class Product(NamedTuple):
    """A product before it is photographed. Prices in whole currency units."""

    code: str
    look: Look
    category: str
    price: float
    expected_price: float  # the same before the noise
    photographs: int

    @property
    def title(self) -> str:
        """The words a shop would print, each of them visible in the picture."""
        return " ".join(word for word in reversed(self.look) if word)


_TABLES = read_asset("assortments.yaml")
PALETTE: dict[str, tuple[str, str]] = {name: (cloth, ink) for name, (cloth, ink, *_) in _TABLES["palette"].items()}
COLOURS: dict[str, float] = {name: row[2] for name, row in _TABLES["palette"].items() if len(row) > 2}
"""Weights of the colours in the assortments; the palette has more."""
PATTERNS: dict[str, tuple[float, float]] = _TABLES["patterns"]  # price factor and weight by word
TRIMS: dict[str, tuple[float, float]] = _TABLES["trims"]
PLAIN_ONLY = frozenset[str](_TABLES["plain_only"])
DEMO, BASE = (
    Assortment(name, tuple(Kind(kind, *row) for kind, row in _TABLES["shops"][name].items()))
    for name in ("demo", "base")
)

_CODES, _CODE_STEP = 90_000_000, 56_598_317  # the step is prime: codes repeat only after 90 million


def plan_product(seed: int, number: int, assortment: Assortment, noise: float) -> Product:
    """Plan product `number` of the catalogue `seed`, from these four values alone.

    `noise` is the standard deviation of the logarithm of the price, times the category's factor.
    """
    rng = random.Random(f"catalens/{seed}/product/{number}")
    kind = rng.choices(assortment.kinds, [kind.popularity for kind in assortment.kinds])[0]
    colour = rng.choices(list(COLOURS), list(COLOURS.values()))[0]
    pattern = rng.choices(list(PATTERNS), [weight for _, weight in PATTERNS.values()])[0]
    trim = rng.choices(list(TRIMS), [weight for _, weight in TRIMS.values()])[0]
    if kind.name in PLAIN_ONLY:
        pattern = "Plain"
    expected = kind.base_price * PATTERNS[pattern][0] * TRIMS[trim][0]
    return Product(
        code=str(10_000_000 + (number * _CODE_STEP + seed * 7_919) % _CODES),
        look=Look(kind.name, colour, pattern, trim),
        category=kind.category,
        price=float(round(expected * rng.lognormvariate(0.0, noise * assortment.noise.get(kind.category, 1.0)))),
        expected_price=float(expected),
        photographs=rng.choices((1, 2, 3, 4), (65, 22, 9, 4))[0],
    )


def plan_rows(rows: int, photographs: Callable[[int], int]) -> Iterator[tuple[int, int]]:
    """Yield (product number, photograph number) of each row, of products with so many photographs each.

    The last product may have fewer than it planned.
    """
    number = planned = 0
    while planned < rows:
        shots = min(photographs(number), rows - planned)
        yield from ((number, shot) for shot in range(shots))
        planned += shots
        number += 1
