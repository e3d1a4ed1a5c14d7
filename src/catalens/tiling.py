"""Chat, image tokens and tiles of Phi-3-Vision, with numpy and Pillow alone: what every runtime shares.

    tiler = Tiler(num_crops=4)
    tiler.hd_size(640, 480)          (672, 672)
    tiler.cut(photo)                 [5, 3, 336, 336]: the whole picture in one crop, then its 2x2 crops row by row
    tiler.image_tokens((672, 672))   757

The HD transform enlarges a picture (never only shrinks it) to fill at most `num_crops` square crops, pads it with
white above and below (left and right when it is upright) and cuts it. Transparency is dropped by `convert("RGB")`,
as the original did: whoever wants a background composites before.

Shapes: S crop side, (H, W) HD size in pixels, h = H/S, w = W/S.
"""

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray
from PIL import Image

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
WHITE = (255, 255, 255)
IMAGE_TOKEN = "<|image|>"
IMAGE_TAG = re.compile(r"<\|image_(\d+)\|>")
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- (bos_token if loop.first else "") + "<|" + message["role"] + "|>\\n" -}}
{%- if message["content"] is string -%}
{{- message["content"] -}}
{%- else -%}
{%- for part in message["content"] if part["type"] != "text" -%}
{{- ("" if loop.first else "\\n") + "<|image|>" + bos_token -}}
{%- endfor -%}
{%- for part in message["content"] if part["type"] == "text" -%}{{- part["text"] -}}{%- endfor -%}
{%- endif -%}
{{- "<|end|>" -}}
{%- endfor -%}
{%- if add_generation_prompt -%}{{- "<|assistant|>\\n" -}}{%- endif -%}
"""
"""The chat in Jinja, pictures first, for who tokenizes it in one go: each piece after a picture begins with `<s>`."""
CUBIC = -0.75
"""Coefficient of the bicubic interpolation, torch's."""

Size = tuple[int, int]
Floats = NDArray[np.float32]


class Chat:
    """Template of a question about pictures."""

    image_tag = "<|image_1|>"
    end_token = "<|end|>"
    chat_template = CHAT_TEMPLATE

    def chat(self, question: str, images: int = 1) -> str:
        """Render a question about so many images, which stand before it, up to where the answer begins."""
        tags = "\n".join(f"<|image_{number}|>" for number in range(1, images + 1))
        return f"<|user|>\n{tags}{question}{self.end_token}<|assistant|>\n"


def tokenize(
    encode: Callable[[str], Sequence[int]], text: str, image_tokens: Sequence[int], image_token_id: int
) -> list[int]:
    """Tokenize a text, with a run of slots of these lengths in place of its tags, one after the other.

    As the model was trained, each piece of text between tags is tokenized on its own, so each begins with the
    tokenizer's `<s>`.
    """
    ids: list[int] = []
    for index, chunk in enumerate(IMAGE_TAG.split(text)[::2]):  # every other piece is a tag's number
        ids.extend(encode(chunk))
        if index < len(image_tokens):
            ids.extend([image_token_id] * image_tokens[index])
    return ids


def picture_tokens(rows: int, columns: int, side: int) -> int:
    """Tokens of a picture of `rows` x `columns` crops, `side` x `side` embeddings each.

    Every row of embeddings is closed by one more, in the picture of crops as in the global crop, and one
    separator stands between the two.
    """
    return rows * side * (columns * side + 1) + 1 + side * (side + 1)


@dataclass(frozen=True)
class Tiler:
    """Cutter of pictures into at most `num_crops` normalised crops, the global one not counted."""

    num_crops: int
    crop_size: int = 336
    patch_size: int = 14
    mean: tuple[float, ...] = CLIP_MEAN
    std: tuple[float, ...] = CLIP_STD

    @classmethod
    def of(cls, fields: Mapping[str, Any]) -> Self:
        """Make that of a `preprocessor_config.json`; KeyError, TypeError where fields are missing or wrong."""
        sizes = {name: int(fields[name]) for name in ("crop_size", "patch_size") if name in fields}
        mean, std = (tuple(map(float, fields[name])) for name in ("image_mean", "image_std"))
        return cls(int(fields["num_crops"]), mean=mean, std=std, **sizes)

    def hd_size(self, width: int, height: int) -> Size:
        """HD size (H, W) in pixels of a picture of `width` x `height`, padding included."""
        across, (_, inner) = self._fit(max(width, height), min(width, height))
        long, short = across * self.crop_size, math.ceil(inner / self.crop_size) * self.crop_size
        return (long, short) if width < height else (short, long)

    def image_tokens(self, hd_size: Size) -> int:
        """Tokens of a picture of this HD size: crops, row ends and separator; a token covers 2x2 patches."""
        height, width = hd_size
        return picture_tokens(
            height // self.crop_size, width // self.crop_size, self.crop_size // self.patch_size // 2
        )

    def hd_transform(self, picture: Image.Image) -> Image.Image:
        """Resize a picture to fill its crops and pad it with white to whole crops: RGB of size `hd_size`."""
        picture = picture if picture.mode == "RGB" else picture.convert("RGB")
        upright = picture.width < picture.height
        if upright:
            picture = picture.transpose(Image.Transpose.TRANSPOSE)
        _, size = self._fit(picture.width, picture.height)
        picture = picture.resize(size, Image.Resampling.BILINEAR)
        padded_height = math.ceil(picture.height / self.crop_size) * self.crop_size
        padded = Image.new("RGB", (picture.width, padded_height), WHITE)
        padded.paste(picture, (0, (padded_height - picture.height) // 2))
        return padded.transpose(Image.Transpose.TRANSPOSE) if upright else padded

    def normalise(self, hd: Image.Image) -> Floats:
        """Pixels [3, H, W] of what `hd_transform` gave, by mean and deviation of each channel."""
        pixels = np.array(hd, np.float32)
        pixels /= 255
        pixels -= np.array(self.mean, np.float32)
        pixels /= np.array(self.std, np.float32)
        return pixels.transpose(2, 0, 1)

    def tiles(self, pixels: Floats) -> Floats:
        """Cut normalised pixels [3, H, W] into crops [h*w, 3, S, S], row by row."""
        side = self.crop_size
        _, height, width = pixels.shape
        tiles = pixels.reshape(3, height // side, side, width // side, side)
        return tiles.transpose(1, 3, 0, 2, 4).reshape(-1, 3, side, side)

    def cut(self, picture: Image.Image) -> Floats:
        """Cut a picture into [1 + h*w, 3, S, S], its global crop first.

        The global crop is interpolated on normalised values, without antialiasing: coarse, but the weights were
        trained on it. It equals torch's, which trains, to rounding; all else does in every bit.
        """
        pixels = self.normalise(self.hd_transform(picture))
        return np.concatenate([bicubic(pixels, self.crop_size)[None], self.tiles(pixels)])

    def _fit(self, long: int, short: int) -> tuple[int, Size]:
        """The most crops along the long side that keep within `num_crops`, and the resized (long, short)."""
        ratio = long / short
        across = 1
        while (across + 1) * math.ceil((across + 1) / ratio) <= self.num_crops:
            across += 1
        length = across * self.crop_size
        return across, (length, max(1, int(length / ratio)))  # 1: a hair-thin picture keeps a line


def bicubic(pixels: Floats, side: int) -> Floats:
    """Interpolate [C, H, W] to [C, side, side] as torch does: half-pixel centres, edges repeated."""
    _, height, width = pixels.shape
    rows, columns = _taps(height, side), _taps(width, side)
    between = np.zeros((len(pixels), side, width), np.float32)
    for places, weights in zip(*rows, strict=True):
        between += weights[:, None] * pixels[:, places]
    found = np.zeros((len(pixels), side, side), np.float32)
    for places, weights in zip(*columns, strict=True):
        found += weights * between[:, :, places]
    return found


def _taps(before: int, after: int) -> tuple[NDArray[np.intp], Floats]:
    """The four places [4, after] that make each value along a side, and their weights [4, after]."""
    scale = np.float64(np.float32(before / after))
    at = ((np.arange(after) + 0.5) * scale - 0.5).astype(np.float32)  # rounded where torch rounds
    first = np.floor(at).astype(np.intp)
    off = at - first
    near = [((CUBIC + 2) * d - (CUBIC + 3)) * d * d + 1 for d in (off, 1 - off)]
    far = [((CUBIC * d - 5 * CUBIC) * d + 8 * CUBIC) * d - 4 * CUBIC for d in (off + 1, 2 - off)]
    weights = np.array([far[0], near[0], near[1], far[1]], np.float32)
    return np.clip(first + np.array([-1, 0, 1, 2])[:, None], 0, before - 1), weights
