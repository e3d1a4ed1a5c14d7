"""What `metrics.json` says, in words and as the cells of a table.

    verdict(metrics, fields)       Reads Product and Category from the picture alone. ...
    score_table(metrics, fields)   This model | 100.0 %  98.8-100.0 | 91.0 %  87.3-94.0 | ...

`metrics` is that file's content; whatever it lacks (baselines, the base model, image use) is left out.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from catalens.config import LOWER_IS_BETTER, METRICS, FieldSpec
from catalens.metrics import PRIMARY

METRIC_NAMES = {
    "exact": "exact",
    "similarity": "similarity",
    "accuracy": "accuracy",
    "macro_f1": "macro F1",
    "mae": "mean error",
    "mdape": "median error",
    "within_10pct": "within 10\u00a0%",
}
CONDITIONS = {"blank": "blanked", "shuffled": "shuffled"}
"""The model on pictures that do not show the product."""
BASELINES = {"nearest_neighbour": "nearest neighbour", "majority": "majority"}


def score_table(metrics: Mapping[str, Any], fields: Sequence[FieldSpec]) -> list[dict[str, Any]]:
    """One entry a system, its cells in the order of the columns: parse rate, then each field's metrics."""
    image_use = metrics.get("image_use") or {}
    # a baseline writes no answers, so it has no parse rate to show
    baselines = {name: {"fields": scores["fields"]} for name, scores in (metrics.get("baselines") or {}).items()}
    systems = [
        ("This model", "fine-tuned, writes freely", metrics["model"]),
        ("Constrained", "this model, as predict and serve write", metrics.get("constrained")),
        ("Before fine-tuning", "the base model as it came, constrained", metrics.get("before")),
        ("Nearest neighbour", "copies the training picture most like it", baselines.get("nearest_neighbour")),
        ("Majority", "never looks: most frequent or median value", baselines.get("majority")),
        ("Blanked pictures", "this model, shown plain grey", image_use.get("blank")),
        ("Shuffled pictures", "this model, shown another product\u2019s picture", image_use.get("shuffled")),
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


def rows_of(rows: int, products: int, what: str = "") -> str:
    """`347 test rows of 300 products`."""
    rows_text = f"{rows:,} {what}{' ' if what else ''}row{'' if rows == 1 else 's'}"
    return f"{rows_text} of {products:,} product{'' if products == 1 else 's'}"


def verdict(metrics: Mapping[str, Any], fields: Sequence[FieldSpec]) -> dict[str, Any]:
    """What the figures say in plain words: headline, parts, remarks; `image_use`: the verdict on the pictures.

    A field counts as read only where its interval clears that of both baselines.
    """
    use = metrics.get("image_use") or {}
    looks = use.get("verdict")
    read = [field for field in fields if _clears_baselines(metrics, field)]
    if looks == "ignores_image":
        opening = "Ignores the pictures"
    elif not read:
        opening = "Is not shown to do better than the baselines"
    else:
        opening = f"Reads {listed(f.label for f in read)}"
        opening += " from the picture alone" if looks == "uses_image" else ""
    parts = [part for field in fields if (part := _in_words(field, metrics["model"]))]
    remarks = []
    if read and (rest := [field.label for field in fields if field not in read]):
        remarks.append(f"Not clearly better than the best baseline: {listed(rest)}.")
    remarks.append(image_use_in_words(use, fields))
    return {"headline": f"{opening}.", "parts": parts, "remarks": " ".join(remarks), "image_use": looks}


def image_use_in_words(use: Mapping[str, Any], fields: Sequence[FieldSpec]) -> str:
    """The check of the pictures in a sentence or two."""
    if not use:
        return "Whether it uses the pictures was not checked in this evaluation."
    known = [(field, use["fields"][field.column]) for field in fields if field.column in use["fields"]]
    if use["verdict"] == "uses_image":
        field, found = next((field, found) for field, found in known if found["shown"])
        metric = found["metric"]
        figures = {word: _figure(use.get(key) or {}, field.column, metric) for key, word in CONDITIONS.items()}
        falls = [f"{metric_text(metric, f['value'])} when {word}" for word, f in figures.items() if f]
        return f"The pictures do the work: {field.label} goes to {listed(falls)}." if falls else ""
    margin = f"{100 * use['margin']:g} points"
    if use["verdict"] == "ignores_image":
        most = max(found["loss"]["high"] for _, found in known if found["telling"])
        return f"With other products\u2019 pictures it loses at most {100 * max(0, most):.1f} points."
    if known and not any(found["telling"] for _, found in known):
        return f"Whether it uses the pictures cannot be told: no field has more than {margin} to lose."
    return "These rows are too few to tell whether it uses the pictures."


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
