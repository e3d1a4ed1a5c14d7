import io
import pickle

import pytest
import torch
from PIL import Image

from catalens.catalog import Catalog, CatalogWriter, Roles, open_picture
from catalens.checkpoint import load_processor
from catalens.config import PromptSpec
from catalens.data import IGNORED, Collator, Encoder, Examples, load_examples
from catalens.errors import CatalogError, CheckpointError, PictureError, TooManyBadRowsError, TrainingError
from catalens.features import FeatureCache


@pytest.fixture(scope="module")
def encoder() -> Encoder:
    return Encoder(load_processor("tiny"), PromptSpec())


@pytest.fixture(scope="module")
def examples(drawn, encoder) -> Examples:
    return load_examples(Catalog(drawn), encoder, "train")


@pytest.fixture
def dataset(drawn, encoder) -> Examples:
    return load_examples(Catalog(drawn), encoder, "train", FeatureCache(encoder, 0, features=False))


def made(dataset: Examples, count: int = 6) -> list[dict]:
    return [dataset[index] for index in range(count)]


def text_of(row) -> str:
    return f"Product: {row['title']}, Category: {row['category3_code']}, Full Price: {row['full_price']}<|end|>"


def test_labels_cover_the_answer_and_its_end_only(encoder, dataset):
    example, row = dataset[0], dataset.rows[0]
    learnt = example["input_ids"][example["labels"] != IGNORED]
    assert encoder.tokenizer.decode(learnt) == text_of(row)
    before = example["input_ids"][: len(example["input_ids"]) - len(learnt)]
    assert encoder.tokenizer.decode(before[before != encoder.processor.image_token_id]).endswith("<|assistant|>")


def test_what_is_trained_continues_what_is_generated_from(encoder, dataset):
    example, row = dataset[0], dataset.rows[0]
    chat, size = encoder.family.chat(encoder.prompt.question), [example["images"][0].hd_size]
    prompt = encoder.family.token_ids(encoder.processor, chat, size)
    assert example["input_ids"].tolist() == encoder.family.token_ids(encoder.processor, chat + text_of(row), size)
    assert example["input_ids"].tolist()[: len(prompt)] == prompt
    assert (example["labels"][: len(prompt)] == IGNORED).all()
    assert (example["labels"][len(prompt) :] != IGNORED).all()


def test_a_batch_is_padded_to_its_longest_row_and_holds_real_tiles_only(encoder, dataset):
    examples = made(dataset)
    batch = Collator(encoder.family, encoder.tokenizer.pad_token_id)(examples)
    lengths = [len(example["input_ids"]) for example in examples]
    assert batch["input_ids"].shape == batch["labels"].shape == (6, max(lengths))
    assert batch["attention_mask"].sum(1).tolist() == lengths
    assert (batch["labels"][batch["attention_mask"] == 0] == IGNORED).all()
    assert batch["pixel_values"].shape[0] == sum(len(example["images"][0].pixels) for example in examples)
    assert batch["image_sizes"].shape == (6, 2)


def test_a_row_that_only_fills_a_place_has_no_label(dataset):
    filler, row = dataset[~1], dataset[1]
    assert (filler["labels"] == IGNORED).all()
    assert torch.equal(filler["input_ids"], row["input_ids"])
    assert (row["labels"] != IGNORED).any()
    assert dataset.lengths()[:6] == [len(one["input_ids"]) for one in made(dataset)]
    assert dataset.tiles()[:6] == [len(one["images"][0].pixels) for one in made(dataset)]


def test_rows_have_the_place_of_their_pictures_and_no_bytes(drawn, examples):
    stored = [row["image"] for row in Catalog(drawn).rows("train")]
    assert list(map(bytes, examples.pictures)) == stored
    again = pickle.loads(pickle.dumps(examples))
    assert len(pickle.dumps(examples.rows)) < 300 * len(stored)
    assert [bytes(picture) for picture in again.pictures] == stored
    assert len(set(examples.pictures)) == len(set(stored))
    assert all(picture.size == open_picture(bytes(picture)).size for picture in examples.pictures)


def test_a_picture_that_went_bad_names_its_row(encoder, dataset):
    def broken(picture):
        raise PictureError("cannot be decoded (broken data)")

    dataset.images = broken
    with pytest.raises(TrainingError, match=rf"row \(.*{dataset.rows[0]['product_code']}.*\): pic.*--resume"):
        dataset[0]


def test_a_packed_batch_is_one_row_without_padding(encoder, dataset):
    examples = made(dataset)
    batch = Collator(encoder.family, encoder.tokenizer.pad_token_id, packed=True)(examples)
    lengths = [len(example["input_ids"]) for example in examples]
    assert batch["input_ids"].shape == batch["labels"].shape == batch["position_ids"].shape == (1, sum(lengths))
    assert "attention_mask" not in batch
    assert batch["position_ids"][0].tolist() == [place for length in lengths for place in range(length)]


def test_a_tokenizer_that_melts_prompt_and_answer_is_refused():
    processor = load_processor("tiny")
    processor.tokenize = lambda text, sizes=(): [1, 2] if text.endswith("\n") else [1, 3]  # type: ignore[method-assign]
    with pytest.raises(CheckpointError, match="tokenizer"):
        Encoder(processor, PromptSpec())


@pytest.fixture
def catalog(tmp_path):
    def make(*titles: str, picture: bytes | None = None) -> Catalog:
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
        with CatalogWriter(tmp_path / "catalog", Roles(id="code", fields={"title": "text"}), {}) as writer:
            for number, title in enumerate(titles):
                writer.add("test", buffer.getvalue(), f"P{number}", {"title": title})
            if picture is not None:
                writer.add("test", picture, "HURT", {"title": "Hurt"})
        return Catalog(tmp_path / "catalog")

    return make


@pytest.fixture
def titles() -> Encoder:
    return Encoder(load_processor("tiny"), PromptSpec(fields=PromptSpec().fields[:1]))


def test_rows_that_are_of_no_use_are_named(catalog, titles):
    found = load_examples(catalog(*["Bag"] * 38, "Bag<|end|>", picture=b"<svg/>"), titles, "test")
    bad = found.bad
    assert [row["code"] for row in found.rows] == [f"P{n}" for n in range(38)]
    assert bad[0].startswith("test row 39 (P38): field 'title' holds the special token '<|end|>'")
    assert bad[1].startswith("test row 40 (HURT): picture not a picture in one of JPEG")


def test_too_many_of_no_use_are_an_error(catalog, titles):
    with pytest.raises(TooManyBadRowsError, match=r"2 of 11 test rows cannot be used: test row 10 \(P9\)"):
        load_examples(catalog(*["Bag"] * 9, "<|end|>", picture=b""), titles, "test")


def test_tokens_that_do_not_read_back_count_as_well(catalog, titles, monkeypatch):
    decode = titles.tokenizer.decode
    monkeypatch.setattr(titles.tokenizer, "decode", lambda ids: decode(ids).replace("Hat", "hat"))
    found = load_examples(catalog(*["Bag"] * 3, "Hat", *["Bag"] * 16), titles, "test")
    assert len(found.rows) == len(found.lengths()) == 19
    assert [reason.partition(";")[0] for reason in found.bad] == [
        "test row 4 (P3): the tokenizer does not give back 'Product: Hat<|end|>'"
    ]


def test_a_column_that_is_not_there_is_named(catalog, encoder: Encoder):
    with pytest.raises(CatalogError, match="no column 'category3_code'"):
        load_examples(catalog("Bag"), encoder, "test")
