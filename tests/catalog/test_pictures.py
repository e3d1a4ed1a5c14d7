"""Any bytes become an RGB picture on white, or a PictureError with the reason."""

import hashlib
import io
import random
import struct
import time
import zlib
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageOps, PngImagePlugin

from catalens.catalog import has_position, open_picture, picture_facts, picture_size, storable_picture
from catalens.catalog.pictures import GPS, MAX_PIXELS
from catalens.errors import PictureError

ORIENTATION = 0x0112


def gradient(mode: str = "RGB", width: int = 40, height: int = 30) -> Image.Image:
    """Every pixel differs from its neighbours, and every corner from the others."""
    y, x = np.mgrid[:height, :width]
    pixels = np.stack([x * 255 // width, y * 255 // height, (x + y) * 255 // (width + height)], axis=-1)
    return Image.fromarray(pixels.astype(np.uint8)).convert(mode)


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[ORIENTATION] = orientation
    return exif


def sixteen_bits(values: np.ndarray) -> Image.Image:
    return Image.fromarray(values.astype(np.uint16))


def half_clear(mode: str = "RGBA") -> Image.Image:
    """Red; the left half is transparent, black beneath."""
    image = Image.new("RGBA", (20, 10), (0, 0, 0, 0))
    image.paste((255, 0, 0, 255), (10, 0, 20, 10))
    return image.convert(mode)


ANIMATION = {"save_all": True, "append_images": [Image.new("RGB", (40, 30), "black")], "duration": 100}
COLOURS = gradient().quantize(16)

# name -> (bytes, stored as they are)
SAMPLES: dict[str, tuple[bytes, bool]] = {
    "jpeg": (encoded(gradient(), "JPEG"), True),
    "progressive jpeg": (encoded(gradient(), "JPEG", progressive=True), True),
    "grey jpeg": (encoded(gradient("L"), "JPEG"), True),
    "cmyk jpeg": (encoded(gradient("CMYK"), "JPEG"), False),
    "jpeg turned by exif": (encoded(gradient(), "JPEG", exif=turned(6)), False),
    "jpeg upright by exif": (encoded(gradient(), "JPEG", exif=turned(1)), True),
    "jpeg with a preview": (encoded(gradient(), "MPO", **ANIMATION), True),
    "png": (encoded(gradient(), "PNG"), True),
    "grey png": (encoded(gradient("L"), "PNG"), True),
    "rgba png": (encoded(gradient("RGBA"), "PNG"), False),
    "la png": (encoded(gradient("LA"), "PNG"), False),
    "palette png": (encoded(COLOURS, "PNG"), False),
    "palette png with transparency": (encoded(COLOURS, "PNG", transparency=bytes(range(0, 160, 10))), False),
    "rgb png with a clear colour": (encoded(gradient(), "PNG", transparency=(0, 0, 0)), False),
    "grey png with a clear colour": (encoded(gradient("L"), "PNG", transparency=9), False),
    "black and white png": (encoded(gradient("1"), "PNG"), False),
    "16-bit png": (encoded(sixteen_bits(np.arange(1200).reshape(30, 40) * 50), "PNG"), False),
    "png turned by exif": (encoded(gradient(), "PNG", exif=turned(3)), False),
    "animated png": (encoded(gradient(), "PNG", **ANIMATION), False),
    "webp": (encoded(gradient(), "WEBP"), True),
    "half-clear webp": (encoded(half_clear(), "WEBP", lossless=True), False),
    "animated webp": (encoded(gradient(), "WEBP", **ANIMATION), False),
    "gif": (encoded(COLOURS, "GIF"), False),
    "animated gif": (encoded(gradient(), "GIF", **ANIMATION), False),
    "bmp": (encoded(gradient(), "BMP"), True),
    "tiff": (encoded(gradient(), "TIFF", compression="tiff_lzw"), True),
    "cmyk tiff": (encoded(gradient("CMYK"), "TIFF"), False),
    "lab tiff": (encoded(gradient("LAB"), "TIFF"), False),
    "tiff turned by exif": (encoded(gradient(), "TIFF", exif=turned(8)), True),
    "avif": (encoded(gradient(), "AVIF"), True),
}


@pytest.mark.parametrize(("data", "kept"), SAMPLES.values(), ids=SAMPLES)
def test_what_is_stored_looks_as_what_is_opened(data: bytes, kept: bool):
    seen = open_picture(data)
    stored, facts = storable_picture(data)
    assert seen.tobytes() == open_picture(stored).tobytes()
    assert (seen.mode, seen.size) == ("RGB", facts.size)
    assert (stored == data) is kept
    assert storable_picture(stored)[0] == stored
    naive = Image.open(io.BytesIO(stored)).convert("RGB")  # as a reader that knows neither EXIF nor transparency
    assert (naive.size, naive.tobytes()) == (seen.size, seen.tobytes())


LOSSLESS = ["png", "rgba png", "animated png", "bmp", "tiff"]
LOSSY = ["jpeg", "progressive jpeg", "jpeg with a preview", "webp", "animated webp", "avif", "cmyk tiff", "lab tiff"]


@pytest.mark.parametrize(("name", "tolerance"), [*((name, 0) for name in LOSSLESS), *((name, 4) for name in LOSSY)])
def test_the_first_frame_is_what_was_drawn(name: str, tolerance: int):
    seen, drawn = (np.asarray(image, int) for image in (open_picture(SAMPLES[name][0]), gradient()))
    assert np.abs(seen - drawn).mean() <= tolerance


def test_grey_stays_grey():
    assert open_picture(SAMPLES["grey png"][0]).tobytes() == gradient("L").convert("RGB").tobytes()


RED, DARK, WHITE = (255, 0, 0), (76, 76, 76), (255, 255, 255)


@pytest.mark.parametrize(
    ("image", "solid"),
    [(half_clear(), RED), (half_clear("LA"), DARK), (half_clear().quantize(8), RED)],
    ids=["RGBA", "LA", "palette"],
)
def test_what_is_transparent_is_white(image: Image.Image, solid: tuple[int, int, int]):
    seen = open_picture(encoded(image, "PNG"))
    assert (seen.getpixel((0, 0)), seen.getpixel((15, 5))) == (WHITE, solid)


def test_what_is_half_transparent_is_half_white():
    data = encoded(Image.new("RGBA", (4, 4), (255, 0, 0, 128)), "PNG")
    assert open_picture(data).getpixel((0, 0)) == (255, 127, 127)


def test_a_clear_palette_colour_of_a_gif_is_white():
    image = Image.new("P", (20, 10), 0)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.paste(1, (10, 0, 20, 10))
    seen = open_picture(encoded(image, "GIF", transparency=0))
    assert (seen.getpixel((0, 0)), seen.getpixel((15, 5))) == (WHITE, RED)


@pytest.mark.parametrize(("value", "grey"), [(0, 0), (257, 1), (32896, 128), (65535, 255)])
def test_sixteen_bits_become_eight(value: int, grey: int):
    assert open_picture(encoded(sixteen_bits(np.full((4, 4), value)), "PNG")).getpixel((0, 0)) == (grey,) * 3


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "AVIF", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_pictures_stand_upright(kind: str, orientation: int):
    exif = turned(orientation)
    options = {"lossless": True} if kind == "WEBP" else {"quality": 95} if kind in ("JPEG", "AVIF") else {}
    data = encoded(gradient(), kind, exif=exif, **options)
    plain = Image.open(io.BytesIO(encoded(gradient(), kind, **options)))
    plain.getexif()[ORIENTATION] = orientation
    expected = ImageOps.exif_transpose(plain)
    seen = open_picture(data)
    assert seen.size == ((30, 40) if orientation > 4 else (40, 30)) == expected.size
    assert np.abs(np.asarray(seen, int) - np.asarray(expected, int)).mean() < 4


def test_a_colour_profile_of_four_inks_is_not_put_on_three_colours():
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    stored, _ = storable_picture(encoded(gradient("CMYK"), "JPEG", icc_profile=profile))
    assert "icc_profile" not in Image.open(io.BytesIO(stored)).info


SVG = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>"
EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n"


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "no bytes"),
        (b"\x00", "not a picture in one of JPEG, PNG, WEBP"),
        (b"<!doctype html><title>404</title>", "not a picture"),
        (SVG, "not a picture"),
        (EPS, "not a picture"),
        (b"%PDF-1.7", "not a picture"),
        (b"\xff\xd8\xff", "not a picture"),
        (encoded(gradient(), "PPM"), "not a picture"),  # a format that is not on the list
        (encoded(gradient(), "ICO"), "not a picture"),
        (encoded(gradient("F"), "TIFF"), "floating-point numbers of unknown range"),
    ],
    ids=lambda value: repr(value[:12]),
)
@pytest.mark.parametrize("function", [open_picture, storable_picture])
def test_what_is_no_whole_picture_says_why(function: Any, data: bytes, reason: str):
    with pytest.raises(PictureError, match=reason) as caught:
        function(data)
    assert str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF"])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_a_truncated_picture_is_refused(kind: str, share: float):
    noise = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)  # a byte lost is pixels lost
    data = encoded(Image.fromarray(noise), kind)
    with pytest.raises(PictureError, match=r"^(cannot be decoded \(.+\)|not a picture .+)$"):
        open_picture(data[: int(share * len(data))])


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_bomb(width: int, height: int) -> bytes:
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(bytes(10_000_000), 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def text_bomb() -> bytes:
    """A small picture with a comment of 200 MB, squeezed."""
    whole = encoded(Image.new("RGB", (1, 1)), "PNG")
    comment = b"comment\x00\x00" + zlib.compress(bytes(200_000_000), 1)
    return whole[:33] + chunk(b"zTXt", comment) + whole[33:]


def gif_bomb() -> bytes:
    return b"GIF89a" + struct.pack("<HHBBB", 65535, 65535, 0, 0, 0) + encoded(COLOURS, "GIF")[13:]


@pytest.mark.parametrize(
    "bomb",
    [png_bomb(2**31 - 1, 2**31 - 1), png_bomb(100_000, 100_000), png_bomb(9000, 9000), gif_bomb(), text_bomb()],
    ids=["whole range", "bomb by Pillow", "more than ours", "gif", "text"],
)
def test_a_bomb_is_refused_before_it_goes_off(bomb: bytes):
    started = time.process_time()
    with pytest.raises(PictureError):
        open_picture(bomb)
    assert time.process_time() - started < 0.5


def test_the_largest_picture_that_is_allowed_is_named():
    with pytest.raises(PictureError, match=f"9000x9000 pixels are more than {MAX_PIXELS:,}"):
        open_picture(png_bomb(9000, 9000))


@pytest.mark.parametrize(
    "name", ["jpeg turned by exif", "palette png with transparency", "16-bit png", "animated gif"]
)
def test_broken_bytes_are_a_picture_or_a_picture_error(name: str):
    dice = random.Random(name)
    reasons: set[str] = set()
    for _ in range(200):
        data = bytearray(SAMPLES[name][0])
        for _ in range(dice.choice((1, 3, 10))):
            data[dice.randrange(min(len(data), dice.choice((60, 10**6))))] = dice.randrange(256)
        for function in (open_picture, storable_picture):
            try:
                function(bytes(data))
            except PictureError as error:
                reasons.add(str(error))
    assert all(reasons)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_larger_pictures_are_made_smaller_and_photos_stay_photos(kind: str):
    image = Image.effect_noise((400, 100), 60).convert("RGB")
    stored, facts = storable_picture(encoded(image, kind), max_side=200)
    assert facts.size == open_picture(stored).size == (200, 50)
    assert Image.open(io.BytesIO(stored)).format == ("JPEG" if kind == "JPEG" else "PNG")
    assert storable_picture(stored, max_side=200)[0] == stored


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_the_size_is_known_without_decoding(name: str):
    data = SAMPLES[name][0]
    assert picture_size(data) == open_picture(data).size


def test_the_size_of_what_is_no_picture():
    with pytest.raises(PictureError):
        picture_size(b"<svg/>")


SECRET = b"the photographer's name"


def located(orientation: int = 1) -> Image.Exif:
    exif = turned(orientation)
    exif[0x010E] = SECRET.decode()
    exif.get_ifd(GPS).update({1: "N", 2: (52.0, 31.0, 12.0), 3: "E", 4: (13.0, 24.0, 18.0)})
    return exif


def chatty(kind: str, **options: Any) -> bytes:
    """A picture with all that its format can say beside its pixels."""
    more: dict[str, Any] = {
        "exif": located(),
        "icc_profile": ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes(),
    }
    if kind == "JPEG":
        more |= {"comment": SECRET, "xmp": b"<x:xmpmeta>" + SECRET, "quality": 90}
    if kind == "PNG":
        info = PngImagePlugin.PngInfo()
        info.add_text("Author", SECRET.decode())
        info.add_itxt("XML:com.adobe.xmp", SECRET.decode())
        info.add_text("Comment", SECRET.decode(), zip=True)
        more |= {"pnginfo": info}
    if kind == "WEBP":
        more |= {"xmp": b"<x:xmpmeta>" + SECRET}
    return encoded(gradient(), kind, **more | options)


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_metadata_goes_and_pixels_stay(kind: str):
    data = chatty(kind)
    assert picture_facts(data).position
    stored, facts = storable_picture(data + SECRET, strip_metadata=True)  # and what follows the picture
    image = Image.open(io.BytesIO(stored))
    assert (image.format, facts.position) == ("JPEG" if kind == "JPEG" else "PNG", False)
    off = np.abs(np.asarray(open_picture(stored), int) - np.asarray(open_picture(data), int))
    assert off.mean() < (2 if kind == "JPEG" else 1e-9)
    assert not dict(image.getexif())
    assert not has_position(image)
    assert set(image.info) <= {"jfif", "jfif_version", "jfif_unit", "jfif_density"}
    assert SECRET not in stored
    assert storable_picture(data)[0] == data  # nothing goes unless it is asked for


@pytest.mark.parametrize(
    ("data", "options"),
    [
        (encoded(gradient(), "JPEG", exif=located(6), comment=SECRET), {}),
        (encoded(gradient(), "JPEG", exif=located(), comment=SECRET), {"max_side": 20}),
        (encoded(gradient(), "TIFF", exif=located()), {"strip_metadata": True}),
        (encoded(gradient("CMYK"), "JPEG", exif=located(), comment=SECRET), {}),
        (encoded(gradient(), "AVIF", exif=located()), {"strip_metadata": True}),
    ],
)
def test_a_picture_that_is_encoded_again_has_no_metadata(data: bytes, options: dict[str, Any]):
    stored, facts = storable_picture(data, **options)
    image = Image.open(io.BytesIO(stored))
    assert stored != data
    assert SECRET not in stored
    assert not dict(image.getexif())
    assert image.size == facts.size


@pytest.mark.parametrize(("data", "kept"), SAMPLES.values(), ids=SAMPLES)
@pytest.mark.parametrize("options", [{}, {"max_side": 20}, {"strip_metadata": True}], ids=str)
def test_facts_of_what_is_stored_are_those_of_its_bytes(data: bytes, kept: bool, options: dict[str, Any]):
    stored, facts = storable_picture(data, **options)
    read = picture_facts(stored)
    assert facts.sha256 == hashlib.sha256(stored).hexdigest()
    same = replace(read, brightness=facts.brightness, fingerprint=facts.fingerprint)
    assert facts == same
    if "max_side" not in options and facts.format != "JPEG":  # a JPEG made here is known by what it was made of
        assert facts == read


def test_facts_of_what_is_no_picture():
    facts = picture_facts(SVG)
    assert (facts.size, facts.stored) == (None, len(SVG))
    assert facts.reason.startswith("not a picture in one of JPEG")


def test_a_picture_is_opened_once_for_bytes_and_facts(monkeypatch: pytest.MonkeyPatch):
    opened, real = [], Image.open
    monkeypatch.setattr(Image, "open", lambda *a, **k: opened.append(1) or real(*a, **k))
    for n, (data, _) in enumerate(SAMPLES.values(), start=1):
        storable_picture(data)
        assert len(opened) == n


def test_a_long_comment_is_no_reason_against_a_png():
    notes, buffer = PngImagePlugin.PngInfo(), io.BytesIO()
    notes.add_text("comment", "x" * 3 * 2**20, zip=True)
    Image.new("RGB", (40, 30), "red").save(buffer, "PNG", pnginfo=notes)
    assert open_picture(buffer.getvalue()).size == (40, 30)


PHOTO = Image.fromarray(np.random.default_rng(5).integers(0, 256, (120, 160, 3), np.uint8))


@pytest.mark.parametrize(
    "options", [{}, {"quality": 30}, {"subsampling": 0}, {"progressive": True}, {"optimize": True}]
)
@pytest.mark.parametrize("mode", ["RGB", "L", "CMYK"])
@pytest.mark.parametrize("end", [b"", b"\xff"])
def test_a_jpeg_without_its_end_mark_is_taken_and_stored_with_one(options: dict[str, Any], mode: str, end: bytes):
    whole = encoded(PHOTO.convert(mode), "JPEG", **options)
    told: list[str] = []
    stored, facts = storable_picture(whole[:-2] + end, notice=told.append)
    assert told == ["JPEG pictures without an end mark"]
    assert stored == whole if mode != "CMYK" else facts.format == "PNG"
    assert open_picture(stored).tobytes() == open_picture(whole).tobytes() == open_picture(whole[:-2]).tobytes()
    assert storable_picture(stored, notice=told.append)[0] == stored
    assert len(told) == 1


@pytest.mark.parametrize("cut", [3, 4, 5, 9, 50, 500, 5000])
@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}])
def test_a_jpeg_that_lacks_pixels_is_refused_whatever_its_end(cut: int, options: dict[str, Any]):
    data = encoded(PHOTO, "JPEG", **options)[:-cut]
    for function in (open_picture, storable_picture):
        with pytest.raises(PictureError, match="truncated"):
            function(data)


@pytest.fixture(scope="module")
def huge() -> bytes:
    return encoded(
        gradient(width=400, height=450).resize((8000, 9000), Image.Resampling.BILINEAR), "JPEG", quality=50
    )


@pytest.mark.parametrize("side", [336, 1000, 4500])
def test_a_jpeg_beyond_the_limit_is_taken_where_it_is_made_smaller(huge: bytes, side: int):
    told: list[str] = []
    stored, facts = storable_picture(huge, max_side=side, notice=told.append)
    assert told == ["JPEG pictures of more than 64,000,000 pixels"]
    assert (facts.size, facts.format) == ((round(side * 8 / 9), side), "JPEG")
    small = gradient(width=400, height=450).resize(facts.size or (1, 1), Image.Resampling.BILINEAR)
    assert np.abs(np.asarray(open_picture(stored), int) - np.asarray(small, int)).mean() < 4
    assert storable_picture(stored, max_side=side)[0] == stored


@pytest.mark.parametrize(
    ("options", "fix"),
    [({}, r"64,000,000; --max-side 4500 takes it"), ({"max_side": 4600}, r"; --max-side 4500 takes it")],
)
def test_a_jpeg_beyond_the_limit_says_what_takes_it(huge: bytes, options: dict[str, int], fix: str):
    with pytest.raises(PictureError, match=fix):
        storable_picture(huge, **options)


def test_what_cannot_be_read_smaller_is_refused_beyond_the_limit():
    with pytest.raises(PictureError, match=r"9000x9000 pixels are more than 64,000,000$"):
        storable_picture(png_bomb(9000, 9000), max_side=300)
