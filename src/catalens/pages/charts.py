"""Charts of the pages: histograms for a template to draw, and plots as SVG that follows the page's theme.

    histogram([12.0, 390.0, 1250.0, ...])                   30 bars between 12 and 1,250, on a logarithmic scale
    scatter([129.0, 390.0], [118.0, 402.5], colours).svg    truth against prediction
    drawn((3.6, 4.0), lambda figure: figure.add_subplot().plot([0, 1], [0, 1], color=LINE))

Only numbers are drawn: whatever a table named (labels, categories) belongs in the HTML around it. Text, grid
and lines carry stand-in colours that become the page's own custom properties.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, log, log10
from typing import Any

import matplotlib as mpl
import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import ArrayLike, NDArray

SERIES = ("#3f7fd0", "#e0792f", "#2f9f78", "#c9579c", "#8f75d6", "#b3922a", "#3fa9bd", "#d4574f")
"""Colours that tell categories and fields apart, on light and on dark."""

TEXT, GRID, LINE, BAND, ACCENT = "#010101", "#020202", "#030303", "#040404", "#050505"
PAGE_COLOURS = {
    TEXT: "var(--muted)",
    GRID: "var(--line)",
    LINE: "var(--ink)",
    BAND: "var(--good)",
    ACCENT: "var(--accent)",
}
BARS = 30
LOG_SPREAD = 20
"""Largest value over smallest from which a scale is logarithmic."""
VECTOR_POINTS = 2000
"""Above this many, points of a scatter plot are one embedded bitmap; axes and text stay vector."""


def drawn(inches: tuple[float, float], paint: Callable[[Figure], object]) -> Markup:
    """Draw on an empty figure, and give it as a bare `<svg>`; the same drawing gives the same text."""
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "catalens", "font.size": 9.0}
    with mpl.rc_context(settings):
        figure = Figure(figsize=inches, dpi=200, layout="constrained")
        paint(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return Markup(_for_page(buffer.getvalue()))  # numbers and our own words only


def dress(axes: Axes) -> None:
    """Set the colours of the page, no frame, the grid behind."""
    axes.xaxis.label.set_color(TEXT)
    axes.yaxis.label.set_color(TEXT)
    axes.tick_params(colors=TEXT, color=GRID, length=3)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def reliability(bins: Sequence[Mapping[str, Any]]) -> Markup:
    """Plot share right against confidence, a dot with its interval for each bin that has rows; below, the rows."""
    full = [one for one in bins if one["rows"]]

    def paint(figure: Figure) -> None:
        upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
        for axes in (upper, lower):
            dress(axes)
        upper.plot([0, 1], [0, 1], color=LINE, linewidth=0.9, alpha=0.7)
        for one in full:
            right = one["right"]
            upper.plot([one["confidence"]] * 2, [right["low"], right["high"]], color=ACCENT, linewidth=1.4, alpha=0.5)
        upper.plot(
            [one["confidence"] for one in full], [one["right"]["value"] for one in full], "o", color=ACCENT, ms=5
        )
        upper.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), ylabel="share that is right")
        lower.bar(
            [one["low"] for one in full],
            [one["rows"] for one in full],
            [max(one["high"] - one["low"], 0.01) for one in full],
            align="edge",
            color=ACCENT,
            alpha=0.55,
        )
        lower.set(xlabel="confidence", ylabel="rows")
        lower.yaxis.set_major_locator(MaxNLocator(2, integer=True))
        for axis in (upper.xaxis, upper.yaxis):
            _percent(axis)

    return drawn((3.6, 4.1), paint)


def risk_coverage(curves: Sequence[tuple[str, Sequence[Mapping[str, float]]]]) -> Markup:
    """Plot the error among the most confident rows against their share: (colour, points) of each curve."""

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        dress(axes)
        for colour, points in curves:
            axes.plot([p["coverage"] for p in points], [p["error"] for p in points], color=colour, linewidth=1.6)
        # the error of the first few rows is 0 or 1 by chance, and would flatten all that follows
        highest = max((p["error"] for _, points in curves for p in points if p["coverage"] >= 0.1), default=0.0)
        axes.set(xlim=(0, 1.01), ylim=(0, max(0.05, 1.15 * highest)))
        axes.set(xlabel="share accepted, most confident first", ylabel="error among them")
        _percent(axes.xaxis)
        _percent(axes.yaxis)

    return drawn((5.2, 3.6), paint)


def _percent(axis: Axis) -> None:
    axis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    axis.set_major_formatter(FuncFormatter(lambda share, _: f"{100 * share:g}\u00a0%"))


def _for_page(svg: str) -> str:
    """The bare `<svg>`: no prolog, metadata, style, size or fonts of its own, no group names to repeat."""
    opening, rest = svg[svg.index("<svg") :].split(">", 1)
    opening = re.sub(r' (width|height|version|xmlns(:\w+)?)="[^"]*"', "", opening)
    rest = re.sub(r"<metadata>.*?</metadata>|<style.*?</style>|<!--.*?-->", "", rest, flags=re.DOTALL)
    rest = re.sub(r'(?<=<g) id="[^"]*"|font-family: [^;"]*;? ?', "", rest)
    for stand_in, colour in PAGE_COLOURS.items():
        rest = rest.replace(stand_in, colour)
    return f"{opening}>" + re.sub(r">\s+<", "><", rest)


# Truth against prediction


@dataclass(frozen=True)
class Scatter:
    """A drawn plot and what a reader has to know of it."""

    svg: Markup
    logarithmic: bool
    beyond: int
    """Predictions outside the frame, drawn as diamonds on its edge."""


def scatter(truths: Sequence[float], predictions: Sequence[float], colours: Sequence[str]) -> Scatter:
    """Draw finite truths [n] against predictions [n] (infinite ones land on the edge), n at least 1."""
    y_true, y_pred = np.array(truths, float), np.array(predictions, float)
    logarithmic = bool(y_true.min() > 0 and y_true.max() / y_true.min() >= LOG_SPREAD)
    low, high = _frame(y_true, y_pred, logarithmic)
    inside = (y_pred >= low) & (y_pred <= high)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        _dress_scatter(axes, low, high, logarithmic)
        for mask, marker in ((inside, "o"), (~inside, "D")):
            axes.scatter(
                y_true[mask],
                np.clip(y_pred[mask], low, high),
                s=15,
                c=np.array(colours)[mask].tolist(),
                marker=marker,
                alpha=0.65,
                linewidths=0,
                clip_on=False,
                zorder=3,
                rasterized=len(y_true) > VECTOR_POINTS,
            )

    return Scatter(drawn((5.2, 5.0), paint), logarithmic, int((~inside).sum()))


def _frame(y_true: NDArray[np.float64], y_pred: NDArray[np.float64], logarithmic: bool) -> tuple[float, float]:
    """Both axes' limits: the truths, and the predictions that are not far outside them."""
    usable = y_pred[np.isfinite(y_pred) & ((y_pred > 0) | (not logarithmic))]
    truth, near = (np.log10(y_true), np.log10(usable)) if logarithmic else (y_true, usable)
    span = np.ptp(truth) or abs(float(truth[0])) or 1.0
    near = near[(near > truth.min() - span / 4) & (near < truth.max() + span / 4)]
    both = np.concatenate([truth, near])
    low, high = float(both.min() - span * 0.04), float(both.max() + span * 0.04)
    return (10**low, 10**high) if logarithmic else (low, high)


def _dress_scatter(axes: Axes, low: float, high: float, logarithmic: bool) -> None:
    """Scales, ticks, the diagonal and the band of 10 % around it."""
    for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        if logarithmic:
            decades = np.log10(high / low)
            (axes.set_xscale if name == "x" else axes.set_yscale)("log")
            axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2.5 else (1, 3) if decades < 5 else (1,)))
        else:
            axis.set_major_locator(MaxNLocator(6))
        axis.set_minor_locator(NullLocator())
        axis.set_major_formatter(
            FuncFormatter(lambda value, _: f"{value:,.12g}" if abs(value) < 1e7 else f"{value:.3g}")
        )
    axes.set(xlim=(low, high), ylim=(low, high), xlabel="truth", ylabel="prediction", aspect="equal")
    dress(axes)
    line = np.geomspace(low, high, 50) if logarithmic else np.linspace(low, high, 50)
    axes.fill_between(line, line - 0.1 * abs(line), line + 0.1 * abs(line), color=BAND, alpha=0.16, linewidth=0)
    axes.plot(line, line, color=LINE, linewidth=0.9, alpha=0.7)


# Histograms


@dataclass(frozen=True)
class Scale:
    """An axis."""

    low: float
    high: float
    logarithmic: bool = False
    whole: bool = False
    """Whether only whole numbers stand on it."""

    def at(self, value: float) -> float:
        """Position of a value between 0 and 1."""
        if self.low == self.high:
            return 0.5
        scale = log if self.logarithmic else float
        return min(1.0, max(0.0, (scale(value) - scale(self.low)) / (scale(self.high) - scale(self.low))))

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
