"""Numbers from (truth, prediction) pairs, each with its interval, and the baselines to beat.

    truths      [{"title": "Red Tote Bag", "category3_code": "BAGS", "full_price": 129.0}, ...]
    predictions [{"title": "Red Tote Bag", "category3_code": "BAGS", "full_price": 118.0}, None, ...]

A prediction is None where the answer did not parse. It counts as wrong everywhere: no match, similarity 0, a class of
its own that is never right, and for a number the largest error that is possible within the range of the truths (where
they are all one number, that number), never the error of a price of 0.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rapidfuzz.distance import Levenshtein
from scipy.stats import binomtest, bootstrap
from sklearn.neighbors import NearestNeighbors

from catalens.config import Kind

Row = Mapping[str, object]
Figure = dict[str, float]
"""`{"value": ..., "low": ..., "high": ...}`, low and high bounding the 95 % interval."""
Statistic = Callable[[NDArray[np.intp]], NDArray[np.float64]]
"""Indices of rows [..., n] -> the figure over them [...]."""

CLOSE = 0.1
"""A number is right within this share of the truth."""
THUMBNAIL = 16


def score(
    kinds: Mapping[str, Kind],
    truths: Sequence[Row],
    predictions: Sequence[Row | None],
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, object]:
    """`{"parse_rate": Figure, "fields": {name: {metric: Figure}}}`.

    Text: `exact` match, `similarity` (1 - normalised Levenshtein distance). Category: `accuracy`, `macro_f1` (mean
    over the classes of the truths). Number: `mae` in the field's unit, `mdape` (median |error| / |truth|; where the
    truth is 0, any error is 1) and `within_10pct`. Intervals: percentile bootstrap over rows (Efron, 1979).
    """
    if len(truths) != len(predictions) or not truths:
        raise ValueError(f"{len(truths)} truths and {len(predictions)} predictions: give one for one, at least one")

    def figure(statistic: Statistic) -> Figure:
        return _with_interval(statistic, len(truths), resamples, seed)

    parsed = np.array([p is not None for p in predictions], dtype=float)
    fields = {
        name: {metric: figure(statistic) for metric, statistic in measured.items()}
        for name, measured in statistics(kinds, truths, predictions).items()
    }
    return {"parse_rate": figure(_mean(parsed)), "fields": fields}


def statistics(
    kinds: Mapping[str, Kind], truths: Sequence[Row], predictions: Sequence[Row | None]
) -> dict[str, dict[str, Statistic]]:
    """`{name: {metric: Statistic}}`: the figures of `score` over any of the rows, for resampling."""
    fields: dict[str, dict[str, Statistic]] = {}
    for name, kind in kinds.items():
        pairs = _pairs(name, truths, predictions)
        if kind == "text":
            exact = np.array([p == t for t, p in pairs], dtype=float)
            alike = np.array(
                [0.0 if p is None else Levenshtein.normalized_similarity(str(t), str(p)) for t, p in pairs]
            )
            fields[name] = {"exact": _mean(exact), "similarity": _mean(alike)}
        elif kind == "category":
            exact = np.array([p == t for t, p in pairs], dtype=float)
            fields[name] = {"accuracy": _mean(exact), "macro_f1": _macro_f1(pairs)}
        else:
            errors, shares = _number_errors(pairs)
            fields[name] = {
                "mae": _mean(errors),
                "mdape": lambda rows, shares=shares: np.median(shares[rows], axis=-1),
                "within_10pct": _mean(_close(shares).astype(float)),
            }
    return fields


def correctness(name: str, kind: Kind, truths: Sequence[Row], predictions: Sequence[Row | None]) -> NDArray[np.bool_]:
    """Whether each value is right, [n]: text and category exact, a number within `CLOSE` of the truth."""
    pairs = _pairs(name, truths, predictions)
    if kind == "number" and pairs:
        return _close(_number_errors(pairs)[1])
    return np.array([p == t for t, p in pairs], dtype=bool)


def reliability(confidence: NDArray[np.float64], right: NDArray[np.bool_], bins: int = 10) -> list[dict[str, float]]:
    """`[{"low", "high", "rows", "confidence", "right"}]`: mean confidence and share of right ones, by bin with rows.

    Bins are of equal width. In simulations bins of equal mass found bad calibration no more often, and showed more
    error where there was none, above all where confidences lie close together.
    """
    places = _bins(confidence, bins)
    return [
        {
            "low": place / bins,
            "high": (place + 1) / bins,
            "rows": int((places == place).sum()),
            "confidence": float(confidence[places == place].mean()),
            "right": float(right[places == place].mean()),
        }
        for place in np.unique(places).tolist()
    ]


def calibration_error(
    confidence: NDArray[np.float64], right: NDArray[np.bool_], bins: int = 10, resamples: int = 1000, seed: int = 0
) -> Figure:
    """Expected calibration error (Naeini et al., 2015): the mean gap between confidence and share of right ones.

    It is never 0 on finitely many rows: chance alone opens gaps (Kumar et al., 2019), and resampling opens them
    again, so that the interval lies high. Ten bins keep that small.
    """
    gaps = np.zeros((len(confidence), bins))
    gaps[np.arange(len(confidence)), _bins(confidence, bins)] = confidence - right

    def statistic(rows: NDArray[np.intp]) -> NDArray[np.float64]:
        return np.abs(_counts(rows, len(gaps)) @ gaps).sum(axis=-1) / len(gaps)

    return _with_interval(statistic, len(gaps), resamples, seed)


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


def interval_coverage(truths: NDArray[np.float64], lows: NDArray[np.float64], highs: NDArray[np.float64]) -> Figure:
    """Share of truths within their bounds, with the exact binomial interval; bounds that are NaN hold nothing."""
    return _share((lows <= truths) & (truths <= highs))


def review_outcome(
    confidence: NDArray[np.float64], right: NDArray[np.bool_], threshold: float | None
) -> dict[str, Figure | None]:
    """`{"accepted": share of all rows, "error": share of wrong ones among those}`, with exact binomial intervals.

    None accepts nothing; the error is None where nothing is accepted.
    """
    accepted = confidence >= (math.inf if threshold is None else threshold)
    return {"accepted": _share(accepted), "error": _share(~right[accepted]) if accepted.any() else None}


def confidence_block(
    kinds: Mapping[str, Kind],
    truths: Sequence[Row],
    predictions: Sequence[Row | None],
    confidence: Sequence[Mapping[str, float]],
    intervals: Sequence[Mapping[str, tuple[float, float]]],
    calibrated_on: int | None,
    nominal: float,
    resamples: int = 1000,
) -> dict[str, Any]:
    """How far confidences and intervals, by column and one mapping a row, can be believed.

    `{"calibrated_on": rows, "fields": {name: {"ece": Figure, "bins": reliability, "risk_coverage": [...], "interval":
    {"nominal", "coverage": Figure, "width": median, as a share of the prediction}}}}`; `interval` is None where no
    row has one. A row without a confidence has 0, one without an interval is not covered.
    """
    fields: dict[str, Any] = {}
    for name, kind in kinds.items():
        right = correctness(name, kind, truths, predictions)
        sure = _confidences(name, confidence)
        interval = None
        if any(name in row for row in intervals):
            lows, highs = np.array([row.get(name, (math.nan, math.nan)) for row in intervals], float).T
            said = np.array([math.nan if p is None or not p[name] else p[name] for p in predictions], float)
            coverage = interval_coverage(np.array([t[name] for t in truths], float), lows, highs)
            interval = {"nominal": nominal, "coverage": coverage, "width": _median((highs - lows) / abs(said))}
        fields[name] = {
            "ece": calibration_error(sure, right, resamples=resamples),
            "bins": reliability(sure, right),
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
) -> dict[str, Any]:
    """What the thresholds of the review accept, for the columns of `targets`.

    `{"confidence": level, "fields": {name: {"target", "threshold", "accepted": Figure, "error": Figure | None}}}`.
    """
    fields: dict[str, Any] = {}
    for name, target in targets.items():
        right = correctness(name, kinds[name], truths, predictions)
        outcome = review_outcome(_confidences(name, confidence), right, thresholds[name])
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


def thumbnail(picture: Image.Image) -> NDArray[np.float32]:
    """Features of an RGB picture for `nearest_neighbour`: its 16 x 16 pixels, [768], from 0 to 1."""
    small = picture.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX)
    return (np.asarray(small, dtype=np.float32) / np.float32(255)).reshape(-1)


def _with_interval(statistic: Statistic, rows: int, resamples: int, seed: int) -> Figure:
    everything = np.arange(rows)
    value = float(statistic(everything))
    if rows == 1:
        return {"value": value, "low": value, "high": value}
    interval = bootstrap(
        (everything,),
        lambda indices, axis: statistic(indices),
        n_resamples=resamples,
        vectorized=True,
        method="percentile",
        batch=max(1, 2_000_000 // rows),
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return {"value": value, "low": float(interval.low), "high": float(interval.high)}


def _share(hits: NDArray[np.bool_]) -> Figure:
    """The share of hits with its exact interval (Clopper & Pearson, 1934), which no hit at all does not close."""
    found = binomtest(int(hits.sum()), len(hits))
    interval = found.proportion_ci()
    return {"value": float(hits.mean()), "low": float(interval.low), "high": float(interval.high)}


def _median(values: NDArray[np.float64]) -> float | None:
    finite = values[np.isfinite(values)]
    return float(np.median(finite)) if len(finite) else None


def _confidences(name: str, rows: Sequence[Mapping[str, float]]) -> NDArray[np.float64]:
    return np.array([row.get(name, 0.0) for row in rows], float)


def _bins(confidence: NDArray[np.float64], bins: int) -> NDArray[np.intp]:
    return np.minimum((confidence * bins).astype(np.intp), bins - 1)


def _counts(rows: NDArray[np.intp], most: int) -> NDArray[np.intp]:
    """How often a resample holds each row: [..., n] -> [..., most]."""
    return np.apply_along_axis(np.bincount, -1, rows, minlength=most)


def _pairs(name: str, truths: Sequence[Row], predictions: Sequence[Row | None]) -> list[tuple[object, object]]:
    return [(t[name], None if p is None else p[name]) for t, p in zip(truths, predictions, strict=True)]


def _close(shares: NDArray[np.float64]) -> NDArray[np.bool_]:
    return shares <= CLOSE + 1e-9


def _mean(values: NDArray[np.float64]) -> Statistic:
    return lambda rows: values[rows].mean(axis=-1)


def _macro_f1(pairs: Sequence[tuple[object, object]]) -> Statistic:
    """Mean F1 over the classes that the truths of a resample hold."""
    classes = sorted({str(truth) for truth, _ in pairs})
    true = np.array([[str(t) == c for c in classes] for t, _ in pairs], dtype=float)  # [rows, classes]
    said = np.array([[p == c for c in classes] for _, p in pairs], dtype=float)

    def statistic(rows: NDArray[np.intp]) -> NDArray[np.float64]:
        counts = _counts(rows, len(pairs))
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
    shares = np.divide(errors, np.abs(truths), out=(errors > 0).astype(float), where=truths != 0)
    return errors, np.where(failed, np.maximum(shares, 1.0), shares)


def _most_frequent(values: Sequence[object]) -> object:
    """The first in alphabetical order among the most frequent, so that a tie is no matter of row order."""
    counts = Counter(values)
    return min(counts, key=lambda value: (-counts[value], str(value)))
