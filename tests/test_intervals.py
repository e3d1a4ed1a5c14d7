"""Intervals hold what they promise, with one photo of a product and with several."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import binomtest

from catalens.intervals import bootstrap, clusters, holm, mean, median, paired, product_weights, share

DRAWS = 300
VALUES = st.lists(st.tuples(st.sampled_from([-2.0, 0.0, 0.5, 7.0]), st.integers(0, 3)), min_size=1).filter(
    lambda rows: any(count for _, count in rows)
)


def photos(rng: np.random.Generator, rows: int, each: int, p: float, alike: float) -> tuple[np.ndarray, list[int]]:
    """Rows that are right with probability p, `each` of a product, their correlation `alike`."""
    product = np.arange(rows) // each
    own, shared = rng.random(rows) < p, (rng.random(rows) < p)[product]
    return np.where(rng.random(rows) < np.sqrt(alike), shared, own), product.tolist()


def width(figure: dict[str, float]) -> float:
    return figure["high"] - figure["low"]


@pytest.mark.parametrize("each", [1, 2, 4, 8])
@pytest.mark.parametrize("rows", [64, 320])
def test_the_interval_of_a_share_covers_it_with_several_photos_of_a_product(rows: int, each: int):
    rng = np.random.default_rng(rows + each)
    for p in (0.8, 0.95, 0.97, 0.99):
        drawn = [photos(rng, rows, each, p, 0.9) for _ in range(DRAWS)]
        found = [share(*one) for one in drawn]
        assert np.mean([figure["low"] <= p <= figure["high"] for figure in found]) >= 0.93
        one_photo = [share(hits[::each]) for hits, _ in drawn]
        assert np.mean([width(figure) for figure in found]) < 1.1 * np.mean([width(figure) for figure in one_photo])


@pytest.mark.parametrize("each", [2, 4, 8])
def test_photos_that_have_nothing_in_common_count_as_rows(each: int):
    rng = np.random.default_rng(each)
    found = [share(*photos(rng, 320, each, 0.8, 0.0)) for _ in range(DRAWS)]
    exact = binomtest(256, 320).proportion_ci()
    assert np.mean([width(figure) for figure in found]) < 1.4 * (exact.high - exact.low)


@given(st.lists(st.booleans(), min_size=1, max_size=80))
def test_the_interval_of_a_share_is_the_exact_one_where_every_row_is_a_product(hits: list[bool]):
    exact = binomtest(sum(hits), len(hits)).proportion_ci()
    for products in (None, list(range(len(hits)))):
        assert share(np.array(hits), products) == pytest.approx(
            {"value": np.mean(hits), "low": exact.low, "high": exact.high}
        )


@pytest.mark.parametrize("hit", [True, False])
@pytest.mark.parametrize("each", [1, 4])
def test_no_interval_of_a_share_closes_up(hit: bool, each: int):
    found = share(np.full(64, hit), [n // each for n in range(64)])
    exact = binomtest(64 // each * hit, 64 // each).proportion_ci()  # alike as they are, only products count
    assert found == pytest.approx({"value": float(hit), "low": exact.low, "high": exact.high})
    assert width(found) > 0.05


def test_the_photos_of_one_product_say_no_more_than_one_photo():
    found = share(np.array([True, False, True, True]), ["A"] * 4)
    assert found["value"] == 0.75
    assert found["low"] < 0.01
    assert found["high"] > 0.99


def test_with_weights_every_product_counts_once():
    products = ["A"] * 8 + ["B", "C"]
    weights = product_weights(products, 10)
    assert weights.tolist() == [0.125] * 8 + [1, 1]
    found = share(np.array([False] * 8 + [True, True]), products, weights)
    exact = binomtest(2, 3).proportion_ci()
    assert found == pytest.approx({"value": 2 / 3, "low": exact.low, "high": exact.high})


def test_products_are_numbered_as_they_come():
    assert clusters(["B", "A", "B"], 3).tolist() == [0, 1, 0]
    assert clusters(None, 3).tolist() == [0, 1, 2]


@given(VALUES)
def test_figures_over_counts_are_those_of_the_rows_laid_out(rows: list[tuple[float, int]]):
    values, counts = np.array([value for value, _ in rows]), np.array([count for _, count in rows], float)
    laid_out = np.repeat(values, counts.astype(int))
    assert mean(values)(counts) == pytest.approx(laid_out.mean())
    assert median(values)(counts) == np.median(laid_out)
    assert median(values)(np.stack([counts, counts])).tolist() == [np.median(laid_out)] * 2


@pytest.mark.parametrize("each", [1, 4])
def test_the_bootstrap_covers_a_mean_with_several_photos_of_a_product(each: int):
    rng = np.random.default_rng(each)
    covered = 0
    for _ in range(200):
        values = np.repeat(rng.normal(0, 1, 60), each) + rng.normal(0, 0.3, 60 * each)
        products = (np.arange(60 * each) // each).tolist()
        figure = bootstrap({"mean": mean(values)}, len(values), products, 200)["mean"]
        covered += figure["low"] <= 0 <= figure["high"]
    assert covered >= 0.9 * 200  # the bootstrap's own few per cent, not half of the width


def test_the_same_seed_draws_the_same_products():
    values = np.random.default_rng(0).random(40)
    products = [n // 4 for n in range(40)]

    def drawn(seed: int) -> dict[str, float]:
        return bootstrap({"mean": mean(values)}, 40, products, 100, seed)["mean"]

    assert drawn(1) == drawn(1)
    assert drawn(1) != drawn(2)


def test_a_paired_difference_is_that_of_the_other_less_the_first():
    first, other = np.zeros(50), np.ones(50)
    figure = paired({"mean": mean(np.concatenate([first, other]))}, 50, resamples=200)["mean"]
    assert figure == {"value": 1.0, "low": 1.0, "high": 1.0, "p": pytest.approx(2 / 201)}
    alone = paired({"mean": mean(np.concatenate([first, other]))}, 50, ["A"] * 50, resamples=200)["mean"]
    assert alone["p"] == 1  # one product shows nothing


def test_holm_asks_more_of_each_of_many_claims():
    assert holm([0.04]) == [True]
    assert holm([0.04, 0.03]) == [False, False]
    assert holm([0.04, 0.01]) == [True, True]
    assert holm([0.2, 0.001, 0.02]) == [False, True, True]
    assert holm([]) == []
