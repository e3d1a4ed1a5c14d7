"""The evaluation as one page that opens offline: `report.html`.

    write_report(Path("runs/demo/evaluation/report.html"), "demo", metrics, recipe.prompt.fields, rows)

`metrics` is the content of `metrics.json`, whose parts may be absent; `rows` one `ScoredRow` for each evaluated row.
Each part of `report.html.j2` has a function here, which makes the text of its cells:

    groups(fields, rows)      Full Price 53 to 97 | 71 rows | Product wrong 4.2 % (1.4-11.7) | ...
    confusion(field, rows)    BAGS 21 | BAGS 20, COATS 1
    review(metrics, fields)   Product | at most 5.0 % wrong | accept from 83.1 % | accepts 91.0 % | wrong 2.1 %
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import numpy as np

from catalens.config import FieldSpec
from catalens.intervals import bootstrap, median, share
from catalens.measures import band_edges, relative_errors
from catalens.metrics import METRICS, Metric, correctness, tolerating
from catalens.pages.base import write_page
from catalens.pages.charts import SERIES, reliability, risk_coverage, scatter
from catalens.pages.format import between, change, exact_number, number, percent, rows_of, truths_of
from catalens.pages.gallery import SCRIPT, gallery, most_frequent
from catalens.pages.scores import costs, noise_floor, score_columns, score_table, tiles, truths_in, verdict
from catalens.predictions import ScoredRow, rows_with, tolerance_of
from catalens.tolerance import Tolerance

CONFUSION_CLASSES = 12
GROUPS = 20
FEWEST = 6
"""Products that a 95 % interval of a median takes: of fewer, all lie on one side of it too often (2 of 2^5)."""
OTHER_COLOUR = "#8b8f98"


def write_report(
    path: Path, run: str, metrics: Mapping[str, Any], fields: Sequence[FieldSpec], rows: Sequence[ScoredRow]
) -> None:
    """Write the page; the same arguments give the same bytes."""
    seconds, within = metrics.get("seconds") or {}, tolerance_of(metrics)
    kinds = ("answer", *dict.fromkeys(field.kind for field in fields))
    write_page(
        path,
        Path(__file__).with_name("report.html.j2"),
        SCRIPT,
        run=run,
        metrics=metrics,
        rows=rows_of(metrics["rows"], metrics["products"]),
        verdict=verdict(metrics, fields),
        left_out=metrics.get("left_out") or [],
        tiles=tiles(metrics, fields),
        columns=_columns(fields, within, False),
        more={
            "columns": _columns(fields, within, True),
            "scores": score_table(metrics, fields, True),
            "floor": noise_floor(metrics, fields, True),
        },
        explained={name: tolerating(metric, within) for name, metric in METRICS.items() if metric.kind in kinds},
        within=within,
        scores=score_table(metrics, fields),
        floor=noise_floor(metrics, fields),
        fields=fields,
        n={field.column: truths_in(metrics, field.column) for field in fields},
        runs=[""],
        plots=[plot for field in fields if field.kind == "number" and (plot := _plot(field, fields, rows))],
        groups=groups(fields, rows),
        confusions=[
            confusion(field, rows) for field in fields if field.kind == "category" and rows_with(field.column, rows)
        ],
        confidence=confidence(metrics, fields),
        bias=bias(metrics, fields),
        absent=absent(metrics, fields),
        constrained=bool(metrics.get("constrained")),
        review=review(metrics, fields),
        promise=(metrics.get("review") or {}).get("confidence"),
        gallery=gallery(fields, [(row,) for row in rows]),
        judged=len(rows),
        failed=sum(row.error is not None or row.free_error is not None for row in rows),
        costs=[(name, texts[0]) for name, texts in costs(metrics)],
        seconds=[(name, number(value)) for name, value in seconds.items() if isinstance(value, int | float)],
    )


def _columns(
    fields: Sequence[FieldSpec], within: Tolerance, detail: bool
) -> list[tuple[FieldSpec | None, dict[str, Metric]]]:
    """Group the columns of a table of scores, by field; None is the whole answer."""
    groups = groupby(score_columns(fields, detail), key=lambda column: column[0])
    return [(field, {name: tolerating(METRICS[name], within) for _, name in some}) for field, some in groups]


def _plot(field: FieldSpec, fields: Sequence[FieldSpec], rows: Sequence[ScoredRow]) -> dict[str, Any] | None:
    """Truth against prediction, coloured by the first category field; None where nothing parsed or has a truth."""
    rows = rows_with(field.column, rows)
    pairs = [(row.truth, row.values) for row in rows if row.values is not None]
    if not pairs:
        return None
    by = next((other for other in fields if other.kind == "category"), None)
    counts = Counter(str(row.truth[by.column]) for row in rows_with(by.column, rows)) if by else Counter()
    colours = dict(zip(most_frequent(counts, len(SERIES)), SERIES, strict=False))
    plot = scatter(
        [float(truth[field.column]) for truth, _ in pairs],
        [float(values[field.column]) for _, values in pairs],
        [colours.get(str(truth[by.column] or ""), OTHER_COLOUR) if by else SERIES[0] for truth, _ in pairs],
    )
    legend = [(name, colour, counts[name]) for name, colour in colours.items()]
    if rest := counts.total() - sum(count for _, _, count in legend):
        legend.append((f"{len(counts) - len(legend)} others", OTHER_COLOUR, rest))
    if by and (unknown := len(rows) - counts.total()):
        legend.append(("none", OTHER_COLOUR, unknown))
    return {"field": field, "plot": plot, "by": by, "legend": legend, "failed": len(rows) - len(pairs)}


def groups(fields: Sequence[FieldSpec], rows: Sequence[ScoredRow]) -> list[dict[str, Any]]:
    """Error by band of each number and by value of each category, beside that of all rows.

    Of a number the median error, where a failed answer counts as 100 %, with a bootstrap interval from `FEWEST`
    products on; of texts and categories the share that is wrong, with the exact one; both over products, and the rows
    that have a truth.
    """
    tables = []
    for field in fields:
        if field.kind == "text" or len(named := _grouped(field, rows)) < 2:
            continue
        lines = [("all rows", list(rows)), *named]
        columns = []
        for column in fields:
            cells = [_error(column, members) for _, members in lines]
            scale = max(high for _, _, (_, _, high) in cells) or 1.0
            columns.append([(text, interval, [at / scale for at in places]) for text, interval, places in cells])
        tables.append(
            {
                "field": field,
                "columns": [(f.label, "median error" if f.kind == "number" else "wrong") for f in fields],
                "lines": [(line[0], len(line[1]), cells) for line, *cells in zip(lines, *columns, strict=True)],
            }
        )
    return tables


def _grouped(field: FieldSpec, rows: Sequence[ScoredRow]) -> list[tuple[str, list[ScoredRow]]]:
    """Rows by category, the most frequent first and the rest together; by number in bands of about as many rows.

    Those that lack the field are in none.
    """
    if not (rows := rows_with(field.column, rows)):
        return []
    truths = [row.truth[field.column] for row in rows]
    if field.kind == "category":
        frequent = most_frequent(Counter(map(str, truths)), GROUPS)
        rest = f"{len(set(map(str, truths))) - len(frequent)} others"
        names, group = [*frequent, rest], [str(truth) if str(truth) in frequent else rest for truth in truths]
    else:
        values = np.array(truths, float)
        edges = band_edges(truths)
        texts = [*map(exact_number, edges)]
        names = [f"under {texts[0]}", *(f"{a} to {b}" for a, b in pairwise(texts)), f"from {texts[-1]}"]
        group = [names[n] for n in np.searchsorted(edges, values, side="right")]
    members = {name: [row for row, of in zip(rows, group, strict=True) if of == name] for name in names}
    return [(name, found) for name, found in members.items() if found]


def _error(field: FieldSpec, rows: Sequence[ScoredRow]) -> tuple[str, str, tuple[float, float, float]]:
    """Error of a field over rows and its interval as text, and (low, value, high), all alike without an interval.

    The number of rows that have a truth stands with the interval, where not all have.
    """
    name, total = field.column, len(rows)
    if not (rows := rows_with(name, rows)):
        return "\u2013", truths_of(0, total), (0.0, 0.0, 0.0)
    products, count = [row.id for row in rows], truths_of(len(rows), total)
    truths, predictions = [row.truth for row in rows], [row.values for row in rows]
    if field.kind == "number":
        errors = relative_errors([t[name] for t in truths], [None if p is None else p[name] for p in predictions])
        errors[[p is None for p in predictions]] = 1.0
        figure = bootstrap({name: median(errors)}, len(rows), products)[name]
        if len(set(products)) < FEWEST:
            return percent(figure["value"]), count, (figure["value"], figure["value"], figure["value"])
    else:
        figure = share(~correctness(name, field.kind, truths, predictions, rows[0].within), products)
    value, interval = _with_interval(figure)
    return value, " \u00b7 ".join(filter(None, [interval, count])), (figure["low"], figure["value"], figure["high"])


def confusion(field: FieldSpec, rows: Sequence[ScoredRow]) -> dict[str, Any]:
    """Counts of (truth, prediction) over the most frequent categories, everything else in one column.

    One row at least has a truth.
    """
    name, rows = field.column, rows_with(field.column, rows)
    pairs = Counter((str(row.truth[name]), str(row.values[name]) if row.values else None) for row in rows)
    truths = Counter(str(row.truth[name]) for row in rows)
    names = most_frequent(truths, CONFUSION_CLASSES)
    table = []
    for truth in names:
        known, failed = [pairs[truth, other] for other in names], pairs[truth, None]
        counts = zip([*known, truths[truth] - sum(known) - failed, failed], [*names, "", ""], strict=True)
        cells = [(count, count / truths[truth], other == truth) for count, other in counts]
        table.append({"name": truth, "total": truths[truth], "cells": cells})
    covered = percent(sum(truths[truth] for truth in names) / len(rows))
    return {"field": field, "names": names, "table": table, "classes": len(truths), "covered": covered}


def confidence(metrics: Mapping[str, Any], fields: Sequence[FieldSpec]) -> dict[str, Any] | None:
    """Reliability of each field, risk-coverage curves, intervals; None where nothing was measured."""
    known = (metrics.get("confidence") or {}).get("fields") or {}
    measured = [(field, known[field.column]) for field in fields if known.get(field.column)]
    if not measured:
        return None
    curves = [
        (field, SERIES[n % len(SERIES)], points)
        for n, (field, found) in enumerate(measured)
        if (points := found.get("risk_coverage"))
    ]
    panels = [(f, _with_interval(one["ece"]), reliability(one["bins"])) for f, one in measured if one.get("bins")]
    return {
        "calibrated_on": metrics["confidence"].get("calibrated_on"),
        "panels": panels,
        "curves": risk_coverage([(colour, points) for _, colour, points in curves]) if curves else None,
        "legend": [
            (field, colour, percent(min(points, key=lambda one: abs(one["coverage"] - 0.5))["error"]))
            for field, colour, points in curves
        ],
        "spreads": [
            (field, f"{number(one['value'])} on average (CRPS)" if name == "crps" else percent(one["value"]), name)
            for field, found in measured
            for name in ("crps", "top_3")
            if (one := found.get(name))
        ],
        "intervals": [
            (field, percent(one["nominal"]), _with_interval(one["coverage"]), one["width"] and percent(one["width"]))
            for field, found in measured
            if (one := found.get("interval"))
        ],
    }


def bias(metrics: Mapping[str, Any], fields: Sequence[FieldSpec]) -> list[tuple[FieldSpec, list[tuple[str, ...]]]]:
    """Of each number its bands, from low to high: what they are, how many rows, the bias and its interval."""
    found = []
    for field in fields:
        lines = []
        for band in (metrics.get("bias") or {}).get(field.column) or ():
            low, high = (None if band[end] is None else exact_number(band[end]) for end in ("from", "to"))
            name = (
                f"{low} to {high}" if low and high else f"under {high}" if high else f"from {low}" if low else "all"
            )
            value, low, high = (
                change("mdape", band["bias"][key], "+", unit=False) for key in ("value", "low", "high")
            )
            lines.append((name, f"{band['rows']:,}", f"{value}\u00a0%", f"{low} to {high}"))
        if lines:
            found.append((field, lines))
    return found


def absent(metrics: Mapping[str, Any], fields: Sequence[FieldSpec]) -> list[tuple[FieldSpec, str, str, list[str]]]:
    """Of each field with a word for what is absent: the word, how many rows lack a value, F1 of the word in texts."""
    found = []
    for field in fields:
        if one := (metrics.get("absent") or {}).get(field.column):
            figures = {
                how: one[key] for how, key in (("written freely", "model"), ("constrained",) * 2) if key in one
            }
            texts = [f"{' ('.join(_with_interval(figure))}) {how}" for how, figure in figures.items()]
            found.append((field, one["word"], f"{one['rows']:,}", texts))
    return found


def review(metrics: Mapping[str, Any], fields: Sequence[FieldSpec]) -> list[dict[str, Any]]:
    """A line a field: the promise, the confidence from which a value is accepted, and the outcome on these rows."""
    rules = (metrics.get("review") or {}).get("fields") or {}
    lines = []
    for field in fields:
        if rule := rules.get(field.column):
            target, error, outcome = rule["target"], rule.get("error"), ""
            if error:
                outcome = "kept" if error["value"] <= target else "missed" if error["low"] > target else "chance"
            lines.append(
                {
                    "field": field,
                    "target": percent(target),
                    "threshold": None if rule["threshold"] is None else percent(rule["threshold"]),
                    "accepted": _with_interval(rule["accepted"]),
                    "error": _with_interval(error) if error else None,
                    "unchanged": _with_interval(left) if (left := rule.get("unchanged")) else None,
                    "verdict": outcome,
                }
            )
    return lines


def _with_interval(figure: Mapping[str, float]) -> tuple[str, str]:
    return percent(figure["value"]), between(figure["low"], figure["high"])
