"""Pictures as bytes: decoded to be believed, always seen as RGB on white.

What comes from a table is hostile until checked: only the formats below are handed to Pillow, the size is checked
before a pixel is decoded, a truncated file is refused.
"""

import io
import re
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from PIL import Image, ImageOps, UnidentifiedImageError

from catalens.errors import PictureError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
MAX_PIXELS = 64_000_000
JPEG_QUALITY = 92
"""Of photos that are made smaller."""
ORIENTATION = 0x0112  # the EXIF tag
GPS = 0x8825  # the EXIF directory with positions
JPEG_MARKER = re.compile(rb"\xff[^\x00\xd0-\xd7\xff]")
JPEG_COLOURS = (b"\xff\xe0", b"\xff\xee")  # JFIF and Adobe say how the components are meant
PNG_COLOURS = (b"tRNS", b"gAMA", b"cHRM", b"sRGB", b"iCCP", b"sBIT", b"cICP")
WEBP_CHUNKS = (b"VP8 ", b"VP8L", b"VP8X", b"ALPH", b"ICCP")


def open_picture(data: bytes) -> Image.Image:
    """Decode a picture: first frame, upright by EXIF, RGB, transparent parts on white.

    Raises PictureError with the reason where the bytes are no whole picture of an allowed format.
    """
    return _decode(data)[0]


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


def storable_picture(
    data: bytes, max_side: int | None = None, strip_metadata: bool = False
) -> tuple[bytes, Image.Image]:
    """The bytes to store, and what they show.

    As received where every reader sees the same RGB picture, no side longer than `max_side` pixels; else encoded
    again, as PNG, or as JPEG where a photo that came as JPEG was made smaller. With `strip_metadata` EXIF with its
    position, XMP and comments are taken out, of JPEG, PNG and WebP without touching a pixel. Raises PictureError as
    `open_picture`.
    """
    seen, plain, format = _decode(data)
    small = max_side is None or max(seen.size) <= max_side
    as_it_is = (without_metadata(data) if strip_metadata else data) if plain and small else None
    if as_it_is is not None:
        return as_it_is, seen
    lossy = not small and format in ("JPEG", "MPO")
    if max_side is not None and not small:
        seen.thumbnail((max_side, max_side), Image.Resampling.LANCZOS)
    seen.info.clear()  # Pillow would carry comments over
    buffer = io.BytesIO()
    # no colour profile: it may be one for the four inks of a CMYK original
    seen.save(buffer, "JPEG" if lossy else "PNG", icc_profile=None, **({"quality": JPEG_QUALITY} if lossy else {}))
    return buffer.getvalue(), seen


def without_metadata(data: bytes) -> bytes | None:
    """A JPEG, PNG or WebP with the same pixels and colours and nothing else; None where that cannot be had."""
    for head, bare in ((b"\xff\xd8", _bare_jpeg), (b"\x89PNG", _bare_png), (b"RIFF", _bare_webp)):
        if data.startswith(head):
            return bare(data)
    return None


def _bare_jpeg(data: bytes) -> bytes | None:
    """All up to the end of the picture but application segments and comments. Source: ITU-T T.81, annex B."""
    kept, at = [data[:2]], 2
    while marker := JPEG_MARKER.search(data, at):
        kept.append(data[at : marker.start()])  # coded pixels
        if marker[0] == b"\xff\xd9":
            return b"".join([*kept, marker[0]])
        at = marker.end() + int.from_bytes(data[marker.end() : marker.end() + 2], "big")
        segment = data[marker.start() : at]
        known = segment.startswith(JPEG_COLOURS) or segment[4:].startswith(b"ICC_PROFILE\0")
        if known or not (0xE0 <= segment[1] <= 0xEF or segment[1] == 0xFE):
            kept.append(segment)
    return None


def _bare_png(data: bytes) -> bytes | None:
    """Critical chunks, and those that say how colours look. Source: PNG specification, section 5."""
    kept, at = [data[:8]], 8
    while at + 8 <= len(data):
        end = at + 12 + int.from_bytes(data[at : at + 4], "big")
        name = data[at + 4 : at + 8]
        if name[:1].isupper() or name in PNG_COLOURS:
            kept.append(data[at:end])
        if name == b"IEND":
            return b"".join(kept)
        at = end
    return None


def _bare_webp(data: bytes) -> bytes | None:
    """The chunks of a still picture. Source: RFC 9649, section 2."""
    kept, at = b"", 12
    while at + 8 <= min(len(data), int.from_bytes(data[4:8], "little") + 8):
        size = int.from_bytes(data[at + 4 : at + 8], "little")
        chunk = data[at : at + 8 + size + size % 2]
        if chunk[:4] == b"VP8X" and size:
            chunk = chunk[:8] + bytes([chunk[8] & ~0b1100]) + chunk[9:]  # says that EXIF and XMP follow
        kept += chunk if chunk[:4] in WEBP_CHUNKS else b""
        at += len(chunk)
    return b"RIFF" + (len(kept) + 4).to_bytes(4, "little") + b"WEBP" + kept


def _decode(data: bytes) -> tuple[Image.Image, bool, str | None]:
    """The picture as seen, whether every reader sees it in these bytes, and their format."""
    if not data:
        raise PictureError("no bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's bomb and EXIF warnings: the size is checked right here
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise PictureError(f"{image.width}x{image.height} pixels are more than {MAX_PIXELS:,}")
            image.load()
            plain = image.mode in ("RGB", "L") and "transparency" not in image.info
            upright = image.getexif().get(ORIENTATION, 1) == 1
            still = image.format == "MPO" or not getattr(image, "is_animated", False)  # MPO: a JPEG with previews
            return _on_white(image), plain and upright and still, image.format
    except PictureError:
        raise
    except UnidentifiedImageError as error:
        raise PictureError(f"not a picture in one of {', '.join(FORMATS)}") from error
    except Exception as error:  # hostile bytes make Pillow's many readers raise anything
        reason = str(error).partition("\n")[0] or "broken data"
        raise PictureError(f"cannot be decoded ({reason})") from error


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
