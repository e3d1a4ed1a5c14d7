"""Numbers of at least k products at a time, and their way back to numbers.

    59.0 59.0 59.0 ... (14 products) 61.5 62.0 64.9 ... (12 products)  ->  [[59.0, 14, true], [63.2, 12, false], ...]

A value that many products share is kept. All others are grouped with their neighbours, and of a group only a mean is
kept that leaves out its smallest and its largest value: so not even the dearest product of a shop moves a figure.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import BSpline, make_interp_spline

from catalens.mimicking.profile import Group, Habit, Histogram

Floats = NDArray[np.float64]

GROUPS = 40
"""Most groups of a histogram, those of shared values not counted."""
DIGITS = 3
NO_HABIT = (0.0, 0.0)
STEPS = (1000.0, 500.0, 100.0, 50.0, 10.0, 5.0, 1.0, 0.5, 0.1, 0.05, 0.01)
CHARM = (-1.0, -0.01, -0.05, -0.1)
"""What shops take off a round price."""
HABITS = tuple(
    sorted(
        [(step, 0.0) for step in STEPS]
        + [(step, off) for step in (1000.0, 100.0, 10.0, 1.0) for off in CHARM if step > -off]
        + [(1.0, -0.5)],
        key=lambda habit: -habit[0],
    )
)
"""From the one that fewest numbers fit by chance."""


def summarise(values: Sequence[float] | Floats, k: int, logarithmic: bool = False) -> Histogram:
    """Group values [products]; empty where they are fewer than `k` + 2.

    `logarithmic` takes geometric means, of values above 0.
    """
    unique, counts = np.unique(np.asarray(values, dtype=float), return_counts=True)
    least = k + 2  # so that a mean that leaves out two is one of k
    full = max(least, math.ceil(counts.sum() / GROUPS))
    groups: list[list[int]] = []
    room = 0  # products that the last group still takes
    for place, count in enumerate(counts.tolist()):
        held = int(counts[groups[-1]].sum()) if groups else 0
        if not groups or room <= 0 or (count >= full and held >= least):
            groups.append([])
            room = full
        groups[-1].append(place)
        room -= count
    if len(groups) > 1 and counts[groups[-1]].sum() < least:
        last = groups.pop()
        groups[-1] += last
    if not groups or counts[groups[0]].sum() < least:
        return ()
    return tuple(_group(unique[places], counts[places], logarithmic) for places in groups)


def quantile(histogram: Histogram, at: float, logarithmic: bool = False) -> float:
    """The value below which the share `at` of the products lies."""
    if (group := pick(histogram, at)).shared or len(histogram) == 1:
        return group.value
    value = float(_curve(histogram, logarithmic)(at))
    return math.exp(value) if logarithmic else value


def pick(histogram: Histogram, at: float) -> Group:
    """The group in which the share `at` of the products, below 1, falls."""
    return histogram[place_of(at, [group.products for group in histogram])]


def place_of(at: float, weights: Sequence[float]) -> int:
    """Which of the weights, laid end to end, the share `at` of their sum falls on; `at` is below 1."""
    bounds = np.cumsum(weights)
    return min(int(np.searchsorted(bounds, at * bounds[-1], side="right")), len(bounds) - 1)


def learn_habits(values: Iterable[float], k: int) -> dict[str, tuple[Habit, ...]]:
    """How numbers are rounded, by their power of ten; those of powers or habits below `k` products under `any`."""
    found: dict[str, Counter[tuple[float, float]]] = {}
    for value in values:
        found.setdefault(_power(value), Counter())[_habit(value)] += 1
    everything = sum(found.values(), Counter())
    kept = {power: habits for power, habits in found.items() if habits.total() >= k} | {"any": everything}
    return {
        power: tuple(Habit(*habit, count) for habit, count in sorted(habits.items()) if count >= k)
        or _unrounded(habits)
        for power, habits in sorted(kept.items())
    }


def round_by(habits: dict[str, tuple[Habit, ...]], value: float, at: float) -> float:
    """Round a drawn number as products of its size are; the share `at` chooses the habit."""
    known = habits.get(_power(value)) or habits.get("any") or (Habit(*NO_HABIT, 1),)
    step, offset, _ = known[place_of(at, [habit.products for habit in known])]
    if not step:
        return float(f"{value:.6g}")
    rounded = round((value - offset) / step) * step + offset
    return round(rounded if rounded * value > 0 else math.copysign(step + offset, value), 6) + 0.0


def _group(values: Floats, counts: NDArray[np.intp], logarithmic: bool) -> Group:
    products = int(counts.sum())
    if len(values) == 1:
        return Group(float(values[0]), products, True)
    inner = np.repeat(np.log(values) if logarithmic else values, counts)[1:-1].mean()
    return Group(float(f"{math.exp(inner) if logarithmic else inner:.{DIGITS}g}"), products, False)


@lru_cache(maxsize=4096)
def _curve(histogram: Histogram, logarithmic: bool) -> BSpline:
    """The quantile function of two or more groups, straight from mean to mean and on beyond the first and last."""
    shares: list[float] = []
    values: list[float] = []
    below, total = 0, sum(group.products for group in histogram)
    for group in histogram:
        for end in (0.001, 0.999) if group.shared else (0.5,):
            shares.append((below + end * group.products) / total)
            values.append(math.log(group.value) if logarithmic else group.value)
        below += group.products
    return make_interp_spline(shares, values, k=1)


def _habit(value: float) -> tuple[float, float]:
    for step, offset in HABITS:
        steps = (value - offset) / step
        if abs(steps - round(steps)) < max(1e-6, 1e-9 * abs(steps)) and round(steps):
            return step, offset
    return NO_HABIT


def _power(value: float) -> str:
    return str(math.floor(math.log10(abs(value)))) if value else "any"


def _unrounded(habits: Counter[Any]) -> tuple[Habit, ...]:
    return (Habit(*NO_HABIT, habits.total()),)
