"""The check page's view: what `check.html.j2` shows, by section, as plain data.

    page_view(...)["numbers"][0]
    {"name": "full_price", "by": "category3_code", "summary": "95 to 11,990, median 390", "strips": [...], ...}

The page shows counts, plots, and small copies of the pictures that findings name; see `catalens.pages.base`.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from catalens.catalog.storage import SPLITS, Catalog
from catalens.checking.costs import CropCost, method_name
from catalens.checking.facts import Facts
from catalens.checking.rules import SEVERITIES, Finding
from catalens.config import TrainingSpec
from catalens.pages.base import thumbnail
from catalens.pages.charts import Scale, histogram

MAX_BARS, MAX_STRIPS, MAX_DOTS, MAX_CARDS, MAX_REPEATED = 20, 14, 40, 8, 8
"""Categories with a bar, with a strip; outliers on a strip; cards and repeated texts that are shown."""

View = dict[str, Any]


def page_view(
    catalog: Catalog,
    facts: Facts,
    findings: Sequence[Finding],
    costs: Sequence[CropCost],
    training: TrainingSpec,
    basis: str,
) -> View:
    """Gather what the page shows; `basis` says in a sentence what the costs of `training` stand on."""
    photos = _photos(catalog, facts)
    severities = Counter(finding.severity for finding in findings)
    return {
        "card": catalog.card,
        "headline": headline(findings),
        "rows_by_split": [f"{count:,} {split}" for split, count in catalog.card.rows.items()],
        "severities": [f"{severities[kind]} {kind}{'' if severities[kind] == 1 else 's'}" for kind in SEVERITIES],
        "findings": findings,
        "fields": [_field(facts, name, kind) for name, kind in catalog.card.roles.fields.items()],
        "rejected": facts.rejected,
        "numbers": [_number(facts, name, photos) for name in _filled(facts, "number")],
        "categories": [_category(facts, name) for name in _filled(facts, "category")],
        "texts": [_text(facts, name) for name in _filled(facts, "text")],
        "pictures": _pictures(facts, photos),
        "costs": costs,
        "method": method_name(training),
        "basis": basis,
        "splits": SPLITS,
    }


def headline(findings: Sequence[Finding]) -> str:
    """The outcome in one sentence."""
    counts = Counter(finding.severity for finding in findings)
    if errors := counts["error"]:
        return f"Mend {errors} {'error' if errors == 1 else 'errors'} before training."
    if warnings := counts["warning"]:
        return f"Ready to train, with {warnings} {'warning' if warnings == 1 else 'warnings'}."
    return "Ready to train."


def plain(value: float) -> str:
    """Write a number with the digits that a reader needs."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e12 else f"{value:,.4g}"


def _filled(facts: Facts, kind: Any) -> list[str]:
    return [name for name in facts.roles.columns(kind) if any(value is not None for value in facts.values[name])]


def _photos(catalog: Catalog, facts: Facts) -> Mapping[int, str | None]:
    """Thumbnails of the rows that the page shows, read in a second pass."""
    wanted = {row for far in facts.outliers.values() for row, _ in far[:MAX_CARDS]}
    wanted |= {group[0] for group in facts.placeholders[:MAX_CARDS]}
    wanted |= {row for pair in facts.across[:MAX_CARDS] for row in pair}
    image = catalog.card.roles.image
    rows = (row for _, batch in catalog.all_batches([image]) for row in batch) if wanted else ()
    return {index: thumbnail(row[image]) for index, row in enumerate(rows) if index in wanted}


def _field(facts: Facts, name: str, kind: str) -> View:
    known = [value for value in facts.values[name] if value is not None]
    counts = Counter(known)
    typical = ""
    if known and kind == "number":
        low, middle, high = np.quantile(np.array(known, float), [0.05, 0.5, 0.95])
        typical = f"{plain(middle)}; 90 % between {plain(low)} and {plain(high)}"
    elif known:
        typical = counts.most_common(1)[0][0]
    missing = len(facts) - len(known)
    return {
        "name": name,
        "kind": kind,
        "filled": len(known),
        "missing": missing,
        "distinct": len(counts),
        "typical": typical,
    }


def _number(facts: Facts, name: str, photos: Mapping[int, str | None]) -> View:
    by, numbers, far = facts.roles.leading, facts.values[name], facts.outliers[name]
    known = np.array([value for value in numbers if value is not None], float)
    chart, scale = _chart(known, name, plain)
    groups, dots = facts.categories(by) if by else {}, {row for row, _ in far}
    texts = facts.roles.columns("text")[:1]
    return {
        "name": name,
        "by": by,
        "summary": f"{plain(known.min())} to {plain(known.max())}, median {plain(np.median(known))}",
        "chart": chart,
        "strips": [_strip(word, rows, numbers, dots, scale) for word, rows in list(groups.items())[:MAX_STRIPS]],
        "legend": "Line: 90\u00a0% of the rows; box: half of them; tick: median"
        + ("; dots: outliers." if far else ".")
        + (f" The {MAX_STRIPS} largest of {len(groups)} categories." if len(groups) > MAX_STRIPS else ""),
        "cards": [
            {
                "picture": photos[row],
                "note": f"{plain(numbers[row])}, median {plain(median)}",
                "text": "".join(facts.values[text][row] or "" for text in texts),
                "name": facts.name(row),
            }
            for row, median in far[:MAX_CARDS]
        ],
    }


def _strip(word: str, rows: Sequence[int], numbers: Sequence[Any], far: set[int], scale: Scale) -> View:
    """One category on the number's axis: (class, from, to) of each mark in percent."""
    known = np.array([numbers[row] for row in rows if numbers[row] is not None], float)
    marks: list[tuple[str, float, float]] = []
    if known.size:
        at = [100 * scale.at(float(value)) for value in np.quantile(known, [0.05, 0.25, 0.5, 0.75, 0.95])]
        dots = [100 * scale.at(numbers[row]) for row in rows if row in far][:MAX_DOTS]
        marks = [("", at[0], at[4]), ("box", at[1], at[3]), ("median", at[2], at[2])]
        marks += [("far", dot, dot) for dot in dots]
    return {"name": word, "count": len(rows), "marks": marks}


def _category(facts: Facts, name: str) -> View:
    groups = facts.categories(name)
    shown = list(groups.items())[:MAX_BARS]
    summary = f"{len(groups):,} {'category' if len(groups) == 1 else 'categories'}"
    if len(groups) > len(shown):
        share = sum(len(rows) for _, rows in shown) / sum(map(len, groups.values()))
        summary += f"; the {len(shown)} most frequent hold {share:.0%} of the rows"
    counts = {word: Counter(facts.splits[row] for row in rows) for word, rows in shown}
    bars = [
        {
            "name": word,
            "count": own.total(),
            "title": ", ".join(f"{own[split]:,} {split}" for split in SPLITS),
            "parts": [100 * own[split] / len(shown[0][1]) for split in SPLITS],
        }
        for word, own in counts.items()
    ]
    return {"name": name, "summary": f"{summary}.", "bars": bars}


def _text(facts: Facts, name: str) -> View:
    lengths = [len(value) for value in facts.values[name] if value]
    return {
        "name": name,
        "summary": f"{min(lengths):,} to {max(lengths):,} characters, median {np.median(lengths):,.0f}",
        "chart": _chart(lengths, f"Characters of {name}", plain)[0],
        "repeated": [(facts.values[name][row], count) for row, count in facts.repeated(name)[:MAX_REPEATED]],
    }


def _pictures(facts: Facts, photos: Mapping[int, str | None]) -> View | None:
    looks = [look for look in facts.pictures if look.size]
    if not looks:
        return None
    sizes = np.array([look.size for look in looks], float)  # [N, 2]
    charts = []
    for title, unit, values, write in (
        ("Longer side", "pixels", sizes.max(axis=1), plain),
        ("Aspect ratio", "width \u00f7 height", sizes[:, 0] / sizes[:, 1], lambda value: f"{value:.3g}"),
        ("Stored size", "kilobytes", np.array([look.stored for look in looks]) / 1000, lambda value: f"{value:,.3g}"),
    ):
        low, middle, high = (write(float(value)) for value in np.quantile(values, [0, 0.5, 1]))
        chart, _ = _chart(values, title, write)
        charts.append(chart | {"title": title, "unit": unit, "summary": f"{low} to {high}, median {middle}"})
    formats = Counter(look.format for look in looks).most_common()
    broken = len(facts) - len(looks)
    products = {rows[0]: sorted({facts.ids[row] for row in rows})[:3] for rows in facts.placeholders}
    return {
        "summary": ", ".join(f"{count:,} {form}" for form, count in formats)
        + (f"; {broken:,} cannot be decoded." if broken else "; all can be decoded."),
        "charts": charts,
        "placeholders": [
            {
                "picture": photos[rows[0]],
                "note": f"{len(rows):,} rows",
                "text": "",
                "name": f"{', '.join(products[rows[0]])}, \u2026",
            }
            for rows in facts.placeholders[:MAX_CARDS]
        ],
        "pairs": [[(photos[row], facts.name(row)) for row in pair] for pair in facts.across[:MAX_CARDS]],
    }


def _chart(values: Any, label: str, write: Callable[[float], str]) -> tuple[View, Scale]:
    """A histogram for the template, and its axis."""
    drawn = histogram(values)
    most = max(1, int(drawn.counts.max()))
    bars = [
        {"share": float(count / most), "title": f"{write(float(low))} to {write(float(high))}: {count:,}"}
        for count, low, high in zip(drawn.counts, drawn.edges[:-1], drawn.edges[1:], strict=True)
    ]
    ticks = [(100 * drawn.scale.at(tick), write(tick)) for tick in drawn.scale.ticks()]
    chart = {"bars": bars, "ticks": ticks, "logarithmic": drawn.scale.logarithmic, "label": f"Histogram of {label}"}
    return chart, drawn.scale
