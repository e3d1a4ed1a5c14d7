"""Completions of a model, and the files that become of them: one flat record a picture.

{"id": "8043", "title": "Red Tote Bag", "category3_code": "BAGS", "full_price": 129.0, "title_confidence": 0.97,
 ..., "full_price_low": 112.4, "full_price_high": 148.1, "needs_review": true, "review_fields": "full_price",
 "error": null}
"""

import csv
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalens.config import PromptSpec
from catalens.config.characters import visible_json
from catalens.distributions import Distribution
from catalens.errors import RecipeError
from catalens.predictions import record_columns

if TYPE_CHECKING:
    import pyarrow as pa

FORMATS = (".jsonl", ".csv", ".parquet")
GROUP_ROWS = 1000
"""Rows in a group of a Parquet file."""
FORMULA = re.compile(r"[=+\-@\t\r]")
"""Beginning of a cell that a spreadsheet takes for a formula; the same rule as in `serving/static/page.js`."""
NUMBER = re.compile(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)

NAMED = 10
"""Failed rows that are named."""
MAX_CHARS = 300
"""Of one that is."""
REASONS = 100
"""Different reasons that are counted apart."""

Record = Mapping[str, Any]


@dataclass(frozen=True)
class Completion:
    """Answer of the model about one picture, token by token."""

    pieces: tuple[bytes, ...] = ()
    """The tokens; the last one is `<|end|>` unless the answer was cut off."""
    log_probabilities: tuple[float, ...] = ()
    """Of each token among those that were allowed; 0 for a forced one."""
    distributions: Mapping[str, Distribution] = field(default_factory=dict)
    """By column, of the fields that were written by them."""
    prompt_tokens: int = 0
    steps: int = 0
    """Passes through the model after the prompt's."""
    error: str | None = None
    """Reason why there is no answer."""

    @property
    def text(self) -> str:
        """The answer."""
        return b"".join(self.pieces).decode("utf-8", errors="replace").lstrip()


@dataclass(frozen=True)
class FieldScore:
    """Score of one field of one answer by the decoder."""

    log_probability: float
    """Natural logarithm of the product of the probabilities of its tokens, the one that ends it among them."""
    tokens: int
    """Number of these, at least 1."""
    before: float = 0.0
    """The same logarithm of the fields before it in the answer, on which its value depends."""


@dataclass
class Outcome:
    """Counts and failure reasons of a finished batch prediction."""

    calibrated: bool
    """The confidences are calibrated."""
    total: int = 0
    failed: int = 0
    to_review: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Failures by what stands before the first colon of their reason."""
    named: list[str] = field(default_factory=list)
    """Some failed rows with their reasons, a line each."""

    def count(self, record: Record) -> Record:
        """Take a record into account."""
        self.total += 1
        self.to_review += record["needs_review"]
        if (error := record["error"]) is not None:
            self.failed += 1
            reason = error.partition(":")[0][:80]
            self.reasons[reason if reason in self.reasons or len(self.reasons) < REASONS else "other reasons"] += 1
            if len(self.named) < NAMED:
                name = record["file"] if "file" in record else f"row {self.total} ({record['id']})"
                self.named.append(" ".join(f"{name}: {error}".split())[:MAX_CHARS])
        return record


def record_schema(prompt: PromptSpec, key: str, numbered: bool) -> "pa.Schema":
    """Type the columns of an output; the first, `key`, names the picture, by a number where `numbered`."""
    import pyarrow as pa

    numbers = {f"{spec.column}{end}" for spec in prompt.fields for end in ("_confidence", "_low", "_high")}
    numbers |= {spec.column for spec in prompt.fields if spec.kind == "number"}
    names = [key, *record_columns(prompt)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise RecipeError(f"the output would have two columns {twice!r}: rename that field of the run")
    types = {name: pa.float64() if name in numbers else pa.string() for name in names}
    return pa.schema(types | {key: pa.int64() if numbered else pa.string(), "needs_review": pa.bool_()})


def json_line(record: Record) -> bytes:
    """Write a record as a line of JSON; half a character, which hostile text may hold, becomes a question mark."""
    return visible_json(json.dumps(record, ensure_ascii=False)).encode(errors="replace") + b"\n"


def write_records(path: Path, suffix: str, records: Iterator[Record], schema: "pa.Schema", raw: bool = False) -> None:
    """Write records in the format that a suffix names; `raw` leaves a CSV's cells as they are."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    if suffix == ".jsonl":
        with path.open("wb") as file:
            file.writelines(map(json_line, records))
    elif suffix == ".csv":
        with path.open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow([csv_cell(name, raw) for name in schema.names])
            writer.writerows([csv_cell(record[name], raw) for name in schema.names] for record in records)
    else:
        with pq.ParquetWriter(path, schema) as writer:
            while group := list(islice(records, GROUP_ROWS)):
                writer.write_table(pa.Table.from_pylist(group, schema=schema))


def csv_cell(value: Any, raw: bool = False) -> Any:
    """A cell, with an apostrophe before text that a spreadsheet would take for a formula, unless `raw`."""
    if isinstance(value, bool):
        return "true" if value else "false"
    armed = not raw and isinstance(value, str) and FORMULA.match(value) and not NUMBER.fullmatch(value)
    return f"'{value}" if armed else value
