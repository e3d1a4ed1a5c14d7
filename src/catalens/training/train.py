"""A recipe -> a run.

runs/demo/
  recipe.yaml     the resolved recipe
  versions.json   libraries, device, content hash of the catalogue
  setup.json      what was decided for the machine: processes, cached features, checkpointing
  left_out.jsonl  rows of train and validation that could not be used, and why; absent where there are none
  unwritable.jsonl  rows whose answers constrained decoding cannot write; absent where there are none
  coverage.json   what trains, by part: parameters, modules with adapters
  metrics.jsonl   every logged figure, one line a step
  checkpoints/    the last ones and the best one
  best/           the best model or adapter, with processor, generation config and prompt
  README.md       model card
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from accelerate.utils import reduce
from accelerate.utils.memory import clear_device_cache
from rich.console import Console
from rich.markup import escape
from transformers import EarlyStoppingCallback, set_seed

from catalens.catalog.storage import Catalog
from catalens.checkpoint import load_model, load_processor, processes, product_dtype, save_best, set_precision
from catalens.collation import Collator, DecodedPictures, Encoder
from catalens.config import Recipe
from catalens.errors import TrainingError
from catalens.examples import answer_space
from catalens.metrics import ImageUse
from catalens.model import Phi3VProcessor
from catalens.tracking import NoTracker, Tracker, start_tracker
from catalens.training.batching import Plan, PlannedBatches, plan_training, plan_validation
from catalens.training.callbacks import Bar, LastStep, Recorder, is_timing
from catalens.training.checkpoints import SaveEvery
from catalens.training.data import Data, fill_cache, load_data, loader_workers
from catalens.training.features import FeatureCache
from catalens.training.machine import (
    RunSetup,
    check_machine,
    estimator_setup,
    needs_checkpointing,
    trainer_arguments,
    use_liger,
)
from catalens.training.parts import GradientCheck, coverage, prepare_parts
from catalens.training.run_folder import explain, model_card, take_back, take_back_log, versions_of
from catalens.training.terminal import (
    IGNORES_IMAGE,
    IMAGE_USE,
    print_coverage,
    print_image_use,
    print_throughput,
)
from catalens.training.throughput import Meter, device_peak
from catalens.training.trainer import CatalensTrainer, Figures, Score
from catalens.training.unwritable import report_unwritable


@dataclass(frozen=True)
class Trained:
    """What came out of a run."""

    folder: Path
    steps: int
    best_step: int
    figures: Mapping[str, float]
    """Validation figures of the best checkpoint."""
    throughput: Mapping[str, float]
    """Samples and tokens a second, useful tokens, model FLOPs utilisation, peak memory, waiting for data."""
    image_use: ImageUse | None
    """What the check of the pictures found for the best checkpoint; None where nothing was generated."""
    seconds: float


@dataclass(frozen=True)
class _Prepared:
    """A run before its first step."""

    recipe: Recipe
    catalog: Catalog
    processor: Phi3VProcessor
    model: Any  # Phi3VForCausalLM, or one wrapped by PEFT
    data: Data
    plans: tuple[Plan, Plan]
    """Of training and validation."""
    setup: RunSetup
    meter: Meter


def train(
    recipe: Recipe,
    folder: Path | str,
    score: Score | None = None,
    console: Console | None = None,
    resume: bool = False,
) -> Trained:
    """Train as the recipe says and leave a run in `folder`; with `resume` go on with the one that is there.

    A run that goes on ends, on a CPU, with the same weights to the bit as one that was never stopped. Under torchrun
    every process calls this, and the first one writes. Raises TrainingError where the folder is taken, nothing
    trains, the loss is no number or the run cannot go on; RecipeError where this machine cannot do what the recipe
    says; CatalogError, CheckpointError, and TooManyBadRowsError where more than 5 % of the rows cannot be used.
    """
    state = processes()
    folder, console = Path(folder), (console or Console()) if state.is_main_process else Console(quiet=True)
    check_machine(recipe.training)
    if not resume and (folder.is_file() or (folder.is_dir() and any(folder.iterdir()))):
        raise TrainingError(
            f"{folder} exists already: choose another --out, remove it, or go on with it by --resume {folder}"
        )
    state.wait_for_everyone()  # before anything is written
    catalog = Catalog(recipe.catalog)
    versions = versions_of(catalog)
    sharded = recipe.training.fsdp and state.num_processes > 1
    checkpoint = take_back(folder, versions, sharded) if resume else None
    prepared = _prepare(recipe, catalog, RunSetup.load(folder) if resume else None, console)
    covered = coverage(prepared.model, recipe.training)
    print_coverage(covered, {split: len(rows) for split, rows in prepared.data.splits.items()}, console)
    if state.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        take_back_log(folder / "metrics.jsonl", checkpoint)
        prepared.setup.save(folder)
        config = explain(folder, recipe, versions, covered, prepared.data.left_out)
        report_unwritable(
            folder, recipe.prompt, prepared.processor, prepared.data.splits, catalog.card.roles.id, console
        )
        tracker = start_tracker(
            recipe.tracking, folder, config, lambda text: console.print(f"[yellow]{escape(text)}[/]")
        )
    else:
        tracker = NoTracker()
    state.wait_for_everyone()
    failed = True
    try:
        trained = _fit(prepared, folder, checkpoint, score, tracker, console)
        failed = False
    finally:
        tracker.finish(int(failed))
    del prepared
    clear_device_cache(garbage_collection=True)  # Trainer and model are a circle: nothing else frees them in time
    return trained


def _prepare(recipe: Recipe, catalog: Catalog, setup: RunSetup | None, console: Console) -> _Prepared:
    """Model, rows and plan; `setup` is the one of a run that goes on."""
    spec, count = recipe.training, processes().num_processes
    set_seed(spec.seed)
    set_precision(spec)
    processor = load_processor(recipe.model, recipe.num_crops)
    encoder = Encoder(processor, recipe.prompt)
    base, model = _trainable(recipe)
    pictures: DecodedPictures | FeatureCache = DecodedPictures(encoder, int(spec.picture_cache_gb * 2**30))
    wanted = spec.feature_cache if setup is None else setup.cached_features
    if wanted and spec.resolved_parts["vision"].train == "frozen":
        pictures = FeatureCache(base.model, pictures, product_dtype(spec))
    data = load_data(recipe, catalog, encoder, pictures, console)
    lengths = data.train.lengths()
    training = plan_training(lengths, spec, setup.processes if setup else count)
    validation = plan_validation(data.validation.lengths(), recipe.evaluation.batch_size, count)
    if isinstance(pictures, FeatureCache):
        views = sum(len(batch) for step in training for batch in step) + spec.evaluations * len(data.validation)
        if not fill_cache(pictures, data, views, wanted is True, console):
            pictures = pictures.decoded
            data.train.pictures = data.validation.pictures = pictures
    cached = isinstance(pictures, FeatureCache)
    shape = base.config
    if setup is None:
        rows = max(len(batch) for step in training for batch in step)
        crops = (processor.image_processor.num_crops or 1) + 1
        checkpointing = needs_checkpointing(spec, shape, max(lengths), crops, rows, cached)
        setup = RunSetup(count, cached, checkpointing)
    if setup.checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    meter = Meter(shape, estimator_setup(spec, cached), device_peak(base.device, product_dtype(spec)), count, _total)
    return _Prepared(recipe, catalog, processor, model, data, (training, validation), setup, meter)


def _trainable(recipe: Recipe) -> tuple[Any, Any]:
    """The model, and the same with gradients and adapters where the recipe wants them."""
    spec = recipe.training
    # weights that train are fp32 under autocast; FSDP2 wants one type for all
    frozen = spec.method != "full" and not spec.fsdp
    dtype = product_dtype(spec) if frozen else torch.float32
    base = load_model(recipe.model, dtype, spec.attention, spec.method == "qlora")
    if spec.liger:
        use_liger(base)
    return base, prepare_parts(base, spec)


def _fit(
    run: _Prepared, folder: Path, checkpoint: Path | None, score: Score | None, tracker: Tracker, console: Console
) -> Trained:
    """Train, keep the best model, check whether it uses its pictures, and say so everywhere."""
    spec, state = run.recipe.training, processes()
    batches = PlannedBatches(run.plans[0], state.process_index, state.num_processes)
    arguments = trainer_arguments(run.recipe, folder, run.plans[0], batches.accumulation)
    encoder, bar = run.data.train.encoder, Bar(console)
    trainer: Any = None

    def scored(model: Any) -> Figures:
        assert score is not None
        figures, shown = score(model, run.processor)
        tracker.examples(shown, trainer.state.global_step)
        return figures

    callbacks = [LastStep(), bar, GradientCheck(spec), SaveEvery(math.ceil(arguments.max_steps / spec.checkpoints))]
    if state.is_main_process:
        callbacks.insert(1, Recorder(folder / "metrics.jsonl", tracker))
    if spec.patience:
        callbacks.append(EarlyStoppingCallback(spec.patience))
    try:
        trainer = CatalensTrainer(
            spec,
            (run.data.train, run.data.validation),
            run.plans,
            run.meter,
            scored if score else None,
            loader_workers(spec.workers),
            model=run.model,
            args=arguments,
            data_collator=Collator(encoder.tokenizer.pad_token_id, spec.packing),
            eval_dataset=run.data.validation,
            callbacks=callbacks,
        )
        trainer.remove_callback(transformers.PrinterCallback)
        run.meter.start()
        result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    finally:
        bar.progress.stop()
    use = _image_use(run, trainer.model, score, tracker)
    trained = _outcome(trainer, folder, run.meter, use, result.metrics["train_runtime"])
    _finish(run, trainer, trained, tracker)
    console.print(
        f"best checkpoint: step {trained.best_step} of {trained.steps} by {spec.best_by}, {trained.seconds:.0f} s; "
        f"run in {folder}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    print_throughput(trained.throughput, console)
    if trained.image_use:
        print_image_use(trained.image_use, console)
    return trained


def _image_use(run: _Prepared, model: Any, score: Score | None, tracker: Tracker) -> ImageUse | None:
    """Check whether the best model uses its pictures."""
    if score is None:
        return None
    use, shuffled = score.image_use(model, run.processor)
    tracker.summary({"image_use": use, **{f"shuffled/{name}": f["value"] for name, f in shuffled.items()}})
    if use == "ignores_image":
        tracker.warn(IGNORES_IMAGE, IMAGE_USE[use])
    return use


def _outcome(trainer: CatalensTrainer, folder: Path, meter: Meter, use: ImageUse | None, seconds: float) -> Trained:
    best = trainer.state.best_global_step or trainer.state.global_step
    entries = [entry for entry in trainer.state.log_history if entry["step"] == best and "eval_loss" in entry]
    figures = {
        name.removeprefix("eval_"): float(value)
        for name, value in entries[-1].items()
        if "eval_" in name and "/" not in name and not is_timing(name)
    }
    return Trained(folder, trainer.state.global_step, best, figures, meter.overall(), use, seconds)


def _finish(run: _Prepared, trainer: CatalensTrainer, trained: Trained, tracker: Tracker) -> None:
    """Write the best model and its card, and hand both to the tracker."""
    model = trainer.accelerator.unwrap_model(trainer.model)
    weights: Any = trainer.accelerator.get_state_dict(trainer.model) if run.recipe.training.fsdp else None  # from all
    if not processes().is_main_process:
        return
    folder, catalog = trained.folder, run.catalog
    space = answer_space(run.recipe.prompt, run.data.train.rows)
    save_best(folder / "best", model, run.processor, run.recipe.prompt, space, weights)
    use = IMAGE_USE[trained.image_use] if trained.image_use else ""
    use = f"**{use}**" if trained.image_use == "ignores_image" else use
    steps = (trained.best_step, trained.steps)
    card = model_card(run.recipe, catalog, folder.name, trained.figures, steps, use)
    (folder / "README.md").write_text(card, encoding="utf-8")
    tracker.summary({f"best/{name}": value for name, value in {**trained.figures, **trained.throughput}.items()})
    about = {
        "step": trained.best_step,
        **trained.figures,
        "image_use": trained.image_use,
        "catalog": catalog.card.content_hash,
    }
    tracker.model(folder / "best", trained.best_step, about)


def _total(numbers: Sequence[float]) -> list[float]:
    """Sums over the processes."""
    state = processes()
    summed: Any = reduce(torch.tensor(numbers, dtype=torch.float64, device=state.device), "sum")
    return summed.tolist()
