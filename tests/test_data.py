import io
import pickle
from dataclasses import replace
from itertools import groupby, product

import numpy as np
import pytest
import torch
from PIL import Image

from catalens import data
from catalens.catalog import Catalog, CatalogWriter, Roles, open_picture, picture_facts
from catalens.checkpoint import load_model, load_processor
from catalens.config import FieldSpec, NumberFormat, PromptSpec
from catalens.data import IGNORED, Collator, Encoder, Examples, load_examples
from catalens.digits import neighbours
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


TITLES = ["Red Bag", "羊 👗", "Bag (red),", "x,", "Größe 8, blau", '"Kensington"', "👗"]
PRESENT = [present for present in product([True, False], repeat=3) if any(present)]


@pytest.mark.parametrize("title", TITLES)
@pytest.mark.parametrize("present", PRESENT, ids=str)
def test_where_a_field_is_left_out_nothing_is_learnt(encoder, title: str, present: tuple[bool, ...]):
    row = {"title": title, "category3_code": "BAGS", "full_price": 390.0}
    row = {name: value if has else None for (name, value), has in zip(row.items(), present, strict=True)}
    ids = encoder.answer_ids(row)
    labels = encoder.answer_labels(row, ids)
    assert all(label in (token, IGNORED) for label, token in zip(labels, ids, strict=True))
    assert (labels == ids) == all(present)
    assert (labels[-1] == IGNORED) == (not present[-1])
    runs = [
        encoder.tokenizer.decode([token for token, _ in run]).strip()
        for learnt, run in groupby(zip(ids, labels, strict=True), key=lambda pair: pair[1] != IGNORED)
        if learnt
    ]
    first, whole = present.index(True), [str(value) for value in row.values() if value is not None]
    before = "Product: " if first == 0 else ""
    if all(present):
        expected = [f"Product: {title}, Category: BAGS, Full Price: 390.0<|end|>"]
    elif present == (False, True, True):
        expected = ["BAGS, Full Price: 390.0<|end|>"]
    elif present == (True, True, False):
        expected = [f"{before}{title}, Category: BAGS"]
    else:
        expected = [before + whole[0], *whole[1:]]
        expected[-1] += "<|end|>" if present[-1] else ""
    assert runs == expected


def test_examples_of_rows_with_gaps_have_the_same_tokens_and_fewer_labels(drawn, encoder, tmp_path):
    catalog = Catalog(drawn)
    rows = catalog.rows("train")
    with CatalogWriter(tmp_path / "gaps", catalog.card.roles, {}) as writer:
        for number, row in enumerate(rows):
            column = ("title", "category3_code", "full_price")[number % 3]
            writer.add("train", row["image"], row["product_code"], row | ({column: None} if number % 2 else {}))
    images = FeatureCache(encoder, 0, features=False)
    whole = load_examples(catalog, encoder, "train", images)
    gaps = load_examples(Catalog(tmp_path / "gaps"), encoder, "train", images)
    assert gaps.bad == []
    for number in range(len(rows)):
        one, other = whole[number], gaps[number]
        if number % 2 == 0:
            assert torch.equal(one["input_ids"], other["input_ids"])
            assert torch.equal(one["labels"], other["labels"])
        else:
            learnt = int((other["labels"] != IGNORED).sum())
            assert 0 < learnt < len(gaps.answer_ids(number)) < len(whole.answer_ids(number))


def test_a_row_without_any_field_of_the_prompt_is_left_out_and_no_reason_to_stop(catalog, titles):
    found = load_examples(catalog(*["Bag"] * 5, *[None] * 5), titles, "test")
    assert (len(found), len(found.bad)) == (5, 5)
    assert found.bad[0] == "test row 6 (P5): no field has a value: fill one in or leave the row out"


def test_a_split_in_which_no_row_has_a_field_of_the_prompt_is_refused(catalog, titles):
    with pytest.raises(TooManyBadRowsError, match=r"^5 of 5 test rows cannot be used: .*: no field has a value"):
        load_examples(catalog(*[None] * 5), titles, "test")


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
    assert "attention_mask" not in batch  # no token sees the padding on its right
    for labels, places, length in zip(batch["labels"], batch["position_ids"], lengths, strict=True):
        assert places.tolist() == [*range(length), *[0] * (max(lengths) - length)]
        assert (labels[length:] == IGNORED).all()
    tiles = [encoder.family.num_tiles(encoder.processor, example["images"][0].hd_size) for example in examples]
    assert batch["pixel_values"].shape[0] == sum(tiles) - 6
    assert batch["pixel_values"].dtype == torch.uint8
    assert encoder.family.normalised_pixels([image for one in examples for image in one["images"]]).shape[0] == sum(
        tiles
    )
    assert batch["image_sizes"].shape == (6, 2)


def test_a_row_that_only_fills_a_place_has_no_label(dataset):
    filler, row = dataset[~1], dataset[1]
    assert (filler["labels"] == IGNORED).all()
    assert torch.equal(filler["input_ids"], row["input_ids"])
    assert (row["labels"] != IGNORED).any()
    assert dataset.lengths()[:6] == [len(one["input_ids"]) for one in made(dataset)]
    family = dataset.encoder.family
    assert dataset.tiles()[:6] == [len(family.normalised_pixels(one["images"])) for one in made(dataset)]


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


SHOP = PromptSpec(
    fields=(
        FieldSpec(column="title", label="Product", kind="text"),
        FieldSpec(column="price", label="Price", kind="number"),
        FieldSpec(column="width", label="Width", kind="number"),
    ),
    numbers=NumberFormat(decimal=",", thousands=".", prefix="EUR "),
)


@pytest.mark.parametrize(
    ("row", "digits"),
    [
        ({"title": "Jeans 501", "price": 1290.5, "width": 8.25}, {"1290": 1290.5, "8": 8.25}),
        ({"title": "Jeans 501", "price": -12.0, "width": 0.0}, {}),
        ({"title": "Jeans 501", "price": None, "width": 30}, {"30": 30}),
    ],
)
def test_the_digits_before_the_point_of_numbers_learn_their_neighbours(row, digits):
    encoder = Encoder(load_processor("tiny"), SHOP)
    ids = encoder.answer_ids(row)
    places, shares = encoder.soft_digits(row, ids, 0.05)
    assert encoder.tokenizer.decode([ids[place] for place in places]) == "".join(digits)
    wanted = [share for one, value in digits.items() for share in neighbours(value, one, 0.05)]
    assert np.array_equal(np.array(shares), np.array(wanted)) or not digits
    assert (
        not places or ": " in encoder.tokenizer.decode(ids[: min(places)]).partition("501, ")[2]
    )  # none of the title


def test_neighbours_are_those_of_numbers_around_it():
    drawn = np.round(np.random.default_rng(0).lognormal(np.log(390), 0.05, 400_000)).astype(int)
    of_three = drawn[(drawn >= 100) & (drawn < 1000)]
    first = np.bincount(of_three // 100, minlength=10) / len(of_three)
    second = np.bincount(of_three[of_three // 100 == 3] // 10 % 10, minlength=10)
    found = neighbours(390, "390", 0.05)
    assert found[0] == pytest.approx(first, abs=0.005)
    assert found[1] == pytest.approx(second / second.sum(), abs=0.005)
    assert found.sum(1) == pytest.approx(np.ones(3), abs=1e-6)
    assert neighbours(7, "7", 1e-6)[0].tolist() == np.eye(10)[7].tolist()
    below, above, *others = neighbours(0.99, "0", 0.05)[0]  # up to 0.999..., up to 1.999...
    assert (below, above) == (pytest.approx(0.58, abs=0.01), pytest.approx(0.42, abs=0.01))
    assert max(others) < 1e-6


def test_soft_targets_replace_the_labels_of_digits(drawn, encoder):
    def batch(width: float) -> dict:
        images = FeatureCache(encoder, 0, features=False)
        rows = load_examples(Catalog(drawn), encoder, "train", images, width)
        return Collator(encoder.family, encoder.tokenizer.pad_token_id)([rows[0], rows[~1], rows[2]])

    plain, soft = batch(0.0), batch(0.05)
    names = ("soft_places", "soft_shares", "soft_words")
    assert {name for name in soft if name not in plain} == {*names}
    model = load_model("tiny")
    logs = model(**{name: value for name, value in soft.items() if name not in ("labels", *names)}).logits
    logs, labels = logs[:, :-1].log_softmax(-1), soft["labels"][:, 1:]
    expected = -logs.gather(2, labels.clamp(min=0)[..., None])[labels != IGNORED].sum()
    for place, shares in zip(soft["soft_places"].tolist(), soft["soft_shares"], strict=True):
        row, at = divmod(place, soft["labels"].shape[1])
        assert row != 1  # the example that teaches nothing
        expected += logs[row, at, labels[row, at]] - (shares * logs[row, at, soft["soft_words"]]).sum()
    assert model(**soft, num_items_in_batch=1).loss.item() == pytest.approx(expected.item(), rel=1e-5)
    sharp = batch(1e-7)
    assert model(**sharp).loss.item() == pytest.approx(model(**plain).loss.item(), rel=1e-6)


def test_a_tokenizer_that_melts_prompt_and_answer_is_refused():
    processor = load_processor("tiny")
    processor.tokenize = lambda text, sizes=(): [1, 2] if text.endswith("\n") else [1, 3]  # type: ignore[method-assign]
    with pytest.raises(CheckpointError, match="tokenizer"):
        Encoder(processor, PromptSpec())


@pytest.fixture
def catalog(tmp_path):
    def make(*titles: str | None, picture: bytes | None = None) -> Catalog:
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


def test_pictures_are_decoded_only_where_the_catalogue_does_not_know_them(tmp_path, titles, monkeypatch):
    buffer, tried = io.BytesIO(), []
    Image.new("RGB", (8, 8), "red").save(buffer, "PNG")
    known = picture_facts(buffer.getvalue())
    with CatalogWriter(tmp_path / "catalog", Roles(id="code", fields={"title": "text"}), {}) as writer:
        writer.add("test", buffer.getvalue(), "KNOWN", {"title": "Bag"}, known)
        writer.add("test", buffer.getvalue(), "OTHER", {"title": "Hat"}, replace(known, sha256="0" * 64, width=9))
    monkeypatch.setattr(data, "open_picture", lambda found: tried.append(found) or open_picture(found))
    found = load_examples(Catalog(tmp_path / "catalog"), titles, "test")
    assert [one.size for one in found.pictures] == [(8, 8)] * 2
    assert len(tried) == 1


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
