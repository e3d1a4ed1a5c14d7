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

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate.utils import reduce
from accelerate.utils.memory import clear_device_cache
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Column, Table
from transformers import set_seed

from catalens.catalog.storage import Catalog
from catalens.checkpoint import base_id, load_model, load_processor, save_best, weights_hash
from catalens.config import Part, Recipe, TrainingSpec
from catalens.data import Encoder
from catalens.devices import AMPERE, compute_dtype, eager, gpu_memory, processes, set_precision
from catalens.errors import RecipeError, TrainingError
from catalens.estimates import Setup, sample_flops
from catalens.examples import answer_space
from catalens.features import FeatureCache, fill_where_it_pays
from catalens.metrics import ImageUse
from catalens.model import family_of
from catalens.progress import bars
from catalens.tracking import NoTracker, Tracker, start_tracker
from catalens.training.batches import plan_training, plan_validation
from catalens.training.fitting import estimated_fit
from catalens.training.loop import Loop, Score
from catalens.training.modules import Coverage, coverage, prepare_parts
from catalens.training.run import (
    PreparedRun,
    RunSetup,
    cut_log,
    load_data,
    model_card,
    report_unwritable,
    resume_from,
    versions_of,
    write_metadata,
)
from catalens.training.throughput import Meter, device_peak

PICTURE_CACHE = 2 * 2**30
"""Bytes of decoded pictures that are kept; the others are decoded in every epoch."""
IMAGE_USE: Mapping[ImageUse, str] = {
    "uses_image": "Its score on the validation sample falls with other products' pictures: it uses the pictures.",
    "ignores_image": "Its score on the validation sample does not fall with other products' pictures: it ignores "
    "them. See that pictures and texts belong together, train the projector or longer, or take more rows.",
    "undecided": "The validation sample cannot tell whether it uses the pictures: `catalens evaluate` asks all test "
    "rows, and a larger training.validation_rows asks more here.",
}
"""Verdicts of the check of the pictures, in words."""

IGNORES_IMAGE = "the pictures are ignored"
"""Title of the warning."""


@dataclass(frozen=True)
class Trained:
    """Result of a run."""

    folder: Path
    steps: int
    best_step: int
    figures: Mapping[str, float]
    """Validation figures of the best checkpoint."""
    throughput: Mapping[str, float]
    """Samples and tokens a second, useful tokens, model FLOPs utilisation, peak memory, waiting for data; seconds to
    the first step, and those of compiling."""
    image_use: ImageUse | None
    """Verdict of the check of the pictures for the best checkpoint; None where nothing was generated."""
    seconds: float


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
    says; CatalogError, CheckpointError, PromptError where no training row has a value of a field, and
    TooManyBadRowsError where more than 5 % of the rows cannot be used.
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
    if recipe.training.method != "full":  # an adapter is of use beside these weights only
        versions["base"] = weights_hash(recipe.model)
    sharded = recipe.training.fsdp and state.num_processes > 1
    checkpoint = resume_from(folder, versions, sharded) if resume else None
    run = prepare_run(recipe, catalog, RunSetup.load(folder) if resume else None, console)
    covered = coverage(run.model, recipe.training)
    print_coverage(covered, {split: len(rows) for split, rows in run.data.items()}, console)
    tracker: Tracker = NoTracker()
    if state.is_main_process:
        folder.mkdir(parents=True, exist_ok=True)
        cut_log(folder / "metrics.jsonl", checkpoint)
        config = write_metadata(folder, run, versions, covered)
        report_unwritable(folder, run)
        tracker = start_tracker(
            recipe.tracking, folder, config, lambda text: console.print(f"[yellow]{escape(text)}[/]")
        )
    state.wait_for_everyone()
    failed = True
    try:
        with bars(console) as progress:
            loop = Loop(run, folder, checkpoint, score, tracker, progress)
            seconds = loop.fit()
        trained = _finish(run, loop, seconds)
        failed = False
    finally:
        tracker.finish(int(failed))
    del run, loop
    clear_device_cache(garbage_collection=True)  # the model is a circle: nothing else frees it in time
    return trained


def prepare_run(recipe: Recipe, catalog: Catalog, setup: RunSetup | None, console: Console) -> PreparedRun:
    """Load model and rows and plan the steps; `setup` is the one of a run that goes on."""
    spec, count, started = recipe.training, processes().num_processes, time.perf_counter()
    set_seed(spec.seed)
    set_precision(spec.precision)
    encoder = Encoder(load_processor(recipe.model, recipe.num_crops), recipe.prompt)
    base, model = _trainable(recipe)
    images = FeatureCache(encoder, PICTURE_CACHE, features=False)
    wanted = spec.feature_cache if setup is None else setup.cached_features
    if wanted and spec.resolved_parts["vision"].train == "frozen":
        images.open(base, compute_dtype(spec.precision))
    data = load_data(catalog, encoder, images, spec.number_smoothing, console)
    schema = answer_space(recipe.prompt, data["train"].rows, data["train"].answer_lengths())
    lengths, tiles = data["train"].lengths(), data["train"].tiles()
    training = plan_training(lengths, spec, setup.processes if setup else count)
    validation = plan_validation(data["validation"].lengths(), recipe.evaluation.batch_size, count)
    if images.features:
        views = sum(len(batch) for step in training for batch in step) + spec.num_evals * len(data["validation"])
        pictures = list(dict.fromkeys(one for rows in data.values() for one in rows.pictures))
        fill_where_it_pays(images, pictures, views, wanted is True, console)
    cached, sizes = images.features, encoder.family.sizes(base.config)
    work = Setup.from_spec(spec, cached_features=cached)
    if setup is None:
        rows = max(len(batch) for step in training for batch in step)
        largest = (rows, max(lengths), max(tiles))
        passes, checkpointing = estimated_fit(spec, work, sizes, largest, gpu_memory())
        setup = RunSetup(count, cached, checkpointing, passes)
    if setup.checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    flops = sample_flops(sizes, work, np.array(lengths, float), np.array(tiles, float)).tolist()
    meter = Meter(lengths, flops, device_peak(base.device, compute_dtype(spec.precision)), count, _total)
    plans = (training, validation)
    return PreparedRun(recipe, catalog, encoder, model, data, schema, plans, setup, started, meter, console)


def _trainable(recipe: Recipe) -> tuple[Any, Any]:
    """The model, and the same with gradients and adapters where the recipe wants them."""
    spec = recipe.training
    # weights that train are fp32 under autocast, unless the recipe says otherwise; FSDP2 wants one type for all
    narrow = (spec.method != "full" or spec.weights == "bf16") and not spec.fsdp
    dtype = compute_dtype(spec.precision) if narrow else torch.float32
    base = load_model(recipe.model, dtype, spec.attention, spec.method == "qlora")
    if spec.attention == "auto":
        base.set_attn_implementation(family_of(base.config.model_type).training_attention)
    return base, prepare_parts(base, spec)


def check_machine(spec: TrainingSpec) -> None:
    """Raise RecipeError where the recipe asks for what this machine has not."""
    if spec.weights == "bf16" and compute_dtype(spec.precision) != torch.bfloat16:
        raise RecipeError("training.weights is bf16, but products are fp32 here: set training.precision=bf16")
    if not torch.cuda.is_available():
        return
    if spec.precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise RecipeError("training.precision is bf16, which this GPU does not compute: set it to auto or fp32")
    if spec.attention == "flash_attention_2" and torch.cuda.get_device_capability() < AMPERE:
        raise RecipeError(
            "training.attention is flash_attention_2, which is not for this GPU: set it to auto or sdpa"
        )


def _finish(run: PreparedRun, loop: Loop, seconds: float) -> Trained:
    """Check whether the best model uses its pictures, write it with its card, and say so everywhere."""
    use: ImageUse | None = None
    folder, state, tracker, console = loop.folder, loop.state, loop.tracker, run.console
    if loop.score:
        with eager(loop.model):
            use, shuffled = loop.score.image_use(loop.model, run.data["validation"])
        tracker.summary({"image_use": use, **{f"shuffled/{name}": f["value"] for name, f in shuffled.items()}})
        if use == "ignores_image":
            tracker.warn(IGNORES_IMAGE, IMAGE_USE[use])
    best = state.best_step or state.step
    speed = {**run.meter.overall(), **loop.beginning}
    trained = Trained(folder, state.step, best, state.figures, speed, use, seconds)
    model, weights = loop.training.whole()
    if processes().is_main_process:
        base = base_id(run.recipe.model) if run.recipe.training.method != "full" else None
        save_best(folder / "best", model, run.encoder.processor, run.recipe.prompt, run.schema, weights, base)
        sentence = IMAGE_USE[use] if use else ""
        sentence = f"**{sentence}**" if use == "ignores_image" else sentence
        card = model_card(run, folder.name, trained.figures, (best, state.step), sentence)
        (folder / "README.md").write_text(card, encoding="utf-8")
        tracker.summary({f"best/{name}": value for name, value in {**trained.figures, **trained.throughput}.items()})
        about = {"step": best, **trained.figures, "image_use": use, "catalog": run.catalog.card.content_hash}
        tracker.model(folder / "best", best, about)
    console.print(
        f"best checkpoint: step {best} of {state.step} by {run.recipe.training.metric_for_best_model}, "
        f"{seconds:.0f} s; run in {folder}",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    print_throughput(trained.throughput, console)
    if use:
        print_image_use(use, console)
    return trained


def _total(numbers: Sequence[float]) -> list[float]:
    state = processes()
    summed: Any = reduce(torch.tensor(numbers, dtype=torch.float64, device=state.device), "sum")
    return summed.tolist()


def print_coverage(covered: Mapping[Part, Coverage], rows: Mapping[str, int], console: Console) -> None:
    """Print what trains, by part."""
    table = Table("part", "", *(Column(name, justify="right") for name in ("parameters", "train", "", "adapters")))
    table.box, table.title = box.SIMPLE_HEAD, ", ".join(f"{count} {split}" for split, count in rows.items()) + " rows"
    for part, entry in covered.items():
        share = f"{entry.trained / max(1, entry.parameters):.1%}"
        adapters = f"on {len(entry.adapted)} modules" if entry.adapted else ""
        table.add_row(part, entry.train, f"{entry.parameters:,}", f"{entry.trained:,}", share, adapters)
    console.print(table)


def print_throughput(speed: Mapping[str, float], console: Console) -> None:
    """Print how fast a run went, in one line."""
    if "mfu" in speed:
        console.print(
            f"{speed['samples_per_second']:.3g} samples/s, {speed['tokens_per_second']:,.0f} tokens/s, "
            f"{speed['useful_tokens']:.0%} of the positions useful, "
            f"model FLOPs utilisation {speed['mfu']:.0%}, peak memory {speed['peak_memory_gb']:.1f} GB, "
            f"{speed['waiting_for_data']:.0%} of the time waiting for data, "
            f"first step after {speed['seconds_to_first_step']:.2g} s"
            + (f", {speed['compile_seconds']:.2g} s compiling" if "compile_seconds" in speed else ""),
            highlight=False,
            soft_wrap=True,
        )


def print_image_use(found: ImageUse, console: Console) -> None:
    """Print whether a model uses its pictures; loudly where it was shown to ignore them."""
    if found == "ignores_image":
        console.print(Panel(f"[bold]{IMAGE_USE[found]}[/]", title=IGNORES_IMAGE, style="red"))
    else:
        console.print(IMAGE_USE[found], highlight=False, markup=False, soft_wrap=True)
