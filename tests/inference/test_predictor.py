"""From what was written to what is read: scores by field, confidences, review."""

import json
import math
from collections.abc import Callable, Sequence

import pytest

from catalens.catalog import Catalog
from catalens.config import PromptSpec
from catalens.errors import RecipeError
from catalens.evaluation import calibrate
from catalens.inference import Completion, FieldScore, Predictor, field_scores, fit_calibration, load_predictor
from catalens.model import REFERENCE
from catalens.predictions import record_columns, record_of

END = REFERENCE.end_token
TOKENS = {
    "Product": 0.0, ":": 0.0, " Red": -0.1, " Tote": -0.2, ",": -0.3, " Category": -0.01, ": ": 0.0,
    "BA": -0.4, "GS": 0.0, ", Full Price:": 0.0, " ": 0.0, "1": -0.5, "29": -0.6, ".0": -0.7, "<|end|>": -0.8,
}  # fmt: skip


def written(tokens: dict[str, float] | None = None) -> Completion:
    tokens = tokens or TOKENS
    return Completion(tuple(piece.encode() for piece in tokens), tuple(tokens.values()))


class Recorded:
    """A generator that has written already."""

    family = REFERENCE

    def __init__(self, *answers: Completion) -> None:
        self.answers = list(answers)

    def generate(
        self, pictures: Sequence[bytes], on_progress: Callable[[int], None] = lambda done: None
    ) -> list[Completion]:
        on_progress(len(pictures))
        return self.answers


def test_a_field_has_the_tokens_of_its_value_and_of_its_end():
    scores = field_scores(PromptSpec(), written(), END)
    assert scores["title"] == FieldScore(pytest.approx(-0.61), 3)  # " Red" " Tote", and one for ", Category: "
    assert scores["category3_code"] == FieldScore(pytest.approx(-0.4), 3, pytest.approx(-0.61))
    assert scores["full_price"] == FieldScore(
        pytest.approx(-2.6), 4, pytest.approx(-1.01)
    )  # the " " before it is of the label


@pytest.mark.parametrize("label", ["P", "Price", "A very long label of many tokens"])
def test_a_label_makes_a_text_no_surer(label):
    """However many forced tokens it has, and wherever they end."""
    fields = (PromptSpec().fields[0], PromptSpec().fields[2].model_copy(update={"label": label}))
    prompt = PromptSpec(fields=fields)
    for ending in ([", ", *label, ": "], [",", f" {label}:", " "], [f", {label}: "]):
        tokens = [("Product", 0.0), (": ", 0.0), ("Red", -0.2), *((piece, 0.0) for piece in ending), ("9", -0.1)]
        tokens[3] = (ending[0], -0.4)  # the choice to end; what follows is forced
        pieces, scores = zip(*tokens, ("<|end|>", -0.3), strict=True)
        found = field_scores(prompt, Completion(tuple(piece.encode() for piece in pieces), scores), END)
        assert found["title"] == FieldScore(pytest.approx(-0.6), 2)
        assert found["full_price"] == FieldScore(pytest.approx(-0.4), 2, pytest.approx(-0.6))


def test_a_token_over_the_edge_of_a_value_is_its_own():
    pieces = {"Product: R": -0.1, "ed,": -0.2, " Category: BA": -0.3, "GS, Full Price:": -0.4, " 9<|end|>": -0.5}
    scores = field_scores(PromptSpec(), written(pieces), END)
    assert scores["title"] == FieldScore(pytest.approx(-0.3), 2)
    assert scores["category3_code"] == FieldScore(pytest.approx(-0.7), 2, pytest.approx(-0.3))
    assert scores["full_price"] == FieldScore(pytest.approx(-0.5), 1, pytest.approx(-1.0))


def test_without_a_calibration_confidence_is_the_models_own():
    (prediction,) = Predictor(Recorded(written()), PromptSpec()).predict([b""])
    assert prediction.values == {"title": "Red Tote", "category3_code": "BAGS", "full_price": 129.0}
    assert prediction.confidence["category3_code"] == pytest.approx(math.exp(-0.4))
    assert not prediction.intervals
    assert not prediction.needs_review


def test_what_is_not_sure_enough_is_marked_and_what_was_not_read_is_marked_whole():
    rows = [{"title": "Red Tote", "category3_code": "BAGS", "full_price": 100.0 + n} for n in range(200)]
    scores = [{name: FieldScore(-0.001, 1) for name in rows[0]}] * 200
    calibration = fit_calibration(PromptSpec(), rows, rows, scores)
    unsure = written(TOKENS | {"BA": -3.0})
    predictor = Predictor(
        Recorded(written(), unsure, Completion(error="picture is none"), written({"Shoe": -1.0})),
        PromptSpec(),
        calibration,
        {"category3_code": 0.05},
    )
    sure, doubted, none, lost = predictor.predict([b""] * 4)
    assert predictor.thresholds["category3_code"] is not None
    assert (sure.confidence["category3_code"] > doubted.confidence["category3_code"]) is True
    assert doubted.needs_review == ("category3_code",)
    assert sure.intervals["full_price"][0] <= 129.0 <= sure.intervals["full_price"][1]
    assert (none.error, none.values) == ("picture is none", None)
    assert "does not start with" in str(lost.error)
    for one in (none, lost):
        assert set(one.needs_review) == set(rows[0])
        assert record_of(PromptSpec(), one)["needs_review"] is True
    assert list(record_of(PromptSpec(), sure)) == record_columns(PromptSpec())


@pytest.mark.integration
def test_a_run_reads_in_the_space_of_its_catalogue_and_learns_what_it_is_sure_of(run, drawn):
    calibration = calibrate(run)
    known = [row[Catalog(drawn).card.roles.id] for row in Catalog(drawn).rows("validation")]
    assert (calibration.rows, calibration.products) == (len(known), len(set(known)))
    assert calibration.candidates == 2  # rounds of the recipe
    assert (run / "calibration.json").is_file()
    rows = list(Catalog(drawn).rows("test"))
    categories = {row["category3_code"] for row in Catalog(drawn).rows("train")}
    predictor = load_predictor(run, accept_error={"title": 0.5})
    predictions = predictor.predict([*(row["image"] for row in rows), b"<svg/>"])
    assert predictor.calibrated
    lengths = json.loads((run / "best" / "answers.json").read_text())["answer_tokens"]
    assert 0 < predictor.generator.answer_tokens == lengths < 48
    assert all(one.values and one.values["category3_code"] in categories for one in predictions[:-1])
    assert all(0 <= share <= 1 for one in predictions[:-1] for share in one.confidence.values())
    assert predictions[-1].error
    if calibration.bounds("full_price", 100.0):
        assert all("full_price" in one.intervals for one in predictions[:-1])


@pytest.mark.integration
def test_options_that_do_not_fit_are_refused(run):
    with pytest.raises(RecipeError, match="--accept-error names 'tilte': the fields are title"):
        load_predictor(run, accept_error={"tilte": 0.05})
    with pytest.raises(RecipeError, match="the catalogue's own categories"):
        load_predictor(run, accept_error=0.05, free_categories=True)
