"""What trains, by part: what is asked for happens, and what cannot happen is an error."""

import json
from contextlib import nullcontext

import pytest
import torch
from safetensors.torch import load_file
from torch.utils._python_dispatch import TorchDispatchMode

from catalens.catalog import Catalog
from catalens.checkpoint import TINY, load_model, load_processor, load_run
from catalens.config import PARTS, LoraSpec, PartsSpec, PromptSpec, TrainingSpec
from catalens.data import Collator, Encoder, load_examples
from catalens.errors import RecipeError, TrainingError
from catalens.features import FeatureCache
from catalens.model import REFERENCE
from catalens.training import (
    OptimizerPair,
    check_gradients,
    check_machine,
    coverage,
    make_optimizer,
    prepare_parts,
    rounded_into,
    uncast_adapters,
)
from catalens.training.train import train

QKV = "model.layers.0.self_attn.qkv_proj"


def spec(**training) -> TrainingSpec:
    return TrainingSpec.model_validate(training)


def trained(model) -> dict[str, set[str]]:
    """Names that get a gradient, by part."""
    found: dict[str, set[str]] = {"vision": set(), "projector": set(), "embeddings": set(), "text": set()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            found[REFERENCE.part_of(name)].add(name)
    return found


def test_full_trains_all_but_what_never_runs():
    model = prepare_parts(load_model("tiny"), spec(method="full"))
    left = {name for name, parameter in model.named_parameters() if not parameter.requires_grad}
    assert left
    assert all(".layers.3." in name or "post_layernorm" in name for name in left)
    assert all("img_processor" in name for name in left)


@pytest.mark.parametrize("part", ["vision", "projector", "embeddings", "text"])
def test_a_frozen_part_has_no_gradient(part: str):
    found = trained(prepare_parts(load_model("tiny"), spec(method="full", parts={part: "frozen"})))
    assert not found[part]
    assert all(found[other] for other in found if other != part)


def test_lora_adapts_every_linear_module_of_the_text_by_default():
    asked = spec(method="lora")
    model = prepare_parts(load_model("tiny"), asked)
    found = trained(model)
    assert found["text"]
    assert not found["vision"] | found["projector"] | found["embeddings"]
    covered = coverage(model, asked)
    assert len(covered["text"].adapted) == 4 * 3  # qkv, o, gate_up, down of three layers
    assert QKV in covered["text"].adapted
    assert covered["text"].trained == sum(p.numel() for p in model.parameters() if p.requires_grad)
    plain = coverage(load_model("tiny"), asked)
    assert [covered[part].parameters for part in covered] == [plain[part].parameters for part in plain]


def test_every_part_can_be_adapted_and_those_that_never_run_are_not():
    asked = spec(method="lora", parts=dict.fromkeys(("vision", "projector", "embeddings", "text"), "adapted"))
    covered = coverage(prepare_parts(load_model("tiny"), asked), asked)
    assert len(covered["vision"].adapted) >= 6 * 3
    assert not any("layers.3." in name for name in covered["vision"].adapted)
    assert len(covered["projector"].adapted) == 2
    assert covered["embeddings"].adapted == ("lm_head", "model.embed_tokens")


def test_parts_trained_in_full_beside_adapters():
    asked = spec(method="lora", parts={"embeddings": "full", "projector": {"train": "full", "learning_rate": 1e-5}})
    model = prepare_parts(load_model("tiny"), asked)
    found = trained(model)
    assert {name.split(".modules_to_save")[0].removeprefix("base_model.model.") for name in found["embeddings"]} == {
        "model.embed_tokens",
        "lm_head",
    }
    assert len(found["projector"]) == 4
    assert not found["vision"]
    covered = coverage(model, asked)
    assert covered["embeddings"].trained == covered["embeddings"].parameters


@pytest.mark.parametrize("text", ["adapted", "frozen"])
@pytest.mark.parametrize("others", ["adapted", "full"])
def test_what_trains_is_fp32_in_a_model_of_bf16(text: str, others: str):
    asked = spec(method="lora", lora={"dora": True}, parts=dict.fromkeys(PARTS, others) | {"text": text})
    model = prepare_parts(load_model("tiny", torch.bfloat16), asked)
    assert {p.dtype for p in model.parameters() if p.requires_grad} == {torch.float32}
    assert torch.bfloat16 in {p.dtype for p in model.parameters() if not p.requires_grad}


def test_four_bits_are_for_the_decoder_alone():
    pytest.importorskip("bitsandbytes")
    kinds = {name: p.dtype for name, p in load_model("tiny", four_bits=True).named_parameters()}
    decoder = {name for name in kinds if name.startswith("model.layers.") and name.endswith("proj.weight")}
    assert {name for name, kind in kinds.items() if kind == torch.uint8} == decoder
    assert len(decoder) == 4 * 3


def test_targets_narrow_an_adapted_part_and_have_to_match():
    asked = spec(method="lora", lora={"targets": ["qkv_proj"]})
    assert len(coverage(prepare_parts(load_model("tiny"), asked), asked)["text"].adapted) == 3
    with pytest.raises(RecipeError, match=r"'q_projj' matches no module of text; there are down_proj, .*qkv_proj"):
        prepare_parts(load_model("tiny"), spec(method="lora", lora={"targets": ["qkv_proj", "q_projj"]}))
    with pytest.raises(RecipeError, match="'fc1' matches no module of text"):
        prepare_parts(load_model("tiny"), spec(method="lora", lora={"targets": ["fc1"]}))


@pytest.mark.parametrize(
    "asked",
    [
        {"method": "full", "parts": {"text": "adapted"}},
        {"method": "lora", "parts": {"text": "full", "vision": "adapted"}},
        {"method": "qlora", "parts": {"text": "full"}},
        {"method": "qlora", "parts": {"text": "frozen", "projector": "full"}},
    ],
)
def test_what_cannot_be_is_refused_by_the_recipe(asked: dict):
    with pytest.raises(ValueError, match=r"parts(\.text cannot be full| are adapted under|: qlora trains adapters)"):
        TrainingSpec.model_validate(asked)


def test_nothing_that_trains_is_an_error():
    frozen = dict.fromkeys(("vision", "projector", "embeddings", "text"), "frozen")
    with pytest.raises(TrainingError, match="nothing trains"):
        prepare_parts(load_model("tiny"), spec(method="full", parts=frozen))


def test_a_part_without_gradient_is_an_error():
    model = prepare_parts(load_model("tiny"), spec(method="full"))
    ids = torch.tensor([[1, 40, 41, 42]])
    model(input_ids=ids, labels=ids).loss.backward()  # no picture
    with pytest.raises(TrainingError, match=r"training\.parts\.vision is full, but no gradient reaches it"):
        check_gradients(model, spec(method="full"))
    check_gradients(model, spec(method="full", parts={"vision": "frozen", "projector": "frozen"}))


def test_parts_have_their_own_learning_rates():
    asked = spec(method="full", learning_rate=1e-3, parts={"vision": {"train": "full", "learning_rate": 1e-5}})
    model = prepare_parts(load_model("tiny"), asked)
    optimizer = make_optimizer(model, asked)
    rates = {group["name"]: group["lr"] for group in optimizer.param_groups}
    assert rates == {"vision": 1e-5, "projector": 1e-3, "embeddings": 1e-3, "text": 1e-3}
    grouped = [id(p) for group in optimizer.param_groups for p in group["params"]]
    assert sorted(grouped) == sorted(id(p) for p in model.parameters() if p.requires_grad)


def test_muon_takes_the_matrices_and_adamw_the_rest():
    model = load_model("tiny")
    optimizer = make_optimizer(model, spec(method="full", optimizer="muon", adamw_learning_rate=1e-3))
    assert isinstance(optimizer, OptimizerPair)
    muon = {id(p) for group in optimizer.parts[0].param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        table = name.endswith((".embed_tokens.weight", "lm_head.weight", "position_embedding.weight"))
        assert (id(parameter) in muon) == (parameter.ndim == 2 and not table), name
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(list(model.parameters()))


@pytest.mark.parametrize("optimizer", ["adamw", "muon", "adamw_8bit"])
def test_vectors_of_any_shape_do_not_decay(optimizer: str):
    model = load_model("tiny")
    groups = make_optimizer(model, spec(method="full", optimizer=optimizer)).param_groups
    still = {id(p) for group in groups if group["weight_decay"] == 0 for p in group["params"]}
    names = {name for name, p in model.named_parameters() if id(p) in still}
    assert {"model.vision_embed_tokens.glb_GN", "model.vision_embed_tokens.sub_GN", "model.norm.weight"} <= names
    assert not any(name.endswith(("proj.weight", "embed_tokens.weight", "patch_embedding.weight")) for name in names)
    asked = spec(lora={"rank": 1})
    (group,) = make_optimizer(prepare_parts(load_model("tiny"), asked), asked).param_groups
    assert group["weight_decay"] > 0


@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize("optimizer", ["adamw_8bit", "paged_adamw_8bit"])
def test_embeddings_keep_their_state_in_32_bits(optimizer: str):
    pytest.importorskip("bitsandbytes")
    model = load_model("tiny")
    made = make_optimizer(model, spec(method="full", optimizer=optimizer))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    made.step()
    kinds = {}
    for part in made.parts:
        for parameter, state in part.state.items():
            kinds[id(parameter)] = {v.dtype for v in state.values() if torch.is_tensor(v) and v.numel() > 4096}
    assert kinds[id(model.model.embed_tokens.weight)] == kinds[id(model.lm_head.weight)] == {torch.float32}
    assert torch.uint8 in kinds[id(model.model.layers[0].mlp.down_proj.weight)]


def test_adapters_are_not_for_muon():
    with pytest.raises(ValueError, match="muon is for weights that train in full: take adamw for adapters"):
        spec(method="lora", optimizer="muon")
    assert spec(method="lora", optimizer="muon", parts={"text": "frozen", "projector": "full"})


def changed(recipe, **training):
    update = TrainingSpec.model_validate(recipe.training.model_dump(exclude={"optimizer"}) | training)
    return recipe.model_copy(update={"training": update})


@pytest.mark.integration
@pytest.mark.filterwarnings("ignore:Paged optimizers are not supported on CPU")
@pytest.mark.parametrize(
    "training",
    [
        {"method": "qlora"},
        {"method": "lora", "lora": {"rslora": True, "dora": True}},
        {"method": "lora", "parts": {"vision": "adapted", "embeddings": "full"}},
        {"method": "full", "optimizer": "adamw_8bit", "label_smoothing": 0.1, "learning_rate": 1e-3},
        {"method": "full", "optimizer": "paged_adamw_8bit", "learning_rate": 1e-3},
    ],
    ids=["qlora", "rslora and dora", "adapted tower", "8 bits", "paged"],
)
def test_every_method_learns_on_a_cpu_and_loads_again(recipe, tmp_path, training: dict):
    asked = changed(recipe, **{"learning_rate": 1e-2} | training, max_steps=8, num_evals=1, validation_rows=0)
    train(asked, tmp_path / "run")
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in lines if "train/learning_rate" in line]
    assert losses[-1] < losses[0]
    covered = json.loads((tmp_path / "run" / "coverage.json").read_text())
    assert covered["text"]["train"] == ("full" if training["method"] == "full" else "adapted")
    loaded = load_run(tmp_path / "run").model.state_dict()
    before = load_file(TINY / "model.safetensors")
    assert set(loaded) == set(before)
    assert not torch.equal(loaded[f"{QKV}.weight"], before[f"{QKV}.weight"])


def test_the_specs_have_the_defaults_that_the_methods_say():
    assert [part.train for part in TrainingSpec(method="lora").resolved_parts.values()] == ["frozen"] * 3 + [
        "adapted"
    ]
    assert PartsSpec.model_validate({"vision": "frozen"}).vision is not None
    assert LoraSpec().targets == ()


def test_adapters_cast_no_activations_and_have_the_same_gradients(drawn):
    """Under autocast they compute in its type: their fp32 weights are cast, and what goes through them is not."""
    encoder = Encoder(load_processor("tiny"), PromptSpec())
    rows = load_examples(Catalog(drawn), encoder, "train", FeatureCache(encoder, features=False))
    batch = Collator(encoder.family, encoder.tokenizer.pad_token_id)([rows[index] for index in range(4)])
    asked, gradients, casts = spec(method="lora", precision="bf16"), [], []
    for context in (nullcontext, uncast_adapters):
        torch.manual_seed(0)
        model = prepare_parts(load_model("tiny", torch.bfloat16), asked).train()
        for name, weight in model.named_parameters():
            if ".lora_B." in name:
                torch.nn.init.normal_(weight, 0, 0.02)
        within = context() if context is nullcontext else context(model, asked)
        with Casts() as counted, within, torch.autocast("cpu", torch.bfloat16):
            model(**batch).loss.backward()
        casts.append(counted.activations)
        gradients.append({name: weight.grad for name, weight in model.named_parameters() if weight.grad is not None})
    norms = 2 * len(model.base_model.model.model.layers) + 1
    assert casts[1] <= 4 * norms + 4  # each to fp32 and back in both directions; what is left is of the angles
    assert casts[0] - casts[1] >= 2 * len(coverage(model, asked)["text"].adapted)
    assert all(torch.allclose(gradients[0][name], gradients[1][name], rtol=1e-2) for name in gradients[0])
    assert all(weight.dtype == torch.float32 for weight in gradients[1].values())


def test_a_frozen_tower_in_bf16_computes_in_bf16():
    model = load_model("tiny", torch.bfloat16).requires_grad_(False)
    pixels = torch.randn(2, 3, model.config.crop_size, model.config.crop_size)
    with Casts() as counted, torch.autocast("cpu", torch.bfloat16):
        features = model.model.vision_embed_tokens.crop_features(pixels)
    assert features.dtype == torch.bfloat16
    assert counted.activations == 0
    wide = load_model("tiny").model.vision_embed_tokens.crop_features(pixels)
    assert (features.float() - wide).norm() / wide.norm() < 0.02


class Casts(TorchDispatchMode):
    """Counts casts of tensors [B, T, width] between floating-point types."""

    activations = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._to_copy.default and args[0].ndim == 3 and args[0].is_floating_point():
            self.activations += 1
        return func(*args, **(kwargs or {}))


def test_random_rounding_keeps_what_nearest_rounding_loses():
    torch.manual_seed(0)
    weight = torch.ones(100_000, dtype=torch.bfloat16)
    for sign in (1, -1):
        exact = torch.full((100_000,), sign * (1 + 1 / 1024))  # an eighth of the way to the next number in bf16
        assert (exact.bfloat16() == sign).all()
        rounded_into(weight, exact)
        assert set(weight.unique().tolist()) == {sign, sign * (1 + 1 / 128)}
        assert weight.float().mean().item() == pytest.approx(exact[0].item(), abs=1e-4)


@pytest.mark.integration
def test_matrices_in_bf16_learn_as_those_in_fp32(recipe, tmp_path):
    losses = {}
    for weights in ("fp32", "bf16"):
        asked = spec(method="full", optimizer="adamw_8bit", precision="bf16", weights=weights, learning_rate=1e-3)
        asked = asked.model_copy(update={"max_steps": 12, "num_evals": 2, "validation_rows": 0, "batch_size": 8})
        train(recipe.model_copy(update={"training": asked}), tmp_path / weights)
        lines = [json.loads(line) for line in (tmp_path / weights / "metrics.jsonl").read_text().splitlines()]
        losses[weights] = [line["validation/loss"] for line in lines if "validation/loss" in line]
    assert losses["bf16"][1] < losses["bf16"][0]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=0.05)
    best, base = load_file(tmp_path / "bf16" / "best" / "model.safetensors"), load_file(TINY / "model.safetensors")
    assert best[f"{QKV}.weight"].dtype == torch.bfloat16
    assert best["model.embed_tokens.weight"].dtype == best["model.norm.weight"].dtype == torch.float32
    assert not torch.equal(best[f"{QKV}.weight"], base[f"{QKV}.weight"].bfloat16())


def test_weights_in_bf16_want_their_optimizer_and_bf16_products():
    for wrong in ({"method": "lora", "optimizer": "adamw_8bit"}, {"method": "full"}):
        with pytest.raises(ValueError, match="weights are bf16 for the method full with an 8-bit optimizer"):
            spec(weights="bf16", **wrong)
    with pytest.raises(RecipeError, match=r"training\.weights is bf16, but products are fp32 here"):
        check_machine(spec(weights="bf16", method="full", optimizer="adamw_8bit", precision="fp32"))
