"""Plots as SVG that stands in a page and follows its theme.

    drawn((3.6, 4.0), lambda figure: figure.add_subplot().plot([0, 1], [0, 1], color=LINE))

Only numbers are drawn: whatever a table named (labels, categories) belongs in the HTML around it. Text, grid
and lines carry stand-in colours that become the page's own custom properties.
"""

import io
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import matplotlib as mpl
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator

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


def drawn(inches: tuple[float, float], paint: Callable[[Figure], object]) -> Markup:
    """What `paint` draws on an empty figure, as a bare `<svg>`; the same drawing gives the same text."""
    settings: Any = {"svg.fonttype": "none", "svg.hashsalt": "catalens", "font.size": 9.0}
    with mpl.rc_context(settings):
        figure = Figure(figsize=inches, dpi=200, layout="constrained")
        paint(figure)
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return Markup(_for_page(buffer.getvalue()))  # numbers and our own words only


def dress(axes: Axes) -> None:
    """Colours of the page, no frame, the grid behind."""
    axes.xaxis.label.set_color(TEXT)
    axes.yaxis.label.set_color(TEXT)
    axes.tick_params(colors=TEXT, color=GRID, length=3)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


def reliability(bins: Sequence[Mapping[str, Any]]) -> Markup:
    """Share right against confidence, a dot with its interval for each bin that has rows; below, the rows."""
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
    """Error among the most confident rows against their share: (colour, points) of each curve."""

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
