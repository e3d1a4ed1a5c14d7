"""FLOPs and memory of a training step, from a model's own configuration.

    Phi-3-Vision, a square photo at num_crops=16: 2,569 tokens, 17 tiles
    -> full 78.8 TFLOP a sample, LoRA with a frozen tower 46.2; 78 GB (checkpointed) and 25 GB at batch size 1

docs/estimates.md derives every factor; the tests hold the results to measured and published figures.
Legend: T tokens of a row, C tiles, d and f widths of a text layer, h and g widths of a tower block.
"""

from dataclasses import dataclass
from typing import Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from catalens.config import TrainingSpec
from catalens.model import REFERENCE, ModelSizes

GPUS = (16, 24, 48, 80, 141)
"""Memory of common GPUs in GB of 10^9 bytes: T4, 4090, L40S, A100 or H100, H200."""
REFERENCE_SIZES = REFERENCE.sizes()
"""microsoft/Phi-3-vision-128k-instruct and Phi-3.5-vision-instruct."""

Amount = TypeVar("Amount", float, NDArray[np.float64])
"""One row's, or many rows' [N]."""

NF4_BYTES = 4.127 / 8
"""A weight in NF4 with double quantization (Dettmers et al., 2023): 4.127 bits."""
CONTEXT = 1e9
"""Bytes that the driver, CUDA's context and the libraries take."""
FRAGMENTATION = 1.1
"""Memory that the allocator reserves over what is allocated, as a factor."""


@dataclass(frozen=True)
class Setup:
    """Training method, as far as it decides over cost."""

    method: Literal["full", "lora", "qlora"]
    frozen_tower: bool = True
    rank: int = 16
    """Rank of the adapters, which stand on every linear layer of the text model, and of the tower where it trains."""
    dropout: bool = True
    """Set where the adapters drop out: the mask of their input is kept."""
    checkpointing: bool = False
    """Recompute each layer in the backward pass."""
    cached_features: bool = False
    """The frozen tower's features are read instead of computed."""
    compiled: bool = False
    """Layers are compiled, which keeps the inputs of the norms only."""
    weights: Literal["fp32", "bf16"] = "fp32"
    """Of matrices that train in full; in bf16 their moments are of 8 bits."""

    @classmethod
    def from_spec(cls, spec: TrainingSpec, checkpointing: bool = False, cached_features: bool = False) -> Self:
        """Read a recipe."""
        frozen = spec.resolved_parts["vision"].train == "frozen"
        dropout = spec.lora.dropout > 0
        compiled = spec.compile is True or (spec.compile == "auto" and not spec.fsdp)  # as on a GPU
        rank = spec.lora.rank
        return cls(spec.method, frozen, rank, dropout, checkpointing, cached_features, compiled, spec.weights)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a step holds at its peak."""

    weights: float
    """The model as it is stored for training."""
    states: float
    """Beside each trained weight: gradient, two moments, under autocast a bf16 copy that lasts as long as no
    layer is recomputed; of adapters the weights too."""
    sample: float
    """Bytes that one row of the batch keeps for the backward pass, and works with."""

    def peak(self, batch: int) -> float:
        """Bytes of GPU memory at a batch size."""
        return CONTEXT + FRAGMENTATION * (self.weights + self.states + batch * self.sample)


def count_parameters(sizes: ModelSizes) -> dict[str, int]:
    """Weights by module; norms and biases, about 0.01 %, are left out.

    `text` are the layers' products (qkv, o, gate, up and down); the tower's last block is stored and never runs.
    """
    d, f = sizes.hidden, sizes.intermediate
    return {
        "text": sizes.layers * (4 * d**2 + 3 * d * f),
        "embeddings": 2 * sizes.vocabulary * d,
        "projector": sizes.projector_weights,
        "tower": sizes.tower_weights,
    }


def sample_flops(sizes: ModelSizes, setup: Setup, tokens: Amount, tiles: Amount) -> Amount:
    """Count operations of forward and backward pass for one row; a multiplication and an addition are two.

    `tokens` is T with the picture's, `tiles` C with the one of the whole picture.
    """
    h, g, positions = sizes.tower_hidden, sizes.tower_intermediate, sizes.tile_positions
    causal = 2 * tokens**2 * sizes.hidden * sizes.layers  # half the scores
    text = 2 * count_parameters(sizes)["text"] * tokens + causal
    picture = tiles * sizes.tile_tokens * 2 * sizes.projector_weights
    block = 4 * h**2 + 2 * h * g
    tower = sizes.tower_layers * tiles * positions * (2 * block + 4 * positions * h)
    passes = 3 if setup.method == "full" else 2  # backward: to the inputs, and to the weights where they train
    through = 1 if setup.frozen_tower and setup.method != "full" else passes
    tower_passes = 0 if setup.cached_features else 1 if setup.frozen_tower else passes
    again = text if setup.checkpointing else 0
    again += tower if setup.checkpointing and not setup.frozen_tower else 0
    return passes * text + through * picture + tower_passes * tower + again


def step_memory(sizes: ModelSizes, setup: Setup, tokens: float, tiles: float) -> MemoryEstimate:
    """Estimate memory for rows of T tokens and C tiles; the head sees answers only and counts for nothing."""
    parameters = count_parameters(sizes)
    total = sum(parameters.values())
    adapters = setup.rank * sizes.layers * (8 * sizes.hidden + 3 * sizes.intermediate)
    if not setup.frozen_tower:
        wide = 8 * sizes.tower_hidden + 2 * (sizes.tower_hidden + sizes.tower_intermediate)
        adapters += setup.rank * sizes.tower_layers * wide
    if setup.method == "full":
        trained = total - (parameters["tower"] if setup.frozen_tower else 0)
        weights, states = 4 * total, (12 if setup.checkpointing else 14) * trained
        if setup.weights == "bf16":
            tables = parameters["embeddings"]
            weights, states = 2 * total + 2 * tables, 4 * trained + 10 * tables
    elif setup.method == "lora":
        weights, states = 2 * total, 18 * adapters
    else:
        weights, states = NF4_BYTES * parameters["text"] + 2 * (total - parameters["text"]), 18 * adapters
    text, tower = tokens * _kept_by_text(sizes, setup), tiles * sizes.tile_positions * _kept_by_tower(sizes, setup)
    # a frozen tower has done its work before the text layers keep anything
    return MemoryEstimate(weights, states, max(text, tower) if setup.frozen_tower else text + tower)


def _kept_by_text(sizes: ModelSizes, setup: Setup) -> float:
    """Bytes a token that the text layers keep."""
    d, f, full = sizes.hidden, sizes.intermediate, setup.method == "full"
    layer = (34 if full else 26) * d + 8 * f  # under autocast the residual stream is fp32
    if setup.compiled:
        layer -= 8 * d
    if not full and setup.dropout:
        layer += 3 * d + f
    if setup.checkpointing:
        return sizes.layers * (4 if full else 2) * d + 2 * layer
    return sizes.layers * layer


def _kept_by_tower(sizes: ModelSizes, setup: Setup) -> float:
    """Bytes a position that the tower keeps; frozen, it works with one block's set and keeps nothing."""
    h, g, full = sizes.tower_hidden, sizes.tower_intermediate, setup.method == "full"
    block = 16 * h + 8 * g
    if not full and setup.dropout and not setup.frozen_tower:
        block += 5 * h + g
    if setup.cached_features:
        return 0
    if setup.frozen_tower:
        return block
    if setup.checkpointing:
        return sizes.tower_layers * (4 if full else 2) * h + 2 * block
    return sizes.tower_layers * block
