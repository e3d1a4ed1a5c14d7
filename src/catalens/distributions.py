"""Distributions over the values that a field of an answer may have, as the model's probabilities have them.

    Distribution((118.0, 129.0, 135.0), (0.2, 0.5, 0.28)).point("median")     129.0

Values stand once each, in ascending order where they are numbers, the likeliest first where they are words; their
probabilities add up to what of the tree was looked at, 0.98 and more as a rule.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from catalens.tolerance import Tolerance

Estimate = Literal["median", "mean", "mode"]
TOP = 3
"""Likeliest categories that are told, and of which one should be right."""


@dataclass(frozen=True)
class Distribution:
    """Values of a field with their probabilities."""

    values: tuple[float | str, ...]
    probabilities: tuple[float, ...]

    @classmethod
    def of(cls, found: Mapping[float | str, float]) -> "Distribution":
        """Order the probabilities of values."""
        numbers = all(not isinstance(value, str) for value in found)
        by = (lambda pair: pair[0]) if numbers else (lambda pair: (-pair[1], pair[0]))
        pairs = sorted(found.items(), key=by)
        return cls(tuple(value for value, _ in pairs), tuple(share for _, share in pairs))

    @property
    def mode(self) -> float | str:
        """The likeliest value."""
        return max(zip(self.probabilities, self.values, strict=True), key=lambda pair: pair[0])[1]

    def top(self, count: int = TOP) -> list[tuple[float | str, float]]:
        """Select the likeliest values, each with its probability."""
        order = np.argsort(-np.array(self.probabilities), kind="stable")[:count]
        return [(self.values[i], self.probabilities[i]) for i in order.tolist()]

    def quantile(self, share: float) -> float:
        """Give the lowest value below or at which so much of the mass lies."""
        mass = np.cumsum(self.probabilities)
        return float(self.values[min(int(np.searchsorted(mass, share * mass[-1] - 1e-12)), len(mass) - 1)])

    def point(self, estimate: Estimate) -> float:
        """Give the number that stands for the distribution, always one of its values.

        The median errs least in absolute terms. `mean` is the value nearest to the mean.
        """
        if estimate == "mode":
            return float(self.mode)
        if estimate == "median":
            return self.quantile(0.5)
        values, probabilities = np.array(self.values, float), np.array(self.probabilities)
        mean = values @ probabilities / probabilities.sum()
        return float(values[np.abs(values - mean).argmin()])

    def around(self, share: float = 0.68) -> tuple[float, float]:
        """Give the quantiles between which so much of the mass lies, in the middle."""
        return self.quantile((1 - share) / 2), self.quantile((1 + share) / 2)

    def score(self, value: float | str, within: Tolerance) -> float:
        """Give the probability that a value is right, of a number within its tolerance; never 0."""
        if isinstance(value, str):
            return max(dict(zip(self.values, self.probabilities, strict=True)).get(value, 0.0), 1e-9)
        count = len(self.probabilities) + 1  # no more certain than as many quantiles can tell
        return (self.near(value, within) * count + 0.5) / (count + 1)

    def near(self, value: float, within: Tolerance) -> float:
        """Give the probability that the truth has `value` within its tolerance."""
        truths = np.array(self.values, float)
        return float(np.array(self.probabilities)[np.abs(truths - value) <= within.around(truths)].sum())
