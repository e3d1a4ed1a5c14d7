"""Models on disk: loaded from the hub, a folder or the package; saved as others expect them.

    runs/demo/best/
      config.json  model.safetensors                full fine-tuning, official names
      adapter_config.json  adapter_model.safetensors  LoRA: instead of the two above
      generation_config.json                        greedy, ends at the end token
      tokenizer.json  preprocessor_config.json ...  the processor
      prompt.json                                   question, fields, number format
      answers.json                                  what the table's values look like

Weights are read from safetensors only, remote code is never run.
"""

import hashlib
import json
import logging
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub import snapshot_download
from peft import PeftModel
from peft.tuners.tuners_utils import BaseTunerLayer
from pydantic import ValidationError
from transformers import AutoProcessor, BitsAndBytesConfig, GenerationConfig, PreTrainedConfig
from transformers.integrations.fsdp import is_fsdp_managed_module
from transformers.utils.import_utils import is_flash_attn_2_available

from catalens.config import PromptSpec, Recipe, load_recipe, load_resolved
from catalens.devices import AMPERE, compute_dtype, device, free_memory, set_precision
from catalens.errors import CheckpointError, first_line
from catalens.examples import AnswerSchema
from catalens.files import file_hash, model_folder, read_export
from catalens.model import Family, family_of

transformers.utils.logging.disable_progress_bar()  # a bar for each load says nothing
logging.getLogger("transformers.integrations.bitsandbytes").setLevel(logging.ERROR)  # that weights are dequantised

ASSETS = Path(str(files("catalens"))) / "assets"
TINY = ASSETS / "tiny"
DEMO_RECIPE = ASSETS / "demo.yaml"
LAYOUTS = ("merged", "vllm")
"""Exports that are models in the official layout."""
SHARD = "5GB"
"""Largest file of weights, as the official models have them."""


@dataclass(frozen=True)
class Run:
    """A finished run, loaded."""

    folder: Path
    recipe: Recipe
    prompt: PromptSpec
    versions: Mapping[str, str]
    model: Any  # of any family
    processor: Any
    space: AnswerSchema


def load_model(
    name: str, dtype: torch.dtype = torch.float32, attention: str = "auto", four_bits: bool = False
) -> Any:
    """Load a model by hub id, folder or `tiny`; with `four_bits` the decoder's linear weights are nf4.

    Raises CheckpointError where there is none, where it is another kind of model, or where its weights are not the
    ones that its configuration asks for.
    """
    if (run := _adapted_run(name)) is not None:  # the model that its best adapter makes of its base
        if four_bits:
            raise CheckpointError(
                f"model {name!r} is an adapter, which is merged in full precision: take method lora"
            )
        return _best_model(run / "best", load_recipe(run / "recipe.yaml"), dtype)
    source, family = _source(name), family_of(load_config(name).model_type)
    options: dict[str, Any] = {"attn_implementation": _attention(dtype) if attention == "auto" else attention}
    if four_bits:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=dtype,
            llm_int8_skip_modules=[*family.full_precision],  # whole names: others match nothing
        )
    with _loading(name):
        loaded: Any = family.model_class.from_pretrained(
            source,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # reported below, by name
            **options,
        )
    model, report = loaded
    for problem in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        if keys := sorted(map(str, report[problem])):
            what = f"{len(keys)} {problem.replace('_', ' ')}, such as {keys[0]}"
            raise CheckpointError(f"model {name!r}: its weights do not fit its config.json ({what}): save it again")
    with _loading(name):  # a GPU may be too small
        return model if four_bits else model.to(device())


def load_config(name: str) -> Any:
    """Load a model's configuration by hub id, folder or `tiny`; CheckpointError where no family has its type."""
    if (run := _adapted_run(name)) is not None:
        return load_config(load_recipe(run / "recipe.yaml").model)
    with _loading(name):
        values, _ = PreTrainedConfig.get_config_dict(_source(name))
    family = _family(name, values.get("model_type"))
    with _loading(name):
        return family.model_class.config_class.from_dict(values)


def load_processor(name: str, num_crops: int | None = None) -> Any:
    """Load a processor by hub id, folder or `tiny`; `num_crops` replaces the one that it was saved with."""
    with _loading(name):
        processor: Any = AutoProcessor.from_pretrained(_source(name), trust_remote_code=False)
    family = _family(name, getattr(processor, "model_type", None))
    if num_crops is not None:
        family.limit_tiles(processor, num_crops)
    return processor


def _family(name: str, model_type: str | None) -> Family:
    try:
        return family_of(model_type or "unknown")
    except ValueError as error:
        raise CheckpointError(f"model {name!r} cannot be used: {error}") from error


def save_best(
    folder: Path,
    model: Any,
    processor: Any,
    prompt: PromptSpec,
    space: AnswerSchema,
    weights: Mapping[str, torch.Tensor] | None = None,
    base: str | None = None,
) -> None:
    """Write a trained model, or its adapter, with all that inference needs; `weights` where its own are sharded.

    An adapter names its `base` as `base_id` does.
    """
    model.config.use_cache = True  # training switches it off
    model.save_pretrained(folder, state_dict=weights, max_shard_size=SHARD)
    adapter = folder / "adapter_config.json"
    if base is not None and adapter.is_file():
        values = json.loads(adapter.read_bytes()) | {"base_model_name_or_path": base}
        adapter.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
        (folder / "README.md").unlink(missing_ok=True)  # a form of PEFT's, with the path of the base
    greedy(processor).save_pretrained(folder)
    processor.save_pretrained(folder)
    (folder / "answers.json").write_text(space.model_dump_json(indent=2) + "\n", encoding="utf-8")
    # last: a run that has it is finished
    (folder / "prompt.json").write_text(prompt.model_dump_json(indent=2) + "\n", encoding="utf-8")


def greedy(processor: Any) -> GenerationConfig:
    """Configure greedy generation that ends at the family's end token or at the tokenizer's own."""
    tokenizer, end = processor.tokenizer, family_of(processor.model_type).end_token
    return GenerationConfig(
        do_sample=False,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=sorted({tokenizer.convert_tokens_to_ids(end), tokenizer.eos_token_id}),
        pad_token_id=tokenizer.pad_token_id,
    )


def load_run(folder: Path | str, dtype: torch.dtype | None = None, weights: bool = True) -> Run:
    """Load the best model of a run, adapters merged, ready to write; CheckpointError where it is no finished run.

    It computes in the precision of the recipe, unless `dtype` is given. Without `weights` the model is None. A merged
    export, and one for vLLM, which is merged too, is loaded as a run, in its own precision.
    """
    folder = Path(folder)
    best = model_folder(folder)
    exported = read_export(folder) if best == folder else None
    if exported and exported["to"] not in LAYOUTS:
        raise CheckpointError(f"{folder} is an export to {exported['to']}: give the run itself, or a merged export")
    if not (best / "prompt.json").is_file():
        raise CheckpointError(
            f"{folder} is not a finished run (no best/prompt.json): give the folder `catalens train` made"
        )
    try:
        prompt = PromptSpec.model_validate_json((best / "prompt.json").read_bytes())
        known = best / "answers.json"  # runs of earlier versions have none
        space = AnswerSchema.model_validate_json(known.read_bytes()) if known.is_file() else AnswerSchema()
        saved = folder / "recipe.yaml"
        recipe = _exported_recipe(folder, prompt, exported) if exported else load_resolved(saved)
        versions = {} if exported else json.loads((folder / "versions.json").read_bytes())
    except ValidationError as error:
        raise CheckpointError(f"{best}: prompt.json or answers.json is not of this version of catalens") from error
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{folder / 'versions.json'} cannot be read: the run is not whole") from error
    precision = recipe.training.precision
    set_precision(precision)
    model: Any = _best_model(best, recipe, dtype or compute_dtype(precision)).eval() if weights else None
    return Run(folder, recipe, prompt, versions, model, load_processor(str(best)), space)


def _exported_recipe(folder: Path, prompt: PromptSpec, exported: Mapping[str, Any]) -> Recipe:
    """Make the recipe that an export is loaded by."""
    values = {"catalog": "", "model": str(folder), "prompt": prompt}
    values |= {"training": {"precision": exported["precision"]}, "evaluation": exported["evaluation"]}
    values["number"] = exported.get("number", {"estimate": "mode"})  # those of earlier versions say nothing
    return Recipe.model_validate(values)


def _best_model(best: Path, recipe: Recipe, dtype: torch.dtype) -> Any:
    spec = recipe.training
    if not (best / "adapter_config.json").is_file():
        return load_model(str(best), dtype, spec.attention)
    if not (best / "adapter_model.safetensors").is_file():  # PEFT would look on the hub, and for a pickle
        raise CheckpointError(f"{best}: adapter_model.safetensors is not there: train again")
    _check_base(best.parent, recipe.model)
    model: Any = load_model(recipe.model, dtype, spec.attention, spec.method == "qlora")
    with _loading(str(best)):
        if spec.method == "qlora":
            model = model.dequantize()  # the weights that the adapter learned beside, and was validated with
        adapted = PeftModel.from_pretrained(model, str(best))
        for layer in adapted.modules():
            if isinstance(layer, BaseTunerLayer):  # one after the other: the whole model in fp32 may not fit
                _merge(layer, dtype)
        return adapted.unload().to(dtype)


@contextmanager
def merged(model: Any) -> Iterator[None]:
    """Merge the adapters of a model that trains, as those of its best are merged; its weights come back to the bit.

    One without adapters stays as it is, and so does a sharded one, one whose merged weights have no room beside its
    own, and one of 4 bits: merged, these would be other weights than the adapter learns beside.
    """
    layers: list[Any] = [layer for layer in model.modules() if isinstance(layer, BaseTunerLayer)]
    weights = [weight for layer in layers for weight in layer.get_base_layer().parameters()]
    needed = sum(weight.nbytes for weight in weights) if all(weight.is_floating_point() for weight in weights) else 0
    if not needed or is_fsdp_managed_module(model) or 2 * needed > free_memory(model.device):
        yield
        return
    kept = [weight.data for weight in weights]
    try:
        for layer in layers:
            base = layer.get_base_layer()
            dtype = base.weight.dtype
            for weight in base.parameters():
                weight.data = weight.data.to(torch.float32, copy=True)
            _merge(layer, dtype)
        yield
    finally:
        for layer in layers:
            layer.merged_adapters.clear()
        for weight, own in zip(weights, kept, strict=True):
            weight.data = own


def _merge(layer: Any, dtype: torch.dtype) -> None:
    """Merge the adapter of a layer in fp32, and round once."""
    layer.get_base_layer().float()
    layer.merge()
    layer.get_base_layer().to(dtype)


def weights_hash(name: str) -> str:
    """Content hash of a model's weights, by hub id, folder, run or `tiny`; CheckpointError where it is not there."""
    folder = Path(_source(name))
    with _loading(name):
        if not folder.is_dir():
            folder = Path(snapshot_download(name, allow_patterns=["*.safetensors"]))
        if not (found := sorted(folder.glob("*.safetensors"))):
            raise FileNotFoundError("there are no safetensors")
        return f"sha256:{hashlib.sha256(' '.join(map(_file_hash, found)).encode()).hexdigest()}"


def _file_hash(path: Path) -> str:
    """SHA-256 of a file; one of the hub's cache has it for its name."""
    name = path.resolve().name
    return name if path.is_symlink() and re.fullmatch("[0-9a-f]{64}", name) else file_hash(path)


def base_id(name: str) -> str:
    """Name a base so that it is found from any machine: by hub id, `tiny`, or the content hash of a folder."""
    return weights_hash(name) if Path(name).is_dir() else name


def _check_base(run: Path, name: str) -> None:
    """Raise CheckpointError where the base of an adapter is not there, or is not the one that it was trained on."""
    try:
        known = json.loads((run / "versions.json").read_bytes()).get("base")
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{run / 'versions.json'} cannot be read: the run is not whole") from error
    if known is None:  # runs of earlier versions
        return
    fix = f"name the folder of that one as `model` in {run / 'recipe.yaml'}"
    if Path(name).is_absolute() and not Path(name).is_dir():
        raise CheckpointError(f"{run}: its base model {name} is not there (weights {known}): {fix}")
    if weights_hash(name) != known:
        raise CheckpointError(f"{run}: its base model {name} has changed since the training (was {known}): {fix}")


def load_untrained() -> Run:
    """Load the tiny model that ships with catalens, ready to write."""
    recipe, model = Recipe(catalog="", model="tiny"), load_model("tiny").eval()
    return Run(Path("tiny"), recipe, recipe.prompt, {}, model, load_processor("tiny"), AnswerSchema())


def _attention(dtype: torch.dtype) -> str:
    gpu = torch.cuda.is_available() and torch.cuda.get_device_capability() >= AMPERE
    return "flash_attention_2" if gpu and is_flash_attn_2_available() and dtype == torch.bfloat16 else "sdpa"


def _source(name: str) -> str:
    """The folder or hub id of a model; of a run its best."""
    best = Path(name) / "best"
    return str(TINY) if name == "tiny" else str(best) if (best / "prompt.json").is_file() else name


def _adapted_run(name: str) -> Path | None:
    """The run whose best model is an adapter, where it or its best is named."""
    best = Path(_source(name))
    return best.parent if (best / "adapter_config.json").is_file() and (best / "prompt.json").is_file() else None


@contextmanager
def _loading(name: str) -> Iterator[None]:
    """Whatever a library raises over a damaged model becomes one sentence."""
    try:
        yield
    except Exception as error:
        reason = first_line(error)
        raise CheckpointError(
            f"model {name!r} cannot be loaded ({reason}): give a hub id, a folder with safetensors, or tiny"
        ) from error
