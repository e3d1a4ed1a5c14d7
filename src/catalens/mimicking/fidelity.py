"""How like a drawn catalogue is to its original, as figures and as a page.

    full_price      KS 0.031        exact matches 0 of 3,040 rows        tokens a row 812.4 / 809.9

The page lies in the drawn catalogue and goes where that goes: it shows drawn rows, the distances, and curves of the
profile, never a value of the original.
"""

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from catalens.mimicking.distances import Distance, Figures, distances, expected, measured
from catalens.mimicking.privacy import Nearness, nearness
from catalens.mimicking.profile import RARE, Profile
from catalens.mimicking.surveys import Meter, Survey
from catalens.pages.base import thumbnail, write_page
from catalens.pages.charts import histogram

BINS = 24
BARS = 16
"""Most names of a plot."""
STEPS = 5
CLOSE = 0.1
"""What tuning needs is alike within this share."""


@dataclass(frozen=True)
class Cost:
    """What a row costs, in the original and as drawn."""

    name: str
    original: float
    drawn: float

    @property
    def change(self) -> float:
        """Difference as a share of the original."""
        return self.drawn / self.original - 1 if self.original else float(self.drawn > 0)

    @property
    def close(self) -> bool:
        """Whether it is within `CLOSE`."""
        return abs(self.change) <= CLOSE


@dataclass(frozen=True)
class Fidelity:
    """What the comparison found."""

    rows: int
    k: int
    checked: bool
    """The original was at hand and every drawn row was looked up in it; else the profile stands for it."""
    distances: tuple[Distance, ...]
    costs: tuple[Cost, ...]
    nearness: tuple[Nearness, ...]


def compare(profile: Profile, original: Survey | None, drawn: Survey) -> Fidelity:
    """Compare a drawn catalogue with its original, or with the profile where that is not there."""
    figures = measured(drawn)
    before = measured(original) if original else expected(profile)
    costs = [Cost("bytes a row", profile.bytes_a_row, float(np.mean(figures.numbers["bytes a row"] or [0.0])))]
    if profile.needs and drawn.needs:
        costs += [
            Cost(f"{name} a row", one, other)
            for name, one, other in zip(profile.needs._fields, profile.needs, drawn.needs, strict=True)
        ]
    near = nearness(original, drawn) if original else []
    apart = distances(before, figures, profile)
    return Fidelity(len(drawn), profile.k, original is not None, tuple(apart), tuple(costs), tuple(near))


def time_steps(original: Survey, drawn: Survey, meter: Meter) -> Cost | None:
    """Seconds of a training step on rows of either, the fastest of some by turns; None where there are no rows."""
    samples = [survey.samples[: min(len(original.samples), len(drawn.samples))] for survey in (original, drawn)]
    if not all(samples):
        return None
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(STEPS):
        for rows, taken in zip(samples, seconds, strict=True):
            start = time.perf_counter()
            meter.step(rows)
            taken.append(time.perf_counter() - start)
    return Cost("seconds a step", *map(min, seconds))


def write_fidelity(
    path: Path, profile: Profile, fidelity: Fidelity, drawn: Survey, examples: Sequence[Mapping[str, Any]]
) -> None:
    """Write the page; `examples` are drawn rows with their pictures."""
    before, after = expected(profile), measured(drawn)
    write_page(
        path,
        Path(__file__).with_name("fidelity.html.j2"),
        fidelity=fidelity,
        worst=max(fidelity.distances, key=lambda distance: distance.value),
        bars=[_bars(name, before, after) for name in before.names],
        plots=[
            _plot(name, values, after.numbers[name])
            for name, values in before.numbers.items()
            if values and after.numbers[name]
        ],
        examples=[
            {
                "picture": thumbnail(row[profile.roles.image]),
                "id": row[profile.roles.id],
                "values": [(name, row[name]) for name in profile.roles.fields],
            }
            for row in examples
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
        "columns": [(place * width, width, *pair) for place, pair in enumerate(heights.T.tolist())],
        "low": f"{min(*before, *after):,.4g}",
        "high": f"{max(*before, *after):,.4g}",
        "logarithmic": both.scale.logarithmic,
    }
