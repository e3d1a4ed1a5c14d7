"""FLOPs and memory of a training step, from a model's own configuration.

    Phi-3-Vision, a square photo at num_crops=16: 2,569 tokens, 17 crops
    -> full 78.8 TFLOP a sample, LoRA with a frozen tower 46.2; 75 GB and 17 GB at batch size 1

docs/estimates.md derives every factor; the tests hold the results to measured and published figures.
Legend: T tokens of a row, C crops, d and f widths of a text layer, h and g widths of a tower block, L layers.
"""

from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from catalens.config import TrainingSpec
from catalens.model import Phi3VConfig

GPUS = (16, 24, 48, 80, 141)
"""Memory of common GPUs in GB of 10^9 bytes: T4, 4090, L40S, A100 or H100, H200."""
PHI3_VISION = Phi3VConfig()
"""microsoft/Phi-3-vision-128k-instruct and Phi-3.5-vision-instruct."""

Amount = TypeVar("Amount", float, NDArray[np.float64])
"""One row's, or many rows' [N]."""

NF4_BYTES = 4.127 / 8
"""A weight in NF4 with double quantization (Dettmers et al., 2023): 4.127 bits."""
CONTEXT = 1e9
"""Bytes that the driver, CUDA's context and the libraries take."""
FRAGMENTATION = 1.1
"""What the allocator reserves over what is allocated."""


@dataclass(frozen=True)
class Setup:
    """Training method, as far as it decides over cost."""

    method: Literal["full", "lora", "qlora"]
    frozen_tower: bool = True
    rank: int = 16
    """Rank of the adapters, which stand on every linear layer of the text model, and of the tower where it trains."""
    dropout: bool = True
    """Whether the adapters drop out: a copy of their input and its mask are kept."""
    checkpointing: bool = False
    """Recompute each layer in the backward pass."""
    cached_features: bool = False
    """The frozen tower's features are read instead of computed."""

    @classmethod
    def from_spec(cls, spec: TrainingSpec, checkpointing: bool = False, cached_features: bool = False) -> Self:
        """Read a recipe."""
        frozen = spec.resolved_parts["vision"].train == "frozen"
        return cls(spec.method, frozen, spec.lora.rank, spec.lora.dropout > 0, checkpointing, cached_features)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes that a step holds at its peak."""

    weights: float
    """The model as it is stored for training."""
    states: float
    """What each trained weight has beside: bf16 copy, gradient, two moments; of adapters the weights too."""
    sample: float
    """What one row of the batch keeps for the backward pass, and works with."""

    def peak(self, batch: int) -> float:
        """Bytes of GPU memory at a batch size."""
        return CONTEXT + FRAGMENTATION * (self.weights + self.states + batch * self.sample)


def count_parameters(config: Phi3VConfig) -> dict[str, int]:
    """Weights by module; norms and biases, about 0.01 %, are left out.

    `text` are the layers' products (qkv, o, gate, up and down); the tower's last block is stored and never runs.
    """
    vision, d, h = _vision(config), config.hidden_size, _vision(config).hidden_size
    return {
        "text": config.num_hidden_layers * (4 * d**2 + 3 * d * config.intermediate_size),
        "embeddings": 2 * config.vocab_size * d,
        "projector": 4 * h * d + d**2,
        "tower": vision.num_hidden_layers * _tower_block(config)
        + (3 * config.patch_size**2 + _positions(config)) * h,
    }


def sample_flops(config: Phi3VConfig, setup: Setup, tokens: Amount, crops: Amount) -> Amount:
    """Count operations of forward and backward pass for one row; a multiplication and an addition are two.

    `tokens` is T with the picture's, `crops` C with the global one.
    """
    weights, vision, patches = count_parameters(config), _vision(config), _positions(config)
    causal = 2 * tokens**2 * config.hidden_size * config.num_hidden_layers  # half the scores
    text = 2 * weights["text"] * tokens + causal
    picture = crops * (patches - 1) / 4 * 2 * weights["projector"]
    blocks, positions = vision.num_hidden_layers - 1, crops * patches
    tower = blocks * positions * (2 * _tower_block(config) + 4 * patches * vision.hidden_size)
    passes = 3 if setup.method == "full" else 2  # backward: to the inputs, and to the weights where they train
    through = 1 if setup.frozen_tower and setup.method != "full" else passes
    tower_passes = 0 if setup.cached_features else 1 if setup.frozen_tower else passes
    again = text if setup.checkpointing else 0
    again += tower if setup.checkpointing and not setup.frozen_tower else 0
    return passes * text + through * picture + tower_passes * tower + again


def step_memory(config: Phi3VConfig, setup: Setup, tokens: float, crops: float) -> MemoryEstimate:
    """Estimate memory for rows of T tokens and C crops; the head sees answers only and counts for nothing."""
    parameters, vision = count_parameters(config), _vision(config)
    total = sum(parameters.values())
    wide = 8 * config.hidden_size + 3 * config.intermediate_size
    adapters = setup.rank * config.num_hidden_layers * wide
    if not setup.frozen_tower:
        wide = 8 * vision.hidden_size + 2 * (vision.hidden_size + vision.intermediate_size)
        adapters += setup.rank * (vision.num_hidden_layers - 1) * wide
    if setup.method == "full":
        weights, states = 4 * total, 14 * (total - (parameters["tower"] if setup.frozen_tower else 0))
    elif setup.method == "lora":
        weights, states = 2 * total, 18 * adapters
    else:
        weights, states = NF4_BYTES * parameters["text"] + 2 * (total - parameters["text"]), 18 * adapters
    sample = tokens * _kept_by_text(config, setup) + crops * _positions(config) * _kept_by_tower(config, setup)
    return MemoryEstimate(weights, states, sample)


def _kept_by_text(config: Phi3VConfig, setup: Setup) -> float:
    """Bytes a token that the text layers keep, and one layer's set more for the gradients alive at once."""
    d, f, layers = config.hidden_size, config.intermediate_size, config.num_hidden_layers
    full = setup.method == "full"
    layer = (34 if full else 26) * d + 8 * f  # under autocast the residual stream is fp32
    if not full and setup.dropout:
        layer += 3 * (3 * d + f)
    if setup.checkpointing:
        return layers * (4 if full else 2) * d + 2 * layer
    return (layers + 1) * layer


def _kept_by_tower(config: Phi3VConfig, setup: Setup) -> float:
    """Bytes a patch position that the tower keeps; frozen, it works with one block's set and keeps nothing."""
    vision = _vision(config)
    h, g, full = vision.hidden_size, vision.intermediate_size, setup.method == "full"
    block = 16 * h + 8 * g
    if not full and setup.dropout and not setup.frozen_tower:
        block += 3 * (5 * h + g)
    if setup.cached_features:
        return 0
    if setup.frozen_tower:
        return block
    if setup.checkpointing:
        return (vision.num_hidden_layers - 1) * (4 if full else 2) * h + 2 * block
    return vision.num_hidden_layers * block


def _vision(config: Phi3VConfig) -> Any:
    return config.vision_config


def _tower_block(config: Phi3VConfig) -> int:
    """Weights of one block of the tower."""
    vision = _vision(config)
    return 4 * vision.hidden_size**2 + 2 * vision.hidden_size * vision.intermediate_size


def _positions(config: Phi3VConfig) -> int:
    """Positions of a crop in the tower: its patches and the class token."""
    return (config.crop_size // config.patch_size) ** 2 + 1
