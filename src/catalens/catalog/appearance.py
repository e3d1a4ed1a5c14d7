"""What is noted of a picture file, so that a million of them fit in memory.

scarf.jpg  ->  Seen(digest=b"...", stored=18211, size=(300, 375), format="JPEG", fingerprint=b"...", brightness=251)
"""

import hashlib
import io
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image

from catalens.catalog.duplicates import BITS, fingerprint
from catalens.catalog.pictures import FORMATS, has_position, open_picture, picture_size
from catalens.errors import PictureError

BORDER = 0.04
"""Share of the shorter side that counts as border."""
NO_FINGERPRINT = bytes(BITS // 8)


@dataclass(frozen=True, slots=True)
class Seen:
    """What a picture is like."""

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
    """Whether its metadata says where it was taken."""


def look_at(data: bytes, decode: bool = True) -> Seen:
    """Keep only what a picture is like; fingerprint and brightness are known of decoded ones."""
    digest = hashlib.sha256(data).digest()[:8]
    try:
        picture = open_picture(data) if decode else None
        size = picture.size if picture else picture_size(data)
    except PictureError as error:
        return Seen(digest, len(data), reason=str(error))
    with Image.open(io.BytesIO(data), formats=FORMATS) as image:
        transparent = image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info
        seen = Seen(digest, len(data), size, image.format or "", transparent, position=has_position(image))
    if picture is None:
        return seen
    return replace(seen, fingerprint=fingerprint(picture), brightness=border_brightness(picture))


def border_brightness(picture: Image.Image) -> int:
    """Mean luminance of the outermost pixels, 0 to 255."""
    grey = np.asarray(picture.convert("L"))
    wide = max(1, round(BORDER * min(grey.shape)))
    inside = grey[wide:-wide, wide:-wide]
    return round((int(grey.sum()) - int(inside.sum())) / (grey.size - inside.size))
