"""Figures with 95 % intervals from (truth, prediction) pairs, and the baselines to beat. `METRICS` names them all.

    truths      [{"title": "Red Tote Bag", "category3_code": "BAGS", "full_price": 129.0}, ...]
    predictions [{"title": "Red Tote Bag", "category3_code": "BAGS", "full_price": 118.0}, None, ...]
    score({"title": "text", ...}, truths, predictions)
    {"parse_rate": {"value": 0.98, "low": 0.95, "high": 1.0}, "fields": {"title": {"exact": {...}, ...}, ...}}

A prediction is None where the answer did not parse. It counts as wrong everywhere: no match, similarity 0, a class of
its own that is never right, and for a number the largest error that is possible within the range of the truths (where
they are all one number, that number), never the error of a price of 0.

A truth is None where the row lacks the field. A field is scored on the rows that have a truth of it, and has no
figures where none has.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from rapidfuzz.distance import Levenshtein
from sklearn.neighbors import NearestNeighbors

from catalens.intervals import (
    Figure,
    Floats,
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
"""Outcome of the check of the pictures; undecided where the rows are too few to tell."""

CLOSE = 0.1
"""A number is right within this share of the truth."""
FARTHEST = 1e30
"""Largest error of a number as a share of its truth."""


# What a metric makes of a column: a value of each row, and the figure over resamples


def macro_f1(classes: Floats) -> Statistic:
    """Make the mean F1 over the classes that the truths of a resample hold, from `one_hot` [n, 2, classes]."""
    y_true, y_pred = classes[:, 0], classes[:, 1]

    def statistic(counts: Floats) -> Floats:
        support, predicted, hits = counts @ y_true, counts @ y_pred, counts @ (y_true * y_pred)
        f1 = np.divide(2 * hits, support + predicted, out=np.zeros_like(hits), where=support + predicted > 0)
        return f1.sum(axis=-1, where=support > 0) / (support > 0).sum(axis=-1)

    return statistic


def exact(y_true: Sequence[Any], y_pred: Sequence[Any]) -> NDArray[np.bool_]:
    """Compare for equality, [n]."""
    return np.array([p == t for t, p in zip(y_true, y_pred, strict=True)], bool)


def similarity(y_true: Sequence[Any], y_pred: Sequence[Any]) -> Floats:
    """Measure 1 - normalised Levenshtein distance, [n]; 0 for a failure."""
    pairs = zip(y_true, y_pred, strict=True)
    return np.array([0.0 if p is None else Levenshtein.normalized_similarity(str(t), str(p)) for t, p in pairs])


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


def close(y_true: Sequence[Any], y_pred: Sequence[Any]) -> NDArray[np.bool_]:
    """Test for a number within `CLOSE` of the truth, [n]."""
    return relative_errors(y_true, y_pred) <= CLOSE + 1e-9


# The table


@dataclass(frozen=True)
class Metric:
    """A figure of a field; an entry in `METRICS` is all that it takes."""

    kind: str
    """Kind of the fields that have it: `text`, `category` or `number`; `answer` where it is of the whole answer."""
    label: str
    help: str
    """Explanation in a sentence or two, for the report."""
    rows: Callable[[Sequence[Any], Sequence[Any]], NDArray[Any]]
    """Truths and predictions (None: a failure) of a column, [n] each -> what each row contributes, [n, ...]."""
    over: Callable[[NDArray[Any]], Statistic] = mean
    higher_is_better: bool = True
    share: bool = True
    """Shown as a percentage; False for a number in the field's own unit, which knows no largest error."""
    right: bool = False
    """The share of right values of its kind: `rows` is a test."""
    primary: bool = False
    """The one figure of a kind of field that headlines, comparisons and the check of the pictures go by."""


METRICS: dict[str, Metric] = {
    "parse_rate": Metric(
        "answer",
        "parsed",
        "Share of answers that could be read back as fields. One that could not counts as wrong everywhere.",
        lambda y_true, y_pred: np.array([p is not None for p in y_pred]),
        right=True,
    ),
    "exact": Metric(
        "text",
        "exact",
        "Share of rows whose text equals the truth in every character.",
        exact,
        right=True,
        primary=True,
    ),
    "similarity": Metric(
        "text",
        "similarity",
        "How much of the text agrees on average: 1 less the share of characters to change (Levenshtein).",
        similarity,
    ),
    "accuracy": Metric(
        "category", "accuracy", "Share of rows in the right category.", exact, right=True, primary=True
    ),
    "macro_f1": Metric(
        "category",
        "macro F1",
        "Precision and recall in one figure, averaged over categories, so that rare ones count as much as frequent "
        "ones.",
        one_hot,
        macro_f1,
    ),
    "mae": Metric(
        "number",
        "mean error",
        "How far off the number is on average, in its own unit. A few large errors weigh heavily.",
        absolute_errors,
        higher_is_better=False,
        share=False,
    ),
    "mdape": Metric(
        "number",
        "median error",
        "Half of the rows are off by less than this share of the truth.",
        relative_errors,
        median,
        higher_is_better=False,
        primary=True,
    ),
    "within_10pct": Metric(
        "number", "within 10\u00a0%", "Share of rows whose number is at most 10\u00a0% off.", close, right=True
    ),
}
"""Name in `metrics.json` -> metric, in the order of every table."""


def metrics_of(kind: str) -> dict[str, Metric]:
    """Select the metrics of a kind of field."""
    return {name: metric for name, metric in METRICS.items() if metric.kind == kind}


def primary(kind: str) -> str:
    """Name the primary metric of a kind of field."""
    return next(name for name, metric in metrics_of(kind).items() if metric.primary)


def share_right(kind: str) -> str:
    """Name the metric of a kind of field that is the share of right values."""
    return next(name for name, metric in metrics_of(kind).items() if metric.right)


def figure_names(kinds: Mapping[str, str]) -> list[str]:
    """List the validation figures of fields by their kinds: `loss`, `parse_rate`, `title.exact`, ..."""
    return ["loss", *metrics_of("answer"), *(f"{name}.{m}" for name, kind in kinds.items() for m in metrics_of(kind))]


def higher_is_better(figure: str) -> bool:
    """Tell the direction of a figure of `figure_names`, or of a metric."""
    return figure != "loss" and METRICS[figure.rpartition(".")[2]].higher_is_better


# Scores


def score(
    kinds: Mapping[str, str],
    truths: Sequence[Row],
    predictions: Sequence[Row | None],
    products: Products = None,
    resamples: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Estimate `{"parse_rate": Figure, "fields": {name: {metric: Figure}}}` over the metrics of each column's kind.

    Each column is scored on the rows that have a truth of it; one that no row has is `{}`.
    Figures are over rows, intervals over products: exact for shares of right values, bootstrap for the rest. A figure
    between 0 and 1 on which all resamples agree has the interval of a share.
    """
    if len(truths) != len(predictions) or not truths:
        raise ValueError(f"{len(truths)} truths and {len(predictions)} predictions: give one for one, at least one")
    fields: dict[str, dict[str, Figure]] = {}
    for name, kind in kinds.items():
        found = fields[name] = {}
        if not (rows := rows_with(name, truths)):
            continue
        y_true, y_pred = [truths[i] for i in rows], [predictions[i] for i in rows]
        own = None if products is None else [products[i] for i in rows]
        found |= bootstrap(statistics(name, kind, y_true, y_pred), len(rows), own, resamples, seed)
        for metric, entry in metrics_of(kind).items():
            if entry.right:
                found[metric] = share(entry.rows(*_columns(name, y_true, y_pred)), own)
            elif entry.share and entry.higher_is_better and found[metric]["low"] == found[metric]["high"]:
                found[metric] = share(np.full(len(rows), found[metric]["value"]), own)
    parsed = METRICS["parse_rate"].rows(truths, predictions)
    return {"parse_rate": share(parsed, products), "fields": fields}


def rows_with(name: str, truths: Sequence[Row]) -> list[int]:
    """Select the rows that have a truth of a column."""
    return [i for i, row in enumerate(truths) if row[name] is not None]


def statistics(
    name: str, kind: str, truths: Sequence[Row], predictions: Sequence[Row | None]
) -> dict[str, Statistic]:
    """Make the figures of a column over any resample of rows that all have a truth: `{metric: Statistic}`."""
    columns = _columns(name, truths, predictions)
    return {metric: entry.over(entry.rows(*columns)) for metric, entry in metrics_of(kind).items()}


def differences(
    kinds: Mapping[str, str],
    truths: Sequence[Row],
    first: Sequence[Row | None],
    other: Sequence[Row | None],
    products: Products = None,
    resamples: int = 10_000,
) -> dict[str, dict[str, Figure]]:
    """Figures of `other` less those of `first` on the same rows: `{name: {metric: Figure with its two-sided "p"}}`.

    Paired bootstrap (Efron and Tibshirani, 1993). What makes a row hard is hard for both, and falls out. Two made-up
    products, one that only the first has right and one that only the other has, keep the interval from closing up and
    `p` from being small on a handful of rows (as Agresti and Min, 2005, do for shares). A metric that is no share,
    and knows no largest error, does without. A column goes by the rows that have a truth of it, and is `{}` without.
    """
    numbers = [*range(len(truths))] if products is None else [*products]
    found: dict[str, dict[str, Figure]] = {}
    for name, kind in kinds.items():
        known = rows_with(name, truths)
        one, two = ([rows[i] for i in known] for rows in (first, other))
        y_true, own = [truths[i] for i in known], [numbers[i] for i in known]
        found[name] = _differences(name, kind, y_true, one, two, own, resamples) if known else {}
    return found


def _differences(
    name: str,
    kind: str,
    truths: Sequence[Row],
    first: Sequence[Row | None],
    other: Sequence[Row | None],
    products: Sequence[object],
    resamples: int,
) -> dict[str, Figure]:
    rows = len(truths)
    plain = statistics(name, kind, [*truths, *truths], [*first, *other])
    each = max(1, round(rows / len(set(products))))
    extra, right, wrong = [truths[0]] * (2 * each), [truths[0]] * each, [None] * each
    padded = statistics(name, kind, [*truths, *extra] * 2, [*first, *right, *wrong, *other, *wrong, *right])
    made_up = [("made up", n // each) for n in range(2 * each)]
    unbounded = {metric: plain[metric] for metric in padded if not METRICS[metric].share}
    found = paired(padded, rows + len(extra), [*products, *made_up], len(extra), resamples)
    return found | paired(unbounded, rows, products, resamples=resamples)


def correctness(name: str, kind: str, truths: Sequence[Row], predictions: Sequence[Row | None]) -> NDArray[np.bool_]:
    """Test each value of a column, [n], of rows that have a truth: text, category exact, number within `CLOSE`."""
    return METRICS[share_right(kind)].rows(*_columns(name, truths, predictions)) if truths else np.zeros(0, bool)


def _columns(name: str, truths: Sequence[Row], predictions: Sequence[Row | None]) -> tuple[list[Any], list[Any]]:
    return [row[name] for row in truths], [None if row is None else row[name] for row in predictions]


# Confidence


def reliability(
    confidence: Floats, right: NDArray[np.bool_], products: Products = None, bins: int = 10
) -> list[dict[str, Any]]:
    """Group `[{"low", "high", "rows", "confidence", "right": Figure}]`: mean confidence and share right by bin.

    Bins are of equal width. In simulations bins of equal mass found bad calibration no more often, and showed more
    error where there was none, above all where confidences lie close together.
    """
    index, cluster = _bins(confidence, bins), clusters(products, len(right))
    return [
        {
            "low": n / bins,
            "high": (n + 1) / bins,
            "rows": int((index == n).sum()),
            "confidence": float(confidence[index == n].mean()),
            "right": share(right[index == n], cluster[index == n].tolist()),
        }
        for n in np.unique(index).tolist()
    ]


def calibration_error(
    confidence: Floats,
    right: NDArray[np.bool_],
    products: Products = None,
    bins: int = 10,
    resamples: int = 1000,
    seed: int = 0,
) -> Figure:
    """Estimate the expected calibration error (Naeini et al., 2015): the mean gap between confidence and share right.

    It is never 0 on finitely many rows: chance alone opens gaps (Kumar et al., 2019), and resampling opens them
    again, so that the interval lies high. Ten bins keep that small.
    """
    gaps = np.zeros((len(confidence), bins))
    gaps[np.arange(len(confidence)), _bins(confidence, bins)] = confidence - right

    def statistic(counts: Floats) -> Floats:
        return np.abs(counts @ gaps).sum(axis=-1) / counts.sum(axis=-1)

    return bootstrap({"ece": statistic}, len(gaps), products, resamples, seed)["ece"]


def _bins(confidence: Floats, bins: int) -> NDArray[np.intp]:
    return np.minimum((confidence * bins).astype(np.intp), bins - 1)


def acceptance(confidence: Floats, right: NDArray[np.bool_], points: int) -> list[tuple[float, int, int]]:
    """Thresholds from strict to lax, [(confidence, how many rows have at least that, how many of those are wrong)].

    Rows of one confidence come together; at most `points` points.
    """
    values, group = np.unique(-confidence, return_inverse=True)
    rows = np.cumsum(np.bincount(group, minlength=len(values)))
    wrong = np.cumsum(np.bincount(group, weights=~right, minlength=len(values)))
    kept = np.unique(np.linspace(0, len(values) - 1, min(points, len(values))).round().astype(int))
    return [(-float(values[i]), int(rows[i]), int(wrong[i])) for i in kept]


def interval_coverage(truths: Floats, lows: Floats, highs: Floats, products: Products = None) -> Figure:
    """Share of truths within their bounds, every product counting once; bounds that are NaN hold nothing."""
    return share((lows <= truths) & (truths <= highs), products, product_weights(products, len(truths)))


def review_outcome(
    confidence: Floats, right: NDArray[np.bool_], threshold: float | None, products: Products = None
) -> dict[str, Figure | None]:
    """Estimate `{"accepted": share of all, "error": share of wrong ones among those}`, every product counting once.

    A product's photos share its weight, since the promise is about products: it is what comes of one photo of each,
    drawn at random. None accepts nothing; the error is None where nothing is accepted.
    """
    accepted = confidence >= (math.inf if threshold is None else threshold)
    cluster, weights = clusters(products, len(right)), product_weights(products, len(right))
    wrong = None
    if accepted.any():
        wrong = share(~right[accepted], cluster[accepted].tolist(), weights[accepted])
    return {"accepted": share(accepted, products, weights), "error": wrong}


# Baselines


def majority(kinds: Mapping[str, str], train: Sequence[Row], rows: int) -> list[Row]:
    """Repeat the most frequent text and category (of a tie the first in alphabetical order) and the median number.

    None, which is wrong, stands for a column that no training row has.
    """
    constant: dict[str, object] = {}
    for name, kind in kinds.items():
        counts = Counter(value for row in train if (value := row[name]) is not None)
        most = min(counts, key=lambda value: (-counts[value], str(value)), default=None)
        numbers = [float(value) for value in counts.elements()] if kind == "number" else []  # pyright: ignore[reportArgumentType]
        constant[name] = float(np.median(numbers)) if numbers else most
    return [constant] * rows


def nearest_neighbour(train: Sequence[Row], train_features: NDArray, features: NDArray) -> list[Row]:
    """Copy to every row the values of the training picture with the nearest features [rows, d], by Euclid.

    A value is that of the nearest picture whose row has the column; None, which is wrong, where no row has.
    """
    nearest: dict[tuple[int, ...], list[int]] = {}  # by the training rows that have a column
    copied: list[dict[str, object]] = [{} for _ in features]
    for name in train[0]:
        known = tuple(rows_with(name, train))
        if known not in nearest:
            nearest[known] = _nearest(np.array(known, np.intp), train_features, features) if known else []
        for row, i in zip(copied, nearest[known] or [None] * len(copied), strict=True):
            row[name] = None if i is None else train[i][name]
    return [*copied]


def _nearest(known: NDArray[np.intp], train_features: NDArray, features: NDArray) -> list[int]:
    index = NearestNeighbors(n_neighbors=1).fit(train_features[known])
    return known[index.kneighbors(features, return_distance=False)[:, 0]].tolist()
