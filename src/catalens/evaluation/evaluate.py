"""A run and a split -> metrics.json, predictions.parquet, report.html.

    {"format": 2, "rows": 347, "products": 300, "split": "test",
     "model":      {"parse_rate": F, "fields": {"title": {"exact": F, "similarity": F}, ...}},
     "constrained": {...},
     "confidence": {"calibrated_on": 167, "fields": {"title": {"ece": F, "bins": [...], ...}, ...}},
     "review":     {"confidence": 0.95, "fields": {"title": {"target": 0.05, "threshold": 0.81, ...}, ...}},
     "baselines":  {"majority": {...}, "nearest_neighbour": {...}},
     "before":     {...},
     "image_use":  {"verdict": "uses_image", "margin": 0.05, "fields": {...}, "blank": {...}, "shuffled": {...}},
     "left_out":   ["test row 7 (BAG-01): picture cannot be decoded (broken data)"], ...}

with F = {"value": 0.91, "low": 0.88, "high": 0.94}, the 95 % interval over products. Scores are of free generation,
but for `constrained`, the answers that `predict` and `serve` give, whose confidences are judged, and `before`, the
base model under the same constraints: left free, it would not know the form of an answer.
"""

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from rich.console import Console
from rich.progress import Progress

from catalens import metrics
from catalens.catalog.storage import Catalog
from catalens.checkpoint import Run, load_model, load_processor, load_run, processes, product_dtype
from catalens.collation import Encoder, usable_rows
from catalens.config import EvaluationSpec, Kind, PromptSpec, Recipe
from catalens.errors import CatalogError
from catalens.evaluation.calibrating import calibrate, run_predictor
from catalens.evaluation.evaluated import FORMAT, record_of
from catalens.evaluation.image_use import blanked, image_use, partners
from catalens.evaluation.report import Judged, write_report
from catalens.evaluation.rows import Row, sampled, truth_of
from catalens.examples import parse_answer
from catalens.inference import Prediction, Predictor
from catalens.inference.generation import FeatureCache, Generator
from catalens.inference.records import Completion
from catalens.intervals import Figure
from catalens.metrics import ImageUse
from catalens.model import Phi3VProcessor
from catalens.tracking import Shown

__all__ = ["Evaluation", "ValidationScorer", "calibrate", "evaluate", "flatten", "validation_scorer"]

NEIGHBOURS = 20_000
"""Most training pictures among which the nearest one is looked for; at full size each takes 64 KiB."""


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
    encoder = Encoder(loaded.processor, prompt)
    rows, left_out = usable_rows(catalog, encoder, spec.split)
    rows = sampled(rows, spec.rows)
    pictures = [row[roles.image] for row in rows]
    truths = [truth_of(prompt, row) for row in rows]
    ids = [row[roles.id] for row in rows]
    judge = _Judge(prompt, truths, ids, spec)
    memory = FeatureCache()
    predictor = run_predictor(loaded, spec, console, memory)
    writer = Generator(loaded.model, loaded.processor, prompt, spec.batch_size, spec.max_new_tokens, cache=memory)
    result: dict[str, Any] = {"format": FORMAT, "rows": len(rows), "products": len(set(ids)), "split": spec.split}

    with Progress(console=console) as progress:
        generating = time.monotonic()
        free = _written(progress, "writing answers", writer, pictures)
        seconds = time.monotonic() - generating
        values = judge.read(free)
        result["model"] = judge.score(values)
        constrained = _written(progress, "constrained answers", predictor.generator, pictures)
        predictions = [predictor.judge(written) for written in constrained]
        result["constrained"] = judge.score([prediction.values for prediction in predictions])
        result |= _trust(predictor, judge, predictions)
        result["baselines"] = _baselines(catalog, encoder, pictures, judge, writer, progress)
        if spec.image_use:
            blank = _written(progress, "blanked pictures", writer, [blanked(picture) for picture in pictures])
            result["image_use"] = judge.image_use(values) | {"blank": judge.score(judge.read(blank))}
        if spec.before:
            loaded.model.to("cpu")  # a GPU need not hold both
            base = load_model(recipe.model, product_dtype(recipe.training), recipe.training.attention).eval()
            longest, space = spec.max_new_tokens, loaded.space
            untrained = Generator(base, loaded.processor, prompt, spec.batch_size, longest, space)
            before = _written(progress, "as it was before training", untrained, pictures)
            result["before"] = judge.score(judge.read(before))
    result["left_out"] = left_out
    result["noise_floor"] = catalog.card.figures
    result["seconds"] = {"generation": seconds, "evaluation": time.monotonic() - started}
    result["cost"] = _cost(free, constrained, seconds / len(set(pictures)))
    folder = loaded.folder / _folder_name(loaded.recipe, recipe)
    if not processes().is_main_process:
        return Evaluation(folder, prompt, result)
    judged = _judged(prompt, ids, pictures, truths, free, predictions)
    folder.mkdir(exist_ok=True)
    (folder / "metrics.json").write_text(json.dumps(result, indent=2, allow_nan=False) + "\n", encoding="utf-8")
    pq.write_table(pa.Table.from_pylist([record_of(row) for row in judged]), folder / "predictions.parquet")
    write_report(folder / "report.html", loaded.folder.resolve().name, result, prompt.fields, judged)
    return Evaluation(folder, prompt, result)


class ValidationScorer:
    """What `training` calls at each validation round: free generation on a fixed sample of validation rows.

    Raises CatalogError and TooManyBadRowsError as `usable_rows`.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.prompt, self.spec = recipe.prompt, recipe.evaluation
        catalog = Catalog(recipe.catalog)
        encoder = Encoder(load_processor(recipe.model, recipe.num_crops), recipe.prompt)
        rows = sampled(usable_rows(catalog, encoder, "validation")[0], recipe.training.validation_rows)
        self.ids = [row[catalog.card.roles.id] for row in rows]
        self.pictures = [row[catalog.card.roles.image] for row in rows]
        self.truths = [truth_of(recipe.prompt, row) for row in rows]
        self.shown = recipe.tracking.examples
        self._judge = _Judge(recipe.prompt, self.truths, self.ids, recipe.evaluation)

    def __call__(self, model: Any, processor: Phi3VProcessor) -> tuple[dict[str, Figure], list[Shown]]:
        """Figures by name, and the first rows with what was written about them."""
        answers = self._write(model, processor, self.pictures)
        shown = [
            Shown(self.ids[i], self.pictures[i], self.truths[i], answer.values, answer.error)
            for i, answer in enumerate(parse_answer(self.prompt, one.text) for one in answers[: self.shown])
        ]
        return flatten(self._judge.score(self._judge.read(answers))), shown

    def image_use(self, model: Any, processor: Phi3VProcessor) -> tuple[ImageUse, dict[str, Figure]]:
        """What other products' pictures do to the score, and the figures with them."""
        found = self._judge.image_use(self._judge.read(self._write(model, processor, self.pictures)))
        return found["verdict"], flatten(found["shuffled"])

    def _write(self, model: Any, processor: Phi3VProcessor, pictures: Sequence[bytes]) -> list[Completion]:
        return Generator(model, processor, self.prompt, self.spec.batch_size, self.spec.max_new_tokens).generate(
            pictures
        )


def validation_scorer(recipe: Recipe) -> ValidationScorer | None:
    """The scorer of a recipe, None where it wants the validation loss only."""
    return ValidationScorer(recipe) if recipe.training.validation_rows else None


def flatten(scores: Mapping[str, Any]) -> dict[str, Figure]:
    """`{"parse_rate": {"value": 1.0, ...}, "title.exact": {"value": 0.9, ...}, ...}` of a score."""
    flat = {"parse_rate": scores["parse_rate"]}
    for field, figures in scores["fields"].items():
        flat |= {f"{field}.{name}": figure for name, figure in figures.items()}
    return flat


def _unchanged(run: Run, recipe: Recipe) -> Catalog:
    """The catalogue to score on; CatalogError where the one of the training holds other rows by now."""
    catalog = Catalog(recipe.catalog)
    if recipe.catalog == run.recipe.catalog and catalog.card.content_hash != run.versions.get("catalog"):
        raise CatalogError(
            f"{catalog.folder} has changed since {run.folder} was trained, so its {recipe.evaluation.split} rows may "
            "have been trained on: train again, or name another catalogue with --set catalog=FOLDER"
        )
    return catalog


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


def _written(progress: Progress, what: str, engine: Generator, pictures: Sequence[bytes]) -> list[Completion]:
    """Write one answer a picture, in their order, under a bar; equal pictures are answered once."""
    once = list(dict.fromkeys(pictures))
    task = progress.add_task(what, total=len(once))
    answers = engine.generate(once, lambda done: progress.update(task, completed=done))
    by_picture = dict(zip(once, answers, strict=True))
    return [by_picture[picture] for picture in pictures]


class _Judge:
    """Scores answers against the truths of a split."""

    def __init__(
        self, prompt: PromptSpec, truths: Sequence[Row], products: Sequence[str], spec: EvaluationSpec
    ) -> None:
        self.prompt, self.truths, self.products, self.spec = prompt, truths, products, spec
        self.kinds: dict[str, Kind] = {field.column: field.kind for field in prompt.fields}

    def read(self, answers: Sequence[Completion]) -> list[Row | None]:
        """Read the values of each answer, None where it does not parse."""
        return [parse_answer(self.prompt, answer.text).values for answer in answers]

    def score(self, predictions: Sequence[Row | None]) -> dict[str, Any]:
        """Score values, None being a failed parse."""
        return metrics.score(self.kinds, self.truths, predictions, self.products, self.spec.resamples)

    def image_use(self, predictions: Sequence[Row | None]) -> dict[str, Any]:
        """Test whether the pictures are used, and score what was read from other products' pictures."""
        found = image_use(self.kinds, self.truths, predictions, self.products)
        return found | {"shuffled": self.score([predictions[i] for i in partners(self.products)])}


def _baselines(
    catalog: Catalog,
    encoder: Encoder,
    pictures: Sequence[bytes],
    judge: _Judge,
    writer: Generator,
    progress: Progress,
) -> dict[str, Any]:
    """Score the most frequent values, and those of the training picture with the nearest features of the tower."""
    train = sampled(usable_rows(catalog, encoder, "train")[0], NEIGHBOURS)
    truths = [truth_of(encoder.prompt, row) for row in train]
    own = writer.features(pictures)  # first: the memory has them
    task = progress.add_task("features of training pictures", total=len(train))
    looks = [row[catalog.card.roles.image] for row in train]
    theirs = writer.features(looks, lambda done: progress.update(task, completed=done))
    return {
        "majority": judge.score(metrics.majority(judge.kinds, truths, len(pictures))),
        "nearest_neighbour": judge.score(metrics.nearest_neighbour(truths, theirs, own)),
    }


def _judged(
    prompt: PromptSpec,
    ids: Sequence[str],
    pictures: Sequence[bytes],
    truths: Sequence[Row],
    free: Sequence[Completion],
    predictions: Sequence[Prediction],
) -> list[Judged]:
    """The rows as the report shows them."""
    return [
        Judged(
            id=name,
            truth=truth,
            prediction=prediction.values,
            answer=prediction.answer,
            error=prediction.error,
            picture=picture,
            confidence=prediction.confidence,
            interval=prediction.intervals,
            review=prediction.needs_review,
            free_answer=written.text,
            free_error=parse_answer(prompt, written.text).error,
        )
        for name, picture, truth, written, prediction in zip(ids, pictures, truths, free, predictions, strict=True)
    ]


def _trust(predictor: Predictor, judge: _Judge, predictions: Sequence[Prediction]) -> dict[str, Any]:
    """Whether confidences, intervals and the rule of review hold what they promise."""
    calibration = predictor.calibration
    if calibration is None:
        return {}
    values, confidence = [p.values for p in predictions], [p.confidence for p in predictions]
    intervals, targets = [p.intervals for p in predictions], predictor.targets
    return {
        "confidence": metrics.confidence_block(
            judge.kinds,
            judge.truths,
            values,
            confidence,
            intervals,
            calibration.products,
            calibration.interval,
            judge.spec.resamples,
            judge.products,
        ),
        "review": metrics.review_block(
            judge.kinds,
            judge.truths,
            values,
            confidence,
            targets,
            predictor.thresholds,
            products=judge.products,
        ),
    }


def _cost(free: Sequence[Completion], constrained: Sequence[Completion], seconds: float) -> dict[str, float]:
    """Costs of a picture, which took so many seconds; tokens and steps are means over the rows."""
    return {
        "tokens_in": float(np.mean([written.prompt_tokens for written in free])),
        "tokens_out": float(np.mean([len(written.pieces) for written in free])),
        "steps": float(np.mean([written.steps for written in free])),
        "constrained_steps": float(np.mean([written.steps for written in constrained])),
        "ms_per_picture": 1000 * seconds,
        "pictures_per_second": 1 / max(seconds, 1e-9),
    }
