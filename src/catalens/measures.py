"""Comparison of predictions with their truths, row by row: what the metrics of a column are made of.

    relative_errors([100.0, 200.0], [110.0, None])      [0.1, 1.0]
    levels(["Apparel > Shoes"], ["Apparel > Hats"])     [[1.0, 2.0]]

A prediction is None where the answer did not parse, and wrong then in every way (`metrics.py` tells how). n rows.
"""

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Indel, Levenshtein

from catalens.intervals import Figure, Floats, Products, Statistic, bootstrap, ratio, share
from catalens.tolerance import TEN_PER_CENT, Tolerance

SEPARATOR = ">"
"""Between the levels of a category that is a path, such as `Apparel > Shoes`."""
ALIKE = 0.9
"""Similarity from which on two texts are the same but for slips of the pen (MLPerf Inference's rule for brands)."""
CAP = 100.0
"""Largest error of a number in a mean, as a share of its truth."""
FARTHEST = 1e30
"""Largest error of a number as a share of its truth."""
BANDS = 5
"""Bands of a number by which its errors are told."""


def macro_f1(classes: Floats) -> Statistic:
    """Make the mean F1 over the classes that the truths of a resample hold, from `one_hot` [n, 2, classes]."""
    y_true, y_pred = classes[:, 0], classes[:, 1]

    def statistic(counts: Floats) -> Floats:
        support, predicted, hits = counts @ y_true, counts @ y_pred, counts @ (y_true * y_pred)
        f1 = np.divide(2 * hits, support + predicted, out=np.zeros_like(hits), where=support + predicted > 0)
        return f1.sum(axis=-1, where=support > 0) / (support > 0).sum(axis=-1)

    return statistic


def class_f1(
    y_true: Sequence[Any], y_pred: Sequence[Any], name: str, products: Products = None, resamples: int = 1000
) -> Figure | None:
    """Estimate the F1 of one class over products: twice the hits over the sum of truths and predictions of it.

    None where there are neither; rows that are neither have no part in it. An interval that closes up is that of a
    share.
    """
    parts = np.array([[t == p == name, ((t == name) + (p == name)) / 2] for t, p in zip(y_true, y_pred, strict=True)])
    rows = np.flatnonzero(parts[:, 1])
    if not len(rows):
        return None
    own = None if products is None else [products[int(i)] for i in rows]
    found = bootstrap({"f1": ratio(parts[rows])}, len(rows), own, resamples)["f1"]
    return share(np.full(len(rows), found["value"]), own) if found["low"] == found["high"] else found


def exact(y_true: Sequence[Any], y_pred: Sequence[Any]) -> NDArray[np.bool_]:
    """Compare for equality, [n]."""
    return np.array([p == t for t, p in zip(y_true, y_pred, strict=True)], bool)


def similarity(y_true: Sequence[Any], y_pred: Sequence[Any]) -> Floats:
    """Measure 1 - normalised Levenshtein distance, [n]; 0 for a failure."""
    pairs = zip(y_true, y_pred, strict=True)
    return np.array([0.0 if p is None else Levenshtein.normalized_similarity(str(t), str(p)) for t, p in pairs])


def same_text(y_true: Sequence[Any], y_pred: Sequence[Any]) -> NDArray[np.bool_]:
    """Compare texts without regard to case, [n]: alike in more than `ALIKE` of their characters (indel ratio)."""
    pairs = zip(y_true, y_pred, strict=True)
    return np.array(
        [p is not None and Indel.normalized_similarity(_plain(t), _plain(p)) > ALIKE for t, p in pairs], bool
    )


def _plain(text: object) -> str:
    return str(text).strip().lower()


def words(y_true: Sequence[Any], y_pred: Sequence[Any]) -> Floats:
    """Measure the F1 of the words, [n], without regard to case (as SQuAD scores answers); 0 for a failure."""

    def f1(truth: str, prediction: str) -> float:
        expected, found = Counter(truth.lower().split()), Counter(prediction.lower().split())
        return 2 * (expected & found).total() / max(1, expected.total() + found.total())

    return np.array([0.0 if p is None else f1(str(t), str(p)) for t, p in zip(y_true, y_pred, strict=True)])


def levels(y_true: Sequence[Any], y_pred: Sequence[Any]) -> Floats:
    """Count the levels of a path that agree from the root, and half of those of truth and prediction, [n, 2].

    A failure has as many levels as the truth (as MLPerf Inference scores answers that do not parse).
    """

    def path(value: object) -> list[str]:
        return [level.strip() for level in str(value).split(SEPARATOR)]

    counts = []
    for truth, prediction in zip(y_true, y_pred, strict=True):
        expected, found = path(truth), path(prediction)
        agreeing = next((n for n, (t, p) in enumerate(zip(expected, found, strict=False)) if t != p), None)
        shared = min(len(expected), len(found)) if agreeing is None else agreeing
        failed = prediction is None
        counts.append([0 if failed else shared, (len(expected) + len(expected if failed else found)) / 2])
    return np.array(counts, float)


def one_hot(y_true: Sequence[Any], y_pred: Sequence[Any]) -> Floats:
    """Encode truth and prediction over the classes of the truths, [n, 2, classes]."""
    classes = sorted({str(truth) for truth in y_true})
    return np.array(
        [[[str(t) == c for c in classes], [p == c for c in classes]] for t, p in zip(y_true, y_pred, strict=True)],
        float,
    )


def absolute_errors(y_true: Sequence[Any], y_pred: Sequence[Any]) -> Floats:
    """Measure |error| in the field's unit, [n]; of a failure the largest possible one."""
    truths, values = np.array(y_true, float), np.array([math.nan if p is None else p for p in y_pred], float)
    worst = np.maximum(truths - truths.min(), truths.max() - truths)
    return np.where(np.isnan(values), np.where(worst > 0, worst, np.abs(truths)), np.abs(values - truths))


def relative_errors(y_true: Sequence[Any], y_pred: Sequence[Any]) -> Floats:
    """Measure |error| as a share of |truth|, [n]: at least 1 for a failure; 0 or 1 where the truth is 0."""
    truths, errors = np.array(y_true, float), absolute_errors(y_true, y_pred)
    with np.errstate(over="ignore"):
        shares = np.divide(errors, np.abs(truths), out=(errors > 0).astype(float), where=truths != 0)
    shares = np.minimum(shares, FARTHEST)
    return np.where([p is None for p in y_pred], np.maximum(shares, 1.0), shares)


def capped_errors(y_true: Sequence[Any], y_pred: Sequence[Any]) -> Floats:
    """Measure `relative_errors`, [n], at most `CAP`: one number that is absurdly far off is not all of a mean."""
    return np.minimum(relative_errors(y_true, y_pred), CAP)


def symmetric_errors(y_true: Sequence[Any], y_pred: Sequence[Any]) -> Floats:
    """Measure |error| over the mean of |truth| and |prediction|, [n]: from 0 to 2, which a failure has."""
    truths, values = np.array(y_true, float), np.array([math.nan if p is None else p for p in y_pred], float)
    size = (np.abs(truths) + np.abs(values)) / 2
    errors = np.divide(np.abs(values - truths), size, out=np.zeros_like(truths), where=size != 0)
    return np.where(np.isnan(values), 2.0, errors)


def log_errors(y_true: Sequence[Any], y_pred: Sequence[Any]) -> Floats:
    """Measure |ln(prediction / truth)|, [n]; of a failure, or a number not above 0, the largest possible one.

    That is within the range of the truths above 0; it is 0 where a truth that is not above 0 is met.
    """
    truths, values = np.array(y_true, float), np.array([math.nan if p is None else p for p in y_pred], float)
    logs = np.log(np.where(truths > 0, truths, np.nan))
    if np.isnan(logs).all():
        return (values != truths).astype(float)
    worst = np.fmax(logs - np.nanmin(logs), np.nanmax(logs) - logs)
    worst = np.where(worst > 0, worst, max(1.0, float(np.nanmax(logs) - np.nanmin(logs))))
    found = np.abs(np.log(np.where(values > 0, values, np.nan)) - logs)
    return np.where(values == truths, 0.0, np.where(np.isnan(found), worst, found))


def close(y_true: Sequence[Any], y_pred: Sequence[Any], within: Tolerance = TEN_PER_CENT) -> NDArray[np.bool_]:
    """Test for a number within a tolerance of the truth, [n]."""
    truths = np.array(y_true, float)
    return np.where([p is None for p in y_pred], math.inf, absolute_errors(y_true, y_pred)) <= within.around(truths)


def band_edges(truths: Sequence[float]) -> list[float]:
    """Find numbers that part truths into `BANDS` bands of about as many rows, or fewer where many are alike."""
    marks = np.linspace(0, 1, BANDS + 1)[1:-1]
    return np.unique(np.quantile(np.array(truths, float), marks, method="nearest")).tolist()
