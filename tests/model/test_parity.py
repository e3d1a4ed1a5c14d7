"""Every golden case against the original code's figures, through the functions of the benchmark."""

import parity
import pytest

from catalens.config import PromptSpec
from catalens.data import IGNORED, Encoder
from catalens.model import Phi3VProcessor

pytestmark = [
    pytest.mark.parity,
    pytest.mark.skipif(not parity.available(), reason=f"no goldens in {parity.FOLDER} (set CATALENS_GOLDEN)"),
]

FULL = [(family, name) for family in parity.FAMILIES for name in ("tokenizer", "weights", "full_size")]


def assert_holds(deviations):
    found = list(deviations)
    assert found
    assert [one for one in found if not one.holds] == []


@pytest.mark.parametrize("name", parity.document("processor")["images"] if parity.available() else [])
def test_picture(name):
    for crops in parity.document("processor")["images"][name]["num_crops"]:
        assert_holds(parity.check_picture(name, int(crops)))


@pytest.mark.parametrize(("name", "crops"), parity.prompt_cases() if parity.available() else [])
def test_prompt(name, crops):
    for family in parity.FAMILIES:
        assert_holds(parity.check_prompt(name, crops, family))


def test_repeated_tag_is_an_error_where_the_original_went_on():
    prompt = parity.document("processor")["prompts"][parity.MISHANDLED]
    with pytest.raises(ValueError, match=r"row 0: <\|image_1\|> stands 2 times"):
        parity.processor()(text=prompt["text"], images=[parity.picture(name) for name in prompt["images"]])


@pytest.mark.parametrize(("family", "what"), FULL)
def test_family(family, what):
    assert_holds(getattr(parity, f"check_{what}")(family))


@pytest.mark.parametrize(("family", "name"), parity.model_cases() if parity.available() else [])
def test_model(family, name):
    assert_holds(parity.check_model(family, name))


@pytest.mark.parametrize("family", parity.FAMILIES)
def test_official_processor_survives_saving(family, tmp_path):
    official = parity.processor(family)
    official.save_pretrained(tmp_path)
    again = Phi3VProcessor.from_pretrained(tmp_path)
    text = "<|user|>\n<|image_1|>\nHi  there</s><|end|>\n<|assistant|>\n"
    assert again.tokenize(text, [(336, 672)]) == official.tokenize(text, [(336, 672)])
    assert again.image_processor.to_dict() == official.image_processor.to_dict()
    assert again.tokenizer.pad_token == official.tokenizer.pad_token


@pytest.mark.parametrize(
    "title", ["Red Bag", "羊 👗", "Bag (red)", "Bag (red),", "x,", "a.", 'the "Kensington"', "Größe"]
)
@pytest.mark.parametrize(
    "lacking", [("title",), ("category3_code",), ("full_price",), ("category3_code", "full_price")]
)
@pytest.mark.parametrize("family", parity.FAMILIES)
def test_gaps_of_an_answer_have_no_label_by_the_official_tokenizer(family, lacking, title):
    encoder = Encoder(parity.processor(family), PromptSpec())
    row = {"title": title, "category3_code": "BAGS", "full_price": 390.0} | dict.fromkeys(lacking)
    ids = encoder.answer_ids(row)
    labels = encoder.answer_labels(row, ids)
    runs, run = [], []
    for token, label in [*zip(ids, labels, strict=True), (0, IGNORED)]:
        if label != IGNORED:
            run.append(token)
        elif run:
            runs.append(encoder.tokenizer.decode(run).strip())
            run = []
    # the last character of a title and the comma behind it may be one token, which is the same in a whole answer
    comma = "," if runs[0] == f"Product: {title}," and lacking == ("category3_code",) else ""
    expected = {
        ("title",): ["BAGS, Full Price: 390.0<|end|>"],
        ("category3_code",): [f"Product: {title}{comma}", "390.0<|end|>"],
        ("full_price",): [f"Product: {title}, Category: BAGS"],
        ("category3_code", "full_price"): [f"Product: {title}"],
    }
    assert runs == expected[lacking]
