"""Rows that are scored, and what is true of them."""

import random
from collections.abc import Mapping
from typing import Any

from catalens.config import PromptSpec
from catalens.examples import canonical_text

Row = Mapping[str, Any]


def truth_of(prompt: PromptSpec, row: Row) -> dict[str, Any]:
    """A row's values as an answer would state them: text in its canonical form, numbers as they are."""
    return {
        field.column: row[field.column] if field.kind == "number" else canonical_text(str(row[field.column]))
        for field in prompt.fields
    }


def sampled(rows: list[dict[str, Any]], most: int | None) -> list[dict[str, Any]]:
    """At most so many rows, always the same ones, in their order: the first rows may all be of one kind."""
    if most is None or most >= len(rows):
        return rows
    return [rows[i] for i in sorted(random.Random(0).sample(range(len(rows)), most))]
