"""Bars and axes of the pages' plots.

histogram([12.0, 390.0, 1250.0, ...])    30 bars between 12 and 1,250, on a logarithmic scale
"""

from dataclasses import dataclass
from math import ceil, floor, log, log10

import numpy as np
from numpy.typing import ArrayLike, NDArray

BARS = 30
LOG_SPREAD = 20
"""Largest value over smallest from which a scale is logarithmic, as in the report's plots."""


@dataclass(frozen=True)
class Scale:
    """An axis."""

    low: float
    high: float
    logarithmic: bool = False
    whole: bool = False
    """Whether only whole numbers stand on it."""

    def at(self, value: float) -> float:
        """Place of a value between 0 and 1."""
        if self.low == self.high:
            return 0.5
        place = log if self.logarithmic else float
        return min(1.0, max(0.0, (place(value) - place(self.low)) / (place(self.high) - place(self.low))))

    def ticks(self) -> list[float]:
        """Round values on the axis, seven at most."""
        if self.low == self.high:
            return [self.low]
        if self.logarithmic:
            decades = range(floor(log10(self.low)), ceil(log10(self.high)) + 1)
            choices = [[m * 10.0**k for k in decades for m in ms] for ms in ((1, 2, 5), (1, 3), (1,))]
            choices.append(choices[-1][:: max(1, ceil(len(decades) / 6))])
        else:
            size = 10.0 ** floor(log10(self.high - self.low))
            steps = [size * m for m in (0.1, 0.2, 0.5, 1, 2, 5) if not self.whole or size * m >= 1]
            choices = [
                [step * k for k in range(ceil(self.low / step), floor(self.high / step) + 1)] for step in steps
            ]
        inside = [[tick for tick in ticks if self.low <= tick <= self.high] for ticks in choices]
        return next((ticks for ticks in inside if len(ticks) <= 7), inside[-1])


@dataclass(frozen=True)
class Histogram:
    """Counts of values between edges, which are evenly spaced on the scale."""

    counts: NDArray[np.intp]  # [bars]
    edges: NDArray[np.float64]  # [bars + 1]
    scale: Scale


def histogram(values: ArrayLike, bars: int = BARS) -> Histogram:
    """Bars between the smallest and the largest of finite values, at least one."""
    array = np.asarray(values, float)
    low, high = float(array.min()), float(array.max())
    if low == high:
        return Histogram(np.array([array.size]), np.array([low, high]), Scale(low, high))
    logarithmic = low > 0 and high >= LOG_SPREAD * low  # a linear scale would hide most of them
    whole = not logarithmic and high - low < bars and bool(np.all(array == np.round(array)))
    if whole:
        edges = np.arange(low, high + 2) - 0.5  # a bar for each
    else:
        edges = (np.geomspace if logarithmic else np.linspace)(low, high, bars + 1)
        edges[0], edges[-1] = low, high  # geomspace rounds
    scale = Scale(float(edges[0]), float(edges[-1]), logarithmic, whole)
    return Histogram(np.histogram(array, edges)[0], edges, scale)
