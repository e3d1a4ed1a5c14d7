import pytest

from catalens.catalog.storage import Catalog
from catalens.checkpoint import load_model, load_processor
from catalens.config import PromptSpec
from catalens.errors import PictureError
from catalens.inference import Writer

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def model():
    return load_model("tiny")


@pytest.fixture(scope="module")
def pictures(drawn):
    return [row["image"] for row in Catalog(drawn).rows("train")[:7]]


def writer(model, batch_size: int, longest: int = 40) -> Writer:
    return Writer(model, load_processor("tiny"), PromptSpec(), batch_size, longest)


def test_a_batch_writes_what_single_pictures_write_in_their_order(model, pictures):
    heard: list[int] = []
    together = writer(model, 3).answers(pictures, heard.append)
    assert together == [writer(model, 1).answers([picture])[0] for picture in pictures]
    assert heard == [3, 6, 7]
    assert len(set(together)) > 1
    assert all(answer.endswith("<|end|>") and answer.count("<|") == 1 for answer in together)


def test_generation_stops_at_the_longest_and_leaves_the_model_as_it_was(model, pictures):
    model.train()
    short = writer(model, 4, longest=3).answers(pictures[:2])
    assert model.training
    tokenizer = load_processor("tiny").tokenizer
    assert all(len(tokenizer(answer, add_special_tokens=False)["input_ids"]) <= 4 for answer in short)


def test_no_pictures_and_no_picture(model):
    assert writer(model, 4).answers([]) == []
    with pytest.raises(PictureError):
        writer(model, 4).answers([b"<svg/>"])
