"""Product row <-> chat text, in one place.

    {"title": "Vintage Check Cotton Scarf", "category3_code": "ACCESSORIES", "full_price": 390.0}

becomes, with the default prompt and in the chat of Phi-3-Vision,

    <|user|>\\n<|image_1|>What is shown in this image?<|end|><|assistant|>\\n
    Product: Vintage Check Cotton Scarf, Category: ACCESSORIES, Full Price: 390.0<|end|>

(on one line) and `parse_answer` reads the second part back. Training, inference and evaluation all come here.

Values that hold: text is put into Unicode normal form C and its runs of white space into single spaces; then
every text is accepted that reads back as itself. Refused with the row's name are control and special tokens, numbers
that are not finite, and text that contains the next field's `, Label: `.

A row that lacks a field has an answer without it, of which `answer_gaps` are not learnt:

    Product: Vintage Check Cotton Scarf, Full Price: 390.0<|end|>
                                       `-- gap ---'

A field with a word for what is absent, such as `not visible`, has no gaps: its answer states the word.
"""

import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import ROUND_HALF_EVEN, Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, Self

from pydantic import Field, model_validator

from catalens.catalog.pictures import Encoded
from catalens.catalog.values import is_missing
from catalens.config import PLACEHOLDER, SPECIAL, FieldSpec, Frozen, NumberFormat, PromptSpec
from catalens.errors import CheckpointError, PromptError

LARGEST = 10**15
"""Numbers are smaller than this in size; no price has more digits."""
LONGEST_INPUT = 2000
"""Characters of a text that the model is given; what is longer is cut."""
TOKEN_LIKE = re.compile(r"<(?=\||/?s>|unk>)")
"""Beginning of what a tokenizer may take for a special token."""

Value = str | float | int


class ChatTemplate(Protocol):
    """Template of a model's chats: its tag of the first image, the token that ends an answer, and the question."""

    image_tag: str
    end_token: str

    def chat(self, question: str, images: int = 1) -> str:
        """Render a question about so many images, which stand before it, up to where the answer begins."""
        ...


@dataclass(frozen=True, slots=True)
class Query:
    """Pictures of one product, in the order of their tags, and the question about them."""

    pictures: tuple[Encoded, ...]
    question: str

    def __bytes__(self) -> bytes:
        return b"".join(map(bytes, self.pictures))


@dataclass(frozen=True)
class Answer:
    """Reading of an answer: every field's value, or the reason why it could not be read."""

    values: Mapping[str, Value] | None
    error: str | None = None


class FieldConstraints(Frozen):
    """Form of the values of a field; the default is where nothing is known of them."""

    values: tuple[str, ...] = ()
    """Category: all that there are."""
    longest: int = Field(default=200, ge=1, le=100_000)
    """Text: characters of the longest value."""
    digits: int = Field(default=7, ge=1, le=15)
    """Number: digits before the point."""
    decimals: tuple[int, int] = (0, 2)
    """Number: fewest and most digits after the point."""
    negative: bool = False
    """Number: whether any is below zero."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not 0 <= self.decimals[0] <= self.decimals[1] <= 100:
            raise ValueError(f"decimals are {self.decimals}: give fewest and most")
        return self


class AnswerSchema(Frozen):
    """Answers that a model may give which learned from a table; saved with it as `answers.json`."""

    fields: Mapping[str, FieldConstraints] = {}
    """By column."""
    answer_tokens: int | None = None
    """Tokens that all but one in a hundred of the answers keep to; not known of runs of earlier versions."""

    def of(self, column: str) -> FieldConstraints:
        """Give the form of the values of a column."""
        return self.fields.get(column, FieldConstraints())

    @property
    def closed(self) -> list[str]:
        """Columns whose values are all known."""
        return [column for column, own in self.fields.items() if own.values]


def load_form(export: Path) -> tuple[PromptSpec, AnswerSchema]:
    """Read the prompt of an export, and the form of its answers; CheckpointError where they are not there."""
    try:
        prompt = PromptSpec.model_validate_json((export / "prompt.json").read_bytes())
        return prompt, AnswerSchema.model_validate_json((export / "answers.json").read_bytes())
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{export}: prompt.json or answers.json cannot be read: export the run again"
        ) from error


def answer_space(spec: PromptSpec, rows: Iterable[Mapping[str, object]], lengths: Sequence[int] = ()) -> AnswerSchema:
    """Tell what the answers of checked rows are made of, by their values, and by their `lengths` in tokens.

    Texts may be half as long again as the longest, numbers may have one digit more before the point. Raises
    PromptError where no row has a value of a field.
    """
    written: dict[str, set[str]] = {field.column: set() for field in spec.fields}
    for row in rows:
        for field in fields_of(spec, row):
            written[field.column].add(_write(field, row, spec.numbers, "row"))
    if empty := next((f.column for f in spec.fields if not written[f.column] - {value_of(f, {})}), None):
        raise PromptError(
            f"no training row has a value of field {empty!r}: fill some in, or take it out of prompt.fields"
        )
    tokens = sorted(lengths)[-1 - len(lengths) // 100] if lengths else None
    fields = {f.column: _space(f, spec.numbers, written[f.column]) for f in spec.fields}
    return AnswerSchema(fields=fields, answer_tokens=tokens)


def value_of(field: FieldSpec, row: Mapping[str, Any]) -> Any:
    """Read the value of a field as an answer states it: text in its canonical form, a number as it is.

    Of a row that lacks it, the field's word for what is absent; None without one. A value that equals the word counts
    as missing, since an answer cannot tell the two apart.
    """
    if is_missing(value := row.get(field.column)):
        value = field.absent
    return value if field.kind == "number" or value is None else canonical_text(str(value))


def fields_of(spec: PromptSpec, row: Mapping[str, object]) -> list[FieldSpec]:
    """Select the fields that the answer of a row states."""
    return [field for field in spec.fields if value_of(field, row) is not None]


def render_answer(spec: PromptSpec, row: Mapping[str, object], name: str = "row") -> str:
    """Write the answer of a row with the fields that it has, up to its end token.

    `name` says in errors which row it is. Raises PromptError where a value cannot be written and read back, or there
    is none.
    """
    fields = fields_of(spec, row)
    if not fields:
        raise PromptError(f"{name}: no field has a value: fill one in or leave the row out")
    texts = {field.column: _write(field, row, spec.numbers, name) for field in fields}
    answer = ", ".join(f"{field.label}: {texts[field.column]}" for field in fields)
    read = _split(fields, answer)
    before = ""
    for field in spec.fields:  # the label of a field that is left out may not stand in the text before it either
        if field in fields:
            before = field.column
        elif f", {field.label}: " in texts.get(before, ""):
            read.pop(before, None)
    if lost := [field.column for field in fields if read.get(field.column) != texts[field.column]]:
        raise PromptError(
            f"{name}: field {lost[0]!r} does not read back from {answer!r}; "
            "another field's label stands in the text: change the text or the label in the recipe"
        )
    return answer


def complete_question(spec: PromptSpec, row: Mapping[str, object]) -> str:
    """Put a row's texts in the places of the question's columns; what the row lacks is left empty.

    Texts come on one line, without control characters, cut after `LONGEST_INPUT` characters, and whatever looks like
    a special token is broken by a space, so that no text can end the question or stand for a picture.
    """
    return PLACEHOLDER.sub(lambda found: _input_text(spec, row.get(found[1])), spec.question)


def _input_text(spec: PromptSpec, value: object) -> str:
    if is_missing(value):
        return ""
    if isinstance(value, int | float) and not isinstance(value, bool) and -LARGEST < value < LARGEST:
        return format_number(spec.numbers, value)
    plain = "".join(" " if unicodedata.category(c) in ("Cc", "Cs") else c for c in str(value))
    return TOKEN_LIKE.sub("< ", canonical_text(plain)[:LONGEST_INPUT]).strip()


def answer_gaps(spec: PromptSpec, row: Mapping[str, object], answer: str, end_token: str) -> list[tuple[int, int]]:
    """Find where an answer shows that its row lacks a field: characters from and to, the end token's included.

    A gap begins after the value before it and goes on to the end of the next label, or of the answer.
    """
    spans = value_spans(spec, row, answer)
    gaps: list[tuple[int, int]] = []
    at, lacking = 0, False
    for field in spec.fields:
        if field.column not in spans:
            lacking = True
            continue
        first, last = spans[field.column]
        gaps += [(at, first - 1)] if lacking else []  # the space before a value is of its own
        at, lacking = last, False
    return [*gaps, (at, at + len(end_token))] if lacking else gaps


def value_spans(spec: PromptSpec, row: Mapping[str, object], answer: str) -> dict[str, tuple[int, int]]:
    """Find where the values of a row stand in its answer: characters from and to, by column."""
    present = fields_of(spec, row)
    parts, spans, at = _split(present, answer), {}, 0
    for field in present:
        first = at + len(f"{', ' if at else ''}{field.label}: ")
        at = first + len(parts[field.column])
        spans[field.column] = first, at
    return spans


def parse_answer(spec: PromptSpec, text: str, end_token: str) -> Answer:
    """Read an answer with the end token of its family; never raises.

    A field ends where the next field's `, Label: ` first stands. What has no end was cut off, perhaps in the middle
    of a number, and does not parse.
    """
    answer, end, _ = text.partition(end_token)
    parts = _split(spec.fields, answer.strip())
    if not parts:
        return Answer(None, f"does not start with {f'{spec.fields[0].label}: '!r}")
    values: dict[str, Value] = {}
    for field in spec.fields:
        if field.column not in parts:
            return Answer(None, f"has no {field.label!r}")
        part = parts[field.column]
        if (value := parse_value(spec, field, part)) is None:
            return Answer(None, f"{field.label!r} is {part!r}, not a {field.kind}")
        values[field.column] = value
    return Answer(values) if end else Answer(None, f"was cut off before its {end_token}")


def parse_value(spec: PromptSpec, field: FieldSpec, text: str) -> Value | None:
    """Read the text of one field; None where it is none."""
    return parse_number(spec.numbers, text) if field.kind == "number" else canonical_text(text) or None


def canonical_text(value: str) -> str:
    """Text as it is trained and compared: normal form C, runs of white space as one space, none around it."""
    return " ".join(unicodedata.normalize("NFC", value).split())


def format_number(spec: NumberFormat, value: float) -> str:
    """Write a number below `LARGEST` by the recipe's rule; `390.0` stays `390.0`, an int has no point."""
    number = Decimal(repr(value))
    if spec.decimals is not None:
        number = number.quantize(Decimal(1).scaleb(-spec.decimals), rounding=ROUND_HALF_EVEN)
    digits = f"{number or abs(number):,f}"  # no minus sign before a zero
    signs = {",": spec.thousands, ".": spec.decimal}
    return spec.prefix + "".join(signs.get(digit, digit) for digit in digits) + spec.suffix


def parse_number(spec: NumberFormat, text: str) -> float | None:
    """Read a number written by the rule, thousands signs optional; None where the text is not one.

    More than 15 digits before the point are no number that a shop would write; a model that rambles writes them.
    """
    text = text.strip()
    if not (text.startswith(spec.prefix) and text.endswith(spec.suffix)):
        return None
    digits = text[len(spec.prefix) : len(text) - len(spec.suffix)]
    whole = r"\d{1,15}" + (rf"|\d{{1,3}}(?:{re.escape(spec.thousands)}\d{{3}}){{1,4}}" if spec.thousands else "")
    if not re.fullmatch(rf"-?(?:{whole})(?:{re.escape(spec.decimal)}\d+)?", digits, flags=re.ASCII):
        return None
    if spec.thousands:
        digits = digits.replace(spec.thousands, "")
    return float(digits.replace(spec.decimal, "."))


def _split(fields: Sequence[FieldSpec], text: str) -> dict[str, str]:
    """Text of each field, up to where the labels stop standing in order."""
    opening = f"{fields[0].label}: "
    if not text.startswith(opening):
        return {}
    parts: dict[str, str] = {}
    rest = text[len(opening) :]
    for field, following in pairwise(fields):
        parts[field.column], found, rest = rest.partition(f", {following.label}: ")
        if not found:
            return parts
    return parts | {fields[-1].column: rest}


def _space(field: FieldSpec, spec: NumberFormat, texts: set[str]) -> FieldConstraints:
    longest = max(map(len, texts)) * 3 // 2
    if field.kind != "number":
        return FieldConstraints(values=tuple(sorted(texts)) if field.kind == "category" else (), longest=longest)
    bare = [text.removeprefix(spec.prefix).removesuffix(spec.suffix) for text in texts]
    parts = [text.replace(spec.thousands, "") if spec.thousands else text for text in bare]
    wholes = [len(part.partition(spec.decimal)[0].removeprefix("-")) for part in parts]
    decimals = [len(part.partition(spec.decimal)[2]) for part in parts]
    return FieldConstraints(
        digits=min(15, max(wholes) + 1),
        decimals=(min(decimals), max(decimals)),
        negative=any(part.startswith("-") for part in parts),
    )


def _write(field: FieldSpec, row: Mapping[str, object], numbers: NumberFormat, name: str) -> str:
    """The value of a field as text, or PromptError with the row's name and the field."""
    where, value = f"{name}: field {field.column!r}", value_of(field, row)
    if field.kind == "number":
        if isinstance(value, bool) or not isinstance(value, int | float) or not -LARGEST < value < LARGEST:
            raise PromptError(f"{where} is {value!r}, not a finite number of 15 digits at most before the point")
        text = format_number(numbers, value)
        if parse_number(numbers, text) is None:
            raise PromptError(f"{where} is {value!r}, written {text!r}, which does not read back as a number")
        return text
    text = str(value)
    if found := SPECIAL.search(text):
        raise PromptError(f"{where} holds the special token {found.group()!r}: remove it")
    if odd := next((c for c in text if unicodedata.category(c) in ("Cc", "Cs")), None):
        raise PromptError(f"{where} holds the control character U+{ord(odd):04X}: remove it")
    return text
