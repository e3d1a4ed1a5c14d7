import io
import json

import pytest
import torch
from patches import Patches, save_patches
from rich.console import Console

import catalens
from catalens.checkpoint import load_processor
from catalens.model import family as families
from catalens.model import family_of, unused_parameter_names

QUESTION = "What is it?"


@pytest.fixture
def family(model):
    return family_of(model.config.model_type)


def test_there_is_one_family():
    with pytest.raises(ValueError, match="model_type is 'llava': give a model of type phi3_v"):
        family_of("llava")


def test_tokens_are_those_of_the_processor(family, model, processor, pictures):
    chat = family.chat(QUESTION)
    assert chat == "<|user|>\n<|image_1|>What is it?<|end|><|assistant|>\n"
    for picture in pictures:
        size = family.hd_size(processor, picture.width, picture.height)
        ids = family.token_ids(processor, chat, [size])
        assert ids == processor(text=chat, images=picture)["input_ids"][0].tolist()
        assert ids.count(model.config.image_token_id) == family.image_tokens(processor, size)
    assert ids.count(processor.tokenizer.convert_tokens_to_ids(family.end_token)) == 1


@pytest.mark.parametrize("form", ["pixels", "features"])
def test_a_batch_of_images_is_that_of_the_processor(family, model, processor, pictures, form):
    images = [family.encode_image(processor, picture) for picture in pictures]
    for image in images:
        assert len(family.normalised_pixels([image])) == family.num_tiles(processor, image.hd_size)
    whole = processor.image_processor(pictures)
    if form == "features":
        images = family.encode_features(model, images, model.dtype)
        assert all(image.pixels is None for image in images)
        with torch.no_grad():
            whole["crop_features"] = model.model.vision_embed_tokens.crop_features(whole.pop("pixel_values"))
    batch = family.collate(images)
    if form == "pixels":
        assert batch["pixel_values"].dtype == torch.uint8
        batch["pixel_values"] = family.normalised_pixels(images)
    assert batch.keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close(batch[name], value)


def test_crops_travel_as_bytes_and_are_normalised_by_the_model(family, model, processor, pictures):
    images = [family.encode_image(processor, picture) for picture in pictures]
    batch, whole = family.collate(images), processor.image_processor(pictures)
    crops, side = whole["pixel_values"].shape[0], whole["pixel_values"].shape[-1]
    assert batch["pixel_values"].nbytes == (crops - len(pictures)) * 3 * side**2  # of floats there were 4 x crops
    assert torch.equal(family.normalised_pixels(images), whole["pixel_values"])  # to the bit
    with torch.no_grad():
        one, other = (model.model.get_image_features(**inputs) for inputs in (batch, whole))
    assert torch.equal(one, other)
    with pytest.raises(ValueError, match=r"image_sizes need \d+ crops but \d+ are given"):
        model.model.get_image_features(batch["pixel_values"][1:], batch["image_sizes"])


def test_a_processor_with_its_own_mean_normalises_itself(family, model, pictures):
    own = load_processor("tiny")
    own.image_processor.image_mean = [0.5, 0.5, 0.5]
    image = family.encode_image(own, pictures[0])
    assert torch.equal(image.pixels, own.image_processor(pictures[0])["pixel_values"])
    assert torch.equal(family.normalised_pixels([image]), image.pixels)
    assert len(family.encode_features(model, [image], model.dtype)[0].features) == len(image.pixels)


def test_every_parameter_has_a_part(family, model):
    parts = {name: family.part_of(name) for name, _ in model.named_parameters()}
    assert set(parts.values()) == {"vision", "projector", "embeddings", "text"}
    for module, part in family.whole_modules.items():
        own = [name for name in parts if name.startswith(f"{module}.")]
        assert own
        assert {parts[name] for name in own} == {part}
    assert family.unused_parameter_names(model) == unused_parameter_names(model)


@pytest.mark.integration
@pytest.mark.parametrize("method", ["full", "lora"])
def test_a_family_from_outside_is_trained_checked_and_predicts(monkeypatch, drawn, tmp_path, method):
    monkeypatch.setenv("CATALENS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(families, "FAMILIES", (*families.FAMILIES, Patches()))
    save_patches(tmp_path / "model")
    recipe = catalens.make_recipe(
        {
            "catalog": str(drawn),
            "model": str(tmp_path / "model"),
            "training": {
                "method": method,
                "parts": {"vision": "frozen"},
                "learning_rate": 3e-3,
                "max_steps": 20,
                "validation_rows": 4,
                "num_evals": 1,
                "feature_cache": True,
            },
            "evaluation": {"batch_size": 8, "max_new_tokens": 40, "resamples": 100, "rows": 6},
            "tracking": {"to": "none"},
        }
    )
    console = Console(file=io.StringIO(), width=200)
    trained = catalens.train(recipe, tmp_path / "run", console=console)
    log = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    losses = [line["train/loss"] for line in log if "train/learning_rate" in line]
    assert losses[-1] < losses[0] - 0.5
    assert trained.steps == 20
    pictures = [row["image"] for row in catalens.Catalog(drawn).rows("test")][:4]
    assert all(one.values for one in catalens.load_predictor(tmp_path / "run").predict(pictures))
    assert catalens.evaluate(tmp_path / "run", console=console).metrics["rows"] == 6
    check = catalens.check(drawn, recipe, tmp_path / "check.html")
    assert "with its own tokenizer" in check.view["basis"]
    assert [cost.crops for cost in check.costs] == [1, 1, 1]
