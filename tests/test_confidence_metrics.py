"""Figures about confidences, against values worked out by hand and against scipy."""

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import beta

from catalens.confidence import acceptance, calibration_error, interval_coverage, reliability, review_outcome
from catalens.evaluation import confidence_block, review_block
from catalens.metrics import correctness
from catalens.predictions import ScoredRow

KINDS: Any = {"title": "text", "category": "category", "price": "number"}
CONFIDENCE = np.array([0.95, 0.95, 0.85, 0.81, 0.2, 1.0])
RIGHT = np.array([True, False, True, False, False, True])
ROWS = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.35, 0.5, 0.99, 1.0]) | st.floats(0, 1), st.booleans()), min_size=1
)


def arrays(rows: list[tuple[float, bool]]) -> tuple[np.ndarray, np.ndarray]:
    return np.array([sure for sure, _ in rows]), np.array([hit for _, hit in rows])


def row(title: str = "Bag", category: str = "BAGS", price: float = 100.0) -> dict[str, object]:
    return {"title": title, "category": category, "price": price}


def test_text_and_category_are_right_when_exact_and_a_number_when_close():
    truths = [row(), row(), row(), row(price=0.0), row(price=0.0)]
    said = [row(price=110.0), row("bag", "BAG", 110.01), None, row(price=0.0), row(price=0.01)]
    assert correctness("title", "text", truths, said).tolist() == [True, False, False, True, True]
    assert correctness("category", "category", truths, said).tolist() == [True, False, False, True, True]
    assert correctness("price", "number", truths, said).tolist() == [True, False, False, True, False]
    assert correctness("price", "number", [], []).tolist() == []


def test_bins_by_hand():
    low, middle, high = reliability(CONFIDENCE, RIGHT)
    shares = [one.pop("right")["value"] for one in (low, middle, high)]
    assert shares == [0, 0.5, pytest.approx(2 / 3)]
    assert low == {"low": 0.2, "high": 0.3, "rows": 1, "confidence": 0.2}
    assert middle == pytest.approx({"low": 0.8, "high": 0.9, "rows": 2, "confidence": 0.83})
    assert high == pytest.approx({"low": 0.9, "high": 1.0, "rows": 3, "confidence": 2.9 / 3})
    expected = (0.2 + abs(1.66 - 1) + abs(2.9 - 2)) / 6
    assert calibration_error(CONFIDENCE, RIGHT)["value"] == pytest.approx(expected)


@given(ROWS)
def test_the_error_is_that_of_the_bins(rows: list[tuple[float, bool]]):
    confidence, right = arrays(rows)
    found = reliability(confidence, right)
    assert sum(one["rows"] for one in found) == len(rows)
    by_bin = sum(one["rows"] * abs(one["confidence"] - one["right"]["value"]) for one in found) / len(rows)
    assert calibration_error(confidence, right, resamples=2)["value"] == pytest.approx(by_bin)


def test_good_confidences_have_a_small_error_and_bad_ones_a_large_one():
    rng = np.random.default_rng(0)
    confidence = rng.uniform(0, 1, 20_000)
    right = rng.random(20_000) < confidence
    assert calibration_error(confidence, right, resamples=20)["high"] < 0.02
    assert calibration_error(np.sqrt(confidence), right, resamples=20)["low"] > 0.14  # E(sqrt(p) - p) = 1 / 6


@given(ROWS, st.integers(2, 20))
def test_acceptance_counts_the_rows_of_each_threshold(rows: list[tuple[float, bool]], points: int):
    confidence, right = arrays(rows)
    found = acceptance(confidence, right, points)
    assert 1 <= len(found) <= points
    possible = {
        float(t): ((confidence >= t).sum(), (~right[confidence >= t]).sum()) for t in np.unique(confidence)[::-1]
    }
    assert all(possible[threshold] == (count, wrong) for threshold, count, wrong in found)
    assert found[-1][1] == len(rows)
    assert [threshold for threshold, _, _ in found] == sorted({t for t, _, _ in found}, reverse=True)


def test_an_interval_that_is_not_there_holds_nothing():
    truths, lows = np.array([1.0, 2.0, 3.0, 4.0]), np.array([1.0, 2.1, math.nan, 0.0])
    found = interval_coverage(truths, lows, np.array([1.0, 9.0, math.nan, 4.0]))
    assert found == pytest.approx({"value": 0.5, "low": beta.ppf(0.025, 2, 3), "high": beta.ppf(0.975, 3, 2)})


def test_what_a_threshold_accepts():
    found: Any = review_outcome(CONFIDENCE, RIGHT, 0.95)
    assert (found["accepted"]["value"], found["error"]["value"]) == (0.5, pytest.approx(1 / 3))
    nothing_wrong: Any = review_outcome(CONFIDENCE, RIGHT, 1.0)
    assert nothing_wrong["error"] == {"value": 0.0, "low": 0.0, "high": pytest.approx(0.975)}  # of one row
    for nothing in (None, 1.1):
        outcome: Any = review_outcome(CONFIDENCE, RIGHT, nothing)
        assert (outcome["accepted"]["value"], outcome["error"]) == (0.0, None)


def test_a_promise_about_products_counts_each_once():
    products = ["A"] * 6 + ["B", "C", "D"]
    confidence, right = np.array([0.9] * 7 + [0.5, 0.95]), np.array([False] * 6 + [True] * 3)
    found: Any = review_outcome(confidence, right, 0.8, products)
    assert found["accepted"]["value"] == pytest.approx(3 / 4)
    assert found["error"]["value"] == pytest.approx(1 / 3)
    assert found["error"] == pytest.approx(
        {"value": 1 / 3, "low": beta.ppf(0.025, 1, 3), "high": beta.ppf(0.975, 2, 2)}
    )
    lows = np.array([2.0] * 6 + [0.0] * 3)
    covered = interval_coverage(np.ones(9), lows, np.full(9, 3.0), products)
    assert covered == pytest.approx({"value": 3 / 4, "low": beta.ppf(0.025, 3, 2), "high": beta.ppf(0.975, 4, 1)})


def test_the_promise_is_judged_as_often_as_it_says_with_several_photos_of_a_product():
    rng, target, missed = np.random.default_rng(0), 0.05, 0
    for _ in range(200):
        products = np.repeat(np.arange(100), 6)
        right = ~np.where(rng.random(600) < 0.95, (rng.random(100) < target)[products], rng.random(600) < target)
        error: Any = review_outcome(np.ones(600), right, 0.5, products.tolist())["error"]
        missed += error["low"] > target
    assert missed <= 10  # 5 %


def test_photos_of_one_product_widen_the_calibration_error():
    rng = np.random.default_rng(0)
    confidence, right = np.repeat(rng.random(60), 6), np.repeat(rng.random(60) < 0.5, 6)
    products = (np.arange(360) // 6).tolist()
    one, other = (calibration_error(confidence, right, which, resamples=100) for which in (products, None))
    assert one["high"] - one["low"] > 1.5 * (other["high"] - other["low"])


def blocks() -> tuple[Any, Any]:
    truths = [row(price=price) for price in (100.0, 200.0, 300.0, 400.0)]
    y_pred: Any = [row(price=101.0), row("Scarf", price=150.0), row(price=310.0), None]
    confidence: Any = [{"title": 0.9, "category": 0.99, "price": 0.6}] * 3 + [{}]
    intervals: Any = [{"price": (90.0, 110.0)}, {"price": (140.0, 160.0)}, {"price": (280.0, 340.0)}, {}]
    rows = [
        ScoredRow(id=f"P{n}", truth=truths[n], values=y_pred[n], confidence=confidence[n], intervals=intervals[n])
        for n in range(4)
    ]
    return (
        confidence_block(KINDS, rows, calibrated_on=167, nominal=0.9, resamples=50),
        review_block(KINDS, rows, {"title": 0.05, "price": 0.1}, {"title": 0.9, "price": None}),
    )


def test_the_block_of_confidences():
    block, _ = blocks()
    assert block["calibrated_on"] == 167
    assert list(block["fields"]) == list(KINDS)
    title, price = block["fields"]["title"], block["fields"]["price"]
    assert title["ece"]["value"] == pytest.approx((3 * 0.9 - 2 + 0) / 4)  # the failure: 0, and wrong
    assert [one["rows"] for one in title["bins"]] == [1, 3]
    assert title["risk_coverage"] == [
        {"coverage": 0.75, "error": pytest.approx(1 / 3)},
        {"coverage": 1.0, "error": 0.5},
    ]
    assert title["interval"] is None
    assert price["interval"]["nominal"] == 0.9
    assert price["interval"]["coverage"]["value"] == 0.5
    assert price["interval"]["width"] == pytest.approx(60 / 310)


def test_the_block_of_the_review():
    _, block = blocks()
    assert block["confidence"] == 0.95
    assert list(block["fields"]) == ["title", "price"]
    title, price = block["fields"]["title"], block["fields"]["price"]
    assert (title["target"], title["threshold"], title["accepted"]["value"]) == (0.05, 0.9, 0.75)
    assert title["error"]["value"] == pytest.approx(1 / 3)
    assert (price["threshold"], price["accepted"]["value"], price["error"]) == (None, 0.0, None)


def test_the_blocks_are_plain_json():
    for block in blocks():
        assert json.loads(json.dumps(block, allow_nan=False)) == block
