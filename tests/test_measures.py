"""Measures of the field against kept libraries, and against the formulas of what publishes them."""

import numpy as np
import pytest
import scoringrules
import torch
from crepes import ConformalRegressor
from hiclass.metrics import f1 as hierarchical_f1
from rapidfuzz import fuzz
from sklearn.metrics import f1_score
from torchmetrics.classification import BinaryCalibrationError

from catalens.confidence import calibration_error, crps, interval_coverage
from catalens.config import PromptSpec
from catalens.distributions import Distribution
from catalens.inference import FieldScore, fit_calibration
from catalens.measures import class_f1, close, levels, log_errors, same_text, symmetric_errors, words
from catalens.metrics import metrics_of, score
from catalens.tolerance import Tolerance

PATHS = ["A", "A > B", "A > B > C", "A > D", "E > B", "E > B > C", "F"]


def hierarchical(truths: list[str], predictions: list[str | None]) -> float:
    rows = [{"kind": truth} for truth in truths]
    found = score(
        {"kind": "category"}, rows, [None if p is None else {"kind": p} for p in predictions], resamples=100
    )
    return found["fields"]["kind"]["hierarchical_f1"]["value"]


def ancestors(paths: list[str]) -> np.ndarray:
    """Nodes of each path from the root, each by its whole path, [n, 3]."""
    split = [path.split(" > ") for path in paths]
    return np.array([[">".join(p[: n + 1]) if n < len(p) else "" for n in range(3)] for p in split], dtype=object)


@pytest.mark.parametrize("seed", range(5))
def test_hierarchical_f1_is_that_of_hiclass(seed):
    rng = np.random.default_rng(seed)
    truths, predictions = (rng.choice(PATHS, 60).tolist() for _ in range(2))
    expected = hierarchical_f1(ancestors(truths), ancestors(predictions), average="micro")
    assert hierarchical(truths, predictions) == pytest.approx(expected)


def test_hierarchical_f1_by_hand():
    # 2 of 3 levels, then an answer that did not parse: as many levels as the truth has, none of them right
    assert hierarchical(["A > B > C", "A"], ["A > B > X", None]) == pytest.approx(2 * 2 / (4 + 4))
    assert hierarchical(["Shoes", "Bags"], ["Shoes", "Hats"]) == 0.5
    assert levels(["A > B"], ["B > B"]).tolist() == [[0, 2]]


@pytest.mark.parametrize("seed", range(5))
def test_the_f1_of_a_class_is_that_of_sklearn(seed):
    rng = np.random.default_rng(seed)
    truths = rng.choice(["gone", "A", "B"], 60).tolist()
    predictions = [None if said == "failed" else said for said in rng.choice(["gone", "A", "failed"], 60).tolist()]
    own = rng.integers(0, 40, 60).tolist()
    figure = class_f1(truths, predictions, "gone", own)
    assert figure is not None
    expected = f1_score([t == "gone" for t in truths], [p == "gone" for p in predictions])
    assert figure["value"] == pytest.approx(expected)
    assert figure["low"] < figure["value"] < figure["high"]
    more = class_f1([*truths, *"ABA"], [*predictions, "A", None, "C"], "gone", [*own, 1, 2, 99])
    assert more == figure  # rows of other classes have no part in it


def test_the_f1_of_a_class_by_hand():
    assert class_f1(["A", "B"], ["B", None], "gone") is None
    cases = [
        (["gone", "A"], ["A", "gone"], 0),
        (["gone"] * 4, ["gone"] * 4, 1),
        (["gone", "gone", "A"], ["gone", None, "A"], 2 / 3),
    ]
    for truths, predictions, f1 in cases:
        figure = class_f1(truths, predictions, "gone", ["P1", "P2", "P3", "P3"][: len(truths)])
        assert figure is not None
        assert figure["value"] == pytest.approx(f1)
        assert figure["low"] < figure["high"]  # does not close up where all or none are right


@pytest.mark.parametrize("seed", range(5))
def test_crps_is_that_of_scoringrules(seed):
    rng = np.random.default_rng(seed)
    for _ in range(20):
        values, shares = rng.normal(100, 20, 12).round(), rng.dirichlet(np.ones(12))
        truth = float(rng.normal(100, 30))
        expected = scoringrules.crps_ensemble(truth, values, ens_w=shares)
        assert crps(truth, values, shares) == pytest.approx(float(expected), rel=1e-6)
    assert crps(3.0, np.array([5.0]), np.array([0.7])) == 2.0


@pytest.mark.parametrize("seed", range(5))
def test_the_calibration_error_is_that_of_torchmetrics(seed):
    rng = np.random.default_rng(seed)
    sure, right = rng.random(300), rng.random(300) < 0.7
    metric = BinaryCalibrationError(n_bins=10, norm="l1")
    expected = float(metric(torch.tensor(sure, dtype=torch.float64), torch.tensor(right).long()))
    assert calibration_error(sure, right, resamples=100)["value"] == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_the_interval_is_that_of_crepes(seed):
    rng = np.random.default_rng(seed)
    truths = rng.lognormal(5, 0.5, 200)
    values = truths * rng.lognormal(0, 0.1, 200)
    prompt = PromptSpec.model_validate({"fields": [{"column": "price", "label": "Price", "kind": "number"}]})
    rows, said = [{"price": value} for value in truths.tolist()], [{"price": value} for value in values.tolist()]
    found = fit_calibration(prompt, rows, said, [{"price": FieldScore(-0.1, 1)}] * 200)
    theirs = ConformalRegressor()
    theirs.fit(np.log(truths) - np.log(values))
    expected = np.exp(theirs.predict_int(np.log(values), confidence=0.9))
    bounds = np.array([found.bounds("price", value) for value in values.tolist()], float)
    np.testing.assert_allclose(bounds, expected, rtol=1e-6)
    covered = (expected[:, 0] <= truths) & (truths <= expected[:, 1])
    assert interval_coverage(truths, *bounds.T)["value"] == pytest.approx(
        covered.mean(), abs=0.006
    )  # on the bound itself


def test_texts_are_alike_as_mlperf_has_it_for_brands():
    pairs = [("Adidas", "adidas "), ("Adidas", "Adodas"), ("Burberry London", "Burbery London"), ("Nike", None)]
    expected = [
        said is not None and fuzz.ratio(one.strip().lower(), said.strip().lower()) > 90 for one, said in pairs
    ]
    assert same_text(*zip(*pairs, strict=True)).tolist() == expected == [True, False, True, False]


def test_words_in_any_order():
    assert words(["Red Tote Bag"], ["bag red"]).tolist() == [pytest.approx(2 * 2 / 5)]
    assert words(["Red", "Red"], ["Blue", None]).tolist() == [0, 0]


def test_errors_of_numbers():
    assert symmetric_errors([100.0, 0.0, 0.0, 5.0], [300.0, 0.0, 2.0, None]).tolist() == [1.0, 0.0, 2.0, 2.0]
    assert log_errors([100.0, 200.0], [200.0, 100.0]).tolist() == pytest.approx([np.log(2)] * 2)
    assert log_errors([100.0, 200.0], [0.0, None]).tolist() == pytest.approx([np.log(2)] * 2)


@pytest.mark.parametrize(
    ("within", "right"), [("10%", [True, False, True]), ("0%", [True, False, False]), (5, [True, False, True])]
)
def test_a_tolerance_is_a_share_or_in_the_fields_unit(within, right):
    tolerance = Tolerance.parse(within)
    assert close([100.0, 50.0, 0.0], [100.0, 56.0, 5.0 if within == 5 else 0.0], tolerance).tolist() == [
        True,
        False,
        True,
    ]
    assert metrics_of("number", tolerance)["within_tolerance"].label == f"within {tolerance}"


@pytest.mark.parametrize("within", ["ten", "-1%", "nan", -3, float("inf")])
def test_what_is_no_tolerance_is_refused(within):
    with pytest.raises(ValueError, match="tolerance"):
        Tolerance.parse(within)


def spreading(scale: np.ndarray, values: np.ndarray) -> list[dict[str, Distribution]]:
    """Distributions of 32 quantiles around each value, of these standard deviations of the logarithm."""
    marks = np.array([np.sqrt(2) * torch.erfinv(torch.tensor(2 * (n + 0.5) / 32 - 1)).item() for n in range(32)])
    return [
        {"price": Distribution(tuple((value * np.exp(own * marks)).tolist()), (1 / 32,) * 32)}
        for own, value in zip(scale, values, strict=True)
    ]


@pytest.mark.parametrize("uneven", [True, False])
def test_intervals_follow_the_spread_where_that_is_narrower(uneven):
    prompt = PromptSpec.model_validate({"fields": [{"column": "price", "label": "Price", "kind": "number"}]})
    covered, widths, even_widths, shapes = [], [], [], []
    for draw in range(30):
        rng = np.random.default_rng(draw)
        truths = rng.lognormal(5, 0.5, 400)
        scale = np.where(rng.random(400) < 0.5, 0.03, 0.25) if uneven else np.full(400, 0.1)
        values = truths * rng.lognormal(0, scale)
        told = scale if uneven else rng.uniform(0.05, 0.2, 400)
        spreads = spreading(told, values)
        rows, said = ([{"price": one} for one in each.tolist()] for each in (truths, values))
        fit = [slice(0, 200), slice(200, 400)]
        scores = [{"price": FieldScore(-0.1, 1)}] * 200
        found = fit_calibration(prompt, rows[fit[0]], said[fit[0]], scores, distributions=spreads[fit[0]])
        even = fit_calibration(prompt, rows[fit[0]], said[fit[0]], scores)
        bound = found.fields["price"].bound
        assert bound is not None
        shapes.append(bound.shape)
        pairs = zip(values[fit[1]].tolist(), spreads[fit[1]], strict=True)
        bounds = np.array([found.bounds("price", value, spread["price"]) for value, spread in pairs], float)
        covered.append(((bounds[:, 0] <= truths[fit[1]]) & (truths[fit[1]] <= bounds[:, 1])).mean())
        widths.append(np.log(bounds[:, 1] / bounds[:, 0]).mean())
        usual = np.array([even.bounds("price", value) for value in values[fit[1]].tolist()], float)
        even_widths.append(np.log(usual[:, 1] / usual[:, 0]).mean())
    assert np.mean(covered) == pytest.approx(0.9, abs=0.015)
    if uneven:
        assert "even" not in shapes
        assert np.mean(widths) < 0.8 * np.mean(even_widths)
    else:
        assert shapes.count("even") >= 28
