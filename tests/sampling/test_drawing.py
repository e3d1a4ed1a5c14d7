"""The drawn sample catalogue: determinism, variety, and prices that a picture explains up to the noise."""

import io
import itertools
import random
import statistics
from collections import Counter

import numpy as np
import pytest
import resvg_py
from PIL import Image

from catalens.sampling import Look, compose_svg, draw_catalog, noise_floor, plan_product, plan_rows, take_shot
from catalens.sampling.assortment import BASE, COLOURS, DEMO, PATTERNS, PLAIN_ONLY, TRIMS
from catalens.sampling.picture import LAYERS, SHAPES, STANDING

SOLD = [kind.name for kind in DEMO.kinds]
NOISE = 0.08


@pytest.fixture(scope="module")
def rows():
    return list(draw_catalog(100, seed=3))


@pytest.fixture(scope="module")
def products():
    return [plan_product(3, number, DEMO, NOISE) for number in range(6000)]


def test_same_rows_whatever_the_number_of_workers(rows):
    assert list(draw_catalog(100, seed=3, workers=2)) == rows


def test_row_does_not_depend_on_the_rows_after_it(rows):
    assert list(draw_catalog(7, seed=3)) == rows[:7]


def test_another_seed_draws_other_products(rows):
    other = list(draw_catalog(5, seed=4))
    assert {row.image for row in other}.isdisjoint(row.image for row in rows)
    assert {row.product_code for row in other}.isdisjoint(row.product_code for row in rows)


def test_pictures_decode_in_every_format_and_many_sizes(rows):
    pictures = [Image.open(io.BytesIO(row.image)) for row in rows]
    for picture in pictures:
        picture.load()
    assert {(p.format, p.mode) for p in pictures} == {
        ("JPEG", "RGB"),
        ("PNG", "RGB"),
        ("WEBP", "RGB"),
        ("PNG", "RGBA"),
    }
    sides = {side for picture in pictures for side in picture.size}
    assert min(sides) >= 160
    assert max(sides) <= 384
    assert len({round(p.width / p.height, 1) for p in pictures}) >= 4


def test_photographs_of_a_product_share_everything_but_the_picture(rows):
    by_code = {}
    for row in rows:
        by_code.setdefault(row.product_code, []).append(row)
    assert any(len(variants) > 1 for variants in by_code.values())
    for variants in by_code.values():
        assert len({(v.title, v.category3_code, v.full_price, v.expected_price) for v in variants}) == 1
        assert len({v.image for v in variants}) == len(variants)


def draw_cutout(kind, colour="Red", pattern="Plain", trim=""):
    """The product alone, upright or nearly, 112 pixels wide."""
    shot = take_shot(random.Random(1), standing=True)
    svg = compose_svg(Look(kind, colour, pattern, trim), shot, 112)
    return Image.open(io.BytesIO(resvg_py.svg_to_bytes(svg_string=svg)))


@pytest.mark.parametrize("kind", SOLD)
def test_every_word_of_a_title_shows_in_the_picture(kind):
    plain = draw_cutout(kind)
    silhouette = np.asarray(plain.getchannel("A")) > 128
    assert 0.15 < silhouette.mean() < 0.9
    patterns = ["Plain"] if kind in PLAIN_ONLY else PATTERNS
    looks = [draw_cutout(kind, colour=colour) for colour in ("Red", "Blue")]
    looks += [draw_cutout(kind, pattern=pattern) for pattern in patterns if pattern != "Plain"]
    looks += [draw_cutout(kind, trim=trim) for trim in TRIMS if trim]
    for one, other in itertools.combinations([np.asarray(look, dtype=int) for look in looks], 2):
        clearly_different = np.abs(one - other).max(axis=2) > 48
        assert clearly_different.sum() > 0.03 * silhouette.sum()


def test_shapes_and_assortments_name_the_same_kinds():
    assert set(SOLD) == {kind.name for kind in BASE.kinds} <= set(SHAPES)
    assert len(SOLD) >= 16
    assert set(SHAPES) >= STANDING | PLAIN_ONLY
    layers = {line.split()[0].rstrip("2") for shape in SHAPES.values() for line in shape.splitlines()}
    assert layers == set(LAYERS)


def test_assortments_share_no_category_word_and_no_price_ratio():
    demo, base = ({w for k in shop.kinds for w in k.category.lower().split()} for shop in (DEMO, BASE))
    assert len({kind.category for kind in DEMO.kinds}) >= 9
    assert demo.isdisjoint(base)
    price = {kind.name: kind.base_price for kind in BASE.kinds}
    ratios = [price[kind.name] / kind.base_price for kind in DEMO.kinds]
    assert max(ratios) > 2 * min(ratios)


def test_everything_sold_appears(products):
    for value, all_values in {
        "kind": SOLD,
        "category": {kind.category for kind in DEMO.kinds},
        "colour": COLOURS,
        "pattern": PATTERNS,
        "trim": TRIMS,
        "photographs": (1, 2, 3, 4),
    }.items():
        assert {(p._asdict() | p.look._asdict())[value] for p in products} == set(all_values)


def test_titles_are_short_and_say_only_what_is_drawn(products):
    drawn = {word for words in (COLOURS, PATTERNS, TRIMS, SOLD) for name in words for word in name.split()}
    for product in products:
        words = product.title.split()
        assert 3 <= len(words) <= 6
        assert set(words) <= drawn
        assert product.look.pattern == "Plain" or product.look.kind not in PLAIN_ONLY


def test_codes_are_eight_digits_and_unique(products):
    assert len({product.code for product in products}) == len(products)
    assert all(len(product.code) == 8 and product.code[0] != "0" for product in products)


def test_mix_is_as_skewed_as_a_shop(products):
    categories = [count for _, count in Counter(p.category for p in products).most_common()]
    assert sum(categories[:3]) > 0.45 * len(products)
    assert categories[0] > 8 * categories[-1]
    prices = sorted(product.price for product in products)
    assert statistics.mean(prices) > 1.5 * statistics.median(prices)
    assert prices[-1] > 50 * prices[0]
    assert 1.4 < statistics.mean(product.photographs for product in products) < 1.6


def test_noise_floor_is_what_the_noise_implies(products):
    floor = noise_floor([(p.price, p.expected_price) for p in products])
    assert floor["mdape"] == pytest.approx(0.6745 * NOISE, rel=0.05)
    assert floor["mae"] == pytest.approx(0.06 * statistics.mean(p.price for p in products), rel=0.15)
    with pytest.raises(ValueError, match="at least one row"):
        noise_floor([])


def test_without_noise_only_rounding_is_left():
    products = [plan_product(3, number, DEMO, 0.0) for number in range(300)]
    assert all(abs(product.price - product.expected_price) <= 0.5 for product in products)


def test_rows_are_planned_up_to_the_last_photograph():
    plan = list(plan_rows(50, lambda number: plan_product(3, number, DEMO, NOISE).photographs))
    assert len(plan) == 50
    assert plan == sorted(plan)
    assert list(draw_catalog(0, seed=3)) == []
