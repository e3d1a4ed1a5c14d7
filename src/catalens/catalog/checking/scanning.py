"""One pass over a catalogue: of every row a few small facts, so that a million rows fit in memory.

train row 7 (10432877) -> 800 x 1000 JPEG of 52,114 bytes, its digest and fingerprint,
                          title of 21 characters, category BAGS, price 129.0, no problem
"""

import hashlib
import io
import math
import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from catalens.catalog.duplicates import BITS, fingerprint
from catalens.catalog.pictures import FORMATS, open_picture
from catalens.catalog.storage import SPLITS, Catalog
from catalens.errors import PictureError

KEPT_TEXT = 160
"""Characters of a text that are kept to be shown."""
LARGEST = 1e300
"""Size to which numbers are cut, so that sums and differences stay finite."""
NO_FINGERPRINT = bytes(BITS // 8)


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


@dataclass(frozen=True, slots=True)
class Look:
    """What a picture is like."""

    digest: bytes
    """8 bytes of the hash of its bytes."""
    stored: int
    """Its bytes."""
    size: tuple[int, int] | None = None
    """Width and height as seen; None where it cannot be decoded."""
    format: str = ""
    fingerprint: bytes = NO_FINGERPRINT
    reason: str = ""
    """Why it cannot be decoded."""


@dataclass
class Scan:
    """The facts of N rows, split after split in the order of `SPLITS`."""

    ids: list[str] = field(default_factory=list)
    splits: list[str] = field(default_factory=list)
    numbers: list[int] = field(default_factory=list)
    """Row numbers within the split, from 1."""
    looks: list[Look] = field(default_factory=list)
    values: dict[str, list[Any]] = field(default_factory=dict)
    """By field; of texts the first `KEPT_TEXT` characters, None where missing."""
    lengths: dict[str, list[int]] = field(default_factory=dict)
    """Characters of text fields."""
    problems: dict[int, str] = field(default_factory=dict)
    """By row: why training would leave it out."""
    rounded: dict[int, str] = field(default_factory=dict)
    """By row: which number loses digits."""
    costs: dict[int, list[Cost | None]] = field(default_factory=dict)
    """By `num_crops`, one entry a row."""
    shared: dict[Any, Any] = field(default_factory=dict, repr=False)
    """Sizes and costs that many rows have, each held once."""

    def __len__(self) -> int:
        return len(self.ids)

    def name(self, row: int) -> str:
        """`train row 7 (10432877)`, as everywhere else."""
        return f"{self.splits[row]} row {self.numbers[row]} ({self.ids[row]})"

    def fingerprints(self) -> NDArray[np.uint8]:
        """[N, 32]; zeros where a picture cannot be decoded."""
        return np.frombuffer(b"".join(look.fingerprint for look in self.looks), np.uint8).reshape(-1, BITS // 8)


def scan_catalog(
    catalog: Catalog,
    describe: Describe | None = None,
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> Scan:
    """Look at every row once; pictures are decoded by as many threads as there are cores.

    Raises CatalogError where the catalogue's files cannot be read or do not hold what `catalog.json` says.
    """
    roles = catalog.card.roles
    scan = Scan(values={name: [] for name in roles.fields})
    scan.lengths = {name: [] for name, kind in roles.fields.items() if kind != "number"}
    total = sum(catalog.card.rows.values())
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for split in SPLITS:
            number = 0
            for batch in catalog.batches(split) if catalog.card.rows.get(split) else ():
                for row, look in zip(batch, pool.map(look_at, [row.pop(roles.image) for row in batch]), strict=True):
                    number += 1
                    _add(scan, split, number, row, look, roles.id, describe)
                progress(len(scan), total)
    return scan


def look_at(data: bytes) -> Look:
    """Decode a picture, and keep only what it is like."""
    digest = hashlib.sha256(data).digest()[:8]
    try:
        image = open_picture(data)
    except PictureError as error:
        return Look(digest, len(data), reason=str(error))
    form = Image.open(io.BytesIO(data), formats=FORMATS).format or ""
    return Look(digest, len(data), image.size, form, fingerprint(image))


def pictures_of(catalog: Catalog, rows: Iterable[tuple[str, int]]) -> dict[tuple[str, int], bytes]:
    """Pictures of chosen rows, named by split and row number, in a second pass over their splits only."""
    wanted = set(rows)
    image = catalog.card.roles.image
    found: dict[tuple[str, int], bytes] = {}
    for split in sorted({split for split, _ in wanted}):
        number = 0
        for batch in catalog.batches(split, [image]):
            for row in batch:
                number += 1
                if (split, number) in wanted:
                    found[split, number] = row[image]
    return found


def _add(
    scan: Scan, split: str, number: int, row: Mapping[str, Any], look: Look, id: str, describe: Describe | None
) -> None:
    position = len(scan)
    scan.ids.append("" if row[id] is None else str(row[id]))
    scan.splits.append(split)
    scan.numbers.append(number)
    scan.looks.append(replace(look, size=scan.shared.setdefault(look.size, look.size)))
    for name, values in scan.values.items():
        value = row[name]
        if name in scan.lengths:
            text = "" if value is None else str(value)
            scan.lengths[name].append(len(text))
            values.append(text[:KEPT_TEXT] if text.strip() else None)
        else:
            values.append(_number(value))
    description = describe(row, scan.name(position), look.size) if describe else Description()
    if description.problem:
        scan.problems[position] = description.problem
    if description.rounded:
        scan.rounded[position] = description.rounded
    for num_crops, cost in description.costs.items():
        known = scan.costs.setdefault(num_crops, [])
        known.extend([None] * (position - len(known)))
        known.append(scan.shared.setdefault(cost, cost))


def _number(value: object) -> float | int | None:
    if not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return max(-LARGEST, min(LARGEST, value))
