"""A finished run learns from its validation rows how far it may be believed: `calibration.json`.

    calibrate("runs/demo").threshold("title", 0.05)

`catalens train` ends with it, and `catalens evaluate` makes up for it where it is missing.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.progress import Progress

from catalens.catalog.storage import Catalog
from catalens.checkpoint import Run, load_run, processes
from catalens.collation import Encoder, usable_rows
from catalens.config import EvaluationSpec
from catalens.errors import CatalogError
from catalens.evaluation.rows import sampled, truth_of
from catalens.examples import parse_answer
from catalens.inference.calibration import Calibration, fit_calibration, load_calibration
from catalens.inference.generation import FeatureCache, Generator
from catalens.inference.predictor import Predictor, field_scores

PRODUCTS = 2000
"""Most products of the validation split that a calibration learns from."""


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
    """The predictor of a run as `catalens predict` would have it, calibrated where its validation rows are there.

    What the tower makes of pictures is shared through `memory`.
    """
    calibration = load_calibration(run.folder, run.prompt)
    if calibration is None or calibration.interval != spec.interval:
        try:
            calibration = _calibrated(run, spec, console)
        except CatalogError as error:
            console.print(f"[yellow]not calibrated:[/] {escape(str(error))}", highlight=False)
    longest, space = spec.max_new_tokens, run.space
    writer = Generator(run.model, run.processor, run.prompt, spec.batch_size, longest, space, cache=memory)
    targets = {field.column: spec.accept_error for field in run.prompt.fields}
    return Predictor(writer, run.prompt, calibration, targets)


def _calibrated(run: Run, spec: EvaluationSpec, console: Console) -> Calibration:
    """Write about the validation rows as `predict` does, and learn from it."""
    catalog = Catalog(run.recipe.catalog)
    if catalog.card.content_hash != run.versions.get("catalog"):
        raise CatalogError(f"{catalog.folder} has changed since {run.folder} was trained: train again")
    roles, encoder = catalog.card.roles, Encoder(run.processor, run.prompt)
    everything, _ = usable_rows(catalog, encoder, "validation")
    rows = sampled(one_a_product(everything, roles.id, roles.image), PRODUCTS)
    writer = Generator(run.model, run.processor, run.prompt, spec.batch_size, spec.max_new_tokens, run.space)
    with Progress(console=console) as progress:
        task = progress.add_task("calibrating", total=len(rows))
        written = writer.generate(
            [row[roles.image] for row in rows], lambda done: progress.update(task, completed=done)
        )
    predictions = [parse_answer(run.prompt, one.text).values for one in written]
    scores = [
        {} if values is None else field_scores(run.prompt, one)
        for values, one in zip(predictions, written, strict=True)
    ]
    truths = [truth_of(run.prompt, row) for row in rows]
    candidates = run.recipe.training.evaluations
    calibration = fit_calibration(run.prompt, truths, predictions, scores, spec.interval, candidates)
    known = {row[roles.id] for row in rows}
    calibration = calibration.model_copy(update={"rows": sum(row[roles.id] in known for row in everything)})
    if processes().is_main_process and spec.interval == run.recipe.evaluation.interval:
        calibration.save(run.folder)
    return calibration


def one_a_product(rows: Sequence[dict[str, Any]], id_column: str, image_column: str) -> list[dict[str, Any]]:
    """One row of each product, in their order: always the same one, by a lot that knows nothing of the answer."""
    chosen: dict[str, tuple[bytes, int]] = {}
    for place, row in enumerate(rows):
        name = str(row[id_column])
        lot = hashlib.sha256(name.encode() + b"\0" + row[image_column]).digest(), place
        chosen[name] = min(lot, chosen.get(name, lot))
    return [rows[place] for place in sorted(place for _, place in chosen.values())]
