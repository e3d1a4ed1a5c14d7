"""What a drawn shop sells, and the plan of its products: numbers and words only, no pictures.

    80412379 | Gold-Trim Striped Red Tote Bag | BAGS | 1523.0

A product is drawn from its shop's mix of kinds, then given a colour, a pattern and a trim, all of which
show in the picture and stand in the title. Its price is

    base(kind) x pattern factor x trim factor x lognormal noise

so that someone who reads the picture perfectly knows the price up to the noise and no better.
"""

import random
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

COLOURS: dict[str, tuple[str, str]] = {  # word: cloth, ink of the pattern on it
    "Black": ("#23252b", "#d8d2c4"),
    "White": ("#f7f5f0", "#4b586a"),
    "Red": ("#c9202e", "#f7e3d0"),
    "Blue": ("#2358c6", "#dfe9ff"),
    "Green": ("#1e8748", "#e2f3cf"),
    "Yellow": ("#fbdc1c", "#5a4a1c"),
    "Pink": ("#f590b8", "#7c1f4b"),
    "Purple": ("#7238ae", "#ead9fb"),
    "Orange": ("#f07414", "#fff0d6"),
    "Brown": ("#74451f", "#ecd3ac"),
}
PALETTE = COLOURS | {  # what a drawn product can have, beside the colours of the assortments
    "Beige": ("#dcc7a0", "#6b5638"),
    "Grey": ("#8b9097", "#eceef0"),
    "Navy": ("#1c2b52", "#c9d4ee"),
}
COLOUR_WEIGHTS = (20, 13, 11, 13, 9, 6, 8, 6, 6, 10)

PATTERNS: dict[str, tuple[float, float]] = {  # word: price factor, weight
    "Plain": (1.0, 40),
    "Striped": (1.15, 20),
    "Checked": (1.35, 20),
    "Dotted": (0.85, 20),
}
TRIMS: dict[str, tuple[float, float]] = {  # word in front of the title: price factor, weight
    "": (1.0, 50),
    "Silver-Trim": (1.4, 25),
    "Gold-Trim": (2.0, 25),
}
PLAIN_ONLY = frozenset({"Belt", "Sunglasses", "Watch", "Perfume"})  # too narrow to show a pattern

_FIRST_CODE, _CODES = 10_000_000, 90_000_000
_CODE_STEP = 56_598_317  # prime, so no factor in common with _CODES: codes repeat only after 90 million


class Kind(NamedTuple):
    """A kind of product as one shop sells it."""

    name: str  # the words in the title; the shape in `shapes.SHAPES`
    category: str
    base_price: float  # plain, without trim, whole currency units
    popularity: float  # share of products, relative


@dataclass(frozen=True)
class Assortment:
    """What a shop sells: its kinds with category word, base price and popularity."""

    name: str
    kinds: tuple[Kind, ...]


@dataclass(frozen=True)
class Product:
    """One product before it is photographed. Prices in whole currency units."""

    code: str
    kind: str
    colour: str
    pattern: str
    trim: str
    category: str
    price: float
    expected_price: float  # the same before the noise
    photographs: int

    @property
    def title(self) -> str:
        """The words a shop would print, each of them visible in the picture."""
        return " ".join(word for word in (self.trim, self.pattern, self.colour, self.kind) if word)


DEMO = Assortment(
    "demo",
    (
        Kind("T-Shirt", "TOPS", 52, 17),
        Kind("Tote Bag", "BAGS", 640, 11),
        Kind("Shirt", "TOPS", 118, 10),
        Kind("Dress", "DRESSES", 330, 8),
        Kind("Sneaker", "SHOES", 195, 8),
        Kind("Trench Coat", "OUTERWEAR", 880, 6),
        Kind("Trousers", "BOTTOMS", 150, 5),
        Kind("Scarf", "ACCESSORIES", 88, 5),
        Kind("Boot", "SHOES", 420, 4),
        Kind("Backpack", "BAGS", 290, 4),
        Kind("Skirt", "BOTTOMS", 175, 3),
        Kind("Mug", "HOME", 34, 3),
        Kind("Cap", "ACCESSORIES", 58, 3),
        Kind("Wallet", "LEATHER GOODS", 210, 3),
        Kind("Sunglasses", "EYEWEAR", 140, 2.5),
        Kind("Belt", "LEATHER GOODS", 125, 2),
        Kind("Watch", "WATCHES", 1450, 2),
        Kind("Cushion", "HOME", 66, 2),
        Kind("Umbrella", "ACCESSORIES", 74, 2),
        Kind("Suitcase", "TRAVEL", 760, 2),
        Kind("Perfume", "FRAGRANCES", 98, 2),
    ),
)

BASE = Assortment(
    "base",
    (
        Kind("T-Shirt", "Casual Wear", 38, 9),
        Kind("Tote Bag", "Carry", 310, 7),
        Kind("Shirt", "Formal Wear", 84, 7),
        Kind("Dress", "Formal Wear", 450, 6),
        Kind("Sneaker", "Footwear", 130, 6),
        Kind("Trench Coat", "Weather Wear", 560, 6),
        Kind("Trousers", "Casual Wear", 99, 5),
        Kind("Scarf", "Neckwear", 145, 5),
        Kind("Boot", "Footwear", 610, 5),
        Kind("Backpack", "Carry", 170, 5),
        Kind("Skirt", "Casual Wear", 118, 4.5),
        Kind("Mug", "Kitchen", 47, 4.5),
        Kind("Cap", "Headwear", 41, 4.5),
        Kind("Wallet", "Pocket Items", 105, 4.5),
        Kind("Sunglasses", "Optics", 260, 4),
        Kind("Belt", "Waistwear", 72, 4),
        Kind("Watch", "Timepieces", 980, 4),
        Kind("Cushion", "Living", 112, 4),
        Kind("Umbrella", "Weather Wear", 55, 4),
        Kind("Suitcase", "Luggage", 400, 4),
        Kind("Perfume", "Beauty", 190, 4),
    ),
)


def plan_product(seed: int, number: int, assortment: Assortment, noise: float) -> Product:
    """Product `number` of the catalogue `seed`, from these four values alone.

    `noise` is the standard deviation of the logarithm of the price.
    """
    dice = random.Random(f"catalens/{seed}/product/{number}")
    kind = dice.choices(assortment.kinds, [kind.popularity for kind in assortment.kinds])[0]
    colour = dice.choices(list(COLOURS), COLOUR_WEIGHTS)[0]
    pattern = dice.choices(list(PATTERNS), [weight for _, weight in PATTERNS.values()])[0]
    trim = dice.choices(list(TRIMS), [weight for _, weight in TRIMS.values()])[0]
    if kind.name in PLAIN_ONLY:
        pattern = "Plain"
    expected = kind.base_price * PATTERNS[pattern][0] * TRIMS[trim][0]
    return Product(
        code=str(_FIRST_CODE + (number * _CODE_STEP + seed * 7_919) % _CODES),
        kind=kind.name,
        colour=colour,
        pattern=pattern,
        trim=trim,
        category=kind.category,
        price=float(round(expected * dice.lognormvariate(0.0, noise))),
        expected_price=expected,
        photographs=dice.choices((1, 2, 3, 4), (65, 22, 9, 4))[0],
    )


def plan_rows(rows: int, seed: int, assortment: Assortment, noise: float) -> Iterator[tuple[int, int]]:
    """(product number, photograph number) of each row; the last product may have fewer than it planned."""
    number = planned = 0
    while planned < rows:
        photographs = plan_product(seed, number, assortment, noise).photographs
        for photograph in range(min(photographs, rows - planned)):
            yield number, photograph
        planned += photographs
        number += 1
