"""Prompt settings: question, fields and their labels, number format; and the base of all settings."""

import re
import unicodedata
from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationInfo, field_validator, model_validator

Kind = Literal["text", "category", "number"]

SPECIAL = re.compile(r"<\|[^|<>]*\|>|</?s>|<unk>")
"""The special tokens of Phi-3's tokenizer."""
PLACEHOLDER = re.compile(r"\{([^{}]+)\}")
"""Column of the catalogue in a question, such as `{description}`."""


class Frozen(BaseModel):
    """Base of every configuration object: immutable, no unknown keys, docstrings as descriptions."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


def _odd(text: str) -> str | None:
    """The first special token, or character of control, in a text that goes into the prompt."""
    found = SPECIAL.search(text) or re.search(r"<\|", text)
    return found.group() if found else next((c for c in text if unicodedata.category(c) in ("Cc", "Cs")), None)


class FieldSpec(Frozen):
    """One field that the model learns to write."""

    column: str
    """Column of the catalogue."""
    label: str
    """Text before the value in the answer: `Product` gives `Product: ...`."""
    kind: Kind
    """`text` is scored by match and similarity, `category` by accuracy and F1, `number` by relative error."""
    absent: str | None = None
    """Word that the model learns to write where a row lacks the value, such as `not visible`; a cell that holds it
    lacks the value, too. Unset: such a row teaches its other fields. A number has none."""

    @field_validator("label", "absent")
    @classmethod
    def _plain(cls, text: str | None, info: ValidationInfo) -> str | None:
        if text is not None and (text != " ".join(text.split()) or not text or _odd(text)):
            raise ValueError(f"{info.field_name} {text!r} is not one line of plain text without spaces around it")
        return text

    @model_validator(mode="after")
    def _word_of_a_number(self) -> Self:
        if self.absent is not None and self.kind == "number":
            raise ValueError(f"a number has no word for a missing value: leave absent out of {self.column!r}")
        return self


class NumberFormat(Frozen):
    """Format in which numbers are written and read back, one for every number field.

    `{prefix}{digits}{suffix}`: an optional minus sign, digits in groups of three divided by `thousands`, then
    `decimal` and the digits after it. With `decimals` unset a number is written with the digits that it has, as
    Python writes it (`390.0`, `1290`); with it, rounded half to even to that many digits.
    """

    decimal: Literal[".", ","] = "."
    """Sign before the digits after the point."""
    thousands: Literal["", ",", ".", " ", "'", "\u00a0", "\u202f"] = ""
    """Sign between groups of three digits."""
    decimals: Annotated[int, Field(ge=0, le=6)] | None = None
    """Digits after the point; unset: as many as the value has."""
    prefix: str = ""
    """Before the number, such as `$`."""
    suffix: str = ""
    """After the number, such as ` EUR`."""

    @model_validator(mode="after")
    def _unambiguous(self) -> Self:
        if self.decimal == self.thousands:
            raise ValueError(f"decimal and thousands are both {self.decimal!r}: choose two different signs")
        if any(character.isdigit() or character == "-" for character in self.prefix + self.suffix):
            raise ValueError("prefix and suffix hold no digits and no minus sign")
        if odd := _odd(self.prefix + self.suffix):
            raise ValueError(f"prefix or suffix holds {odd!r}: leave it out")
        if self.prefix[:1].isspace() or self.suffix[-1:].isspace():
            raise ValueError("prefix begins and suffix ends with a sign that is not a space")
        return self


REFERENCE_FIELDS = (
    FieldSpec(column="title", label="Product", kind="text"),
    FieldSpec(column="category3_code", label="Category", kind="category"),
    FieldSpec(column="full_price", label="Full Price", kind="number"),
)


class PromptSpec(Frozen):
    """Question and fields of the answer. The default is the text of the Phi-3 cookbook's Burberry recipe."""

    question: str = "What is shown in this image?"
    """Stands after the picture, in any language. A column of the catalogue in braces, such as `{description}`, stands
    for a row's text: the model is given it, and is not to write it."""
    fields: tuple[FieldSpec, ...] = Field(default=REFERENCE_FIELDS, min_length=1)
    """The fields of the answer, in order."""
    numbers: NumberFormat = NumberFormat()
    """How numbers are written."""

    @property
    def inputs(self) -> list[str]:
        """Columns whose texts the model is given, in the order of the question."""
        return list(dict.fromkeys(PLACEHOLDER.findall(self.question)))

    @model_validator(mode="after")
    def _distinct(self) -> Self:
        for what in ("column", "label"):
            values = [getattr(field, what) for field in self.fields]
            if twice := sorted({value for value in values if values.count(value) > 1}):
                raise ValueError(f"{what} {twice[0]!r} is used by two fields: name each field once")
        if odd := _odd(self.question.replace("\n", " ")):
            raise ValueError(f"the question holds {odd!r}: special tokens are added by catalens, leave it out")
        if given := next((field.column for field in self.fields if field.column in self.inputs), None):
            raise ValueError(
                f"the question gives {given!r} away, which the model is to write: leave one of the two out"
            )
        return self
