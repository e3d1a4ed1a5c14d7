"""Figures against sklearn and against values worked out by hand."""

import math
import subprocess
import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score

from catalens.evaluation import majority, nearest_neighbour
from catalens.metrics import differences, metrics_of, score

KINDS: Any = {"title": "text", "category": "category", "price": "number"}


def row(title: str = "Bag", category: str = "BAGS", price: float = 100.0) -> dict[str, object]:
    return {"title": title, "category": category, "price": price}


def figures(truths: list, predictions: list, **options: int) -> dict[str, dict[str, float]]:
    """`{"title.exact": {"value": ...}, ...}`."""
    scored: Any = score(KINDS, truths, predictions, **{"resamples": 100} | options)
    flat = {f"{field}.{name}": figure for field, all in scored["fields"].items() for name, figure in all.items()}
    return flat | {name: scored[name] for name in metrics_of("answer")}


def values(truths: list, predictions: list) -> dict[str, float]:
    return {name: figure["value"] for name, figure in figures(truths, predictions).items()}


def of_prices(truths: list[float], predictions: list[float | None]) -> dict[str, float]:
    y_pred = [None if price is None else row(price=price) for price in predictions]
    return values([row(price=price) for price in truths], y_pred)


def test_perfect_answers():
    rows = [row("Red Bag", "BAGS", 129.0), row("Scarf", "ACCESSORIES", 0.0)]
    assert values(rows, rows) == {
        "title.exact": 1,
        "title.similarity": 1,
        "title.token_f1": 1,
        "title.fuzzy": 1,
        "category.accuracy": 1,
        "category.macro_f1": 1,
        "category.hierarchical_f1": 1,
        "price.mae": 0,
        "price.mdape": 0,
        "price.mape": 0,
        "price.smape": 0,
        "price.log_mae": 0,
        "price.within_tolerance": 1,
        "parse_rate": 1,
        "record_accuracy": 1,
    }


def test_by_hand():
    truths = [row("abcd", "A", 100.0), row("abcd", "A", 200.0), row("abcd", "B", 400.0), row("abcd", "C", 800.0)]
    y_pred = [row("abcd", "A", 105.0), row("abce", "B", 100.0), row("abcdabcd", "B", 300.0), None]
    assert values(truths, y_pred) == pytest.approx(
        {
            "title.exact": 1 / 4,
            "title.similarity": (1 + 3 / 4 + 4 / 8 + 0) / 4,
            "title.token_f1": 1 / 4,
            "title.fuzzy": 1 / 4,
            "category.accuracy": 2 / 4,
            "category.macro_f1": (2 / 3 + 2 / 3 + 0) / 3,
            "category.hierarchical_f1": 2 / 4,
            "price.mae": (5 + 100 + 100 + 700) / 4,  # the failure: 800 against the cheapest, 100
            "price.mdape": (0.25 + 0.5) / 2,  # of 0.05, 0.25, 0.5 and the failure's 1
            "price.mape": (0.05 + 0.5 + 0.25 + 1) / 4,
            "price.smape": (5 / 102.5 + 100 / 150 + 100 / 350 + 2) / 4,
            "price.log_mae": (math.log(1.05) + math.log(2) + math.log(4 / 3) + math.log(8)) / 4,
            "price.within_tolerance": 1 / 4,
            "parse_rate": 3 / 4,
            "record_accuracy": 1 / 4,
        }
    )


@given(st.lists(st.tuples(st.sampled_from("ABCD"), st.sampled_from("ABCDE") | st.none()), min_size=1, max_size=30))
def test_macro_f1_is_that_of_sklearn(pairs: list[tuple[str, str | None]]):
    truths = [row(category=truth) for truth, _ in pairs]
    y_pred = [None if category is None else row(category=category) for _, category in pairs]
    expected = f1_score(
        [truth for truth, _ in pairs],
        [category or "no answer" for _, category in pairs],
        labels=sorted({truth for truth, _ in pairs}),
        average="macro",
        zero_division=0,
    )
    assert values(truths, y_pred)["category.macro_f1"] == pytest.approx(expected)


def test_a_failed_answer_is_wrong_everywhere():
    rows = [row(price=price) for price in (10.0, 100.0, 1000.0)]
    failed = values(rows, [None] * 3)
    assert failed.pop("price.mae") == (990 + 900 + 990) / 3
    assert failed.pop("price.mdape") >= 1
    assert failed.pop("price.mape") >= 1
    assert failed.pop("price.smape") == 2
    assert failed.pop("price.log_mae") == pytest.approx((math.log(100) + math.log(10) + math.log(100)) / 3)
    assert set(failed.values()) == {0}


@pytest.mark.parametrize("truths", [[10.0, 100.0, 1000.0], [0.0, 5.0], [-3.0, 3.0], [7.0, 7.0], [7.0]])
def test_no_guess_within_the_range_of_prices_is_worse_than_a_failed_answer(truths: list[float]):
    failed = of_prices(truths, [None] * len(truths))
    for guess in np.linspace(min(truths), max(truths), 5):
        guessed = of_prices(truths, [float(guess)] * len(truths))
        for metric in ("mae", "smape", *(["log_mae"] if min(truths) > 0 else [])):
            assert failed[f"price.{metric}"] >= guessed[f"price.{metric}"]
        assert failed["price.within_tolerance"] == 0
    assert failed["price.mae"] > 0
    assert failed["price.mdape"] >= 1


def test_a_failed_answer_is_no_price_of_nought():
    assert of_prices([10.0, 1000.0], [None, 1000.0])["price.mae"] == 990 / 2
    assert of_prices([10.0, 1000.0], [0.0, 1000.0])["price.mae"] == 10 / 2


def test_a_truth_of_nought_is_right_or_wrong():
    assert of_prices([0.0], [0.0])["price.mdape"] == 0
    assert of_prices([0.0], [0.01])["price.mdape"] == 1
    assert of_prices([0.0], [0.01])["price.within_tolerance"] == 0
    assert of_prices([0.0], [None])["price.mdape"] == 1


def test_a_negative_truth_is_measured_by_its_size():
    assert of_prices([-100.0], [-90.0])["price.mdape"] == pytest.approx(0.1)


@pytest.mark.parametrize(("truth", "y_pred"), [(129.0, 141.9), (1.0, 1.1), (390, 351), (0.7, 0.63), (-10.0, -11.0)])
def test_ten_per_cent_is_within_ten_per_cent(truth: float, y_pred: float):
    assert of_prices([truth], [y_pred])["price.within_tolerance"] == 1
    assert of_prices([truth], [truth + (y_pred - truth) * 1.001])["price.within_tolerance"] == 0


def test_every_interval_holds_its_figure_and_narrows_with_the_rows():
    rng = np.random.default_rng(0)

    def widths(count: int) -> dict[str, float]:
        truths = [row(f"Bag {n % 7}", "ABC"[n % 3], 50.0 + n % 11) for n in range(count)]
        y_pred = [
            t if rng.random() < 0.6 else None if rng.random() < 0.3 else row("Bag 1", "A", 55.0) for t in truths
        ]
        scored = figures(truths, y_pred, resamples=500)
        for figure in scored.values():
            assert figure["low"] <= figure["value"] <= figure["high"]
        return {name: figure["high"] - figure["low"] for name, figure in scored.items()}

    few, many = widths(40), widths(1000)
    assert all(many[name] < few[name] for name in few if name != "price.mdape")  # most errors are 0


def test_the_interval_of_a_mean_is_the_textbook_one():
    truths = [row() for _ in range(400)]
    y_pred = [row("Bag" if n % 4 else "Scarf") for n in range(400)]
    exact = figures(truths, y_pred, resamples=2000)["title.exact"]
    half = 1.96 * np.sqrt(0.75 * 0.25 / 400)
    assert exact["value"] == 0.75
    assert exact["low"] == pytest.approx(0.75 - half, abs=0.01)
    assert exact["high"] == pytest.approx(0.75 + half, abs=0.01)


def test_one_row_has_a_share_that_may_be_anything_and_an_error_that_is_a_point():
    scored = figures([row()], [row("Scarf", "BAGS", 90.0)])
    assert scored["title.exact"] == {"value": 0.0, "low": 0.0, "high": pytest.approx(0.975)}
    assert scored["category.accuracy"] == {"value": 1.0, "low": pytest.approx(0.025), "high": 1.0}
    assert scored["price.mae"] == {"value": 10.0, "low": 10.0, "high": 10.0}


def test_the_same_seed_gives_the_same_intervals():
    truths = [row(price=float(n)) for n in range(1, 30)]
    y_pred = [row(price=30.0)] * 29
    assert figures(truths, y_pred, seed=1) == figures(truths, y_pred, seed=1)
    assert figures(truths, y_pred, seed=1) != figures(truths, y_pred, seed=2)


def test_the_order_of_rows_does_not_matter():
    truths = [row(f"Bag {n}", "AB"[n % 2], float(n)) for n in range(10)]
    y_pred = [*truths[:5], *truths[:5]]
    assert values(truths[::-1], y_pred[::-1]) == pytest.approx(values(truths, y_pred))


@pytest.mark.parametrize(("truths", "y_pred"), [([], []), ([row()], []), ([row()], [None, None])])
def test_truths_and_predictions_come_one_for_one(truths: list, y_pred: list):
    with pytest.raises(ValueError, match="give one for one, at least one"):
        score(KINDS, truths, y_pred)


def test_majority_is_the_most_frequent_and_the_median():
    train = [row("Bag", "BAGS", 10.0), row("Bag", "SHOES", 20.0), row("Scarf", "SHOES", 99.0)]
    assert majority(KINDS, train, 2) == [row("Bag", "SHOES", 20.0)] * 2


@given(st.permutations([row("b", "Y", 4.0), row("a", "Y", 1.0), row("b", "X", 2.0), row("a", "X", 3.0)]))
def test_a_tie_is_no_matter_of_order(train: list[dict[str, object]]):
    assert majority(KINDS, train, 1) == [row("a", "X", 2.5)]


def test_the_nearest_neighbour_of_a_picture_is_the_picture():
    looks = np.random.default_rng(0).random((20, 8))
    train = [row(f"Bag {seed}") for seed in range(20)]
    assert nearest_neighbour(train, looks, looks[[7, 3, 3]]) == [train[7], train[3], train[3]]
    assert nearest_neighbour(train, looks, looks[[7]] + 0.01) == [train[7]]
    assert nearest_neighbour(train[:1], looks[:1], looks[[7]]) == [train[0]]


def lacking(rows: list[dict[str, Any]], *columns: str) -> list[dict[str, Any]]:
    """Every third row without these columns."""
    return [one | (dict.fromkeys(columns) if n % 3 == 1 else {}) for n, one in enumerate(rows)]


def many(seed: int, count: int = 40) -> list[dict[str, Any]]:
    rng = np.random.default_rng(seed)
    return [row(f"Bag {rng.integers(9)}", "ABC"[rng.integers(3)], float(rng.integers(1, 99))) for _ in range(count)]


@pytest.mark.parametrize("column", KINDS)
def test_a_column_is_scored_on_the_rows_that_have_it(column: str):
    truths, y_pred, products = many(1), [*many(2)[:35], *[None] * 5], [n // 2 for n in range(40)]
    found: Any = score(KINDS, lacking(truths, column), y_pred, products, 100)
    whole: Any = score(KINDS, truths, y_pred, products, 100)
    known = [n for n in range(40) if n % 3 != 1]
    alone: Any = score(
        KINDS, [truths[n] for n in known], [y_pred[n] for n in known], [products[n] for n in known], 100
    )
    for name in KINDS:
        assert found["fields"][name] == (alone if name == column else whole)["fields"][name]
    assert found["parse_rate"] == whole["parse_rate"]


@pytest.mark.parametrize("column", KINDS)
def test_differences_are_of_the_rows_that_have_the_column(column: str):
    truths, one, other, products = many(1), many(2), [*many(3)[:35], *[None] * 5], [n // 2 for n in range(40)]
    found = differences(KINDS, lacking(truths, column), one, other, products, 200)
    whole = differences(KINDS, truths, one, other, products, 200)
    known = [n for n in range(40) if n % 3 != 1]
    alone = differences(KINDS, *([rows[n] for n in known] for rows in (truths, one, other, products)), 200)
    for name in KINDS:
        assert found[name] == (alone if name == column else whole)[name]


@pytest.mark.parametrize("column", KINDS)
def test_a_column_that_no_row_has_has_no_figures(column: str):
    truths = [one | {column: None} for one in many(1)]
    for found in (
        score(KINDS, truths, many(2))["fields"],
        differences(KINDS, truths, many(2), many(3), resamples=50),
    ):
        assert found[column] == {}
        assert all(found[name] for name in KINDS if name != column)


def test_baselines_go_by_the_rows_that_have_a_column():
    train = [row("Bag", "BAGS", 10.0), row("Bag", "SHOES", 20.0), row("Scarf", "SHOES", 99.0)]
    gaps: list[dict[str, Any]] = [{"title": None, "category": None, "price": None}] * 9
    assert majority(KINDS, [*gaps, *train], 2) == [row("Bag", "SHOES", 20.0)] * 2
    assert majority(KINDS, gaps, 1) == gaps[:1]
    looks = np.array([[0.0], [1.0], [2.0]])
    train = [row("A") | {"title": None}, row("B") | {"price": None, "category": None}, row("C", price=7.0)]
    assert nearest_neighbour(train, looks, np.array([[0.1], [1.1], [1.9]])) == [
        {"title": "B", "category": "BAGS", "price": 100.0},
        {"title": "B", "category": "BAGS", "price": 7.0},
        {"title": "C", "category": "BAGS", "price": 7.0},
    ]
    none = [one | {"price": None} for one in train]
    assert [one["price"] for one in nearest_neighbour(none, looks, looks)] == [None] * 3


@pytest.mark.parametrize("share", ["title.exact", "category.accuracy", "price.within_tolerance", "parse_rate"])
def test_no_share_is_certain(share: str):
    right, wrong = figures([row()] * 64, [row()] * 64)[share], figures([row()] * 64, [None] * 64)[share]
    assert right == {"value": 1.0, "low": pytest.approx(0.9440, abs=1e-4), "high": 1.0}
    assert wrong == {"value": 0.0, "low": 0.0, "high": pytest.approx(0.0560, abs=1e-4)}


def test_figures_between_0_and_1_do_not_close_up():
    scored = figures([row()] * 64, [row()] * 64)
    for name in ("title.similarity", "category.macro_f1"):
        assert scored[name] == {"value": 1.0, "low": pytest.approx(0.9440, abs=1e-4), "high": 1.0}


def test_photos_of_one_product_widen_every_interval():
    rng = np.random.default_rng(0)
    products = [n // 4 for n in range(320)]
    truths = [row(f"Bag {n}", "ABCD"[n % 4], 50.0 + n) for n in products]
    wrong = [row("Shoe 1", "A", 40.0) if rng.random() < 0.3 else None for _ in range(80)]
    y_pred = [wrong[n] or truth for n, truth in zip(products, truths, strict=True)]
    scored: Any = score(KINDS, truths, y_pred, products, 200)
    apart: Any = score(KINDS, truths, y_pred, None, 200)
    for field, measured in scored["fields"].items():
        for metric, figure in measured.items():
            other = apart["fields"][field][metric]
            assert figure["value"] == other["value"]
            if metric != "mdape":  # most errors are 0
                assert figure["high"] - figure["low"] > 1.5 * (other["high"] - other["low"]), metric


def difference(first: list, other: list, truths: list, products: list | None = None) -> Any:
    return differences(KINDS, truths, first, other, products, 400)


def test_differences_are_paired_and_in_the_order_of_the_figures():
    truths = [row(f"Bag {n}", "AB"[n % 2], 100.0 + n) for n in range(60)]
    worse = [row("Shoe", "A", 2 * t["price"]) if n % 2 else t for n, t in enumerate(truths)]
    found = difference(worse, truths, truths)
    assert {name: [*figures] for name, figures in found.items()} == {n: [*metrics_of(k)] for n, k in KINDS.items()}
    assert found["title"]["exact"]["value"] == 0.5
    assert found["title"]["exact"]["p"] < 0.01
    assert found["price"]["mdape"]["value"] == -0.5
    back = difference(truths, worse, truths)
    assert back["price"]["mae"]["value"] == -found["price"]["mae"]["value"] > 0
    assert difference(worse, worse, truths)["title"]["exact"]["p"] == 1


def test_a_handful_of_rows_shows_no_difference():
    truths = [row(f"Bag {n}") for n in range(4)]
    found = difference([None] * 4, truths, truths)
    for field, metric in (("title", "exact"), ("category", "accuracy"), ("price", "mdape")):
        assert found[field][metric]["p"] > 0.05
    same = difference(truths, truths, truths)["title"]["exact"]
    assert same["value"] == 0
    assert same["low"] <= -0.3
    assert same["high"] >= 0.3


def test_many_photos_of_few_products_show_no_difference():
    products = [n // 16 for n in range(64)]
    truths = [row(f"Bag {n}") for n in products]
    other = [t if n < 3 else row("Shoe", "X", 1.0) for n, t in zip(products, truths, strict=True)]
    assert difference(other, truths, truths, products)["title"]["exact"]["p"] > 0.05
    assert difference(other, truths, truths)["title"]["exact"]["p"] < 0.01


def test_odd_numbers_give_finite_figures():
    for truths in ([5e-324, 1e15], [0.0, 0.0], [-1e15, 1e15]):
        for figure in figures([row(price=t) for t in truths], [None, row(price=1e14)]).values():
            assert np.isfinite([figure["value"], figure["low"], figure["high"]]).all()


def test_no_torch_is_loaded():
    code = "import sys, catalens.metrics; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
