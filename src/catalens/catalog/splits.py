"""Which split a row belongs to: decided by its product and what it is tied to, never by where the table ends.

    row  product  photo        split
    1    P1       a.jpg        train       by the hash of P1
    2    P2       b.jpg        test        by the hash of P2
    3    P1       a-zoom.jpg   train       a variant of row 1
    4    P3       b.jpg        test        shows what row 2 shows
    5    P1       b.jpg        left out    is tied to both sides

Rows are taken in the table's order and a row looks only at the rows before it, so a table that grows at its end keeps
every row where it was, and two machines agree.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

DEFAULT_FRACTIONS: Mapping[str, float] = MappingProxyType({"train": 0.8, "validation": 0.1, "test": 0.1})
SLACK = 1.0
"""Rows by which a category may have more than its share in a split before the hash is overruled."""


@dataclass(frozen=True)
class Ties:
    """What ties rows to one another, in the order of the table; n rows."""

    products: NDArray[np.uint64]
    """`key` of the product id, [n]."""
    contents: NDArray[np.uint64]
    """First bytes of the SHA-256 of the picture, [n]."""
    near: NDArray[np.intp]
    """Pairs of rows with near-duplicate pictures, [pairs, 2], the earlier row first."""
    categories: NDArray[np.intp]
    """Number of the row's category, [n]."""


def key(text: str) -> int:
    """The first 64 bits of the SHA-256 of a text."""
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big")


def split_of(group: str, fractions: Mapping[str, float] = DEFAULT_FRACTIONS) -> str:
    """Split of a product by the hash of its id alone; `fractions` sum to 1 and their order counts."""
    return list(fractions)[_hashed(key(group), list(fractions.values()))]


def assign_splits(ties: Ties, fractions: Mapping[str, float] = DEFAULT_FRACTIONS) -> list[str | None]:
    """Split of each row; None for a row that is tied to rows of two splits and so belongs to neither.

    A row that is tied to none before it goes where the hash of its product says, unless its category has `SLACK` rows
    more than its share there: then to the split that lacks most of that category (stratification).
    """
    names, shares = list(fractions), list(fractions.values())
    before: dict[int, list[int]] = defaultdict(list)
    for earlier, later in ties.near.tolist():
        before[later].append(earlier)
    kinds = (ties.products, ties.contents)
    again = [_stands_again(keys) for keys in kinds]
    held: tuple[dict[int, int], dict[int, int]] = ({}, {})
    counts: dict[int, Counter[int]] = defaultdict(Counter)
    splits: list[int | None] = []
    for row in range(len(ties.products)):
        keys = [int(of[row]) if stands[row] else None for of, stands in zip(kinds, again, strict=True)]
        tied = {known[k] for k, known in zip(keys, held, strict=True) if k is not None and k in known}
        tied |= {split for other in before.get(row, ()) if (split := splits[other]) is not None}
        counted = counts[int(ties.categories[row])]
        if len(tied) > 1:
            splits.append(None)
            continue
        split = tied.pop() if tied else _proposed(int(ties.products[row]), counted, shares)
        splits.append(split)
        counted[split] += 1
        for k, known in zip(keys, held, strict=True):
            if k is not None:
                known[k] = split
    return [None if split is None else names[split] for split in splits]


def _hashed(key: int, shares: Sequence[float]) -> int:
    reached = 0.0
    for split, share in enumerate(shares):
        reached += share
        if key / 2**64 < reached:
            return split
    return len(shares) - 1


def _proposed(product: int, counted: Mapping[int, int], shares: Sequence[float]) -> int:
    split, total = _hashed(product, shares), sum(counted.values()) + 1
    lacking = [share * total - counted.get(s, 0) for s, share in enumerate(shares)]
    return split if lacking[split] >= 1 - SLACK - 1e-9 else max(range(len(shares)), key=lambda s: lacking[s])


def _stands_again(keys: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Whether each key stands more than once; the others need not be remembered."""
    _, inverse, counts = np.unique(keys, return_inverse=True, return_counts=True)
    return counts[inverse] > 1
