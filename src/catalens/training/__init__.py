"""A recipe -> a run.

runs/demo/
  recipe.yaml     the resolved recipe
  versions.json   libraries, device, content hash of the catalogue
  left_out.jsonl  training rows that could not be used, with the reason; absent where there are none
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
from rich.console import Console
from transformers import Trainer, TrainingArguments, set_seed
from transformers.trainer_utils import EvalLoopOutput

from catalens.catalog.storage import Catalog
from catalens.checkpoint import add_lora, load_model, load_processor, save_best
from catalens.collation import Collator, Encoder, ProductDataset
from catalens.config import Recipe, dump_recipe
from catalens.errors import PictureError, PromptError, TooManyBadRowsError, TrainingError
from catalens.model import Phi3VProcessor, unused_parameter_names
from catalens.tracking import start_tracker
from catalens.training.callbacks import Bar, LastStep, Recorder, is_timing
from catalens.training.optimizers import make_optimizer

Score = Callable[[Any, Phi3VProcessor], Mapping[str, float]]
"""Figures of a model on validation rows, such as `{"title.exact": 0.9}`; given by the caller."""

MAX_BAD = 0.05
VISION = "vision_embed_tokens.img_processor"


@dataclass(frozen=True)
class Trained:
    """What came out of a run."""

    folder: Path
    steps: int
    best_step: int
    figures: Mapping[str, float]
    """Validation figures of the best checkpoint."""
    seconds: float


def train(recipe: Recipe, folder: Path | str, score: Score | None = None, console: Console | None = None) -> Trained:
    """Train as the recipe says and leave a run in `folder`.

    Raises TrainingError where the folder is taken, CatalogError, CheckpointError, and TooManyBadRowsError where more
    than 5 % of the rows cannot be used.
    """
    folder, console = Path(folder), console or Console()
    if folder.exists() and any(folder.iterdir()):
        raise TrainingError(f"{folder} exists already: choose another --out, or remove it first")
    set_seed(recipe.training.seed)
    catalog = Catalog(recipe.catalog)
    processor = load_processor(recipe.model, recipe.num_crops)
    encoder = Encoder(processor, recipe.prompt)
    cache = int(recipe.training.picture_cache_gb * 2**30)
    datasets = {
        split: ProductDataset(
            _usable(catalog, split, encoder, folder, console), encoder, catalog.card.roles.image, cache
        )
        for split in ("train", "validation")
    }
    model = _trainable(recipe)
    _describe(model, datasets, console)
    versions = _versions(catalog)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "recipe.yaml").write_text(dump_recipe(recipe), encoding="utf-8")
    (folder / "versions.json").write_text(json.dumps(versions, indent=2) + "\n", encoding="utf-8")
    tracker = start_tracker(recipe.tracking, folder, {**recipe.model_dump(mode="json"), "versions": versions})
    try:
        trainer = _CatalensTrainer(
            recipe,
            None if score is None else lambda: score(model, processor),
            model=model,
            args=_arguments(recipe, folder, len(datasets["train"])),
            data_collator=Collator(encoder.tokenizer.pad_token_id),
            train_dataset=datasets["train"],
            eval_dataset=datasets["validation"],
            callbacks=[LastStep(), Recorder(folder / "metrics.jsonl", tracker), Bar(console)],
        )
        trainer.remove_callback(transformers.PrinterCallback)
        result = trainer.train()
        save_best(folder / "best", model, processor, recipe.prompt)
        trained = _outcome(trainer, folder, result.metrics["train_runtime"])
        tracker.summary({f"best/{name}": value for name, value in trained.figures.items()})
    finally:
        tracker.finish()
    (folder / "README.md").write_text(_model_card(recipe, trained, catalog), encoding="utf-8")
    return trained


class _CatalensTrainer(Trainer):
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

    def evaluation_loop(self, *args: Any, metric_key_prefix: str = "eval", **kwargs: Any) -> EvalLoopOutput:
        """Validation loss, then generation."""
        output = super().evaluation_loop(*args, metric_key_prefix=metric_key_prefix, **kwargs)
        figures = self.score() if self.score else {}
        metrics = {
            **(output.metrics or {}),
            **{f"{metric_key_prefix}_{name}": v for name, v in figures.items()},
        }
        return output._replace(metrics=metrics)


def _usable(
    catalog: Catalog, split: str, encoder: Encoder, folder: Path, console: Console
) -> list[Mapping[str, Any]]:
    """Rows of a split whose text and picture can be used; the others are named on the console and in the run."""
    roles = catalog.card.roles
    rows = catalog.rows(split, [roles.image, roles.id, *(field.column for field in encoder.prompt.fields)])
    good: list[Mapping[str, Any]] = []
    bad: list[str] = []
    for number, row in enumerate(rows, start=1):
        try:
            encoder.check(row, f"{split} row {number} ({row[roles.id]})")
            good.append(row)
        except (PromptError, PictureError) as error:
            bad.append(str(error))
    if len(bad) > MAX_BAD * len(rows):
        raise TooManyBadRowsError(f"{len(bad)} of {len(rows)} {split} rows cannot be used: {'; '.join(bad[:3])}")
    if bad:
        console.print(f"[yellow]left out {len(bad)} of {len(rows)} {split} rows[/], such as {bad[0]}")
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / "left_out.jsonl").open("a", encoding="utf-8") as file:
            file.writelines(
                json.dumps({"split": split, "reason": reason}, ensure_ascii=False) + "\n" for reason in bad
            )
    return good


def _trainable(recipe: Recipe) -> Any:
    """The model with gradients where the recipe wants them."""
    spec = recipe.training
    lora = spec.method == "lora"
    on_gpu = torch.cuda.is_available()
    dtype = torch.bfloat16 if lora and on_gpu and spec.precision != "fp32" else torch.float32
    model: Any = load_model(recipe.model, dtype, spec.attention)
    if lora:
        model = add_lora(model, spec.lora)
    unused = set(unused_parameter_names(model))
    for name, parameter in model.named_parameters():
        if name in unused or (spec.freeze_vision and VISION in name):
            parameter.requires_grad_(False)
    if spec.gradient_checkpointing:
        model.activation_checkpointing_enable({"use_reentrant": False})
    model.config.use_cache = False
    return model


def _arguments(recipe: Recipe, folder: Path, rows: int) -> TrainingArguments:
    spec = recipe.training
    steps = spec.max_steps or max(1, math.ceil(rows * spec.epochs / (spec.batch_size * spec.gradient_accumulation)))
    every = max(1, math.ceil(steps / spec.evaluations))
    return TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        max_steps=steps,
        per_device_train_batch_size=spec.batch_size,
        per_device_eval_batch_size=recipe.evaluation.batch_size,
        gradient_accumulation_steps=spec.gradient_accumulation,
        learning_rate=spec.learning_rate,
        lr_scheduler_type=spec.schedule,
        warmup_steps=spec.warmup,
        max_grad_norm=spec.max_grad_norm,
        bf16=torch.cuda.is_available() and spec.precision != "fp32",
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=spec.keep_checkpoints,
        save_only_model=True,
        load_best_model_at_end=True,
        metric_for_best_model=f"eval_{spec.best_by}",
        greater_is_better=not spec.best_by.endswith(("loss", ".mae", ".mdape")),
        logging_steps=max(1, min(10, steps // 20)),
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
        report_to="none",
        disable_tqdm=True,
        seed=spec.seed,
    )


def _outcome(trainer: Trainer, folder: Path, seconds: float) -> Trained:
    best = trainer.state.best_global_step or trainer.state.global_step
    entries = [entry for entry in trainer.state.log_history if entry["step"] == best and "eval_loss" in entry]
    figures = {
        name.removeprefix("eval_"): float(value)
        for name, value in entries[-1].items()
        if "eval_" in name and not is_timing(name)
    }
    return Trained(folder, trainer.state.global_step, best, figures, seconds)


def _describe(model: Any, datasets: Mapping[str, Sequence[Any] | ProductDataset], console: Console) -> None:
    trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
    total = sum(p.numel() for p in model.parameters())
    rows = ", ".join(f"{len(data)} {name}" for name, data in datasets.items())
    console.print(f"{rows} rows; {trained:,} of {total:,} parameters train ({trained / total:.1%})", highlight=False)


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
    tag = "adapter" if recipe.training.method == "lora" else "full fine-tuning"
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
