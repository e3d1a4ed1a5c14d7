"""Answers without a trained model, which a trained one is to beat.

majority(kinds, train, rows)                         the most frequent value, or the median, whatever is shown
nearest_neighbour(train, train_features, features)   the values of the training picture most like it
"""

from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from sklearn.neighbors import NearestNeighbors

from catalens.metrics import Row, rows_with


def majority(kinds: Mapping[str, str], train: Sequence[Row], rows: int) -> list[Row]:
    """Repeat the most frequent text and category (of a tie the first in alphabetical order) and the median number.

    None, which is wrong, stands for a column that no training row has.
    """
    constant: dict[str, object] = {}
    for name, kind in kinds.items():
        counts = Counter(value for row in train if (value := row[name]) is not None)
        most = min(counts, key=lambda value: (-counts[value], str(value)), default=None)
        numbers = [float(value) for value in counts.elements()] if kind == "number" else []  # pyright: ignore[reportArgumentType]
        constant[name] = float(np.median(numbers)) if numbers else most
    return [constant] * rows


def nearest_neighbour(train: Sequence[Row], train_features: NDArray, features: NDArray) -> list[Row]:
    """Copy to every row the values of the training picture with the nearest features [rows, d], by Euclid.

    A value is that of the nearest picture whose row has the column; None, which is wrong, where no row has.
    """
    nearest: dict[tuple[int, ...], list[int]] = {}  # by the training rows that have a column
    copied: list[dict[str, object]] = [{} for _ in features]
    for name in train[0]:
        known = tuple(rows_with(name, train))
        if known not in nearest:
            nearest[known] = _nearest(np.array(known, np.intp), train_features, features) if known else []
        for row, i in zip(copied, nearest[known] or [None] * len(copied), strict=True):
            row[name] = None if i is None else train[i][name]
    return [*copied]


def _nearest(known: NDArray[np.intp], train_features: NDArray, features: NDArray) -> list[int]:
    index = NearestNeighbors(n_neighbors=1).fit(train_features[known])
    return known[index.kneighbors(features, return_distance=False)[:, 0]].tolist()
