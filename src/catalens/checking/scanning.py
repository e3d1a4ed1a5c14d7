"""One pass over a catalogue: of every row a few small facts, and what a recipe makes of it.

train row 7 (10432877) -> what `catalog.scan` keeps of it, no problem,
                          313, 757 and 2,509 tokens at num_crops 1, 4 and 16
"""

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from catalens.catalog.scan import Scan, look_at
from catalens.catalog.storage import Catalog


@dataclass(frozen=True, slots=True)
class Cost:
    """What a row costs at some `num_crops`."""

    tokens: int
    """Tokens of the whole row, the picture's included."""
    crops: int
    """Crops of its picture, the global one included."""


@dataclass(frozen=True, slots=True)
class Description:
    """What a recipe makes of a row."""

    problem: str | None = None
    """Why training would leave the row out, in one sentence that names it."""
    rounded: str | None = None
    """A number that the recipe's format does not write exactly: `full_price 12.5 is written '12'`."""
    costs: Mapping[int, Cost] = field(default_factory=dict)
    """By `num_crops`; empty where the row has no picture."""


Describe = Callable[[Mapping[str, Any], str, tuple[int, int] | None], Description]
"""Called with a row without its picture, its name, and the picture's width and height or None."""


def scan_catalog(
    catalog: Catalog,
    describe: Describe | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> tuple[Scan, list[Description]]:
    """Look at every row once; pictures are decoded by as many threads as there are cores.

    Also a description of each row, none without `describe`. Raises CatalogError where the catalogue's files cannot be
    read or do not hold what `catalog.json` says.
    """
    roles = catalog.card.roles
    scan = Scan(roles)
    described: list[Description] = []
    alike: dict[object, Description] = {}  # what many rows have is held once
    total = sum(catalog.card.rows.values())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for split, batch in catalog.all_batches():
            for row, seen in zip(batch, pool.map(look_at, [row.pop(roles.image) for row in batch]), strict=True):
                scan.add(split, row, seen)
                if describe:
                    its = describe(row, scan.name(len(scan) - 1), seen.size)
                    described.append(alike.setdefault((its.problem, its.rounded, *its.costs.items()), its))
            progress(len(scan), total)
    return scan, described


def pictures_of(catalog: Catalog, rows: Iterable[int]) -> dict[int, bytes]:
    """Pictures of chosen rows, in a second pass."""
    wanted = set(rows)
    found: dict[int, bytes] = {}
    position = 0
    for _, batch in catalog.all_batches([catalog.card.roles.image]) if wanted else ():
        found |= {at: row[catalog.card.roles.image] for at, row in enumerate(batch, position) if at in wanted}
        position += len(batch)
    return found
