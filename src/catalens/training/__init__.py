"""A recipe -> a run.

runs/demo/
  recipe.yaml     the resolved recipe
  versions.json   libraries, device, content hash of the catalogue
  left_out.jsonl  rows of train and validation that could not be used, and why; absent where there are none
  coverage.json   what trains, by part: parameters, modules with adapters
  metrics.jsonl   every logged figure, one line a step
  checkpoints/    the last ones and the best one
  best/           the best model or adapter, with processor, generation config and prompt
  README.md       model card
"""

import importlib.metadata
import json
import math
import platform
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table
from transformers import Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import EvalLoopOutput

from catalens.catalog.storage import Catalog
from catalens.checkpoint import compute_dtype, load_model, load_processor, save_best
from catalens.collation import Collator, Encoder, ProductDataset
from catalens.config import LOWER_IS_BETTER, Part, Recipe, dump_recipe
from catalens.errors import TrainingError
from catalens.examples import usable_rows
from catalens.model import Phi3VProcessor
from catalens.tracking import start_tracker
from catalens.training.callbacks import Bar, LastStep, Recorder, is_timing
from catalens.training.checkpoints import SafeCheckpoints, SaveEvery, last_checkpoint, step_of
from catalens.training.optimizers import make_optimizer
from catalens.training.parts import Coverage, GradientCheck, as_json, coverage, prepare_parts

Score = Callable[[Any, Phi3VProcessor], Mapping[str, float]]
"""Figures of a model on validation rows, such as `{"title.exact": 0.9}`; given by the caller."""


@dataclass(frozen=True)
class Trained:
    """What came out of a run."""

    folder: Path
    steps: int
    best_step: int
    figures: Mapping[str, float]
    """Validation figures of the best checkpoint."""
    seconds: float


def train(
    recipe: Recipe,
    folder: Path | str,
    score: Score | None = None,
    console: Console | None = None,
    resume: bool = False,
) -> Trained:
    """Train as the recipe says and leave a run in `folder`; with `resume` go on with the one that is there.

    A run that goes on ends, on a CPU, with the same weights to the bit as one that was never stopped. Raises
    TrainingError where the folder is taken, nothing trains, the loss is no number or the run cannot go on;
    CatalogError, CheckpointError, and TooManyBadRowsError where more than 5 % of the rows cannot be used.
    """
    folder, console = Path(folder), console or Console()
    if not resume and (folder.is_file() or (folder.is_dir() and any(folder.iterdir()))):
        raise TrainingError(
            f"{folder} exists already: choose another --out, remove it, or go on with it by --resume {folder}"
        )
    set_seed(recipe.training.seed)
    catalog = Catalog(recipe.catalog)
    processor = load_processor(recipe.model, recipe.num_crops)
    encoder = Encoder(processor, recipe.prompt)
    usable = {split: usable_rows(catalog, recipe.prompt, split, encoder.check) for split in ("train", "validation")}
    left_out = [{"split": split, "reason": reason} for split, (_, bad) in usable.items() for reason in bad]
    model = _trainable(recipe)
    covered = coverage(model, recipe.training)
    _describe(covered, {split: len(rows) for split, (rows, _) in usable.items()}, left_out, console)
    folder.mkdir(parents=True, exist_ok=True)
    versions = _versions(catalog)
    checkpoint = _resumed(folder, versions) if resume else None
    config = _explain(folder, recipe, versions, covered, left_out)
    tracker = start_tracker(recipe.tracking, folder, config)
    arguments = _arguments(recipe, folder, len(usable["train"][0]))
    often = SaveEvery(math.ceil(arguments.max_steps / recipe.training.checkpoints))
    cache = int(recipe.training.picture_cache_gb * 2**30)
    image = catalog.card.roles.image
    bar = Bar(console)
    try:
        trainer = _CatalensTrainer(
            recipe,
            None if score is None else lambda: score(model, processor),
            model=model,
            args=arguments,
            data_collator=Collator(encoder.tokenizer.pad_token_id),
            train_dataset=ProductDataset(usable["train"][0], encoder, image, cache),
            eval_dataset=ProductDataset(usable["validation"][0], encoder, image, cache_bytes=0),
            callbacks=[
                LastStep(),
                Recorder(folder / "metrics.jsonl", tracker),
                bar,
                GradientCheck(recipe.training),
                often,
            ],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        result = trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
        save_best(folder / "best", model, processor, recipe.prompt)
        trained = _outcome(trainer, folder, result.metrics["train_runtime"])
        tracker.summary({f"best/{name}": value for name, value in trained.figures.items()})
    finally:
        bar.progress.stop()
        tracker.finish()
    (folder / "README.md").write_text(_model_card(recipe, trained, catalog), encoding="utf-8")
    return trained


class _CatalensTrainer(SafeCheckpoints):
    """Trainer with the recipe's optimizer and with figures from free generation beside the validation loss."""

    def __init__(self, recipe: Recipe, score: Callable[[], Mapping[str, float]] | None, **kwargs: Any) -> None:
        self.recipe, self.score = recipe, score
        super().__init__(**kwargs)

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """AdamW, or Muon with AdamW."""
        if self.optimizer is None:
            trained: Any = model or self.model
            self.optimizer = make_optimizer(trained.named_parameters(), self.recipe.training)
        return self.optimizer

    def compute_loss(self, model: Any, inputs: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        """The model's own loss, its targets smoothed while it trains."""
        smoothing = self.recipe.training.label_smoothing
        smoothed = {**inputs, "label_smoothing": smoothing} if smoothing and model.training else dict(inputs)
        return super().compute_loss(model, smoothed, *args, **kwargs)

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Validation loss, then generation; TrainingError where the loss is no number."""
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        if not math.isfinite((output.metrics or {})[f"{metric_key_prefix}_loss"]):
            raise TrainingError(
                f"the validation loss at step {self.state.global_step} is no finite number: "
                "lower training.learning_rate or raise training.warmup"
            )
        figures = self.score() if self.score else {}
        metrics = {
            **(output.metrics or {}),
            **{f"{metric_key_prefix}_{name}": v for name, v in figures.items()},
        }
        return output._replace(metrics=metrics)


def _explain(
    folder: Path,
    recipe: Recipe,
    versions: Mapping[str, str],
    covered: Mapping[Part, Coverage],
    left_out: Sequence[Mapping[str, str]],
) -> dict[str, Any]:
    """Write what the run is made of into its folder; the same for the tracker."""
    (folder / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    (folder / "versions.json").write_text(json.dumps(versions, indent=2) + "\n", encoding="utf-8")
    (folder / "coverage.json").write_text(json.dumps(as_json(covered), indent=2) + "\n", encoding="utf-8")
    if left_out:
        lines = (json.dumps(row, ensure_ascii=False) + "\n" for row in left_out)
        (folder / "left_out.jsonl").write_text("".join(lines), encoding="utf-8")
    return {**recipe.model_dump(mode="json"), "versions": versions, "coverage": as_json(covered)}


def _resumed(folder: Path, versions: Mapping[str, str]) -> Path | None:
    """The checkpoint to go on from, None where none was written; what was logged after it is taken back."""
    if (folder / "best" / "prompt.json").is_file():
        raise TrainingError(f"{folder} is finished: there is nothing to go on with")
    known = json.loads((folder / "versions.json").read_text(encoding="utf-8"))
    if known["catalog"] != versions["catalog"]:
        raise TrainingError(f"the catalogue has changed since {folder} was begun: train anew")
    checkpoint = last_checkpoint(folder)
    step = step_of(checkpoint) if checkpoint else 0
    log = folder / "metrics.jsonl"
    if log.is_file():
        lines = [line for line in log.read_text(encoding="utf-8").splitlines() if line.endswith("}")]
        log.write_text("".join(f"{line}\n" for line in lines if json.loads(line)["step"] <= step), encoding="utf-8")
    return checkpoint


def _trainable(recipe: Recipe) -> Any:
    """The model with gradients where the recipe wants them."""
    spec = recipe.training
    adapters = spec.method != "full"
    dtype = compute_dtype() if adapters and spec.precision == "auto" else torch.float32  # full: fp32 under autocast
    model = prepare_parts(load_model(recipe.model, dtype, spec.attention, spec.method == "qlora"), spec)
    if spec.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    return model


def _arguments(recipe: Recipe, folder: Path, rows: int) -> TrainingArguments:
    spec = recipe.training
    steps = spec.max_steps or max(1, math.ceil(rows * spec.epochs / (spec.batch_size * spec.gradient_accumulation)))
    every = max(1, math.ceil(steps / spec.evaluations))
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=spec.batch_size,
        per_device_eval_batch_size=recipe.evaluation.batch_size,
        gradient_accumulation_steps=spec.gradient_accumulation,
        learning_rate=spec.learning_rate,
        lr_scheduler_type=spec.schedule,
        warmup_steps=spec.warmup,
        max_grad_norm=spec.max_grad_norm,
        bf16=compute_dtype() == torch.bfloat16 and spec.precision == "auto",
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=spec.keep_checkpoints,
        load_best_model_at_end=True,
        metric_for_best_model=f"eval_{spec.best_by}",
        greater_is_better=spec.best_by.rpartition(".")[2] not in LOWER_IS_BETTER,
        logging_steps=max(1, min(10, steps // 20)),
        logging_nan_inf_filter=False,  # a loss that is no number is shown as it is
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=True,
        seed=spec.seed,
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # torch's DataParallel would cut a batch between a row and its crops
    return arguments


def _outcome(trainer: Trainer, folder: Path, seconds: float) -> Trained:
    best = trainer.state.best_global_step or trainer.state.global_step
    entries = [entry for entry in trainer.state.log_history if entry["step"] == best and "eval_loss" in entry]
    figures = {
        name.removeprefix("eval_"): float(value)
        for name, value in entries[-1].items()
        if "eval_" in name and not is_timing(name)
    }
    return Trained(folder, trainer.state.global_step, best, figures, seconds)


def _describe(
    covered: Mapping[Part, Coverage],
    rows: Mapping[str, int],
    left_out: Sequence[Mapping[str, str]],
    console: Console,
) -> None:
    if left_out:
        console.print(f"[yellow]left out {len(left_out)} rows[/], such as {escape(left_out[0]['reason'])}")
    table = Table("part", "", *(Column(name, justify="right") for name in ("parameters", "train", "", "adapters")))
    table.box, table.title = box.SIMPLE_HEAD, ", ".join(f"{count} {split}" for split, count in rows.items()) + " rows"
    for part, entry in covered.items():
        share = f"{entry.trained / max(1, entry.parameters):.1%}"
        adapters = f"on {len(entry.adapted)} modules" if entry.adapted else ""
        table.add_row(part, entry.train, f"{entry.parameters:,}", f"{entry.trained:,}", share, adapters)
    console.print(table)


def _versions(catalog: Catalog) -> dict[str, str]:
    libraries = ("catalens", "torch", "transformers", "peft", "accelerate", "tokenizers", "pillow", "numpy")
    return {
        "python": sys.version.split()[0],
        **{name: importlib.metadata.version(name) for name in libraries},
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "catalog": catalog.card.content_hash,
    }


def _model_card(recipe: Recipe, trained: Trained, catalog: Catalog) -> str:
    tag = {"full": "full fine-tuning", "lora": "LoRA", "qlora": "QLoRA"}[recipe.training.method]
    figures = "\n".join(f"| {name} | {value:.4g} |" for name, value in trained.figures.items())
    fields = ", ".join(f"`{field.column}` as `{field.label}`" for field in recipe.prompt.fields)
    return f"""---
base_model: {recipe.model}
pipeline_tag: image-text-to-text
tags: [catalens, phi-3-vision, product-pictures]
---

# {trained.folder.name}

{recipe.model} ({tag}) trained by catalens to read {fields} from a product picture.

Catalogue: `{catalog.card.name}`, {catalog.card.rows["train"]} training rows, {catalog.card.content_hash}.
Best checkpoint: step {trained.best_step} of {trained.steps}, chosen by `{recipe.training.best_by}`.

| validation | |
|---|---:|
{figures}

Scores on rows that training never saw, beside baselines: `catalens evaluate {trained.folder}`.
Predictions: `catalens predict {trained.folder} photo.jpg`.
"""
