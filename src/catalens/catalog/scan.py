"""The facts of a catalogue's rows, their pictures as no more than figures, so that a million fit in memory.

scarf.jpg               -> ImageStats(b"...", 18211, size=(300, 375), format="JPEG", brightness=251, ...)
train row 7 (10432877)  -> its ImageStats, title "Check Scarf", category BAGS, price 129.0
"""

import hashlib
import io
import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from catalens.catalog.duplicates import BITS, fingerprint
from catalens.catalog.pictures import FORMATS, has_position, open_picture, picture_size
from catalens.catalog.storage import Roles, is_missing
from catalens.errors import PictureError

BORDER = 0.04
"""Share of the shorter side that counts as border."""
NO_FINGERPRINT = bytes(BITS // 8)
LARGEST = 1e300
"""Size to which numbers are cut, so that sums and differences stay finite."""


@dataclass(frozen=True, slots=True)
class ImageStats:
    """Facts of a picture file."""

    digest: bytes
    """8 bytes of the hash of its bytes."""
    stored: int
    """Its bytes."""
    size: tuple[int, int] | None = None
    """Width and height as seen; None where it cannot be decoded."""
    format: str = ""
    transparent: bool = False
    fingerprint: bytes = NO_FINGERPRINT
    brightness: int | None = None
    """Of the border, 0 to 255; None where the picture was not decoded."""
    reason: str = ""
    """Why it cannot be decoded."""
    position: bool = False
    """Its metadata says where it was taken."""


def look_at(data: bytes, decode: bool = True) -> ImageStats:
    """Keep only the facts of a picture; fingerprint and brightness are known of decoded ones."""
    digest = hashlib.sha256(data).digest()[:8]
    try:
        picture = open_picture(data) if decode else None
        size = picture.size if picture else picture_size(data)
    except PictureError as error:
        return ImageStats(digest, len(data), reason=str(error))
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        transparent = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
        stats = ImageStats(digest, len(data), size, image.format or "", transparent, position=has_position(image))
    if picture is None:
        return stats
    return replace(stats, fingerprint=fingerprint(picture), brightness=border_brightness(picture))


def border_brightness(picture: Image.Image) -> int:
    """Mean luminance of the outermost pixels, 0 to 255."""
    grey = np.asarray(picture.convert("L"))
    wide = max(1, round(BORDER * min(grey.shape)))
    inside = grey[wide:-wide, wide:-wide]
    return round((int(grey.sum()) - int(inside.sum())) / (grey.size - inside.size))


class Scan:
    """The facts of N rows, in the order in which they are added."""

    def __init__(self, roles: Roles) -> None:
        self.roles = roles
        self.ids: list[str] = []
        self.splits: list[str] = []
        self.numbers: list[int] = []
        """Row numbers within the split, from 1."""
        self.pictures: list[ImageStats] = []
        self.values: dict[str, list[Any]] = {name: [] for name in roles.fields}
        """By field; None where missing or no finite number."""
        self.firsts: dict[str, int] = {}
        """First row of each product."""
        self._counts: Counter[str] = Counter()

    def __len__(self) -> int:
        return len(self.ids)

    def add(self, split: str, row: Mapping[str, Any], picture: ImageStats) -> None:
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
