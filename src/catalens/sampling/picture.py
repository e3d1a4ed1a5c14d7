"""One photograph of a drawn product: SVG for the product, NumPy and Pillow for the studio around it.

    product -> SVG -> resvg -> RGBA cut-out -> backdrop, shadow, light -> JPEG | PNG | WebP | RGBA PNG

Only the cut-out goes through the renderer, which is dear by the pixel; everything soft (backdrop, shadow,
light) is cheap array arithmetic.
"""

import colorsys
import io
import math
import random
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
import resvg_py
from PIL import Image, ImageColor, ImageFilter

from catalens.sampling.assortment import PALETTE, Product
from catalens.sampling.shapes import ALL_SHAPES, ALL_STANDING

Pixels = np.ndarray[Any, np.dtype[np.float32]]  # [height, width, channels], 0 to 255

_LINE = 'fill="none" stroke-linecap="round" stroke-linejoin="round"'
_EDGE = 'stroke="#000" stroke-opacity=".5" stroke-width="1.3" stroke-linejoin="round"'

# How a layer of `shapes.SHAPES` is painted: SVG attributes, and whether the volume gradient goes on top.
LAYERS: dict[str, tuple[str, bool]] = {
    "body": ('fill="{cloth}" stroke="{edge}" stroke-width="1.6" stroke-linejoin="round"', True),
    "panel": ('fill="{cloth}" stroke="#000" stroke-opacity=".45" stroke-width="1.8"', True),
    "back": ('fill="{deep}" fill-rule="evenodd"', False),
    "trim": (f'fill="{{trim}}" fill-rule="evenodd" {_EDGE}', False),
    "trimline": (f'{_LINE} stroke="{{metal}}" stroke-width="4.5"', False),
    "trimedge": (f'{_LINE} stroke="{{trim}}" stroke-width="10"', False),
    "cord": (f'{_LINE} stroke="{{deep}}" stroke-width="13"', False),
    "pole": (f'{_LINE} stroke="{{pole}}" stroke-width="8"', False),
    "lace": (f'{_LINE} stroke="#f4f1ea" stroke-width="5"', False),
    "tick": (f'{_LINE} stroke="#7a7f87" stroke-width="3"', False),
    "hand": (f'{_LINE} stroke="#22252b" stroke-width="4"', False),
    "seam": (f'{_LINE} stroke="{{edge}}" stroke-opacity=".75" stroke-width="1.6"', False),
    "stitch": (
        f'{_LINE} stroke="{{light}}" stroke-opacity=".8" stroke-width="1.4" stroke-dasharray="4 3"',
        False,
    ),
    "fold": ('fill="#000" fill-opacity=".16"', False),
    "shine": ('fill="#fff" fill-opacity=".3"', False),
    "gleam": ('fill="#fff" fill-opacity=".38"', False),
    "pale": (f'fill="#f1eee6" {_EDGE}', True),
    "dark": ('fill="#2b2a2d" fill-rule="evenodd"', True),
    "glass": ('fill="url(#glass)"', False),
    "coffee": ('fill="#4a2c1a"', False),
}

_METALS: dict[str, tuple[str, tuple[str, ...]]] = {  # trim: colour of thin parts, stops of the gradient
    "Gold-Trim": ("#cf9314", ("#95600a", "#ffe48a", "#cf8f12", "#fff3c4", "#9c680c")),
    "Silver-Trim": ("#9aa8b8", ("#56657a", "#eef4fa", "#8593a6", "#ffffff", "#5d6c80")),
}
_FORMATS = ("JPEG", "JPEG", "JPEG", "JPEG", "JPEG", "PNG", "WebP", "WebP", "RGBA")


@dataclass(frozen=True)
class Shot:
    """How one photograph is taken. Lengths in pixels, angles in degrees."""

    width: int
    height: int
    size: float  # of the 200 x 200 box of the shape
    centre: tuple[float, float]
    rotation: float
    mirrored: bool
    light: float  # the direction the light comes from
    brightness: float  # factor
    warmth: float  # red up and blue down by this share
    format: str  # JPEG, PNG, WebP, or RGBA: a PNG with a transparent background
    quality: int


def take_shot(dice: random.Random, standing: bool) -> Shot:
    """Choose size, position, light and file format of a photograph."""
    width, height = dice.choice(((1, 1), (1, 1), (0.9, 1), (0.8, 1), (1, 0.85)))
    side = dice.randrange(224, 329, 8)
    width, height = int(width * side), int(height * side)
    size = dice.uniform(0.88, 1.06) * min(width, height)
    slack_x, slack_y = (max(0.02 * size, 0.4 * (side - 0.93 * size)) for side in (width, height))
    return Shot(
        width=width,
        height=height,
        size=size,
        centre=(width / 2 + dice.uniform(-slack_x, slack_x), height / 2 + dice.uniform(-slack_y, slack_y)),
        rotation=max(-9.0, min(9.0, dice.gauss(0, 1.2 if standing else 4))),
        mirrored=dice.random() < 0.35,
        light=dice.uniform(-150, -30),
        brightness=dice.uniform(0.88, 1.06),
        warmth=dice.uniform(-0.035, 0.045),
        format=dice.choice(_FORMATS),
        quality=dice.randrange(72, 96),
    )


def photograph(product: Product, dice: random.Random) -> bytes:
    """Draw and photograph a product; the random numbers choose backdrop, pose, light and file format."""
    standing = product.kind in ALL_STANDING
    shot = take_shot(dice, standing)
    backdrop = None
    if shot.format != "RGBA":
        style = dice.choices(("white", "grey", "paper", "room"), (35, 20, 25, 20))[0]
        backdrop = paint_backdrop(style, shot, dice, standing)
    return _encode(*expose(product, shot, backdrop), shot)


def expose(product: Product, shot: Shot, backdrop: Pixels | None) -> tuple[Pixels, Pixels]:
    """Colour [height, width, 3] and opacity [height, width, 1] of a product in front of a backdrop, 0 to 255.

    Without a backdrop there is no shadow either, and the opacity is the product's own.
    """
    box = math.ceil(shot.size)
    rendered = resvg_py.svg_to_bytes(svg_string=compose_svg(product, shot, box), skip_system_fonts=True)
    cutout = Image.open(io.BytesIO(rendered)).convert("RGBA")
    corner = (round(shot.centre[0] - cutout.width / 2), round(shot.centre[1] - cutout.height / 2))
    layer = Image.new("RGBA", (shot.width, shot.height))
    layer.paste(cutout, corner)
    pixels = np.asarray(layer, dtype=np.float32)
    colour, alpha = pixels[..., :3] * _lighting(shot), pixels[..., 3:] / 255
    if backdrop is not None:
        studio = backdrop * (1 - _shadow(layer.getchannel("A"), shot, product.kind in ALL_STANDING))
        colour = studio + (colour - studio) * alpha
    return np.clip(colour, 0, 255), pixels[..., 3:]


def compose_svg(product: Product, shot: Shot, box: int) -> str:
    """The product alone, on transparent ground, as an SVG `box` pixels wide."""
    cloth, ink = PALETTE[product.colour]
    metal, stops = _METALS.get(product.trim, (cloth, ()))
    paints = {
        "cloth": cloth if product.pattern == "Plain" else "url(#cloth)",
        "trim": "url(#trim)" if stops else cloth,
        "edge": _mix(cloth, "#000000", 0.5),
        "deep": _mix(cloth, "#000000", 0.32),
        "light": _mix(cloth, "#ffffff", 0.55),
        "metal": metal,
        "pole": metal if product.trim else "#55565c",
    }
    drawn: list[str] = []
    for layer, mirrored, path in _layers(ALL_SHAPES[product.kind]):
        style, volume = LAYERS[layer]
        elements = f'<path d="{path}" {style.format_map(paints)}/>'
        if volume:
            elements += f'<path d="{path}" fill="url(#volume)"/>'
        drawn.append(elements)
        if mirrored:
            drawn.append(f'<g transform="matrix(-1 0 0 1 200 0)">{elements}</g>')
    pose = f"rotate({shot.rotation:.2f} 100 100)" + (" matrix(-1 0 0 1 200 0)" if shot.mirrored else "")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-8 -8 216 216" width="{box}" height="{box}"><defs>'
        f"{_cloth(product.pattern, cloth, ink)}{_gradient('trim', stops)}{_volume(shot)}"
        f"{_gradient('glass', ('#20242c', '#59636f'))}</defs>"
        f'<g transform="{pose}">{"".join(drawn)}</g></svg>'
    )


def _layers(shape: str) -> list[tuple[str, bool, str]]:
    """(layer, whether mirrored too, path data) of a shape's table, in drawing order."""
    lines = [line.split(maxsplit=1) for line in shape.strip().splitlines()]
    return [(name.rstrip("2"), name.endswith("2"), _expand(path)) for name, path in lines]


def _expand(path: str) -> str:
    """Write the shorthands `O cx,cy,rx,ry` and `R x,y,w,h,r` out as arcs and lines."""

    def oval(match: re.Match[str]) -> str:
        x, y, rx, ry = map(float, match[1].split(","))
        return f"M{x - rx} {y} a{rx} {ry} 0 1 0 {2 * rx} 0 a{rx} {ry} 0 1 0 {-2 * rx} 0 Z"

    def box(match: re.Match[str]) -> str:
        x, y, w, h, r = map(float, match[1].split(","))
        turn = f"a{r} {r} 0 0 1"
        return (
            f"M{x + r} {y} h{w - 2 * r} {turn} {r} {r} v{h - 2 * r} {turn} {-r} {r} "
            f"h{2 * r - w} {turn} {-r} {-r} v{2 * r - h} {turn} {r} {-r} Z"
        )

    return re.sub(r"R([\d.,]+)", box, re.sub(r"O([\d.,]+)", oval, path))


def _cloth(pattern: str, cloth: str, ink: str) -> str:
    """The paint of the main material: bold enough to be read at 112 pixels."""
    if pattern == "Plain":
        return ""
    if pattern == "Striped":  # a repeating gradient is half as dear as a tiled pattern
        steps = ((0, cloth), (0.14, cloth), (0.18, ink), (0.5, ink), (0.54, cloth), (1, cloth))
        stops = "".join(f'<stop offset="{at}" stop-color="{colour}"/>' for at, colour in steps)
        ends = 'gradientUnits="userSpaceOnUse" x1="0" y1="0" x2="0" y2="22" spreadMethod="repeat"'
        return f'<linearGradient id="cloth" {ends}>{stops}</linearGradient>'
    tile, marks = {
        "Checked": (
            28,
            f'<path d="M0 4 h28 v9 h-28 Z M4 0 h9 v28 h-9 Z" fill="{ink}" fill-opacity=".55"/>'
            f'<path d="M4 4 h9 v9 h-9 Z" fill="{ink}"/>',
        ),
        "Dotted": (
            26,
            "".join(f'<circle cx="{x}" cy="{y}" r="5.2" fill="{ink}"/>' for x, y in ((6.5, 6.5), (19.5, 19.5))),
        ),
    }[pattern]
    return (
        f'<pattern id="cloth" width="{tile}" height="{tile}" patternUnits="userSpaceOnUse">'
        f'<rect width="{tile}" height="{tile}" fill="{cloth}"/>{marks}</pattern>'
    )


def _gradient(name: str, stops: tuple[str, ...]) -> str:
    """A linear gradient with evenly spaced stops."""
    steps = "".join(f'<stop offset="{i / (len(stops) - 1)}" stop-color="{stop}"/>' for i, stop in enumerate(stops))
    return f'<linearGradient id="{name}" x2="1" y2=".7">{steps}</linearGradient>'


def _volume(shot: Shot) -> str:
    """Light and shade across a part, which make it look round; turned with the light."""
    turn = (shot.light + 90) * 0.6 * (-1 if shot.mirrored else 1)
    stops = (
        (0, "#000", 0.3),
        (0.28, "#fff", 0.2),
        (0.55, "#fff", 0.0),
        (0.56, "#000", 0.0),
        (1, "#000", 0.34),
    )
    steps = "".join(f'<stop offset="{at}" stop-color="{c}" stop-opacity="{o}"/>' for at, c, o in stops)
    return f'<linearGradient id="volume" gradientTransform="rotate({turn:.1f} .5 .5)">{steps}</linearGradient>'


def _mix(colour: str, other: str, share: float) -> str:
    """`colour` with `share` of `other` in it, as a hex colour."""
    pairs = zip(ImageColor.getrgb(colour), ImageColor.getrgb(other), strict=True)
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in pairs)


def _lighting(shot: Shot) -> Pixels:
    """Factors on the colours: brightness, warmth, and a fall-off away from the light."""
    x = np.linspace(-1, 1, shot.width, dtype=np.float32)[None, :, None]
    y = np.linspace(-1, 1, shot.height, dtype=np.float32)[:, None, None]
    angle = math.radians(shot.light)
    falloff = shot.brightness * (1 + 0.06 * (x * math.cos(angle) + y * math.sin(angle)))
    return (falloff * np.array([1 + shot.warmth, 1, 1 - shot.warmth])).astype(np.float32)


def paint_backdrop(style: str, shot: Shot, dice: random.Random, standing: bool) -> Pixels:
    """`white` studio, `grey` gradient, coloured `paper`, or `room`: a wall with a floor. [height, width, 3]."""
    hue, saturation, value = dice.random(), dice.uniform(0.06, 0.22), dice.uniform(0.86, 0.97)
    y = np.linspace(0, 1, shot.height, dtype=np.float32)[:, None, None]
    x = np.linspace(-1, 1, shot.width, dtype=np.float32)[None, :, None]
    vignette = 1 - 0.07 * (x * x + (2 * y - 1) ** 2)
    if style == "white":
        return np.full((shot.height, shot.width, 3), dice.uniform(248, 255), dtype=np.float32)
    if style == "grey":
        return ((238 - dice.uniform(10, 34) * y) * vignette).repeat(3, axis=2).astype(np.float32)
    wall = np.array(colorsys.hsv_to_rgb(hue, saturation, value), dtype=np.float32) * 255 * vignette
    if style == "paper":
        return wall.astype(np.float32)
    horizon = dice.uniform(0.62, 0.74) if standing else dice.uniform(0.8, 0.88)
    floor = np.clip((y - horizon) * 40, 0, 1)
    return (wall * (1 - floor * (0.13 - 0.16 * np.clip(y - horizon, 0, 1)))).astype(np.float32)


def _shadow(alpha: Image.Image, shot: Shot, standing: bool) -> Pixels:
    """How much darker the backdrop is, 0 to 1: a cast shadow, or a pool under a standing product."""
    width, height = alpha.size
    small = alpha.resize((width // 3, height // 3), Image.Resampling.BILINEAR)
    dark = Image.new("L", small.size)
    reach = shot.size / 3
    if standing and (extent := small.getbbox()):
        pool = small.crop(extent).resize((extent[2] - extent[0], max(3, round(0.09 * reach))))
        dark.paste(pool, (extent[0], extent[3] - round(0.055 * reach)))
        strength, soften = 0.55, 0.022
    else:
        angle = math.radians(shot.light)
        dark.paste(small, (round(-0.035 * reach * math.cos(angle)), round(-0.045 * reach * math.sin(angle))))
        strength, soften = 0.38, 0.03
    dark = dark.filter(ImageFilter.GaussianBlur(soften * reach)).resize(alpha.size, Image.Resampling.BILINEAR)
    return np.asarray(dark, dtype=np.float32)[..., None] * (strength / 255)


def _encode(colour: Pixels, alpha: Pixels, shot: Shot) -> bytes:
    """The finished picture as a file in the shot's format."""
    file = io.BytesIO()
    if shot.format == "RGBA":
        picture = Image.fromarray(np.dstack([colour, alpha]).astype(np.uint8))
        picture.save(file, "PNG", compress_level=4)
    else:
        picture = Image.fromarray(colour.astype(np.uint8))
        options = {"compress_level": 4} if shot.format == "PNG" else {"quality": shot.quality, "method": 2}
        picture.save(file, shot.format, **options)
    return file.getvalue()
