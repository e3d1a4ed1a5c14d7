"""Reliability of confidences, intervals and distributions, on rows with a truth.

calibration_error(confidence, right)                 {"value": 0.017, "low": 0.012, "high": 0.041}
acceptance(confidence, right, points=100)            [(0.999, 12, 0), (0.997, 31, 1), ...]
crps(truths, values, probabilities)                  [4.1, 0.0, ...], in the number's unit
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catalens.intervals import Figure, Floats, Products, bootstrap, clusters, product_weights, share

BINS = 10
"""Of confidences from 0 to 1."""


def reliability(confidence: Floats, right: NDArray[np.bool_], products: Products = None) -> list[dict[str, Any]]:
    """Group `[{"low", "high", "rows", "confidence", "right": Figure}]`: mean confidence and share right by bin.

    Bins are of equal width. In simulations bins of equal mass found bad calibration no more often, and showed more
    error where there was none, above all where confidences lie close together.
    """
    index, cluster = _bins(confidence), clusters(products, len(right))
    return [
        {
            "low": n / BINS,
            "high": (n + 1) / BINS,
            "rows": int((index == n).sum()),
            "confidence": float(confidence[index == n].mean()),
            "right": share(right[index == n], cluster[index == n].tolist()),
        }
        for n in np.unique(index).tolist()
    ]


def calibration_error(
    confidence: Floats, right: NDArray[np.bool_], products: Products = None, resamples: int = 1000
) -> Figure:
    """Estimate the expected calibration error (Naeini et al., 2015): the mean gap between confidence and share right.

    It is never 0 on finitely many rows: chance alone opens gaps (Kumar et al., 2019), and resampling opens them
    again, so that the interval lies high. Ten bins keep that small.
    """
    gaps = np.zeros((len(confidence), BINS))
    gaps[np.arange(len(confidence)), _bins(confidence)] = confidence - right

    def statistic(counts: Floats) -> Floats:
        return np.abs(counts @ gaps).sum(axis=-1) / counts.sum(axis=-1)

    return bootstrap({"ece": statistic}, len(gaps), products, resamples)["ece"]


def _bins(confidence: Floats) -> NDArray[np.intp]:
    return np.minimum((confidence * BINS).astype(np.intp), BINS - 1)


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
    """Estimate `{"accepted", "error", "unchanged"}`, every product counting once.

    `accepted` is the share of all, `error` that of wrong ones among those, `unchanged` that of right ones among the
    others, which a person would leave as they are. A product's photos share its weight, since the promise is about
    products: it is what comes of one photo of each, drawn at random. None accepts nothing; of nothing there is no
    share, None.
    """
    accepted = confidence >= (math.inf if threshold is None else threshold)
    cluster, weights = clusters(products, len(right)), product_weights(products, len(right))

    def of(rows: NDArray[np.bool_], hits: NDArray[np.bool_]) -> Figure | None:
        return share(hits[rows], cluster[rows].tolist(), weights[rows]) if rows.any() else None

    return {
        "accepted": share(accepted, products, weights),
        "error": of(accepted, ~right),
        "unchanged": of(~accepted, right),
    }


def crps(truth: float, values: Floats, probabilities: Floats) -> float:
    """Measure the continuous ranked probability score (Matheson and Winkler, 1976) of a discrete distribution.

    `values` [k] with `probabilities` [k], which need not add up to 1; in their unit, and the absolute error of a
    distribution of one value.
    """
    order = np.argsort(values, kind="stable")
    values, below = values[order], np.cumsum(probabilities[order]) / probabilities.sum()
    points = np.sort(np.append(values, truth))
    forecast = np.concatenate([[0.0], below])[np.searchsorted(values, points[:-1], side="right")]
    return float(((forecast - (points[:-1] >= truth)) ** 2 * np.diff(points)).sum())
