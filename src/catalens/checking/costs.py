"""Costs of an epoch at 1, 4 and 16 crops, as the recipe trains: tokens, steps, operations, and the GPUs that hold it.

num_crops 16: 2,569 tokens a row, 17 crops; LoRA, frozen tower: 46.2 TFLOP a row, 8 rows take 128 GB,
              with gradient checkpointing 22 GB: fits GPUs from 141 GB, 24 GB checkpointed
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from catalens.checking.facts import CHARACTERS_PER_TOKEN, Facts
from catalens.checkpoint import load_config, load_processor
from catalens.config import REFERENCE_FIELDS, FieldSpec, Kind, PromptSpec, TrainingSpec
from catalens.estimates import GPUS, REFERENCE_SIZES, Setup, sample_flops, step_memory
from catalens.model import REFERENCE, ModelSizes, family_of

NUM_CROPS = (1, 4, 16)
"""`num_crops` that costs are reckoned for."""
LONG_ROW = 99
"""Percentile of the row lengths that memory is reckoned for; a few longer rows are the exception."""


@dataclass(frozen=True)
class CropCost:
    """Cost of the training split at one `num_crops`."""

    num_crops: int
    tokens: float
    """Of a row, on average, as `crops` and `tflop`."""
    max_tokens: int
    crops: float
    epoch_tokens: int
    batch_rows: int
    """Rows in a forward pass, for memory."""
    step_rows: int
    """Rows in an optimizer step."""
    steps: int
    """Optimizer steps in an epoch."""
    tflop: float
    """Of a row, forward and backward."""
    memory: Mapping[bool, float]
    """GB at the peak of a step, without (False) and with gradient checkpointing, as far as the recipe allows each."""

    def fits(self) -> str:
        """Name the smallest of the common GPUs that hold a step: `80 GB, 24 GB checkpointed`."""
        fitting, below = [], math.inf
        for checkpointing, gb in self.memory.items():
            smallest = next((gpu for gpu in GPUS if gb <= gpu), math.inf)
            if smallest < below:
                fitting.append(f"{smallest} GB{' checkpointed' if checkpointing else ''}")
                below = smallest
        return ", ".join(fitting) or f"none of up to {GPUS[-1]} GB"


def method_name(training: TrainingSpec) -> str:
    """Name how a recipe trains: `LoRA, frozen tower`."""
    method = {"full": "Full", "lora": "LoRA", "qlora": "QLoRA"}[training.method]
    return f"{method}, {'frozen tower' if Setup.from_spec(training).frozen_tower else 'tower too'}"


def load_sizes(model: str | None) -> tuple[Any, ModelSizes, str]:
    """Load a model's processor and sizes, and a sentence for the reader on what costs stand on.

    Without a model, or where it is not on disk: no processor, and the sizes of Phi-3-Vision.
    """
    basis = "No recipe was given"
    if model:
        try:
            processor = load_processor(model)
            sizes = family_of(processor.model_type).sizes(load_config(model))
            return processor, sizes, f"For the recipe\u2019s model, {model}, with its own tokenizer."
        except Exception:  # of any library, over a damaged folder
            basis = f"The recipe\u2019s model, {model}, cannot be loaded from disk"
    basis += f": reckoned for Phi-3-Vision, text by {CHARACTERS_PER_TOKEN} characters a token."
    return None, REFERENCE_SIZES, basis


def crop_costs(facts: Facts, processor: Any, sizes: ModelSizes, training: TrainingSpec) -> list[CropCost]:
    """Estimate costs by `num_crops` from the training rows whose text and picture are of use; empty without any."""
    rows = [
        (text, [look.size for look in (first, *further)])
        for split, text, first, further in zip(
            facts.splits, facts.text_tokens, facts.pictures, facts.further, strict=True
        )
        if split == "train" and text is not None and all(look.size for look in (first, *further))
    ]
    family = family_of(processor.model_type) if processor else REFERENCE
    costs = []
    for num_crops in NUM_CROPS if rows else ():
        hd_sizes = [[family.hd_size(processor, *size, num_crops) for size in own if size] for _, own in rows]
        crops = np.array([sum(family.num_tiles(processor, size) for size in own) for own in hd_sizes], float)
        tokens = np.array([text for text, _ in rows], float)
        tokens += [sum(family.image_tokens(processor, size) for size in own) for own in hd_sizes]
        costs.append(_crop_cost(num_crops, tokens, crops, sizes, training))
    return costs


def _crop_cost(
    num_crops: int, tokens: NDArray[np.float64], crops: NDArray[np.float64], sizes: ModelSizes, training: TrainingSpec
) -> CropCost:
    long, most = float(np.percentile(tokens, LONG_ROW)), float(np.percentile(crops, LONG_ROW))
    batch, allowed = _batch(training, long), training.gradient_checkpointing
    memory = {
        again: step_memory(sizes, Setup.from_spec(training, again), long, most).peak(batch) / 1e9
        for again in ((False, True) if allowed == "auto" else (allowed,))
    }
    step_rows = _batch(training, float(tokens.mean())) * training.gradient_accumulation
    return CropCost(
        num_crops=num_crops,
        tokens=float(tokens.mean()),
        max_tokens=int(tokens.max()),
        crops=float(crops.mean()),
        epoch_tokens=int(tokens.sum()),
        batch_rows=batch,
        step_rows=step_rows,
        steps=math.ceil(len(tokens) / step_rows),
        tflop=float(sample_flops(sizes, Setup.from_spec(training), tokens, crops).mean()) / 1e12,
        memory=memory,
    )


def _batch(training: TrainingSpec, tokens: float) -> int:
    """Rows of so many tokens in one forward pass."""
    return max(1, int(training.batch_tokens // tokens)) if training.batch_tokens else training.rows


def default_prompt(fields: Mapping[str, Kind]) -> PromptSpec:
    """Make a prompt of all fields: the default where it has them, else one with the columns as labels."""
    if {field.column: field.kind for field in REFERENCE_FIELDS} == dict(fields):
        return PromptSpec()
    labels = [" ".join("".join(c if c.isalnum() else " " for c in name).split()) for name in fields]
    if not all(labels) or len(set(labels)) < len(labels):
        labels = [f"Field {number}" for number in range(1, len(labels) + 1)]
    specs = zip(fields.items(), labels, strict=True)
    return PromptSpec(fields=tuple(FieldSpec(column=name, label=label, kind=kind) for (name, kind), label in specs))
