"""How like a drawn catalogue is to its original, as a page and in a terminal.

The page lies in the drawn catalogue and goes where that goes: it shows drawn rows, the distances, and curves of the
profile, never a value of the original.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from catalens.checkpoint import load_model
from catalens.collation import Collator
from catalens.mimicking.fidelity import Cost, Fidelity, Figures, expected, measured
from catalens.mimicking.learning import Survey
from catalens.mimicking.profile import RARE, Profile
from catalens.pages.base import shown, thumbnail, write_page
from catalens.pages.histograms import histogram

BINS = 24
BARS = 16
"""Most names of a plot."""
STEPS = 5


def write_fidelity(
    path: Path, profile: Profile, fidelity: Fidelity, drawn: Survey, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Write the page; `rows` are drawn ones with their pictures."""
    before, after = expected(profile), measured(drawn)
    pairs = [(name, values, after.numbers[name]) for name, values in before.numbers.items()]
    write_page(
        path,
        Path(__file__).with_name("fidelity.html.j2"),
        fidelity=fidelity,
        worst=max(fidelity.distances, key=lambda distance: distance.value),
        bars=[_bars(name, before, after) for name in before.names],
        plots=[_plot(name, one, other) for name, one, other in pairs if one and other],
        examples=[
            {
                "picture": thumbnail(row[profile.roles.image]),
                "id": row[profile.roles.id],
                "values": [(name, row[name]) for name in profile.roles.fields],
            }
            for row in rows
        ],
    )


def _bars(name: str, before: Figures, after: Figures) -> dict[str, Any]:
    """Shares of the most frequent names, [(name, of the profile, as drawn)]."""
    one, other = Counter(before.names[name]), after.names[name]
    del one[RARE]
    totals = max(one.total(), 1), max(sum(other[word] for word in one), 1)
    shares = [(word, n / totals[0], other[word] / totals[1]) for word, n in one.most_common(BARS)]
    largest = max((max(pair) for _, *pair in shares), default=1.0)
    return {"name": name, "bars": shares, "largest": largest or 1.0, "more": max(len(one) - BARS, 0)}


def _plot(name: str, before: Sequence[float], after: Sequence[float]) -> dict[str, Any]:
    """Shares by bin of two sets of numbers, for an SVG of 100 x 40 units."""
    both = histogram([*before, *after], BINS)
    sides = [np.histogram(side, both.edges)[0] / len(side) for side in (before, after)]
    heights = 40 * np.array(sides) / np.max(sides)  # [2, bins]
    width = 100 / len(both.counts)
    return {
        "name": name,
        "columns": [(index * width, width, *pair) for index, pair in enumerate(heights.T.tolist())],
        "low": f"{min(*before, *after):,.4g}",
        "high": f"{max(*before, *after):,.4g}",
        "logarithmic": both.scale.logarithmic,
    }


def print_fidelity(
    fidelity: Fidelity, examples: tuple[Sequence[Any], Sequence[Any]] | None, console: Console
) -> None:
    """Print what a row costs side by side, the distances, and what was looked for and not found."""
    costs = Table(box=None, padding=(0, 3, 0, 0), title_justify="left")
    for heading in ("", "original", "drawn", ""):
        costs.add_column(heading, justify="right" if heading else "left")
    for cost in [*fidelity.costs, *([time_steps(*examples)] if examples and all(examples) else [])]:
        colour = "green" if cost.close else "yellow"
        figures = f"{cost.original:,.4g}", f"{cost.drawn:,.4g}", f"[{colour}]{cost.change:+.1%}[/]"
        costs.add_row(cost.name, *figures)
    console.print(costs)
    distances = Table(box=None, padding=(0, 3, 0, 0))
    for heading in ("", "", "distance", "by chance"):
        distances.add_column(heading, justify="right" if heading else "left")
    for distance in fidelity.distances:
        chance = "" if distance.chance is None else f"{distance.chance:.3f}"
        distances.add_row(escape(shown(distance.name)), distance.measure, f"{distance.value:.3f}", chance)
    console.print(distances)
    looked_up = f"0 of {fidelity.rows:,} rows, each looked up in the original"
    found = looked_up if fidelity.checked else "not looked up, the original is not at hand"
    console.print(f"exact matches: {found}", highlight=False)


def time_steps(original: Sequence[Any], drawn: Sequence[Any]) -> Cost:
    """Time training steps of the tiny model on encoded rows of either, the fastest of some by turns."""
    model = load_model("tiny").train()
    collate = Collator(model.config.pad_token_id or 0)
    rows = min(len(original), len(drawn))
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(STEPS):
        for examples, taken in zip((original, drawn), seconds, strict=True):
            batch = {name: value.to(model.device) for name, value in collate(examples[:rows]).items()}
            start = time.perf_counter()
            model(**batch).loss.backward()
            taken.append(time.perf_counter() - start)
    return Cost("seconds a step", min(seconds[0]), min(seconds[1]))
