import gc
import io
import json
import time
import weakref
from types import SimpleNamespace

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tracked import artifacts, history, records

from catalens.catalog import Catalog, CatalogWriter, Roles
from catalens.checkpoint import TINY, load_model, load_processor, load_run
from catalens.config import PartsSpec, PromptSpec, TrackingSpec, load_recipe, make_recipe
from catalens.data import IGNORED, Collator, Encoder, load_examples
from catalens.devices import allows_tf32
from catalens.errors import (
    CatalogError,
    CheckpointError,
    PictureError,
    PromptError,
    RecipeError,
    TooManyBadRowsError,
    TrainingError,
)
from catalens.evaluation import validation_scorer
from catalens.evaluation.evaluate import evaluate
from catalens.features import FeatureCache
from catalens.training import SHAPES, anchored, check_machine, loop
from catalens.training.train import train

pytestmark = pytest.mark.integration


def changed(recipe, **training):
    return recipe.model_copy(update={"training": recipe.training.model_copy(update=training)})


class Given:
    """A scorer that gives these figures, one a round."""

    def __init__(self, name, *values, use="uses_image"):
        self.name, self.values, self.use = name, iter(values), use

    def __call__(self, model, validation):
        return {self.name: {"value": next(self.values)}}, []

    def image_use(self, model, validation):
        return self.use, {self.name: {"value": 0.0}}


def test_a_run_is_understood_from_any_directory(tmp_path, monkeypatch):
    (tmp_path / "shop" / "model").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "shop")
    for model, kept in (("tiny", "tiny"), ("model", str(tmp_path / "shop" / "model")), ("some/id", "some/id")):
        relative = make_recipe({"catalog": "catalogs/shop", "model": model})
        written = anchored(relative)
        assert (written.catalog, written.model) == (str(tmp_path / "shop" / "catalogs" / "shop"), kept)
        assert written.model_copy(update={"catalog": relative.catalog, "model": model}) == relative


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
    losses = [line["validation/loss"] for line in lines if "validation/loss" in line]
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
    trained = train(changed(recipe, method="lora", optimizer="adamw", max_steps=2, num_evals=1), tmp_path / "lora")
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


def test_a_second_training_begins_with_the_model_of_the_first(recipe, tmp_path):
    first = tmp_path / "first"
    asked = changed(recipe, method="lora", optimizer="adamw", max_steps=2, num_evals=1, validation_rows=0)
    train(asked, first)
    merged = load_run(first).model.state_dict()
    for name in (str(first), str(first / "best")):
        begun = load_model(name).state_dict()
        assert all(torch.equal(begun[key], weight) for key, weight in merged.items())
    second = train(asked.model_copy(update={"model": str(first)}), tmp_path / "second").folder
    assert any(not torch.equal(merged[key], weight) for key, weight in load_run(second).model.state_dict().items())
    with pytest.raises(CheckpointError, match="is an adapter, which is merged in full precision"):
        load_model(str(first), four_bits=True)


def test_gradient_checkpointing_changes_no_number(recipe, tmp_path):
    for name, on in (("off", False), ("on", True)):
        train(changed(recipe, max_steps=2, num_evals=1, gradient_checkpointing=on), tmp_path / name)
    off, on = (load_file(tmp_path / name / "best" / "model.safetensors") for name in ("off", "on"))
    assert all(torch.allclose(off[name], on[name], atol=1e-5) for name in off)


def test_the_best_checkpoint_is_the_best_by_the_chosen_figure(recipe, tmp_path):
    asked = changed(recipe, max_steps=3, num_evals=3, evaluation_budget=1.0, metric_for_best_model="title.exact")
    trained = train(asked, tmp_path / "run", Given("title.exact", 0.7, 0.2, 0.5))
    assert trained.best_step == 1
    assert trained.figures["title.exact"] == 0.7
    asked = changed(recipe, max_steps=3, num_evals=3, evaluation_budget=1.0, metric_for_best_model="full_price.mdape")
    trained = train(asked, tmp_path / "lower", Given("full_price.mdape", 0.7, 0.2, 0.5))
    assert trained.best_step == 2


def test_an_offline_run_of_wandb_tells_everything(recipe, drawn, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for name in ("WANDB_MODE", "WANDB_API_KEY", "WANDB_DATA_DIR", "WANDB_CACHE_DIR"):
        monkeypatch.delenv(name, raising=False)
    asked = changed(recipe, max_steps=2, num_evals=2, evaluation_budget=1.0)
    asked = asked.model_copy(update={"tracking": TrackingSpec(project="shop", examples=3)})
    train(asked, tmp_path / "run", validation_scorer(asked))
    (offline,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    kinds = records(offline, tmp_path)
    config = kinds["run"][0]["config"]["update"]
    catalog = Catalog(drawn).card.content_hash
    assert config["training"]["max_steps"] == 2
    assert config["versions"]["catalog"] == catalog
    assert config["versions"]["torch"] == torch.__version__
    assert config["coverage"]["text"]["trained"] > 0
    logged = history(kinds)
    assert list(logged) == [1, 2]
    rates = {f"train/learning_rate/{part}" for part in ("projector", "embeddings", "text")}
    speeds = {f"train/{name}" for name in ("samples_per_second", "tokens_per_second", "useful_tokens", "mfu")}
    speeds |= {"train/peak_memory_gb", "train/waiting_for_data"}
    figures = {f"validation/{name}" for name in ("loss", "parse_rate", "title.exact", "full_price.mdape")}
    figures |= {f"validation/category3_code.accuracy/{end}" for end in ("low", "high")}
    for values in logged.values():
        assert {"train/loss", "train/grad_norm"} | rates | speeds | figures <= set(values)
    tables = artifacts(kinds, "wandb-run-incremental-table")
    assert len(tables) == 2
    assert logged[2]["validation/examples.nrows"] == 6
    (model,) = artifacts(kinds, "model")
    metadata = json.loads(model["metadata"])
    assert {"best", f"step-{metadata['step']}"} <= set(model["aliases"])
    assert metadata["catalog"] == catalog
    assert {"loss", "title.exact", "image_use"} <= set(metadata)
    summary = {name: value for record in kinds["summary"] for name, value in record.get("update", {}).items()}
    assert {"image_use", "best/loss", "best/samples_per_second", "shuffled/title.exact"} <= set(summary)
    assert not list((tmp_path / "home").glob("**/*.wandb"))


def test_a_taken_folder_is_left_alone(run, recipe, tmp_path):
    (tmp_path / "file").write_text("mine")
    for taken in (run, tmp_path / "file"):
        with pytest.raises(TrainingError, match="exists already"):
            train(recipe, taken)


def test_a_loss_that_is_no_number_stops_with_one_sentence(recipe, tmp_path):
    with pytest.raises(
        TrainingError, match=r"training loss at step 2 is no finite number: lower training\.learning_rate"
    ):
        train(changed(recipe, optimizer="adamw", learning_rate=1e30, warmup=0.0), tmp_path / "run")
    assert "NaN" in (tmp_path / "run" / "metrics.jsonl").read_text()
    assert [path.name for path in (tmp_path / "run" / "checkpoints").iterdir()] == ["checkpoint-1"]


def catalogue(folder, picture: bytes, titles: list[str], splits=("train", "validation")) -> None:
    with CatalogWriter(
        folder, Roles(id="code", fields={"title": "text", "category3_code": "category"}), {}
    ) as writer:
        for split in splits:
            for number, title in enumerate(titles):
                writer.add(split, picture, f"{split}{number}", {"title": title, "category3_code": "BAGS"})


@pytest.fixture
def two_fields(recipe):
    return recipe.model_copy(update={"prompt": recipe.prompt.model_copy(update={"fields": recipe.prompt.fields[:2]})})


def test_a_row_that_cannot_be_learnt_is_named_and_left_out(two_fields, drawn, tmp_path):
    picture = Catalog(drawn).rows("train")[0]["image"]
    catalogue(tmp_path / "catalog", picture, [*(f"Bag {n}" for n in range(30)), "Bag<|end|>"])
    asked = changed(two_fields.model_copy(update={"catalog": str(tmp_path / "catalog")}), max_steps=1, num_evals=1)
    train(asked, tmp_path / "run")
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "run" / "left_out.jsonl").read_text().splitlines()]
    assert len(reasons) == 2
    assert "train row 31 (train30): field 'title' holds the special token '<|end|>'" in reasons[0]

    catalogue(tmp_path / "bad", picture, ["Bag<|end|>", "Bag"])
    with pytest.raises(TooManyBadRowsError, match="1 of 2 train rows"):
        train(asked.model_copy(update={"catalog": str(tmp_path / "bad")}), tmp_path / "none")


def test_rows_that_cannot_be_written_under_constraints_are_counted_and_named(two_fields, drawn, tmp_path):
    picture = Catalog(drawn).rows("train")[0]["image"]
    catalogue(tmp_path / "catalog", picture, ["Bag", "Scarf <| red", "Nim\u200cfasl <3"])
    asked = changed(two_fields.model_copy(update={"catalog": str(tmp_path / "catalog")}), max_steps=1, num_evals=1)
    console = Console(file=io.StringIO(), width=60)
    train(asked, tmp_path / "run", console=console)
    lines = (tmp_path / "run" / "unwritable.jsonl").read_text(encoding="utf-8").splitlines()
    row = {"split": "train", "id": "train1", "field": "title", "value": "Scarf <| red"}
    assert [json.loads(line) for line in lines] == [row, row | {"split": "validation", "id": "validation1"}]
    assert "2 rows cannot be written under constraints, such as train row train1" in console.file.getvalue()
    assert "field title: 'Scarf <| red'" in console.file.getvalue()


def test_every_stage_has_the_same_rows(two_fields, drawn, tmp_path, monkeypatch):
    """One row of each split is text that the tokens do not give back."""
    picture = Catalog(drawn).rows("train")[0]["image"]
    catalogue(
        tmp_path / "catalog", picture, [*(f"Bag {n}" for n in range(30)), "Hat"], ("train", "validation", "test")
    )
    answer_ids = Encoder.answer_ids

    def lossy(self, row, name="row"):
        if "Hat" in row["title"]:
            raise PromptError(f"{name}: the tokenizer does not give back 'Hat'")
        return answer_ids(self, row, name)

    monkeypatch.setattr(Encoder, "answer_ids", lossy)
    asked = changed(two_fields.model_copy(update={"catalog": str(tmp_path / "catalog")}), max_steps=1, num_evals=1)
    asked = changed(asked, validation_rows=64)
    scored = []

    class Watching(Given):
        def __call__(self, model, validation):
            scored.extend(row["code"] for row in validation.rows)
            return super().__call__(model, validation)

    train(asked, tmp_path / "run", Watching("title.exact", 0.5))
    reasons = [json.loads(line)["reason"] for line in (tmp_path / "run" / "left_out.jsonl").read_text().splitlines()]
    assert [reason.partition(":")[0] for reason in reasons] == [
        "train row 31 (train30)",
        "validation row 31 (validation30)",
    ]
    assert scored == [f"validation{n}" for n in range(30)]
    learnt = []
    monkeypatch.setattr(
        "catalens.evaluation.evaluate.majority", lambda kinds, truths, count: learnt.extend(truths) or truths[:count]
    )
    spec = asked.evaluation.model_copy(update={"image_use": False, "before": False})
    result = evaluate(tmp_path / "run", asked.model_copy(update={"evaluation": spec})).metrics
    assert (result["rows"], len(learnt), result["confidence"]["calibrated_on"]) == (30, 30, 30)
    assert [reason.partition(":")[0] for reason in result["left_out"]] == ["test row 31 (test30)"]


def test_a_field_that_the_catalogue_does_not_have(recipe, drawn, tmp_path):
    field = recipe.prompt.fields[0].model_copy(update={"column": "colour"})
    asked = recipe.model_copy(update={"prompt": recipe.prompt.model_copy(update={"fields": (field,)})})
    with pytest.raises(CatalogError, match=r"no column 'colour'.*title, category3_code, full_price"):
        train(asked, tmp_path / "run")


def masks_of(model, batch) -> set:
    """Masks that the layers of the decoder are called with."""
    seen = []
    hooks = [
        layer.register_forward_pre_hook(
            lambda layer, given, kwargs: seen.append(kwargs["attention_mask"]), with_kwargs=True
        )
        for layer in model.model.layers
    ]
    model(**batch)
    for hook in hooks:
        hook.remove()
    return set(seen)


@pytest.mark.parametrize("number_smoothing", [0.0, 0.05])
def test_packed_rows_have_the_loss_of_padded_ones(drawn, number_smoothing: float):
    encoder = Encoder(load_processor("tiny"), PromptSpec())
    images = FeatureCache(encoder, features=False)
    rows = load_examples(Catalog(drawn), encoder, "train", images, number_smoothing)
    examples = [rows[index] for index in range(8)]
    alone = [load_model("tiny")(**Collator(encoder.family, 3)([one]), num_items_in_batch=1).loss for one in examples]
    labels = sum(int((one["labels"] != IGNORED).sum()) for one in examples)
    for attention in ("sdpa", "eager", encoder.family.training_attention):
        model = load_model("tiny", attention=attention).train()
        losses, gradients = [], []
        for packed, shapes in ((False, None), (True, None), (False, {96: 10}), (True, {640: 12})):
            model.zero_grad()
            batch = Collator(encoder.family, encoder.tokenizer.pad_token_id, packed, shapes)(examples)
            assert shapes is None or tuple(batch["input_ids"].shape) == ((1, 640) if packed else (10, 96))
            loss = model(**batch).loss
            loss.backward()
            losses.append(loss.item())
            gradients.append({n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None})
        assert losses == pytest.approx([sum(alone).item() / labels] * 4, abs=1e-5)
        padded, *others = gradients
        assert all(torch.allclose(padded[name], own[name], atol=1e-4) for own in others for name in padded)
    assert masks_of(model, batch) == {None}
    for attention in ("sdpa", "eager"):
        model = load_model("tiny", attention=attention).train()
        one_long = Collator(encoder.family, encoder.tokenizer.pad_token_id, packed=True)(examples)
        one_long["position_ids"] = torch.arange(one_long["input_ids"].numel())[None]
        assert abs(model(**one_long).loss.item() - losses[0]) > 1e-3  # what leaking would give


def test_packing_trains_as_padding_does(recipe, tmp_path):
    for name, packing in (("padded", False), ("packed", True)):
        asked = changed(recipe, max_steps=2, num_evals=1, validation_rows=0, batch_tokens=400, packing=packing)
        train(asked, tmp_path / name)
    lines = [json.loads(line) for line in (tmp_path / "packed" / "metrics.jsonl").read_text().splitlines()]
    assert all(line["train/useful_tokens"] == 1 for line in lines if "train/useful_tokens" in line)
    assert (tmp_path / "padded" / "best" / "model.safetensors").is_file()


def test_rounds_of_generation_keep_to_their_budget_unless_they_choose_the_best(recipe, tmp_path, monkeypatch):
    clock = SimpleNamespace(now=0.0, perf_counter=time.perf_counter)
    clock.monotonic = lambda: clock.now
    monkeypatch.setattr(loop, "time", clock)

    class Slow(Given):
        def __call__(self, model, validation):
            clock.now += 3600  # and the steps between take none
            return super().__call__(model, validation)

    for best_by, rounds, best in (("loss", [1, 6], None), ("title.exact", [1, 2, 3, 4, 5, 6], 3)):
        asked = changed(recipe, max_steps=6, num_evals=6, metric_for_best_model=best_by, validation_rows=4)
        trained = train(asked, tmp_path / best_by, Slow("title.exact", 0.2, 0.3, 0.9, 0.5, 0.6, 0.7))
        lines = [json.loads(line) for line in (tmp_path / best_by / "metrics.jsonl").read_text().splitlines()]
        assert [line["step"] for line in lines if "validation/title.exact" in line] == rounds
        assert best is None or trained.best_step == best


def test_a_finished_training_leaves_no_model_in_memory(recipe, tmp_path):
    seen = []

    class Watching(Given):
        def __call__(self, model, validation):
            seen.append(weakref.ref(model))
            seen.extend(weakref.ref(p) for p in model.parameters())
            return super().__call__(model, validation)

    gc.disable()  # what is gone is gone by the training's own doing
    try:
        train(changed(recipe, max_steps=1, num_evals=1), tmp_path / "run", Watching("title.exact", 0.5))
        assert len(seen) > 20
        assert not any(one() is not None for one in seen)
    finally:
        gc.enable()


def test_training_stops_when_it_no_longer_gets_better(recipe, tmp_path):
    asked = changed(
        recipe,
        max_steps=6,
        num_evals=6,
        metric_for_best_model="title.exact",
        validation_rows=4,
        patience=2,
        evaluation_budget=1.0,
    )
    trained = train(asked, tmp_path / "run", Given("title.exact", 0.2, 0.5, 0.4, 0.4, 0.9, 0.9))
    assert (trained.steps, trained.best_step) == (4, 2)


def test_only_a_model_that_is_shown_to_ignore_its_pictures_is_an_alarm(recipe, tmp_path, capsys):
    asked = changed(recipe, max_steps=1, num_evals=1, validation_rows=4)
    words = {
        "uses_image": "it uses the pictures",
        "ignores_image": "it ignores them",
        "undecided": "cannot tell whether it uses the pictures",
    }
    for use, sentence in words.items():
        trained = train(asked, tmp_path / use, Given("title.exact", 0.5, use=use))
        assert trained.image_use == use
        printed = " ".join(capsys.readouterr().out.replace("\u2502", " ").split())
        card = (tmp_path / use / "README.md").read_text()
        assert ("the pictures are ignored" in printed) is (use == "ignores_image")
        assert sentence in printed
        assert sentence in card


@pytest.mark.slow  # a minute of inductor
@pytest.mark.filterwarnings("ignore")  # torch's own, at many places
def test_compiled_layers_have_the_loss_of_others_and_few_shapes(recipe, tmp_path):
    asked = changed(
        recipe, method="lora", optimizer="adamw", max_steps=5, num_evals=1, validation_rows=0, batch_size=5
    )
    losses = []
    for name, compiled in (("eager", False), ("compiled", True)):
        torch._dynamo.reset()
        torch._dynamo.utils.counters.clear()
        trained = train(changed(asked, compile=compiled), tmp_path / name)
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        losses.append([line["train/loss"] for line in lines if "train/loss" in line])
        assert trained.throughput["seconds_to_first_step"] > 0
        assert ("compile_seconds" in trained.throughput) is compiled
    assert losses[0] == pytest.approx(losses[1], abs=1e-5)
    counted = torch._dynamo.utils.counters
    assert (
        1 <= counted["stats"]["unique_graphs"] <= SHAPES + 2
    )  # and the tower's, for one number of tiles and for any
    assert not counted["graph_break"]


def test_out_of_memory_takes_more_passes_over_the_same_rows(recipe, tmp_path, monkeypatch, capsys):
    asked = changed(recipe, max_steps=3, num_evals=1, validation_rows=0, batch_size=8, gradient_accumulation=1)
    train(asked, tmp_path / "whole")
    capsys.readouterr()
    tried = []

    def small(model, inputs):
        tried.append(len(inputs()["input_ids"]))
        if tried[-1] > 3:
            raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(loop, "dry_step", small)
    train(asked, tmp_path / "divided")
    assert tried == [8, 4, 3]
    assert "out of memory: 3 passes of fewer rows make a step, in place of 1" in capsys.readouterr().out
    figures = []
    for name in ("whole", "divided"):
        lines = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        figures.append([line[key] for line in lines for key in ("train/loss", "train/grad_norm") if key in line])
    assert len(figures[0]) == 7
    assert figures[0] == pytest.approx(figures[1], rel=1e-3)
    monkeypatch.setattr(loop, "dry_step", lambda model, inputs: small(model, lambda: {"input_ids": [0] * 9}))
    with pytest.raises(TrainingError, match="one row alone is too much for the GPU's memory: set training"):
        train(asked, tmp_path / "none")


def test_what_a_gpu_cannot_compute_is_refused_and_what_it_can_is_allowed(recipe, monkeypatch):
    bf16 = changed(recipe, precision="bf16").training
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: (8, 0))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: True)
    check_machine(bf16)
    assert allows_tf32("bf16")
    assert not allows_tf32("fp32")
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: (7, 5))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert not allows_tf32("bf16")
    with pytest.raises(RecipeError, match=r"training\.precision is bf16, which this GPU does not compute: set it to"):
        check_machine(bf16)
    with pytest.raises(RecipeError, match=r"training\.attention is flash_attention_2, which is not for this GPU"):
        check_machine(changed(recipe, attention="flash_attention_2").training)


def test_workers_prepare_the_same_batches(recipe, tmp_path):
    for name, workers in (("alone", 0), ("helped", 2)):
        asked = changed(recipe, max_steps=3, num_evals=1, validation_rows=0, feature_cache=False, workers=workers)
        train(asked, tmp_path / name)
    one, other = (load_file(tmp_path / name / "best" / "model.safetensors") for name in ("alone", "helped"))
    assert all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_picture_that_goes_bad_in_the_middle_is_one_line_and_the_run_goes_on(
    recipe, tmp_path, monkeypatch, workers
):
    asked = changed(recipe, max_steps=6, num_evals=3, validation_rows=0, feature_cache=False, workers=workers)
    seen, original = [], FeatureCache.__call__

    def going_bad(self, data):
        seen.append(data)
        if len(seen) > 15:  # in each worker by itself
            raise PictureError("cannot be decoded (broken data)")
        return original(self, data)

    with monkeypatch.context() as patch:
        patch.setattr(FeatureCache, "__call__", going_bad)
        with pytest.raises(TrainingError, match=r"^row \(\d+, .*\): picture cannot be decoded .*--resume$"):
            train(asked, tmp_path / "run")
    train(asked, tmp_path / "run", resume=True)
    train(asked, tmp_path / "peace")
    one, other = (load_file(tmp_path / name / "best" / "model.safetensors") for name in ("run", "peace"))
    assert all(torch.equal(one[name], other[name]) for name in one)


FULL_BESIDE = {"projector": {"train": "full", "learning_rate": 1e-5}, "embeddings": "full"}


@pytest.mark.parametrize(
    ("method", "parts"),
    [
        ("full", {}),
        ("lora", {}),
        ("lora", FULL_BESIDE),
        ("qlora", FULL_BESIDE),
        ("lora", FULL_BESIDE | {"text": "frozen"}),
    ],
)
def test_products_in_bf16_leave_weights_that_train_in_fp32(recipe, tmp_path, method, parts):
    asked = changed(recipe, method=method, parts=PartsSpec.model_validate(parts), optimizer="adamw")
    asked = changed(asked, max_steps=3, num_evals=1, validation_rows=0, precision="bf16", learning_rate=1e-4)
    train(asked, tmp_path / "run")
    best, base = tmp_path / "run" / "best", load_file(TINY / "model.safetensors")
    (name,) = (path.name for path in best.glob("*model.safetensors"))
    weights = {name.removeprefix("base_model.model."): weight for name, weight in load_file(best / name).items()}
    learnt = [name for name in weights if method == "full" or "lora_" in name or ".img_projection." in name]
    learnt += ["lm_head.weight"] if parts else []
    assert {weights[name].dtype for name in learnt} == {torch.float32}
    for name in learnt if parts else []:
        if "lora_" not in name:  # a step of 1e-5 is lost where a weight has eight bits of precision
            before = base[name] if method == "full" else base[name].bfloat16().float()
            assert (weights[name] != before).float().mean() > 0.99, name
    assert {p.dtype for p in load_run(tmp_path / "run", torch.bfloat16).model.parameters()} == {torch.bfloat16}
    assert {p.dtype for p in load_run(tmp_path / "run", torch.float32).model.parameters()} == {torch.float32}
    log = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    (bf16,) = (json.loads(line)["validation/loss"] for line in log if "validation/loss" in line)
    fp32 = train(changed(asked, precision="fp32"), tmp_path / "fp32").figures["loss"]
    assert bf16 == pytest.approx(fp32, rel=0.05)
    assert bf16 != fp32
