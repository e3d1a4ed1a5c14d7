"""Tables of the report: who is wrong where, what is taken for what, what may be accepted unseen, what it costs.

    groups(fields, rows)      Full Price 53 to 97 | 71 rows | Product wrong 4.2 % (1.4-11.7) | ...
    confusion(field, rows)    BAGS 21 | BAGS 20, COATS 1
    review(metrics, fields)   Product | at most 5.0 % wrong | accept from 83.1 % | accepts 91.0 % | wrong 2.1 %

Each is what its part of `report.html.j2` puts into cells.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np

from catalens.config import FieldSpec
from catalens.evaluation.gallery import most_frequent
from catalens.evaluation.judged import Judged, as_float, distance, is_right
from catalens.evaluation.plots import SERIES, reliability, risk_coverage
from catalens.evaluation.wording import between, number, percent
from catalens.intervals import bootstrap, median, share

CONFUSION_CLASSES = 12
GROUPS = 20
BANDS = 5
FEWEST = 6
"""Products that a 95 % interval of a median takes: of fewer, all lie on one side of it too often (2 of 2^5)."""


class Range(NamedTuple):
    """A figure with its interval, as text and as places on its column's scale from 0 to 1."""

    text: str
    interval: str
    at: float
    low: float
    high: float


def groups(fields: Sequence[FieldSpec], rows: Sequence[Judged]) -> list[dict[str, Any]]:
    """Error by band of each number and by value of each category, beside that of all rows.

    Of a number the median error, where a failed answer counts as 100 %, with a bootstrap interval from `FEWEST`
    products on; of texts and categories the share that is wrong, with the exact one; both over products.
    """
    tables = []
    for field in fields:
        if field.kind == "text" or len(named := _grouped(field, rows)) < 2:
            continue
        lines = [("all rows", list(rows)), *named]
        measured = [[_measure(column, members) for column in fields] for _, members in lines]
        scales = [max(line[n][2] for line in measured) or 1.0 for n in range(len(fields))]
        tables.append(
            {
                "field": field,
                "columns": [(f.label, "median error" if f.kind == "number" else "wrong") for f in fields],
                "lines": [
                    (name, len(members), [_range(*cell, scale) for cell, scale in zip(line, scales, strict=True)])
                    for (name, members), line in zip(lines, measured, strict=True)
                ],
            }
        )
    return tables


def _grouped(field: FieldSpec, rows: Sequence[Judged]) -> list[tuple[str, list[Judged]]]:
    """Rows by category, the most frequent first and the rest together; by number in bands of about as many rows."""
    truths = [row.truth[field.column] for row in rows]
    if field.kind == "category":
        names = most_frequent(Counter(map(str, truths)), GROUPS)
        rest = f"{len(set(map(str, truths))) - len(names)} others"
        place = [str(truth) if str(truth) in names else rest for truth in truths]
        return [(name, found) for name in [*names, rest] if (found := _members(rows, place, name))]
    values = np.array([as_float(truth) for truth in truths])
    edges = np.unique(np.quantile(values, np.linspace(0, 1, BANDS + 1)[1:-1], method="nearest"))
    texts = [f"{edge:,.12g}" for edge in edges]
    names = [
        f"under {texts[0]}",
        *(f"{a} to {b}" for a, b in pairwise(texts)),
        f"from {texts[-1]}",
    ]
    place = [names[n] for n in np.searchsorted(edges, values, side="right")]
    return [(name, found) for name in names if (found := _members(rows, place, name))]


def _members(rows: Sequence[Judged], place: Sequence[str], name: str) -> list[Judged]:
    return [row for row, at in zip(rows, place, strict=True) if at == name]


def _measure(field: FieldSpec, rows: Sequence[Judged]) -> tuple[float, float, float, str]:
    """Error of a field over rows: value, low, high, and the interval as text; none where there is no interval."""
    name, products = field.column, [row.id for row in rows]
    if field.kind != "number":
        figure = share(np.array([not is_right(field, row) for row in rows]), products)
    else:
        shares = [
            1.0 if row.prediction is None else distance(field, row.truth[name], row.prediction[name]) for row in rows
        ]
        figure = bootstrap({name: median(np.array(shares))}, len(rows), products)[name]
        if len(set(products)) < FEWEST:
            return figure["value"], figure["value"], figure["value"], ""
    return figure["value"], figure["low"], figure["high"], between(figure["low"], figure["high"])


def _range(value: float, low: float, high: float, interval: str, scale: float) -> Range:
    return Range(percent(value), interval, value / scale, low / scale, high / scale)


def confusion(field: FieldSpec, rows: Sequence[Judged]) -> dict[str, Any]:
    """Counts of (truth, prediction) over the most frequent categories, everything else in one column."""
    pairs = Counter(
        (str(row.truth[field.column]), None if row.prediction is None else str(row.prediction[field.column]))
        for row in rows
    )
    truths = Counter(str(row.truth[field.column]) for row in rows)
    names = most_frequent(truths, CONFUSION_CLASSES)
    table = []
    for name in names:
        known = [pairs[name, other] for other in names]
        failed = pairs[name, None]
        counts = [*known, truths[name] - sum(known) - failed, failed]
        cells = [
            (count, count / truths[name], other == name)
            for count, other in zip(counts, [*names, "", ""], strict=True)
        ]
        table.append({"name": name, "total": truths[name], "cells": cells})
    covered = sum(truths[name] for name in names)
    return {
        "field": field,
        "names": names,
        "table": table,
        "classes": len(truths),
        "covered": percent(covered / len(rows)),
    }


# Confidence


def confidence(metrics: Mapping[str, Any], fields: Sequence[FieldSpec]) -> dict[str, Any] | None:
    """Reliability of each field, risk-coverage curves, intervals; None where nothing was measured."""
    known = (metrics.get("confidence") or {}).get("fields") or {}
    measured = [(field, known[field.column]) for field in fields if known.get(field.column)]
    if not measured:
        return None
    curves = [
        (field, colour, found["risk_coverage"])
        for (field, found), colour in zip(measured, (SERIES * len(measured)), strict=False)
        if found.get("risk_coverage")
    ]
    return {
        "calibrated_on": metrics["confidence"].get("calibrated_on"),
        "panels": [
            (field, _with_interval(found["ece"]), reliability(found["bins"]))
            for field, found in measured
            if found.get("bins")
        ],
        "curves": risk_coverage([(colour, points) for _, colour, points in curves]) if curves else None,
        "legend": [(field.label, colour, _error_at_half(points)) for field, colour, points in curves],
        "intervals": [
            (
                field,
                percent(one["nominal"]),
                _with_interval(one["coverage"]),
                None if one["width"] is None else percent(one["width"]),
            )
            for field, found in measured
            if (one := found.get("interval"))
        ],
    }


def _error_at_half(points: Sequence[Mapping[str, float]]) -> str:
    """The error where half of the rows are accepted."""
    return percent(min(points, key=lambda point: abs(point["coverage"] - 0.5))["error"])


def review(metrics: Mapping[str, Any], fields: Sequence[FieldSpec]) -> list[dict[str, Any]]:
    """A line a field: what was promised, from which confidence on a value is accepted, and what came of it."""
    rules = (metrics.get("review") or {}).get("fields") or {}
    lines = []
    for field in fields:
        if rule := rules.get(field.column):
            error = rule.get("error")
            lines.append(
                {
                    "field": field,
                    "target": percent(rule["target"]),
                    "threshold": None if rule["threshold"] is None else percent(rule["threshold"]),
                    "accepted": _with_interval(rule["accepted"]),
                    "error": _with_interval(error) if error else None,
                    "verdict": _verdict(rule["target"], error) if error else "",
                }
            )
    return lines


def _verdict(target: float, error: Mapping[str, float]) -> str:
    if error["value"] <= target:
        return "kept"
    return "missed" if error["low"] > target else "chance"


def _with_interval(figure: Mapping[str, float]) -> tuple[str, str]:
    return percent(figure["value"]), between(figure["low"], figure["high"])


# Cost

COSTS: Sequence[tuple[str, str, Callable[[float], str]]] = (
    ("tokens_in", "prompt tokens a picture", number),
    ("tokens_out", "tokens written", number),
    ("steps", "decoding steps, written freely", number),
    ("constrained_steps", "decoding steps, constrained", number),
    ("ms_per_picture", "a picture, written freely", lambda value: f"{number(value)}\u00a0ms"),
    ("pictures_per_second", "pictures a second", number),
)


def costs(metrics: Mapping[str, Any]) -> list[tuple[str, str]]:
    """(figure, what it is) of everything that was measured."""
    known = metrics.get("cost") or {}
    return [(text(known[key]), name) for key, name, text in COSTS if known.get(key) is not None]
