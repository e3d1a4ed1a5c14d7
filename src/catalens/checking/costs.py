"""What an epoch costs at 1, 4 and 16 crops: tokens, steps, operations, and which GPUs are large enough.

num_crops 16: 2,569 tokens a row, 17 crops; LoRA with a frozen tower 46.2 TFLOP a sample,
batches of at most 1 row on 48 GB, 16 with gradient checkpointing
"""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np

from catalens.checking.scanning import Cost, Description
from catalens.config import TrainingSpec
from catalens.estimates import GPUS, ModelShape, Setup, sample_flops, step_memory

LONG_ROW = 99
"""Percentile of the row lengths that memory is reckoned for; a few longer rows are the exception."""


@dataclass(frozen=True)
class MethodCost:
    """One way to train."""

    name: str
    chosen: bool
    """Whether the recipe trains so."""
    tflop: float
    """Of a row, on average, forward and backward."""
    step_tflop: float
    """Of an optimizer step."""
    memory: float
    """GB at batch size 1."""
    batches: tuple[tuple[int, int], ...]
    """For each of `GPUS`: the largest batch, and the largest with gradient checkpointing."""


@dataclass(frozen=True)
class CropCost:
    """The training split at one `num_crops`."""

    num_crops: int
    rows: int
    tokens: float
    """Of a row, on average, as `crops`."""
    long_tokens: float
    """Of a long row, which decides over memory."""
    longest: int
    crops: float
    epoch_tokens: int
    step_rows: int
    """Rows in an optimizer step."""
    steps: int
    """Optimizer steps in an epoch."""
    methods: tuple[MethodCost, ...]


METHODS: tuple[tuple[str, Literal["full", "lora", "qlora"], bool], ...] = (
    ("Full", "full", False),
    ("Full, frozen tower", "full", True),
    ("LoRA, tower too", "lora", False),
    ("LoRA, frozen tower", "lora", True),
    ("QLoRA, tower too", "qlora", False),
    ("QLoRA, frozen tower", "qlora", True),
)
"""All there are: one of them is the recipe's."""


def crop_costs(
    splits: Sequence[str], described: Sequence[Description], shape: ModelShape, training: TrainingSpec
) -> list[CropCost]:
    """Costs by `num_crops`, from the training rows whose size is known; empty where there are none."""
    known: dict[int, list[Cost]] = defaultdict(list)
    for split, row in zip(splits, described, strict=True):
        for num_crops, cost in row.costs.items() if split == "train" else ():
            known[num_crops].append(cost)
    return [
        _crop_cost(num_crops, [c.tokens for c in costs], [c.crops for c in costs], shape, training)
        for num_crops, costs in sorted(known.items())
    ]


def _crop_cost(
    num_crops: int, tokens: Sequence[int], crops: Sequence[int], shape: ModelShape, training: TrainingSpec
) -> CropCost:
    step_rows = training.batch_size * training.gradient_accumulation
    long = float(np.percentile(tokens, LONG_ROW))
    most = float(np.percentile(crops, LONG_ROW))
    methods = []
    for name, method, frozen in METHODS:
        setup = Setup(method, frozen, training.lora.rank, training.lora.dropout > 0)
        tflop = float(np.mean(sample_flops(shape, setup, np.array(tokens, float), np.array(crops, float)))) / 1e12
        plain = step_memory(shape, setup, long, most)
        again = step_memory(shape, replace(setup, checkpointing=True), long, most)
        chosen = method == training.method and (frozen == (training.resolved_parts["vision"].train == "frozen"))
        methods.append(
            MethodCost(
                name,
                chosen,
                tflop,
                tflop * step_rows,
                plain.peak(1) / 1e9,
                tuple((plain.largest_batch(gpu), again.largest_batch(gpu)) for gpu in GPUS),
            )
        )
    return CropCost(
        num_crops=num_crops,
        rows=len(tokens),
        tokens=float(np.mean(tokens)),
        long_tokens=long,
        longest=max(tokens),
        crops=float(np.mean(crops)),
        epoch_tokens=sum(tokens),
        step_rows=step_rows,
        steps=-(-len(tokens) // step_rows),
        methods=tuple(methods),
    )
