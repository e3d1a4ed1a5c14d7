import json
import shutil
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from peft import LoraConfig, get_peft_model
from peft.tuners.tuners_utils import BaseTunerLayer
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from catalens import checkpoint, devices
from catalens.checkpoint import TINY, load_model, load_processor, load_run, merged, save_best
from catalens.config import PromptSpec, Recipe, TrainingSpec, dump_recipe
from catalens.devices import compute_dtype
from catalens.errors import CheckpointError
from catalens.examples import AnswerSchema
from catalens.training import prepare_parts


def test_tiny_is_small_trained_and_complete():
    assert sum(file.stat().st_size for file in TINY.iterdir()) <= 8 * 2**20
    assert {"config.json", "model.safetensors", "tokenizer.json", "preprocessor_config.json", "README.md"} <= {
        file.name for file in TINY.iterdir()
    }
    model = load_model("tiny")
    assert 1e6 <= sum(parameter.numel() for parameter in model.parameters()) <= 3e6
    assert load_processor("tiny", num_crops=2).image_processor.num_crops == 2


def test_tiny_has_phi3s_special_tokens_and_single_digits():
    tokenizer = load_processor("tiny").tokenizer
    for token in ("<|user|>", "<|assistant|>", "<|end|>", "<|system|>", "<|endoftext|>", "<|image|>"):
        assert len(tokenizer(token, add_special_tokens=False)["input_ids"]) == 1
    assert len(tokenizer("1290.5", add_special_tokens=False)["input_ids"]) == 6
    for text in ("Étole — 数学 🙂", "  two  spaces", "price: $1,290.00"):
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text


@pytest.mark.parametrize("name", ["no/such-folder", "nobody/no-such-model"])
def test_a_model_that_is_not_there_is_one_sentence(name: str):
    with pytest.raises(CheckpointError, match=f"model '{name}' cannot be loaded"):
        load_model(name)
    with pytest.raises(CheckpointError, match=f"model '{name}' cannot be loaded"):
        load_processor(name)


def test_pickled_weights_are_never_loaded(tmp_path):
    shutil.copytree(TINY, tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    torch.save(load_model("tiny").state_dict(), tmp_path / "model" / "pytorch_model.bin")
    with pytest.raises(CheckpointError):
        load_model(str(tmp_path / "model"))


@pytest.fixture
def copied(tmp_path):
    shutil.copytree(TINY, tmp_path / "model")
    return tmp_path / "model"


def test_another_kind_of_model_is_refused(copied):
    config = json.loads((copied / "config.json").read_text())
    (copied / "config.json").write_text(json.dumps(config | {"model_type": "llama"}))
    with pytest.raises(CheckpointError, match="model_type is 'llama': give a model of type phi3_v"):
        load_model(str(copied))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda weights: weights.pop("lm_head.weight"), "1 missing keys, such as lm_head.weight"),
        (lambda weights: weights.update({"extra.weight": torch.ones(2)}), "1 unexpected keys, such as extra.weight"),
        (lambda weights: weights.update({"lm_head.weight": torch.ones(2, 2)}), "lm_head.weight"),
    ],
)
def test_weights_that_do_not_fit_are_refused(copied, change, words: str):
    weights = load_file(copied / "model.safetensors")
    change(weights)
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckpointError, match=words):
        load_model(str(copied))


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "tokenizer.json"])
def test_a_damaged_file_is_one_sentence(copied, name: str):
    (copied / name).write_bytes((copied / name).read_bytes()[:100])
    with pytest.raises(CheckpointError, match="cannot be loaded"):
        load_processor(str(copied)) if name == "tokenizer.json" else load_model(str(copied))


@pytest.mark.integration
def test_a_full_run_is_saved_under_the_official_names(run):
    with safe_open(run / "best" / "model.safetensors", "pt") as weights:
        names = set(weights.keys())
    assert "model.vision_embed_tokens.img_processor.vision_model.embeddings.class_embedding" in names
    assert {"model.embed_tokens.weight", "lm_head.weight", "model.vision_embed_tokens.glb_GN"} <= names
    assert json.loads((run / "best" / "config.json").read_text())["architectures"] == ["Phi3VForCausalLM"]
    generation = json.loads((run / "best" / "generation_config.json").read_text())
    tokenizer = load_processor("tiny").tokenizer
    assert tokenizer.convert_tokens_to_ids("<|end|>") in generation["eos_token_id"]
    assert json.loads((run / "best" / "config.json").read_text())["use_cache"] is True
    loaded = load_run(run)
    assert not loaded.model.training
    assert loaded.prompt == loaded.recipe.prompt


def test_a_folder_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(CheckpointError, match="not a finished run"):
        load_run(tmp_path)


@pytest.mark.parametrize("precision", ["auto", "fp32", "bf16"])
def test_a_run_computes_in_the_precision_of_its_recipe_whatever_the_gpu_has(monkeypatch, precision: str):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    expected = torch.float32 if precision == "fp32" else torch.bfloat16
    assert compute_dtype(precision) == expected


@pytest.mark.parametrize(
    ("capability", "dtype", "attention"),
    [((7, 0), torch.float32, "sdpa"), ((7, 5), torch.float32, "sdpa"), ((8, 0), torch.bfloat16, "flash_attention_2")],
)
def test_older_gpus_emulate_no_bf16_and_have_no_flash_attention(monkeypatch, capability, dtype, attention: str):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    monkeypatch.setattr(
        torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation or capability >= (8, 0)
    )
    monkeypatch.setattr(checkpoint, "is_flash_attn_2_available", lambda: True)
    assert compute_dtype() == dtype
    assert checkpoint._attention(torch.bfloat16) == attention
    assert checkpoint._attention(torch.float32) == "sdpa"


def adapted_run(folder: Path, **training) -> Any:
    """A run with an adapter that is far from nothing; the model that it was, unmerged."""
    prompt, spec = PromptSpec(), TrainingSpec.model_validate(training)
    dtype = compute_dtype(spec.precision)
    torch.manual_seed(0)
    base = load_model("tiny", dtype, spec.attention, spec.method == "qlora")
    model = prepare_parts(base, spec).eval()
    for name, weight in model.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(weight, std=0.03)
    save_best(folder / "best", model, load_processor("tiny"), prompt, AnswerSchema())
    recipe = Recipe(catalog="", training=spec)
    (folder / "recipe.yaml").write_text(dump_recipe(recipe))
    (folder / "versions.json").write_text("{}")
    return model


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=torch.randint(10, 500, (4, 20), generator=torch.Generator().manual_seed(1))).logits


@pytest.mark.integration
def test_a_merged_model_is_the_one_that_was_validated(tmp_path):
    model = adapted_run(tmp_path, method="lora", precision="fp32")
    served, plain = logits(load_run(tmp_path).model), logits(load_model("tiny"))
    assert (served - plain).abs().max() > 0.5
    torch.testing.assert_close(served, logits(model), atol=1e-3, rtol=0)


@pytest.mark.integration
def test_a_model_that_learned_in_4_bits_is_merged_into_what_these_hold(tmp_path):
    model = adapted_run(tmp_path, method="qlora", precision="fp32")
    merged = load_run(tmp_path).model
    assert not [name for name, module in merged.named_modules() if "lora" in name or "4bit" in type(module).__name__]
    layer = model.get_base_model().model.layers[0].self_attn.qkv_proj
    held = dequantize_4bit(layer.base_layer.weight.data, layer.base_layer.weight.quant_state)
    own = held + layer.get_delta_weight("default")
    torch.testing.assert_close(merged.model.layers[0].self_attn.qkv_proj.weight, own, atol=1e-6, rtol=0)
    (tmp_path / "recipe.yaml").write_text((tmp_path / "recipe.yaml").read_text().replace("qlora", "lora"))
    validated, other = logits(model), logits(load_run(tmp_path).model)  # other: merged into the weights before nf4
    assert (logits(merged) - validated).abs().mean() < 0.1 * (other - validated).abs().mean()
    assert (logits(merged).argmax(-1) == validated.argmax(-1)).float().mean() > 0.95


@pytest.mark.integration
def test_adapters_are_merged_in_fp32_and_rounded_once(tmp_path):
    adapted_run(tmp_path, method="lora", precision="bf16")
    exact, rounded = load_run(tmp_path, torch.float32).model, load_run(tmp_path).model
    assert {weight.dtype for weight in rounded.parameters()} == {torch.bfloat16}
    for (name, weight), once in zip(exact.named_parameters(), rounded.parameters(), strict=True):
        if "qkv_proj" in name or "gate_up_proj" in name:
            base = load_model("tiny", torch.bfloat16).get_parameter(name).float()
            delta = weight - load_model("tiny").get_parameter(name)
            assert torch.equal(once, (base + delta).to(torch.bfloat16)), name


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a device")
def test_a_model_that_the_device_does_not_take_is_one_sentence(monkeypatch):
    monkeypatch.setattr(checkpoint, "device", lambda: torch.device("cuda"))  # there is none here
    with pytest.raises(CheckpointError, match="model 'tiny' cannot be loaded"):
        load_model("tiny")


def test_a_run_is_finished_when_all_else_is_written(tmp_path, monkeypatch):
    monkeypatch.setattr(AnswerSchema, "model_dump_json", lambda *args, **kwargs: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        save_best(tmp_path / "best", load_model("tiny"), load_processor("tiny"), PromptSpec(), AnswerSchema())
    assert not (tmp_path / "best" / "prompt.json").exists()


@pytest.mark.parametrize(("precision", "rounds"), [("fp32", False), ("bf16", True)])
def test_a_run_is_loaded_with_the_rounding_of_its_recipe(precision, rounds, tmp_path, monkeypatch):
    """torch's own choice is TF32 in convolutions, and none in other products."""
    adapted_run(tmp_path, method="lora", precision=precision)
    asked: list[bool] = []
    monkeypatch.setattr(devices, "enable_tf32", asked.append)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 0))
    load_run(tmp_path, weights=False)
    assert asked == [rounds]


def adapted(model, **options):
    """A model with adapters that change what it says."""
    targets = ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"]
    adapted = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=targets, **options))
    with torch.no_grad():
        for name, weight in adapted.named_parameters():
            if "lora_B" in name:
                weight.normal_(std=0.02, generator=torch.Generator().manual_seed(len(name)))
    return adapted.eval()


@pytest.mark.integration
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("dora", [False, True])
def test_adapters_are_merged_for_a_while_and_every_bit_comes_back(dtype, dora):
    model = adapted(load_model("tiny", dtype), use_dora=dora)
    state = {name: (tensor, tensor.clone()) for name, tensor in model.state_dict().items()}
    ids = torch.tensor([[5, 99, 301, 7]])
    with torch.no_grad():
        beside = model(input_ids=ids).logits.float()
        with suppress(KeyboardInterrupt), merged(model):
            within = model(input_ids=ids).logits.float()
            assert all(layer.merged for layer in model.modules() if isinstance(layer, BaseTunerLayer))
            raise KeyboardInterrupt
        after = model(input_ids=ids).logits.float()
        with model.disable_adapter():
            base = model(input_ids=ids).logits.float()
    assert torch.equal(after, beside)
    assert (within - beside).abs().max() < (1e-3 if dtype == torch.float32 else 0.5) < (base - beside).abs().max()
    for name, tensor in model.state_dict().items():
        known, bits = state[name]
        assert torch.equal(tensor, bits)
        assert tensor.data_ptr() == known.data_ptr()
    assert not any(layer.merged for layer in model.modules() if isinstance(layer, BaseTunerLayer))


@pytest.mark.integration
def test_four_bits_and_too_little_memory_leave_adapters_beside_their_layers(monkeypatch):
    def left(model) -> bool:
        with merged(model):
            return not any(layer.merged for layer in model.modules() if isinstance(layer, BaseTunerLayer))

    assert left(adapted(load_model("tiny", four_bits=True)))
    usual = adapted(load_model("tiny"))
    assert not left(usual)
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**20))
    assert left(usual)
