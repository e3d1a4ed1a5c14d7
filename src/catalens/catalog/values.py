"""Cells of tables."""

import math
from decimal import Decimal


def is_missing(value: object) -> bool:
    """Tell a cell that holds nothing: None, NaN, or blank text."""
    if isinstance(value, float | Decimal):
        return math.isnan(value) if isinstance(value, float) else value.is_nan()
    return value is None or (isinstance(value, str) and not value.strip())
