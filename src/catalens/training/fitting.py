"""Fitting a step into the memory of a GPU: its forward passes, by an estimate, and then by trying the longest one.

rows of a step    16                                          the recipe's: they never change
passes            1 of 16, 2 of 8, 4 of 4, 8 of 2, 16 of 1    the fewest that fit
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size

from catalens.config import TrainingSpec
from catalens.errors import TrainingError
from catalens.estimates import Setup, step_memory
from catalens.model import ModelSizes
from catalens.training.batches import possible_passes

USABLE = 0.92
"""Share of a GPU's memory that an estimate may take."""


def estimated_fit(
    spec: TrainingSpec, setup: Setup, sizes: ModelSizes, largest: tuple[int, int, int], memory: float | None
) -> tuple[int, bool]:
    """Choose the passes of a step and whether activations are recomputed, by the recipe and an estimate.

    Args:
        setup: how the recipe trains.
        largest: most rows of a planned micro-batch, tokens and tiles of a row.
        memory: bytes that a GPU has for us; None without one.
    """
    usual, (rows, tokens, tiles) = spec.gradient_accumulation, largest
    asked = spec.gradient_checkpointing
    if memory is None:
        return usual, asked is True
    chosen = spec.batch_size == "auto" and not spec.batch_tokens
    numbers = possible_passes(usual, rows) if chosen else [usual]
    for again in (False, True) if asked == "auto" else (asked,):
        estimate = step_memory(sizes, replace(setup, checkpointing=again), tokens, tiles)
        for passes in numbers:
            if estimate.peak(math.ceil(rows * usual / passes)) <= USABLE * memory:
                return passes, again
    return numbers[-1], asked is not False


def tried_fit(passes: Sequence[int], dry_step: Callable[[int], None]) -> int:
    """Find the first number of passes for which a dry step does not run out of memory; TrainingError for none."""
    for number in passes:
        try:
            dry_step(number)
            return number
        except RuntimeError as error:
            if not isinstance(error, torch.OutOfMemoryError) and not should_reduce_batch_size(error):
                raise
        clear_device_cache(garbage_collection=True)  # what the failed step held has gone with its exception
    raise TrainingError(
        "one row alone is too much for the GPU's memory: set training.gradient_checkpointing=true, lower num_crops, "
        "or take training.method=qlora"
    )


def dry_step(model: Any, inputs: Callable[[], dict[str, Any]]) -> None:
    """Run forward and backward pass, with room for the optimizer's moments, and leave nothing behind.

    Does nothing on a CPU, whose memory is not ours alone. Raises torch.OutOfMemoryError.
    """
    device = model.device
    if device.type == "cpu":
        return
    with torch.random.fork_rng([device]):
        moments = torch.empty(_moments(model), dtype=torch.uint8, device=device)
        batch = inputs()
        model.train()
        loss = model(**batch, num_items_in_batch=1).loss
        loss.backward()
        torch.cuda.synchronize(device)
    del moments
    model.zero_grad(set_to_none=True)


def _moments(model: Any) -> int:
    """Bytes of two moments for each weight that trains: of 8 bits for those in bf16, else fp32."""
    trained = [weight for weight in model.parameters() if weight.requires_grad]
    return sum(weight.numel() * (2 if weight.dtype == torch.bfloat16 else 8) for weight in trained)
