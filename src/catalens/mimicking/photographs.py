"""Pictures of mimicked products, in the sizes, formats, brightness and file sizes of a profile.

    Look("Tote Bag", "Red", "Striped", ""), 600 x 800 JPEG of .11 bytes a pixel  ->  b"\\xff\\xd8..."

What is seen is drawn by `drawing`; nothing of a picture of the catalogue is in it. A file comes near its size by the
quality it is encoded with, and by film grain where a drawing alone holds too little.
"""

import dataclasses
import io
import random
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from PIL import Image

from catalens.catalog.scan import border_brightness
from catalens.mimicking.looks import Look
from catalens.mimicking.profile import ALPHA, PictureFormat
from catalens.mimicking.summaries import place_of, quantile
from catalens.sampling.assortment import Product
from catalens.sampling.picture import Pixels, expose, paint_backdrop, take_shot
from catalens.sampling.shapes import ALL_STANDING

SMALLEST, LARGEST = 96, 512
"""Longer side in pixels at which is drawn; other sizes are scaled from there."""
NARROWEST = 24
LONGEST_FILE = 6000
"""Longest side of a picture that is drawn."""
STUDIO = 246.0
"""Borders as bright as this are a white studio."""
GRAIN = 32.0
"""Strongest film grain: standard deviation on the scale of 0 to 255."""
LOSSY = ("JPEG", "WEBP", "AVIF")
TRIES = 7


def photograph(look: Look, pictures: Mapping[str, PictureFormat], dice: random.Random, at: float) -> bytes:
    """A picture file of a thing with this look, in the format that the share `at` of all pictures falls on.

    The random numbers choose what else the profile leaves open.
    """
    format = list(pictures)[place_of(at, [its.products for its in pictures.values()])]
    its = pictures[format]
    width, height = _size(its, dice)
    brightness = min(255.0, max(0.0, quantile(its.brightness, dice.random()))) if its.brightness else 255.0
    target = quantile(its.bytes_a_pixel, dice.random(), logarithmic=True) * width * height
    colour, alpha = _draw(look, width, height, None if format.endswith(ALPHA) else brightness, dice)
    grain = np.random.default_rng(dice.getrandbits(64)).standard_normal(colour.shape, dtype=np.float32)
    if brightness >= STUDIO:
        grain = grain * (colour.min(axis=2, keepdims=True) < STUDIO)  # the studio itself is burnt out
    return _near(target, lambda detail: _encode(colour, alpha, grain, format, detail))


def _size(its: PictureFormat, dice: random.Random) -> tuple[int, int]:
    at = dice.random() * its.products
    for width, height, products in its.sizes:
        at -= products
        if at < 0:
            return width, height
    longest = min(quantile(its.longest, dice.random(), logarithmic=True), LONGEST_FILE)
    ratio = quantile(its.ratio, dice.random(), logarithmic=True)
    width, height = (longest, longest / ratio) if ratio > 1 else (longest * ratio, longest)
    return max(1, round(width)), max(1, round(height))


def _draw(
    look: Look, width: int, height: int, brightness: float | None, dice: random.Random
) -> tuple[Pixels, Pixels]:
    """Colour [height, width, 3] and opacity [height, width, 1], 0 to 255; without a brightness, no backdrop."""
    scale = min(max(SMALLEST / max(width, height), 1.0), LARGEST / max(width, height))
    drawn = [max(NARROWEST, round(side * scale)) for side in (width, height)]
    shot = take_shot(dice, look.kind in ALL_STANDING)
    studio = brightness is not None and brightness >= STUDIO  # nothing reaches the border there
    size = min(drawn) * (dice.uniform(0.84, 0.94) if studio else dice.uniform(0.88, 1.04))
    slack = [max(0.02 * size, 0.4 * (side - (1.02 if studio else 0.93) * size)) for side in drawn]
    shot = dataclasses.replace(
        shot,
        width=drawn[0],
        height=drawn[1],
        size=size,
        centre=(drawn[0] / 2 + dice.uniform(-slack[0], slack[0]), drawn[1] / 2 + dice.uniform(-slack[1], slack[1])),
    )
    backdrop = None
    if brightness is not None:
        style = "white" if studio else dice.choice(("grey", "paper", "room"))
        backdrop = paint_backdrop(style, shot, dice, look.kind in ALL_STANDING)
        backdrop = np.clip(backdrop * (brightness / border_brightness(_image(backdrop))), 0, 255)
    product = Product("", look.kind, look.colour, look.pattern, look.trim, "", 1.0, 1.0, 1)
    colour, alpha = expose(product, shot, backdrop)
    if (width, height) == tuple(drawn):
        return colour, alpha
    sized = [_image(plane).resize((width, height), Image.Resampling.LANCZOS) for plane in (colour, alpha)]
    return np.asarray(sized[0], np.float32), np.asarray(sized[1], np.float32)[..., None]


def _image(pixels: Pixels) -> Image.Image:
    return Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8).squeeze())


def _encode(colour: Pixels, alpha: Pixels, grain: Pixels, format: str, detail: float) -> bytes:
    """The picture as a file that holds the more, the nearer `detail` (0 to 1) is to 1: by quality, then by grain."""
    name = format.removesuffix(ALPHA)
    turn = 0.75 if name in LOSSY else 0.4
    strength = GRAIN * max(0.0, (detail - turn) / (1 - turn)) ** 2
    levels = 255 if name in LOSSY else 255 // (1 + round(31 * max(0.0, 1 - detail / turn)))
    pixels = np.clip(np.round((colour + strength * grain) * (levels / 255)) * (255 / levels), 0, 255)
    picture = Image.fromarray(
        (np.dstack([pixels, alpha]) if format.endswith(ALPHA) else pixels).astype(np.uint8),
    )
    options: dict[str, Any] = {"quality": round(8 + 88 * min(1.0, detail / turn))} if name in LOSSY else {}
    file = io.BytesIO()
    picture.save(file, name, **options)
    return file.getvalue()


def _near(target: float, encode: Callable[[float], bytes]) -> bytes:
    """The file that comes nearest to `target` bytes, found by halving."""
    low, high = 0.0, 1.0
    best = b""
    for _ in range(TRIES):
        file = encode((low + high) / 2)
        if not best or abs(len(file) - target) < abs(len(best) - target):
            best = file
        low, high = ((low + high) / 2, high) if len(file) < target else (low, (low + high) / 2)
    return best
