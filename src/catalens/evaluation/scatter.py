"""Truth against prediction of a number field, as SVG that stands in a page.

scatter(truths=[129.0, 390.0], predictions=[118.0, 402.5], colours=["#3f7fd0", "#e0792f"])
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from catalens.evaluation.plots import BAND, LINE, drawn, dress

VECTOR_POINTS = 2000
"""Above this many, points are one embedded bitmap; axes and text stay vector."""
LOG_SPREAD = 20
"""Largest truth over smallest from which both axes are logarithmic."""


@dataclass(frozen=True)
class Scatter:
    """A drawn plot and what a reader has to know of it."""

    svg: Markup
    logarithmic: bool
    beyond: int
    """Predictions outside the frame, drawn as diamonds on its edge."""


def scatter(truths: Sequence[float], predictions: Sequence[float], colours: Sequence[str]) -> Scatter:
    """Draw finite truths [n] against predictions [n] (infinite ones land on the edge), n at least 1."""
    true, said = np.array(truths, float), np.array(predictions, float)
    logarithmic = bool(true.min() > 0 and true.max() / true.min() >= LOG_SPREAD)
    low, high = _frame(true, said, logarithmic)
    inside = (said >= low) & (said <= high)

    def paint(figure: Figure) -> None:
        axes = figure.add_subplot()
        _dress(axes, low, high, logarithmic)
        for mask, marker in ((inside, "o"), (~inside, "D")):
            axes.scatter(
                true[mask],
                np.clip(said[mask], low, high),
                s=15,
                c=np.array(colours)[mask].tolist(),
                marker=marker,
                alpha=0.65,
                linewidths=0,
                clip_on=False,
                zorder=3,
                rasterized=len(true) > VECTOR_POINTS,
            )

    return Scatter(drawn((5.2, 5.0), paint), logarithmic, int((~inside).sum()))


def _frame(true: NDArray[np.float64], said: NDArray[np.float64], logarithmic: bool) -> tuple[float, float]:
    """Both axes' limits: the truths, and the predictions that are not far outside them."""
    usable = said[np.isfinite(said) & ((said > 0) | (not logarithmic))]
    truth, near = (np.log10(true), np.log10(usable)) if logarithmic else (true, usable)
    span = np.ptp(truth) or abs(float(truth[0])) or 1.0
    near = near[(near > truth.min() - span / 4) & (near < truth.max() + span / 4)]
    both = np.concatenate([truth, near])
    low, high = float(both.min() - span * 0.04), float(both.max() + span * 0.04)
    return (10**low, 10**high) if logarithmic else (low, high)


def _dress(axes: Axes, low: float, high: float, logarithmic: bool) -> None:
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
