"""Copies are found, other products are not taken for copies, and the work does not grow with the square."""

import io

import numpy as np
import pytest
from PIL import Image, ImageOps

from catalens.catalog import components, fingerprint, near_pairs, open_picture
from catalens.catalog.duplicates import BITS, THRESHOLD
from catalens.sampling import draw_catalog


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    return [open_picture(row.image) for row in draw_catalog(60, seed=3)]


def prints(pictures: list[Image.Image]) -> np.ndarray:
    return np.array([np.frombuffer(fingerprint(picture), np.uint8) for picture in pictures])


def jpeg(picture: Image.Image) -> Image.Image:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=50)
    return open_picture(buffer.getvalue())


def recoloured(picture: Image.Image) -> Image.Image:
    hue, saturation, value = picture.convert("HSV").split()
    return Image.merge("HSV", (hue.point(lambda level: (level + 80) % 256), saturation, value)).convert("RGB")


@pytest.mark.parametrize(
    "copy",
    [
        lambda picture: picture.resize((picture.width * 2 // 3, picture.height * 2 // 3)),
        jpeg,
        recoloured,
        ImageOps.mirror,
        lambda picture: jpeg(ImageOps.mirror(picture)),
    ],
    ids=["resized", "encoded again", "recoloured", "mirrored", "mirrored and encoded again"],
)
def test_copies_are_found_and_others_are_not(pictures, copy):
    pairs = near_pairs(np.concatenate([prints(pictures), prints([copy(picture) for picture in pictures])]))
    right = {(n, n + len(pictures)) for n in range(len(pictures))}
    found = {(int(one), int(other)) for one, other in pairs}
    assert len(found & right) >= 0.95 * len(right)
    originals = {tuple(pair) for pair in near_pairs(prints(pictures)).tolist()}
    assert len(originals) <= 2


def test_pairs_are_those_within_the_threshold():
    dice = np.random.default_rng(0)
    base = dice.integers(0, 2, (40, BITS))
    near = base.copy()
    for row in range(40):
        near[row, dice.choice(BITS, row, replace=False)] ^= 1  # row n differs in n bits
    found = near_pairs(np.packbits(np.concatenate([base, near]), axis=1))
    assert set(map(tuple, found.tolist())) <= {(n, n + 40) for n in range(THRESHOLD + 1)}
    assert {(n, n + 40) for n in range(13)} <= set(map(tuple, found.tolist()))


def test_many_equal_ones_are_paired_with_the_first_only():
    same = np.tile(np.arange(32, dtype=np.uint8), (5000, 1))
    found = near_pairs(same)
    assert found.tolist() == [[0, n] for n in range(1, 5000)]


def one_template(rows: int, bits: int) -> np.ndarray:
    """Fingerprints of one mock-up in many colours: each differs in some bits from the first."""
    dice = np.random.default_rng(1)
    drawn = np.tile(dice.integers(0, 2, BITS), (rows, 1))
    for row in range(rows):
        drawn[row, dice.choice(BITS, bits, replace=False)] ^= 1
    return np.packbits(drawn, axis=1)


@pytest.mark.parametrize("bits", [4, 8, 12])
def test_one_template_is_linked_by_work_and_pairs_that_grow_with_its_rows(monkeypatch: pytest.MonkeyPatch, bits: int):
    compared = 0
    count = np.bitwise_count

    def counted(words: np.ndarray) -> np.ndarray:
        nonlocal compared
        compared += len(words)
        return count(words)

    monkeypatch.setattr(np, "bitwise_count", counted)
    for rows in (1000, 4000):
        compared = 0
        pairs = near_pairs(one_template(rows, bits))
        assert len(set(components(pairs, rows).tolist())) == 1
        assert len(pairs) <= 20 * rows  # all of them would be rows / 2 for each
        assert compared <= 150 * rows


@pytest.mark.parametrize(("rows", "bits"), [(400, 8), (400, 13), (12, 10)])
def test_all_that_are_near_are_linked_as_by_comparing_every_pair(rows: int, bits: int):
    drawn = np.concatenate([one_template(rows, bits), np.random.default_rng(2).integers(0, 256, (50, 32), np.uint8)])
    different = np.bitwise_count(drawn[:, None] ^ drawn[None]).sum(axis=2)
    every = np.argwhere(np.triu(different <= THRESHOLD, k=1))
    found = near_pairs(drawn)
    assert set(map(tuple, found.tolist())) <= set(map(tuple, every.tolist()))
    linked = components(found, len(drawn))
    assert (linked[every[:, 0]] == linked[every[:, 1]]).mean() >= 0.97


def test_none_and_one():
    assert near_pairs(np.empty((0, 32), np.uint8)).shape == (0, 2)
    assert near_pairs(np.zeros((1, 32), np.uint8)).shape == (0, 2)


def test_a_picture_of_one_colour_has_a_fingerprint():
    assert len(fingerprint(Image.new("RGB", (1, 1), "red"))) == 32
