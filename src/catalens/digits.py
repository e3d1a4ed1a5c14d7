"""Soft targets of the digits of a number, by which a 4 is nearer to a 5 than to a 9.

    neighbours(390, "390", 0.05)[0]     [0.00, 0.00, 0.00, 0.69, 0.31, 0.00, ...] of the first digit, 0 to 9

A price that was drawn as 390 might as well have been 380 or 410. Learnt as words, its digits are learnt by heart.
"""

from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr

DIGITS = "0123456789"
SMALLEST = 1e-9
"""Mass of a digit's ten choices below which the true one is all there is."""


@lru_cache(maxsize=20_000)
def neighbours(value: float, digits: str, width: float) -> NDArray[np.float32]:
    """Share of each digit 0 to 9 at each of the digits before the point of a number above 0, [places, 10].

    The number is log-normal around its true value, `width` being the standard deviation of its logarithm; a place's
    shares are of the numbers of as many digits that begin with the true ones before it. Whole ones are rounded.
    """
    shares, rounding = np.zeros((len(digits), 10), np.float32), 0.5 if value == int(digits) else 0.0
    for place, digit in enumerate(digits):
        unit, before = 10 ** (len(digits) - 1 - place), int(digits[:place] or 0) * 10
        edges = np.maximum((before + np.arange(11.0)) * unit - rounding, 1e-12)
        own = np.diff(ndtr(np.log(edges / value) / width))
        if place == 0 and len(digits) > 1:
            own[0] = 0.0  # no number begins with it
        shares[place] = own / own.sum() if own.sum() > SMALLEST else np.eye(10)[int(digit)]
    return shares
