"""What is noted of a picture file, and how many of them together are described.

scarf.jpg  ->  Seen(width=300, height=375, format="JPEG", size=18211, brightness=251.0)
"""

import io
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from catalens.catalog.mimicking.profile import PictureFormat, PictureSize
from catalens.catalog.mimicking.summaries import summarise
from catalens.catalog.pictures import open_picture, picture_size

BORDER = 0.04
"""Share of the shorter side that counts as border."""
ALPHA = "+alpha"


class Seen(NamedTuple):
    """One picture file."""

    width: int
    height: int
    format: str
    size: int
    """Bytes."""
    brightness: int | None
    """Of the border, 0 to 255; None where the picture was not decoded."""


def look_at(data: bytes, decode: bool = True) -> Seen:
    """Size, format and, decoded, brightness; PictureError where it is no picture."""
    width, height = picture_size(data)
    with Image.open(io.BytesIO(data)) as image:
        alpha = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
        format = (image.format or "PNG") + (ALPHA if alpha else "")
    return Seen(width, height, format, len(data), border_brightness(open_picture(data)) if decode else None)


def border_brightness(picture: Image.Image) -> int:
    """Mean luminance of the outermost pixels, 0 to 255."""
    grey = np.asarray(picture.convert("L"), dtype=np.float32)
    wide = max(1, round(BORDER * min(grey.shape)))
    inside = np.ones(grey.shape, dtype=bool)
    inside[wide:-wide, wide:-wide] = False
    return round(float(grey[inside].mean()))


def describe(seen: Sequence[Seen], k: int) -> dict[str, PictureFormat]:
    """The pictures of a catalogue by format; formats of too few pictures count as the most frequent one."""
    counts = Counter(picture.format for picture in seen)
    main = min(counts, key=lambda format: (-counts[format], format), default="JPEG")
    by_format: dict[str, list[Seen]] = defaultdict(list)
    for picture in seen:
        by_format[picture.format if counts[picture.format] >= k + 2 else main].append(picture)
    return {format: _describe(pictures, k) for format, pictures in sorted(by_format.items())}


def _describe(seen: Sequence[Seen], k: int) -> PictureFormat:
    counts = Counter((picture.width, picture.height) for picture in seen)
    frequent = {size for size, count in counts.items() if count >= k}
    rest = [picture for picture in seen if (picture.width, picture.height) not in frequent]
    if len(rest) < k + 2:
        rest = list(seen)
    return PictureFormat(
        products=len(seen),
        sizes=tuple(PictureSize(*size, counts[size]) for size in sorted(frequent)),
        longest=summarise([max(picture.width, picture.height) for picture in rest], k, logarithmic=True),
        ratio=summarise([picture.width / picture.height for picture in rest], k, logarithmic=True),
        bytes_a_pixel=summarise([p.size / (p.width * p.height) for p in seen], k, logarithmic=True),
        brightness=summarise([p.brightness for p in seen if p.brightness is not None], k),
    )
