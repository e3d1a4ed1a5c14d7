"""Pictures as bytes: decoded to be believed, always seen as RGB on white.

    scarf.jpg   ->  PictureFacts("9f86d0...", 18211, 300, 375, "JPEG", brightness=251, fingerprint="a3c1...")

What comes from a table is hostile until checked: only the formats below are handed to Pillow, the size is checked
before a pixel is decoded, a truncated file is refused; a JPEG that lacks nothing but its end mark is none.
"""

import hashlib
import io
import math
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import numpy as np
from PIL import Image, ImageOps, PngImagePlugin, UnidentifiedImageError

from catalens.errors import PictureError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
MAX_PIXELS = 64_000_000
PngImagePlugin.MAX_TEXT_CHUNK = 2**25  # bytes of a comment, which is no reason against a picture; they are read over
START, SCAN, END = b"\xff\xd8\xff", b"\xff\xda", b"\xff\xd9"
"""Marks of a JPEG: its beginning, that of its pixels, its end."""
FILLERS = (b"", b"\x55" * 64, b"\xaa" * 64, b"\x1b" * 64)
"""Bytes that may stand before the end mark of a JPEG: pixels of a whole one do not depend on it."""
CLOSED, REDUCED = "JPEG pictures without an end mark", f"JPEG pictures of more than {MAX_PIXELS:,} pixels"
JPEG_QUALITY = 92
"""Of photos that are made smaller."""
ORIENTATION = 0x0112  # the EXIF tag
GPS = 0x8825  # the EXIF directory with positions
BORDER = 0.04
"""Share of the shorter side that counts as border."""


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A stored picture, whose bytes are read when they are asked for; equal to others of the same bytes."""

    stored: Sequence[bytes]
    row: int
    digest: bytes
    """SHA-256 of its bytes."""
    size: tuple[int, int]
    """Width and height in pixels, as it is seen."""

    def __bytes__(self) -> bytes:
        return self.stored[self.row]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Picture) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)


Encoded = bytes | Picture
"""A picture as a JPEG, a PNG ..., or where it is stored."""


@dataclass(frozen=True, slots=True)
class PictureFacts:
    """Facts of a picture file, as the catalogue keeps them beside it; lengths in pixels."""

    sha256: str
    """Of its bytes, in hex."""
    stored: int
    """Its bytes."""
    width: int | None = None
    """As seen, like the height; None where it cannot be decoded."""
    height: int | None = None
    format: str = ""
    """Pillow's name of it."""
    transparent: bool = False
    position: bool = False
    """Its metadata says where it was taken."""
    brightness: int | None = None
    """Of the border, 0 to 255."""
    fingerprint: str = ""
    """Perceptual hash of 256 bits, in hex (see `duplicates`)."""
    reason: str = ""
    """Reason why it cannot be decoded."""

    @property
    def size(self) -> tuple[int, int] | None:
        """Width and height; None where it cannot be decoded."""
        return None if self.width is None or self.height is None else (self.width, self.height)


def open_picture(data: bytes) -> Image.Image:
    """Decode a picture: first frame, upright by EXIF, RGB, transparent parts on white.

    Raises PictureError with the reason where the bytes are no whole picture of an allowed format.
    """
    return _decode(data).seen


@contextmanager
def _header(data: bytes) -> Iterator[Image.Image]:
    """The header of a picture, nothing decoded; whatever Pillow raises is a PictureError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield Image.open(io.BytesIO(data), formats=FORMATS)
    except Exception as error:
        raise PictureError(f"not a picture in one of {', '.join(FORMATS)}") from error


def picture_size(data: bytes) -> tuple[int, int]:
    """Width and height in pixels of what `open_picture` gives, without decoding it; raises PictureError."""
    with _header(data) as image:
        # turned by a quarter; of a TIFF Pillow gives the upright size
        lying = image.getexif().get(ORIENTATION, 1) >= 5 and image.format != "TIFF"
        return (image.height, image.width) if lying else image.size


def declared_pixels(data: bytes) -> int:
    """Pixels that a picture has by its header; nothing is decoded. PictureError where it has none."""
    try:
        with _header(data) as image:
            return image.width * image.height
    except PictureError as error:
        if isinstance(error.__cause__, Image.DecompressionBombError):
            return sys.maxsize  # Pillow tells no more than that they are too many
        raise


def has_position(image: Image.Image) -> bool:
    """Tell whether the metadata of an opened picture says where it was taken."""
    try:
        return bool(image.getexif().get_ifd(GPS)) or b"GPSLatitude" in bytes(image.info.get("xmp") or b"")
    except Exception:  # broken metadata, which no reader understands
        return False


def picture_facts(data: bytes) -> PictureFacts:
    """Decode a picture and keep only its facts; `reason` says why where it cannot be decoded."""
    try:
        decoded = _decode(data)
    except PictureError as error:
        return PictureFacts(hashlib.sha256(data).hexdigest(), len(data), reason=str(error))
    return _facts(data, decoded.seen, decoded.image)


def storable_picture(
    data: bytes,
    max_side: int | None = None,
    strip_metadata: bool = False,
    notice: Callable[[str], None] = lambda oddity: None,
) -> tuple[bytes, PictureFacts]:
    """The bytes to store, and their facts, of one decoding; `notice` hears what kind of oddity was mended.

    As received where every reader sees the same RGB picture, no side longer than `max_side` pixels; else encoded
    again: as JPEG where a photo that came as JPEG was made smaller or, by `strip_metadata`, freed of all that is no
    pixel (EXIF with its position, XMP, comments); as PNG in every other case. A JPEG of more pixels than others may
    have is made smaller while it is read. Raises PictureError as `open_picture`.
    """
    decoded = _decode(data, max_side)
    data, seen, image, plain = decoded.data, decoded.seen, decoded.image, decoded.plain
    for oddity in [CLOSED] * decoded.closed + [REDUCED] * decoded.reduced:
        notice(oddity)
    small = not decoded.reduced and (max_side is None or max(seen.size) <= max_side)
    if plain and small and not strip_metadata:
        return data, _facts(data, seen, image)
    lossy = image.format in ("JPEG", "MPO") and (plain or not small)
    if max_side is not None and not small:
        seen.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    seen.info.clear()  # Pillow would carry comments over
    buffer = io.BytesIO()
    # no colour profile: it may be one for the four inks of a CMYK original
    seen.save(buffer, "JPEG" if lossy else "PNG", icc_profile=None, **({"quality": JPEG_QUALITY} if lossy else {}))
    return buffer.getvalue(), _facts(buffer.getvalue(), seen, None, "JPEG" if lossy else "PNG")


def _facts(data: bytes, seen: Image.Image, image: Image.Image | None, format: str = "") -> PictureFacts:
    """Facts of bytes that show `seen`; `image` is the file that was opened, None where they were encoded here."""
    from catalens.catalog.duplicates import fingerprint  # whose library takes a second to import

    return PictureFacts(
        sha256=hashlib.sha256(data).hexdigest(),
        stored=len(data),
        width=seen.width,
        height=seen.height,
        format=format if image is None else image.format or "",
        transparent=image is not None and (image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info),
        position=image is not None and has_position(image),
        brightness=border_brightness(seen),
        fingerprint=fingerprint(seen).hex(),
    )


def border_brightness(picture: Image.Image) -> int:
    """Mean luminance of the outermost pixels, 0 to 255."""
    grey = np.asarray(picture.convert("L"))
    wide = max(1, round(BORDER * min(grey.shape)))
    inside = grey[wide:-wide, wide:-wide]
    return round((int(grey.sum()) - int(inside.sum())) / (grey.size - inside.size))


@dataclass(frozen=True, slots=True)
class _Decoded:
    data: bytes
    """With the end mark, where it lacked."""
    seen: Image.Image
    image: Image.Image
    """The file as opened."""
    plain: bool
    """Every reader sees the same in it."""
    reduced: bool = False
    """Made smaller while it was read."""
    closed: bool = False
    """It lacked the end mark."""


def _decode(data: bytes, max_side: int | None = None) -> _Decoded:
    """Decode a picture; one of too many pixels only where it may be made smaller, as JPEG can while it is read."""
    if not data.startswith(START) or data.rfind(SCAN) <= data.rfind(END):
        return _read(data, max_side)
    body = data.rstrip(b"\0") if data.endswith(bytes(4)) else data  # room that a download left unfilled
    whole = (body[:-1] if body.endswith(END[:1]) else body) + END
    if not _is_whole(whole):
        raise PictureError("cannot be decoded (image file is truncated)")
    return replace(_read(whole, max_side), closed=True)


def _is_whole(data: bytes) -> bool:
    """Tell whether a JPEG, closed by hand, has all of its pixels: none is read from what stands before the end."""
    try:
        pixels = {hash(_read(data[:-2] + filler + END).seen.tobytes()) for filler in FILLERS}
    except PictureError:
        return False
    return len(pixels) == 1


def _read(data: bytes, max_side: int | None = None) -> _Decoded:
    if not data:
        raise PictureError("no bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's bomb and EXIF warnings: the size is checked right here
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            reduced = _reduce(image, max_side)
            image.load()
            plain = image.mode in ("RGB", "L") and "transparency" not in image.info
            upright = image.getexif().get(ORIENTATION, 1) == 1
            still = image.format == "MPO" or not getattr(image, "is_animated", False)  # MPO: a JPEG with previews
            return _Decoded(data, _on_white(image), image, plain and upright and still, reduced)
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        raise PictureError(f"not a picture in one of {', '.join(FORMATS)}") from error
    except Exception as error:  # hostile bytes make Pillow's many readers raise anything
        reason = str(error).partition("\n")[0] or "broken data"
        raise PictureError(f"cannot be decoded ({reason})") from error


def _reduce(image: Image.Image, max_side: int | None) -> bool:
    """Let a JPEG of too many pixels be read at a half, a quarter or an eighth; PictureError of any other picture."""
    width, height = image.size
    if width * height <= MAX_PIXELS:
        return False
    able = image.format == "JPEG" and not image.info.get("progressive")  # which is held whole while it is read
    if able and max_side is not None:
        share = max_side / max(width, height)
        image.draft(None, (math.ceil(width * share), math.ceil(height * share)))
        if image.width * image.height <= MAX_PIXELS:
            return True
    fix = f"; --max-side {max(width, height) // 2} takes it" if able else ""
    raise PictureError(f"{width}x{height} pixels are more than {MAX_PIXELS:,}{fix}")


def _on_white(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode == "F":
        raise PictureError("pixels are floating-point numbers of unknown range: save it with 8 or 16 bits")
    if image.mode.startswith("I"):
        image = image.convert("I").point(lambda value: value / 257).convert("L")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
