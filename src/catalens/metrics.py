"""Figures with 95 % intervals from (truth, prediction) pairs. `METRICS` names them all.

    truths      [{"title": "Red Tote Bag", "category3_code": "BAGS", "full_price": 129.0}, ...]
    predictions [{"title": "Red Tote Bag", "category3_code": "BAGS", "full_price": 118.0}, None, ...]
    score({"title": "text", ...}, truths, predictions)
    {"parse_rate": {"value": 0.98, "low": 0.95, "high": 1.0}, "record_accuracy": {...},
     "fields": {"title": {"exact": {...}, ...}, ...}}

A prediction is None where the answer did not parse. It counts as wrong everywhere: no match, similarity 0, a class of
its own that is never right, and for a number the largest error that is possible within the range of the truths (where
they are all one number, that number), never the error of a price of 0.

A truth is None where the row lacks the field. A field is scored on the rows that have a truth of it, and has no
figures where none has. A number is right within a `Tolerance`.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from catalens.intervals import Figure, Products, Statistic, bootstrap, mean, median, paired, ratio, share
from catalens.measures import (
    absolute_errors,
    band_edges,
    capped_errors,
    close,
    exact,
    levels,
    log_errors,
    macro_f1,
    one_hot,
    relative_errors,
    same_text,
    similarity,
    symmetric_errors,
    words,
)
from catalens.tolerance import TEN_PER_CENT, Tolerance

Row = Mapping[str, object]
ImageUse = Literal["uses_image", "ignores_image", "undecided"]
"""Outcome of the check of the pictures; undecided where the rows are too few to tell."""


def all_right(
    truths: Sequence[Row], predictions: Sequence[Row | None], kinds: Mapping[str, str], within: Tolerance
) -> NDArray[np.bool_]:
    """Test for rows whose every field is right, of those that have a truth, [n]."""
    right = np.array([row is not None for row in predictions])
    for name, kind in kinds.items():
        if known := rows_with(name, truths):
            y_true, y_pred = _picked(known, truths, predictions)
            right[known] &= correctness(name, kind, y_true, y_pred, within)
    return right


# The table


@dataclass(frozen=True)
class Metric:
    """A figure of a field; an entry in `METRICS` is all that it takes."""

    kind: str
    """Kind of the fields that have it: `text`, `category` or `number`; `answer` where it is of the whole answer."""
    label: str
    help: str
    """Explanation in a sentence or two, for the report."""
    rows: Callable[..., NDArray[Any]]
    """Truths and predictions (None: a failure) of a column, [n] each -> what each row contributes, [n, ...].

    Of a whole answer: rows, the kinds of their fields and the tolerance of numbers."""
    over: Callable[[NDArray[Any]], Statistic] = mean
    higher_is_better: bool = True
    share: bool = True
    """Shown as a percentage; False for a number in the field's own unit, which knows no largest error."""
    right: bool = False
    """The share of right values of its kind: `rows` is a test."""
    primary: bool = False
    """The one figure of a kind of field that headlines, comparisons and the check of the pictures go by."""
    detail: bool = False
    """In files and the report's table, not in a terminal."""
    tolerant: bool = False
    """`rows` takes the tolerance of numbers, `within`; label and help name it where they say `{within}`."""


METRICS: dict[str, Metric] = {
    "parse_rate": Metric(
        "answer",
        "parsed",
        "Share of answers that could be read back as fields. One that could not counts as wrong everywhere.",
        lambda truths, predictions, kinds, within: np.array([row is not None for row in predictions]),
        right=True,
    ),
    "record_accuracy": Metric(
        "answer", "all right", "Share of rows whose every field is right: what nobody would have to touch.", all_right
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
    "token_f1": Metric(
        "text",
        "words F1",
        "Precision and recall of the words in one figure, in any order and case, averaged over rows.",
        words,
        detail=True,
    ),
    "fuzzy": Metric(
        "text",
        "alike",
        "Share of rows whose text is the truth but for case and slips of the pen: more than 90\u00a0% alike.",
        same_text,
        detail=True,
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
    "hierarchical_f1": Metric(
        "category",
        "F1 by level",
        "Precision and recall in one figure over the levels of a category that is a path, such as "
        "Apparel\u00a0>\u00a0Shoes: half of the path right is half right. Without levels it is the micro F1.",
        levels,
        ratio,
        detail=True,
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
    "mape": Metric(
        "number",
        "mean share off",
        "How far off the number is on average, as a share of the truth (MAPE); one row counts 100 times it at most.",
        capped_errors,
        higher_is_better=False,
        detail=True,
    ),
    "smape": Metric(
        "number",
        "SMAPE",
        "How far off the number is on average, as a share of the mean of truth and prediction; at most 200\u00a0%.",
        symmetric_errors,
        higher_is_better=False,
    ),
    "log_mae": Metric(
        "number",
        "log error",
        "How far off the natural logarithm of the number is on average: 0.1 is about 10\u00a0%, up or down alike.",
        log_errors,
        higher_is_better=False,
        share=False,
        detail=True,
    ),
    "within_tolerance": Metric(
        "number",
        "within {within}",
        "Share of rows whose number is at most {within} off.",
        close,
        right=True,
        tolerant=True,
    ),
}
"""Name in `metrics.json` -> metric, in the order of every table."""


def metrics_of(kind: str, within: Tolerance = TEN_PER_CENT) -> dict[str, Metric]:
    """Select the metrics of a kind of field, told and measured by a tolerance of numbers."""
    return {name: tolerating(metric, within) for name, metric in METRICS.items() if metric.kind == kind}


def tolerating(metric: Metric, within: Tolerance) -> Metric:
    """Make the metric that a tolerance gives; the same where it has none."""
    if not metric.tolerant:
        return metric
    told = {name: getattr(metric, name).format(within=within) for name in ("label", "help")}
    return replace(metric, rows=partial(metric.rows, within=within), **told)


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


def is_headline(figure: str) -> bool:
    """Tell whether a figure of `figure_names` sums up: the loss, of the whole answer, the first of a field."""
    metric = METRICS.get(figure.rpartition(".")[2])
    return metric is None or metric.primary or metric.kind == "answer"


# Scores


def score(
    kinds: Mapping[str, str],
    truths: Sequence[Row],
    predictions: Sequence[Row | None],
    products: Products = None,
    resamples: int = 1000,
    seed: int = 0,
    within: Tolerance = TEN_PER_CENT,
) -> dict[str, Any]:
    """Estimate `{"parse_rate": Figure, ..., "fields": {name: {metric: Figure}}}`: the metrics of each column's kind.

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
        y_true, y_pred = _picked(rows, truths, predictions)
        own = None if products is None else [products[i] for i in rows]
        found |= bootstrap(statistics(name, kind, y_true, y_pred, within), len(rows), own, resamples, seed)
        for metric, entry in metrics_of(kind, within).items():
            if entry.right:
                found[metric] = share(entry.rows(*_columns(name, y_true, y_pred)), own)
            elif entry.share and entry.higher_is_better and found[metric]["low"] == found[metric]["high"]:
                found[metric] = share(np.full(len(rows), found[metric]["value"]), own)
    answers = {
        name: share(metric.rows(truths, predictions, kinds, within), products)
        for name, metric in metrics_of("answer").items()
    }
    return answers | {"fields": fields}


def rows_with(name: str, truths: Sequence[Row]) -> list[int]:
    """Select the rows that have a truth of a column."""
    return [i for i, row in enumerate(truths) if row[name] is not None]


def statistics(
    name: str, kind: str, truths: Sequence[Row], predictions: Sequence[Row | None], within: Tolerance = TEN_PER_CENT
) -> dict[str, Statistic]:
    """Make the figures of a column over any resample of rows that all have a truth: `{metric: Statistic}`."""
    columns = _columns(name, truths, predictions)
    return {metric: entry.over(entry.rows(*columns)) for metric, entry in metrics_of(kind, within).items()}


def differences(
    kinds: Mapping[str, str],
    truths: Sequence[Row],
    first: Sequence[Row | None],
    other: Sequence[Row | None],
    products: Products = None,
    resamples: int = 10_000,
    within: Tolerance = TEN_PER_CENT,
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
        if not (known := rows_with(name, truths)):
            found[name] = {}
            continue
        y_true, one, two, own = _picked(known, truths, first, other, numbers)
        plain = statistics(name, kind, y_true * 2, [*one, *two], within)
        each = max(1, round(len(known) / len(set(own))))
        extra, right, wrong = [y_true[0]] * (2 * each), [y_true[0]] * each, [None] * each
        padded = statistics(name, kind, [*y_true, *extra] * 2, [*one, *right, *wrong, *two, *wrong, *right], within)
        made_up = [("made up", n // each) for n in range(2 * each)]
        unbounded = {metric: plain[metric] for metric in padded if not METRICS[metric].share}
        found[name] = paired(padded, len(known) + len(extra), [*own, *made_up], len(extra), resamples)
        found[name] |= paired(unbounded, len(known), own, resamples=resamples)
    return found


def bias_by_band(
    name: str,
    truths: Sequence[Row],
    predictions: Sequence[Row | None],
    products: Products = None,
    resamples: int = 1000,
) -> list[dict[str, Any]]:
    """Estimate `[{"from", "to", "rows", "bias": Figure}]`: the median of (prediction - truth) / |truth| by band.

    Over the rows that have a truth other than 0 and a prediction; a band without any is left out, the first and the
    last one have no `from` and no `to`.
    """
    known = [i for i in rows_with(name, truths) if truths[i][name] and predictions[i] is not None]
    y_true, y_pred = (np.array(column, float) for column in _columns(name, *_picked(known, truths, predictions)))
    own = [i if products is None else products[i] for i in known]
    edges, found = [None, *(band_edges(y_true.tolist()) if known else []), None], []
    for low, high in pairwise(edges):
        inside = np.flatnonzero(
            (y_true >= (-math.inf if low is None else low)) & (y_true < (math.inf if high is None else high))
        )
        if len(inside):
            errors = (y_pred[inside] - y_true[inside]) / np.abs(y_true[inside])
            figure = bootstrap({"bias": median(errors)}, len(inside), [own[i] for i in inside], resamples)["bias"]
            found.append({"from": low, "to": high, "rows": len(inside), "bias": figure})
    return found


def _picked(rows: Sequence[int], *columns: Sequence[Any]) -> list[list[Any]]:
    return [[column[i] for i in rows] for column in columns]


def correctness(
    name: str, kind: str, truths: Sequence[Row], predictions: Sequence[Row | None], within: Tolerance = TEN_PER_CENT
) -> NDArray[np.bool_]:
    """Test each value of a column, [n], of rows that have a truth: text, category exact, number within tolerance."""
    metric = metrics_of(kind, within)[share_right(kind)]
    return metric.rows(*_columns(name, truths, predictions)) if truths else np.zeros(0, bool)


def _columns(name: str, truths: Sequence[Row], predictions: Sequence[Row | None]) -> tuple[list[Any], list[Any]]:
    return [row[name] for row in truths], [None if row is None else row[name] for row in predictions]
