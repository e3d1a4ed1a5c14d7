"""Numbers, shares and intervals as text, the same in every page.

percent(0.91)                       91.0 %
cell("exact", figure)               {"value": "91.0 %", "interval": "87.3-94.0"}
change("mdape", -0.021, sign="+")   -2.1 points
"""

from collections.abc import Iterable, Mapping
from typing import Any

from catalens.metrics import METRICS, tolerating
from catalens.tolerance import Tolerance

PERCENT = "\u00a0%"


def percent(share: float) -> str:
    """A share; a number that is absurdly far off says only so."""
    return f"{100 * share:,.1f}{PERCENT}" if share <= 100 else f"over 10,000{PERCENT}"


def number(value: float) -> str:
    """A computed number with three digits, or its whole part where that is longer."""
    return f"{value:,.0f}" if 100 <= abs(value) < 1e12 else f"{value:.3g}"


def exact_number(value: float) -> str:
    """A number of the table with the digits that it has."""
    return f"{value:,.12g}" if abs(value) < 1e12 else f"{value:.6g}"


def between(low: float, high: float) -> str:
    """The interval of a share."""
    return percent(low).removesuffix(PERCENT) + "\u2013" + percent(high)


def label(metric: str, within: Tolerance) -> str:
    """Name a metric, with the tolerance that it was measured by."""
    return tolerating(METRICS[metric], within).label


def metric_text(metric: str, value: float) -> str:
    """A figure's value: a share, or a number in the field's unit."""
    return percent(value) if METRICS[metric].share else number(value)


def cell(metric: str, figure: Mapping[str, float] | None) -> dict[str, Any]:
    """`{"value": "91.0 %", "interval": "87.3-94.0"}`, a dash where there is none."""
    if not figure:
        return {"value": "\u2013", "interval": ""}
    low, high = (metric_text(metric, figure[bound]).removesuffix(PERCENT) for bound in ("low", "high"))
    return {"value": metric_text(metric, figure["value"]), "interval": f"{low}\u2013{high}"}


def change(metric: str, value: float, sign: str = "", unit: bool = True) -> str:
    """A difference: percentage points, or the number's own unit; `sign` stands before one above 0."""
    share = METRICS[metric].share
    text = f"{100 * abs(value):,.1f}" if share else number(abs(value))
    signed = ("" if not value else "\u2212" if value < 0 else sign) + text
    return f"{signed} points" if share and unit else signed


def rows_of(rows: int, products: int, what: str = "") -> str:
    """`347 test rows of 300 products`."""
    rows_text = f"{rows:,} {what}{' ' if what else ''}row{'' if rows == 1 else 's'}"
    return f"{rows_text} of {products:,} product{'' if products == 1 else 's'}"


def truths_of(count: int, rows: int) -> str:
    """`n = 312 of 347`: the rows that have a truth; nothing where all have, `no truths` where none has."""
    return "" if count == rows else f"n = {count:,} of {rows:,}" if count else "no truths"


def listed(words: Iterable[str]) -> str:
    """`a, b and c`."""
    *most, last = words
    return f"{', '.join(most)} and {last}" if most else last
