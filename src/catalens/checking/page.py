"""The view of a check: what `check.html.j2` and a terminal show, by section, as plain data.

    view_of(...)["numbers"][0]
    {"name": "full_price", "by": "category3_code", "summary": "95 to 11,990, median 390", "strips": [...], ...}

The page shows counts, plots, and small copies of the pictures that findings name; see `catalens.pages.base`.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from catalens.catalog.storage import SPLITS, Catalog
from catalens.checking.costs import CropCost, method_name
from catalens.checking.facts import Facts
from catalens.checking.rules import SEVERITIES, Count, Finding
from catalens.config import TrainingSpec
from catalens.pages.base import shown, thumbnail
from catalens.pages.charts import Scale, histogram
from catalens.pages.format import number

MAX_BARS, MAX_STRIPS, MAX_DOTS, MAX_CARDS = 20, 14, 40, 8
"""Categories with a bar, with a strip; outliers on a strip; cards that are shown."""
COLOURS = {"error": "bold red", "warning": "yellow", "note": "dim"}
View = dict[str, Any]


def view_of(
    catalog: Catalog,
    facts: Facts,
    findings: Sequence[Finding],
    costs: Sequence[CropCost],
    training: TrainingSpec,
    basis: str,
) -> View:
    """Gather what is shown; `basis` says in a sentence what the costs of `training` stand on."""
    photos, card = _photos(catalog, facts), catalog.card
    found = Counter(finding.severity for finding in findings)
    return {
        "card": card,
        "rows": sum(card.rows.values()),
        "products": sum(card.products.values()),
        "headline": _headline(found),
        "rows_by_split": [f"{count:,} {split}" for split, count in card.rows.items()],
        "severities": [f"{Count(found[severity]):{severity}}" for severity in SEVERITIES],
        "findings": findings,
        "fields": [_field(facts, name, kind) for name, kind in card.roles.fields.items()],
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


def _headline(found: Mapping[str, int]) -> str:
    if found["error"]:
        return f"Mend {Count(found['error']):error} before training."
    if found["warning"]:
        return f"Ready to train, with {Count(found['warning']):warning}."
    return "Ready to train."


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
    counts, typical = Counter(known), ""
    if known and kind == "number":
        low, middle, high = map(number, np.quantile(np.array(known, float), [0.05, 0.5, 0.95]))
        typical = f"{middle}; 90 % between {low} and {high}"
    elif known:
        typical = counts.most_common(1)[0][0]
    shares = {"filled": len(known), "missing": len(facts) - len(known), "distinct": len(counts)}
    return {"name": name, "kind": kind, "typical": typical, **shares}


def _number(facts: Facts, name: str, photos: Mapping[int, str | None]) -> View:
    by, numbers, far = facts.roles.leading, facts.values[name], facts.outliers[name]
    known = np.array([value for value in numbers if value is not None], float)
    drawn = histogram(known)
    groups, dots = facts.categories(by) if by else {}, {row for row, _ in far}
    strips = [_strip(word, rows, numbers, dots, drawn.scale) for word, rows in list(groups.items())[:MAX_STRIPS]]
    legend = f"Line: 90\u00a0% of the rows; box: half of them; tick: median{'; dots: outliers' if far else ''}."
    if len(groups) > MAX_STRIPS:
        legend += f" The {MAX_STRIPS} largest of {len(groups)} categories."
    texts = facts.roles.columns("text")[:1]
    cards = [
        {
            "picture": photos[row],
            "note": f"{number(numbers[row])}, median {number(median)}",
            "text": "".join(facts.values[text][row] or "" for text in texts),
            "name": facts.name(row),
        }
        for row, median in far[:MAX_CARDS]
    ]
    return {
        "name": name,
        "by": by,
        "summary": _summary(known),
        "chart": drawn.view(name),
        "strips": strips,
        "legend": legend,
        "cards": cards,
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
    bars = list(groups.items())[:MAX_BARS]
    summary = f"{len(groups):,} {'category' if len(groups) == 1 else 'categories'}"
    if len(groups) > len(bars):
        share = sum(len(rows) for _, rows in bars) / sum(map(len, groups.values()))
        summary += f"; the {len(bars)} most frequent hold {share:.0%} of the rows"
    counts = [(word, Counter(facts.splits[row] for row in rows)) for word, rows in bars]
    by_split = [(word, [own[split] for split in SPLITS]) for word, own in counts]
    return {"name": name, "summary": f"{summary}.", "bars": by_split, "most": len(bars[0][1])}


def _text(facts: Facts, name: str) -> View:
    lengths = [len(value) for value in facts.values[name] if value]
    chart = histogram(lengths).view(f"Characters of {name}")
    return {"name": name, "summary": _summary(lengths, " characters"), "chart": chart}


def _pictures(facts: Facts, photos: Mapping[int, str | None]) -> View | None:
    looks = [look for _, look in facts.all_pictures if look.size]
    if not looks:
        return None
    sizes = np.array([look.size for look in looks], float)  # [N, 2]
    stored = np.array([look.stored for look in looks]) / 1000
    charts = [
        (title, unit, _summary(values), histogram(values).view(title))
        for title, unit, values in (
            ("Longer side", "pixels", sizes.max(axis=1)),
            ("Aspect ratio", "width \u00f7 height", sizes[:, 0] / sizes[:, 1]),
            ("Stored size", "kilobytes", stored),
        )
    ]
    formats = Counter(look.format for look in looks).most_common()
    broken = len(facts.all_pictures) - len(looks)
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


def _summary(values: Any, unit: str = "") -> str:
    low, middle, high = map(number, np.quantile(values, [0, 0.5, 1]))
    return f"{low} to {high}{unit}, median {middle}"


def print_check(view: Mapping[str, Any], console: Console) -> None:
    """Print the outcome, one line a finding with its first row, and what training costs."""
    console.print(f"{', '.join(view['rows_by_split'])} rows of {view['products']:,} products", highlight=False)
    fields = [
        f"{_safe(field['name'])} ({field['kind']}{f', {missing:,} missing' if (missing := field['missing']) else ''})"
        for field in view["fields"]
    ]
    console.print(f"fields: {', '.join(fields)}", highlight=False)
    table = Table.grid(padding=(0, 2, 0, 0))
    for finding in view["findings"]:
        table.add_row(f"[{COLOURS[finding.severity]}]{finding.severity}[/]", _safe(finding.title))
        if finding.rows:
            row, detail = map(_safe, finding.rows[0])
            table.add_row("", f"[dim]{row}{': ' if detail else ''}{detail}[/]")
        table.add_row("", f"[dim]fix:[/] {_safe(finding.fix)}")
    console.print(table)
    if view["costs"]:
        console.print(_costs(view["costs"], view["method"]))
    console.print(f"[bold]{view['headline']}[/]", highlight=False)


def _costs(costs: Sequence[CropCost], method: str) -> Table:
    """Costs of the recipe's method by `num_crops`."""
    memory = ["checkpointed" if checkpointing else "GB a step" for checkpointing in costs[0].memory]
    title = f"{method}, {costs[0].step_rows:,} rows a step"
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), show_edge=False, title=title)
    for heading in ("num_crops", "tokens\na row", "steps\nan epoch", "TFLOP\na row", *memory):
        table.add_column(heading, justify="right", no_wrap=True)
    table.add_column("fits GPUs\nfrom")
    for cost in costs:
        figures = (f"{cost.tokens:,.0f}", f"{cost.steps:,}", f"{cost.tflop:,.3g}")
        table.add_row(str(cost.num_crops), *figures, *(f"{gb:,.1f}" for gb in cost.memory.values()), cost.fits())
    return table


def _safe(value: str) -> str:
    return escape(shown(value))
