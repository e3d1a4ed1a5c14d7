"""Rows that are tied never straddle a split, and a table that grows moves none of them."""

from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalens.catalog.splits import DEFAULT_FRACTIONS, Ties, assign_splits, key, split_of

THIRDS = {"train": 0.4, "validation": 0.3, "test": 0.3}
ROWS = st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20), st.integers(0, 3)), min_size=1, max_size=80)


def ties(rows: list[tuple[int, int, int]], near: list[tuple[int, int]] = []) -> Ties:  # noqa: B006
    """Ties of rows of (product, picture, category)."""
    return Ties(
        np.array([key(f"P{product}") for product, _, _ in rows], np.uint64),
        np.array([key(f"picture {picture}") for _, picture, _ in rows], np.uint64),
        np.array(near, np.intp).reshape(-1, 2),
        np.array([category for _, _, category in rows], np.intp),
    )


def single(count: int, category: int = 0) -> list[tuple[int, int, int]]:
    return [(n, n, category) for n in range(count)]


def test_the_hash_is_known_for_good():
    others = {"2": "validation", "5": "test", "6": "test", "15": "validation", "20": "test"}
    found = {str(n): split_of(str(n)) for n in range(24)}
    assert {n: split for n, split in found.items() if split != "train"} == others


@pytest.mark.parametrize("fractions", [DEFAULT_FRACTIONS, THIRDS, {"train": 1.0, "validation": 0.0, "test": 0.0}])
def test_shares_are_kept_within_a_row_of_each_category(fractions: dict[str, float]):
    rows = single(400) + [(1000 + n, 1000 + n, 1) for n in range(37)]
    splits = assign_splits(ties(rows), fractions)
    for category, size in ((0, 400), (1, 37)):
        counts = Counter(split for split, row in zip(splits, rows, strict=True) if row[2] == category)
        for split, share in fractions.items():
            assert abs(counts[split] - share * size) <= 2


def test_the_hash_decides_where_shares_allow_it():
    rows = single(1000)
    splits = assign_splits(ties(rows))
    by_hash = [split_of(f"P{n}") for n in range(1000)]
    assert sum(one == other for one, other in zip(splits, by_hash, strict=True)) > 700


@given(ROWS, st.lists(st.tuples(st.integers(0, 79), st.integers(0, 79)), max_size=30))
def test_what_is_tied_is_never_apart(rows: list[tuple[int, int, int]], pairs: list[tuple[int, int]]):
    near = sorted({(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1] and max(pair) < len(rows)})
    splits = assign_splits(ties(rows, near), THIRDS)
    sides: dict[object, set[str]] = defaultdict(set)
    for (product, picture, _), split in zip(rows, splits, strict=True):
        if split is not None:
            sides["product", product].add(split)
            sides["picture", picture].add(split)
    assert all(len(splits) == 1 for splits in sides.values())
    for one, other in near:
        assert None in (splits[one], splits[other]) or splits[one] == splits[other]


@given(ROWS, ROWS)
def test_a_row_never_moves_when_the_table_grows(rows: list[tuple[int, int, int]], more: list[tuple[int, int, int]]):
    near = [(n, n + 2) for n in range(0, len(rows) - 2, 5)]
    later = [*near, *((n, len(rows) + n % len(more)) for n in range(0, len(rows), 3))]
    before = assign_splits(ties(rows, near), THIRDS)
    after = assign_splits(ties(rows + more, sorted(set(later))), THIRDS)
    assert after[: len(rows)] == before


def test_a_row_that_joins_two_splits_belongs_to_neither():
    rows = single(40)
    splits = assign_splits(ties(rows), THIRDS)
    train, test = splits.index("train"), splits.index("test")
    assert assign_splits(ties([*rows, (train, test, 0)]), THIRDS)[-1] is None
    assert assign_splits(ties([*rows, (99, 99, 0)], [(train, 40), (test, 40)]), THIRDS)[-1] is None
    assert assign_splits(ties([*rows, (99, 99, 0)], [(test, 40)]), THIRDS)[-1] == "test"


def test_a_row_left_out_ties_nothing():
    rows = single(40)
    splits = assign_splits(ties(rows), THIRDS)
    train, test = splits.index("train"), splits.index("test")
    joined = [*rows, (train, test, 0), (train, 77, 0), (78, test, 0)]
    assert assign_splits(ties(joined), THIRDS)[40:] == [None, "train", "test"]
