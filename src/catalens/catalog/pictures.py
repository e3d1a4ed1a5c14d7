"""Pictures as bytes: decoded to be believed, always seen as RGB on white.

What comes from a table is hostile until checked: only the formats below are handed to Pillow, the size is checked
before a pixel is decoded, a truncated file is refused.
"""

import hashlib
import io
import warnings

from PIL import Image, ImageOps, UnidentifiedImageError

from catalens.errors import PictureError

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF")
MAX_PIXELS = 64_000_000


def open_picture(data: bytes) -> Image.Image:
    """Decode a picture: first frame, upright by EXIF, RGB, transparent parts on white.

    Raises PictureError with the reason where the bytes are no whole picture of an allowed format.
    """
    return _on_white(_decode(data))


def storable_picture(data: bytes) -> bytes:
    """The bytes to store: as received where every reader sees the same RGB picture, else encoded again as PNG.

    Raises PictureError as `open_picture`.
    """
    image = _decode(data)
    plain = (
        image.mode in ("RGB", "L") and "transparency" not in image.info and not getattr(image, "is_animated", False)
    )
    if plain and image.getexif().get(0x0112, 1) == 1:
        return data
    buffer = io.BytesIO()
    _on_white(image).save(buffer, "PNG")
    return buffer.getvalue()


def picture_key(data: bytes) -> str:
    """Hash of what is seen (size and RGB pixels): equal for one picture stored twice in any lossless form."""
    image = open_picture(data)
    return hashlib.sha256(f"{image.size}".encode() + image.tobytes()).hexdigest()


def _decode(data: bytes) -> Image.Image:
    if not data:
        raise PictureError("no bytes")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Pillow's bomb and EXIF warnings: the size is checked right here
            image = Image.open(io.BytesIO(data), formats=FORMATS)
            if image.width * image.height > MAX_PIXELS:
                raise PictureError(f"{image.width}x{image.height} pixels are more than {MAX_PIXELS:,}")
            image.load()
    except UnidentifiedImageError as error:
        raise PictureError(f"not a picture in one of {', '.join(FORMATS)}") from error
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise PictureError(
            f"cannot be decoded ({str(error).splitlines()[0] if str(error) else 'broken data'})"
        ) from error
    return image


def _on_white(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = image.convert("I").point(lambda value: value / 257).convert("L")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image).convert("RGB")
    return image.convert("RGB")
