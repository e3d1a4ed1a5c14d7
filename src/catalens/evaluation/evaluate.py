"""A run and a split -> metrics.json, predictions.parquet, report.html.

    {"format": 2, "rows": 347, "products": 300, "n": {"title": 347, "full_price": 312, ...}, "split": "test",
     "model":      {"parse_rate": F, "fields": {"title": {"exact": F, "similarity": F}, ...}},
     "constrained": {...},
     "confidence": {"calibrated_on": 167, "fields": {"title": {"ece": F, "bins": [...], ...}, ...}},
     "bias":       {"full_price": [{"from": null, "to": 97.0, "rows": 71, "bias": F}, ...]},
     "absent":     {"category3_code": {"word": "not visible", "rows": 31, "model": F, "constrained": F}},
     "review":     {"confidence": 0.95, "fields": {"title": {"target": 0.05, "threshold": 0.81, ...}, ...}},
     "baselines":  {"majority": {...}, "nearest_neighbour": {...}},
     "before":     {...},
     "image_use":  {"verdict": "uses_image", "margin": 0.05, "fields": {...}, "blank": {...}, "shuffled": {...}},
     "left_out":   ["test row 7 (BAG-01): picture cannot be decoded (broken data)"], ...}

with F = {"value": 0.91, "low": 0.88, "high": 0.94}, the 95 % interval over products, and `n` the rows that have a
truth of a field, which its figures are over; a field without any has no figures. Scores are of free generation,
but for `constrained`, the answers that `predict` and `serve` give, whose confidences are judged, and `before`, the
base model under the same constraints: left free, it would not know the form of an answer.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from catalens import metrics
from catalens.catalog.storage import Catalog, Roles
from catalens.checkpoint import Run, load_model, load_run, merged
from catalens.config import Recipe
from catalens.data import Encoder, Examples, Picture, Query, load_examples
from catalens.devices import compute_dtype, processes
from catalens.errors import CatalogError
from catalens.evaluation.baselines import majority, nearest_neighbour
from catalens.evaluation.calibrating import calibrate, confidence_block, review_block, run_predictor, sampled
from catalens.evaluation.image_use import blanked, image_use, partners
from catalens.examples import Answer, parse_answer, value_of
from catalens.features import FeatureCache
from catalens.inference.generation import Generator, constrained_generator
from catalens.inference.predictor import Predictor, Writer
from catalens.inference.records import Completion
from catalens.measures import class_f1
from catalens.metrics import Figure, ImageUse, Row
from catalens.pages.report import write_report
from catalens.predictions import FORMAT, Evaluation, ScoredRow, truth_of
from catalens.progress import Progress, bars, silent
from catalens.tracking import LoggedExample

__all__ = ["Evaluation", "ValidationScorer", "calibrate", "evaluate", "flatten", "validation_scorer"]

NEIGHBOURS = 20_000
"""Most training pictures among which the nearest one is looked for; at full size each takes 64 KiB."""


def evaluate(run: Path | str, recipe: Recipe | None = None, console: Console | None = None) -> Evaluation:
    """Score a run on a split and write `run/evaluation/`, or a folder beside it where the rows are not the recipe's.

    Under torchrun the processes share the pictures, and the first one writes.
    `recipe` replaces the run's own, its prompt apart. Raises CheckpointError where the run is not finished,
    CatalogError where its catalogue or the split is not there, or where the catalogue has changed since the training.
    """
    console = (console or Console()) if processes().is_main_process else Console(quiet=True)
    started = time.monotonic()
    loaded = load_run(run)
    recipe = recipe or loaded.recipe
    spec = recipe.evaluation
    catalog = _unchanged(loaded, recipe)
    encoder = Encoder(loaded.processor, loaded.prompt)
    usable = load_examples(catalog, encoder, spec.split)
    rows = ScoringRows(encoder, usable.roles, sampled(usable.rows, spec.rows), recipe)
    memory = FeatureCache(encoder)
    predictor = run_predictor(loaded, recipe, console, memory)
    model, size, longest = loaded.model, spec.batch_size, spec.max_new_tokens
    room = loaded.space.answer_tokens
    writer = Generator(model, loaded.processor, loaded.prompt, size, longest, cache=memory, answer_tokens=room)
    counts: dict[str, Any] = {"rows": len(rows.ids), "products": len(set(rows.ids))}
    counts["n"] = {name: len(metrics.rows_with(name, rows.truths)) for name in rows.kinds}
    result: dict[str, Any] = {"format": FORMAT} | counts | {"split": spec.split}
    result["number"] = recipe.number.model_dump()
    with bars(console) as progress:
        generating = time.monotonic()
        free = rows.answers(writer, "writing answers", progress)
        seconds = time.monotonic() - generating
        result["model"] = rows.score(rows.values(free))
        constrained = rows.answers(predictor.generator, "constrained answers", progress)
        scored = rows.scored(predictor, constrained, free)
        result["constrained"] = rows.score([row.values for row in scored])
        result |= _trust(predictor, rows, scored) | _absent(rows, rows.values(free), scored)
        result["bias"] = {
            name: metrics.bias_by_band(name, rows.truths, [row.values for row in scored], rows.ids, rows.resamples)
            for name, kind in rows.kinds.items()
            if kind == "number"
        }
        result["baselines"] = _baselines(catalog, encoder, rows, writer, progress)
        if loaded.prompt.inputs:  # constrained: written freely about grey pictures, few answers would parse
            alone = rows.answers(predictor.generator, "text alone", progress, rows.blanked())
            result["baselines"]["text_alone"] = rows.score(rows.values(alone))
        if spec.image_use:
            blank = rows.answers(writer, "blanked pictures", progress, rows.blanked())
            use = rows.image_use(writer, rows.values(free), progress)
            result["image_use"] = use | {"blank": rows.score(rows.values(blank))}
        if spec.before:
            result["before"] = _before(loaded, recipe, rows, progress)
    result["left_out"] = usable.bad
    result["noise_floor"] = catalog.card.figures
    result["seconds"] = {"generation": seconds, "evaluation": time.monotonic() - started}
    result["cost"] = _cost(free, constrained, seconds / len(set(rows.queries)))
    folder = loaded.folder / _folder_name(loaded.recipe, recipe)
    own = loaded.recipe.model_copy(update={"prompt": loaded.prompt})
    evaluation = Evaluation(loaded.folder.resolve().name, folder, own, result, scored)
    if processes().is_main_process:
        evaluation.save()
        write_report(folder / "report.html", evaluation.name, result, loaded.prompt.fields, scored)
    return evaluation


class ScoringRows:
    """Rows of a split, what engines write about them, and scores against their truths."""

    def __init__(self, encoder: Encoder, roles: Roles, rows: Sequence[Mapping[str, Any]], recipe: Recipe) -> None:
        self.prompt, self.end_token = (prompt := encoder.prompt), encoder.family.end_token
        self.resamples, self.within = recipe.evaluation.resamples, recipe.number.tolerance
        self.kinds = {field.column: field.kind for field in prompt.fields}
        self.ids: list[str] = [row[roles.id] for row in rows]
        self.queries: list[Query] = [row[roles.image] for row in rows]
        self.pictures = [query.pictures[0] for query in self.queries]
        """The first of each row."""
        self.truths = [truth_of(prompt, row) for row in rows]

    def answers(
        self, engine: Writer, stage: str, progress: Progress, queries: Sequence[Query] | None = None
    ) -> list[Completion]:
        """Write one answer a query, in their order."""
        queries = self.queries if queries is None else queries
        return engine.generate(queries, lambda done: progress(stage, done, len(queries)))

    def blanked(self) -> list[Query]:
        """The queries with grey pictures of the same sizes."""
        return [
            replace(query, pictures=tuple(blanked(one.size) for one in query.pictures if isinstance(one, Picture)))
            for query in self.queries
        ]

    def read(self, answers: Sequence[Completion]) -> list[Answer]:
        """Read each answer."""
        return [parse_answer(self.prompt, answer.text, self.end_token) for answer in answers]

    def values(self, answers: Sequence[Completion]) -> list[Row | None]:
        """Read the values of each answer, None where it does not parse."""
        return [answer.values for answer in self.read(answers)]

    def score(self, predictions: Sequence[Row | None]) -> dict[str, Any]:
        """Score values, None being a failed parse."""
        return metrics.score(self.kinds, self.truths, predictions, self.ids, self.resamples, within=self.within)

    def image_use(
        self, engine: Writer, predictions: Sequence[Row | None], progress: Progress = silent
    ) -> dict[str, Any]:
        """Test whether the pictures are used, and score what was read from other products' pictures.

        Of rows with several pictures `positions` tells it for each place.
        """
        given, most = partners(self.ids), max(len(query.pictures) for query in self.queries)
        others = [self.queries[i].pictures for i in given]
        if most == 1 and not self.prompt.inputs:
            shuffled = [predictions[i] for i in given]
        else:
            exchanged = [replace(one, pictures=theirs) for one, theirs in zip(self.queries, others, strict=True)]
            shuffled = self.values(self.answers(engine, "shuffled pictures", progress, exchanged))
        found = image_use(self.kinds, self.truths, predictions, shuffled, self.ids)
        places = [
            self._position_use(engine, predictions, place, progress) for place in range(most if most > 1 else 0)
        ]
        return found | {"shuffled": self.score(shuffled)} | ({"positions": places} if places else {})

    def _position_use(
        self, engine: Writer, predictions: Sequence[Row | None], place: int, progress: Progress
    ) -> dict[str, Any]:
        """Test the same by exchanging one of several pictures, among the rows that have one in that place."""
        rows = [i for i, query in enumerate(self.queries) if len(query.pictures) > max(1, place)]
        ids, exchanged = [self.ids[i] for i in rows], []
        for i, other in zip(rows, partners(ids), strict=True):
            pictures = [*self.queries[i].pictures]
            pictures[place] = self.queries[rows[other]].pictures[place]
            exchanged.append(replace(self.queries[i], pictures=tuple(pictures)))
        written = self.values(self.answers(engine, f"picture {place + 1} exchanged", progress, exchanged))
        truths, own = [self.truths[i] for i in rows], [predictions[i] for i in rows]
        return {"rows": len(rows)} | image_use(self.kinds, truths, own, written, ids)

    def scored(
        self, predictor: Predictor, written: Sequence[Completion], free: Sequence[Completion]
    ) -> list[ScoredRow]:
        """Put predictions beside the truths, and beside the answers that were written freely."""
        return [
            ScoredRow(
                **vars(predictor.judge(one)),
                id=self.ids[i],
                truth=self.truths[i],
                within=self.within,
                picture=self.pictures[i],
                further=self.queries[i].pictures[1:],
                free_answer=freely.text,
                free_error=read.error,
            )
            for i, (one, freely, read) in enumerate(zip(written, free, self.read(free), strict=True))
        ]


class ValidationScorer:
    """Figures of a model at each validation round of `training`, by free generation on the same validation rows."""

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe

    def __call__(self, model: Any, validation: Examples) -> tuple[dict[str, Figure], list[LoggedExample]]:
        """Figures by name, and the first rows with what was written about them."""
        with merged(model):
            rows, _, answers = self._write(model, validation)
        shown = [
            LoggedExample(rows.ids[i], bytes(rows.pictures[i]), rows.truths[i], answer.values, answer.error)
            for i, answer in enumerate(rows.read(answers[: self.recipe.tracking.examples]))
        ]
        return flatten(rows.score(rows.values(answers))), shown

    def image_use(self, model: Any, validation: Examples) -> tuple[ImageUse, dict[str, Figure]]:
        """Test whether the model uses the pictures; figures are of other products' pictures."""
        with merged(model):
            rows, writer, answers = self._write(model, validation)
            found = rows.image_use(writer, rows.values(answers))
        return found["verdict"], flatten(found["shuffled"])

    def _write(self, model: Any, validation: Examples) -> tuple["ScoringRows", Generator, list[Completion]]:
        encoder, spec, images = validation.encoder, self.recipe.evaluation, validation.images
        some = sampled(validation.rows, self.recipe.training.validation_rows)
        rows = ScoringRows(encoder, validation.roles, some, self.recipe)
        size, longest = spec.batch_size, spec.max_new_tokens
        room = max(validation.answer_lengths())
        writer = Generator(model, encoder.processor, encoder.prompt, size, longest, cache=images, answer_tokens=room)
        return rows, writer, writer.generate(rows.queries)


def validation_scorer(recipe: Recipe) -> ValidationScorer | None:
    """Make the scorer of a recipe, None where it wants the validation loss only."""
    return ValidationScorer(recipe) if recipe.training.validation_rows else None


def flatten(scores: Mapping[str, Any]) -> dict[str, Figure]:
    """Flatten a score to `{"parse_rate": {"value": 1.0, ...}, "title.exact": {"value": 0.9, ...}, ...}`."""
    flat = {name: scores[name] for name in metrics.metrics_of("answer")}
    for field, figures in scores["fields"].items():
        flat |= {f"{field}.{name}": figure for name, figure in figures.items()}
    return flat


def _unchanged(run: Run, recipe: Recipe) -> Catalog:
    """Open the catalogue to score on; CatalogError where the one of the training holds other rows by now."""
    catalog = Catalog(recipe.catalog)
    if recipe.catalog == run.recipe.catalog and catalog.card.content_hash != run.versions.get("catalog"):
        raise CatalogError(
            f"{catalog.folder} has changed since {run.folder} was trained, so its {recipe.evaluation.split} rows may "
            "have been trained on: train again, or name another catalogue with --set catalog=FOLDER"
        )
    return catalog


def _folder_name(own: Recipe, recipe: Recipe) -> str:
    """Name `evaluation` for the rows that the run's recipe names; others do not overwrite it."""
    name = "evaluation"
    if recipe.catalog != own.catalog:
        name += f"-{Path(recipe.catalog).name}"
    if recipe.evaluation.split != own.evaluation.split:
        name += f"-{recipe.evaluation.split}"
    if recipe.number != own.number:
        within = str(recipe.number.within).replace("%", "pct")
        name += f"-{recipe.number.estimate}-within-{within}"
    if recipe.evaluation.rows != own.evaluation.rows:
        name += f"-{recipe.evaluation.rows or 'all'}"
    return name


def _trust(predictor: Predictor, rows: ScoringRows, scored: Sequence[ScoredRow]) -> dict[str, Any]:
    """Measure whether confidences, intervals and the rule of review hold what they promise."""
    if (calibration := predictor.calibration) is None:
        return {}
    nominal = calibration.interval
    return {
        "confidence": confidence_block(
            rows.kinds, scored, calibration.products, nominal, rows.resamples, rows.within
        ),
        "review": review_block(rows.kinds, scored, predictor.targets, predictor.thresholds, rows.within),
    }


def _absent(rows: ScoringRows, free: Sequence[Row | None], scored: Sequence[ScoredRow]) -> dict[str, Any]:
    """Score how well the values that rows lack are told, of each field that has a word for them."""
    found = {}
    for field in rows.prompt.fields:
        if (word := value_of(field, {})) is None:
            continue
        column, truths = field.column, [truth[field.column] for truth in rows.truths]
        found[column] = {"word": word, "rows": truths.count(word)}
        for name, written in (("model", free), ("constrained", [row.values for row in scored])):
            values = [None if row is None else row[column] for row in written]
            if figure := class_f1(truths, values, word, rows.ids, rows.resamples):
                found[column][name] = figure
    return {"absent": found} if found else {}


def _baselines(
    catalog: Catalog, encoder: Encoder, rows: ScoringRows, writer: Generator, progress: Progress
) -> dict[str, Any]:
    train = sampled(load_examples(catalog, encoder, "train").rows, NEIGHBOURS)
    truths = [truth_of(encoder.prompt, row) for row in train]
    own = writer.features(rows.pictures)  # first: the memory has them
    theirs = writer.features(
        [row[catalog.card.roles.image].pictures[0] for row in train],
        lambda done: progress("features of training pictures", done, len(train)),
    )
    return {
        "majority": rows.score(majority(rows.kinds, truths, len(rows.ids))),
        "nearest_neighbour": rows.score(nearest_neighbour(truths, theirs, own)),
    }


def _before(run: Run, recipe: Recipe, rows: ScoringRows, progress: Progress) -> dict[str, Any]:
    run.model.to("cpu")  # a GPU need not hold both
    base = load_model(recipe.model, compute_dtype(recipe.training.precision), recipe.training.attention).eval()
    untrained = constrained_generator(replace(run, model=base), recipe.evaluation, recipe.number.estimate)
    return rows.score(rows.values(rows.answers(untrained, "as it was before training", progress)))


def _cost(free: Sequence[Completion], constrained: Sequence[Completion], seconds: float) -> dict[str, float]:
    """Measure the costs of a picture, which took so many seconds; tokens and steps are means over the rows."""
    return {
        "tokens_in": float(np.mean([written.prompt_tokens for written in free])),
        "tokens_out": float(np.mean([len(written.pieces) for written in free])),
        "steps": float(np.mean([written.steps for written in free])),
        "constrained_steps": float(np.mean([written.steps for written in constrained])),
        "ms_per_picture": 1000 * seconds,
        "pictures_per_second": 1 / max(seconds, 1e-9),
    }
