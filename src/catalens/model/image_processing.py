"""Pictures into crops: the HD transform of Phi-3-Vision, with Pillow and torch alone.

    a 640x480 photo, num_crops=4  ->  resized and padded to 672x672 (HW)
    -> pixel_values [5, 3, 336, 336]: the whole picture in one crop, then 2x2 crops row by row
    -> image_sizes [[672, 672]]  ->  757 picture tokens

A picture is enlarged (never only shrunk) to fill at most `num_crops` square crops, padded with white above
and below (left and right when it is upright) and cut. Transparency is dropped by `convert("RGB")`, as the
original did: whoever wants a background composites before.

Shapes: N pictures, C crops of all pictures, S crop side, (H, W) HD size in pixels, h = H/S, w = W/S.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from transformers import BatchFeature
from transformers.image_processing_utils import BaseImageProcessor

from .configuration import picture_tokens

CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
WHITE = (255, 255, 255)


class Phi3VImageProcessor(BaseImageProcessor):
    """Cuts pictures into normalised crops and counts the tokens they take.

    Args:
        num_crops: at most this many crops a picture, the global one not counted (16 and 4 officially).
        crop_size: side of a crop in pixels.
        patch_size: side of a vision patch in pixels; a token covers 2x2 patches.
        image_mean, image_std: per channel, on the 0 to 1 scale.

    Raises:
        ValueError: when a field has no sensible value.
    """

    model_input_names = ["pixel_values", "image_sizes"]

    def __init__(
        self,
        num_crops: int = 1,
        crop_size: int = 336,
        patch_size: int = 14,
        image_mean: Sequence[float] = CLIP_MEAN,
        image_std: Sequence[float] = CLIP_STD,
        **kwargs: Any,
    ) -> None:
        for name in ("num_img_tokens", "do_convert_rgb", "auto_map", "image_processor_type"):
            kwargs.pop(name, None)  # what the official file adds, and what is derived or fixed here
        super().__init__(**kwargs)
        if crop_size < 1 or patch_size < 1 or crop_size % (2 * patch_size):
            raise ValueError(f"crop_size {crop_size} must be a multiple of twice patch_size ({2 * patch_size})")
        self.num_crops = _checked_crops(num_crops)
        self.crop_size = crop_size
        self.patch_size = patch_size
        self.image_mean = list(image_mean)
        self.image_std = list(image_std)
        self.num_img_tokens = (crop_size // patch_size // 2) ** 2

    def hd_size(self, width: int, height: int, num_crops: int | None = None) -> tuple[int, int]:
        """HD size (H, W) in pixels of a picture of `width` x `height`, padding included."""
        crops = self.num_crops if num_crops is None else _checked_crops(num_crops)
        across, (_, inner) = self._fit(max(width, height), min(width, height), crops)
        long, short = across * self.crop_size, math.ceil(inner / self.crop_size) * self.crop_size
        return (long, short) if width < height else (short, long)

    def num_image_tokens(self, height: int, width: int) -> int:
        """Tokens of a picture whose HD size is `height` x `width` pixels: crops, row ends and separator."""
        side = math.isqrt(self.num_img_tokens)
        return picture_tokens(height // self.crop_size, width // self.crop_size, side)

    def preprocess(  # pyright: ignore[reportIncompatibleMethodOverride]
        self,
        images: Any,
        num_crops: int | None = None,
        return_tensors: str | None = "pt",
        **kwargs: Any,
    ) -> BatchFeature:
        """Cut one picture or a list of pictures.

        Args:
            images: PIL pictures, or arrays [height, width, 3] or [height, width] of uint8.
            num_crops: overrides the processor's own for this call.
            return_tensors: "pt" or "np".

        Returns:
            `pixel_values` [C, 3, S, S] float32, each picture's global crop first, then its crops row by
            row; `image_sizes` [N, 2], the HD sizes (H, W).

        Raises:
            ValueError: for something that is no picture, an empty one, or `num_crops` below 1.
        """
        if kwargs:
            raise ValueError(f"{next(iter(kwargs))} is not an option of Phi3VImageProcessor: remove it")
        crops = self.num_crops if num_crops is None else _checked_crops(num_crops)
        pictures = list(images) if isinstance(images, list | tuple) else [images]
        hd = [self.hd_transform(picture, crops) for picture in pictures]
        pixels = [self._crops(picture) for picture in hd]
        data = {
            "pixel_values": torch.cat(pixels) if pixels else torch.empty(0, 3, self.crop_size, self.crop_size),
            "image_sizes": torch.tensor([(p.height, p.width) for p in hd], dtype=torch.long).reshape(-1, 2),
        }
        if return_tensors == "np":
            return BatchFeature({name: value.numpy() for name, value in data.items()})
        return BatchFeature(data, tensor_type=return_tensors)

    def hd_transform(self, image: Any, num_crops: int) -> Image.Image:
        """Resize a picture to fill its crops and pad it with white to whole crops: RGB of size `hd_size`."""
        picture = _as_rgb(image)
        upright = picture.width < picture.height
        if upright:
            picture = picture.transpose(Image.Transpose.TRANSPOSE)
        _, size = self._fit(picture.width, picture.height, num_crops)
        picture = picture.resize(size, Image.Resampling.BILINEAR)
        padded_height = math.ceil(picture.height / self.crop_size) * self.crop_size
        padded = Image.new("RGB", (picture.width, padded_height), WHITE)
        padded.paste(picture, (0, (padded_height - picture.height) // 2))
        return padded.transpose(Image.Transpose.TRANSPOSE) if upright else padded

    def _fit(self, long: int, short: int, num_crops: int) -> tuple[int, tuple[int, int]]:
        """The most crops along the long side that keep within `num_crops`, and the resized (long, short)."""
        ratio = long / short
        across = 1
        while (across + 1) * math.ceil((across + 1) / ratio) <= num_crops:
            across += 1
        length = across * self.crop_size
        return across, (length, max(1, int(length / ratio)))  # 1: a hair-thin picture keeps a line

    def _crops(self, picture: Image.Image) -> torch.Tensor:
        side = self.crop_size
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1).float().div_(255)  # [3, H, W]
        mean, std = torch.tensor(self.image_mean), torch.tensor(self.image_std)
        pixels.sub_(mean[:, None, None]).div_(std[:, None, None])
        # Bicubic without antialiasing, on normalised values: coarse, but the weights were trained on it.
        whole = torch.nn.functional.interpolate(pixels[None], size=(side, side), mode="bicubic")
        tiles = pixels.unflatten(2, (-1, side)).unflatten(1, (-1, side))  # [3, h, S, w, S]
        return torch.cat([whole, tiles.permute(1, 3, 0, 2, 4).flatten(0, 1)])  # [1 + h*w, 3, S, S]


def _checked_crops(num_crops: int) -> int:
    if num_crops < 1:
        raise ValueError(f"num_crops is {num_crops}: give 1 or more")
    return num_crops


def _as_rgb(image: Any) -> Image.Image:
    if isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim in (2, 3):
        image = Image.fromarray(image)
    if not isinstance(image, Image.Image):
        raise ValueError(f"image is a {type(image).__name__}: give a PIL picture or a uint8 array [height, width, 3]")
    if not (image.width and image.height):
        raise ValueError("image has no pixels: leave it out")
    return image if image.mode == "RGB" else image.convert("RGB")


__all__ = ["Phi3VImageProcessor"]
