"""Pictures of mimicked products, in the sizes, formats, brightness and file sizes of a profile.

    Look("Tote Bag", "Red", "Striped", ""), 600 x 800 JPEG of .11 bytes a pixel  ->  b"\\xff\\xd8..."

What is seen is drawn by `sampling`; nothing of a picture of the catalogue is in it. A file comes near its size by the
quality it is encoded with, and by film grain where a drawing alone holds too little.
"""

import io
import random
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from PIL import Image

from catalens.catalog.pictures import border_brightness
from catalens.mimicking.products import MimickedProduct, Planner
from catalens.mimicking.profile import ALPHA, PictureFormat, Profile, index_of, quantile
from catalens.sampling.assortment import Look
from catalens.sampling.picture import STANDING, Pixels, expose, paint_backdrop, take_shot

SMALLEST, LARGEST = 96, 512  # longer side in pixels at which is drawn; other sizes are scaled from there
NARROWEST, MAX_SIDE = 24, 6000  # shorter side at which is drawn; longest side of a picture
STUDIO = 246.0  # borders as bright as this are a white studio
GRAIN = 32.0  # strongest film grain: standard deviation on the scale of 0 to 255
LOSSY = ("JPEG", "WEBP", "AVIF")
TRIES = 7


def draw_product(index: tuple[int, int], text: str, seed: int) -> tuple[MimickedProduct, bytes]:
    """Draw product and photograph `index` of a seed; `text` is the profile as JSON, which a worker reads once."""
    planner, (number, shot) = _planner(text, seed), index
    product = planner.product(number)
    rng = random.Random(f"catalens/like/{seed}/product/{number}/photograph/{shot}")
    return product, photograph(product.look, planner.profile.pictures, rng)


@lru_cache(maxsize=1)
def _planner(text: str, seed: int) -> Planner:
    """A worker's planner, kept from row to row."""
    return Planner(Profile.model_validate_json(text), seed)


def photograph(look: Look, pictures: Mapping[str, PictureFormat], rng: random.Random) -> bytes:
    """Draw a picture file of a thing with this look; the random numbers choose what the profile leaves open."""
    format = list(pictures)[index_of(rng.random(), [its.products for its in pictures.values()])]
    its = pictures[format]
    width, height = _size(its, rng)
    brightness = min(255.0, max(0.0, quantile(its.brightness, rng.random()))) if its.brightness else 255.0
    target = quantile(its.bytes_a_pixel, rng.random(), logarithmic=True) * width * height
    colour, alpha = _draw(look, width, height, None if format.endswith(ALPHA) else brightness, rng)
    grain = np.random.default_rng(rng.getrandbits(64)).standard_normal(colour.shape, dtype=np.float32)
    if brightness >= STUDIO:
        grain = grain * (colour.min(axis=2, keepdims=True) < STUDIO)  # the studio itself is burnt out
    return _near(target, lambda detail: _encode(colour, alpha, grain, format, detail))


def _size(its: PictureFormat, rng: random.Random) -> tuple[int, int]:
    at = rng.random() * its.products
    for width, height, products in its.sizes:
        at -= products
        if at < 0:
            return width, height
    longest = min(quantile(its.longest, rng.random(), logarithmic=True), MAX_SIDE)
    ratio = quantile(its.ratio, rng.random(), logarithmic=True)
    return max(1, round(longest * min(ratio, 1))), max(1, round(longest / max(ratio, 1)))


def _draw(look: Look, width: int, height: int, brightness: float | None, rng: random.Random) -> tuple[Pixels, Pixels]:
    """Colour [height, width, 3] and opacity [height, width, 1], 0 to 255; without a brightness, no backdrop."""
    scale = min(max(SMALLEST / max(width, height), 1.0), LARGEST / max(width, height))
    drawn = [max(NARROWEST, round(side * scale)) for side in (width, height)]
    shot = take_shot(rng, look.kind in STANDING)
    studio = brightness is not None and brightness >= STUDIO  # nothing reaches the border there
    size = min(drawn) * (rng.uniform(0.84, 0.94) if studio else rng.uniform(0.88, 1.04))
    slack = [max(0.02 * size, 0.4 * (side - (1.02 if studio else 0.93) * size)) for side in drawn]
    centre = (drawn[0] / 2 + rng.uniform(-slack[0], slack[0]), drawn[1] / 2 + rng.uniform(-slack[1], slack[1]))
    shot = shot._replace(width=drawn[0], height=drawn[1], size=size, centre=centre)
    backdrop = None
    if brightness is not None:
        style = "white" if studio else rng.choice(("grey", "paper", "room"))
        backdrop = paint_backdrop(style, shot, rng, look.kind in STANDING)
        backdrop = np.clip(backdrop * (brightness / border_brightness(_image(backdrop))), 0, 255)
    colour, alpha = expose(look, shot, backdrop)
    if [width, height] == drawn:
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
    pixels = np.dstack([pixels, alpha]) if format.endswith(ALPHA) else pixels
    options: dict[str, Any] = {"quality": round(8 + 88 * min(1.0, detail / turn))} if name in LOSSY else {}
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, name, **options)
    return file.getvalue()


def _near(target: float, encode: Callable[[float], bytes]) -> bytes:
    """The file that comes nearest to `target` bytes, found by halving."""
    low, high = 0.0, 1.0
    files: list[bytes] = []
    for _ in range(TRIES):
        middle = (low + high) / 2
        files.append(encode(middle))
        low, high = (middle, high) if len(files[-1]) < target else (low, middle)
    return min(files, key=lambda file: abs(len(file) - target))
