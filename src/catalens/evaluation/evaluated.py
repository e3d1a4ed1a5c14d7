"""What `evaluate` left on disk, read back, and the rows that several runs have in common.

runs/demo/evaluation/metrics.json         {"format": 2, "rows": 347, "products": 300, "split": "test", ...}
runs/demo/evaluation/predictions.parquet  id, truth.title, predicted.title, confidence.title, ..., answer, error
"""

import json
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from catalens.catalog.storage import Catalog
from catalens.config import FieldSpec, PromptSpec, Recipe, load_recipe
from catalens.errors import CatalogError, CheckpointError
from catalens.evaluation.judged import Judged
from catalens.evaluation.rows import truth_of

FORMAT = 2
"""Of `metrics.json`."""


@dataclass(frozen=True)
class Evaluated:
    """A run's evaluation."""

    name: str
    """As the run is called in a page."""
    folder: Path
    """Of the evaluation."""
    recipe: Recipe
    metrics: Mapping[str, Any]
    """The content of `metrics.json`."""
    rows: Sequence[Judged]
    """In the order of the split, without pictures."""


def read_evaluation(run: Path, split: str | None = None) -> Evaluated:
    """The evaluation of a run on a split (its recipe's where None), or the one in a folder that `evaluate` made.

    Raises CheckpointError where there is none, or it cannot be read.
    """
    direct = (run / "metrics.json").is_file()
    home = run.resolve().parent if direct else run
    if not (home / "recipe.yaml").is_file():
        raise CheckpointError(f"{run} is not a run (no recipe.yaml): give the folder that `catalens train` made")
    recipe = load_recipe(home / "recipe.yaml")
    other = split not in (None, recipe.evaluation.split)
    folder = run if direct else run / (f"evaluation-{split}" if other else "evaluation")
    try:
        metrics = json.loads((folder / "metrics.json").read_bytes())
        found = metrics["split"]
        if metrics.get("format") != FORMAT:
            raise CheckpointError(
                f"{folder} was written by another version: run `catalens evaluate {home} --split {found}` again"
            )
        table = pq.read_table(folder / "predictions.parquet").to_pylist()
        rows = [_row(recipe.prompt, record) for record in table]
    except FileNotFoundError as error:
        wanted = f" --split {split}" if split else ""
        raise CheckpointError(
            f"{run} has no evaluation in {folder}: run `catalens evaluate {run}{wanted}`"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise CheckpointError(f"{folder}: the evaluation cannot be read ({error}): evaluate the run again") from error
    if split not in (None, found):
        raise CheckpointError(f"{folder} is of the {found} split, not of {split}: leave --split out, or give the run")
    return Evaluated(run.resolve().name, folder, recipe, metrics, rows)


def record_of(row: Judged) -> dict[str, Any]:
    """A row of `predictions.parquet`."""
    predicted = row.prediction or dict.fromkeys(row.truth)
    numbers = [name for name, value in row.truth.items() if isinstance(value, int | float)]
    return {
        "id": row.id,
        **{f"truth.{name}": value for name, value in row.truth.items()},
        **{f"predicted.{name}": value for name, value in predicted.items()},
        **{f"confidence.{name}": row.confidence.get(name) for name in row.truth},
        **{f"low.{name}": row.interval.get(name, (None, None))[0] for name in numbers},
        **{f"high.{name}": row.interval.get(name, (None, None))[1] for name in numbers},
        "needs_review": list(row.review),
        "answer": row.answer,
        "error": row.error,
        "free_answer": row.free_answer,
        "free_error": row.free_error,
    }


def _row(prompt: PromptSpec, record: Mapping[str, Any]) -> Judged:
    columns = [field.column for field in prompt.fields]

    def known(what: str) -> dict[str, Any]:
        return {c: record[f"{what}.{c}"] for c in columns if record.get(f"{what}.{c}") is not None}

    said, low, high = known("predicted"), known("low"), known("high")
    return Judged(
        record["id"],
        {column: record[f"truth.{column}"] for column in columns},
        said if len(said) == len(columns) else None,
        record["answer"],
        record["error"],
        b"",
        known("confidence"),
        {column: (low[column], high[column]) for column in low if column in high},
        tuple(record.get("needs_review") or ()),
        record.get("free_answer") or "",
        record.get("free_error"),
    )


def common_fields(runs: Sequence[Evaluated]) -> list[FieldSpec]:
    """Fields of the first run that all others have, too, of the same kind; CatalogError where there are none."""
    known = [{(field.column, field.kind) for field in run.recipe.prompt.fields} for run in runs]
    fields = [f for f in runs[0].recipe.prompt.fields if all((f.column, f.kind) in others for others in known)]
    if not fields:
        raise CatalogError(
            f"{', '.join(run.name for run in runs)} have no field in common: compare runs of one table"
        )
    return fields


def common_rows(runs: Sequence[Evaluated], fields: Sequence[FieldSpec]) -> list[tuple[Judged, ...]]:
    """Rows that all runs have, one `Judged` of each, in the order of the first.

    A row is known by its id and truths. Photographs of one product may share both: they are paired in their order,
    and only where every run has all of them. Raises CatalogError where a product's truths differ, or nothing is left.
    """
    columns = [field.column for field in fields]
    by_id = [_grouped(run.rows, lambda row: row.id) for run in runs]
    pairs: list[tuple[Judged, ...]] = []
    place = {id(row): n for n, row in enumerate(runs[0].rows)}
    for product, mine in by_id[0].items():
        groups = [rows.get(product, []) for rows in by_id]
        truths = [Counter(tuple(row.truth[c] for c in columns) for row in group) for group in groups]
        for run, group, truth in zip(runs[1:], groups[1:], truths[1:], strict=True):
            if len(group) == len(mine) and truth != truths[0]:
                raise CatalogError(_difference(product, fields, (runs[0], mine), (run, group)))
        by_truth = [_grouped(group, lambda row: tuple(row.truth[c] for c in columns)) for group in groups]
        for key, rows in by_truth[0].items():
            same = [group.get(key, []) for group in by_truth]
            if all(len(others) == len(rows) for others in same):
                pairs += zip(*same, strict=True)
    if not pairs:
        raise CatalogError(
            f"{' and '.join(run.name for run in runs)} were evaluated on different rows: none is in all"
        )
    return sorted(pairs, key=lambda pair: place[id(pair[0])])


def _grouped(rows: Sequence[Judged], key: Any) -> dict[Any, list[Judged]]:
    groups: dict[Any, list[Judged]] = defaultdict(list)
    for row in rows:
        groups[key(row)].append(row)
    return groups


def _difference(product: str, fields: Sequence[FieldSpec], *sides: tuple[Evaluated, list[Judged]]) -> str:
    (first, mine), (other, others) = sides
    for a, b in zip(mine, others, strict=True):
        for field in fields:
            if (x := a.truth[field.column]) != (y := b.truth[field.column]):
                return (
                    f"row {product}: the true {field.column} is {x!r} in {first.folder} and {y!r} in {other.folder}: "
                    "evaluate both on the same catalogue"
                )
    return f"row {product}: its variants come in another order: evaluate both on the same catalogue"


def with_pictures(rows: Sequence[tuple[Judged, ...]], run: Evaluated) -> list[tuple[Judged, ...]]:
    """The rows with the pictures of the catalogue of `run`, the first of those compared.

    A row stays without where the catalogue is not there or does not tell which of several photographs it is.
    """
    try:
        catalog = Catalog(run.recipe.catalog)
        roles = catalog.card.roles
        columns = [roles.image, roles.id, *(field.column for field in run.recipe.prompt.fields)]
        wanted = {_key(row[0].id, row[0].truth) for row in rows}
        pictures: dict[Any, list[bytes]] = defaultdict(list)
        for batch in catalog.batches(run.metrics["split"], columns):
            for record in batch:
                if (key := _key(record[roles.id], truth_of(run.recipe.prompt, record))) in wanted:
                    pictures[key].append(record[roles.image])
    except CatalogError:
        return list(rows)
    known: dict[int, bytes] = {}
    for key, same in _grouped(run.rows, lambda row: _key(row.id, row.truth)).items():
        if len(pictures.get(key, [])) == len(same):
            known |= {id(row): picture for row, picture in zip(same, pictures[key], strict=True)}
    return [tuple(replace(one, picture=known.get(id(row[0]), b"")) for one in row) for row in rows]


def _key(product: str, truth: Mapping[str, object]) -> tuple[object, ...]:
    return product, *truth.values()
