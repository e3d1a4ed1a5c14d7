import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import AutoImageProcessor

from catalens.model import Phi3VImageProcessor

TINY = Phi3VImageProcessor(num_crops=4, crop_size=56)


@settings(deadline=None, max_examples=60)
@given(width=st.integers(1, 400), height=st.integers(1, 400), crops=st.integers(1, 20))
def test_hd_size_is_what_the_transform_makes(width, height, crops):
    high, wide = TINY.hd_size(width, height, crops)
    out = TINY.preprocess(Image.new("RGB", (width, height)), num_crops=crops)
    assert out["image_sizes"].tolist() == [[high, wide]]
    down, across = high // 56, wide // 56
    assert 1 <= down * across <= crops
    assert out["pixel_values"].shape == (1 + down * across, 3, 56, 56)


@pytest.mark.parametrize("size", [(1, 1), (10_000, 1), (1, 10_000), (3, 2)])
@pytest.mark.parametrize("crops", [1, 4, 16])
def test_extreme_pictures(size, crops):
    out = TINY.preprocess(Image.new("RGB", size, (9, 9, 9)), num_crops=crops)
    assert torch.isfinite(out["pixel_values"]).all()


def test_sizes_and_token_counts_of_the_official_crops():
    own = Phi3VImageProcessor(num_crops=16)
    assert own.hd_size(1920, 1080) == (1008, 1680)
    assert own.num_image_tokens(1008, 1680) == 2353
    assert own.num_image_tokens(336, 336) == 313


def test_crops_tile_the_padded_picture_row_by_row():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (112, 224, 3), dtype=np.uint8))
    out = TINY.preprocess(picture, num_crops=8)
    assert out["image_sizes"].tolist() == [[112, 224]]
    rows = out["pixel_values"][1:].reshape(2, 4, 3, 56, 56).permute(2, 0, 3, 1, 4).reshape(3, 112, 224)
    mean, std = torch.tensor(TINY.image_mean), torch.tensor(TINY.image_std)
    back = (rows * std[:, None, None] + mean[:, None, None]) * 255
    torch.testing.assert_close(back.permute(1, 2, 0), torch.tensor(np.array(picture)).float())


def test_padding_is_white_and_alpha_is_dropped():
    hd = TINY.cutter(2).hd_transform(Image.new("RGBA", (100, 50), (10, 20, 30, 0)))
    assert hd.mode == "RGB"
    assert hd.size == (112, 56)
    assert hd.getpixel((0, 28)) == (10, 20, 30)
    tall = TINY.cutter(2).hd_transform(Image.new("RGB", (60, 100), "black"))
    assert tall.size == (56, 56)
    assert tall.getpixel((0, 28)) == (255, 255, 255)  # left and right, as the picture is upright
    assert tall.getpixel((28, 0)) == (0, 0, 0)


def test_arrays_and_several_pictures():
    array = np.zeros((40, 60, 3), dtype=np.uint8)
    out = TINY.preprocess([array, Image.new("L", (60, 40))], num_crops=1)
    assert torch.equal(*out["pixel_values"].chunk(2))
    assert TINY.preprocess([], num_crops=1)["pixel_values"].shape == (0, 3, 56, 56)
    assert isinstance(TINY.preprocess(array, return_tensors="np")["pixel_values"], np.ndarray)


def test_picture_given_is_not_changed():
    picture = Image.new("RGB", (70, 30), (1, 2, 3))
    before = picture.tobytes()
    TINY.preprocess(picture)
    assert picture.tobytes() == before


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: TINY.preprocess(Image.new("RGB", (5, 5)), num_crops=0), "num_crops is 0: give 1 or more"),
        (lambda: TINY.preprocess("photo.jpg"), "image is a str: give a PIL picture"),
        (lambda: TINY.preprocess(np.zeros((4, 4))), "image is a ndarray"),
        (lambda: TINY.preprocess(Image.new("RGB", (0, 5))), "image has no pixels"),
        (lambda: TINY.preprocess(Image.new("RGB", (5, 5)), do_resize=False), "do_resize is not an option"),
        (lambda: Phi3VImageProcessor(num_crops=0), "num_crops is 0"),
        (lambda: Phi3VImageProcessor(crop_size=50), "crop_size 50 must be a multiple of twice patch_size"),
    ],
)
def test_errors_name_the_field(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_saved_processor_loads_equal(tmp_path):
    own = Phi3VImageProcessor(num_crops=3, crop_size=56, image_mean=(0.5, 0.4, 0.3))
    own.save_pretrained(tmp_path)
    assert json.loads((tmp_path / "preprocessor_config.json").read_text())["num_img_tokens"] == 4
    again = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(again) is Phi3VImageProcessor
    assert again.to_dict() == own.to_dict()
    assert Phi3VImageProcessor.from_pretrained(tmp_path, num_crops=1).num_crops == 1
