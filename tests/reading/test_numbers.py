"""Numbers as tables write them, and the way of a column told from all of its cells."""

# ruff: noqa: RUF001 - signs that look alike are what is tested

import math
import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalens.errors import RecipeError
from catalens.reading import Numbers, tell_numbers

ENGLISH, GERMAN = Numbers(), Numbers(decimal=",")


@pytest.mark.parametrize(
    ("cell", "english", "german"),
    [
        ("390", 390, 390),
        ("390.0", 390.0, None),
        ("12,90", None, 12.9),
        ("1,290.50", 1290.5, None),
        ("1.290,50", None, 1290.5),
        ("1,299", 1299, 1.299),
        ("1.299", 1.299, 1299),
        ("0.500", 0.5, None),
        ("£1,234,567", 1234567, None),
        ("1,2345", None, 1.2345),
        ("1,2,3", None, None),
        (".5", 0.5, None),
        ("5.", 5.0, None),
        ("1e3", 1000.0, None),
        ("-12,50 €", None, -12.5),
        ("−5", -5, -5),
        ("-$5", -5, -5),
        ("129,-", 129, 129),
        ("1.299,–", 1.299, 1299),
        ("$.99", 0.99, None),
        ("Rs.500", 500, 500),
        ("Rs. 1,500.00", 1500.0, None),
        ("USD 5", 5, 5),
        ("12.50 EUR", 12.5, None),
        ("12.50 eur", 12.5, None),
        ("EUR 12 €", 12, 12),
        ("12 USD EUR", None, None),
        ("US$12", 12, 12),
        ("R$ 1.299,90", None, 1299.9),
        ("kr 1 299,00", None, 1299.0),
        ("1.299,00 kr.", None, 1299.0),
        ("1 299,00 zł", None, 1299.0),
        ("1 450,00 Kč", None, 1450.0),
        ("99 руб.", 99, 99),
        ("12 PCS", None, None),
        ("12.50/kg", None, None),
        ("from 12", None, None),
        ("12 - 14", None, None),
        ("3,5 %", None, None),
        ("1 299", 1299, 1299),
        ("1\u00a0299", 1299, 1299),
        ("1\u202f299,00\u00a0€", None, 1299.0),
        ("1\u00a029", None, None),
        ("1'299", 1299, 1299),
        ("CHF1\u2019299.50", 1299.5, None),
        ("1'299,000", None, 1299.0),
        ("₹1,29,999.00", 129999.0, None),
        ("₹2,15,000", 215000, None),
        ("", None, None),
        ("$", None, None),
        ("٣", None, None),
        ("9007199254740993", None, None),
        (True, None, None),
        (math.inf, None, None),
        (math.nan, None, None),
        (2**53, 2**53, 2**53),
        (2**53 + 1, None, None),
        (10**400, None, None),
        (20.99, 20.99, 20.99),
        (Decimal("12.50"), 12.5, 12.5),
        (Decimal("NaN"), None, None),
        (Decimal("1E+999"), None, None),
        (["5"], None, None),
        (b"5", None, None),
    ],
    ids=repr,
)
def test_a_cell_is_read_one_way_or_the_other(cell: object, english: float | None, german: float | None):
    read = ENGLISH.read(cell), GERMAN.read(cell)
    assert read == (english, german)
    assert [type(one) for one in read] == [type(english), type(german)]


@pytest.mark.parametrize(
    ("cells", "numbers", "evidence"),
    [
        (["390", "12"], Numbers(), ""),
        (["390", 12.5, None], Numbers(), ""),
        (["12,50", "7,00", "129"], GERMAN, "3 of 3 read with --decimal ,"),
        (["1.299,00 €", "89 €"], Numbers(decimal=",", currency="EUR"), "2 of 2 read with --decimal ,, in EUR"),
        (["$1,299.00", "$89"], Numbers(currency="USD"), "2 of 2 read with --decimal ., in USD"),
        (["15.00 USD", "5.00 USD", "x"], Numbers(currency="USD"), "2 of 3 read with --decimal ., in USD"),
        (["15.00 USD", "5.00 USD", "7 EUR"], Numbers(currency="USD"), "2 of 3 read with --decimal ., in USD"),
        (["$5", "US$6"], Numbers(currency="USD"), "2 of 2 read with --decimal ., in USD"),
        (["kr 5", "5 SEK"], Numbers(currency="SEK"), "2 of 2 read with --decimal ., in SEK"),
        (["1.299 €", "89 €"], Numbers(decimal=",", currency="EUR"), "2 of 2 read with --decimal ,, in EUR"),
        (["$1,299", "$89"], Numbers(currency="USD"), "2 of 2 read with --decimal ., in USD"),
        (["S/. 1,299"], Numbers(currency="PEN"), "1 of 1 read with --decimal ., in PEN"),
        (["0.500", "1.250"], Numbers(), "2 of 2 read with --decimal ."),
        (["1,29,999.00", "1,299"], Numbers(), "2 of 2 read with --decimal ."),
        (["12.50", "13.50", "1,20"], Numbers(mixed=True), "2 of 3 read with --decimal ."),
    ],
    ids=repr,
)
def test_a_column_tells_its_way(cells: list[object], numbers: Numbers, evidence: str):
    told = tell_numbers("price", cells)
    assert told.numbers == numbers
    assert told.evidence == (f"price: {evidence}" if evidence else "")


@pytest.mark.parametrize("cells", [["89", "129", "1.299", "2.499"], ["1,299"], ["KWD 1.299"], ["1.299 €", "2.499"]])
def test_what_could_be_two_numbers_is_asked(cells: list[str]):
    with pytest.raises(RecipeError, match=r"could be .* or .*: say which with --decimal \. or --decimal ,"):
        tell_numbers("price", cells)
    assert tell_numbers("price", cells, ".").numbers.decimal == "."
    assert tell_numbers("price", cells, ",").numbers.decimal == ","


def test_a_cell_that_both_ways_read_is_not_believed_where_a_column_is_written_both_ways():
    told = tell_numbers("price", ["12.50", "13.50", "1,20", "1.299"])
    assert told.numbers.read("12.50") == 12.5
    assert told.numbers.read("1.299") is None
    assert "is written both ways" in told.numbers.refusal("1.299", "price")


@pytest.mark.parametrize(
    ("numbers", "cell", "reason"),
    [
        (ENGLISH, "12,50", "not a number in 'price': '12,50'; try --decimal ,"),
        (GERMAN, "12.50", "not a number in 'price': '12.50'; try --decimal ."),
        (ENGLISH, "x" * 90, f"not a number in 'price': {'x' * 40!r}"),
        (Numbers(currency="USD"), "7 EUR", "not a number in 'price': '7 EUR': another currency than USD, that of"),
        (ENGLISH, 2**64, "not a number in 'price': larger than 9,007,199,254,740,992, beyond which digits are lost"),
    ],
)
def test_a_refusal_names_the_flag(numbers: Numbers, cell: object, reason: str):
    assert numbers.read(cell) is None
    assert re.match(re.escape(reason), numbers.refusal(cell, "price"))


GROUPS = st.sampled_from(["", ",", ".", " ", "\u00a0", "\u202f", "'", "\u2019"])
MARKS = st.sampled_from(["", "$", "€", "£", "EUR ", "CHF ", "kr "])


@given(
    st.lists(st.decimals(0, 10**7, places=2, allow_nan=False), min_size=1, max_size=20),
    st.sampled_from([".", ","]),
    GROUPS,
    MARKS,
    st.booleans(),
)
def test_prices_of_two_decimals_are_read_back_in_every_dialect(
    prices: list[Decimal], decimal: str, group: str, mark: str, after: bool
):
    if group == decimal:
        return
    cells = []
    for price in prices:
        text = f"{price:,.2f}".translate(str.maketrans({",": group, ".": decimal}))
        cells.append(f"{text} {mark.strip()}".strip() if after else f"{mark}{text}")
    numbers = tell_numbers("price", cells).numbers
    assert [numbers.read(cell) for cell in cells] == [float(price) for price in prices]
