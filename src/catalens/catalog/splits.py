"""Which split a row belongs to: decided by its product, never by its place in the table.

A product's split is a hash of its id, so a table that grows keeps every row where it was, and two machines agree.
Rows that are tied (variants of a product, rows that share a picture) are one group and stay together.
"""

import hashlib
from collections.abc import Hashable, Iterable, Mapping, Sequence
from types import MappingProxyType

DEFAULT_FRACTIONS: Mapping[str, float] = MappingProxyType({"train": 0.8, "validation": 0.1, "test": 0.1})


def split_of(group: str, fractions: Mapping[str, float] = DEFAULT_FRACTIONS) -> str:
    """Split of a group of rows; `fractions` sum to 1 and their order counts."""
    point = int.from_bytes(hashlib.sha256(group.encode()).digest()[:8], "big") / 2**64
    reached = 0.0
    for name, fraction in fractions.items():
        reached += fraction
        if point < reached:
            return name
    return list(fractions)[-1]


def group_rows(ties: Iterable[Sequence[Hashable]]) -> list[int]:
    """Group of each row, as the index of the group's first row.

    `ties` holds for each row the keys that tie it (product id, picture hash): rows with a key in common, directly
    or through other rows, are one group. Union-find with path halving.
    """
    parent: list[int] = []
    first_with: dict[Hashable, int] = {}

    def root(row: int) -> int:
        while parent[row] != row:
            parent[row] = parent[parent[row]]
            row = parent[row]
        return row

    for row, keys in enumerate(ties):
        parent.append(row)
        for key in keys:
            a, b = root(first_with.setdefault(key, row)), root(row)
            parent[max(a, b)] = min(a, b)
    return [root(row) for row in range(len(parent))]
