"""Muon or 8-bit AdamW on the weights that suit them, AdamW on the rest, as one optimizer.

Muon orthogonalises the momentum of a weight matrix (https://kellerjordan.github.io/posts/muon) as it is stored: qkv
and gate_up, several projections in one, as a whole. Embeddings, the head, norms, biases and the picture separators
are no such matrices and stay with AdamW. Adapters are none either, and a recipe cannot ask for it: an orthogonal
step of the thin B goes many times as far as the learning rate says. Under 8-bit AdamW embeddings and head keep
their state in 32 bits, as bitsandbytes advises: most of their rows have a gradient now and then only.
"""

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from catalens.config import Part, TrainingSpec
from catalens.errors import RecipeError
from catalens.training.parts import part_of

LOOKED_UP = {"embed_tokens", "lm_head", "position_embedding"}
"""Parts of a name that belong to tables, not to matrices that transform."""


class OptimizerPair(torch.optim.Optimizer):
    """Two optimizers as one; its parameter groups are theirs, so that a schedule reaches them."""

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> None:
        self.parts = (first, second)
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

    Each group carries its part as `name`. Weight decay is left out for vectors, whatever their shape. Raises
    RecipeError where torch has no Muon or bitsandbytes is not installed.
    """
    wanted = [(name, p) for name, p in parameters if p.requires_grad]
    if spec.optimizer == "adamw":
        return _adamw(wanted, spec, spec.learning_rate)
    special, muon = _special(spec), spec.optimizer == "muon"
    suits = {name: LOOKED_UP.isdisjoint(name.split(".")) and (p.ndim == 2 or not muon) for name, p in wanted}
    suited = _groups([pair for pair in wanted if suits[pair[0]]], spec, spec.learning_rate)
    rest = [pair for pair in wanted if not suits[pair[0]]]
    rate = (muon and spec.adamw_learning_rate) or spec.learning_rate
    if not suited or not rest:
        return special(suited, lr=spec.learning_rate) if suited else _adamw(rest, spec, rate)
    return OptimizerPair(special(suited, lr=spec.learning_rate), _adamw(rest, spec, rate))


def _groups(pairs: Sequence[tuple[str, torch.nn.Parameter]], spec: TrainingSpec, rate: float) -> list[dict[str, Any]]:
    """Parameter groups by part and weight decay; a part's own learning rate goes before `rate`."""
    groups: dict[tuple[Part, float], dict[str, Any]] = {}
    for name, parameter in pairs:
        part = part_of(name)
        vector = parameter.ndim != 2 and parameter.numel() == max(parameter.shape)  # [F], [1, 1, F]
        decay = 0.0 if vector else spec.weight_decay
        own = {"lr": spec.resolved_parts[part].learning_rate or rate, "weight_decay": decay, "name": part}
        groups.setdefault((part, decay), {"params": [], **own})["params"].append(parameter)
    return list(groups.values())


def _adamw(pairs: Sequence[tuple[str, torch.nn.Parameter]], spec: TrainingSpec, rate: float) -> torch.optim.AdamW:
    # fused: one pass over the weights, no temporary copies
    return torch.optim.AdamW(_groups(pairs, spec, rate), lr=rate, fused=True)


def _special(spec: TrainingSpec) -> Callable[..., torch.optim.Optimizer]:
    """The class of the recipe's optimizer, which is not AdamW."""
    if spec.optimizer == "muon":
        if not hasattr(torch.optim, "Muon"):
            raise RecipeError(
                "training.optimizer is muon, which needs torch 2.9 or newer: upgrade torch or take adamw"
            )
        return torch.optim.Muon
    try:
        from bitsandbytes.optim.adamw import AdamW8bit, PagedAdamW8bit
    except ImportError as error:
        raise RecipeError(
            f"training.optimizer is {spec.optimizer}, which needs bitsandbytes: pip install 'catalens[qlora]'"
        ) from error
    return AdamW8bit if spec.optimizer == "adamw_8bit" else PagedAdamW8bit
