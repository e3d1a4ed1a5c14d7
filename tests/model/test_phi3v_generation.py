import pytest
import torch
from torch.nn import functional as F

IMAGE, PAD, LIMIT = 3, 2, 64
GREEDY = {"do_sample": False, "eos_token_id": None, "pad_token_id": PAD}


@pytest.fixture
def prompts(processor, pictures):
    texts = ["<|image_1|> or <|image_2|>?", "hello", "<|image_1|>What is it?"]
    return texts, [[pictures[3], pictures[0]], None, pictures[2]]


def new(model, inputs, count=8, **options):
    with torch.no_grad():
        out = model.generate(**inputs, max_new_tokens=count, **{**GREEDY, **options})
    return out[:, inputs["input_ids"].shape[1] :] if "input_ids" in inputs else out


def text_ids(count, rows=1, seed=0):
    return torch.randint(5, 200, (rows, count), generator=torch.Generator().manual_seed(seed))


def without_cache(model, ids, count, **pictures):
    """The plainest generation there is: the whole row through the model for every token."""
    start = ids.shape[1]
    for _ in range(count):
        with torch.no_grad():
            ids = torch.cat([ids, model(input_ids=ids, **pictures).logits[:, -1:].argmax(-1)], dim=1)
    return ids[:, start:]


def test_left_padded_batch_equals_one_at_a_time(model, processor, prompts):
    texts, images = prompts
    together = new(model, processor(text=texts, images=images, num_crops=2, padding=True, padding_side="left"))
    for row, (text, own) in enumerate(zip(texts, images, strict=True)):
        alone = new(model, processor(text=text, images=own, num_crops=2))
        assert torch.equal(together[row], alone[0])


def test_cache_equals_no_cache_with_pictures(model, processor, prompts):
    inputs = processor(text=prompts[0][0], images=prompts[1][0], num_crops=1)
    pictures = {name: inputs[name] for name in ("pixel_values", "image_sizes")}
    wanted = without_cache(model, inputs["input_ids"], 8, **pictures)
    assert torch.equal(new(model, inputs), wanted)
    assert torch.equal(new(model, inputs, use_cache=False), wanted)


@pytest.mark.parametrize("seed", range(3))
def test_text_across_the_longrope_switch(make_model, seed):
    model, ids = make_model(seed), text_ids(LIMIT - 4, seed=seed)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    assert torch.equal(new(model, inputs, 10), without_cache(model, ids, 10))


@pytest.mark.parametrize("form", ["pixels", "crop features"])
def test_picture_across_the_longrope_switch(model, processor, pictures, form):
    """All ids are fed again at the switch, so the pictures must come again as well."""
    inputs = processor(text="<|image_1|>" + "ab cd ef " * 12, images=pictures[3], num_crops=1)
    inputs = {**inputs, "input_ids": inputs["input_ids"][:, : LIMIT - 4]}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    wanted = without_cache(
        model, inputs["input_ids"], 10, pixel_values=inputs["pixel_values"], image_sizes=inputs["image_sizes"]
    )
    if form == "crop features":
        with torch.no_grad():
            features = model.model.vision_embed_tokens.crop_features(inputs.pop("pixel_values"))
        inputs["crop_features"] = features
    assert torch.equal(new(model, inputs, 10), wanted)


def test_rows_cross_the_switch_each_at_its_own_step(model):
    ids = text_ids(LIMIT - 1, rows=3)
    mask = torch.ones_like(ids)
    mask[1, :3], mask[2, :40] = 0, 0  # crossing at the second step, the fifth, never
    together = new(model, {"input_ids": ids.where(mask.bool(), PAD), "attention_mask": mask}, 10)
    for row in range(3):
        own = ids[row : row + 1, mask[row].bool()]
        assert torch.equal(together[row : row + 1], without_cache(model, own, 10))


def test_sixty_pads_on_every_row_change_nothing(model):
    ids = text_ids(LIMIT - 6)
    padded = {"input_ids": F.pad(ids, (60, 0), value=PAD), "attention_mask": F.pad(torch.ones_like(ids), (60, 0))}
    assert torch.equal(new(model, padded, 10), without_cache(model, ids, 10))


def test_embeddings_across_the_switch(model, processor, pictures):
    inputs = processor(text="<|image_1|>" + "ab cd ef " * 12, images=pictures[3], num_crops=1)
    ids = inputs["input_ids"][:, : LIMIT - 4]
    pictures = {name: inputs[name] for name in ("pixel_values", "image_sizes")}
    with torch.no_grad():
        embeds = model.model.embed(ids, **pictures)
    assert torch.equal(new(model, {"inputs_embeds": embeds}, 10), without_cache(model, ids, 10, **pictures))


def test_cached_tokens_that_cannot_be_fed_again_are_asked_for(model):
    ids = text_ids(LIMIT + 1)
    with torch.no_grad():
        cache = model(input_ids=ids[:, :-1], use_cache=True).past_key_values
    with pytest.raises(ValueError, match="input_ids lack cached tokens"):
        model.prepare_inputs_for_generation(ids[:, -1:], past_key_values=cache, attention_mask=torch.ones_like(ids))


@pytest.mark.parametrize("options", [{"num_beams": 3}, {"num_beams": 3, "num_return_sequences": 2}])
def test_beams_keep_their_pictures(model, processor, prompts, options):
    """Rows with two pictures, none and one: each beam must see its own row's pictures."""
    texts, images = prompts
    inputs = dict(processor(text=texts, images=images, num_crops=2, padding=True, padding_side="left"))
    together = new(model, inputs, **options)
    alone = [
        new(model, processor(text=t, images=i, num_crops=2), **options) for t, i in zip(texts, images, strict=True)
    ]
    assert torch.equal(together, torch.cat(alone))


def test_several_sampled_answers(model, processor, prompts):
    inputs = processor(text=prompts[0], images=prompts[1], num_crops=2, padding=True, padding_side="left")
    assert new(model, inputs, do_sample=True, num_return_sequences=4).shape == (12, 8)


def test_a_picture_slot_is_never_written(model):
    ids = text_ids(5)
    with torch.no_grad():
        best = model(input_ids=ids).logits[0, -1].argmax()
        model.lm_head.weight[IMAGE] = 2 * model.lm_head.weight[best]
        assert model(input_ids=ids).logits[0, -1].argmax() == IMAGE
    written = new(model, {"input_ids": ids, "attention_mask": torch.ones_like(ids)}, 20)
    assert not (written == IMAGE).any()


def test_inputs_are_never_changed(model, processor, prompts):
    inputs = processor(text=prompts[0], images=prompts[1], num_crops=2, padding=True, padding_side="left")
    before = {name: value.clone() for name, value in inputs.items()}
    new(model, inputs)
    assert all(torch.equal(before[name], inputs[name]) for name in before)
