"""One evaluated row, and how far off it is.

Judged("80412379", {"title": "Red Tote Bag", "category3_code": "BAGS", "full_price": 129.0},
       {"title": "Red Tote Bag", "category3_code": "BAGS", "full_price": 118.0}, "Product: Red Tote Bag, ...", None,
       b"\\xff\\xd8...", confidence={"title": 0.97, ...}, interval={"full_price": (104.0, 141.0)})
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from rapidfuzz.distance import Levenshtein

from catalens.config import FieldSpec
from catalens.metrics import correctness


@dataclass(frozen=True)
class Judged:
    """One evaluated row."""

    id: str
    truth: Mapping[str, object]
    """`{"title": "Red Tote Bag", "category3_code": "BAGS", "full_price": 129.0}`"""
    prediction: Mapping[str, object] | None
    """The same columns; None where the answer did not parse."""
    answer: str
    """What the model wrote."""
    error: str | None
    """Why the answer did not parse."""
    picture: bytes
    """The encoded picture."""
    confidence: Mapping[str, float] = field(default_factory=dict)
    """By column: the probability that the value is right."""
    interval: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """By number column: bounds that should hold the truth."""
    review: tuple[str, ...] = ()
    """Columns that a person should look at."""
    free_answer: str = ""
    """What the model wrote without constraints, where `answer` was written with them."""
    free_error: str | None = None
    """Why that did not parse."""


def distance(field: FieldSpec, truth: object, said: object) -> float:
    """0 where both agree; a number's error as a share of the truth, a text's normalised edit distance."""
    if field.kind != "number":
        return Levenshtein.normalized_distance(str(truth), str(said))
    true, given = as_float(truth), as_float(said)
    if true == 0:
        return float(given != 0)
    return abs(given - true) / abs(true)


def is_right(field: FieldSpec, row: Judged) -> bool:
    """Text and category exactly, a number within 10 %."""
    return bool(correctness(field.column, field.kind, [row.truth], [row.prediction])[0])


def as_float(value: object) -> float:
    """A number of the table or of an answer."""
    return float(value)  # pyright: ignore[reportArgumentType]
