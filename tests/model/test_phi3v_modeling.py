import copy
from contextlib import nullcontext

import pytest
import torch
from torch.nn import functional as F
from transformers import AttentionInterface, AutoModel, AutoModelForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward

from catalens.model import Phi3VForCausalLM, Phi3VModel, unused_parameter_names

IMAGE, PAD, LIMIT = 3, 2, 64


def clone(batch):
    return {name: value.clone() for name, value in batch.items()}


def labels_of(batch, kept=6):
    labels = batch["input_ids"].clone()
    for row, mask in zip(labels, batch["attention_mask"], strict=True):
        row[: int(mask.sum()) - kept] = -100
    labels[batch["attention_mask"] == 0] = -100
    return labels


def rows_of(batch, processor, model):
    """The rows of a batch as inputs of their own, without padding."""
    out, crop, size = [], 0, 0
    for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
        row = {
            "input_ids": ids[mask.bool()][None],
            "attention_mask": torch.ones(1, int(mask.sum()), dtype=torch.long),
        }
        slots, sizes, crops = int((ids == IMAGE).sum()), [], 0
        while slots:
            height, width = batch["image_sizes"][size + len(sizes)].tolist()
            slots -= processor.image_processor.num_image_tokens(height, width)
            sizes.append([height, width])
            crops += 1 + height * width // model.config.crop_size**2
        if sizes:
            row |= {"image_sizes": torch.tensor(sizes), "pixel_values": batch["pixel_values"][crop : crop + crops]}
        crop, size = crop + crops, size + len(sizes)
        out.append(row)
    return out


# ------------------------------------------------------------------------------------------- loading and saving


def test_saved_model_loads_with_official_names(model, tmp_path, batch):
    model.save_pretrained(tmp_path)
    again, info = Phi3VForCausalLM.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values())
    prefix = "model.vision_embed_tokens.img_processor.vision_model."
    assert prefix + "encoder.layers.2.self_attn.q_proj.weight" in again.state_dict()
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)
    assert type(AutoModelForCausalLM.from_pretrained(tmp_path)) is Phi3VForCausalLM
    assert type(AutoModel.from_pretrained(tmp_path)) is Phi3VModel


def test_file_holds_exactly_the_keys_of_the_model(model, tmp_path):
    from safetensors import safe_open

    model.save_pretrained(tmp_path)
    with safe_open(tmp_path / "model.safetensors", "pt") as file:
        assert sorted(file.keys()) == sorted(model.state_dict())


def test_tied_embeddings(make_model, tmp_path, batch):
    model = make_model(tie_word_embeddings=True)
    assert model.lm_head.weight is model.model.embed_tokens.weight
    model.save_pretrained(tmp_path)
    again = Phi3VForCausalLM.from_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(again(**batch).logits, model(**batch).logits)


def test_bfloat16_by_loading(model, tmp_path, batch):
    model.save_pretrained(tmp_path)
    half = Phi3VForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).eval()
    assert half.dtype == torch.bfloat16
    with torch.no_grad():
        ours, wide = half(**batch).logits, model(**batch).logits
        loss = half(**batch, labels=labels_of(batch)).loss
    assert ours.dtype == torch.bfloat16
    assert loss.dtype == torch.float32
    assert (ours.float() - wide).abs().mean() < 0.02 * wide.std()


# ------------------------------------------------------------------------------------------------------ forward


def test_batch_equals_rows_one_at_a_time(model, processor, batch):
    with torch.no_grad():
        together = model(**batch).logits
        for index, row in enumerate(rows_of(batch, processor, model)):
            alone = model(**row).logits[0]
            real = batch["attention_mask"][index].bool()
            torch.testing.assert_close(together[index][real], alone, atol=2e-5, rtol=1e-5)


def test_left_padding_equals_right_padding(model, batch):
    left = clone(batch)
    for name in ("input_ids", "attention_mask"):
        for row, mask in zip(left[name], batch["attention_mask"], strict=True):
            row.copy_(row.roll(int((mask == 0).sum())))
    with torch.no_grad():
        ours, theirs = model(**left).logits, model(**batch).logits
    torch.testing.assert_close(
        ours[left["attention_mask"].bool()], theirs[batch["attention_mask"].bool()], atol=2e-5, rtol=1e-5
    )


def test_a_row_does_not_depend_on_a_longer_neighbour(model):
    """The rope factors go by row: a short row beside one beyond the switch gives what it gives alone."""
    ids = torch.randint(5, 200, (2, LIMIT + 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, 30:] = 0
    with torch.no_grad():
        together = model(input_ids=ids, attention_mask=mask).logits
        alone = model(input_ids=ids[:1, :30]).logits
        long = model(input_ids=ids[1:]).logits
        neighbour = model(input_ids=ids[1:, :LIMIT]).logits
    torch.testing.assert_close(together[:1, :30], alone, atol=2e-5, rtol=1e-5)
    torch.testing.assert_close(together[1:], long, atol=2e-5, rtol=1e-5)
    assert (long[:, :LIMIT] - neighbour).abs().max() > 1e-2  # the switch is really there


def test_padding_does_not_count_as_length(model):
    ids = torch.randint(5, 200, (1, LIMIT - 4), generator=torch.Generator().manual_seed(0))
    padded = F.pad(ids, (30, 0), value=PAD)
    mask = F.pad(torch.ones_like(ids), (30, 0))
    with torch.no_grad():
        ours = model(input_ids=padded, attention_mask=mask).logits[:, 30:]
        torch.testing.assert_close(ours, model(input_ids=ids).logits, atol=2e-5, rtol=1e-5)


def test_inputs_are_never_changed(model, batch):
    before, inputs = clone(batch), {**batch, "labels": labels_of(batch)}
    before["labels"] = inputs["labels"].clone()
    model.train()(**inputs).loss.backward()
    assert all(torch.equal(before[name], inputs[name]) for name in before)


def test_the_picture_reaches_the_logits(model, batch):
    with torch.no_grad():
        seen, blank = model(**batch).logits, model(**{**batch, "pixel_values": batch["pixel_values"] * 0}).logits
    changed = (seen - blank).abs().amax(-1).amax(-1)
    assert changed[0] > 1e-2
    assert changed[1] == 0  # the row without a picture
    assert changed[2] > 1e-2


def test_picture_features_are_in_the_order_of_the_pictures(model, processor, pictures):
    order = [pictures[0], pictures[1], pictures[0], pictures[2], pictures[1]]
    together = processor.image_processor.preprocess(order, num_crops=2)
    with torch.no_grad():
        ours = model.get_image_features(**together)
        single = [model.get_image_features(**processor.image_processor.preprocess(p, num_crops=2)) for p in order]
    torch.testing.assert_close(ours, torch.cat(single), atol=1e-5, rtol=1e-5)


def test_crop_features_stand_for_pixels(model, batch):
    inputs = clone(batch)
    with torch.no_grad():
        features = model.model.vision_embed_tokens.crop_features(inputs.pop("pixel_values"))
        assert torch.equal(model(**inputs, crop_features=features).logits, model(**batch).logits)


def test_embeddings_placed_beforehand(model, batch):
    with torch.no_grad():
        embeds = model.model.embed(batch["input_ids"], batch["pixel_values"], batch["image_sizes"])
        ours = model(inputs_embeds=embeds, attention_mask=batch["attention_mask"]).logits
        assert torch.equal(ours, model(**batch).logits)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda b: b.pop("pixel_values"), r"input_ids hold \d+ picture slots but the pictures given make 0 tokens"),
        (lambda b: b.pop("image_sizes"), "image_sizes is missing"),
        (lambda b: b["input_ids"].__setitem__((0, 0), IMAGE), r"input_ids hold \d+ picture slots"),
        (lambda b: b.update(pixel_values=b["pixel_values"][1:]), r"image_sizes need \d+ crops but \d+ are given"),
        (lambda b: b["image_sizes"].add_(1), "image_sizes has .*: give multiples of the crop size 56"),
        (lambda b: b.update(inputs_embeds=torch.zeros(1, 2, 64)), "exactly one of input_ids and inputs_embeds"),
        (lambda b: b.update(input_ids=None, inputs_embeds=torch.zeros(1, 2, 64)), "pictures need input_ids"),
    ],
)
def test_what_does_not_fit_is_named(model, batch, change, message):
    inputs = clone(batch)
    change(inputs)
    with pytest.raises(ValueError, match=message):
        model(**inputs)


def test_plain_rope(make_model, batch):
    model = make_model(rope_scaling=None)
    model(**batch, labels=labels_of(batch)).loss.backward()
    assert model.model.rotary_emb.limit is None


@pytest.mark.parametrize("heads", [1, 4])
def test_grouped_query_attention(make_model, batch, heads):
    model = make_model(num_key_value_heads=heads)
    assert model.model.layers[0].self_attn.qkv_proj.out_features == 64 + 2 * 16 * heads
    assert torch.isfinite(model(**batch, labels=labels_of(batch)).loss)


# ---------------------------------------------------------------------------------------------------- attention


def test_eager_equals_sdpa(model, batch, tmp_path):
    model.save_pretrained(tmp_path)
    eager = Phi3VForCausalLM.from_pretrained(tmp_path, attn_implementation="eager").eval()
    mixed = Phi3VForCausalLM.from_pretrained(
        tmp_path, attn_implementation={"": "sdpa", "vision_config": "eager"}
    ).eval()
    assert eager.config.vision_config._attn_implementation == "eager"
    assert (mixed.config._attn_implementation, mixed.config.vision_config._attn_implementation) == ("sdpa", "eager")
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        for other in (eager, mixed):
            torch.testing.assert_close(other(**batch).logits[real], model(**batch).logits[real], atol=2e-5, rtol=1e-5)


def test_attention_implementation_reaches_both_parts(make_model, batch):
    """Flash attention needs a GPU; that both parts ask for the implementation that is set needs none."""
    seen = set()

    def spy(module, *args, **kwargs):
        seen.add(type(module).__name__)
        return sdpa_attention_forward(module, *args, **kwargs)

    AttentionInterface.register("spy", spy)
    model = make_model()
    assert model._supports_flash_attn
    assert model.model.vision_embed_tokens.img_processor.vision_model._supports_flash_attn
    model.set_attn_implementation("spy")
    with torch.no_grad():
        model(**{**batch, "attention_mask": None})
    assert seen == {"Phi3Attention", "CLIPAttention"}


@pytest.mark.gpu
@pytest.mark.parametrize("attention", ["sdpa", "flash_attention_2"])
def test_gpu_equals_cpu(model, batch, tmp_path, attention):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    if attention == "flash_attention_2":
        pytest.importorskip("flash_attn")
    model.save_pretrained(tmp_path)
    fast = Phi3VForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16, attn_implementation=attention)
    fast = fast.cuda().eval()
    real = batch["attention_mask"].bool()
    with torch.no_grad():
        ours = fast(**{name: value.cuda() for name, value in batch.items()}).logits.float().cpu()
        wide = model(**batch).logits
    assert (ours - wide)[real].abs().mean() < 0.05 * wide.std()


# --------------------------------------------------------------------------------------------- loss and gradient


def test_loss_is_the_mean_over_labels_and_no_other_logits_are_made(model, batch):
    labels = labels_of(batch)
    with torch.no_grad():
        logits = model(**batch).logits[:, :-1]
    wanted = F.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
    rows = []

    class Heads(torch.overrides.TorchFunctionMode):
        def __torch_function__(self, func, types, args=(), kwargs=None):
            result = func(*args, **(kwargs or {}))
            if func is F.linear and args[1] is model.lm_head.weight:
                rows.append(result.shape)
            return result

    with Heads():
        out = model(**batch, labels=labels)
    torch.testing.assert_close(out.loss, wanted)
    assert out.logits is None
    assert out.past_key_values is None
    assert rows == [(int((labels[:, 1:] != -100).sum()), model.config.vocab_size)]
    for count in (7, torch.tensor(7)):
        scaled = model(**batch, labels=labels, num_items_in_batch=count).loss
        torch.testing.assert_close(scaled, wanted * int((labels[:, 1:] != -100).sum()) / 7)


def test_logits_beside_a_loss_when_asked_for(model, batch):
    out = model(**batch, labels=labels_of(batch), logits_to_keep=3)
    assert out.logits.shape == (3, 3, model.config.vocab_size)
    assert out.loss is not None


@pytest.mark.parametrize("count", [None, 0, torch.tensor(0)])
def test_no_label_at_all_is_a_zero_loss_with_a_graph(model, batch, count):
    loss = model(**batch, labels=torch.full_like(batch["input_ids"], -100), num_items_in_batch=count).loss
    assert loss.item() == 0
    loss.backward()
    assert model.lm_head.weight.grad.abs().max() == 0


def test_what_never_runs_has_no_gradient_and_the_rest_has(model, batch):
    tower = model.model.vision_embed_tokens.img_processor.vision_model
    for dead in (tower.encoder.layers[-1], tower.post_layernorm):
        dead.register_forward_hook(lambda *_: pytest.fail("ran"))
    model(**batch, labels=labels_of(batch)).loss.backward()
    without = [name for name, value in model.named_parameters() if value.grad is None]
    assert without == unused_parameter_names(model)
    assert len(without) == 18
    assert all("layers.2." in name or "post_layernorm" in name for name in without)


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated")  # its new name is too new
@pytest.mark.parametrize("frozen", [False, True])
def test_gradient_checkpointing_changes_nothing(make_model, batch, frozen):
    plain, saving = make_model(), make_model()
    saving.gradient_checkpointing_enable()
    tower = saving.model.vision_embed_tokens.img_processor.vision_model
    assert all(layer.gradient_checkpointing for layer in (*saving.model.layers, *tower.encoder.layers))
    for model in (plain, saving):
        model.model.vision_embed_tokens.img_processor.requires_grad_(not frozen)
        model.train()(**batch, labels=labels_of(batch)).loss.backward()
    for (name, one), other in zip(plain.named_parameters(), saving.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None), name
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, msg=name)


@pytest.mark.parametrize("half", [False, True])
def test_bfloat16_and_autocast(model, batch, half):
    wide = model(**batch, labels=labels_of(batch)).loss.item()
    model = copy.deepcopy(model).to(torch.bfloat16) if half else model
    with nullcontext() if half else torch.autocast("cpu", torch.bfloat16):
        loss = model(**batch, labels=labels_of(batch)).loss
    assert loss.dtype == torch.float32
    assert abs(loss.item() - wide) < 0.05 * wide
    loss.backward()
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in model.parameters())


# ------------------------------------------------------------------------------------------------- long contexts


@pytest.mark.slow
def test_a_long_context_builds_no_dense_mask(make_model, processor, pictures):
    """33,000 tokens with a picture; one dense mask of that length would be 4 GB in fp32, scores four times it."""
    masks = []

    def spy(module, query, key, value, attention_mask, **kwargs):
        masks.append(attention_mask)
        return sdpa_attention_forward(module, query, key, value, attention_mask, **kwargs)

    AttentionInterface.register("spy_mask", spy)
    length = 33_000
    model = make_model(max_position_embeddings=131_072, sliding_window=131_072, original_max_position_embeddings=4096)
    model.set_attn_implementation("spy_mask")
    inputs = dict(processor(text="<|image_1|>What?" + " red" * length, images=pictures[0]))
    inputs |= {name: inputs[name][:, :length] for name in ("input_ids", "attention_mask")}
    labels = torch.full_like(inputs["input_ids"], -100)
    labels[:, -5:] = inputs["input_ids"][:, -5:]
    with torch.no_grad():
        loss = model(**inputs, labels=labels).loss
        other = model(**{**inputs, "pixel_values": -inputs["pixel_values"]}, labels=labels).loss
    assert torch.isfinite(loss)
    assert loss != other  # the picture is still seen 33,000 tokens later
    assert all(mask is None for mask in masks)
