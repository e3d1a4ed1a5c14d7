import json
import shutil

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from catalens.checkpoint import TINY, load_model, load_processor, load_run
from catalens.errors import CheckpointError


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
    with pytest.raises(CheckpointError, match="is 'llama', not phi3_v"):
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
