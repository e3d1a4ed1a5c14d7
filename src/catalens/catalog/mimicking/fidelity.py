"""How like a drawn catalogue is to its original, as figures and as a page.

    full_price      KS 0.031        exact matches 0 of 3,040 rows        tokens a row 812.4 / 809.9

The page lies in the drawn catalogue and goes where that goes: it shows drawn rows, the distances, and curves of the
profile, never a value of the original.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from catalens.catalog.mimicking.privacy import Nearness, nearness
from catalens.catalog.mimicking.profile import RARE, Profile
from catalens.catalog.mimicking.surveys import Distance, Meter, Survey, distances, survey_profile
from catalens.catalog.page import thumbnail, write_page

BINS = 24
BARS = 16
"""Most names of a plot."""
LOG_SPREAD = 20
"""Largest number over smallest from which a plot is logarithmic."""
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
    rare: Mapping[str, tuple[float, float]]
    """By text column, the share of words that are rare in the original, and invented as drawn."""


def compare(profile: Profile, original: Survey, drawn: Survey, checked: bool) -> Fidelity:
    """Compare a drawn catalogue with its original, or with the survey of the profile where that is not there."""
    costs = [Cost("bytes a row", profile.bytes_a_row, float(np.mean(drawn.numbers["bytes a row"] or [0.0])))]
    if profile.needs and drawn.needs:
        costs += [
            Cost(f"{name} a row", before, after)
            for name, before, after in zip(profile.needs._fields, profile.needs, drawn.needs, strict=True)
        ]
    rare: dict[str, tuple[float, float]] = {}
    for column in profile.texts:
        known, found = profile.words(column), drawn.names[f"words of {column}"]
        invented = sum(n for word, n in found.items() if word not in known)
        rare[column] = known[RARE] / max(known.total(), 1), invented / max(found.total(), 1)
    near = nearness(original, drawn) if checked else []
    return Fidelity(
        drawn.rows, profile.k, checked, tuple(distances(original, drawn, profile)), tuple(costs), tuple(near), rare
    )


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
    expected = survey_profile(profile)
    write_page(
        path,
        Path(__file__).with_name("fidelity.html.j2"),
        fidelity=fidelity,
        worst=max(fidelity.distances, key=lambda distance: distance.value),
        bars=[_bars(name, expected, drawn) for name in (*profile.categories, *_words(profile), "format")],
        plots=[
            _plot(name, expected.numbers[name], drawn.numbers[name])
            for name in (*profile.numbers, *(f"{column}, words" for column in profile.texts), *_PICTURES)
            if expected.numbers[name] and drawn.numbers[name]
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


_PICTURES = ("longer side", "width / height", "border brightness")


def _words(profile: Profile) -> list[str]:
    return [f"words of {column}" for column in profile.texts]


def _bars(name: str, expected: Survey, drawn: Survey) -> dict[str, Any]:
    """Shares of the most frequent names, [(name, of the profile, as drawn)]."""
    before, after = expected.names[name], drawn.names[name]
    del before[RARE]
    totals = max(before.total(), 1), max(sum(after[word] for word in before), 1)
    shares = [(word, n / totals[0], after[word] / totals[1]) for word, n in before.most_common(BARS)]
    largest = max((max(one, other) for _, one, other in shares), default=1.0)
    return {"name": name, "bars": shares, "largest": largest or 1.0, "more": max(len(before) - BARS, 0)}


def _plot(name: str, expected: Sequence[float], drawn: Sequence[float]) -> dict[str, Any]:
    """Shares by bin of two sets of numbers, for an SVG of 100 x 40 units."""
    both = np.array([*expected, *drawn], dtype=float)
    low, high = np.quantile(both, (0.005, 0.995))
    logarithmic = bool(both.min() > 0 and low > 0 and high / low > LOG_SPREAD)
    values = np.unique(both)
    if len(values) <= BINS:  # few values: each has its own bin
        edges = np.concatenate([[values[0] - 0.5], (values[1:] + values[:-1]) / 2, [values[-1] + 0.5]])
    else:
        high = high if high > low else low + 1
        edges = np.geomspace(low, high, BINS + 1) if logarithmic else np.linspace(low, high, BINS + 1)
    shares = [np.histogram(np.clip(side, edges[0], edges[-1]), edges)[0] / len(side) for side in (expected, drawn)]
    top = float(max(shares[0].max(), shares[1].max()))
    width = 100 / (len(edges) - 1)
    return {
        "name": name,
        "columns": [
            (place * width, width, 40 * one / top, 40 * other / top)
            for place, (one, other) in enumerate(zip(*(side.tolist() for side in shares), strict=True))
        ],
        "low": f"{values[0] if len(values) <= BINS else edges[0]:,.4g}",
        "high": f"{values[-1] if len(values) <= BINS else edges[-1]:,.4g}",
        "logarithmic": logarithmic and len(values) > BINS,
    }
