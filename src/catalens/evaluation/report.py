"""The evaluation as one page that opens offline: `report.html`.

    write_report(Path("runs/demo/evaluation/report.html"), "demo", metrics, recipe.prompt.fields, rows)

`metrics` is the content of `metrics.json`, `rows` one `Judged` for each evaluated row. The page has no
script and asks for nothing outside itself; `catalens.catalog.page` makes titles, answers and pictures harmless.
"""

import random
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup
from rapidfuzz.distance import Levenshtein

from catalens.catalog.page import thumbnail, write_page
from catalens.config import LOWER_IS_BETTER, METRICS, FieldSpec
from catalens.evaluation.scatter import scatter
from catalens.evaluation.wording import (
    METRIC_NAMES,
    noise_floor,
    number,
    percent,
    score_table,
    tiles,
    verdict,
)

GALLERY_ROWS = 200
WORST_ROWS = 8
CONFUSION_CLASSES = 12
CLOSE = 0.1
"""A number counts as right within this share of the truth, as in `within_10pct`."""

COLOURS = ("#3f7fd0", "#e0792f", "#2f9f78", "#c9579c", "#8f75d6", "#b3922a", "#3fa9bd", "#d4574f")
OTHER_COLOUR = "#8b8f98"


@dataclass(frozen=True)
class Judged:
    """One evaluated row."""

    id: str
    truth: Mapping[str, object]
    """`{"title": "Red Tote Bag", "category3_code": "BAGS", "full_price": 129.0}`"""
    prediction: Mapping[str, object] | None
    """The same columns; None where the answer did not parse."""
    answer: str
    """What the model wrote."""
    error: str | None
    """Why the answer did not parse."""
    picture: bytes
    """The encoded picture."""


def write_report(
    path: Path, run: str, metrics: Mapping[str, Any], fields: Sequence[FieldSpec], rows: Sequence[Judged]
) -> None:
    """Write the page, at most `GALLERY_ROWS` rows in its gallery; the same arguments give the same bytes."""
    picked: Sequence[int] = range(len(rows))
    if len(rows) > GALLERY_ROWS:
        picked = sorted(random.Random(0).sample(picked, GALLERY_ROWS))
    failures = [row for row in rows if row.prediction is None]
    seconds = metrics.get("seconds") or {}
    write_page(
        path,
        Path(__file__).with_name("report.html.j2"),
        run=run,
        metrics=metrics,
        verdict=verdict(metrics, fields),
        left_out=metrics.get("left_out") or [],
        tiles=tiles(metrics, fields),
        columns=[(f, [(m, METRIC_NAMES[m], m in LOWER_IS_BETTER) for m in METRICS[f.kind]]) for f in fields],
        scores=score_table(metrics, fields),
        floor=noise_floor(metrics, fields),
        kinds={field.kind for field in fields},
        plots=[plot for field in fields if field.kind == "number" and (plot := _plot(field, fields, rows))],
        confusions=[_confusion(field, rows) for field in fields if field.kind == "category" and rows],
        gallery=[_card(rows[i], fields) for i in picked],
        judged=len(rows),
        worst=[(field, _worst(field, fields, rows)) for field in fields if field.kind != "category"],
        failures=[_card(row, fields) for row in failures[:WORST_ROWS]],
        failed=len(failures),
        seconds=[(name, number(value)) for name, value in seconds.items() if isinstance(value, int | float)],
    )


# Plots and tables of rows


def _plot(field: FieldSpec, fields: Sequence[FieldSpec], rows: Sequence[Judged]) -> dict[str, Any] | None:
    """Truth against prediction, coloured by the first category field; None where nothing parsed."""
    parsed = [row for row in rows if row.prediction is not None]
    if not parsed:
        return None
    by = next((other for other in fields if other.kind == "category"), None)
    groups = Counter(str(row.truth[by.column]) for row in rows) if by else Counter()
    colours = dict(zip(_most(groups, len(COLOURS)), COLOURS, strict=False))
    plain = OTHER_COLOUR if by else COLOURS[0]
    drawn = scatter(
        [_float(row.truth[field.column]) for row in parsed],
        [_float(row.prediction[field.column]) for row in parsed if row.prediction],
        [colours.get(str(row.truth[by.column]), plain) if by else plain for row in parsed],
    )
    legend = [(name, colour, groups[name]) for name, colour in colours.items()]
    if rest := groups.total() - sum(count for _, _, count in legend):
        legend.append((f"{len(groups) - len(legend)} others", OTHER_COLOUR, rest))
    return {
        "field": field,
        "svg": Markup(drawn.svg),  # numbers and our own words only
        "plot": drawn,
        "by": by,
        "legend": legend,
        "failed": len(rows) - len(parsed),
    }


def _confusion(field: FieldSpec, rows: Sequence[Judged]) -> dict[str, Any]:
    """Counts of (truth, prediction) over the most frequent categories, everything else in one column."""
    pairs = Counter(
        (str(row.truth[field.column]), None if row.prediction is None else str(row.prediction[field.column]))
        for row in rows
    )
    truths = Counter(str(row.truth[field.column]) for row in rows)
    names = _most(truths, CONFUSION_CLASSES)
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


def _worst(field: FieldSpec, fields: Sequence[FieldSpec], rows: Sequence[Judged]) -> list[dict[str, Any]]:
    """Cards of the rows that went furthest wrong in a text or number field, among those that parsed."""
    measured = []
    for row in rows:
        if row.prediction is not None and row.truth[field.column] != row.prediction[field.column]:
            measured.append((_distance(field, row.truth[field.column], row.prediction[field.column]), row))
    measured.sort(key=lambda pair: -pair[0])
    says = "off by {}" if field.kind == "number" else "{} different"
    return [_card(row, fields) | {"note": says.format(percent(distance))} for distance, row in measured[:WORST_ROWS]]


def _distance(field: FieldSpec, truth: object, prediction: object) -> float:
    """0 where both agree; a number's error as a share of the truth, a text's normalised edit distance."""
    if field.kind != "number":
        return Levenshtein.normalized_distance(str(truth), str(prediction))
    true, said = _float(truth), _float(prediction)
    if true == 0:
        return float(said != 0)
    return abs(said - true) / abs(true)


def _card(row: Judged, fields: Sequence[FieldSpec]) -> dict[str, Any]:
    """One row as the page shows it: picture, and truth and prediction field by field."""
    values = []
    for field in fields:
        truth, said = row.truth[field.column], (row.prediction or {}).get(field.column)
        entry = {"label": field.label, "truth": truth, "said": said, "error": "", "right": truth == said}
        if field.kind == "number":
            entry |= {"truth": _exact(truth)}
            if row.prediction is not None:
                true, given = _float(truth), _float(said)
                share = _distance(field, truth, said)
                sign = "" if share > 100 else "+" if given > true else "\u2212"
                entry |= {
                    "said": _exact(said),
                    "right": share <= CLOSE,
                    "error": f"{sign}{percent(share)}" if share else "",
                }
        values.append(entry)
    return {
        "id": row.id,
        "picture": thumbnail(row.picture),
        "values": values,
        "right": all(entry["right"] for entry in values),
        "parsed": row.prediction is not None,
        "answer": row.answer,
        "reason": row.error or "",
        "note": "",
    }


# Values as text


def _most(counts: Counter[str], most: int) -> list[str]:
    """The most frequent keys, ties in alphabetical order."""
    return sorted(counts, key=lambda name: (-counts[name], name))[:most]


def _float(value: object) -> float:
    return float(value)  # pyright: ignore[reportArgumentType]


def _exact(value: object) -> str:
    """A number of the table or of an answer, with the digits that it has."""
    exact = _float(value)
    return f"{exact:,.12g}" if abs(exact) < 1e12 else f"{exact:.6g}"
