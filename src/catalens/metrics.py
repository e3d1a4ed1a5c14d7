"""Numbers from (truth, prediction) pairs, each with its interval, and the baselines to beat.

    truths      [{"title": "Red Tote Bag", "category3_code": "BAGS", "full_price": 129.0}, ...]
    predictions [{"title": "Red Tote Bag", "category3_code": "BAGS", "full_price": 118.0}, None, ...]

A prediction is None where the answer did not parse. It counts as wrong everywhere: no match, similarity 0, a class of
its own that is never right, and for a number the largest error that is possible within the range of the truths (where
they are all one number, that number), never the error of a price of 0.
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein
from sklearn.neighbors import NearestNeighbors

from catalens.config import Kind
from catalens.intervals import (
    Figure,
    Products,
    Statistic,
    bootstrap,
    clusters,
    mean,
    median,
    paired,
    product_weights,
    share,
)

Row = Mapping[str, object]
ImageUse = Literal["uses_image", "ignores_image", "undecided"]
"""What the check of the pictures found: shown to use them, shown to ignore them, or too few rows to tell."""

PRIMARY: Mapping[Kind, str] = {"text": "exact", "category": "accuracy", "number": "mdape"}
"""The one figure of a kind of field that headlines, comparisons and the check of the pictures go by."""
SHARES: Mapping[Kind, str] = {"text": "exact", "category": "accuracy", "number": "within_10pct"}
"""The figure that is the share of right values, as of `correctness`."""
CLOSE = 0.1
"""A number is right within this share of the truth."""
FARTHEST = 1e30
"""Largest error of a number as a share of its truth."""


def score(
    kinds: Mapping[str, Kind],
    truths: Sequence[Row],
    predictions: Sequence[Row | None],
    products: Products = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """`{"parse_rate": Figure, "fields": {name: {metric: Figure}}}`.

    Text: `exact` match, `similarity` (1 - normalised Levenshtein distance). Category: `accuracy`, `macro_f1` (mean
    over the classes of the truths). Number: `mae` in the field's unit, `mdape` (median |error| / |truth|; where the
    truth is 0, any error is 1) and `within_10pct`. Figures are over rows, intervals over products: exact for shares,
    bootstrap for the rest. A `similarity` or `macro_f1` on which all resamples agree has the interval of a share.
    """
    if len(truths) != len(predictions) or not truths:
        raise ValueError(f"{len(truths)} truths and {len(predictions)} predictions: give one for one, at least one")
    fields: dict[str, dict[str, Figure]] = {}
    for name, measured in statistics(kinds, truths, predictions).items():
        found = bootstrap(measured, len(truths), products, resamples, seed)
        found[SHARES[kinds[name]]] = share(correctness(name, kinds[name], truths, predictions), products)
        for metric in {"similarity", "macro_f1"} & found.keys():
            if found[metric]["low"] == found[metric]["high"]:
                found[metric] = share(np.full(len(truths), found[metric]["value"]), products)
        fields[name] = found
    return {"parse_rate": share(np.array([p is not None for p in predictions]), products), "fields": fields}


def differences(
    kinds: Mapping[str, Kind],
    truths: Sequence[Row],
    first: Sequence[Row | None],
    other: Sequence[Row | None],
    products: Products = None,
    resamples: int = 10_000,
) -> dict[str, dict[str, Figure]]:
    """Figures of `other` less those of `first` on the same rows: `{name: {metric: Figure with its two-sided "p"}}`.

    Paired bootstrap (Efron and Tibshirani, 1993). What makes a row hard is hard for both, and falls out. Two made-up
    products, one that only the first has right and one that only the other has, keep the interval from closing up and
    `p` from being small on a handful of rows (as Agresti and Min, 2005, do for shares). `mae`, which knows no largest
    error, does without.
    """
    rows = len(truths)
    plain = statistics(kinds, [*truths, *truths], [*first, *other])
    numbers = [*range(rows)] if products is None else [*products]
    each = max(1, round(rows / len(set(numbers))))
    extra, right, wrong = [truths[0]] * (2 * each), [truths[0]] * each, [None] * each
    padded = statistics(kinds, [*truths, *extra] * 2, [*first, *right, *wrong, *other, *wrong, *right])
    made_up = [("made up", n // each) for n in range(2 * each)]
    found = {}
    for name, measured in padded.items():
        found[name] = paired(measured, rows + len(extra), [*numbers, *made_up], len(extra), resamples)
        if "mae" in measured:
            found[name] |= paired({"mae": plain[name]["mae"]}, rows, numbers, resamples=resamples)
    return found


def statistics(
    kinds: Mapping[str, Kind], truths: Sequence[Row], predictions: Sequence[Row | None]
) -> dict[str, dict[str, Statistic]]:
    """`{name: {metric: Statistic}}`: the figures of `score` over any resample of the rows."""
    fields: dict[str, dict[str, Statistic]] = {}
    for name, kind in kinds.items():
        pairs = _pairs(name, truths, predictions)
        right = correctness(name, kind, truths, predictions).astype(float)
        if kind == "text":
            alike = [0.0 if p is None else Levenshtein.normalized_similarity(str(t), str(p)) for t, p in pairs]
            fields[name] = {"exact": mean(right), "similarity": mean(np.array(alike))}
        elif kind == "category":
            fields[name] = {"accuracy": mean(right), "macro_f1": _macro_f1(pairs)}
        else:
            errors, shares = _number_errors(pairs)
            fields[name] = {"mae": mean(errors), "mdape": median(shares), "within_10pct": mean(right)}
    return fields


def correctness(name: str, kind: Kind, truths: Sequence[Row], predictions: Sequence[Row | None]) -> NDArray[np.bool_]:
    """Whether each value is right, [n]: text and category exact, a number within `CLOSE` of the truth."""
    pairs = _pairs(name, truths, predictions)
    if kind == "number" and pairs:
        return _close(_number_errors(pairs)[1])
    return np.array([p == t for t, p in pairs], dtype=bool)


def reliability(
    confidence: NDArray[np.float64], right: NDArray[np.bool_], products: Products = None, bins: int = 10
) -> list[dict[str, Any]]:
    """`[{"low", "high", "rows", "confidence", "right": Figure}]`: mean confidence and share right, by bin with rows.

    Bins are of equal width. In simulations bins of equal mass found bad calibration no more often, and showed more
    error where there was none, above all where confidences lie close together.
    """
    places = _bins(confidence, bins)
    cluster = clusters(products, len(right))
    return [
        {
            "low": place / bins,
            "high": (place + 1) / bins,
            "rows": int((places == place).sum()),
            "confidence": float(confidence[places == place].mean()),
            "right": share(right[places == place], cluster[places == place].tolist()),
        }
        for place in np.unique(places).tolist()
    ]


def calibration_error(
    confidence: NDArray[np.float64],
    right: NDArray[np.bool_],
    products: Products = None,
    bins: int = 10,
    resamples: int = 1000,
    seed: int = 0,
) -> Figure:
    """Expected calibration error (Naeini et al., 2015): the mean gap between confidence and share of right ones.

    It is never 0 on finitely many rows: chance alone opens gaps (Kumar et al., 2019), and resampling opens them
    again, so that the interval lies high. Ten bins keep that small.
    """
    gaps = np.zeros((len(confidence), bins))
    gaps[np.arange(len(confidence)), _bins(confidence, bins)] = confidence - right

    def statistic(counts: NDArray[np.float64]) -> NDArray[np.float64]:
        return np.abs(counts @ gaps).sum(axis=-1) / counts.sum(axis=-1)

    return bootstrap({"ece": statistic}, len(gaps), products, resamples, seed)["ece"]


def risk_coverage(
    confidence: NDArray[np.float64], right: NDArray[np.bool_], points: int = 100
) -> list[dict[str, float]]:
    """`[{"coverage", "error"}]`: the share of wrong ones among the most confident rows, as `acceptance`."""
    steps = acceptance(confidence, right, points)
    return [{"coverage": rows / len(right), "error": wrong / rows} for _, rows, wrong in steps]


def acceptance(
    confidence: NDArray[np.float64], right: NDArray[np.bool_], points: int
) -> list[tuple[float, int, int]]:
    """Thresholds from strict to lax, [(confidence, how many rows have at least that, how many of those are wrong)].

    Rows of one confidence come together; at most `points` points.
    """
    values, group = np.unique(-confidence, return_inverse=True)
    rows = np.cumsum(np.bincount(group, minlength=len(values)))
    wrong = np.cumsum(np.bincount(group, weights=~right, minlength=len(values)))
    kept = np.unique(np.linspace(0, len(values) - 1, min(points, len(values))).round().astype(int))
    return [(-float(values[i]), int(rows[i]), int(wrong[i])) for i in kept]


def interval_coverage(
    truths: NDArray[np.float64], lows: NDArray[np.float64], highs: NDArray[np.float64], products: Products = None
) -> Figure:
    """Share of truths within their bounds, every product counting once; bounds that are NaN hold nothing."""
    return share((lows <= truths) & (truths <= highs), products, product_weights(products, len(truths)))


def review_outcome(
    confidence: NDArray[np.float64],
    right: NDArray[np.bool_],
    threshold: float | None,
    products: Products = None,
) -> dict[str, Figure | None]:
    """`{"accepted": share of all, "error": share of wrong ones among those}`, every product counting once.

    A product's photos share its weight, since the promise is about products: it is what comes of one photo of each,
    drawn at random. None accepts nothing; the error is None where nothing is accepted.
    """
    accepted = confidence >= (math.inf if threshold is None else threshold)
    cluster, weights = clusters(products, len(right)), product_weights(products, len(right))
    wrong = None
    if accepted.any():
        wrong = share(~right[accepted], cluster[accepted].tolist(), weights[accepted])
    return {"accepted": share(accepted, products, weights), "error": wrong}


def confidence_block(
    kinds: Mapping[str, Kind],
    truths: Sequence[Row],
    predictions: Sequence[Row | None],
    confidence: Sequence[Mapping[str, float]],
    intervals: Sequence[Mapping[str, tuple[float, float]]],
    calibrated_on: int | None,
    nominal: float,
    resamples: int = 1000,
    products: Products = None,
) -> dict[str, Any]:
    """How far confidences and intervals, by column and one mapping a row, can be believed.

    `{"calibrated_on": products, "fields": {name: {"ece": Figure, "bins": reliability, "risk_coverage": [...],
    "interval": {"nominal", "coverage": Figure, "width": median, as a share of the prediction}}}}`; `interval` is None
    where no row has one. A row without a confidence has 0, one without an interval is not covered.
    """
    fields: dict[str, Any] = {}
    for name, kind in kinds.items():
        right = correctness(name, kind, truths, predictions)
        sure = _confidences(name, confidence)
        interval = None
        if any(name in row for row in intervals):
            lows, highs = np.array([row.get(name, (math.nan, math.nan)) for row in intervals], float).T
            said = np.array([math.nan if p is None or not p[name] else p[name] for p in predictions], float)
            coverage = interval_coverage(np.array([t[name] for t in truths], float), lows, highs, products)
            interval = {"nominal": nominal, "coverage": coverage, "width": _finite_median((highs - lows) / abs(said))}
        fields[name] = {
            "ece": calibration_error(sure, right, products, resamples=resamples),
            "bins": reliability(sure, right, products),
            "risk_coverage": risk_coverage(sure, right),
            "interval": interval,
        }
    return {"calibrated_on": calibrated_on, "fields": fields}


def review_block(
    kinds: Mapping[str, Kind],
    truths: Sequence[Row],
    predictions: Sequence[Row | None],
    confidence: Sequence[Mapping[str, float]],
    targets: Mapping[str, float],
    thresholds: Mapping[str, float | None],
    level: float = 0.95,
    products: Products = None,
) -> dict[str, Any]:
    """What the thresholds of the review accept, for the columns of `targets`.

    `{"confidence": level, "fields": {name: {"target", "threshold", "accepted": Figure, "error": Figure | None}}}`.
    """
    fields: dict[str, Any] = {}
    for name, target in targets.items():
        right = correctness(name, kinds[name], truths, predictions)
        outcome = review_outcome(_confidences(name, confidence), right, thresholds[name], products)
        fields[name] = {"target": target, "threshold": thresholds[name], **outcome}
    return {"confidence": level, "fields": fields}


def majority(kinds: Mapping[str, Kind], train: Sequence[Row], rows: int) -> list[Row]:
    """The baseline that never looks: the most frequent text and category and the median number, `rows` times."""
    constant: dict[str, object] = {}
    for name, kind in kinds.items():
        values = [row[name] for row in train]
        constant[name] = float(np.median(np.array(values, float))) if kind == "number" else _most_frequent(values)
    return [constant] * rows


def nearest_neighbour(train: Sequence[Row], train_features: NDArray, features: NDArray) -> list[Row]:
    """The baseline that looks without learning: every row takes the values of the nearest training picture.

    Features are [rows, d] as of `thumbnail`; distance is Euclidean.
    """
    index = NearestNeighbors(n_neighbors=1).fit(train_features)
    nearest = index.kneighbors(features, return_distance=False)[:, 0]
    return [train[i] for i in nearest]


def _finite_median(values: NDArray[np.float64]) -> float | None:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else None


def _confidences(name: str, rows: Sequence[Mapping[str, float]]) -> NDArray[np.float64]:
    return np.array([row.get(name, 0.0) for row in rows], float)


def _bins(confidence: NDArray[np.float64], bins: int) -> NDArray[np.intp]:
    return np.minimum((confidence * bins).astype(np.intp), bins - 1)


def _pairs(name: str, truths: Sequence[Row], predictions: Sequence[Row | None]) -> list[tuple[object, object]]:
    return [(t[name], None if p is None else p[name]) for t, p in zip(truths, predictions, strict=True)]


def _close(shares: NDArray[np.float64]) -> NDArray[np.bool_]:
    return shares <= CLOSE + 1e-9


def _macro_f1(pairs: Sequence[tuple[object, object]]) -> Statistic:
    """Mean F1 over the classes that the truths of a resample hold."""
    classes = sorted({str(truth) for truth, _ in pairs})
    true = np.array([[str(t) == c for c in classes] for t, _ in pairs], dtype=float)  # [rows, classes]
    said = np.array([[p == c for c in classes] for _, p in pairs], dtype=float)

    def statistic(counts: NDArray[np.float64]) -> NDArray[np.float64]:
        support, predicted, hits = counts @ true, counts @ said, counts @ (true * said)
        f1 = np.divide(2 * hits, support + predicted, out=np.zeros_like(hits), where=support + predicted > 0)
        return f1.sum(axis=-1, where=support > 0) / (support > 0).sum(axis=-1)

    return statistic


def _number_errors(pairs: Sequence[tuple[object, object]]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Absolute errors, and as shares of the truth: at least 1 for a failure; 0 or 1 where the truth is 0."""
    truths = np.array([t for t, _ in pairs], dtype=float)
    said = np.array([np.nan if p is None else p for _, p in pairs], dtype=float)
    failed = np.isnan(said)
    worst = np.maximum(truths - truths.min(), truths.max() - truths)
    errors = np.where(failed, np.where(worst > 0, worst, np.abs(truths)), np.abs(said - truths))
    with np.errstate(over="ignore"):
        shares = np.divide(errors, np.abs(truths), out=(errors > 0).astype(float), where=truths != 0)
    shares = np.minimum(shares, FARTHEST)
    return errors, np.where(failed, np.maximum(shares, 1.0), shares)


def _most_frequent(values: Sequence[object]) -> object:
    """The first in alphabetical order among the most frequent, so that a tie is no matter of row order."""
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], str(value)))
