"""Muon on the 2-D weights, AdamW on the rest, as one optimizer.

Muon orthogonalises the momentum of a weight matrix (https://kellerjordan.github.io/posts/muon); embeddings, the head,
norms, biases and the picture separators are no such matrices and stay with AdamW.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from catalens.config import Part, TrainingSpec
from catalens.errors import RecipeError
from catalens.training.parts import part_of

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
    """The recipe's optimizer over the (name, parameter) pairs that want a gradient, in groups by part and decay.

    Each group carries its part as `name`. Weight decay is left out for what has fewer than two dimensions. Raises
    RecipeError where torch has no Muon or bitsandbytes is not installed.
    """
    wanted = [(name, p) for name, p in parameters if p.requires_grad]
    if spec.optimizer == "adamw":
        return _adamw(_groups(wanted, spec, spec.learning_rate), spec.learning_rate)
    if spec.optimizer != "muon":
        return _eight_bits(spec)(_groups(wanted, spec, spec.learning_rate), lr=spec.learning_rate)
    if not hasattr(torch.optim, "Muon"):
        raise RecipeError("training.optimizer is muon, which needs torch 2.9 or newer: upgrade torch or take adamw")
    is_matrix = {name: p.ndim == 2 and LOOKED_UP.isdisjoint(name.split(".")) for name, p in wanted}
    matrices = _groups([pair for pair in wanted if is_matrix[pair[0]]], spec, spec.learning_rate)
    rate = spec.adamw_learning_rate or spec.learning_rate
    rest = _groups([pair for pair in wanted if not is_matrix[pair[0]]], spec, rate)
    if not matrices or not rest:
        return torch.optim.Muon(matrices, lr=rate) if matrices else _adamw(rest, rate)
    return MuonWithAdamW(torch.optim.Muon(matrices, lr=spec.learning_rate), _adamw(rest, rate))


def _groups(pairs: Sequence[tuple[str, torch.nn.Parameter]], spec: TrainingSpec, rate: float) -> list[dict[str, Any]]:
    """Parameter groups by part and weight decay; a part's own learning rate goes before `rate`."""
    groups: dict[tuple[Part, float], dict[str, Any]] = {}
    for name, parameter in pairs:
        part = part_of(name)
        decay = spec.weight_decay if parameter.ndim >= 2 else 0.0
        own = {"lr": spec.resolved_parts[part].learning_rate or rate, "weight_decay": decay, "name": part}
        groups.setdefault((part, decay), {"params": [], **own})["params"].append(parameter)
    return list(groups.values())


def _adamw(groups: list[dict[str, Any]], rate: float) -> torch.optim.AdamW:
    return torch.optim.AdamW(groups, lr=rate, fused=True)  # one pass over the weights, no temporary copies


def _eight_bits(spec: TrainingSpec) -> Callable[..., torch.optim.Optimizer]:
    try:
        from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit
    except ImportError as error:
        raise RecipeError(
            f"training.optimizer is {spec.optimizer}, which needs bitsandbytes: pip install 'catalens[qlora]'"
        ) from error
    return AdamW8bit if spec.optimizer == "adamw_8bit" else PagedAdamW8bit
