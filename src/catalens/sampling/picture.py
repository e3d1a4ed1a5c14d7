"""One photograph of a drawn product: SVG for the product, NumPy and Pillow for the studio around it.

    product -> SVG -> resvg -> RGBA cut-out -> backdrop, shadow, light -> JPEG | PNG | WebP | RGBA PNG

Only the cut-out goes through the renderer, which is dear by the pixel; everything soft (backdrop, shadow,
light) is cheap array arithmetic.
"""

import colorsys
import io
import math
import random
from typing import Any, NamedTuple

import numpy as np
import resvg_py
from PIL import Image, ImageColor, ImageFilter

from catalens.sampling.assortment import PALETTE, Look, read_asset

Pixels = np.ndarray[Any, np.dtype[np.float32]]  # [height, width, channels], 0 to 255

_DRAWING = read_asset("shapes.yaml")
SHAPES: dict[str, str] = _DRAWING["shapes"]  # lines of a layer and its path data, by kind
LAYERS: dict[str, str] = _DRAWING["layers"]  # SVG attributes
STANDING = frozenset[str](_DRAWING["standing"])  # kinds that stand on a floor; the others lie flat
_PAINTS: dict[str, str] = _DRAWING["paints"]
_MIRROR = "matrix(-1 0 0 1 200 0)"
_FORMATS = ("JPEG", "JPEG", "JPEG", "JPEG", "JPEG", "PNG", "WebP", "WebP", "RGBA")


class Shot(NamedTuple):
    """Pose, light and format of one photograph. Lengths in pixels, angles in degrees."""

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


def take_shot(rng: random.Random, standing: bool) -> Shot:
    """Choose size, position, light and file format of a photograph."""
    width, height = rng.choice(((1, 1), (1, 1), (0.9, 1), (0.8, 1), (1, 0.85)))
    side = rng.randrange(224, 329, 8)
    width, height = int(width * side), int(height * side)
    size = rng.uniform(0.88, 1.06) * min(width, height)
    slack_x, slack_y = (max(0.02 * size, 0.4 * (side - 0.93 * size)) for side in (width, height))
    return Shot(
        width=width,
        height=height,
        size=size,
        centre=(width / 2 + rng.uniform(-slack_x, slack_x), height / 2 + rng.uniform(-slack_y, slack_y)),
        rotation=max(-9.0, min(9.0, rng.gauss(0, 1.2 if standing else 4))),
        mirrored=rng.random() < 0.35,
        light=rng.uniform(-150, -30),
        brightness=rng.uniform(0.88, 1.06),
        warmth=rng.uniform(-0.035, 0.045),
        format=rng.choice(_FORMATS),
        quality=rng.randrange(72, 96),
    )


def photograph(look: Look, rng: random.Random) -> bytes:
    """Draw and photograph a product; the random numbers choose backdrop, pose, light and file format."""
    standing = look.kind in STANDING
    shot = take_shot(rng, standing)
    backdrop = None
    if shot.format != "RGBA":
        style = rng.choices(("white", "grey", "paper", "room"), (35, 20, 25, 20))[0]
        backdrop = paint_backdrop(style, shot, rng, standing)
    return _encode(*expose(look, shot, backdrop), shot)


def expose(look: Look, shot: Shot, backdrop: Pixels | None) -> tuple[Pixels, Pixels]:
    """Render colour [height, width, 3] and opacity [height, width, 1] of a product in front of a backdrop, 0 to 255.

    Without a backdrop there is no shadow either, and the opacity is the product's own.
    """
    box = math.ceil(shot.size)
    rendered = resvg_py.svg_to_bytes(svg_string=compose_svg(look, shot, box), skip_system_fonts=True)
    cutout = Image.open(io.BytesIO(rendered)).convert("RGBA")
    corner = (round(shot.centre[0] - cutout.width / 2), round(shot.centre[1] - cutout.height / 2))
    layer = Image.new("RGBA", (shot.width, shot.height))
    layer.paste(cutout, corner)
    pixels = np.asarray(layer, dtype=np.float32)
    colour, alpha = pixels[..., :3] * _lighting(shot), pixels[..., 3:] / 255
    if backdrop is not None:
        studio = backdrop * (1 - _shadow(layer.getchannel("A"), shot, look.kind in STANDING))
        colour = studio + (colour - studio) * alpha
    return np.clip(colour, 0, 255), pixels[..., 3:]


def compose_svg(look: Look, shot: Shot, box: int) -> str:
    """Compose the product alone, on transparent ground, as an SVG `box` pixels wide."""
    cloth, ink = PALETTE[look.colour]
    metal = _DRAWING["metals"].get(look.trim)
    paints = {
        "cloth": cloth if look.pattern == "Plain" else "url(#cloth)",
        "trim": "url(#trim)" if metal else cloth,
        "edge": _mix(cloth, "#000000", 0.5),
        "deep": _mix(cloth, "#000000", 0.32),
        "light": _mix(cloth, "#ffffff", 0.55),
        "metal": metal or cloth,
        "pole": metal or "#55565c",
    }
    drawn: list[str] = []
    for line in SHAPES[look.kind].splitlines():
        name, path = line.split(maxsplit=1)
        layer = name.rstrip("2")
        drawn.append(f'<path d="{path}" {LAYERS[layer].format_map(paints)}/>')
        if layer in _DRAWING["volume"]:
            drawn[-1] += f'<path d="{path}" fill="url(#volume)"/>'
        if name.endswith("2"):
            drawn.append(f'<g transform="{_MIRROR}">{drawn[-1]}</g>')
    turn = (shot.light + 90) * 0.6 * (-1 if shot.mirrored else 1)  # the shade of a part turns with the light
    defs = "".join(_PAINTS.get(name, "") for name in (look.pattern, look.trim, "volume", "glass"))
    pose = f"rotate({shot.rotation:.2f} 100 100)" + (f" {_MIRROR}" if shot.mirrored else "")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="-8 -8 216 216" width="{box}" height="{box}">'
        f"<defs>{defs.format(cloth=cloth, ink=ink, turn=turn)}</defs>"
        f'<g transform="{pose}">{"".join(drawn)}</g></svg>'
    )


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


def paint_backdrop(style: str, shot: Shot, rng: random.Random, standing: bool) -> Pixels:
    """Paint `white` studio, `grey` gradient, coloured `paper` or `room`, a wall with a floor: [height, width, 3]."""
    hue, saturation, value = rng.random(), rng.uniform(0.06, 0.22), rng.uniform(0.86, 0.97)
    y = np.linspace(0, 1, shot.height, dtype=np.float32)[:, None, None]
    x = np.linspace(-1, 1, shot.width, dtype=np.float32)[None, :, None]
    vignette = 1 - 0.07 * (x * x + (2 * y - 1) ** 2)
    if style == "white":
        return np.full((shot.height, shot.width, 3), rng.uniform(248, 255), dtype=np.float32)
    if style == "grey":
        return ((238 - rng.uniform(10, 34) * y) * vignette).repeat(3, axis=2).astype(np.float32)
    wall = np.array(colorsys.hsv_to_rgb(hue, saturation, value), dtype=np.float32) * 255 * vignette
    if style == "paper":
        return wall.astype(np.float32)
    horizon = rng.uniform(0.62, 0.74) if standing else rng.uniform(0.8, 0.88)
    floor = np.clip((y - horizon) * 40, 0, 1)
    return (wall * (1 - floor * (0.13 - 0.16 * np.clip(y - horizon, 0, 1)))).astype(np.float32)


def _shadow(alpha: Image.Image, shot: Shot, standing: bool) -> Pixels:
    """Darkening of the backdrop, 0 to 1: a cast shadow, or a pool under a standing product."""
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
    """Encode the finished picture in the shot's format."""
    name, pixels = (shot.format, colour) if shot.format != "RGBA" else ("PNG", np.dstack([colour, alpha]))
    options = {"compress_level": 4} if name == "PNG" else {"quality": shot.quality, "method": 2}
    file = io.BytesIO()
    Image.fromarray(pixels.astype(np.uint8)).save(file, name, **options)
    return file.getvalue()
