"""What a run takes from the machine that it is on.

    setup.json   {"processes": 2, "cached_features": true, "checkpointing": false}

is decided once: a run that goes on elsewhere keeps to it, so that it computes the same.
"""

import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import torch
from torch.distributed.fsdp import MixedPrecisionPolicy
from transformers import TrainingArguments

from catalens.checkpoint import AMPERE, allows_tf32, product_dtype
from catalens.config import Recipe, TrainingSpec
from catalens.errors import RecipeError, TrainingError
from catalens.estimates import Setup, step_memory
from catalens.metrics import higher_is_better
from catalens.model import Phi3VConfig
from catalens.training.batching import Plan

USABLE = 0.92
"""Share of a GPU's memory that an estimate may take."""
SHARDED_BF16 = MixedPrecisionPolicy(torch.bfloat16, reduce_dtype=torch.float32, output_dtype=torch.float32)
"""FSDP2 gathers weights in bf16, sums gradients in fp32, and leaves the loss as it is."""


@dataclass(frozen=True)
class RunSetup:
    """What was decided at the start of a run."""

    processes: int
    """Processes that it was begun with; they make the global batch."""
    cached_features: bool
    checkpointing: bool

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Of a run that goes on; TrainingError where it cannot be read."""
        try:
            return cls(**json.loads((folder / "setup.json").read_bytes()))
        except (OSError, ValueError, TypeError) as error:
            raise TrainingError(f"{folder / 'setup.json'} cannot be read: train anew") from error

    def save(self, folder: Path) -> None:
        """Write `setup.json`."""
        (folder / "setup.json").write_text(json.dumps(asdict(self), indent=2) + "\n", encoding="utf-8")


def check_machine(spec: TrainingSpec) -> None:
    """RecipeError where the recipe asks for what this machine has not."""
    for name in ("compile", "liger"):
        if getattr(spec, name) and not torch.cuda.is_available():
            raise RecipeError(f"training.{name} is for GPUs, and there is none here: leave it out")
    if not torch.cuda.is_available():
        return
    if spec.precision == "bf16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise RecipeError("training.precision is bf16, which this GPU does not compute: set it to auto or fp32")
    if spec.attention == "flash_attention_2" and torch.cuda.get_device_capability() < AMPERE:
        raise RecipeError(
            "training.attention is flash_attention_2, which is not for this GPU: set it to auto or sdpa"
        )


def use_liger(model: Any) -> None:
    """Liger kernels for the norms and gated products of the text layers; RecipeError where it is not installed."""
    try:
        from liger_kernel.transformers import apply_liger_kernel_to_phi3  # type: ignore[import-not-found]
    except ImportError as error:
        raise RecipeError("training.liger needs liger-kernel: pip install 'catalens[liger]'") from error
    apply_liger_kernel_to_phi3(rope=False, fused_linear_cross_entropy=False, model=model)  # both are ours


def estimator_setup(spec: TrainingSpec, cached_features: bool) -> Setup:
    """A recipe as `catalens check` reckons with it."""
    return Setup(
        spec.method,
        frozen_tower=spec.resolved_parts["vision"].train == "frozen",
        rank=spec.lora.rank,
        dropout=spec.lora.dropout > 0,
        cached_features=cached_features,
    )


def needs_checkpointing(
    spec: TrainingSpec, shape: Phi3VConfig, tokens: int, crops: float, rows: int, cached_features: bool
) -> bool:
    """Whether activations are recomputed: as the recipe says, else where such rows would not fit a GPU."""
    if spec.gradient_checkpointing != "auto":
        return spec.gradient_checkpointing
    if not torch.cuda.is_available():
        return False
    memory = step_memory(shape, estimator_setup(spec, cached_features), tokens, crops)
    return memory.peak(rows) > USABLE * torch.cuda.get_device_properties(0).total_memory


def trainer_arguments(recipe: Recipe, folder: Path, plan: Plan, accumulation: int) -> TrainingArguments:
    """The recipe in Trainer's words."""
    spec, gpu = recipe.training, torch.cuda.is_available()
    every = max(1, math.ceil(len(plan) / spec.evaluations))
    arguments = TrainingArguments(
        output_dir=str(folder / "checkpoints"),
        use_cpu=not gpu,
        max_steps=len(plan),
        per_device_train_batch_size=spec.batch_size,
        per_device_eval_batch_size=recipe.evaluation.batch_size,
        gradient_accumulation_steps=accumulation,
        learning_rate=spec.learning_rate,
        lr_scheduler_type=spec.schedule,
        warmup_steps=spec.warmup,
        max_grad_norm=spec.max_grad_norm,
        bf16=product_dtype(spec) == torch.bfloat16,
        tf32=allows_tf32(spec),
        torch_compile=spec.compile,
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=spec.keep_checkpoints,
        load_best_model_at_end=True,
        metric_for_best_model=f"eval_{spec.best_by}",
        greater_is_better=higher_is_better(spec.best_by),
        restore_callback_states_from_checkpoint=True,
        logging_steps=max(1, min(10, len(plan) // 20)),
        logging_nan_inf_filter=False,  # a loss that is no number is shown as it is
        remove_unused_columns=False,
        dataloader_pin_memory=gpu,
        ddp_find_unused_parameters=False,  # every process runs every part in every step
        fsdp="full_shard" if spec.fsdp else None,
        fsdp_config={"version": 2, "transformer_layer_cls_to_wrap": ["Phi3DecoderLayer", "CLIPEncoderLayer"]}
        if spec.fsdp
        else None,
        report_to="none",
        disable_tqdm=True,
        seed=spec.seed,
    )
    if spec.fsdp and arguments.bf16:  # accelerate's own would round the loss, and the sum of the gradients, to bf16
        plugin: Any = arguments.fsdp_plugin_args
        plugin["mixed_precision_policy"] = SHARDED_BF16
    arguments._n_gpu = min(1, arguments.n_gpu)  # torch's DataParallel would cut a batch between a row and its crops
    return arguments
