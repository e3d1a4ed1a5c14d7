"""Crops cut with numpy alone, beside those that torch makes for training."""

import numpy as np
import pytest
import torch
from PIL import Image

from catalens.model import Phi3VImageProcessor
from catalens.tiling import bicubic

SHAPES = [(1, 1), (2, 300), (40, 30), (56, 56), (57, 55), (333, 517), (517, 333), (640, 480), (1500, 90)]


def photo(width: int, height: int, mode: str = "RGB") -> Image.Image:
    rng = np.random.default_rng(width * 10_000 + height)
    noise = Image.fromarray(rng.integers(0, 256, (height, width, 4), dtype=np.uint8), "RGBA")
    return noise.convert(mode)


CASES = [(shape, crops, side) for shape in SHAPES for crops in (1, 4, 16) for side in (56, 336)]


@pytest.mark.parametrize(
    ("shape", "num_crops", "crop_size"),
    [case for case in CASES if case[1:] != (16, 336) or case[0] in SHAPES[-2:]],  # 16 of the official size take long
)
def test_crops_equal_those_of_torch_in_every_bit_and_the_global_one_to_rounding(shape, num_crops, crop_size):
    images = Phi3VImageProcessor(num_crops, crop_size=crop_size)
    own = images.preprocess(photo(*shape), return_tensors="np")
    crops = images.cutter().cut(photo(*shape))
    assert crops.dtype == np.float32
    assert crops.shape == own["pixel_values"].shape
    assert np.array_equal(crops[1:], own["pixel_values"][1:])
    assert np.abs(crops[0] - own["pixel_values"][0]).max() < 1e-6


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA", "P", "CMYK"])
def test_pictures_of_other_modes_are_cut_alike(mode):
    images = Phi3VImageProcessor(4, crop_size=56)
    picture = photo(80, 61, mode) if mode not in ("P", "CMYK") else photo(80, 61).convert(mode)
    own = images.preprocess(picture, return_tensors="np")["pixel_values"]
    assert np.abs(images.cutter().cut(picture) - own).max() < 1e-6


@pytest.mark.parametrize("shape", [(56, 56), (112, 56), (5, 7), (336, 1344), (100, 33)])
def test_interpolation_is_that_of_torch(shape):
    pixels = np.random.default_rng(0).standard_normal((3, *shape), dtype=np.float32)
    theirs = torch.nn.functional.interpolate(torch.from_numpy(pixels)[None], size=(56, 56), mode="bicubic")[0]
    assert np.abs(bicubic(pixels, 56) - theirs.numpy()).max() < 5e-6
