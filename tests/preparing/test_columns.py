"""Cells as tables write them."""

import math
import re
from decimal import Decimal

import pytest

from catalens.catalog import Roles
from catalens.config import from_flags
from catalens.errors import RecipeError
from catalens.preparing import (
    Columns,
    Numbers,
    Unreadable,
    guess_columns,
    is_missing,
    number_flags,
    picture_reason,
    read_id,
    read_picture,
    read_values,
)

ENGLISH, GERMAN = Numbers(thousands=","), Numbers(decimal=",", thousands=".")


@pytest.mark.parametrize(
    ("numbers", "text", "number"),
    [
        (Numbers(), "390", 390),
        (Numbers(), "390.0", 390.0),
        (Numbers(), " $1290.50 ", 1290.5),
        (Numbers(), "12 €", 12),
        (Numbers(), "-3", -3),
        (ENGLISH, "1,290.50", 1290.5),
        (ENGLISH, "£1,234,567", 1234567),
        (ENGLISH, "1290", 1290),
        (ENGLISH, "12,90", None),
        (ENGLISH, "1,2345", None),
        (GERMAN, "1.290,50 €", 1290.5),
        (GERMAN, "5,00", 5.0),
        (GERMAN, "1.29", None),
        (Numbers(thousands=" "), "1 290", 1290),
        (Numbers(decimal=","), "1.5", None),
        (Numbers(), "1,290", None),
        (Numbers(), "", None),
        (Numbers(), "$", None),
        (Numbers(), "USD 5", 5),
        (Numbers(), "12.50 EUR", 12.5),
        (Numbers(), "CHF1\u2019299.50", 1299.5),
        (Numbers(), "1'299", 1299),
        (Numbers(), "XYZ 5", None),
        (Numbers(), "12 PCS", None),
        (Numbers(), "1\u00a0299", 1299),
        (Numbers(decimal=","), "1\u202f299,00\u00a0\u20ac", 1299.0),
        (Numbers(decimal=",", thousands=" "), "1\u2009299,00", 1299.0),
        (Numbers(decimal=",", thousands=" "), "1\u00a0450,00 \u20ac", 1450.0),
        (Numbers(thousands="\u202f"), "1 299", 1299),
        (Numbers(thousands="'"), "1\u2019299\u2019000", 1299000),
        (Numbers(), "1\u00a029", None),
        (Numbers(), "5 600", None),
        (ENGLISH, "1'299,000", None),
        (ENGLISH, "\u20b91,29,999.00", 129999.0),
        (Numbers(), True, None),
        (Numbers(), math.inf, None),
        (Numbers(), 2**53, 2**53),
        (Numbers(), -(2**53), -(2**53)),
        (Numbers(), 2**53 + 1, None),
        (Numbers(), 10**400, None),
        (Numbers(), "9007199254740993", None),
        (Numbers(), "9223372036854775808", None),
        (Numbers(), Decimal("12.50"), 12.5),
        (Numbers(), Decimal("NaN"), None),
        (Numbers(), Decimal("1E+999"), None),
        (Numbers(), ["5"], None),
        (Numbers(), b"5", None),
    ],
)
def test_numbers_are_read_by_one_rule(numbers: Numbers, text: object, number: float | None):
    read = numbers.read(text)
    assert (read, type(read)) == (number, type(number))


def test_missing_is_nothing_blank_or_nan():
    assert all(map(is_missing, (None, math.nan, "", " \t")))
    assert not any(map(is_missing, (0, "0", False, "nan", b"x")))


def test_the_first_field_that_fails_is_named():
    roles = Roles(id="sku", fields={"title": "text", "price": "number"})
    assert read_values({"sku": 7, "title": "Bag", "price": 5}, roles, Numbers()) == (
        "7",
        {"title": "Bag", "price": 5},
        None,
    )
    assert read_values({"sku": 7, "title": "Bag"}, roles, Numbers()) == ("7", {}, "no value in 'price'")


FASHION = {
    "sku": "8",
    "name": "Scarf",
    "product_type": "SCARVES",
    "price": "1,290.00",
    "img_src": "https://x.test/8.jpg",
}


def guess(row: dict, given: Columns | None = None, numbers: Numbers = ENGLISH) -> Columns:
    return guess_columns(list(row), [row] * 4, given or Columns(), numbers)


def test_roles_are_guessed_from_names_and_values():
    assert guess(FASHION) == Columns(
        "img_src", "sku", {"name": "text", "product_type": "category", "price": "number"}
    )


def test_what_is_given_is_kept_and_fields_are_then_not_guessed():
    given = Columns(None, "name", {"price": "number"})
    assert guess(FASHION, given) == Columns("img_src", "name", {"price": "number"})


def test_a_path_on_disk_is_taken_before_a_url():
    row = {"imageurl": "https://x.test/8.jpg", "local_image_path": "photos/8.jpg", "id": "8", "title": "Scarf"}
    assert guess(row).image == "local_image_path"


def test_bytes_are_pictures_whatever_the_name():
    assert guess({"id": "1", "title": "Scarf", "front": b"\xff\xd8"}).image == "front"


@pytest.mark.parametrize(
    ("price", "numbers", "words"),
    [
        ("12,50", Numbers(), "'12,50' does not read as one: name the columns to learn with --text, --category and "),
        ("12,50", Numbers(), "--number, or say --decimal ,"),
        ("1.299,00 €", Numbers(), ", or say --decimal , --thousands ."),
        ("$1,299.00", Numbers(), ", or say --thousands ,"),
        ("1,299", Numbers(), ", or say --thousands , or --decimal ,"),
        ("1 299", Numbers(), ", or say --thousands ' '"),
        ("12.50", Numbers(thousands=".", decimal=","), "with --text, --category and --number"),
        ("12 to 14", Numbers(), "'12 to 14' does not read as one: name the columns to learn"),
    ],
)
def test_a_number_by_its_name_that_does_not_read_is_asked_about(price: str, numbers: Numbers, words: str):
    with pytest.raises(RecipeError, match=re.escape(words)):
        guess(FASHION | {"price": price}, numbers=numbers)
    assert guess(FASHION | {"price": price}, Columns(fields={"name": "text"}), numbers).fields == {"name": "text"}


def test_the_flags_are_those_that_read_most_cells():
    assert number_flags(["12,50", "1.299,00", "7,00"]) == "--decimal , --thousands ."
    assert number_flags(["12,50", "7,00"]) == "--decimal ,"
    assert number_flags(["ask us", 5, None]) == ""


def test_a_number_that_is_named_and_does_not_read_says_its_flags():
    roles = Roles(id="sku", fields={"price": "number"})
    reasons = [
        read_values({"sku": 1, "price": price}, roles, Numbers())[2] for price in ("$1,299.00", "12,50", "x", 2**64)
    ]
    assert reasons == [
        "not a number in 'price': '$1,299.00'; try --thousands ,",
        "not a number in 'price': '12,50'; try --decimal ,",
        "not a number in 'price': 'x'",
        "not a number in 'price': larger than 9,007,199,254,740,992, beyond which digits are lost",
    ]


@pytest.mark.parametrize(
    ("decimal", "thousands", "words"),
    [
        (".", ".", "--thousands and --decimal are both '.': give two signs"),
        (",", ",", "--thousands and --decimal are both ','"),
        (".", "5", "--thousands '5': give one sign"),
        (".", ",,", "--thousands ',,': give one sign"),
        (".", "-", "--thousands '-': give one sign"),
    ],
)
def test_signs_that_cannot_be_told_apart_are_refused(decimal: str, thousands: str, words: str):
    with pytest.raises(RecipeError, match=re.escape(words)) as caught:
        from_flags(Numbers, {"decimal": decimal, "thousands": thousands})
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("cell", "id"),
    [(123.0, "123"), (800000000001.0, "800000000001"), (1.5, "1.5"), ("0123.0", "0123.0"), (" 7 ", "7"), (-0.0, "0")],
)
def test_an_id_that_came_as_a_double_has_no_point(cell: object, id: str):
    assert read_id(cell) == id
    assert read_values({"sku": cell, "title": "Bag"}, Roles(id="sku", fields={"title": "text"}), Numbers())[0] == id


@pytest.mark.parametrize("bad", [["a"], b"x", Unreadable("broken"), None, float("nan")], ids=repr)
def test_a_few_bad_cells_are_no_reason_against_a_column(bad: object):
    rows = [FASHION] * 9 + [dict.fromkeys(FASHION, bad)]
    assert guess_columns(list(FASHION), rows, Columns(), ENGLISH) == guess(FASHION)


def test_ids_of_doubles_are_guessed():
    assert guess(FASHION | {"sku": 8.0}).id == "sku"


@pytest.mark.parametrize(
    ("cell", "picture", "reason"),
    [
        ("a.jpg", ("a.jpg", None), None),
        (b"\xff", ("", b"\xff"), None),
        ({"bytes": b"\xff", "path": "a.jpg"}, ("a.jpg", b"\xff"), None),
        ({"bytes": None, "path": "a.jpg"}, ("a.jpg", None), None),
        ({"bytes": None, "path": None}, ("", None), "no value in 'photo'"),
        (["a.jpg", "b.jpg"], ("", None), "a list in 'photo', not a picture"),
        ({"bytes": None, "path": ["a.jpg"]}, ("", None), "a list in 'photo', not a picture"),
        ({"large": "a.jpg"}, ("", None), "an object in 'photo', not a picture"),
        (None, ("", None), "no value in 'photo'"),
        (Unreadable("broken"), ("", None), "cannot be read in 'photo': broken"),
        (
            "a\ud83d.jpg",
            ("a?.jpg", None),
            "not text in 'photo': 'a\\ud83d.jpg' holds bytes of another encoding, or half a character",
        ),
    ],
    ids=repr,
)
def test_a_cell_that_is_no_picture_says_what_it_is(cell: object, picture: object, reason: str | None):
    assert read_picture(cell) == picture
    assert picture_reason(cell, "photo") == reason


def test_a_number_column_that_holds_words_is_none():
    assert guess(FASHION | {"price": "ask us"}).fields == {"name": "text", "product_type": "category"}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"id": "1", "title": "Scarf"},
            "no column holds pictures: say which with --image; columns are 'id', 'title'",
        ),
        ({"photo": "a.jpg", "title": "Scarf"}, "no column names the product: say which with --id"),
        ({"photo": "a.jpg", "id": "1", "x": "y"}, "say which with --text, --category and --number"),
    ],
)
def test_what_cannot_be_told_is_asked_for(row: dict, words: str):
    with pytest.raises(RecipeError, match=words):
        guess(row)
