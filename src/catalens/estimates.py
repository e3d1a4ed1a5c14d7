"""What a training step computes and what it holds in memory, from a model's sizes alone.

    Phi-3-Vision, a square photo at num_crops=16: 2,569 tokens, 17 crops
    -> full 78.8 TFLOP a sample, LoRA with a frozen tower 46.2; 75 GB and 17 GB at batch size 1

docs/estimates.md derives every factor; the tests hold the results to measured and published figures.
Legend: T tokens of a row, C crops, d and f widths of a text layer, h and g widths of a tower block, L layers.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, Self, TypeVar

import numpy as np
from numpy.typing import NDArray

from catalens.errors import CheckpointError

GPUS = (16, 24, 48, 80, 141)
"""Memory of common GPUs in GB of 10^9 bytes: T4, 4090, L40S, A100 or H100, H200."""
NUM_CROPS = (1, 4, 16)
"""`num_crops` that estimates are made for."""

Amount = TypeVar("Amount", float, NDArray[np.float64])
"""One row's, or many rows' [N]."""

NF4_BYTES = 4.127 / 8
"""A weight in NF4 with double quantization (Dettmers et al., 2023): 4.127 bits."""
CONTEXT = 1e9
"""Bytes that the driver, CUDA's context and the libraries take."""
FRAGMENTATION = 1.1
"""What the allocator reserves over what is allocated."""


@dataclass(frozen=True)
class ModelShape:
    """The sizes that decide what a Phi-3-Vision costs."""

    hidden: int
    layers: int
    intermediate: int
    vocabulary: int
    vision_hidden: int
    vision_layers: int
    vision_intermediate: int
    crop_size: int
    patch_size: int

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Self:
        """Read a `config.json`; without `vision_config` the tower is the official one. Raises CheckpointError."""
        vision = config.get("vision_config") or {}
        try:
            return cls(
                hidden=int(config["hidden_size"]),
                layers=int(config["num_hidden_layers"]),
                intermediate=int(config["intermediate_size"]),
                vocabulary=int(config["vocab_size"]),
                vision_hidden=int(vision.get("hidden_size", PHI3_VISION.vision_hidden)),
                vision_layers=int(vision.get("num_hidden_layers", PHI3_VISION.vision_layers)),
                vision_intermediate=int(vision.get("intermediate_size", PHI3_VISION.vision_intermediate)),
                crop_size=int(vision.get("image_size", PHI3_VISION.crop_size)),
                patch_size=int(vision.get("patch_size", PHI3_VISION.patch_size)),
            )
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"config.json is none of Phi-3-Vision ({error}): give the folder of such a model"
            ) from error

    @property
    def text_linear(self) -> int:
        """Weights of the text layers' products: qkv, o, gate, up and down."""
        return self.layers * (4 * self.hidden**2 + 3 * self.hidden * self.intermediate)

    @property
    def tower_block(self) -> int:
        """Weights of one block of the tower."""
        return 4 * self.vision_hidden**2 + 2 * self.vision_hidden * self.vision_intermediate

    @property
    def tower(self) -> int:
        """Weights of the tower, its last block included: it is stored and never runs."""
        return self.vision_layers * self.tower_block + (3 * self.patch_size**2 + self.patches) * self.vision_hidden

    @property
    def projector(self) -> int:
        """Weights from four merged patches to a picture token."""
        return 4 * self.vision_hidden * self.hidden + self.hidden**2

    @property
    def parameters(self) -> int:
        """All weights; norms and biases, about 0.01 %, are left out."""
        return self.text_linear + 2 * self.vocabulary * self.hidden + self.projector + self.tower

    @property
    def patches(self) -> int:
        """Positions of a crop in the tower: its patches and the class token."""
        return (self.crop_size // self.patch_size) ** 2 + 1


PHI3_VISION = ModelShape(
    hidden=3072,
    layers=32,
    intermediate=8192,
    vocabulary=32064,
    vision_hidden=1024,
    vision_layers=24,
    vision_intermediate=4096,
    crop_size=336,
    patch_size=14,
)
"""microsoft/Phi-3-vision-128k-instruct and Phi-3.5-vision-instruct."""


@dataclass(frozen=True)
class Setup:
    """How the model is trained."""

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


@dataclass(frozen=True)
class Memory:
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

    def largest_batch(self, gpu: float) -> int:
        """Most rows in a batch that fit a GPU of so many GB; 0 where not even one does."""
        room = (gpu * 1e9 - CONTEXT) / FRAGMENTATION - self.weights - self.states
        return max(0, math.floor(room / self.sample))


def sample_flops(shape: ModelShape, setup: Setup, tokens: Amount, crops: Amount) -> Amount:
    """Operations of forward and backward pass for one row; a multiplication and an addition are two.

    `tokens` is T with the picture's, `crops` C with the global one.
    """
    text = 2 * shape.text_linear * tokens + 2 * tokens**2 * shape.hidden * shape.layers  # causal: half the scores
    picture = crops * (shape.patches - 1) / 4 * 2 * shape.projector
    positions = crops * shape.patches
    blocks = shape.vision_layers - 1
    tower = blocks * positions * (2 * shape.tower_block + 4 * shape.patches * shape.vision_hidden)
    passes = 3 if setup.method == "full" else 2  # backward: to the inputs, and to the weights where they train
    through = 1 if setup.frozen_tower and setup.method != "full" else passes
    tower_passes = 0 if setup.cached_features else 1 if setup.frozen_tower else passes
    again = text if setup.checkpointing else 0
    again += tower if setup.checkpointing and not setup.frozen_tower else 0
    return passes * text + through * picture + tower_passes * tower + again


def step_memory(shape: ModelShape, setup: Setup, tokens: float, crops: float) -> Memory:
    """What training holds, for rows of T tokens and C crops; the head sees answers only and counts for nothing."""
    adapters = setup.rank * shape.layers * (8 * shape.hidden + 3 * shape.intermediate)
    if not setup.frozen_tower:
        wide = 8 * shape.vision_hidden + 2 * (shape.vision_hidden + shape.vision_intermediate)
        adapters += setup.rank * (shape.vision_layers - 1) * wide
    if setup.method == "full":
        trained = shape.parameters - (shape.tower if setup.frozen_tower else 0)
        weights, states = 4 * shape.parameters, 14 * trained
    elif setup.method == "lora":
        weights, states = 2 * shape.parameters, 18 * adapters
    else:
        kept = shape.parameters - shape.text_linear
        weights, states = NF4_BYTES * shape.text_linear + 2 * kept, 18 * adapters
    sample = tokens * _kept_by_text(shape, setup) + crops * shape.patches * _kept_by_tower(shape, setup)
    return Memory(weights, states, sample)


def _kept_by_text(shape: ModelShape, setup: Setup) -> float:
    """Bytes a token that the text layers keep, and one layer's set more for the gradients alive at once."""
    d, f = shape.hidden, shape.intermediate
    full = setup.method == "full"
    layer = (34 if full else 26) * d + 8 * f  # under autocast the residual stream is fp32
    if not full and setup.dropout:
        layer += 3 * (3 * d + f)
    if setup.checkpointing:
        return shape.layers * (4 if full else 2) * d + 2 * layer
    return (shape.layers + 1) * layer


def _kept_by_tower(shape: ModelShape, setup: Setup) -> float:
    """Bytes a patch position that the tower keeps; frozen, it works with one block's set and keeps nothing."""
    h, g = shape.vision_hidden, shape.vision_intermediate
    block = 16 * h + 8 * g
    if setup.method != "full" and setup.dropout and not setup.frozen_tower:
        block += 3 * (5 * h + g)
    if setup.cached_features:
        return 0
    if setup.frozen_tower:
        return block
    if setup.checkpointing:
        return (shape.vision_layers - 1) * (4 if setup.method == "full" else 2) * h + 2 * block
    return shape.vision_layers * block
