"""The facts of a catalogue's rows, their pictures as no more than figures, so that a million fit in memory.

train row 7 (10432877)  -> PictureFacts of its picture, title "Check Scarf", category BAGS, price 129.0
"""

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

from catalens.catalog.pictures import PictureFacts
from catalens.catalog.storage import Roles, is_missing

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
        self.values: dict[str, list[Any]] = {name: [] for name in roles.fields}
        """By field; None where missing or no finite number."""
        self.firsts: dict[str, int] = {}
        """First row of each product."""
        self._counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, split: str, row: Mapping[str, Any], picture: PictureFacts) -> None:
        """Take a row in."""
        id = "" if row[self.roles.id] is None else str(row[self.roles.id])
        self._counts[split] += 1
        self.firsts.setdefault(id, len(self))
        self.ids.append(id)
        self.splits.append(split)
        self.numbers.append(self._counts[split])
        self.pictures.append(picture)
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
