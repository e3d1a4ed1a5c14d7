import json

import pytest
import torch
from safetensors.torch import load_file

from catalens.catalog.storage import CatalogWriter, Roles
from catalens.checkpoint import TINY, load_model, load_run
from catalens.config import TrackingSpec, load_recipe
from catalens.errors import CatalogError, CheckpointError, TooManyBadRowsError, TrainingError
from catalens.training import train

pytestmark = pytest.mark.integration


def changed(recipe, **training):
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=training)})


def test_a_run_is_a_folder_that_explains_itself(run, recipe):
    assert load_recipe(run / "recipe.yaml") == recipe
    versions = json.loads((run / "versions.json").read_text())
    assert versions["catalog"].startswith("sha256:")
    assert versions["torch"] == torch.__version__
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    rounds = [line for line in lines if "validation/loss" in line]
    assert [line["step"] for line in rounds] == [3, 6]
    assert all("validation/title.exact" in line and "validation/full_price.mdape" in line for line in rounds)
    assert any("train/learning_rate" in line and "train/grad_norm" in line for line in lines)
    card = (run / "README.md").read_text()
    assert "base_model: tiny" in card
    assert "title.exact" in card
    assert (run / "best" / "prompt.json").is_file()
    assert (run / "best" / "generation_config.json").is_file()


def test_training_lowers_the_loss_and_leaves_what_is_frozen(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/loss" in line and "train/learning_rate" in line]
    assert losses[-1] < losses[0]
    before, after = load_file(TINY / "model.safetensors"), load_file(run / "best" / "model.safetensors")
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert not any("img_processor" in name for name in moved)
    assert {"model.vision_embed_tokens.img_projection.0.weight", "lm_head.weight"} <= moved
    assert "model.layers.0.self_attn.qkv_proj.weight" in moved


def test_the_same_seed_trains_the_same_weights(run, recipe, tmp_path):
    train(recipe, tmp_path / "again")
    first, second = (load_file(folder / "best" / "model.safetensors") for folder in (run, tmp_path / "again"))
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_lora_saves_an_adapter_that_loads_onto_the_base(recipe, tmp_path):
    trained = train(changed(recipe, method="lora", optimizer="adamw", max_steps=2, evaluations=1), tmp_path / "lora")
    assert trained.best_step == 2
    assert (tmp_path / "lora" / "best" / "adapter_model.safetensors").is_file()
    assert not (tmp_path / "lora" / "best" / "model.safetensors").exists()
    merged, base = load_run(tmp_path / "lora").model, load_model("tiny")
    name = "model.layers.0.self_attn.qkv_proj.weight"
    assert not torch.equal(merged.state_dict()[name], base.state_dict()[name])
    assert set(merged.state_dict()) == set(base.state_dict())
    assert (tmp_path / "lora" / "best" / "generation_config.json").is_file()
    (tmp_path / "lora" / "best" / "adapter_model.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors is not there"):
        load_run(tmp_path / "lora")


def test_gradient_checkpointing_changes_no_number(recipe, tmp_path):
    for name, on in (("off", False), ("on", True)):
        train(changed(recipe, max_steps=2, evaluations=1, gradient_checkpointing=on), tmp_path / name)
    off, on = (load_file(tmp_path / name / "best" / "model.safetensors") for name in ("off", "on"))
    assert all(torch.allclose(off[name], on[name], atol=1e-5) for name in off)


def test_the_best_checkpoint_is_the_best_by_the_chosen_figure(recipe, tmp_path):
    figures = iter([0.7, 0.2, 0.5])
    asked = changed(recipe, max_steps=3, evaluations=3, best_by="title.exact")
    trained = train(asked, tmp_path / "run", lambda model, processor: {"title.exact": next(figures)})
    assert trained.best_step == 1
    assert trained.figures["title.exact"] == 0.7
    asked = changed(recipe, max_steps=3, evaluations=3, best_by="full_price.mdape")
    figures = iter([0.7, 0.2, 0.5])
    trained = train(asked, tmp_path / "lower", lambda model, processor: {"full_price.mdape": next(figures)})
    assert trained.best_step == 2


def test_wandb_is_real_and_stays_in_the_run(recipe, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    asked = changed(recipe, max_steps=1, evaluations=1).model_copy(update={"tracking": TrackingSpec()})
    train(asked, tmp_path / "run")
    (log,) = (tmp_path / "run" / "wandb").glob("offline-run-*/run-*.wandb")
    assert b"validation/loss" in log.read_bytes()
    assert not list((tmp_path / "home").glob("**/*.wandb"))


def test_a_taken_folder_is_left_alone(run, recipe, tmp_path):
    (tmp_path / "file").write_text("mine")
    for taken in (run, tmp_path / "file"):
        with pytest.raises(TrainingError, match="exists already"):
            train(recipe, taken)


def test_a_loss_that_is_no_number_stops_with_one_sentence(recipe, tmp_path):
    with pytest.raises(TrainingError, match=r"step 3 is no finite number: lower training\.learning_rate"):
        train(changed(recipe, optimizer="adamw", learning_rate=1e30, warmup=0.0), tmp_path / "run")
    assert "NaN" in (tmp_path / "run" / "metrics.jsonl").read_text()


def catalogue(folder, picture: bytes, titles: list[str]) -> None:
    with CatalogWriter(
        folder, Roles(id="code", fields={"title": "text", "category3_code": "category"}), {}
    ) as writer:
        for split in ("train", "validation"):
            for number, title in enumerate(titles):
                writer.add(split, picture, f"{split}{number}", {"title": title, "category3_code": "BAGS"})


@pytest.fixture
def two_fields(recipe):
    return recipe.model_copy(update={"prompt": recipe.prompt.model_copy(update={"fields": recipe.prompt.fields[:2]})})


def test_a_row_that_cannot_be_learnt_is_named_and_left_out(two_fields, drawn, tmp_path):
    from catalens.catalog.storage import Catalog

    picture = Catalog(drawn).rows("train")[0]["image"]
    catalogue(tmp_path / "catalog", picture, [*(f"Bag {n}" for n in range(30)), "Bag<|end|>"])
    asked = changed(two_fields.model_copy(update={"catalog": str(tmp_path / "catalog")}), max_steps=1, evaluations=1)
    train(asked, tmp_path / "run")
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "run" / "left_out.jsonl").read_text().splitlines()]
    assert len(reasons) == 2
    assert "train row 31 (train30): field 'title' holds the special token '<|end|>'" in reasons[0]

    catalogue(tmp_path / "bad", picture, ["Bag<|end|>", "Bag"])
    with pytest.raises(TooManyBadRowsError, match="1 of 2 train rows"):
        train(asked.model_copy(update={"catalog": str(tmp_path / "bad")}), tmp_path / "none")


def test_a_field_that_the_catalogue_does_not_have(recipe, drawn, tmp_path):
    field = recipe.prompt.fields[0].model_copy(update={"column": "colour"})
    asked = recipe.model_copy(update={"prompt": recipe.prompt.model_copy(update={"fields": (field,)})})
    with pytest.raises(CatalogError, match=r"no column 'colour'.*title, category3_code, full_price"):
        train(asked, tmp_path / "run")
