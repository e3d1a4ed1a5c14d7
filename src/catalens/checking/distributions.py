"""What stands far out, and which words are spelled in two ways.

modified_z([95.0, 110.0, 120.0, ..., 11990.0])   above `FAR` for the last one alone
spelling_twins(["BAGS", "Bags ", "Scarves"])     [["BAGS", "Bags "]]
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rapidfuzz import process
from rapidfuzz.distance import Levenshtein
from scipy.sparse.csgraph import connected_components

FAR = 5.0
"""Modified z-score of an outlier. Iglewicz and Hoaglin (How to Detect and Handle Outliers, 1993) take 3.5 for some
tens of values; of thousands, some pass that by chance."""
COMPARED = 3000
"""Most words that are searched for near spellings: the work grows with the square."""
FEWEST = 10
"""Values below which no outlier is named."""


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
    """Groups of words that differ in case, white space, Unicode form, punctuation, or one letter of a long word.

    Words that hold digits or are shorter than 6 letters are too often meant to differ by one letter.
    """
    spellings: dict[str, list[str]] = defaultdict(list)
    for word in sorted(set(words)):
        text = unicodedata.normalize("NFKC", word).casefold()
        spellings[" ".join(re.sub(r"[^\w]+", " ", text).split()) or word].append(word)
    long = [word for word in sorted(spellings) if len(word) >= 6 and not any(c.isdigit() for c in word)][:COMPARED]
    alike = process.cdist(["", *long], ["", *long], scorer=Levenshtein.distance, score_cutoff=1) <= 1
    group_of = dict(zip(long, connected_components(alike)[1][1:].tolist(), strict=True))
    groups: dict[str | int, list[str]] = defaultdict(list)
    for word, spelt in sorted(spellings.items()):
        groups[group_of.get(word, word)] += spelt
    return [group for group in groups.values() if len(group) > 1]
