import numpy as np
import pytest
import torch
from transformers import AutoProcessor, PreTrainedTokenizerFast

from catalens.model import Phi3VImageProcessor, Phi3VProcessor

IMAGE = 3


def slots(ids):
    return int((torch.as_tensor(ids) == IMAGE).sum())


def test_one_row_with_a_picture(processor, pictures):
    out = processor(text="<|user|>\n<|image_1|>What?<|end|>", images=pictures[0], num_crops=4)
    size = tuple(out["image_sizes"][0].tolist())
    assert slots(out["input_ids"]) == processor.image_processor.num_image_tokens(*size)
    assert out["attention_mask"].all()
    assert set(out) == {"input_ids", "attention_mask", "pixel_values", "image_sizes"}
    assert out["pixel_values"].shape[0] == 1 + size[0] * size[1] // 56**2


def test_text_alone_has_no_picture_keys(processor):
    out = processor(text=["hello", "hello you"], padding=True)
    assert set(out) == {"input_ids", "attention_mask"}
    assert out["input_ids"].shape == out["attention_mask"].shape


def test_each_chunk_is_tokenized_on_its_own(processor):
    ids = processor.tokenize("<|image_1|>red<|image_2|>", [(56, 56), (56, 112)])
    count = processor.image_processor.num_image_tokens
    red = processor.tokenizer("red")["input_ids"]
    assert ids == [1] + [IMAGE] * count(56, 56) + red + [IMAGE] * count(56, 112) + [1]


def test_batch_equals_rows_and_pictures_follow_slots(processor, pictures):
    texts = ["a <|image_2|> b <|image_1|>", "none", "<|image_1|>"]
    images = [pictures[:2], None, pictures[2]]
    out = processor(text=texts, images=images, padding=True, padding_side="left")
    order = [pictures[1], pictures[0], pictures[2]]
    single = [processor.image_processor.preprocess(p) for p in order]
    assert torch.equal(out["pixel_values"], torch.cat([s["pixel_values"] for s in single]))
    assert torch.equal(out["image_sizes"], torch.cat([s["image_sizes"] for s in single]))
    for row, text in enumerate(texts):
        alone = processor(text=text, images=images[row])
        kept = out["input_ids"][row][out["attention_mask"][row].bool()]
        assert torch.equal(kept, alone["input_ids"][0])
    assert out["attention_mask"][1, 0] == 0
    assert out["attention_mask"][1, -1] == 1


def test_images_in_their_several_shapes(processor, pictures):
    tags = "<|image_1|> <|image_2|>"
    flat = processor(text=tags, images=pictures[:2])
    assert torch.equal(processor(text=[tags], images=[pictures[:2]])["pixel_values"], flat["pixel_values"])
    assert torch.equal(processor(text=[tags], images=pictures[:2])["pixel_values"], flat["pixel_values"])
    one_each = processor(text=["<|image_1|>"] * 2, images=pictures[:2], padding=True)
    assert torch.equal(one_each["pixel_values"], flat["pixel_values"])


@pytest.mark.parametrize(
    ("text", "count", "message"),
    [
        ("<|image_1|> <|image_1|>", 1, r"row 1: <\|image_1\|> stands 2 times"),
        ("<|image_2|>", 1, r"row 1: <\|image_2\|> has no picture \(1 given\)"),
        ("<|image_0|>", 1, r"row 1: <\|image_0\|> has no picture"),
        ("<|image_1|>", 0, r"row 1: <\|image_1\|> has no picture \(0 given\)"),
        ("<|image_1|>", 2, r"row 1: <\|image_2\|> is missing"),
        ("none", 1, r"row 1: <\|image_1\|> is missing"),
        ("<|image_1|> <|image|>", 1, r"row 1: text holds the picture token <\|image\|>"),
        ("<|image|>", 0, r"row 1: text holds the picture token"),
    ],
)
def test_tags_and_pictures_match_or_the_row_is_named(processor, pictures, text, count, message):
    with pytest.raises(ValueError, match=message):
        processor(text=["fine", text], images=[None, pictures[:count]], padding=True)


def test_tokenize_checks_as_the_call_does(processor):
    with pytest.raises(ValueError, match="is missing"):
        processor.tokenize("none", [(56, 56)])


def test_number_of_entries(processor, pictures):
    with pytest.raises(ValueError, match="images has 3 entries for 2 rows"):
        processor(text=["a", "b"], images=pictures[:3])


def test_num_crops_per_call(processor, pictures):
    counts = [slots(processor(text="<|image_1|>", images=pictures[1], num_crops=n)["input_ids"]) for n in (1, 2, 4)]
    assert counts[0] < counts[1] < counts[2]
    with pytest.raises(ValueError, match="num_crops is 0"):
        processor(text="<|image_1|>", images=pictures[1], num_crops=0)


def test_padding(processor):
    texts = ["a", "a longer row"]
    right, left = (processor(text=texts, padding=True, padding_side=side) for side in ("right", "left"))
    pad = processor.tokenizer.pad_token_id
    assert right["input_ids"][0, -1] == pad
    assert left["input_ids"][0, 0] == pad
    assert torch.equal(right["input_ids"][1], left["input_ids"][1])
    lists = processor(text=texts, return_tensors=None)
    assert [len(row) for row in lists["input_ids"]] == right["attention_mask"].sum(1).tolist()
    assert isinstance(processor(text="a", return_tensors="np")["input_ids"], np.ndarray)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "rows differ in length: pass padding=True"),
        ({"padding": True, "padding_side": "up"}, "padding_side is 'up'"),
    ],
)
def test_padding_errors(processor, options, message):
    with pytest.raises(ValueError, match=message):
        processor(text=["a", "a longer row"], **options)


def test_saved_processor_loads_equal(processor, pictures, tmp_path):
    processor.save_pretrained(tmp_path)
    assert (tmp_path / "preprocessor_config.json").is_file()
    for again in (AutoProcessor.from_pretrained(tmp_path), Phi3VProcessor.from_pretrained(tmp_path)):
        assert type(again) is Phi3VProcessor
        assert again.image_processor.to_dict() == processor.image_processor.to_dict()
        ours, theirs = (p(text="<|image_1|>x", images=pictures[0]) for p in (processor, again))
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_decoding(processor):
    ids = processor(text="red scarf")["input_ids"]
    assert processor.batch_decode(ids, skip_special_tokens=True) == ["red scarf"]
    assert processor.decode(ids[0], skip_special_tokens=True) == "red scarf"


def test_tokenizer_without_the_picture_token(tokenizer):
    inner = tokenizer.backend_tokenizer
    bare = PreTrainedTokenizerFast(tokenizer_object=type(inner)(type(inner.model)()))
    with pytest.raises(ValueError, match=r"tokenizer has no <\|image\|> token: add it"):
        Phi3VProcessor(Phi3VImageProcessor(), bare)
