"""What is read from one picture, and who reads it.

    Prediction(
        values={"title": "Red Tote Bag", "category3_code": "BAGS", "full_price": 129.0},
        confidence={"title": 0.97, "category3_code": 0.99, "full_price": 0.64},
        intervals={"full_price": (112.4, 148.1)},
        needs_review=("full_price",),
        answer="Product: Red Tote Bag, Category: BAGS, Full Price: 129.0<|end|>",
    )

`predict` writes it as one flat record a picture, whose columns `record_columns` names.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from catalens.config import PromptSpec
from catalens.examples import Value


@dataclass(frozen=True)
class Prediction:
    """Every field's value with its confidence, or the reason why there is none."""

    values: Mapping[str, Value] | None
    """By column; None where the picture or the answer cannot be read."""
    confidence: Mapping[str, float] = field(default_factory=dict)
    """By column: the probability that the value is right (a number: within 10 % of the truth)."""
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """By number column: bounds that hold the truth as often as the calibration promises; absent without one."""
    needs_review: tuple[str, ...] = ()
    """Columns that a person should look at."""
    answer: str = ""
    """What the model wrote."""
    error: str | None = None
    """Why there are no values."""

    @property
    def for_a_person(self) -> bool:
        """Whether any field needs review, or nothing was read."""
        return bool(self.needs_review) or self.error is not None


class Predictor(Protocol):
    """Reads pictures. Not safe to call from two threads at once."""

    prompt: PromptSpec

    @property
    def calibrated(self) -> bool:
        """Whether confidences are calibrated; where not, they are the model's own."""
        ...

    def predict(
        self, pictures: Sequence[bytes], progress: Callable[[int], None] = lambda done: None
    ) -> list[Prediction]:
        """One prediction a picture, in their order; bytes that are no picture give one with an `error`.

        `progress` hears how many are done.
        """
        ...


def record_columns(prompt: PromptSpec) -> list[str]:
    """Columns of a flat record, in order."""
    columns = [spec.column for spec in prompt.fields]
    for spec in prompt.fields:
        columns.append(f"{spec.column}_confidence")
        if spec.kind == "number":
            columns += [f"{spec.column}_low", f"{spec.column}_high"]
    return [*columns, "needs_review", "review_fields", "error"]


def record_of(prompt: PromptSpec, prediction: Prediction) -> dict[str, Any]:
    """A prediction as a flat record of plain values; what there is none of is None.

    `needs_review` is a bool, `review_fields` the columns to look at, with commas between.
    """
    record: dict[str, Any] = dict.fromkeys(record_columns(prompt))
    record |= prediction.values or {}
    record |= {f"{column}_confidence": round(share, 4) for column, share in prediction.confidence.items()}
    for column, (low, high) in prediction.intervals.items():
        record |= {f"{column}_low": low, f"{column}_high": high}
    return record | {
        "needs_review": prediction.for_a_person,
        "review_fields": ", ".join(prediction.needs_review),
        "error": prediction.error,
    }
