"""The facts of a catalogue's rows, their pictures as no more than figures, so that a million fit in memory.

train row 7 (10432877)  -> PictureFacts of its picture, title "Check Scarf", category BAGS, price 129.0
"""

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from catalens.catalog.pictures import PictureFacts
from catalens.catalog.storage import Roles
from catalens.catalog.values import is_missing

LARGEST = 1e300
"""Size to which numbers are cut, so that sums and differences stay finite."""


class Scan:
    """The facts of N rows, in the order in which they are added."""

    def __init__(self, roles: Roles) -> None:
        self.roles = roles
        self.ids: list[str] = []
        self.splits: list[str] = []
        self.numbers: list[int] = []
        """Row numbers within the split, from 1."""
        self.pictures: list[PictureFacts] = []
        """The first of each row."""
        self.further: list[tuple[PictureFacts, ...]] = []
        """The other ones of each row."""
        self.values: dict[str, list[Any]] = {name: [] for name in roles.fields}
        """By field; None where missing or no finite number."""
        self.firsts: dict[str, int] = {}
        """First row of each product."""
        self._counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def all_pictures(self) -> list[tuple[int, PictureFacts]]:
        """All pictures, each with its row."""
        rows = enumerate(zip(self.pictures, self.further, strict=True))
        return [(row, picture) for row, (first, further) in rows for picture in (first, *further)]

    def add(self, split: str, row: Mapping[str, Any], pictures: Sequence[PictureFacts]) -> None:
        """Take a row in, with the facts of its pictures."""
        id = "" if row[self.roles.id] is None else str(row[self.roles.id])
        self._counts[split] += 1
        self.firsts.setdefault(id, len(self))
        self.ids.append(id)
        self.splits.append(split)
        self.numbers.append(self._counts[split])
        self.pictures.append(pictures[0])
        self.further.append(tuple(pictures[1:]))
        for name, kind in self.roles.fields.items():
            value = row[name]
            if kind == "number":
                finite = isinstance(value, int | float) and math.isfinite(value)
                self.values[name].append(max(-LARGEST, min(LARGEST, value)) if finite else None)
            else:
                self.values[name].append(None if is_missing(value) else str(value))

    def name(self, row: int) -> str:
        """`train row 7 (10432877)`, as everywhere else."""
        return f"{self.splits[row]} row {self.numbers[row]} ({self.ids[row]})"
