"""What is written is read back, or refused with the row and the field named."""

import math
import re
import subprocess
import sys
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from catalens.config import FieldSpec, NumberFormat, PromptSpec
from catalens.errors import PromptError
from catalens.examples import (
    Answer,
    answer_gaps,
    answer_space,
    canonical_text,
    format_number,
    parse_number,
    render_answer,
    value_of,
)
from catalens.examples import parse_answer as parse_to

END = "<|end|>"
SCARF = {"title": "Vintage Check Cotton Scarf", "category3_code": "ACCESSORIES", "full_price": 390.0}
DEFAULT = PromptSpec()


def parse_answer(spec: PromptSpec, text: str) -> Answer:
    return parse_to(spec, text, END)


def only(kind: str, numbers: NumberFormat | None = None) -> PromptSpec:
    fields = (FieldSpec(column="value", label="Value", kind=kind),)  # type: ignore[arg-type]
    return PromptSpec(fields=fields, numbers=numbers or NumberFormat())


def test_the_default_text_is_the_reference_case():
    answer = "Product: Vintage Check Cotton Scarf, Category: ACCESSORIES, Full Price: 390.0"
    assert render_answer(DEFAULT, SCARF) == answer


def test_the_reference_answer_reads_back():
    answer = parse_answer(DEFAULT, render_answer(DEFAULT, SCARF) + END)
    assert (answer.values, answer.error) == (SCARF, None)


def test_question_labels_and_order_come_from_the_recipe():
    spec = PromptSpec(
        question="Was ist auf dem Bild?",
        fields=(
            FieldSpec(column="full_price", label="Preis", kind="number"),
            FieldSpec(column="title", label="Bezeichnung", kind="text"),
        ),
        numbers=NumberFormat(decimal=",", thousands=".", decimals=2, suffix=" €"),
    )
    answer = render_answer(spec, {"title": "Schal", "full_price": 1390.5})
    assert answer == "Preis: 1.390,50 €, Bezeichnung: Schal"
    assert parse_answer(spec, answer + END).values == {"full_price": 1390.5, "title": "Schal"}


# Labels that stand in each other's way, next to any others.
LABELS = st.sampled_from(["Product", "Category", "Full Price", "Price", "Preis, netto", "A: B", "商品", "السعر", "a"])
FORMATS = [
    NumberFormat(decimal=decimal, thousands=thousands, decimals=decimals, prefix=prefix, suffix=suffix)
    for decimal, thousands in [(".", ""), (".", ","), (",", "."), (",", " "), (".", "'"), (",", "\u202f")]
    for decimals in (None, 0, 2)
    for prefix, suffix in [("", ""), ("$", ""), ("", " EUR"), ("US$ ", "."), (", ", ","), ("", "\u00a0€")]
]
WORDS = st.sampled_from(
    [
        "Scarf",
        ",",
        ", ",
        " ",
        ": ",
        "Category: ",
        ", Category: X",
        "$1,299.00",
        '"',
        "'",
        "é",
        "e\u0301",
        "<|",
        "|>",
        "👗",
    ]
)
TEXTS = st.text(max_size=30) | st.lists(WORDS, max_size=6).map("".join)
NUMBERS = st.integers(-(10**16), 10**16) | st.integers(0, 9999) | st.floats(allow_nan=False) | st.floats(-1e6, 1e6)


@st.composite
def rows(draw: st.DrawFn) -> tuple[PromptSpec, dict[str, object]]:
    labels = draw(st.lists(LABELS, min_size=1, max_size=4, unique=True))
    kinds = draw(st.lists(st.sampled_from(["text", "category", "number"]), min_size=4, max_size=4))
    fields = [FieldSpec(column=f"c{n}", label=label, kind=kinds[n]) for n, label in enumerate(labels)]
    spec = PromptSpec(fields=tuple(fields), numbers=draw(st.sampled_from(FORMATS)))
    return spec, {field.column: draw(NUMBERS if field.kind == "number" else TEXTS) for field in fields}


@given(rows())
@settings(max_examples=500)
def test_what_is_written_reads_back_and_what_does_not_is_refused_by_name(case: tuple[PromptSpec, dict[str, object]]):
    spec, row = case
    try:
        answer = render_answer(spec, row, "row 12")
    except PromptError as error:
        refused = re.match(r"row 12: (field 'c\d'|no field has a value)", str(error))
        assert refused
        return
    assert END not in answer
    present = tuple(field for field in spec.fields if row[field.column] == 0 or str(row[field.column]).strip())
    gaps = answer_gaps(spec, row, answer, END)
    assert bool(gaps) == (len(present) < len(spec.fields))
    learnt = "".join(c for n, c in enumerate(answer + END) if not any(start <= n < end for start, end in gaps))
    assert all(canonical_text(str(row[field.column])) in learnt for field in present if field.kind != "number")
    spec = spec.model_copy(update={"fields": present})
    assert parse_answer(spec, answer).values is None
    for said in (f"{answer}{END}", f" {answer}{END}<|endoftext|>"):
        values = parse_answer(spec, said).values
        assert values is not None
        for field in spec.fields:
            truth: Any = row[field.column]
            if field.kind != "number":
                assert values[field.column] == canonical_text(truth)
            elif spec.numbers.decimals is None:
                assert values[field.column] == truth
            else:
                assert values[field.column] == pytest.approx(truth, abs=0.51 * 10**-spec.numbers.decimals)


@given(st.sampled_from(FORMATS), st.integers(-(10**15) + 1, 10**15 - 1))
def test_every_whole_number_of_a_shop_holds(numbers: NumberFormat, value: int):
    text = format_number(numbers, value)
    assert parse_number(numbers, text) == value
    assert len(re.sub(r"\D", "", text)) == len(str(abs(value))) + (numbers.decimals or 0)


@pytest.mark.parametrize(
    "text",
    [
        "Scarf, red",
        "Scarf, Category",
        "Category: Scarf",
        "Scarf,Category: red",
        "Scarf,",
        "Product: Scarf",
        'Coat "Kensington" 12" - 1,299.00 €',
        "شال من الصوف",
        "羊毛のコート",
        "👗🇬🇧",
        "a<b> & <|c",
        "nan",
        "0",
        "-",
        ":",
    ],
)
def test_titles_that_hold(text: str):
    for row in (SCARF | {"title": text}, SCARF | {"category3_code": text}):
        assert parse_answer(DEFAULT, render_answer(DEFAULT, row) + END).values == row


@pytest.mark.parametrize(
    ("written", "read"),
    [("  Red \t Bag\n", "Red Bag"), ("Cafe\u0301", "Café"), ("a\u00a0b\u2028c\u3000d", "a b c d"), (42, "42")],
)
def test_text_is_put_into_its_canonical_form(written: object, read: str):
    answer = render_answer(only("text"), {"value": written})
    assert parse_answer(only("text"), answer + END).values == {"value": read}
    assert parse_answer(only("text"), f"Value: {written}{END}").values == {"value": read}


@given(TEXTS)
def test_the_canonical_form_is_its_own(text: str):
    assert canonical_text(canonical_text(text)) == canonical_text(text)


@pytest.mark.parametrize(
    ("column", "value", "reason"),
    [
        ("title", "Scarf, Category: BAGS", "another field's label stands in the text"),
        ("category3_code", "BAGS, Full Price: 3", "another field's label stands in the text"),
        ("title", "Scarf, Category: BAGS, Full Price: 1.0<|end|>", r"special token '<\|end\|>'"),
        ("title", "<|image_1|>", r"special token '<\|image_1\|>'"),
        ("title", "Scarf</s>", "special token '</s>'"),
        ("title", "<unk>", "special token '<unk>'"),
        ("title", "a\x00b", r"control character U\+0000"),
        ("title", "a\x1bb", r"control character U\+001B"),
        ("title", "half\ud83d", r"control character U\+D83D"),
        ("full_price", math.inf, "is inf, not a finite number"),
        ("full_price", -math.inf, "is -inf, not a finite number"),
        ("full_price", True, "is True, not a finite number"),
        ("full_price", "390", "is '390', not a finite number"),
        ("full_price", 1e22, r"is 1e\+22, not a finite number of 15 digits at most"),
        ("full_price", 10**400, "not a finite number of 15 digits at most"),
        ("full_price", 10**15, "not a finite number of 15 digits at most"),
    ],
    ids=lambda value: repr(value)[:40],
)
@pytest.mark.parametrize(
    "numbers", [NumberFormat(), NumberFormat(decimals=2, thousands=",", prefix="$")], ids=["", "$"]
)
def test_values_that_do_not_hold_are_refused_by_row_and_field(
    column: str, value: object, reason: str, numbers: NumberFormat
):
    with pytest.raises(PromptError, match=f"^row 7: field '{column}' .*{reason}") as caught:
        render_answer(PromptSpec(numbers=numbers), SCARF | {column: value}, "row 7")
    assert "\n" not in str(caught.value)


LACKING = [
    ((), "Product: Red Bag, Category: BAGS, Full Price: 390.0", []),
    (("title",), "Category: BAGS, Full Price: 390.0", ["Category:"]),
    (("category3_code",), "Product: Red Bag, Full Price: 390.0", [", Full Price:"]),
    (("full_price",), "Product: Red Bag, Category: BAGS", [END]),
    (("title", "category3_code"), "Full Price: 390.0", ["Full Price:"]),
    (("title", "full_price"), "Category: BAGS", ["Category:", END]),
    (("category3_code", "full_price"), "Product: Red Bag", [END]),
]
"""Fields that a row lacks, its answer, and what of that is not learnt."""


@pytest.mark.parametrize(("lacking", "answer", "gaps"), LACKING)
@pytest.mark.parametrize("nothing", [None, math.nan, "", " \n\t", "absent"], ids=repr)
def test_an_answer_has_the_fields_of_its_row(lacking: tuple[str, ...], answer: str, gaps: list[str], nothing: object):
    row: dict[str, object] = {"title": "Red Bag", "category3_code": "BAGS", "full_price": 390.0}
    row |= dict.fromkeys(lacking, nothing)
    if nothing == "absent":
        row = {column: value for column, value in row.items() if column not in lacking}
    assert render_answer(DEFAULT, row) == answer
    assert [(answer + END)[start:end] for start, end in answer_gaps(DEFAULT, row, answer, END)] == gaps


@pytest.mark.parametrize("row", [{}, dict.fromkeys(SCARF), {"title": " ", "full_price": math.nan}], ids=repr)
def test_a_row_without_any_field_has_no_answer(row: dict[str, object]):
    with pytest.raises(PromptError, match=r"^row 7: no field has a value: fill one in or leave the row out$"):
        render_answer(DEFAULT, row, "row 7")


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"title": "Scarf, Category: BAGS", "category3_code": None}, "title"),
        ({"title": "Scarf, Category: BAGS", "category3_code": None, "full_price": None}, "title"),
        ({"title": "Scarf, Full Price: 3", "category3_code": None}, "title"),
        ({"title": "Scarf, Full Price: 3", "category3_code": None, "full_price": None}, "title"),
        ({"category3_code": "BAGS, Full Price: 3", "full_price": None}, "category3_code"),
        ({"title": None, "category3_code": "BAGS, Full Price: 3", "full_price": None}, "category3_code"),
    ],
)
def test_the_label_of_a_field_that_is_left_out_may_not_stand_in_a_text(row: dict[str, object], column: str):
    with pytest.raises(PromptError, match=f"^row: field '{column}' does not read back .* another field's label"):
        render_answer(DEFAULT, SCARF | row)


STATED = PromptSpec(
    fields=(
        FieldSpec(column="title", label="Product", kind="text", absent="unknown"),
        FieldSpec(column="category3_code", label="Category", kind="category", absent="not visible"),
        FieldSpec(column="full_price", label="Full Price", kind="number"),
    )
)


@pytest.mark.parametrize(
    ("lacking", "answer", "gaps"),
    [
        (("title",), "Product: unknown, Category: BAGS, Full Price: 390.0", []),
        (("title", "category3_code"), "Product: unknown, Category: not visible, Full Price: 390.0", []),
        (("category3_code", "full_price"), "Product: Red Bag, Category: not visible", [END]),
        (("title", "category3_code", "full_price"), "Product: unknown, Category: not visible", [END]),
    ],
)
@pytest.mark.parametrize("nothing", [None, math.nan, " \n\t"], ids=repr)
def test_an_answer_states_what_is_absent(lacking: tuple[str, ...], answer: str, gaps: list[str], nothing: object):
    row: dict[str, object] = {"title": "Red Bag", "category3_code": "BAGS", "full_price": 390.0}
    row |= dict.fromkeys(lacking, nothing)
    assert render_answer(STATED, row) == answer
    assert [(answer + END)[start:end] for start, end in answer_gaps(STATED, row, answer, END)] == gaps
    truth = {"title": "Red Bag", "category3_code": "BAGS", "full_price": 390.0}
    truth |= {name: {"title": "unknown", "category3_code": "not visible"}.get(name) for name in lacking}
    assert {field.column: value_of(field, row) for field in STATED.fields} == truth
    if "full_price" not in lacking:
        assert parse_answer(STATED, answer + END).values == truth


@given(rows())
def test_with_a_word_only_numbers_leave_gaps(case: tuple[PromptSpec, dict[str, object]]):
    spec, row = case
    fields = [f if f.kind == "number" else f.model_copy(update={"absent": "not\u00a0visible"}) for f in spec.fields]
    spec = spec.model_copy(update={"fields": tuple(fields)})
    try:
        answer = render_answer(spec, row)
    except PromptError as error:
        refused = re.match(r"row: field 'c\d'", str(error)) or {f.kind for f in fields} == {"number"}
        assert refused
        return
    values = parse_answer(spec, answer + END).values
    assert values is not None
    for field in fields:
        if field.kind != "number":
            assert values[field.column] == (canonical_text(str(row[field.column])) or "not visible")


def test_a_word_for_what_is_absent_is_a_value_of_the_schema_where_a_row_states_it():
    rows = [SCARF, SCARF | {"title": "X", "category3_code": " "}]
    assert answer_space(STATED, rows).of("category3_code").values == ("ACCESSORIES", "not visible")
    assert answer_space(STATED, [SCARF]) == answer_space(DEFAULT, [SCARF])
    assert answer_space(STATED, [{**SCARF, "title": "X"}, {**SCARF, "title": None}]).of("title").longest == 10


@pytest.mark.parametrize("cell", [None, "not visible", " not  visible"])
def test_a_field_that_every_row_lacks_is_named_whatever_its_word(cell: str | None):
    with pytest.raises(PromptError, match=r"^no training row has a value of field 'category3_code': fill some in"):
        answer_space(STATED, [SCARF | {"category3_code": cell}] * 3)


def test_an_answer_schema_goes_by_the_values_that_there_are():
    rows = [SCARF | {"full_price": None}, SCARF | {"category3_code": None, "title": " "}]
    assert answer_space(DEFAULT, rows) == answer_space(DEFAULT, [SCARF])


@pytest.mark.parametrize("column", [*SCARF])
def test_a_field_without_any_value_is_named(column: str):
    with pytest.raises(PromptError, match=f"^no training row has a value of field '{column}': fill some in, or "):
        answer_space(DEFAULT, [SCARF | {column: None}] * 3)


@pytest.mark.parametrize(
    ("rule", "value", "text"),
    [
        ({}, 390.0, "390.0"),
        ({}, 1290, "1290"),
        ({}, 0, "0"),
        ({}, -0.0, "0.0"),
        ({}, -12.5, "-12.5"),
        ({}, 1e-7, "0.0000001"),
        ({}, 0.1 + 0.2, "0.30000000000000004"),
        ({}, 999999999999999, "999999999999999"),
        ({"decimals": 2}, 390.0, "390.00"),
        ({"decimals": 2}, 7, "7.00"),
        ({"decimals": 2}, 0.125, "0.12"),
        ({"decimals": 2}, 0.135, "0.14"),
        ({"decimals": 2}, -0.001, "0.00"),
        ({"decimals": 2}, 1e-7, "0.00"),
        ({"decimals": 0}, 2.5, "2"),
        ({"decimals": 0}, 3.5, "4"),
        ({"thousands": ","}, 999, "999"),
        ({"thousands": ","}, 1299, "1,299"),
        ({"thousands": ","}, -1234567.5, "-1,234,567.5"),
        ({"thousands": ".", "decimal": ","}, 1299.0, "1.299,0"),
        ({"thousands": "\u202f", "decimal": ",", "decimals": 2, "suffix": " €"}, 1299, "1\u202f299,00 €"),
        ({"prefix": "$"}, 5, "$5"),
        ({"prefix": "$"}, -5, "$-5"),
        ({"prefix": "CHF ", "thousands": "'", "decimals": 2}, 1299.9, "CHF 1'299.90"),
        ({"suffix": "円"}, 1299, "1299円"),
    ],
)
def test_numbers_are_written_by_the_rule(rule: dict, value: float, text: str):
    numbers = NumberFormat(**rule)
    assert format_number(numbers, value) == text
    assert parse_number(numbers, text) == pytest.approx(value, abs=0.5)
    assert render_answer(only("number", numbers), {"value": value}) == f"Value: {text}"


@pytest.mark.parametrize(
    ("rule", "text", "value"),
    [
        ({"thousands": ","}, "1299", 1299),  # a model may leave the signs out
        ({"thousands": ","}, "12,99", None),
        ({"thousands": ","}, "1,2999", None),
        ({"thousands": ","}, "1299,000", None),
        ({"thousands": ","}, ",299", None),
        ({}, "1,299", None),
        ({}, "007", 7),
        ({}, "1e5", None),
        ({}, "1.", None),
        ({}, ".5", None),
        ({}, "--5", None),
        ({}, "+5", None),
        ({}, "5 5", None),
        ({}, "5\n", 5),
        ({}, "٣٤٥", None),
        ({}, "inf", None),
        ({}, "nan", None),
        ({}, "", None),
        ({}, "1" * 15, 111111111111111),
        ({}, "1" * 16, None),
        ({}, "0." + "1" * 5000, 1 / 9),
        ({"decimal": ","}, "1.5", None),
        ({"prefix": "$"}, "5", None),
        ({"prefix": "$", "suffix": "$"}, "$", None),
        ({"suffix": " EUR"}, "5 EUR", 5),
        ({"suffix": " EUR"}, "5EUR", None),
    ],
    ids=lambda value: repr(value)[:30],
)
def test_numbers_are_read_by_the_rule(rule: dict, text: str, value: float | None):
    read = parse_number(NumberFormat(**rule), text)
    assert read == (None if value is None else pytest.approx(value))


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "does not start with 'Product: '"),
        ("A scarf", "does not start with 'Product: '"),
        ("Product:Scarf, Category: BAGS, Full Price: 1.0", "does not start with 'Product: '"),
        ("Product: Scarf", "has no 'Category'"),
        ("Product: Scarf, Full Price: 3.0, Category: BAGS", "has no 'Full Price'"),
        ("Product: Scarf, Category: BAGS<|end|>, Full Price: 3.0", "has no 'Full Price'"),
        ("Product: Scarf, Category: BAGS, Full Price: cheap", "'Full Price' is 'cheap', not a number"),
        ("Product: Scarf, Category: BAGS, Full Price: 3.0 or so", "'Full Price' is '3.0 or so', not a number"),
        ("Product: , Category: BAGS, Full Price: 3.0", "'Product' is '', not a text"),
        ("Product:   , Category: BAGS, Full Price: 3.0", "'Product' is '  ', not a text"),
        ("Product: Scarf, Category: , Full Price: 3.0", "'Category' is '', not a category"),
        ("Product: Scarf, Category: BAGS, Full Price: 12", "was cut off before its <|end|>"),
    ],
)
def test_an_answer_that_does_not_parse_says_why(text: str, error: str):
    answer = parse_answer(DEFAULT, text)
    assert (answer.values, answer.error) == (None, error)


@given(
    st.text() | st.lists(WORDS | st.sampled_from(["Product: ", ", Full Price: ", "1", END]), max_size=9).map("".join)
)
@example("Product: \ud83d, Category: \x00, Full Price: 1")
@example("Product: " * 10_000)
@example("Product: a, Category: b, Full Price: " + "9" * 100_000)
def test_no_text_makes_parsing_raise(text: str):
    answer = parse_answer(DEFAULT, text)
    assert (answer.values is None) != (answer.error is None)


def test_no_torch_is_loaded():
    code = "import sys, catalens.examples, catalens.config, catalens.errors; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
