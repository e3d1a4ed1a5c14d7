"""Splits of rows: those that are tied go together, by the hash of their first product.

    row  product  photo        split
    1    P1       a.jpg        train       by the hash of P1
    2    P2       b.jpg        test        by the hash of P2
    3    P1       a-zoom.jpg   train       a variant of row 1
    4    P3       b.jpg        test        shows what row 2 shows

    the same table later, its rows given as they are:
    5    P1       b.jpg        left out    is tied to both sides

Groups of tied rows are taken in the order of their first rows. A table that grows at its end keeps every row where it
was where the earlier splits are given, and without them as long as no new row joins two groups.
"""

import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

DEFAULT_FRACTIONS: Mapping[str, float] = MappingProxyType({"train": 0.8, "validation": 0.1, "test": 0.1})
TEMPLATE = 30
"""Products that all look alike from which they are no copies of one another but show one template."""
SLACK = 1.0
"""Rows by which a category may have more than its share in a split before the hash is overruled."""
ENOUGH = 0.5
"""Part of their shares that the other splits must be able to have beside the largest group of look-alikes."""


@dataclass(frozen=True)
class Ties:
    """Ties between rows, in the order of the table; n rows."""

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


def assign_splits(
    ties: Ties,
    fractions: Mapping[str, float] = DEFAULT_FRACTIONS,
    given: Sequence[str | None] = (),
    notice: Callable[[str], None] = lambda text: None,
) -> list[str | None]:
    """Assign every row a split, or None where it is tied to rows of two splits of an earlier preparation.

    `given` are the splits of an earlier preparation by row, None for new rows; they are kept. A group without any
    goes where the hash of its first row's product says, unless that row's category has `SLACK` rows more than its
    share there: then to the split that lacks most of it (stratification). `notice` hears of groups that are too large
    for that.
    """
    names, shares = list(fractions), list(fractions.values())
    total = len(ties.products)
    splits = [None if split is None or split not in fractions else names.index(split) for split in given]
    splits += [None] * (total - len(splits))
    groups = _groups(ties, shares, notice)
    decided, torn = _earlier(groups, splits)
    movable = set(groups.tolist()) - set(decided) - torn
    counts: dict[int, Counter[int]] = defaultdict(Counter)
    large = _large(groups, shares) & movable
    largest = max(range(len(shares)), key=lambda split: shares[split])
    for row in np.flatnonzero(np.isin(groups, list(large))).tolist():
        splits[row] = largest
        counts[int(ties.categories[row])][largest] += 1
    joined = _Joined(ties, np.isin(groups, list(torn)), splits)
    numbered = zip(groups.tolist(), ties.products.tolist(), ties.categories.tolist(), strict=True)
    for row, (group, product, category) in enumerate(numbered):
        if group in large:
            continue
        if splits[row] is None:
            sides = joined.sides(row) if group in torn else set()
            if len(sides) > 1:
                continue
            side = sides.pop() if sides else decided.get(group)
            side = _proposed(product, counts[category], shares) if side is None else side
            splits[row] = side
            if group in torn:
                joined.put(row, side)
            else:
                decided[group] = side
        counts[category][int(splits[row] or 0)] += 1
    _fill_empty(groups, splits, shares, movable)
    return [None if split is None else names[split] for split in splits]


class _Joined:
    """Splits by what ties rows of torn groups: thousands may share one picture, so ties are no pairs of rows."""

    def __init__(self, ties: Ties, inside: NDArray[np.bool_], splits: Sequence[int | None]) -> None:
        self._products, self._contents = ties.products.tolist(), ties.contents.tolist()
        self._near: dict[int, list[int]] = defaultdict(list)
        self._splits: dict[tuple[str, int], set[int]] = defaultdict(set)
        for one, other in ties.near[inside[ties.near[:, 0]]].tolist():
            self._near[one].append(other)
            self._near[other].append(one)
        for row in np.flatnonzero(inside).tolist():
            if (split := splits[row]) is not None:
                self.put(row, split)

    def put(self, row: int, split: int) -> None:
        """Note the split of a row with all that is tied to it."""
        for tie in (*self._ties_of(row), *(("row", other) for other in self._near[row])):
            self._splits[tie].add(split)

    def sides(self, row: int) -> set[int]:
        """Splits of the rows that a row is tied to."""
        return set().union(*(self._splits[tie] for tie in self._ties_of(row)))

    def _ties_of(self, row: int) -> tuple[tuple[str, int], ...]:
        return ("row", row), ("product", self._products[row]), ("content", self._contents[row])


def components(links: NDArray[np.intp], count: int) -> NDArray[np.intp]:
    """Number the connected components of `count` nodes, linked by pairs [links, 2]; [count]."""
    graph = coo_array((np.ones(len(links), np.int8), (links[:, 0], links[:, 1])), shape=(count, count))
    return connected_components(graph, directed=False)[1].astype(np.intp)


def _groups(ties: Ties, shares: Sequence[float], notice: Callable[[str], None]) -> NDArray[np.intp]:
    """Number of each row's group: tied rows share one, except in a group of look-alikes too large for any split.

    Too large is what leaves the other splits less than half of their shares. Where it holds many products, its
    pictures are those of one template, not copies, so that its rows go by product and identical picture only.
    """
    total = len(ties.products)
    same = np.concatenate([_links(ties.products), _links(ties.contents)])
    groups = components(np.concatenate([same, ties.near]), total)
    sizes = np.bincount(groups, minlength=1)
    if sizes.max() <= 1 or sizes.max() <= (1 - ENOUGH * (1 - max(shares))) * total:
        return groups
    alike = groups == sizes.argmax()
    apart = components(same, total)
    divided = len(np.unique(apart[alike]))
    if divided >= TEMPLATE:
        notice(
            f"{sizes.max()} of {total} rows look alike, as pictures of one template do, and are divided by product: "
            "scores are then of products that resemble those learnt"
        )
        return np.where(alike, apart + groups.max() + 1, groups)
    notice(
        f"{sizes.max()} of {total} rows share one product id or one picture, or look alike, and stay in one split: "
        "name another column with --id, remove the placeholder picture, or add other products, for splits as asked"
    )
    return groups


def _earlier(groups: NDArray[np.intp], splits: Sequence[int | None]) -> tuple[dict[int, int], set[int]]:
    """Split of each group that has rows of an earlier preparation, and the groups whose rows are in two."""
    found: dict[int, set[int]] = defaultdict(set)
    for group, split in zip(groups.tolist(), splits, strict=True):
        if split is not None:
            found[group].add(split)
    return (
        {group: min(sides) for group, sides in found.items() if len(sides) == 1},
        {group for group, sides in found.items() if len(sides) > 1},
    )


def _large(groups: NDArray[np.intp], shares: Sequence[float]) -> set[int]:
    """Groups that are larger than the share of some split: they go into the largest, ahead of the others."""
    least = min((share for share in shares if share * len(groups) >= 1), default=1.0) * len(groups)
    numbers, sizes = np.unique(groups, return_counts=True)
    return set(numbers[sizes > least].tolist())


def _fill_empty(
    groups: NDArray[np.intp], splits: list[int | None], shares: Sequence[float], movable: Collection[int]
) -> None:
    """Give a split that should have rows and has none the smallest movable group of the fullest split, if of more."""
    for empty in [split for split, share in enumerate(shares) if share * len(groups) >= 1 and split not in splits]:
        (fullest, _), *_ = Counter(split for split in splits if split is not None).most_common()
        own = Counter(group for group, split in zip(groups.tolist(), splits, strict=True) if split == fullest)
        can = [group for group in own if group in movable]
        if len(own) > 1 and can:
            moved = min(can, key=lambda group: own[group])
            for row in np.flatnonzero(groups == moved).tolist():
                splits[row] = empty


def _links(keys: NDArray[np.uint64]) -> NDArray[np.intp]:
    """Pairs [pairs, 2] that link every row with the first one that has its key."""
    _, first, inverse = np.unique(keys, return_index=True, return_inverse=True)
    return np.stack([first[inverse], np.arange(len(keys))], axis=1).astype(np.intp)


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
