"""A finished run learns from its validation rows how far it may be believed, and is held to it on other rows.

    calibrate("runs/demo").threshold("title", 0.05)     learn, and keep it as calibration.json
    confidence_block(kinds, rows, 158, 0.9)             hold confidences and intervals to what they promise
    review_block(kinds, rows, targets, thresholds)      hold the rule of review to it

`catalens train` ends with the first, and `catalens evaluate` makes up for it where it is missing.
"""

import hashlib
import math
import random
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.markup import escape

from catalens.catalog.storage import Catalog
from catalens.checkpoint import Run, load_run
from catalens.confidence import acceptance, calibration_error, crps, interval_coverage, reliability, review_outcome
from catalens.config import EvaluationSpec, NumberSpec, Recipe
from catalens.data import Encoder, load_examples
from catalens.devices import processes
from catalens.distributions import TOP
from catalens.errors import CatalogError
from catalens.examples import parse_answer
from catalens.features import FeatureCache
from catalens.inference.calibration import Calibration, load_calibration
from catalens.inference.fitting import fit_calibration
from catalens.inference.generation import constrained_generator
from catalens.inference.predictor import Predictor, Writer, field_scores
from catalens.intervals import bootstrap, mean, share
from catalens.metrics import correctness
from catalens.predictions import ScoredRow, rows_with, truth_of
from catalens.progress import Progress, bars, silent
from catalens.tolerance import TEN_PER_CENT, Tolerance

PRODUCTS = 2000
"""Most products of the validation split that a calibration learns from."""
POINTS = 100
"""Most points of a risk-coverage curve."""
REVIEW_CONFIDENCE = 0.95
"""Of the promise that a threshold of the review makes."""


def calibrate(run: Path | str, console: Console | None = None) -> Calibration:
    """Calibrate a finished run anew and keep what was learned in its folder.

    Under torchrun the processes share the pictures. Raises CheckpointError where the run is not finished,
    CatalogError where its catalogue is not there, or was changed since.
    """
    state = processes()
    state.wait_for_everyone()  # the first one has just written the model
    console = (console or Console()) if state.is_main_process else Console(quiet=True)
    loaded = load_run(run)
    return _calibrated(loaded, loaded.recipe.evaluation, loaded.recipe.number, console)


def run_predictor(run: Run, recipe: Recipe, console: Console, memory: FeatureCache) -> Predictor:
    """Make the predictor of a run as `catalens predict` has it, calibrated where its validation rows are there.

    Vision features of the pictures are shared through `memory`.
    """
    spec, number = recipe.evaluation, recipe.number
    calibration = load_calibration(run.folder, run.prompt)
    if calibration is None or (calibration.interval, calibration.number) != (spec.interval, number):
        try:
            calibration = _calibrated(run, spec, number, console)
        except CatalogError as error:
            console.print(f"[yellow]not calibrated:[/] {escape(str(error))}", highlight=False)
    targets = spec.bearable(field.column for field in run.prompt.fields)
    writer = constrained_generator(run, spec, number.estimate, memory)
    return Predictor(writer, run.prompt, calibration, targets, number)


def _calibrated(run: Run, spec: EvaluationSpec, number: NumberSpec, console: Console) -> Calibration:
    """Learn a calibration, kept in the run's folder by the process that writes there where it is the run's own."""
    with bars(console) as progress:
        writer = constrained_generator(run, spec, number.estimate)
        calibration = learn_calibration(run, writer, spec.interval, number, progress)
    own = run.recipe.evaluation.interval, run.recipe.number
    if processes().is_main_process and (spec.interval, number) == own:
        calibration.save(run.folder)
    return calibration


def learn_calibration(
    run: Run, writer: Writer, interval: float, number: NumberSpec, progress: Progress = silent
) -> Calibration:
    """Write about the validation rows of a run as `predict` does, and learn from it.

    Raises CatalogError where its catalogue is not there, or was changed since.
    """
    catalog = Catalog(run.recipe.catalog)
    if catalog.card.content_hash != run.versions.get("catalog"):
        raise CatalogError(f"{catalog.folder} has changed since {run.folder} was trained: train again")
    roles, encoder = catalog.card.roles, Encoder(run.processor, run.prompt)
    everything = load_examples(catalog, encoder, "validation").rows
    rows = sampled(one_a_product(everything, roles.id, roles.image), PRODUCTS)
    queries = [row[roles.image] for row in rows]
    written = writer.generate(queries, lambda done: progress("calibrating", done, len(rows)))
    end = encoder.family.end_token
    predictions = [parse_answer(run.prompt, one.text, end).values for one in written]
    scores = [
        {} if values is None else field_scores(run.prompt, one, end, number.tolerance)
        for values, one in zip(predictions, written, strict=True)
    ]
    truths = [truth_of(run.prompt, row) for row in rows]
    candidates = run.recipe.training.num_evals
    spreads = [one.distributions for one in written]
    calibration = fit_calibration(run.prompt, truths, predictions, scores, interval, candidates, spreads, number)
    known = {row[roles.id] for row in rows}
    return calibration.model_copy(update={"rows": sum(row[roles.id] in known for row in everything)})


def sampled(rows: list[dict[str, Any]], most: int | None) -> list[dict[str, Any]]:
    """Draw at most so many rows, always the same ones, in their order: the first rows may all be of one kind."""
    if most is None or most >= len(rows):
        return rows
    return [rows[i] for i in sorted(random.Random(0).sample(range(len(rows)), most))]


def one_a_product(rows: Sequence[dict[str, Any]], id_column: str, image_column: str) -> list[dict[str, Any]]:
    """Draw one row of each product, in their order: always the same one, whatever was answered."""
    counts = Counter(str(row[id_column]) for row in rows)
    chosen: dict[str, tuple[bytes, int]] = {}
    for index, row in enumerate(rows):
        name = str(row[id_column])
        picture = bytes(row[image_column]) if counts[name] > 1 else b""
        lot = hashlib.sha256(name.encode() + b"\0" + picture).digest(), index
        chosen[name] = min(lot, chosen.get(name, lot))
    return [rows[index] for index in sorted(index for _, index in chosen.values())]


def confidence_block(
    kinds: Mapping[str, str],
    rows: Sequence[ScoredRow],
    calibrated_on: int,
    nominal: float,
    resamples: int = 1000,
    within: Tolerance = TEN_PER_CENT,
) -> dict[str, Any]:
    """Measure how far confidences and intervals can be believed.

    `{"calibrated_on": products, "fields": {name: {"crps" or "top_3": Figure, "ece": Figure, "bins": reliability,
    "risk_coverage": [...], "interval": {"nominal", "coverage": Figure, "width": median, a share of the number}}}}`;
    `interval` is None where no row has one. A row without a confidence has 0, one without an interval is not covered.
    A field goes by the rows that have a truth of it, and is not among the fields where none has.
    """
    fields: dict[str, Any] = {}
    everything = rows
    for name, kind in kinds.items():
        if not (rows := rows_with(name, everything)):
            continue
        products = [row.id for row in rows]
        right, sure = _right(name, kind, rows, within), _confidences(name, rows)
        interval = None
        if any(name in row.intervals for row in rows):
            lows, highs = np.array([row.intervals.get(name, (math.nan, math.nan)) for row in rows], float).T
            y_pred = np.array(
                [row.values[name] if row.values and row.values[name] else math.nan for row in rows], float
            )
            coverage = interval_coverage(np.array([row.truth[name] for row in rows], float), lows, highs, products)
            widths = (highs - lows) / abs(y_pred)
            finite = widths[np.isfinite(widths)]
            width = float(np.median(finite)) if len(finite) else None
            interval = {"nominal": nominal, "coverage": coverage, "width": width}
        steps = acceptance(sure, right, POINTS)
        fields[name] = _spread(name, kind, rows, resamples) | {
            "ece": calibration_error(sure, right, products, resamples=resamples),
            "bins": reliability(sure, right, products),
            "risk_coverage": [{"coverage": count / len(rows), "error": wrong / count} for _, count, wrong in steps],
            "interval": interval,
        }
    return {"calibrated_on": calibrated_on, "fields": fields}


def _spread(name: str, kind: str, rows: Sequence[ScoredRow], resamples: int) -> dict[str, Any]:
    """Measure the distributions of a column: CRPS of a number, in its unit, or how often the best three hold a truth.

    Over the rows that have one; nothing where none has.
    """
    known = [row for row in rows if name in row.distributions]
    products = [row.id for row in known]
    if not known:
        return {}
    if kind != "number":
        held = [any(row.truth[name] == value for value, _ in row.distributions[name].top()) for row in known]
        return {f"top_{TOP}": share(np.array(held), products)}
    scores = np.array(
        [
            crps(row.truth[name], np.array(one.values, float), np.array(one.probabilities))
            for row in known
            for one in (row.distributions[name],)
        ]
    )
    return {"crps": bootstrap({"crps": mean(scores)}, len(known), products, resamples)["crps"]}


def review_block(
    kinds: Mapping[str, str],
    rows: Sequence[ScoredRow],
    targets: Mapping[str, float],
    thresholds: Mapping[str, float | None],
    within: Tolerance = TEN_PER_CENT,
) -> dict[str, Any]:
    """Measure what the thresholds of the review accept, for the columns of `targets`.

    `{"confidence": level, "fields": {name: {"target", "threshold", "accepted": Figure, "error": Figure | None,
    "unchanged": Figure | None}}}`, over the rows that have a truth; a field of which none has is not among them.
    """
    fields = {}
    for name, target in targets.items():
        if known := rows_with(name, rows):
            sure, right = _confidences(name, known), _right(name, kinds[name], known, within)
            outcome = review_outcome(sure, right, thresholds[name], [row.id for row in known])
            fields[name] = {"target": target, "threshold": thresholds[name]} | outcome
    return {"confidence": REVIEW_CONFIDENCE, "fields": fields}


def _right(name: str, kind: str, rows: Sequence[ScoredRow], within: Tolerance) -> np.ndarray:
    return correctness(name, kind, [row.truth for row in rows], [row.values for row in rows], within)


def _confidences(name: str, rows: Sequence[ScoredRow]) -> np.ndarray:
    return np.array([row.confidence.get(name, 0.0) for row in rows], float)
