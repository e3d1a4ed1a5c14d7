"""How values are spread, what stands far out, and which words are spelled in two ways.

histogram([12.0, 390.0, 1250.0, ...])            30 bars between 10 and 2,000, on a logarithmic scale
outliers([95.0, 110.0, 120.0, ..., 11990.0])     True for the last one alone
spelling_twins(["BAGS", "Bags ", "Scarves"])     [["BAGS", "Bags "]]
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import ceil, floor, log, log10

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rapidfuzz.distance import Levenshtein

BARS = 30
LOG_SPREAD = 20
"""Largest value over smallest from which a scale is logarithmic, as in the report's plots."""
FAR = 5.0
"""Modified z-score of an outlier. Iglewicz and Hoaglin (How to Detect and Handle Outliers, 1993) take 3.5 for some
tens of values; of thousands, some pass that by chance."""
FEWEST = 10
"""Values below which no outlier is named."""
COMPARED = 3000
"""Distinct words above which only equal spellings are compared, not near ones: the work grows with the square."""


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


def modified_z(values: ArrayLike) -> NDArray[np.float64]:
    """How far out each value is [N], by median and median absolute deviation; on the log scale if all are positive.

    Prices spread by factors, so a slipped decimal point stands out on the log scale and a dear product does not. Zero
    everywhere where there are fewer than `FEWEST` values.
    """
    array = np.asarray(values, float)
    if array.size < FEWEST:
        return np.zeros(array.size)
    if array.min() > 0:
        array = np.log(array)
    away = np.abs(array - np.median(array))
    deviation = float(np.median(away)) / 0.6745
    if deviation == 0:  # more than half are equal
        deviation = 1.253314 * float(away.mean())
    return away / deviation if deviation else away


def spelling_twins(words: Iterable[str]) -> list[list[str]]:
    """Groups of words that differ in case, white space, Unicode form, punctuation, or one letter of a long word."""
    spellings: dict[str, list[str]] = defaultdict(list)
    for word in sorted(set(words)):
        spellings[_plain(word)].append(word)
    plain = sorted(spellings)
    parent = {word: word for word in plain}
    if len(plain) <= COMPARED:
        for word, other in _one_letter_apart(plain):
            parent[other] = parent[word]
    groups: dict[str, list[str]] = defaultdict(list)
    for word in plain:
        groups[parent[word]] += spellings[word]
    return [group for group in groups.values() if len(group) > 1]


def _plain(word: str) -> str:
    text = unicodedata.normalize("NFKC", word).casefold()
    return " ".join(re.sub(r"[^\w]+", " ", text).split()) or word


def _one_letter_apart(words: Sequence[str]) -> Iterable[tuple[str, str]]:
    """Pairs in order; words that hold digits or are shorter than 6 letters are too often meant to differ."""
    long = [word for word in words if len(word) >= 6 and not any(c.isdigit() for c in word)]
    for position, word in enumerate(long):
        for other in long[position + 1 :]:
            if abs(len(word) - len(other)) <= 1 and Levenshtein.distance(word, other, score_cutoff=1) <= 1:
                yield word, other
