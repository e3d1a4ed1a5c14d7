"""Largest error of a number that counts as right: a share of the truth, or in its own unit.

Tolerance.parse("10%").around(np.array([100.0, 390.0]))      [10.0, 39.0]
str(Tolerance.parse(5))                                      5
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Tolerance:
    """Largest error of a number that counts as right."""

    size: float = 0.1
    relative: bool = True
    """`size` is a share of the truth, not in the field's unit."""

    @classmethod
    def parse(cls, text: str | float) -> Self:
        """Read `10%` or a number in the field's unit; ValueError where it is neither, or below 0."""
        share = isinstance(text, str) and text.strip().endswith("%")
        try:
            size = float(str(text).strip().removesuffix("%")) / (100 if share else 1)
        except ValueError:
            size = math.nan
        if not 0 <= size < math.inf:
            raise ValueError(f"{text!r} is no tolerance: write a share such as 10%, or a number in the field's unit")
        return cls(size, share)

    def __str__(self) -> str:
        return f"{100 * self.size:.6g}\u00a0%" if self.relative else f"{self.size:.6g}"

    def around(self, truth: "Floats") -> "Floats":
        """Largest error that is borne of each truth, [n], with a little room for rounding."""
        size = abs(truth)
        return self.size * (size if self.relative else 1.0) + 1e-9 * size


TEN_PER_CENT = Tolerance()
