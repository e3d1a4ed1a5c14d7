"""Splits are decided by products, and what belongs together stays together."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalens.catalog.splits import DEFAULT_FRACTIONS, group_rows, split_of


def test_a_split_is_what_it_has_always_been():
    """Another hash would move products between the splits of catalogues that exist."""
    others = {"2": "validation", "5": "test", "6": "test", "15": "validation", "20": "test"}
    assert {str(n): split_of(str(n)) for n in range(24)} == {str(n): "train" for n in range(24)} | others


@pytest.mark.parametrize("fractions", [DEFAULT_FRACTIONS, {"train": 0.6, "validation": 0.15, "test": 0.25}])
def test_fractions_are_kept_closely(fractions: dict[str, float]):
    counts = Counter(split_of(f"product-{n}", fractions) for n in range(10_000))
    for split, fraction in fractions.items():
        assert counts[split] / 10_000 == pytest.approx(fraction, abs=0.015)


@pytest.mark.parametrize("split", DEFAULT_FRACTIONS)
def test_one_split_may_hold_everything_and_another_nothing(split: str):
    fractions = dict.fromkeys(DEFAULT_FRACTIONS, 0.0) | {split: 1.0}
    assert {split_of(str(n), fractions) for n in range(500)} == {split}


@given(st.text(), st.lists(st.floats(0.01, 1), min_size=1, max_size=5))
def test_every_group_has_a_split_whatever_the_rounding(group: str, parts: list[float]):
    fractions = {str(n): part / sum(parts) for n, part in enumerate(parts)}
    assert split_of(group, fractions) in fractions


@pytest.mark.parametrize(
    ("ties", "groups"),
    [
        ([], []),
        (["a", "b", "c"], [0, 1, 2]),
        (["a", "a", "b", "a"], [0, 0, 2, 0]),
        (["a", "b", "ab"], [0, 0, 0]),
        (["a", "b", "c", "bc", "ab"], [0, 0, 0, 0, 0]),
        (["b", "a", "c", "d", "cd", "ba"], [0, 0, 2, 2, 2, 0]),
        (["", "a", "", "a"], [0, 1, 2, 1]),
    ],
    ids=str,
)
def test_rows_with_a_key_in_common_are_a_group(ties: list[str], groups: list[int]):
    assert group_rows(ties) == groups


@given(st.lists(st.lists(st.integers(0, 12), max_size=3), max_size=40))
def test_groups_are_the_connected_parts(ties: list[list[int]]):
    """Against the slow way: spread the smallest number until nothing changes."""
    expected = list(range(len(ties)))
    changed = True
    while changed:
        changed = False
        for a, keys in enumerate(ties):
            for b in range(a):
                if set(keys) & set(ties[b]) and expected[a] != expected[b]:
                    expected[a] = expected[b] = min(expected[a], expected[b])
                    changed = True
    assert group_rows(ties) == expected


@given(st.lists(st.lists(st.integers(0, 30), min_size=1, max_size=2), max_size=30), st.integers(0, 30))
def test_a_table_that_grows_keeps_every_group_named_by_its_first_row(ties: list[list[int]], cut: int):
    """New rows may join two groups, but a group that they leave alone is named as before."""
    before, after = group_rows(ties[:cut]), group_rows(ties)
    for row, group in enumerate(before):
        assert after[row] <= group
        tied = {key for other, of in enumerate(before) if of == group for key in ties[other]}
        if not any(tied & set(keys) for keys in ties[cut:]):
            assert after[row] == group


def test_a_long_chain_is_one_group_in_no_time():
    assert set(group_rows((n, n + 1) for n in range(100_000))) == {0}
    assert set(group_rows((n, n + 1) for n in reversed(range(100_000)))) == {0}
