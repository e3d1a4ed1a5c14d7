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

from catalens.confidence import acceptance
from catalens.config import NumberSpec, PromptSpec
from catalens.distributions import Distribution
from catalens.inference.calibration import (
    STEPS,
    Bound,
    Calibration,
    FieldCalibration,
    Shape,
    confidences,
    frame,
    log_odds,
)
from catalens.inference.records import FieldScore
from catalens.intervals import Floats
from catalens.metrics import correctness, rows_with

SLOPE_DEVIATION = 0.5
"""How far a slope is from 1, before any row is seen."""
FOLDS, FEWEST = 5, 60
"""Parts of the rows by which shapes of intervals are compared, and the fewest rows for that."""
DOUBT = 2.33
"""Standard errors by which another shape has to be narrower: one in a hundred that is not would be taken."""

Row = Mapping[str, Any]


def fit_calibration(
    prompt: PromptSpec,
    truths: Sequence[Row],
    predictions: Sequence[Row | None],
    scores: Sequence[Mapping[str, FieldScore]],
    interval: float = 0.9,
    candidates: int = 1,
    distributions: Sequence[Mapping[str, Distribution]] | None = None,
    number: NumberSpec = NumberSpec(),  # noqa: B008
) -> Calibration:
    """Learn a calibration from answers to rows that training never saw; any number of rows will do, even none.

    Rows are of one product each. `scores` are by column, one mapping a row; a row whose prediction is None has no
    values to be sure of and is left out of the fits, as is one without a truth of the field. `interval` is how often
    an interval is to hold the truth, `candidates` the checkpoints of which the rows chose this one, `distributions`
    by column what numbers were chosen from, `number` how, and when they are right.
    """
    fields: dict[str, FieldCalibration] = {}
    for field in prompt.fields:
        answered = [i for i in rows_with(field.column, truths) if predictions[i] is not None]
        y_true, y_pred = [truths[i] for i in answered], [predictions[i] for i in answered]
        right = correctness(field.column, field.kind, y_true, y_pred, number.tolerance)
        own = [scores[i][field.column] for i in answered]
        orders = (False, True) if field is not prompt.fields[0] else (False,)
        fits = {joint: _fit_logistic(log_odds(field.kind, own, joint), right) for joint in orders}
        joint = min(orders, key=lambda one: fits[one][2])
        slope, offset, _ = fits[joint]
        bound = None
        if field.kind == "number":
            known = [distributions[i].get(field.column) if distributions else None for i in answered]
            pairs = [(t[field.column], p[field.column]) for t, p in zip(y_true, y_pred, strict=True) if p]
            bound = _conformal_bound(pairs, known, interval, candidates)
        sure = confidences(slope, offset, log_odds(field.kind, own, joint))
        fields[field.column] = FieldCalibration(
            kind=field.kind,
            slope=slope,
            offset=offset,
            joint=joint,
            orders=len(orders),
            steps=tuple(acceptance(sure, right, STEPS)),
            bound=bound,
        )
    return Calibration(
        rows=len(truths),
        products=len(truths),
        candidates=candidates,
        interval=interval,
        number=number,
        fields=fields,
    )


def _fit_logistic(odds: NDArray[np.float64], right: NDArray[np.bool_]) -> tuple[float, float, float]:
    """Fit slope and offset of a logistic function to Platt's smoothed labels; the third is the loss that is left.

    Before any row is seen the slope is normal around 1, the model's own probabilities.
    """
    if not len(odds):
        return 1.0, 0.0, 0.0
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
    best = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=[(None, None), (0, None)])
    height, slope = best.x
    return float(slope), float(height - slope * middle), float(best.fun)


def _conformal_bound(
    pairs: Sequence[tuple[float, float]],
    distributions: Sequence[Distribution | None],
    interval: float,
    candidates: int,
) -> Bound | None:
    """Bound the errors of (truth, prediction) pairs [n]; None where the rank is beyond the last finite error.

    Errors are ratios, since prices err in shares; where some truth is 0 or less they are distances. A shape other
    than `even` is chosen where it is narrower beyond doubt, on rows that it was not fitted to.
    """
    if _conformal_rank(len(pairs), interval, candidates) is None:
        return None
    by = "ratio" if all(truth > 0 for truth, _ in pairs) else "distance"
    shapes: list[Shape] = ["even"]
    if all(distributions) and len(pairs) >= FEWEST:
        shapes = ["even", "spread", "quantiles"]
    errors = {shape: _errors(by, shape, pairs, distributions) for shape in shapes}
    widths = {shape: _widths(*errors[shape], interval, candidates) for shape in shapes}
    chosen: Shape = "even"
    for shape in shapes[1:]:
        saved = widths[chosen] - widths[shape]
        if np.isfinite(saved).all() and saved.mean() > DOUBT * saved.std() / math.sqrt(len(saved)):
            chosen = shape
    size = _size(errors[chosen][0], interval, candidates)
    if not math.isfinite(size):
        return None
    return Bound(by=by, shape=chosen, size=math.exp(min(size, 60.0)) if by == "ratio" else size)


def _errors(
    by: str, shape: str, pairs: Sequence[tuple[float, float]], distributions: Sequence[Distribution | None]
) -> tuple[Floats, Floats, Floats]:
    """Errors [n] in units, the units [n], and the widths [n] of what the bounds begin from."""
    errors, units, bare = [], [], []
    scale = math.log if by == "ratio" else float
    for (truth, value), distribution in zip(pairs, distributions, strict=True):
        begun = frame(by, shape, value, distribution)
        low, high, unit = begun or (math.nan, math.nan, 1.0)
        errors.append(max(scale(low) - scale(truth), scale(truth) - scale(high)) / unit if begun else math.inf)
        units.append(unit)
        bare.append(scale(high) - scale(low))
    return np.array(errors), np.array(units), np.array(bare)


def _widths(errors: Floats, units: Floats, bare: Floats, interval: float, candidates: int) -> Floats:
    """Widths [n] of intervals of rows that did not take part in fitting them: fold by fold."""
    fold, widths = np.arange(len(errors)) % FOLDS, np.empty(len(errors))
    for n in range(FOLDS):
        size = _size(errors[fold != n], interval, candidates)
        widths[fold == n] = bare[fold == n] + 2 * size * units[fold == n]
    return widths


def _size(errors: Floats, interval: float, candidates: int) -> float:
    """Conformal quantile of errors, infinite where the rows are too few."""
    rank = _conformal_rank(len(errors), interval, candidates)
    return math.inf if rank is None else float(np.sort(errors)[rank - 1])


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
