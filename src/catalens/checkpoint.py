"""Models on disk: loaded from the hub, a folder or the package; saved as others expect them.

    runs/demo/best/
      config.json  model.safetensors  generation_config.json     full fine-tuning, official names
      adapter_config.json  adapter_model.safetensors             LoRA: instead of the three above
      tokenizer.json  preprocessor_config.json ...               the processor
      prompt.json                                                question, fields, number format

Weights are read from safetensors only, remote code is never run.
"""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from pydantic import ValidationError

from catalens.config import LoraSpec, PromptSpec, Recipe, load_recipe
from catalens.errors import CheckpointError
from catalens.model import Phi3VForCausalLM, Phi3VProcessor

transformers.utils.logging.disable_progress_bar()  # a bar for each load says nothing

ASSETS = Path(str(files("catalens"))) / "assets"
TINY = ASSETS / "tiny"
DEMO_RECIPE = ASSETS / "demo.yaml"


@dataclass(frozen=True)
class Run:
    """A finished run, loaded."""

    folder: Path
    recipe: Recipe
    prompt: PromptSpec
    model: Any  # Phi3VForCausalLM
    processor: Phi3VProcessor


def load_model(name: str, dtype: torch.dtype = torch.float32, attention: str = "auto") -> Phi3VForCausalLM:
    """Load a model by hub id, folder or `tiny`; CheckpointError where there is none."""
    options: dict[str, Any] = {} if attention == "auto" else {"attn_implementation": attention}
    try:
        model = Phi3VForCausalLM.from_pretrained(_source(name), dtype=dtype, use_safetensors=True, **options)
    except (OSError, ValueError, ImportError) as error:
        raise CheckpointError(_sorry(name, error)) from error
    return model.to(device())  # type: ignore[arg-type]


def load_processor(name: str, num_crops: int | None = None) -> Phi3VProcessor:
    """Load a processor by hub id, folder or `tiny`; `num_crops` replaces the one that it was saved with."""
    try:
        processor = Phi3VProcessor.from_pretrained(_source(name))
    except (OSError, ValueError) as error:
        raise CheckpointError(_sorry(name, error)) from error
    if num_crops is not None:
        processor.image_processor.num_crops = num_crops
    return processor


def add_lora(model: Phi3VForCausalLM, spec: LoraSpec) -> PeftModel:
    """Wrap a model with adapters; CheckpointError where a target matches no module."""
    names = [name for name, module in model.named_modules() if isinstance(module, torch.nn.Linear)]
    for target in spec.targets:
        if not any(name == target or name.endswith(f".{target}") for name in names):
            known = ", ".join(sorted({name.rsplit(".", 1)[-1] for name in names}))
            raise CheckpointError(f"training.lora.targets: {target!r} matches no module; linear modules are {known}")
    return get_peft_model(
        model,
        LoraConfig(
            r=spec.rank,
            lora_alpha=spec.alpha,  # type: ignore[arg-type]
            lora_dropout=spec.dropout,
            target_modules=list(spec.targets),
            # the full name: `vision_embed_tokens` ends with `embed_tokens` too
            modules_to_save=["model.embed_tokens", "lm_head"] if spec.train_embeddings else None,
            task_type="CAUSAL_LM",
        ),
    )


def save_best(folder: Path, model: Any, processor: Phi3VProcessor, prompt: PromptSpec) -> None:
    """Write a trained model, or its adapter, with all that inference needs."""
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "prompt.json").write_text(prompt.model_dump_json(indent=2) + "\n", encoding="utf-8")


def load_run(folder: Path | str, dtype: torch.dtype | None = None) -> Run:
    """Load the best model of a run, adapters merged, ready to write; CheckpointError where it is no finished run."""
    folder = Path(folder)
    best = folder / "best"
    if not (best / "prompt.json").is_file():
        raise CheckpointError(
            f"{folder} is not a finished run (no best/prompt.json): give the folder `catalens train` made"
        )
    recipe = load_recipe(folder / "recipe.yaml")
    try:
        prompt = PromptSpec.model_validate_json((best / "prompt.json").read_bytes())
    except ValidationError as error:
        raise CheckpointError(f"{best / 'prompt.json'}: not a prompt of this version of catalens") from error
    dtype = dtype or inference_dtype()
    adapter = (best / "adapter_config.json").is_file()
    model: Any = load_model(recipe.model if adapter else str(best), dtype, recipe.training.attention)
    if adapter:
        model = PeftModel.from_pretrained(model, str(best)).merge_and_unload()
    return Run(folder, recipe, prompt, model.eval(), load_processor(str(best)))


def device() -> torch.device:
    """A GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def inference_dtype() -> torch.dtype:
    """bf16 on a GPU that has it, fp32 elsewhere."""
    return torch.bfloat16 if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else torch.float32


def _source(name: str) -> str:
    return str(TINY) if name == "tiny" else name


def _sorry(name: str, error: Exception) -> str:
    reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    return f"model {name!r} cannot be loaded ({reason}): give a hub id, a folder with safetensors, or tiny"
