"""Muon on the 2-D weights, AdamW on the rest, as one optimizer.

Muon orthogonalises the momentum of a weight matrix (https://kellerjordan.github.io/posts/muon); embeddings, the head,
norms, biases and the picture separators are no such matrices and stay with AdamW.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch

from catalens.config import TrainingSpec
from catalens.errors import RecipeError

LOOKED_UP = {"embed_tokens", "lm_head", "position_embedding"}
"""Parts of a name that belong to tables, not to matrices that transform."""


class MuonWithAdamW(torch.optim.Optimizer):
    """Steps both; its parameter groups are theirs, so that a schedule reaches them."""

    def __init__(self, muon: torch.optim.Optimizer, adamw: torch.optim.Optimizer) -> None:
        self.parts = (muon, adamw)
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """One step of both; no closure is needed by either."""
        for part in self.parts:
            part.step()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients of both."""
        for part in self.parts:
            part.zero_grad(set_to_none)

    def state_dict(self) -> dict[str, Any]:
        """State of both, in order."""
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore both; the groups are theirs again afterwards."""
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = [group for part in self.parts for group in part.param_groups]


def make_optimizer(parameters: Iterable[tuple[str, torch.nn.Parameter]], spec: TrainingSpec) -> torch.optim.Optimizer:
    """The recipe's optimizer over the (name, parameter) pairs that want a gradient.

    Weight decay is left out for what has fewer than two dimensions. Raises RecipeError where torch has no Muon.
    """
    wanted = [(name, p) for name, p in parameters if p.requires_grad]
    matrices = []
    if spec.optimizer == "muon":
        if not hasattr(torch.optim, "Muon"):
            raise RecipeError(
                "training.optimizer is muon, which needs torch 2.9 or newer: upgrade torch or take adamw"
            )
        matrices = [p for name, p in wanted if p.ndim == 2 and LOOKED_UP.isdisjoint(name.split("."))]
    taken = {id(p) for p in matrices}
    rest = [p for _, p in wanted if id(p) not in taken]
    groups = [
        {"params": [p for p in rest if p.ndim >= 2], "weight_decay": spec.weight_decay},
        {"params": [p for p in rest if p.ndim < 2], "weight_decay": 0.0},
    ]
    rate = (spec.adamw_learning_rate or spec.learning_rate) if matrices else spec.learning_rate
    adamw = torch.optim.AdamW([group for group in groups if group["params"]], lr=rate)
    if not matrices:
        return adamw
    muon = torch.optim.Muon(matrices, lr=spec.learning_rate, weight_decay=spec.weight_decay)
    return MuonWithAdamW(muon, adamw)
