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
from catalens.config import EvaluationSpec
from catalens.data import Encoder, load_examples
from catalens.devices import processes
from catalens.errors import CatalogError
from catalens.examples import parse_answer
from catalens.features import FeatureCache
from catalens.inference.calibration import Calibration, load_calibration
from catalens.inference.fitting import fit_calibration
from catalens.inference.generation import Generator
from catalens.inference.predictor import Predictor, Writer, field_scores
from catalens.metrics import (
    acceptance,
    calibration_error,
    correctness,
    interval_coverage,
    reliability,
    review_outcome,
)
from catalens.predictions import ScoredRow, rows_with, truth_of
from catalens.progress import Progress, bars, silent

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
    return _calibrated(loaded, loaded.recipe.evaluation, console)


def run_predictor(run: Run, spec: EvaluationSpec, console: Console, memory: FeatureCache) -> Predictor:
    """Make the predictor of a run as `catalens predict` has it, calibrated where its validation rows are there.

    Vision features of the pictures are shared through `memory`.
    """
    calibration = load_calibration(run.folder, run.prompt)
    if calibration is None or calibration.interval != spec.interval:
        try:
            calibration = _calibrated(run, spec, console)
        except CatalogError as error:
            console.print(f"[yellow]not calibrated:[/] {escape(str(error))}", highlight=False)
    longest, space = spec.max_new_tokens, run.space
    writer = Generator(run.model, run.processor, run.prompt, spec.batch_size, longest, space, cache=memory)
    return Predictor(
        writer, run.prompt, calibration, {field.column: spec.accept_error for field in run.prompt.fields}
    )


def _calibrated(run: Run, spec: EvaluationSpec, console: Console) -> Calibration:
    """Learn a calibration, kept in the run's folder by the process that writes there."""
    writer = Generator(run.model, run.processor, run.prompt, spec.batch_size, spec.max_new_tokens, run.space)
    with bars(console) as progress:
        calibration = learn_calibration(run, writer, spec.interval, progress)
    if processes().is_main_process and spec.interval == run.recipe.evaluation.interval:
        calibration.save(run.folder)
    return calibration


def learn_calibration(run: Run, writer: Writer, interval: float, progress: Progress = silent) -> Calibration:
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
        {} if values is None else field_scores(run.prompt, one, end)
        for values, one in zip(predictions, written, strict=True)
    ]
    truths = [truth_of(run.prompt, row) for row in rows]
    candidates = run.recipe.training.num_evals
    calibration = fit_calibration(run.prompt, truths, predictions, scores, interval, candidates)
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
    kinds: Mapping[str, str], rows: Sequence[ScoredRow], calibrated_on: int, nominal: float, resamples: int = 1000
) -> dict[str, Any]:
    """Measure how far confidences and intervals can be believed.

    `{"calibrated_on": products, "fields": {name: {"ece": Figure, "bins": reliability, "risk_coverage": [...],
    "interval": {"nominal", "coverage": Figure, "width": median, as a share of the prediction}}}}`; `interval` is None
    where no row has one. A row without a confidence has 0, one without an interval is not covered. A field goes by
    the rows that have a truth of it, and is not among the fields where none has.
    """
    fields: dict[str, Any] = {}
    everything = rows
    for name, kind in kinds.items():
        if not (rows := rows_with(name, everything)):
            continue
        products = [row.id for row in rows]
        right, sure = _right(name, kind, rows), _confidences(name, rows)
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
        fields[name] = {
            "ece": calibration_error(sure, right, products, resamples=resamples),
            "bins": reliability(sure, right, products),
            "risk_coverage": [{"coverage": count / len(rows), "error": wrong / count} for _, count, wrong in steps],
            "interval": interval,
        }
    return {"calibrated_on": calibrated_on, "fields": fields}


def review_block(
    kinds: Mapping[str, str],
    rows: Sequence[ScoredRow],
    targets: Mapping[str, float],
    thresholds: Mapping[str, float | None],
) -> dict[str, Any]:
    """Measure what the thresholds of the review accept, for the columns of `targets`.

    `{"confidence": level, "fields": {name: {"target", "threshold", "accepted": Figure, "error": Figure | None}}}`,
    over the rows that have a truth; a field of which none has is not among them.
    """
    fields = {}
    for name, target in targets.items():
        if known := rows_with(name, rows):
            sure, right, products = _confidences(name, known), _right(name, kinds[name], known), [r.id for r in known]
            outcome = review_outcome(sure, right, thresholds[name], products)
            fields[name] = {"target": target, "threshold": thresholds[name]} | outcome
    return {"confidence": REVIEW_CONFIDENCE, "fields": fields}


def _right(name: str, kind: str, rows: Sequence[ScoredRow]) -> np.ndarray:
    return correctness(name, kind, [row.truth for row in rows], [row.values for row in rows])


def _confidences(name: str, rows: Sequence[ScoredRow]) -> np.ndarray:
    return np.array([row.confidence.get(name, 0.0) for row in rows], float)
