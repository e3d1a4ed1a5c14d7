"""Learning of a calibration, by Platt scaling and split-conformal bounds, as `calibration.py` tells.

fit_calibration(prompt, truths, predictions, scores).threshold("title", 0.05)
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize
from scipy.special import expit, logit
from scipy.stats import beta

from catalens.config import PromptSpec
from catalens.inference.calibration import STEPS, Bound, Calibration, FieldCalibration, confidences, log_odds
from catalens.inference.records import FieldScore
from catalens.metrics import acceptance, correctness, rows_with

SLOPE_DEVIATION = 0.5
"""How far a slope is from 1, before any row is seen."""

Row = Mapping[str, Any]


def fit_calibration(
    prompt: PromptSpec,
    truths: Sequence[Row],
    predictions: Sequence[Row | None],
    scores: Sequence[Mapping[str, FieldScore]],
    interval: float = 0.9,
    candidates: int = 1,
) -> Calibration:
    """Learn a calibration from answers to rows that training never saw; any number of rows will do, even none.

    Rows are of one product each. `scores` are by column, one mapping a row; a row whose prediction is None has no
    values to be sure of and is left out of the fits, as is one without a truth of the field. `interval` is how often
    an interval is to hold the truth, `candidates` the checkpoints of which the rows chose this one.
    """
    fields: dict[str, FieldCalibration] = {}
    for field in prompt.fields:
        answered = [i for i in rows_with(field.column, truths) if predictions[i] is not None]
        y_true, y_pred = [truths[i] for i in answered], [predictions[i] for i in answered]
        right = correctness(field.column, field.kind, y_true, y_pred)
        own = log_odds(field.kind, [scores[i][field.column] for i in answered])
        slope, offset = _fit_logistic(own, right)
        bound = None
        if field.kind == "number":
            pairs = [(t[field.column], p[field.column]) for t, p in zip(y_true, y_pred, strict=True) if p]
            bound = _conformal_bound(np.array(pairs, float).reshape(-1, 2), interval, candidates)
        steps = tuple(acceptance(confidences(slope, offset, own), right, STEPS))
        fields[field.column] = FieldCalibration(kind=field.kind, slope=slope, offset=offset, steps=steps, bound=bound)
    return Calibration(
        rows=len(truths), products=len(truths), candidates=candidates, interval=interval, fields=fields
    )


def _fit_logistic(odds: NDArray[np.float64], right: NDArray[np.bool_]) -> tuple[float, float]:
    """Slope and offset of the likeliest logistic function on Platt's smoothed labels.

    Before any row is seen the slope is normal around 1, the model's own probabilities.
    """
    if not len(odds):
        return 1.0, 0.0
    good, bad = int(right.sum()), int((~right).sum())
    labels = np.where(right, (good + 1) / (good + 2), 1 / (bad + 2))
    middle = float(odds.mean())

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        """Negative log posterior of (height in the middle, slope), and its gradient."""
        height, slope = parameters
        at = height + slope * (odds - middle)
        gaps, pull = expit(at) - labels, (slope - 1) / SLOPE_DEVIATION**2
        value = np.sum(np.logaddexp(0, at) - labels * at) + pull * (slope - 1) / 2
        return float(value), np.array([gaps.sum(), gaps @ (odds - middle) + pull])

    start = np.array([logit(labels.mean()), 1.0])
    height, slope = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(None, None), (0, None)]).x
    return float(slope), float(height - slope * middle)


def _conformal_bound(pairs: NDArray[np.float64], interval: float, candidates: int) -> Bound | None:
    """The bound of (truth, prediction) pairs, [n, 2]; None where its rank is beyond the last finite error.

    Errors are ratios, since prices err in shares; where some truth is 0 or less they are distances.
    """
    y_true, y_pred = pairs.T
    rank = _conformal_rank(len(pairs), interval, candidates)
    if rank is None:
        return None
    by = "ratio" if (y_true > 0).all() else "distance"
    if by == "ratio":
        above_zero = np.where(y_pred > 0, y_pred, np.nan)
        errors = np.nan_to_num(np.maximum(y_true / above_zero, above_zero / y_true), nan=np.inf)
    else:
        errors = np.abs(y_true - y_pred)
    size = float(np.sort(errors)[rank - 1])
    return Bound(by=by, size=size) if math.isfinite(size) else None


def _conformal_rank(rows: int, interval: float, candidates: int) -> int | None:
    """The lowest rank whose error bounds a new one as often as `interval` says; None where no rank does.

    A new error is beyond the one of rank r with a probability that is Beta(n + 1 - r, r) over draws of the rows. Of
    k such probabilities, however they depend on one another, the largest exceeds t with at most k times the
    probability of one; so its mean is at most the integral of min(1, k P(one > t)): for k = 1 it is 1 - r / (n + 1).
    """
    ranks = np.arange(1, rows + 1)
    beyond = rows + 1 - ranks
    certain = beta.isf(1 / candidates, beyond, ranks)  # up to here the minimum is 1
    worst = candidates * beyond / (rows + 1) * beta.sf(certain, beyond + 1, ranks)
    enough = np.flatnonzero(worst <= 1 - interval + 1e-9)
    return int(ranks[enough[0]]) if len(enough) else None
