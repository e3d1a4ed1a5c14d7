"""Charts of the pages as plain numbers: the macros `plot` and `bars` draw them in the page's own colours.

    histogram([12.0, 390.0, 1250.0, ...])                 30 bars between 12 and 1,250, on a logarithmic scale
    scatter([129.0, 390.0], [118.0, 402.5], colours)      a `Plot` of truth against prediction

A plot has an area of `WIDTH` by `height` units, x to the right and y upwards; its paths are in SVG's terms.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log, log10
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from catalens.pages.format import exact_number, number

SERIES = ("#3f7fd0", "#e0792f", "#2f9f78", "#c9579c", "#8f75d6", "#b3922a", "#3fa9bd", "#d4574f")
"""Colours that tell categories and fields apart, on light and on dark."""
WIDTH = 500
BARS = 30
LOG_SPREAD = 20
"""Largest value over smallest from which a scale is logarithmic."""


@dataclass(frozen=True)
class Scale:
    """An axis."""

    low: float
    high: float
    logarithmic: bool = False
    whole: bool = False
    """Set where only whole numbers stand on it."""

    def at(self, value: float) -> float:
        """Position of a value between 0 and 1."""
        if self.low == self.high:
            return 0.5
        scale = log if self.logarithmic else float
        return min(1.0, max(0.0, (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))))

    def ticks(self, most: int = 7) -> list[float]:
        """Round values on the axis."""
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
        return next((ticks for ticks in inside if len(ticks) <= most), inside[-1])


class Marks(NamedTuple):
    """Paths of one style, which is a class of the page, and of one colour."""

    style: str
    paths: list[str]
    colour: str = "var(--accent)"


@dataclass(frozen=True)
class Plot:
    """Axes, and what is drawn between them."""

    x: Scale
    y: Scale
    labels: tuple[str, str]
    marks: list[Marks]
    height: int = WIDTH
    write: Callable[[float], str] = lambda share: f"{100 * share:.4g}\u00a0%"
    """The text of a tick."""
    beyond: int = 0
    """Points outside the frame, drawn as squares on its edge."""

    @property
    def ticks(self) -> tuple[list[tuple[float, str]], list[tuple[float, str]]]:
        """Place and text of each tick of x, and of y."""
        x, y = self.x.ticks(), self.y.ticks(min(7, max(2, self.height // 55)))
        rows = [
            (self.height * (1 - self.y.at(tick)), f"{tick:,g}" if self.y.whole else self.write(tick)) for tick in y
        ]
        return [(WIDTH * self.x.at(tick), self.write(tick)) for tick in x], rows

    def draw(self, style: str, paths: Iterable[Iterable[tuple[float, float]]], colour: str = "var(--accent)") -> None:
        """Add paths, each through its points; one of a single point is a dot."""
        texts = []
        for points in paths:
            places = [f"{WIDTH * self.x.at(x):.1f} {self.height * (1 - self.y.at(y)):.1f}" for x, y in points]
            texts.append(f"M{'L'.join(places)}" + ("h0" if len(places) == 1 else ""))
        self.marks.append(Marks(style, texts, colour))


def reliability(bins: Sequence[Mapping[str, Any]]) -> list[Plot]:
    """Plot share right against confidence, a dot with its interval for each bin that has rows; below, the rows."""
    full = [one for one in bins if one["rows"]]
    upper = Plot(Scale(0, 1), Scale(0, 1), ("", "share that is right"), [])
    upper.draw("line", [[(0, 0), (1, 1)]])
    upper.draw("bound", [[(one["confidence"], one["right"][end]) for end in ("low", "high")] for one in full])
    upper.draw("dots", [[(one["confidence"], one["right"]["value"])] for one in full])
    rows = Scale(0, max((one["rows"] for one in full), default=1), whole=True)
    lower = Plot(Scale(0, 1), rows, ("confidence", "rows"), [], 100)
    sides = [(one["low"], max(one["high"], one["low"] + 0.01), one["rows"]) for one in full]
    lower.draw("bar", [[(low, 0), (low, height), (high, height), (high, 0)] for low, high, height in sides])
    return [upper, lower]


def risk_coverage(curves: Sequence[tuple[str, Sequence[Mapping[str, float]]]]) -> Plot:
    """Plot the error among the most confident rows against their share: (colour, points) of each curve."""
    # the error of the first few rows is 0 or 1 by chance, and would flatten all that follows
    highest = max((p["error"] for _, points in curves for p in points if p["coverage"] >= 0.1), default=0.0)
    top = max(0.05, 1.15 * highest)
    plot = Plot(Scale(0, 1), Scale(0, top), ("share accepted, most confident first", "error among them"), [], 340)
    for colour, points in curves:
        plot.draw("curve", [[(p["coverage"], p["error"]) for p in points if p["error"] <= top]], colour)
    return plot


def scatter(truths: Sequence[float], predictions: Sequence[float], colours: Sequence[str]) -> Plot:
    """Plot finite truths [n] against predictions [n] (infinite ones land on the edge), n at least 1."""
    y_true, y_pred = np.array(truths, float), np.array(predictions, float)
    logarithmic = bool(y_true.min() > 0 and y_true.max() / y_true.min() >= LOG_SPREAD)
    low, high = _frame(y_true, y_pred, logarithmic)
    inside, scale = (y_pred >= low) & (y_pred <= high), Scale(low, high, logarithmic)
    plot = Plot(scale, scale, ("truth", "prediction"), [], write=exact_number, beyond=int((~inside).sum()))
    line = (np.geomspace if logarithmic else np.linspace)(low, high, 50)
    edges = [np.clip(line + way * 0.1 * abs(line), low, high) for way in (1, -1)]
    plot.draw("band", [[*zip(line, edges[0], strict=True), *zip(line[::-1], edges[1][::-1], strict=True)]])
    plot.draw("line", [[(low, low), (high, high)]])
    points = np.column_stack([y_true, np.clip(y_pred, low, high)])
    for style, shown in (("dots", inside), ("dots edge", ~inside)):
        for colour in dict.fromkeys(colours):
            mine = points[shown & (np.array(colours) == colour)]
            plot.draw(style, [[(x, y)] for x, y in mine.tolist()], colour)
    return plot


def _frame(y_true: NDArray[np.float64], y_pred: NDArray[np.float64], logarithmic: bool) -> tuple[float, float]:
    """Both axes' limits: the truths, and the predictions that are not far outside them."""
    usable = y_pred[np.isfinite(y_pred) & ((y_pred > 0) | (not logarithmic))]
    truth, near = (np.log10(y_true), np.log10(usable)) if logarithmic else (y_true, usable)
    span = np.ptp(truth) or abs(float(truth[0])) or 1.0
    near = near[(near > truth.min() - span / 4) & (near < truth.max() + span / 4)]
    both = np.concatenate([truth, near])
    low, high = float(both.min() - span * 0.04), float(both.max() + span * 0.04)
    return (10**low, 10**high) if logarithmic else (low, high)


@dataclass(frozen=True)
class Histogram:
    """Counts of values between edges, which are evenly spaced on the scale."""

    counts: NDArray[np.intp]  # [bars]
    edges: NDArray[np.float64]  # [bars + 1]
    scale: Scale

    def view(self, label: str) -> dict[str, Any]:
        """Bars and ticks for the macro `bars`."""
        most = max(1, int(self.counts.max()))
        bars = [
            (float(count / most), f"{number(low)} to {number(high)}: {count:,}")
            for count, low, high in zip(self.counts, self.edges[:-1], self.edges[1:], strict=True)
        ]
        ticks = [(100 * self.scale.at(tick), exact_number(tick)) for tick in self.scale.ticks()]
        return {"bars": bars, "ticks": ticks, "logarithmic": self.scale.logarithmic, "label": label}


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
