"""Numbers from (truth, prediction) pairs, each with its interval, and the baselines to beat.

    truths      [{"title": "Red Tote Bag", "category3_code": "BAGS", "full_price": 129.0}, ...]
    predictions [{"title": "Red Tote Bag", "category3_code": "BAGS", "full_price": 118.0}, None, ...]

A prediction is None where the answer did not parse. It counts as wrong everywhere: no match, similarity 0, a class of
its own that is never right, and for a number the largest error that is possible within the range of the truths (where
they are all one number, that number), never the error of a price of 0.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rapidfuzz.distance import Levenshtein
from scipy.stats import bootstrap
from sklearn.neighbors import NearestNeighbors

from catalens.config import Kind

Row = Mapping[str, object]
Figure = dict[str, float]
"""`{"value": ..., "low": ..., "high": ...}`, low and high bounding the 95 % interval."""
Statistic = Callable[[NDArray[np.intp]], NDArray[np.float64]]
"""Indices of rows [..., n] -> the figure over them [...]."""

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

    def mean(values: NDArray[np.float64]) -> Figure:
        return figure(lambda rows: values[rows].mean(axis=-1))

    fields: dict[str, dict[str, Figure]] = {}
    for name, kind in kinds.items():
        pairs = [(t[name], None if p is None else p[name]) for t, p in zip(truths, predictions, strict=True)]
        if kind == "text":
            exact = np.array([p == t for t, p in pairs], dtype=float)
            alike = np.array(
                [0.0 if p is None else Levenshtein.normalized_similarity(str(t), str(p)) for t, p in pairs]
            )
            fields[name] = {"exact": mean(exact), "similarity": mean(alike)}
        elif kind == "category":
            exact = np.array([p == t for t, p in pairs], dtype=float)
            fields[name] = {"accuracy": mean(exact), "macro_f1": figure(_macro_f1(pairs))}
        else:
            errors, shares = _number_errors(pairs)
            fields[name] = {
                "mae": mean(errors),
                "mdape": figure(lambda rows, shares=shares: np.median(shares[rows], axis=-1)),
                "within_10pct": mean((shares <= 0.1 + 1e-9).astype(float)),
            }
    parsed = np.array([p is not None for p in predictions], dtype=float)
    return {"parse_rate": mean(parsed), "fields": fields}


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


def _macro_f1(pairs: Sequence[tuple[object, object]]) -> Statistic:
    """Mean F1 over the classes that the truths of a resample hold."""
    classes = sorted({str(truth) for truth, _ in pairs})
    true = np.array([[str(t) == c for c in classes] for t, _ in pairs], dtype=float)  # [rows, classes]
    said = np.array([[p == c for c in classes] for _, p in pairs], dtype=float)

    def statistic(rows: NDArray[np.intp]) -> NDArray[np.float64]:
        counts = np.apply_along_axis(np.bincount, -1, rows, minlength=len(pairs))  # [..., rows]
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
