import pytest
import torch

from catalens.model import family_of, unused_parameter_names

QUESTION = "What is it?"


@pytest.fixture
def family(model):
    return family_of(model.config.model_type)


def test_there_is_one_family():
    with pytest.raises(ValueError, match="model_type is 'llava': give a model of type phi3_v"):
        family_of("llava")


def test_tokens_are_those_of_the_processor(family, processor, pictures):
    chat = family.chat(QUESTION)
    assert chat == "<|user|>\n<|image_1|>What is it?<|end|><|assistant|>\n"
    for picture in pictures:
        size = family.hd_size(processor, picture.width, picture.height)
        ids = family.token_ids(processor, chat, [size])
        assert ids == processor(text=chat, images=picture)["input_ids"][0].tolist()
        assert len(ids) == family.text_tokens(processor, chat) + family.image_tokens(processor, size)
    assert ids.count(processor.tokenizer.convert_tokens_to_ids(family.end_token)) == 1


@pytest.mark.parametrize("form", ["pixels", "features"])
def test_a_batch_of_images_is_that_of_the_processor(family, model, processor, pictures, form):
    images = [family.encode_image(processor, picture) for picture in pictures]
    for image in images:
        assert len(image.pixels) == family.num_tiles(processor, image.hd_size)
    whole = processor.image_processor(pictures)
    if form == "features":
        images = family.encode_features(model, images, model.dtype)
        assert all(image.pixels is None for image in images)
        with torch.no_grad():
            whole["crop_features"] = model.model.get_crop_features(whole.pop("pixel_values"), whole["image_sizes"])
    batch = family.collate(images)
    assert batch.keys() == whole.keys()
    for name, value in whole.items():
        torch.testing.assert_close(batch[name], value)


def test_every_parameter_has_a_part(family, model):
    parts = {name: family.part_of(name) for name, _ in model.named_parameters()}
    assert set(parts.values()) == {"vision", "projector", "embeddings", "text"}
    for module, part in family.whole_modules.items():
        own = [name for name in parts if name.startswith(f"{module}.")]
        assert own
        assert {parts[name] for name in own} == {part}
    assert family.unused_parameter_names(model) == unused_parameter_names(model)
