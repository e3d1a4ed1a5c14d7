"""Fidelity of a drawn catalogue as a page and in a terminal.

The page lies in the drawn catalogue and goes where that goes: it shows drawn rows, the distances, and curves of the
profile, never a value of the original.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from catalens.mimicking.fidelity import Fidelity, expected, measured
from catalens.mimicking.learning import Survey
from catalens.mimicking.profile import Profile
from catalens.pages.base import shown, thumbnail, write_page
from catalens.pages.charts import histogram

BINS, BARS = 24, 16  # of numbers; most names of a plot


def write_fidelity(
    path: Path, profile: Profile, fidelity: Fidelity, drawn: Survey, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Write the page; `rows` are drawn ones with their pictures."""
    before, after = expected(profile), measured(drawn, profile)
    bars = [_bars(name, one, after.names[name]) for name, one in before.names.items()]
    pairs = [(name, one, after.numbers[name]) for name, one in before.numbers.items()]
    plots = [_plot(name, one, other) for name, one, other in pairs if one and other]
    examples = [
        (thumbnail(row[profile.roles.image]), row[profile.roles.id], [(f, row[f]) for f in profile.roles.fields])
        for row in rows
    ]
    worst = max(fidelity.distances, key=lambda distance: distance.value)
    template = Path(__file__).with_name("fidelity.html.j2")
    write_page(path, template, fidelity=fidelity, worst=worst, bars=bars, plots=plots, examples=examples)


def _bars(name: str, before: Counter[str], after: Counter[str]) -> dict[str, Any]:
    """Shares of the most frequent names, [(name, of the profile, as drawn)]."""
    totals = max(before.total(), 1), max(after.total(), 1)
    shares = [(word, n / totals[0], after[word] / totals[1]) for word, n in before.most_common(BARS)]
    largest = max((max(pair) for _, *pair in shares), default=0) or 1.0
    return {"name": name, "bars": shares, "largest": largest, "more": max(len(before) - BARS, 0)}


def _plot(name: str, before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    """Shares by bin of two samples of numbers, the largest 1."""
    both = histogram([*before, *after], BINS)
    sides = np.array([np.histogram(side, both.edges)[0] / len(side) for side in (before, after)])  # [2, bins]
    return {
        "name": name,
        "columns": (sides / sides.max()).T.tolist(),
        "low": f"{min(*before, *after):,.4g}",
        "high": f"{max(*before, *after):,.4g}",
        "logarithmic": both.scale.logarithmic,
    }


def print_fidelity(fidelity: Fidelity, console: Console) -> None:
    """Print what a row costs side by side, the distances, and what was looked for and not found."""
    costs = Table("", "original", "drawn", "", box=None, padding=(0, 3, 0, 0))
    for cost in fidelity.costs:
        change = f"[{'green' if cost.close else 'yellow'}]{cost.change:+.1%}[/]"
        costs.add_row(cost.name, f"{cost.original:,.4g}", f"{cost.drawn:,.4g}", change)
    distances = Table("", "", "distance", "by chance", box=None, padding=(0, 3, 0, 0))
    for distance in fidelity.distances:
        chance = "" if distance.chance is None else f"{distance.chance:.3f}"
        distances.add_row(escape(shown(distance.name)), distance.measure, f"{distance.value:.3f}", chance)
    for table in (costs, distances):
        for column in table.columns[1:]:
            column.justify = "right" if column.header else "left"
        console.print(table)
    looked_up = f"0 of {fidelity.rows:,} rows, each looked up in the original"
    found = looked_up if fidelity.checked else "not looked up, the original is not at hand"
    console.print(f"exact matches: {found}", highlight=False)
