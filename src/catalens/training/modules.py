"""Freezing, adapters, optimizers: what trains, said by part, and proof that it does.

    vision      model.vision_embed_tokens.img_processor.*            the CLIP tower
    projector   model.vision_embed_tokens.{img_projection,glb_GN,sub_GN}
    embeddings  model.embed_tokens, lm_head
    text        model.layers.*, model.norm

Each is `frozen`, `adapted` (low-rank adapters on its linear modules) or `full`. `prepare_parts` makes it so,
`coverage` says what came of it, and `check_gradients` stops a run in which a part that should learn gets no gradient.

Muon orthogonalises the momentum of a weight matrix (https://kellerjordan.github.io/posts/muon) as it is stored: qkv
and gate_up, several projections in one, as a whole. Embeddings, the head, norms, biases and the picture separators
are no such matrices and stay with AdamW. Adapters are none either, and a recipe cannot ask for it: an orthogonal
step of the thin B goes many times as far as the learning rate says. Under 8-bit AdamW embeddings and head keep
their state in 32 bits, as bitsandbytes advises: most of their rows have a gradient now and then only.
"""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.helpers import disable_input_dtype_casting

from catalens.config import Part, TrainingSpec
from catalens.devices import compute_dtype
from catalens.errors import RecipeError, TrainingError
from catalens.model import Family, family_of


@dataclass(frozen=True)
class Coverage:
    """Trained and adapted share of one part."""

    train: str
    parameters: int
    """All of the part, adapters not counted; quantised weights by the numbers that they stand for."""
    trained: int
    """Those that get a gradient, adapters among them."""
    adapted: tuple[str, ...]
    """Modules with adapters, by their official names."""


def prepare_parts(model: Any, spec: TrainingSpec) -> Any:
    """Freeze and adapt as the recipe says; the model itself, or one wrapped by PEFT where a part is adapted.

    What the network never runs stays frozen; what trains is fp32, whatever the model's type, but for matrices where
    the recipe says `weights: bf16`. Raises RecipeError where
    a target of LoRA matches no module of an adapted part, TrainingError where nothing would train.
    """
    parts, family = spec.resolved_parts, family_of(model.config.model_type)
    unused = family.unused_parameter_names(model)
    if any(part.train == "adapted" for part in parts.values()):
        # PEFT trains whole modules in full beside adapters, no single parameters (separators) and no text layers
        whole = [name for name, part in family.whole_modules.items() if parts[part].train == "full"]
        lora = spec.lora
        alpha: Any = lora.alpha  # PEFT takes fractions, too
        config = LoraConfig(
            r=lora.rank,
            lora_alpha=alpha,
            lora_dropout=lora.dropout,
            use_rslora=lora.rslora,
            use_dora=lora.dora,
            target_modules=_targets(family, model, spec),
            modules_to_save=whole or None,
            task_type="CAUSAL_LM",
        )
        model = get_peft_model(model, config)
        written: Any = model.peft_config["default"]
        written.target_modules = sorted(written.target_modules)  # a set by now, whose order is another each time
    else:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(parts[family.part_of(name)].train == "full")
    for name, parameter in model.named_parameters():
        if _official(name) in unused:
            parameter.requires_grad_(False)
        elif parameter.requires_grad and not (spec.weights == "bf16" and _is_matrix(family, name, parameter)):
            # PEFT casts its adapters only, and bf16 rounds small steps to nothing
            parameter.data = parameter.data.float()
    if not any(parameter.requires_grad for parameter in model.parameters()):
        raise TrainingError("nothing trains: set a part of training.parts to adapted or full")
    return model


def compiles(spec: TrainingSpec) -> bool:
    """Tell whether layers are compiled, by the recipe, else by the machine."""
    return torch.cuda.is_available() and not spec.fsdp if spec.compile == "auto" else spec.compile


def compile_layers(model: Any) -> None:
    """Compile each layer of the decoder for the very shapes of batches, each of the tower for any number of tiles.

    Nothing may change the type of a weight from here on.
    """
    family = family_of(model.config.model_type)
    # all layers of a kind share one code, of which torch keeps 8 versions by default, and then compiles no more
    limits: Any = torch._dynamo.config
    limits.recompile_limit = max(64, limits.recompile_limit)
    for name, module in model.named_modules():
        if type(module).__name__ in family.layer_classes:
            module.compile(dynamic=None if family.part_of(name) == "vision" else False)


def uncast_adapters(model: Any, spec: TrainingSpec) -> AbstractContextManager[Any]:
    """Let autocast alone choose the type that adapters compute in, within a context.

    Their weights are fp32, and PEFT casts what enters them to that: under autocast, a copy of every activation to
    fp32 and another one back.
    """
    casts = isinstance(model, PeftModel) and not spec.lora.dora and compute_dtype(spec.precision) == torch.bfloat16
    return disable_input_dtype_casting(model) if casts else nullcontext()


def compile_seconds() -> float:
    """Sum up what compiling has taken in this process."""
    from torch._dynamo.utils import calculate_time_spent  # which takes a second to import

    return calculate_time_spent()["total_wall_time"]


def coverage(model: Any, spec: TrainingSpec) -> dict[Part, Coverage]:
    """Count what trains, by part."""
    found: dict[Part, Coverage] = {}
    part_of = family_of(model.config.model_type).part_of
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


def check_gradients(model: Any, spec: TrainingSpec) -> None:
    """Raise TrainingError where a part that should learn has no gradient at all, or only zeros."""
    part_of, learning = family_of(model.config.model_type).part_of, set[Part]()
    for name, parameter in model.named_parameters():
        if parameter.grad is not None and part_of(name) not in learning and bool(parameter.grad.any()):
            learning.add(part_of(name))
    for part, asked in spec.resolved_parts.items():
        if asked.train != "frozen" and part not in learning:
            raise TrainingError(
                f"training.parts.{part} is {asked.train}, but no gradient reaches it: set it to frozen, "
                "or see that the rows have pictures and answers"
            )


def _targets(family: Family, model: Any, spec: TrainingSpec) -> list[str]:
    """Full names of the linear modules, and of the embeddings of words, to adapt."""
    adapted = {part for part, asked in spec.resolved_parts.items() if asked.train == "adapted"}
    unused = {name.rpartition(".")[0] for name in family.unused_parameter_names(model)}
    words = (model.get_input_embeddings(), model.get_output_embeddings())
    names = [
        name
        for name, module in model.named_modules()
        if (isinstance(module, torch.nn.Linear) or module in words)
        and family.part_of(name) in adapted
        and name not in unused
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


class OptimizerPair(torch.optim.Optimizer):
    """Two optimizers as one; its parameter groups are theirs, so that a schedule reaches them."""

    def __init__(self, first: torch.optim.Optimizer, second: torch.optim.Optimizer) -> None:
        self.parts = (first, second)
        super().__init__([group for part in self.parts for group in part.param_groups], {})
        self.param_groups = [group for part in self.parts for group in part.param_groups]

    @torch.no_grad()
    def step(self, closure: Any = None) -> Any:
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


def make_optimizer(model: Any, spec: TrainingSpec) -> torch.optim.Optimizer:
    """Make the recipe's optimizer over the parameters that want a gradient, in groups by part and decay.

    Each group carries its part as `name`. Weight decay is left out for vectors, whatever their shape. Raises
    RecipeError where torch has no Muon or bitsandbytes is not installed.
    """
    family, muon = family_of(model.config.model_type), spec.optimizer == "muon"
    wanted = [(name, p) for name, p in model.named_parameters() if p.requires_grad]
    rate = (muon and spec.adamw_learning_rate) or spec.learning_rate
    suits = {
        name: spec.optimizer != "adamw" and not _is_table(family, name) and (p.ndim == 2 or not muon)
        for name, p in wanted
    }
    suited = _groups(family, [pair for pair in wanted if suits[pair[0]]], spec, spec.learning_rate)
    rest = _groups(family, [pair for pair in wanted if not suits[pair[0]]], spec, rate)
    made: list[torch.optim.Optimizer] = []
    if suited:
        made.append(_special(spec)(suited, lr=spec.learning_rate))
    if rest:  # fused: one pass over the weights, no temporary copies
        made.append(torch.optim.AdamW(rest, lr=rate, fused=True))
    return OptimizerPair(*made) if len(made) == 2 else made[0]


def _is_table(family: Family, name: str) -> bool:
    return any(part in family.tables for part in name.split("."))


def _is_matrix(family: Family, name: str, parameter: torch.Tensor) -> bool:
    return parameter.ndim == 2 and not _is_table(family, name)


class StochasticRounding:
    """Mixed into an optimizer of bitsandbytes: weights in bf16 are updated in fp32, and rounded up or down at random.

    Rounded to the nearest, a step below 1/512 of a weight would be lost each time; so it counts on average.
    """

    state: dict[torch.Tensor, Any]

    @torch.no_grad()
    def update_step(self, group: dict[str, Any], p: torch.Tensor, gindex: int, pindex: int) -> None:
        """Update one weight."""
        update: Any = super().update_step  # pyright: ignore[reportAttributeAccessIssue]
        if p.dtype != torch.bfloat16 or p.grad is None:
            return update(group, p, gindex, pindex)
        exact = torch.nn.Parameter(p.detach().float())
        exact.grad = p.grad.float()
        self.state[exact] = self.state[p]
        update(group, exact, gindex, pindex)
        del self.state[exact]
        return rounded_into(p, exact)


@torch.no_grad()
def rounded_into(weight: torch.Tensor, exact: torch.Tensor) -> None:
    """Write fp32 values into a weight in bf16, each as one of its two neighbours, more often as the nearer one."""
    bits = exact.detach().view(torch.int32)
    noise = torch.randint_like(bits, 1 << 16)  # below the last bit that bf16 keeps
    weight.copy_(((bits + noise) & -(1 << 16)).view(torch.float32))


def _groups(
    family: Family, pairs: Sequence[tuple[str, torch.nn.Parameter]], spec: TrainingSpec, rate: float
) -> list[dict[str, Any]]:
    """Parameter groups by part and weight decay; a part's own learning rate goes before `rate`."""
    groups: dict[tuple[Part, float], dict[str, Any]] = {}
    for name, parameter in pairs:
        part: Part = family.part_of(name)
        vector = parameter.ndim != 2 and parameter.numel() == max(parameter.shape)  # [F], [1, 1, F]
        decay = 0.0 if vector else spec.weight_decay
        own = {"lr": spec.resolved_parts[part].learning_rate or rate, "weight_decay": decay, "name": part}
        groups.setdefault((part, decay), {"params": [], **own})["params"].append(parameter)
    return list(groups.values())


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
    made: Any = AdamW8bit if spec.optimizer == "adamw_8bit" else PagedAdamW8bit
    return type(made.__name__, (StochasticRounding, made), {}) if spec.weights == "bf16" else made
