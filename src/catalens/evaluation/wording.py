"""What `metrics.json` says, in words and as the cells of a table.

    verdict(metrics, fields)       Reads Product and Category from the picture alone. ...
    score_table(metrics, fields)   This model | 100.0 %  98.8-100.0 | 91.0 %  87.3-94.0 | ...

`metrics` is that file's content; whatever it lacks (baselines, the base model, image use) is left out.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from catalens.config import LOWER_IS_BETTER, METRICS, FieldSpec, Kind

PRIMARY: Mapping[Kind, str] = {"text": "exact", "category": "accuracy", "number": "mdape"}
"""The one metric of a kind that stands for it in headlines."""
METRIC_NAMES = {
    "exact": "exact",
    "similarity": "similarity",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "mae": "mean error",
    "mdape": "median error",
    "within_10pct": "within 10\u00a0%",
}
BASELINES = {"nearest_neighbour": "nearest neighbour", "majority": "majority"}


def score_table(metrics: Mapping[str, Any], fields: Sequence[FieldSpec]) -> list[dict[str, Any]]:
    """One entry a system, its cells in the order of the columns: parse rate, then each field's metrics."""
    image_use = metrics.get("image_use") or {}
    # a baseline writes no answers, so it has no parse rate to show
    baselines = {name: {"fields": scores["fields"]} for name, scores in (metrics.get("baselines") or {}).items()}
    systems = [
        ("This model", "fine-tuned, writes freely", metrics["model"]),
        ("Constrained", "this model, as predict and serve write", metrics.get("constrained")),
        ("Before fine-tuning", "the base model as it came", metrics.get("before")),
        ("Nearest neighbour", "copies the most similar training picture", baselines.get("nearest_neighbour")),
        ("Majority", "never looks: most frequent or median value", baselines.get("majority")),
        ("Blanked pictures", "this model, shown plain grey", image_use.get("blank")),
        ("Shuffled pictures", "this model, shown another row\u2019s picture", image_use.get("shuffled")),
    ]
    systems = [system for system in systems if system[2]]
    table = [{"name": name, "note": note, "cells": []} for name, note, _ in systems]
    for column, metric in [("", "parse_rate"), *((f.column, m) for f in fields for m in METRICS[f.kind])]:
        figures = [_figure(scores, column, metric) for _, _, scores in systems]
        values = [figure["value"] for figure in figures if figure]
        best = (min if metric in LOWER_IS_BETTER else max)(values) if len(values) > 1 else None
        for row, figure in zip(table, figures, strict=True):
            row["cells"].append(cell(metric, figure) | {"best": bool(figure) and figure["value"] == best})
    return table


def noise_floor(metrics: Mapping[str, Any], fields: Sequence[FieldSpec]) -> list[str]:
    """The table's last row, where the data says what its noise leaves to the best of models; else empty."""
    known = metrics.get("noise_floor") or {}
    cells = [""]
    for field in fields:
        for metric in METRICS[field.kind]:
            value = known.get(f"{field.column}.{metric}", known.get(metric) if field.kind == "number" else None)
            cells.append("" if value is None else metric_text(metric, value))
    return cells if any(cells) else []


def tiles(metrics: Mapping[str, Any], fields: Sequence[FieldSpec]) -> list[dict[str, Any]]:
    """The figure of each field that matters most, beside the best baseline's."""
    result = []
    for field in fields:
        metric = PRIMARY[field.kind]
        if figure := _figure(metrics["model"], field.column, metric):
            best = _best_baseline(metrics, field)
            against = f"{best[0]} {metric_text(metric, best[1]['value'])}" if best else ""
            result.append({"field": field, "metric": METRIC_NAMES[metric], "against": against} | cell(metric, figure))
    return result


def verdict(metrics: Mapping[str, Any], fields: Sequence[FieldSpec]) -> dict[str, Any]:
    """What the figures say in plain words: headline, parts, remarks; `looks`: do pictures matter.

    A field counts as read only where its interval clears that of both baselines.
    """
    image_use = metrics.get("image_use")
    looks = image_use["pictures_matter"] if image_use else None
    read = [field for field in fields if _clears_baselines(metrics, field)]
    if looks is False:
        opening = "Does not read the pictures"
    elif not read:
        opening = "Does no better than the baselines"
    else:
        opening = f"Reads {listed(f.label for f in read)}" + (" from the picture alone" if looks else "")
    parts = [part for field in fields if (part := _in_words(field, metrics["model"]))]
    remarks = []
    if read and (rest := [field.label for field in fields if field not in read]):
        remarks.append(f"Not clearly better than the best baseline: {listed(rest)}.")
    lead = next((field for field in fields if field.kind != "number"), fields[0])
    if image_use and looks:
        alone = {word: image_use.get(key) or {} for key, word in (("blank", "blanked"), ("shuffled", "shuffled"))}
        figures = {word: _figure(scores, lead.column, PRIMARY[lead.kind]) for word, scores in alone.items()}
        falls = [f"{metric_text(PRIMARY[lead.kind], f['value'])} when {word}" for word, f in figures.items() if f]
        remarks.append(f"The pictures do the work: {lead.label} goes to {listed(falls)}." if falls else "")
    if looks is None:
        remarks.append("Whether the pictures matter was not checked in this evaluation.")
    return {"headline": f"{opening}.", "parts": parts, "remarks": " ".join(remarks), "looks": looks}


def _in_words(field: FieldSpec, scores: Mapping[str, Any]) -> tuple[str, str] | None:
    first = _figure(scores, field.column, "within_10pct" if field.kind == "number" else PRIMARY[field.kind])
    if not first:
        return None
    share, median = percent(first["value"]), _figure(scores, field.column, "mdape")
    if field.kind == "number":
        return field.label, f"within 10\u00a0% on {share}" + (
            f", median error {percent(median['value'])}" if median else ""
        )
    return field.label, f"{'exactly ' if field.kind == 'text' else ''}right on {share}"


def _best_baseline(metrics: Mapping[str, Any], field: FieldSpec) -> tuple[str, Mapping[str, float]] | None:
    metric = PRIMARY[field.kind]
    scored = metrics.get("baselines") or {}
    known = [(BASELINES[n], f) for n in BASELINES if (f := _figure(scored.get(n) or {}, field.column, metric))]
    best = min if metric in LOWER_IS_BETTER else max
    return best(known, key=lambda pair: pair[1]["value"]) if known else None


def _clears_baselines(metrics: Mapping[str, Any], field: FieldSpec) -> bool:
    metric = PRIMARY[field.kind]
    figure, best = _figure(metrics["model"], field.column, metric), _best_baseline(metrics, field)
    if not figure or not best:
        return bool(figure)
    return figure["high"] < best[1]["low"] if metric in LOWER_IS_BETTER else figure["low"] > best[1]["high"]


def _figure(scores: Mapping[str, Any], column: str, metric: str) -> Mapping[str, float] | None:
    """A figure of a system; None where it was not scored or is no number."""
    figure = (scores.get("fields", {}).get(column, {}) if column else scores).get(metric)
    return figure if figure and math.isfinite(figure["value"]) else None


def cell(metric: str, figure: Mapping[str, float] | None) -> dict[str, Any]:
    """`{"value": "91.0 %", "interval": "87.3-94.0"}`, a dash where there is none."""
    if not figure:
        return {"value": "\u2013", "interval": ""}
    low, high = (metric_text(metric, figure[bound]).removesuffix("\u00a0%") for bound in ("low", "high"))
    return {"value": metric_text(metric, figure["value"]), "interval": f"{low}\u2013{high}"}


def metric_text(metric: str, value: float) -> str:
    """A figure's value: a share, or a number in the field's unit."""
    return number(value) if metric == "mae" else percent(value)


def between(low: float, high: float) -> str:
    """The interval of a share."""
    return percent(low).removesuffix("\u00a0%") + "\u2013" + percent(high)


def percent(share: float) -> str:
    """A share as text; a number that is absurdly far off says only so."""
    return f"{100 * share:,.1f}\u00a0%" if share <= 100 else "over 10,000\u00a0%"


def number(value: float) -> str:
    """A computed number with three digits, or its whole part where that is longer."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e12 else f"{value:.3g}"


def listed(words: Iterable[str]) -> str:
    """`a, b and c`."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
