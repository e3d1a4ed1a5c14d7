"""The evaluation as one page that opens offline: `report.html`.

    write_report(Path("runs/demo/evaluation/report.html"), "demo", metrics, recipe.prompt.fields, rows)

`metrics` is the content of `metrics.json`, whose parts may be absent; `rows` one `Judged` for each evaluated row. The
page asks for nothing outside itself. Its one script finds rows in the gallery; everything else stands there without.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from catalens.config import LOWER_IS_BETTER, METRICS, FieldSpec
from catalens.evaluation.gallery import Card, card, gallery, most_frequent
from catalens.evaluation.judged import Judged, as_float, distance
from catalens.evaluation.plots import SERIES
from catalens.evaluation.scatter import scatter
from catalens.evaluation.tables import confidence, confusion, costs, groups, review
from catalens.evaluation.wording import (
    METRIC_NAMES,
    noise_floor,
    number,
    percent,
    rows_of,
    score_table,
    tiles,
    verdict,
)
from catalens.pages.base import write_page

__all__ = ["SCRIPT", "Judged", "write_report"]

SCRIPT = Path(__file__).with_name("gallery.js")
WORST_ROWS = 8
OTHER_COLOUR = "#8b8f98"


def write_report(
    path: Path, run: str, metrics: Mapping[str, Any], fields: Sequence[FieldSpec], rows: Sequence[Judged]
) -> None:
    """Write the page; the same arguments give the same bytes."""
    failures = [row for row in rows if row.error is not None or row.free_error is not None]
    seconds = metrics.get("seconds") or {}
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
        columns=[(f, [(m, METRIC_NAMES[m], m in LOWER_IS_BETTER) for m in METRICS[f.kind]]) for f in fields],
        scores=score_table(metrics, fields),
        floor=noise_floor(metrics, fields),
        fields=fields,
        runs=[""],
        kinds={field.kind for field in fields},
        plots=[plot for field in fields if field.kind == "number" and (plot := _plot(field, fields, rows))],
        groups=groups(fields, rows),
        confusions=[confusion(field, rows) for field in fields if field.kind == "category" and rows],
        confidence=confidence(metrics, fields),
        constrained=bool(metrics.get("constrained")),
        review=review(metrics, fields),
        promise=(metrics.get("review") or {}).get("confidence"),
        gallery=gallery(fields, [(row,) for row in rows]),
        judged=len(rows),
        worst=[(field, _worst(field, fields, rows)) for field in fields if field.kind != "category"],
        failures=[card(fields, (row,)) for row in failures[:WORST_ROWS]],
        failed=len(failures),
        costs=costs(metrics),
        seconds=[(name, number(value)) for name, value in seconds.items() if isinstance(value, int | float)],
    )


def _plot(field: FieldSpec, fields: Sequence[FieldSpec], rows: Sequence[Judged]) -> dict[str, Any] | None:
    """Truth against prediction, coloured by the first category field; None where nothing parsed."""
    parsed = [row for row in rows if row.prediction is not None]
    if not parsed:
        return None
    by = next((other for other in fields if other.kind == "category"), None)
    counts = Counter(str(row.truth[by.column]) for row in rows) if by else Counter()
    colours = dict(zip(most_frequent(counts, len(SERIES)), SERIES, strict=False))
    plain = OTHER_COLOUR if by else SERIES[0]
    drawn = scatter(
        [as_float(row.truth[field.column]) for row in parsed],
        [as_float(row.prediction[field.column]) for row in parsed if row.prediction],
        [colours.get(str(row.truth[by.column]), plain) if by else plain for row in parsed],
    )
    legend = [(name, colour, counts[name]) for name, colour in colours.items()]
    if rest := counts.total() - sum(count for _, _, count in legend):
        legend.append((f"{len(counts) - len(legend)} others", OTHER_COLOUR, rest))
    return {"field": field, "plot": drawn, "by": by, "legend": legend, "failed": len(rows) - len(parsed)}


def _worst(field: FieldSpec, fields: Sequence[FieldSpec], rows: Sequence[Judged]) -> list[Card]:
    """Cards of the rows that went furthest wrong in a text or number field, among those that parsed."""
    measured = []
    for row in rows:
        if row.prediction is not None and row.truth[field.column] != row.prediction[field.column]:
            measured.append((distance(field, row.truth[field.column], row.prediction[field.column]), row))
    measured.sort(key=lambda pair: -pair[0])
    says = "off by {}" if field.kind == "number" else "{} different"
    return [card(fields, (row,), note=says.format(percent(share))) for share, row in measured[:WORST_ROWS]]
