"""A run and a split -> metrics.json, predictions.parquet, report.html.

    {"rows": 300, "split": "test",
     "model":      {"parse_rate": F, "fields": {"title": {"exact": F, "similarity": F}, ...}},
     "baselines":  {"majority": {...}, "nearest_neighbour": {...}},
     "before":     {...},
     "image_use":  {"blank": {...}, "shuffled": {...}, "pictures_matter": true},
     "left_out":   ["test row 7 (BAG-01): picture cannot be decoded (broken data)"], ...}

with F = {"value": 0.91, "low": 0.88, "high": 0.94}, the 95 % bootstrap interval. Every answer is generated freely.
"""

import io
import json
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from rich.console import Console
from rich.progress import Progress

from catalens import metrics
from catalens.catalog.pictures import open_picture, picture_size
from catalens.catalog.storage import Catalog
from catalens.checkpoint import Run, compute_dtype, load_model, load_run, processes
from catalens.config import LOWER_IS_BETTER, EvaluationSpec, Kind, PromptSpec, Recipe
from catalens.errors import CatalogError
from catalens.evaluation.report import Judged, write_report
from catalens.examples import canonical_text, parse_answer, usable_rows
from catalens.inference import Writer
from catalens.metrics import Figure
from catalens.model import Phi3VProcessor
from catalens.tracking import Shown

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Evaluation:
    """What came out of an evaluation."""

    folder: Path
    """Holds `metrics.json`, `predictions.parquet` and `report.html`."""
    prompt: PromptSpec
    metrics: dict[str, Any]
    """The content of `metrics.json`."""


def evaluate(run: Path | str, recipe: Recipe | None = None, console: Console | None = None) -> Evaluation:
    """Score a run on a split and write `run/evaluation/`, or a folder beside it where the rows are not the recipe's.

    Under torchrun the processes share the pictures, and the first one writes.
    `recipe` replaces the run's own, its prompt apart. Raises CheckpointError where the run is not finished,
    CatalogError where its catalogue or the split is not there, or where the catalogue has changed since the training.
    """
    console = (console or Console()) if processes().is_main_process else Console(quiet=True)
    started = time.monotonic()
    loaded = load_run(run)
    recipe, prompt = recipe or loaded.recipe, loaded.prompt
    spec = recipe.evaluation
    catalog = _unchanged(loaded, recipe)
    roles = catalog.card.roles
    rows, left_out = usable_rows(catalog, prompt, spec.split)
    rows = _sample(rows, spec.rows)
    pictures = [row[roles.image] for row in rows]
    truths = [truth_of(prompt, row) for row in rows]
    judge = _Judge(prompt, truths, spec)

    with Progress(console=console) as progress:

        def write(what: str, model: Any, shown: Sequence[bytes]) -> list[str]:
            task = progress.add_task(what, total=len(shown))
            writer = Writer(model, loaded.processor, prompt, spec.batch_size, spec.max_new_tokens)
            return writer.answers(shown, lambda done: progress.update(task, completed=done))

        generating = time.monotonic()
        answers = write("writing answers", loaded.model, pictures)
        seconds = time.monotonic() - generating
        result: dict[str, Any] = {"rows": len(rows), "split": spec.split, "model": judge.answers(answers)}
        result["baselines"] = _baselines(catalog, prompt, pictures, judge)
        if spec.image_use:
            ids = [row[roles.id] for row in rows]
            blank = judge.answers(write("blanked pictures", loaded.model, [blanked(p) for p in pictures]))
            shuffled = judge.answers(write("shuffled pictures", loaded.model, shuffle(pictures, ids)))
            matter = pictures_matter(result["model"], shuffled)
            result["image_use"] = {"blank": blank, "shuffled": shuffled, "pictures_matter": matter}
        if spec.before:
            loaded.model.to("cpu")  # a GPU need not hold both
            base = load_model(recipe.model, compute_dtype(), recipe.training.attention)
            result["before"] = judge.answers(write("as it was before training", base.eval(), pictures))
    result["left_out"] = left_out
    result["noise_floor"] = catalog.card.figures
    result["seconds"] = {"generation": seconds, "evaluation": time.monotonic() - started}
    judged = [
        Judged(row[roles.id], truth, answer.values, text, answer.error, picture)
        for row, truth, text, picture, answer in zip(
            rows, truths, answers, pictures, (parse_answer(prompt, text) for text in answers), strict=True
        )
    ]
    folder = loaded.folder / _folder_name(loaded.recipe, recipe)
    if not processes().is_main_process:
        return Evaluation(folder, prompt, result)
    folder.mkdir(exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    pq.write_table(pa.Table.from_pylist([_record(row) for row in judged]), folder / "predictions.parquet")
    write_report(folder / "report.html", loaded.folder.resolve().name, result, prompt.fields, judged)
    return Evaluation(folder, prompt, result)


class ValidationScorer:
    """What `training` calls at each validation round: free generation on a fixed sample of validation rows.

    Raises CatalogError and TooManyBadRowsError as `usable_rows`.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.prompt, self.spec = recipe.prompt, recipe.evaluation
        catalog = Catalog(recipe.catalog)
        rows = _sample(usable_rows(catalog, recipe.prompt, "validation")[0], recipe.training.validation_rows)
        self.ids = [row[catalog.card.roles.id] for row in rows]
        self.pictures = [row[catalog.card.roles.image] for row in rows]
        self.truths = [truth_of(recipe.prompt, row) for row in rows]
        self.shown = recipe.tracking.examples
        self._judge = _Judge(recipe.prompt, self.truths, recipe.evaluation)

    def __call__(self, model: Any, processor: Phi3VProcessor) -> tuple[dict[str, Figure], list[Shown]]:
        """Figures by name, and the first rows with what was written about them."""
        texts = self._write(model, processor, self.pictures)
        shown = [
            Shown(self.ids[i], self.pictures[i], self.truths[i], answer.values, answer.error)
            for i, answer in enumerate(parse_answer(self.prompt, text) for text in texts[: self.shown])
        ]
        return flatten(self._judge.answers(texts)), shown

    def image_use(self, model: Any, processor: Phi3VProcessor) -> tuple[bool, dict[str, Figure]]:
        """Whether other products' pictures hurt, and the figures with them."""
        own = self._judge.answers(self._write(model, processor, self.pictures))
        shuffled = self._judge.answers(self._write(model, processor, shuffle(self.pictures, self.ids)))
        return pictures_matter(own, shuffled), flatten(shuffled)

    def _write(self, model: Any, processor: Phi3VProcessor, pictures: Sequence[bytes]) -> list[str]:
        return Writer(model, processor, self.prompt, self.spec.batch_size, self.spec.max_new_tokens).answers(pictures)


def validation_scorer(recipe: Recipe) -> ValidationScorer | None:
    """The scorer of a recipe, None where it wants the validation loss only."""
    return ValidationScorer(recipe) if recipe.training.validation_rows else None


def flatten(scores: Mapping[str, Any]) -> dict[str, Figure]:
    """`{"parse_rate": {"value": 1.0, ...}, "title.exact": {"value": 0.9, ...}, ...}` of a score."""
    flat = {"parse_rate": scores["parse_rate"]}
    for field, figures in scores["fields"].items():
        flat |= {f"{field}.{name}": figure for name, figure in figures.items()}
    return flat


def truth_of(prompt: PromptSpec, row: Row) -> dict[str, Any]:
    """A row's values as an answer would state them: text in its canonical form, numbers as they are."""
    return {
        field.column: row[field.column] if field.kind == "number" else canonical_text(str(row[field.column]))
        for field in prompt.fields
    }


def blanked(picture: bytes) -> bytes:
    """A grey picture of the same size: as many tokens, nothing to see."""
    buffer = io.BytesIO()
    Image.new("RGB", picture_size(picture), (128, 128, 128)).save(buffer, "PNG")
    return buffer.getvalue()


def shuffle(pictures: Sequence[bytes], ids: Sequence[str]) -> list[bytes]:
    """Every row gets the picture of another product, as long as none has half of the rows."""
    order = sorted(range(len(ids)), key=lambda i: ids[i])
    shuffled = list(pictures)
    for place, row in enumerate(order):
        shuffled[row] = pictures[order[(place + len(order) // 2) % len(order)]]
    return shuffled


def pictures_matter(model: Mapping[str, Any], shuffled: Mapping[str, Any]) -> bool:
    """Whether wrong pictures hurt: some field's first figure is worse, beyond both 95 % intervals."""

    def hurts(field: str, metric: str) -> bool:
        own, others = model["fields"][field][metric], shuffled["fields"][field][metric]
        return own["high"] < others["low"] if metric in LOWER_IS_BETTER else own["low"] > others["high"]

    return any(hurts(field, next(iter(figures))) for field, figures in model["fields"].items())


def _unchanged(run: Run, recipe: Recipe) -> Catalog:
    """The catalogue to score on; CatalogError where the one of the training holds other rows by now."""
    catalog = Catalog(recipe.catalog)
    if recipe.catalog == run.recipe.catalog and catalog.card.content_hash != run.versions.get("catalog"):
        raise CatalogError(
            f"{catalog.folder} has changed since {run.folder} was trained, so its {recipe.evaluation.split} rows may "
            "have been trained on: train again, or name another catalogue with --set catalog=FOLDER"
        )
    return catalog


def _sample(rows: list[dict[str, Any]], most: int | None) -> list[dict[str, Any]]:
    """At most so many rows, always the same ones, in their order: the first rows may all be of one kind."""
    if most is None or most >= len(rows):
        return rows
    return [rows[i] for i in sorted(random.Random(0).sample(range(len(rows)), most))]


def _folder_name(own: Recipe, recipe: Recipe) -> str:
    """`evaluation` for the rows that the run's recipe names; others do not overwrite it."""
    name = "evaluation"
    if recipe.catalog != own.catalog:
        name += f"-{Path(recipe.catalog).name}"
    if recipe.evaluation.split != own.evaluation.split:
        name += f"-{recipe.evaluation.split}"
    if recipe.evaluation.rows != own.evaluation.rows:
        name += f"-{recipe.evaluation.rows or 'all'}"
    return name


class _Judge:
    """Scores answers against the truths of a split."""

    def __init__(self, prompt: PromptSpec, truths: Sequence[Row], spec: EvaluationSpec) -> None:
        self.prompt, self.truths, self.spec = prompt, truths, spec
        self.kinds: dict[str, Kind] = {field.column: field.kind for field in prompt.fields}

    def answers(self, texts: Sequence[str]) -> dict[str, Any]:
        """Score what a model wrote."""
        return self.values([parse_answer(self.prompt, text).values for text in texts])

    def values(self, predictions: Sequence[Row | None]) -> dict[str, Any]:
        """Score values, None being a failed parse."""
        return metrics.score(self.kinds, self.truths, predictions, self.spec.resamples)


def _baselines(catalog: Catalog, prompt: PromptSpec, pictures: Sequence[bytes], judge: _Judge) -> dict[str, Any]:
    train, _ = usable_rows(catalog, prompt, "train")
    truths = [truth_of(prompt, row) for row in train]
    looks = _thumbnails([row[catalog.card.roles.image] for row in train])
    neighbours = metrics.nearest_neighbour(truths, looks, _thumbnails(pictures))
    return {
        "majority": judge.values(metrics.majority(judge.kinds, truths, len(pictures))),
        "nearest_neighbour": judge.values(neighbours),
    }


def _thumbnails(pictures: Sequence[bytes]) -> np.ndarray:
    return np.stack([metrics.thumbnail(open_picture(data)) for data in pictures])


def _record(row: Judged) -> dict[str, Any]:
    """A row of `predictions.parquet`."""
    predicted = row.prediction or dict.fromkeys(row.truth)
    return {
        "id": row.id,
        **{f"truth.{name}": value for name, value in row.truth.items()},
        **{f"predicted.{name}": value for name, value in predicted.items()},
        "answer": row.answer,
        "error": row.error,
    }
