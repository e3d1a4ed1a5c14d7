"""What a check found, as a page: `check.html`.

    write_check(Path("catalogs/demo/check.html"), catalog, evidence, findings, costs, ...)

The page shows counts, plots, and small copies of the pictures that findings name; see `catalens.pages.base`.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from catalens.catalog.storage import SPLITS, Catalog
from catalens.checking.costs import CropCost
from catalens.checking.evidence import Evidence, Finding
from catalens.checking.scanning import pictures_of
from catalens.estimates import GPUS
from catalens.pages.base import thumbnail, write_page
from catalens.pages.charts import Scale, histogram

CATEGORY_BARS = 20
STRIPS = 14
FAR_DOTS = 40
CARDS = 8
REPEATED = 8

Photo = Callable[[int], str | None]
"""A row's thumbnail."""


def write_check(
    path: Path,
    catalog: Catalog,
    evidence: Evidence,
    findings: Sequence[Finding],
    costs: Sequence[CropCost],
    basis: str,
) -> None:
    """Write the page; `basis` says in a sentence what the costs stand on."""
    photo = _photos(catalog, evidence)
    write_page(
        path,
        Path(__file__).with_name("check.html.j2"),
        card=catalog.card,
        headline=headline(findings),
        severities=Counter(finding.severity for finding in findings),
        findings=findings,
        fields=[_field(evidence, name, kind) for name, kind in catalog.card.roles.fields.items()],
        rejections=evidence.rejections,
        numbers=[view for name in evidence.scan.roles.columns("number") if (view := _number(evidence, name, photo))],
        categories=[
            _category(evidence, name) for name in evidence.scan.roles.columns("category") if evidence.categories(name)
        ],
        texts=[view for name in evidence.scan.roles.columns("text") if (view := _text(evidence, name))],
        pictures=_pictures(evidence, photo),
        costs=costs,
        basis=basis,
        gpus=GPUS,
        splits=SPLITS,
    )


def headline(findings: Sequence[Finding]) -> str:
    """The outcome in one sentence."""
    counts = Counter(finding.severity for finding in findings)
    if errors := counts["error"]:
        return f"Mend {errors} {'error' if errors == 1 else 'errors'} before training."
    if warnings := counts["warning"]:
        return f"Ready to train, with {warnings} {'warning' if warnings == 1 else 'warnings'}."
    return "Ready to train."


def _photos(catalog: Catalog, evidence: Evidence) -> Photo:
    """Thumbnails of the rows that the page shows, read in one go."""
    rows = [row for far in evidence.outliers.values() for row, _ in far[:CARDS]]
    rows += [group[0] for group in evidence.placeholders[:CARDS]]
    rows += [row for pair in evidence.across[:CARDS] for row in pair]
    small = {row: thumbnail(data) for row, data in pictures_of(catalog, rows).items()}
    return small.__getitem__


def _field(evidence: Evidence, name: str, kind: str) -> dict[str, Any]:
    known = [value for value in evidence.scan.values[name] if value is not None]
    counts = Counter(known)
    typical = ""
    if known and kind == "number":
        low, middle, high = np.quantile(np.array(known, float), [0.05, 0.5, 0.95])
        typical = f"{_plain(middle)}; 90 % between {_plain(low)} and {_plain(high)}"
    elif known:
        typical = counts.most_common(1)[0][0]
    return {
        "name": name,
        "kind": kind,
        "filled": len(known),
        "missing": len(evidence.scan) - len(known),
        "distinct": len(counts),
        "typical": typical,
    }


def _number(evidence: Evidence, name: str, photo: Photo) -> dict[str, Any] | None:
    scan, by = evidence.scan, evidence.scan.roles.leading
    numbers = scan.values[name]
    known = np.array([value for value in numbers if value is not None], float)
    if not known.size:
        return None
    chart, scale = _chart(known, name, _plain)
    far = evidence.outliers[name]
    groups = evidence.categories(by) if by else {}
    dots = {row for row, _ in far}
    strips = [_strip(word, rows, numbers, dots, scale) for word, rows in list(groups.items())[:STRIPS]]
    return {
        "name": name,
        "by": by,
        "summary": f"{_plain(known.min())} to {_plain(known.max())}, median {_plain(np.median(known))}",
        "chart": chart,
        "strips": strips,
        "hidden": max(0, len(groups) - STRIPS),
        "far": len(far),
        "cards": [
            {
                "picture": photo(row),
                "name": scan.name(row),
                "note": f"{_plain(numbers[row])}, median {_plain(median)}",
                "text": next((scan.values[text][row] or "" for text in evidence.scan.roles.columns("text")), ""),
            }
            for row, median in far[:CARDS]
        ],
    }


def _strip(word: str, rows: Sequence[int], numbers: Sequence[Any], far: set[int], scale: Scale) -> dict[str, Any]:
    """One category on the number's axis: (class, from, to) of each mark in percent."""
    known = np.array([numbers[row] for row in rows if numbers[row] is not None], float)
    marks: list[tuple[str, float, float]] = []
    if known.size:
        low, first, middle, third, high = (
            100 * scale.at(float(value)) for value in np.quantile(known, [0.05, 0.25, 0.5, 0.75, 0.95])
        )
        marks = [("", low, high), ("box", first, third), ("median", middle, middle)]
        dots = [100 * scale.at(numbers[row]) for row in rows if row in far]
        marks += [("far", at, at) for at in dots[:FAR_DOTS]]
    return {"name": word, "count": len(rows), "marks": marks}


def _category(evidence: Evidence, name: str) -> dict[str, Any]:
    groups = evidence.categories(name)
    shown = list(groups.items())[:CATEGORY_BARS]
    most = len(shown[0][1])
    total = sum(map(len, groups.values()))
    covered = sum(len(rows) for _, rows in shown) / total
    bars = []
    for word, rows in shown:
        counts = Counter(evidence.scan.splits[row] for row in rows)
        bars.append(
            {
                "name": word,
                "count": len(rows),
                "title": ", ".join(f"{counts[split]:,} {split}" for split in SPLITS),
                "parts": [100 * counts[split] / most for split in SPLITS],
            }
        )
    summary = f"{len(groups):,} {'category' if len(groups) == 1 else 'categories'}"
    if len(groups) > len(shown):
        summary += f"; the {len(shown)} most frequent hold {covered:.0%} of the rows"
    return {"name": name, "summary": f"{summary}.", "bars": bars}


def _text(evidence: Evidence, name: str) -> dict[str, Any] | None:
    lengths = [len(value) for value in evidence.scan.values[name] if value]
    if not lengths:
        return None
    chart, _ = _chart(lengths, f"Characters of {name}", _plain)
    shared = [(evidence.scan.values[name][row], products) for row, products in evidence.repeated(name)[:REPEATED]]
    summary = f"{min(lengths):,} to {max(lengths):,} characters, median {np.median(lengths):,.0f}"
    return {"name": name, "summary": summary, "chart": chart, "repeated": shared}


def _pictures(evidence: Evidence, photo: Photo) -> dict[str, Any] | None:
    looks = [look for look in evidence.scan.pictures if look.size]
    sizes = np.array([look.size for look in looks], float)  # [N, 2]
    if not looks:
        return None
    charts = []
    for title, unit, values, write in (
        ("Longer side", "pixels", sizes.max(axis=1), _plain),
        ("Aspect ratio", "width \u00f7 height", sizes[:, 0] / sizes[:, 1], lambda value: f"{value:.3g}"),
        ("Stored size", "kilobytes", np.array([look.stored for look in looks]) / 1000, lambda value: f"{value:,.3g}"),
    ):
        chart, _ = _chart(values, title, write)
        low, middle, high = (write(float(value)) for value in np.quantile(values, [0, 0.5, 1]))
        charts.append(chart | {"title": title, "unit": unit, "summary": f"{low} to {high}, median {middle}"})
    formats = Counter(look.format for look in looks).most_common()
    broken = len(evidence.scan) - len(looks)
    scan = evidence.scan
    return {
        "summary": ", ".join(f"{count:,} {form}" for form, count in formats)
        + (f"; {broken:,} cannot be decoded." if broken else "; all can be decoded."),
        "charts": charts,
        "placeholders": [
            {
                "picture": photo(rows[0]),
                "name": ", ".join(sorted(evidence.products(rows))[:3]) + ", \u2026",
                "note": f"{len(rows):,} rows",
            }
            for rows in evidence.placeholders[:CARDS]
        ],
        "pairs": [
            {"left": photo(a), "right": photo(b), "names": (scan.name(a), scan.name(b))}
            for a, b in evidence.across[:CARDS]
        ],
    }


def _chart(values: Any, label: str, write: Callable[[float], str]) -> tuple[dict[str, Any], Scale]:
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


def _plain(value: float) -> str:
    """A number with the digits that a reader needs."""
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e12 else f"{value:,.4g}"
