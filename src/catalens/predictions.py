"""Predictions in memory and on disk, one record a picture; an evaluation is predictions beside their truths.

    Prediction(
        values={"title": "Red Tote Bag", "category3_code": "BAGS", "full_price": 129.0},
        confidence={"title": 0.97, "category3_code": 0.99, "full_price": 0.64},
        intervals={"full_price": (112.4, 148.1)},
        needs_review=("full_price",),
        answer="Product: Red Tote Bag, Category: BAGS, Full Price: 129.0<|end|>",
    )

`predict` writes title, ..., title_confidence, full_price_low, full_price_high, ..., needs_review, error;
`evaluate` id, truth.title, predicted.title, confidence.title, low.full_price, ..., needs_review, answer, error.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Self, SupportsBytes

from catalens.config import PromptSpec, Recipe, load_resolved
from catalens.distributions import Distribution
from catalens.errors import CheckpointError
from catalens.examples import Value, value_of
from catalens.tolerance import TEN_PER_CENT, Tolerance

FORMAT = 2
"""Of `metrics.json`."""
PREDICTIONS = "predictions.parquet"


@dataclass(frozen=True)
class Prediction:
    """Every field's value with its confidence, or the reason why there is none."""

    values: Mapping[str, Value] | None
    """By column; None where the picture or the answer cannot be read."""
    confidence: Mapping[str, float] = field(default_factory=dict)
    """By column: the probability that the value is right (a number: within the tolerance of the run)."""
    intervals: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    """By number column: bounds that hold the truth as often as the calibration promises; absent without one."""
    needs_review: tuple[str, ...] = ()
    """Columns that a person should look at."""
    answer: str = ""
    """Text as the model wrote it."""
    error: str | None = None
    """Reason why there are no values."""
    distributions: Mapping[str, Distribution] = field(default_factory=dict)
    """By column of numbers and closed sets of categories: what the model holds possible; not kept on disk."""

    @property
    def for_a_person(self) -> bool:
        """Tell whether any field needs review, or nothing was read."""
        return bool(self.needs_review) or self.error is not None


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


# Beside their truths


@dataclass(frozen=True, kw_only=True)
class ScoredRow(Prediction):
    """A prediction, written under constraints, and the row that it is scored against."""

    id: str
    truth: Mapping[str, Any]
    """By column, as an answer would state it; None where the row lacks it."""
    picture: SupportsBytes = b""
    """Its bytes, encoded; none where an evaluation was read from disk."""
    within: Tolerance = TEN_PER_CENT
    """Largest error of a number that is right."""
    further: Sequence[SupportsBytes] = ()
    """The same of the other pictures of the row."""
    free_answer: str = ""
    """Text that the model wrote without constraints."""
    free_error: str | None = None
    """Reason why that did not parse."""


def rows_with(column: str, rows: Sequence[ScoredRow]) -> list[ScoredRow]:
    """Select the rows that have a truth of a column."""
    return [row for row in rows if row.truth[column] is not None]


def truth_of(prompt: PromptSpec, row: Mapping[str, Any]) -> dict[str, Any]:
    """Read a row's values by column, as `value_of` has them."""
    return {field.column: value_of(field, row) for field in prompt.fields}


@dataclass(frozen=True)
class Evaluation:
    """A run's evaluation: `metrics.json` and `predictions.parquet` of a folder."""

    name: str
    """The run's, as a page shows it."""
    folder: Path
    """Of the evaluation."""
    recipe: Recipe
    """Of the run."""
    metrics: dict[str, Any]
    """Content of `metrics.json`."""
    rows: Sequence[ScoredRow]
    """In the order of the split."""

    @property
    def prompt(self) -> PromptSpec:
        """Question and fields of the run."""
        return self.recipe.prompt

    def save(self) -> None:
        """Write both files."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        self.folder.mkdir(exist_ok=True)
        text = json.dumps(self.metrics, indent=2, allow_nan=False) + "\n"
        (self.folder / "metrics.json").write_text(text, encoding="utf-8")
        records = [scored_record(self.prompt, row) for row in self.rows]
        pq.write_table(pa.Table.from_pylist(records), self.folder / PREDICTIONS)

    @classmethod
    def load(cls, run: Path, split: str | None = None) -> Self:
        """Read the evaluation of a run on a split (its recipe's where None), or the one in a folder of `evaluate`.

        Raises CheckpointError where there is none, or it cannot be read.
        """
        import pyarrow as pa
        import pyarrow.parquet as pq

        direct = (run / "metrics.json").is_file()
        home = run.resolve().parent if direct else run
        if not (home / "recipe.yaml").is_file():
            raise CheckpointError(f"{run} is not a run (no recipe.yaml): give the folder that `catalens train` made")
        recipe = load_resolved(home / "recipe.yaml")
        other = split not in (None, recipe.evaluation.split)
        folder = run if direct else run / (f"evaluation-{split}" if other else "evaluation")
        try:
            metrics = json.loads((folder / "metrics.json").read_bytes())
            found = metrics["split"]
            if metrics.get("format") != FORMAT:
                raise CheckpointError(
                    f"{folder} was written by another version: run `catalens evaluate {home} --split {found}` again"
                )
            metrics = _renamed(metrics)
            within = tolerance_of(metrics)
            rows = [
                _scored_row(recipe.prompt, one, within) for one in pq.read_table(folder / PREDICTIONS).to_pylist()
            ]
        except FileNotFoundError as error:
            wanted = f" --split {split}" if split else ""
            raise CheckpointError(
                f"{run} has no evaluation in {folder}: run `catalens evaluate {run}{wanted}`"
            ) from error
        except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
            raise CheckpointError(
                f"{folder}: the evaluation cannot be read ({error}): evaluate the run again"
            ) from error
        if split not in (None, found):
            raise CheckpointError(
                f"{folder} is of the {found} split, not of {split}: leave --split out, or give the run"
            )
        return cls(run.resolve().name, folder, recipe, metrics, rows)


def _renamed(node: Any) -> Any:
    """Copy a content of `metrics.json` with the names of today: a tolerance was always 10 %."""
    if not isinstance(node, dict):
        return node
    return {{"within_10pct": "within_tolerance"}.get(key, key): _renamed(value) for key, value in node.items()}


def scored_record(prompt: PromptSpec, row: ScoredRow) -> dict[str, Any]:
    """A scored row as a flat record, as `predictions.parquet` of an evaluation has it."""
    values = row.values or dict.fromkeys(row.truth)
    numbers = [field.column for field in prompt.fields if field.kind == "number"]
    return {
        "id": row.id,
        **{f"truth.{name}": value for name, value in row.truth.items()},
        **{f"predicted.{name}": value for name, value in values.items()},
        **{f"confidence.{name}": row.confidence.get(name) for name in row.truth},
        **{f"low.{name}": row.intervals.get(name, (None, None))[0] for name in numbers},
        **{f"high.{name}": row.intervals.get(name, (None, None))[1] for name in numbers},
        "needs_review": list(row.needs_review),
        "answer": row.answer,
        "error": row.error,
        "free_answer": row.free_answer,
        "free_error": row.free_error,
    }


def tolerance_of(metrics: Mapping[str, Any]) -> Tolerance:
    """Read the tolerance of numbers that an evaluation was scored by."""
    return Tolerance.parse((metrics.get("number") or {}).get("within", "10%"))


def _scored_row(prompt: PromptSpec, record: Mapping[str, Any], within: Tolerance) -> ScoredRow:
    columns = [spec.column for spec in prompt.fields]

    def known(what: str) -> dict[str, Any]:
        return {c: record[f"{what}.{c}"] for c in columns if record.get(f"{what}.{c}") is not None}

    values, low, high = known("predicted"), known("low"), known("high")
    return ScoredRow(
        id=record["id"],
        within=within,
        truth={column: record[f"truth.{column}"] for column in columns},
        values=values if len(values) == len(columns) else None,
        confidence=known("confidence"),
        intervals={column: (low[column], high[column]) for column in low if column in high},
        needs_review=tuple(record.get("needs_review") or ()),
        answer=record["answer"],
        error=record["error"],
        free_answer=record.get("free_answer") or "",
        free_error=record.get("free_error"),
    )
