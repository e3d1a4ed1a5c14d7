"""Rows that are tied never straddle a split, and a table that grows moves none of them."""

import tracemalloc
from collections import Counter, defaultdict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalens.catalog import DEFAULT_FRACTIONS, Ties, assign_splits, key, split_of

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
def test_what_is_tied_is_together_and_nothing_is_lost(rows: list[tuple[int, int, int]], pairs: list[tuple[int, int]]):
    near = sorted({(min(pair), max(pair)) for pair in pairs if pair[0] != pair[1] and max(pair) < len(rows)})
    splits = assign_splits(ties(rows, near), THIRDS)
    assert None not in splits
    sides: dict[object, set[str | None]] = defaultdict(set)
    for (product, picture, _), split in zip(rows, splits, strict=True):
        sides["product", product].add(split)
        sides["picture", picture].add(split)
    assert all(len(splits) == 1 for splits in sides.values())
    assert all(splits[one] == splits[other] for one, other in near)


@given(ROWS, ROWS)
def test_a_row_never_moves_when_the_table_grows(rows: list[tuple[int, int, int]], more: list[tuple[int, int, int]]):
    near = [(n, n + 2) for n in range(0, len(rows) - 2, 5)]
    later = sorted({*near, *((n, len(rows) + n % len(more)) for n in range(0, len(rows), 3))})
    before = assign_splits(ties(rows, near), THIRDS)
    after = assign_splits(ties(rows + more, later), THIRDS, before)
    assert after[: len(rows)] == before
    sides: dict[int, set[str]] = defaultdict(set)
    for (product, _, _), split in zip(rows + more, after, strict=True):
        if split is not None:
            sides[product].add(split)
    assert all(len(splits) == 1 for splits in sides.values())
    for one, other in later:
        if other >= len(rows) and after[other] is not None:
            assert after[other] == after[one]


def test_without_the_earlier_splits_rows_stay_where_no_new_row_joins_groups():
    rows = [(n // 2, n, n % 3) for n in range(200)]
    more = [(1000 + n, 1000 + n, n % 3) for n in range(60)]
    assert assign_splits(ties(rows + more))[:200] == assign_splits(ties(rows))


def test_a_row_that_joins_two_splits_belongs_to_neither():
    rows = single(40)
    splits = assign_splits(ties(rows), THIRDS)
    train, test = splits.index("train"), splits.index("test")

    def last(row: tuple[int, int, int], near: list[tuple[int, int]] = []) -> str | None:  # noqa: B006
        return assign_splits(ties([*rows, row], near), THIRDS, splits)[-1]

    assert last((train, test, 0)) is None
    assert last((99, 99, 0), [(train, 40), (test, 40)]) is None
    assert last((99, 99, 0), [(test, 40)]) == "test"


def test_a_row_left_out_ties_nothing():
    rows = single(40)
    splits = assign_splits(ties(rows), THIRDS)
    train, test = splits.index("train"), splits.index("test")
    joined = [*rows, (train, test, 0), (train, 77, 0), (78, test, 0)]
    assert assign_splits(ties(joined), THIRDS, splits)[40:] == [None, "train", "test"]


def test_thousands_of_rows_with_one_picture_that_a_new_row_tears_take_little_memory():
    rows = [(n, 0, 0) for n in range(2000)] + [(2000, 2000, 0)]
    tracemalloc.start()
    splits = assign_splits(ties([*rows, (2000, 0, 0)]), THIRDS, ["train"] * 2000 + ["test"])
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert splits[-1] is None
    assert peak < 20e6


def test_one_row_that_ties_two_groups_makes_one_of_them_where_all_are_new():
    rows = [*single(40), (0, 1, 0)]
    splits = assign_splits(ties(rows), THIRDS)
    assert splits[0] == splits[1] == splits[40]


def test_forty_models_in_fifteen_colours_lose_no_row():
    rows = [(n, n, n // 15 % 4) for n in range(600)]
    for near in ([(n // 15 * 15, n) for n in range(600) if n % 15], [(n % 40, n) for n in range(40, 600)]):
        splits = assign_splits(ties(rows, near))
        counts = Counter(splits)
        assert counts.total() == 600
        assert None not in counts
        assert all(splits[one] == splits[other] for one, other in near)
        assert abs(counts["validation"] - 60) <= 15
        assert abs(counts["test"] - 60) <= 15


def test_one_template_is_divided_by_product_and_said():
    rows = [(n // 2, n, 0) for n in range(600)]
    told: list[str] = []
    splits = assign_splits(ties(rows, [(0, n) for n in range(1, 600)]), notice=told.append)
    assert Counter(splits) == {"train": 480, "validation": 60, "test": 60}
    assert all(splits[n] == splits[n + 1] for n in range(0, 600, 2))
    assert len(told) == 1
    assert told[0].startswith("600 of 600 rows look alike")


def test_a_large_group_is_trained_on_and_the_others_fill_the_other_splits():
    rows = single(600)
    for first in (0, 180):  # at the beginning of the table and at its end
        near = [(first, first + n) for n in range(1, 420)]
        splits = assign_splits(ties(rows, near))
        assert set(splits[first : first + 420]) == {"train"}
        assert abs(Counter(splits)["test"] - 60) <= 2


def test_no_split_is_empty_where_groups_are_few():
    rows = [(n // 5, n, 0) for n in range(30)]
    assert Counter(assign_splits(ties(rows))) == {"train": 20, "validation": 5, "test": 5}


def test_a_product_that_is_nearly_the_whole_table_is_said():
    told: list[str] = []
    splits = assign_splits(ties([(0, n, 0) for n in range(30)]), notice=told.append)
    assert set(splits) == {"train"}
    assert told[0].startswith("30 of 30 rows share one product id or one picture, or look alike, and stay in one")


def test_nothing_is_said_of_rows_that_share_nothing():
    told: list[str] = []
    for count in range(3):
        assign_splits(ties([(n, n, 0) for n in range(count)]), notice=told.append)
    assert told == []


def test_a_few_products_that_look_alike_are_copies_and_stay_together():
    told: list[str] = []
    splits = assign_splits(ties(single(20), [(0, n) for n in range(1, 20)]), notice=told.append)
    assert set(splits) == {"train"}
    assert len(told) == 1


def test_splits_of_other_names_are_not_kept():
    assert None not in assign_splits(ties(single(10)), given=["gone"] * 5)
