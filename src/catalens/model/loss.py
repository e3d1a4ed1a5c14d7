"""Cross-entropy of the head's words without ever holding all their scores.

    hidden [L, H], head [V, H], targets [L] -> sum of -log softmax(hidden @ head.T)[targets]

With 32,064 words the scores of a batch are the largest thing in a training step of a small text model: they are
written, read for the softmax, and read again for the gradient. Here they exist for some positions at a time, and what
the backward pass needs, [L, H] and [V, H], is made while they do (the idea of Wijmans et al., 2024, "Cut your
losses", in plain torch).

Shapes: L labels, H hidden size, V vocabulary.
"""

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

CHUNK = 2**22
"""Scores that exist at once on a CPU, 16 MB: what its caches hold."""
CHUNK_GPU = 2**26


class LanguageHead(nn.Linear):
    """A linear head that gives scores [..., V] or, with targets [L], the sum of their losses.

    Both are calls of the module, so that FSDP has its weight gathered and PEFT's copy of it answers.
    """

    gives_loss = True

    def forward(
        self, input: torch.Tensor, targets: torch.Tensor | None = None, smoothing: float = 0.0
    ) -> torch.Tensor:
        """Scores of hidden states [..., H], or `linear_cross_entropy` of [L, H]."""
        if targets is None:
            return super().forward(input)
        return linear_cross_entropy(input, self.weight, targets, smoothing)


def linear_cross_entropy(
    hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, smoothing: float = 0.0
) -> torch.Tensor:
    """The sum of the losses in fp32, differentiable once; under autocast products are in its type.

    Where gradients are off none is made.

    Args:
        hidden: [L, H].
        head: [V, H].
        targets: [L], none of them ignored.
        smoothing: share of each target that is spread over the words.
    """
    if not torch.is_grad_enabled():  # a Function is not told
        hidden, head = hidden.detach(), head.detach()
    kind = hidden.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else hidden.dtype
    with torch.autocast(kind, enabled=False):
        total: Any = _LinearCrossEntropy.apply(hidden.to(dtype), head.to(dtype), targets, smoothing)
    return total


class _LinearCrossEntropy(torch.autograd.Function):
    """Loss and gradients together, some positions at a time."""

    @staticmethod
    def forward(
        ctx: Any, hidden: torch.Tensor, head: torch.Tensor, targets: torch.Tensor, smoothing: float
    ) -> torch.Tensor:
        wants_hidden, wants_head = ctx.needs_input_grad[:2]
        words = head.shape[0]
        rows = max(1, (CHUNK_GPU if hidden.is_cuda else CHUNK) // words)
        of_hidden = torch.empty_like(hidden) if wants_hidden else None
        of_head = torch.zeros_like(head) if wants_head else None
        total = torch.zeros((), device=hidden.device)
        for start in range(0, len(hidden), rows):
            some, wanted = hidden[start : start + rows], targets[start : start + rows, None]
            scores = F.log_softmax(F.linear(some, head), -1, dtype=torch.float32)  # [rows, V]
            total -= (1 - smoothing) * scores.gather(1, wanted).sum()
            if smoothing:
                total -= smoothing * scores.mean(-1).sum()
            if not (wants_hidden or wants_head):
                continue
            gradient = scores.exp_()
            if smoothing:
                gradient -= smoothing / words
            gradient.scatter_add_(1, wanted, torch.full_like(wanted, -(1 - smoothing), dtype=gradient.dtype))
            gradient = gradient.to(hidden.dtype)
            if of_hidden is not None:
                of_hidden[start : start + rows] = gradient @ head
            if of_head is not None:
                of_head.addmm_(gradient.T, some)
        ctx.save_for_backward(of_hidden, of_head)
        return total

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> Any:
        # of one dimension, a factor in fp32 is not rounded to the type of a gradient in bf16
        scaled = (None if made is None else made.mul_(grads[0][None]) for made in ctx.saved_tensors)
        return *scaled, None, None
