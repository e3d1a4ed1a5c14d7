"""What trains, said by part, and proof that it does.

    vision      model.vision_embed_tokens.img_processor.*            the CLIP tower
    projector   model.vision_embed_tokens.{img_projection,glb_GN,sub_GN}
    embeddings  model.embed_tokens, lm_head
    text        model.layers.*, model.norm

Each is `frozen`, `adapted` (low-rank adapters on its linear modules) or `full`. `prepare_parts` makes it so,
`coverage` says what came of it, and `GradientCheck` stops a run in which a part that should learn gets no gradient.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from catalens.config import Part, TrainingSpec
from catalens.errors import RecipeError, TrainingError
from catalens.model import unused_parameter_names


@dataclass(frozen=True)
class Coverage:
    """What trains of one part."""

    train: str
    parameters: int
    """All of the part, adapters not counted; quantised weights by the numbers that they stand for."""
    trained: int
    """Those that get a gradient, adapters among them."""
    adapted: tuple[str, ...]
    """Modules with adapters, by their official names."""


def part_of(name: str) -> Part:
    """Part of a parameter or module, by its official name; PEFT's prefixes do not matter."""
    if "vision_embed_tokens" in name:
        return "vision" if "img_processor" in name else "projector"
    return "embeddings" if {"embed_tokens", "lm_head"} & set(name.split(".")) else "text"


def prepare_parts(model: Any, spec: TrainingSpec) -> Any:
    """Freeze and adapt as the recipe says; the model itself, or one wrapped by PEFT where a part is adapted.

    What the network never runs stays frozen; what trains is fp32, whatever the model's type. Raises RecipeError where
    a target of LoRA matches no module of an adapted part, TrainingError where nothing would train.
    """
    parts = spec.resolved_parts
    unused = unused_parameter_names(model)
    if any(part.train == "adapted" for part in parts.values()):
        targets = _targets(model, spec)
        whole = [name for name, part in WHOLE.items() if parts[part].train == "full"]
        lora = spec.lora
        model = get_peft_model(
            model,
            LoraConfig(
                r=lora.rank,
                lora_alpha=lora.alpha,  # type: ignore[arg-type]
                lora_dropout=lora.dropout,
                use_rslora=lora.rslora,
                use_dora=lora.dora,
                target_modules=targets,
                modules_to_save=whole or None,
                task_type="CAUSAL_LM",
            ),
        )
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parts[part_of(name)].train == "full")
    for name, parameter in model.named_parameters():
        if _official(name) in unused:
            parameter.requires_grad_(False)
        elif parameter.requires_grad:  # PEFT casts its adapters only, and bf16 rounds small steps to nothing
            parameter.data = parameter.data.float()
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TrainingError("nothing trains: set a part of training.parts to adapted or full")
    return model


WHOLE: Mapping[str, Part] = {
    "model.embed_tokens": "embeddings",
    "lm_head": "embeddings",
    "model.vision_embed_tokens.img_projection": "projector",
    "model.vision_embed_tokens.img_processor": "vision",
}
"""Modules that PEFT trains in full beside adapters. Single parameters (the separators `glb_GN` and `sub_GN`) and the
text layers cannot be: where adapters are in play, the first stay frozen."""


def coverage(model: Any, spec: TrainingSpec) -> dict[Part, Coverage]:
    """What trains, by part."""
    found: dict[Part, Coverage] = {}
    for part, asked in spec.resolved_parts.items():
        own = [(name, p) for name, p in model.named_parameters() if part_of(name) == part]
        base = [p for name, p in own if "lora_" not in name and "original_module" not in name]
        adapted = {_official(name).rpartition(".lora_")[0] for name, _ in own if ".lora_" in name}
        found[part] = Coverage(
            asked.train,
            sum(map(_numbers, base)),
            sum(p.numel() for _, p in own if p.requires_grad),
            tuple(sorted(adapted)),
        )
    return found


def as_json(found: Mapping[Part, Coverage]) -> dict[str, Any]:
    """What goes into the run's `coverage.json` and to the tracker."""
    return {part: asdict(entry) for part, entry in found.items()}


class GradientCheck(TrainerCallback):
    """After the first backward pass every part that should learn has a gradient; else TrainingError."""

    def __init__(self, spec: TrainingSpec) -> None:
        self.spec, self._waiting = spec, True

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Look once."""
        if self._waiting:
            self._waiting = False
            check_gradients(kwargs["model"].named_parameters(), self.spec)


def check_gradients(parameters: Iterable[tuple[str, torch.nn.Parameter]], spec: TrainingSpec) -> None:
    """TrainingError where a part that should learn has no gradient at all, or only zeros."""
    learning: set[Part] = set()
    for name, parameter in parameters:
        if parameter.grad is not None and part_of(name) not in learning and bool(parameter.grad.any()):
            learning.add(part_of(name))
    for part, asked in spec.resolved_parts.items():
        if asked.train != "frozen" and part not in learning:
            raise TrainingError(
                f"training.parts.{part} is {asked.train}, but no gradient reaches it: set it to frozen, "
                "or see that the rows have pictures and answers"
            )


def _targets(model: Any, spec: TrainingSpec) -> list[str]:
    """Full names of the linear modules (and embeddings) to adapt."""
    adapted = {part for part, asked in spec.resolved_parts.items() if asked.train == "adapted"}
    unused = {name.rpartition(".")[0] for name in unused_parameter_names(model)}
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | torch.nn.Embedding)
        and part_of(name) in adapted
        and name not in unused
        and "position_embedding" not in name
    ]
    wanted = spec.lora.targets
    for target in wanted:
        if not any(_matches(name, target) for name in names):
            known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in names}))
            raise RecipeError(
                f"training.lora.targets: {target!r} matches no module of {', '.join(sorted(adapted))}; "
                f"there are {known}"
            )
    return [name for name in names if not wanted or any(_matches(name, target) for target in wanted)]


def _matches(name: str, target: str) -> bool:
    return name == target or name.endswith(f".{target}")


def _official(name: str) -> str:
    """A parameter's name without what PEFT puts around it."""
    name = name.removeprefix("base_model.model.").replace(".base_layer.", ".")
    return name.replace(".modules_to_save.default.", ".").replace(".original_module.", ".")


def _numbers(parameter: torch.nn.Parameter) -> int:
    """Numbers that a parameter stands for: two in each byte of 4-bit weights."""
    return parameter.numel() * (2 if parameter.dtype == torch.uint8 else 1)
