"""Devices, precision and processes of this machine."""

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import psutil
import torch
from accelerate import PartialState
from accelerate.utils import broadcast as broadcast_tensor
from transformers.utils.import_utils import enable_tf32

AMPERE = (8, 0)
"""The first capability of a GPU with bf16, TF32 and flash attention 2."""
Precision = Literal["auto", "fp32", "bf16"]


def device() -> torch.device:
    """A GPU where there is one; under torchrun the one of this process."""
    if not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))


def free_memory(device: torch.device) -> int:
    """Bytes that can be had on a device; torch keeps what it has freed of a GPU's, and uses it again."""
    if device.type != "cuda":
        return psutil.virtual_memory().available
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def processes() -> PartialState:
    """The processes that share this work; under torchrun several, else one."""
    return PartialState(cpu=not torch.cuda.is_available())


def gpu_memory() -> int | None:
    """Bytes of the GPU's memory that are free or ours already; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    return free_memory(device()) + torch.cuda.memory_allocated(device())


def broadcast(decision: bool) -> bool:
    """Take the first process's decision in all: clocks and disks differ between them."""
    taken: Any = broadcast_tensor(torch.tensor(decision, device=processes().device))
    return bool(taken)


def compute_dtype(precision: Precision = "auto") -> torch.dtype:
    """Type of matrix products, while training and after it; weights that train are fp32.

    `auto` is bf16 on a GPU that has it, and does not only emulate it; fp32 elsewhere.
    """
    if precision == "auto":
        gpu = torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if gpu else torch.float32
    return torch.bfloat16 if precision == "bf16" else torch.float32


def eager(model: Any) -> AbstractContextManager[object]:
    """Run a model's layers as they are within, even if they are compiled."""
    compiled = any(getattr(module, "_compiled_call_impl", None) for module in model.modules())
    return torch.compiler.set_stance("force_eager") if compiled else nullcontext()


def allows_tf32(precision: Precision) -> bool:
    """Tell whether what is computed in fp32 may round products to TF32: where most are of bf16 anyway."""
    gpu = torch.cuda.is_available() and torch.cuda.get_device_capability() >= AMPERE
    return gpu and compute_dtype(precision) == torch.bfloat16


def set_precision(precision: Precision) -> None:
    """Let a GPU use TF32 or not, by the recipe; torch's own choice is to use it in convolutions."""
    if torch.cuda.is_available():
        enable_tf32(allows_tf32(precision))
