"""`metrics.json` in words and as the cells of a table.

    verdict(metrics, fields)       Reads Product and Category from the picture alone. ...
    score_table(metrics, fields)   This model | 100.0 %  98.8-100.0 | 91.0 %  87.3-94.0 | ...

`metrics` is that file's content; whatever it lacks (baselines, the base model, image use) is left out.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from catalens.config import FieldSpec
from catalens.metrics import METRICS, metrics_of, primary, share_right
from catalens.pages.format import PERCENT, cell, label, listed, metric_text, number, percent, truths_of
from catalens.predictions import tolerance_of


class System(NamedTuple):
    """Something that answers, and is scored."""

    path: tuple[str, ...]
    """Keys of its scores in `metrics.json`."""
    name: str
    note: str
    heading: str
    """In a terminal; empty where it is not shown there."""


NEAREST, MAJORITY = ("baselines", "nearest_neighbour"), ("baselines", "majority")
SYSTEMS = (
    System(("model",), "This model", "fine-tuned, writes freely", "this\nmodel"),
    System(("constrained",), "Constrained", "this model, as predict and serve write", ""),
    System(("before",), "Before fine-tuning", "the base model as it came, constrained", "before\ntrain.*"),
    System(NEAREST, "Nearest neighbour", "copies the training picture most like it", "nearest\npicture"),
    System(MAJORITY, "Majority", "never looks: most frequent or median value", "\nmajority"),
    System(
        ("baselines", "text_alone"),
        "Text alone",
        "this model, given the text and grey pictures, constrained",
        "text\nalone",
    ),
    System(("image_use", "blank"), "Blanked pictures", "shown plain grey", "blank\npicture"),
    System(
        ("image_use", "shuffled"), "Shuffled pictures", "shown another product\u2019s picture", "shuffled\npicture"
    ),
)
COSTS = {
    "tokens_in": ("prompt tokens a picture", ""),
    "tokens_out": ("tokens written", ""),
    "steps": ("decoding steps, written freely", ""),
    "constrained_steps": ("decoding steps, constrained", ""),
    "ms_per_picture": ("a picture, written freely", "\u00a0ms"),
    "pictures_per_second": ("pictures a second", ""),
}
"""Key in `metrics.json` -> name and unit."""


def scores_of(metrics: Mapping[str, Any], system: System) -> Mapping[str, Any]:
    """Scores of a system; empty where it was not scored."""
    node: Any = metrics
    for key in system.path:
        node = node.get(key) or {}
    return node


def figure_of(scores: Mapping[str, Any], field: FieldSpec | None, metric: str) -> Mapping[str, float] | None:
    """A figure of a system, of the whole answer where there is no field; None where it is absent or no number."""
    figure = (scores.get("fields", {}).get(field.column, {}) if field else scores).get(metric)
    return figure if figure and math.isfinite(figure["value"]) else None


def truths_in(metrics: Mapping[str, Any], column: str) -> str:
    """Number of rows that have a truth of a field, where not all have."""
    return truths_of((metrics.get("n") or {}).get(column, metrics["rows"]), metrics["rows"])


def beats(metric: str, one: float, other: float) -> bool:
    """Tell whether one value of a metric is better than another."""
    return one > other if METRICS[metric].higher_is_better else one < other


def score_table(
    metrics: Mapping[str, Any], fields: Sequence[FieldSpec], detail: bool = False
) -> list[dict[str, Any]]:
    """One entry a system, its cells in the order of the columns: of the whole answer, then each field's metrics.

    Those that are a detail have a table of their own.
    """
    systems = [(system, scores) for system in SYSTEMS if (scores := scores_of(metrics, system))]
    table = [{"name": system.name, "note": system.note, "cells": []} for system, _ in systems]
    for field, metric in score_columns(fields, detail):
        figures = [
            # a baseline writes no answers, so it has no parse rate to show
            None if "baselines" in system.path and metric == "parse_rate" else figure_of(scores, field, metric)
            for system, scores in systems
        ]
        values = [figure["value"] for figure in figures if figure]
        best = (max if METRICS[metric].higher_is_better else min)(values) if len(values) > 1 else None
        for row, figure in zip(table, figures, strict=True):
            row["cells"].append(cell(metric, figure) | {"best": bool(figure) and figure["value"] == best})
    return table


def score_columns(fields: Sequence[FieldSpec], detail: bool | None = False) -> list[tuple[FieldSpec | None, str]]:
    """List field and metric of each column of a table of scores; None is the whole answer.

    Only those that are a detail, only others, or all of them.
    """
    columns: list[tuple[FieldSpec | None, str]] = [(None, metric) for metric in metrics_of("answer")]
    columns += [(field, metric) for field in fields for metric in metrics_of(field.kind)]
    return [(field, metric) for field, metric in columns if detail in (None, METRICS[metric].detail)]


def noise_floor(metrics: Mapping[str, Any], fields: Sequence[FieldSpec], detail: bool = False) -> list[str]:
    """The table's last row, where the data says what its noise leaves to the best of models; else empty."""
    known = metrics.get("noise_floor") or {}
    cells = []
    for field, metric in score_columns(fields, detail):
        of_all = known.get(metric) if field and field.kind == "number" else None
        value = known.get(f"{field.column}.{metric}", of_all) if field else None
        cells.append("" if value is None else metric_text(metric, value))
    return cells if any(cells) else []


def tiles(metrics: Mapping[str, Any], fields: Sequence[FieldSpec]) -> list[dict[str, Any]]:
    """The primary figure of each field, beside the best baseline's, and the share that may be used unseen."""
    result = []
    rules = (metrics.get("review") or {}).get("fields") or {}
    for field in fields:
        metric, count = primary(field.kind), truths_in(metrics, field.column)
        about = {"field": field, "metric": METRICS[metric].label, "n": count, "unseen": ""}
        if rule := rules.get(field.column):
            share = percent(rule["accepted"]["value"]) if rule["threshold"] is not None else "none"
            about["unseen"] = f"{share} usable unseen, at most {100 * rule['target']:g}{PERCENT} wrong"
        if figure := figure_of(metrics["model"], field, metric):
            best = _best_baseline(metrics, field)
            against = f"{best[0].lower()} {metric_text(metric, best[1]['value'])}" if best else ""
            result.append(about | {"against": against} | cell(metric, figure))
        elif count:
            result.append(about | {"against": ""} | cell(metric, None))
    return result


def verdict(metrics: Mapping[str, Any], fields: Sequence[FieldSpec]) -> dict[str, Any]:
    """The figures in plain words: headline, parts, remarks; `image_use`: the verdict on the pictures.

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
        texts = "text_alone" in (metrics.get("baselines") or {})
        opening += (" from picture and text" if texts else " from the picture alone") if looks == "uses_image" else ""
    parts = [part for field in fields if (part := _in_words(field, metrics))]
    remarks = []
    if read and (rest := [field.label for field in fields if field not in read]):
        remarks.append(f"Not clearly better than the best baseline: {listed(rest)}.")
    remarks.append(image_use_in_words(use, fields))
    headline = " ".join([f"{opening}.", *training_made_worse(metrics, fields)])
    return {"headline": headline, "parts": parts, "remarks": " ".join(remarks), "image_use": looks}


def training_made_worse(metrics: Mapping[str, Any], fields: Sequence[FieldSpec]) -> list[str]:
    """The sentence that names fields which the base model read better, beyond the interval of this model's figure.

    Both are constrained, where both were.
    """
    before, after = metrics.get("before") or {}, metrics.get("constrained") or metrics["model"]
    worse = []
    for field in fields:
        metric = primary(field.kind)
        then, now = (figure_of(scores, field, metric) for scores in (before, after))
        bound = "high" if METRICS[metric].higher_is_better else "low"
        if then and now and beats(metric, then["value"], now[bound]):
            worse.append(field.label)
    return [f"Training made {listed(worse)} worse than before."] if worse else []


def image_use_in_words(use: Mapping[str, Any], fields: Sequence[FieldSpec]) -> str:
    """The check of the pictures in a sentence or two."""
    if not use:
        return "Whether it uses the pictures was not checked in this evaluation."
    known = [(field, use["fields"][field.column]) for field in fields if field.column in use["fields"]]
    if use["verdict"] == "uses_image":
        field, found = next((field, found) for field, found in known if found["shown"])
        metric = found["metric"]
        falls = [
            f"{metric_text(metric, figure['value'])} when {word}"
            for key, word in (("blank", "blanked"), ("shuffled", "shuffled"))
            if (figure := figure_of(use.get(key) or {}, field, metric))
        ]
        positions = [(n, place["verdict"]) for n, place in enumerate(use.get("positions", ()), start=1)]
        used, unused = (
            [f"picture {n}" for n, found in positions if found == verdict]
            for verdict in ("uses_image", "ignores_image")
        )
        places = [f"It uses {listed(used)}."] if used else []
        places += [f"It ignores {listed(unused)}."] if unused else []
        told = [f"The pictures do the work: {field.label} goes to {listed(falls)}."] if falls else []
        return " ".join([*told, *places])
    margin = f"{100 * use['margin']:g} points"
    if use["verdict"] == "ignores_image":
        most = max(found["loss"]["high"] for _, found in known if found["telling"])
        return f"With other products\u2019 pictures it loses at most {100 * max(0, most):.1f} points."
    if known and not any(found["telling"] for _, found in known):
        return f"Whether it uses the pictures cannot be told: no field has more than {margin} to lose."
    return "These rows are too few to tell whether it uses the pictures."


def costs(*metrics: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """(name, figure of each of several evaluations) of every cost that any of them measured."""
    known = [one.get("cost") or {} for one in metrics]
    return [
        (name, ["\u2013" if one.get(key) is None else number(one[key]) + unit for one in known])
        for key, (name, unit) in COSTS.items()
        if any(one.get(key) is not None for one in known)
    ]


def _in_words(field: FieldSpec, metrics: Mapping[str, Any]) -> tuple[str, str] | None:
    """A field's share of right values, and its primary figure where that is another; how many rows have a truth."""
    right, first, scores = share_right(field.kind), primary(field.kind), metrics["model"]
    count = truths_in(metrics, field.column)
    if not (figure := figure_of(scores, field, right)):
        return (field.label, f"has {count} in these rows") if count else None
    how = {"text": "exactly right", "category": "right", "number": label(right, tolerance_of(metrics))}[field.kind]
    says = f"{how} on {percent(figure['value'])}"
    if first != right and (other := figure_of(scores, field, first)):
        says += f", {METRICS[first].label} {metric_text(first, other['value'])}"
    return field.label, f"{says} ({count})" if count else says


def _best_baseline(metrics: Mapping[str, Any], field: FieldSpec) -> tuple[str, Mapping[str, float]] | None:
    metric = primary(field.kind)
    known = [
        (system.name, figure)
        for system in SYSTEMS
        if "baselines" in system.path and (figure := figure_of(scores_of(metrics, system), field, metric))
    ]
    best = max if METRICS[metric].higher_is_better else min
    return best(known, key=lambda pair: pair[1]["value"]) if known else None


def _clears_baselines(metrics: Mapping[str, Any], field: FieldSpec) -> bool:
    metric = primary(field.kind)
    figure, best = figure_of(metrics["model"], field, metric), _best_baseline(metrics, field)
    if not figure or not best:
        return bool(figure)
    worst, bound = ("low", "high") if METRICS[metric].higher_is_better else ("high", "low")
    return beats(metric, figure[worst], best[1][bound])
