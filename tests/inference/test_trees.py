"""Values that grow on trees against all values of a field, one by one; and the same whatever the batch."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from catalens.checkpoint import load_model, load_processor
from catalens.config import FieldSpec, NumberFormat, PromptSpec
from catalens.data import Encoder
from catalens.distributions import Distribution
from catalens.examples import AnswerSchema, FieldConstraints, answer_space, parse_answer
from catalens.inference import Constraint, Decoder, Generator
from catalens.sampling import draw_catalog
from catalens.tolerance import Tolerance

PICTURES = [row.image for row in draw_catalog(13, seed=3)]
ROWS = [
    {"title": row.title, "category3_code": row.category3_code, "full_price": row.full_price}
    for row in draw_catalog(60, seed=0)
]
KIND = FieldSpec(column="kind", label="Kind", kind="category")
PRICE = FieldSpec(column="price", label="Price", kind="number")
SMALL = AnswerSchema(
    fields={
        "kind": FieldConstraints(values=("BAG", "BAGS", "HAT", "SHOE"), longest=6),
        "price": FieldConstraints(digits=2, decimals=(0, 1)),
    }
)


@pytest.fixture(scope="module")
def model() -> Any:
    return load_model("tiny").eval()


@pytest.fixture(scope="module")
def processor() -> Any:
    return load_processor("tiny")


def writer(model: Any, processor: Any, prompt: PromptSpec, schema: AnswerSchema, size: int = 4, **options: Any):
    return Generator(model, processor, prompt, size, 40, schema, **{"estimate": "median"} | options)


def all_values(model: Any, processor: Any, prompt: PromptSpec, schema: AnswerSchema, picture: bytes, before: str):
    """{rest of the answer: probability} of every way to go on after `before`, by one pass for each beginning."""
    generator = writer(model, processor, prompt, schema)
    constraint = Constraint(generator.vocabulary, prompt, schema)
    encoder, found = Encoder(processor, prompt), {}
    image = encoder.image(picture)
    inputs, ids = encoder.family.collate([image]), encoder.prompt_ids([image.hd_size]).tolist()

    @torch.no_grad()
    def follow(matcher: Any, tokens: list[int], share: float) -> None:
        written = generator.vocabulary.guide.decode_str([t for t in tokens if t != generator.vocabulary.end])
        if tokens and tokens[-1] == generator.vocabulary.end:
            found[written.lstrip()] = found.get(written.lstrip(), 0.0) + share
            return
        logits = model(input_ids=torch.tensor([ids + tokens]), **inputs, logits_to_keep=1).logits[0, -1].double()
        allowed = np.flatnonzero(constraint.allowed([matcher])[0])
        for token, log in zip(allowed.tolist(), logits[allowed].log_softmax(0).tolist(), strict=True):
            text = written + generator.vocabulary.guide.decode_str([token])
            if not (text.lstrip().startswith(before) or before.startswith(text.lstrip())):
                continue
            known = len(text.lstrip()) > len(before)
            one = matcher.deep_copy()
            more = constraint.follow(one, token)
            follow(one, [*tokens, token, *more], share * math.exp(log) if known else share)

    start = constraint.start()
    follow(start, constraint.forced(start), 1.0)
    return found


def test_the_distribution_of_a_closed_set_is_that_of_all_its_values(model, processor):
    prompt = PromptSpec(fields=(KIND,))
    schema = AnswerSchema(fields={"kind": SMALL.fields["kind"]})
    for picture, answer in zip(
        PICTURES[:3], writer(model, processor, prompt, schema).generate(PICTURES), strict=False
    ):
        expected = {
            text.removeprefix("Kind: "): share
            for text, share in all_values(model, processor, prompt, schema, picture, "Kind:").items()
        }
        found = answer.distributions["kind"]
        assert sum(expected.values()) == pytest.approx(1)
        for value, share in zip(found.values, found.probabilities, strict=True):
            assert share == pytest.approx(expected[value], abs=1e-4)
        assert all(share < 0.01 for value, share in expected.items() if value not in found.values)
        assert answer.text == f"Kind: {max(expected, key=expected.__getitem__)}<|end|>"


def test_the_quantiles_of_a_number_are_those_of_all_its_values(model, processor):
    prompt = PromptSpec(fields=(PRICE,))
    schema = AnswerSchema(fields={"price": SMALL.fields["price"]})
    answers = writer(model, processor, prompt, schema).generate(PICTURES)
    for picture, answer in zip(PICTURES[:2], answers, strict=False):
        expected: dict[float, float] = {}
        for text, share in all_values(model, processor, prompt, schema, picture, "Price:").items():
            value = float(text.removeprefix("Price: "))
            expected[value] = expected.get(value, 0) + share
        assert sum(expected.values()) == pytest.approx(1)
        found = answer.distributions["price"]
        whole = Distribution.of(expected)
        assert sum(found.probabilities) == pytest.approx(1)
        # 32 quantiles: no part of the mass is off by more than three of them
        for at in np.quantile(whole.values, [0.1, 0.3, 0.5, 0.7, 0.9]):
            below = [
                sum(p for v, p in zip(d.values, d.probabilities, strict=True) if v <= at) for d in (whole, found)
            ]
            assert below[1] == pytest.approx(below[0], abs=3.1 / 32)
        value = parse_answer(prompt, answer.text, "<|end|>").values
        assert value is not None
        low, high = whole.quantile(0.5 - 3.1 / 32), whole.quantile(0.5 + 3.1 / 32)
        assert low - 1 <= value["price"] <= high + 1


@pytest.mark.parametrize(
    ("fields", "numbers"),
    [
        ((KIND, PRICE), NumberFormat()),
        ((PRICE, KIND), NumberFormat(prefix="$")),
        ((PRICE,), NumberFormat(prefix="EUR ", suffix=" net", thousands=".", decimal=",", decimals=2)),
    ],
)
def test_batches_write_what_each_row_alone_has(model, processor, fields, numbers):
    prompt = PromptSpec(fields=fields, numbers=numbers)
    rows = [
        {"kind": kind, "price": price} for kind, price in itertools.product(("BAG", "HATS"), (1.5, 980.0, 12345.0))
    ]
    schema = answer_space(prompt, rows)
    alone = [writer(model, processor, prompt, schema, 1).generate([picture])[0] for picture in PICTURES]
    for one, other in zip(alone, writer(model, processor, prompt, schema, 8).generate(PICTURES), strict=True):
        assert one.text == other.text
        assert one.distributions.keys() == {field.column for field in fields}
        for column, known in one.distributions.items():
            again = other.distributions[column]
            if column == "kind":
                assert again.top(2)[0] == (known.top(2)[0][0], pytest.approx(known.top(2)[0][1], abs=1e-4))
            else:
                assert again == known
        values = parse_answer(prompt, one.text, "<|end|>").values
        assert values is not None
        assert len(one.pieces) == len(one.log_probabilities)
        if "kind" in values:
            assert values["kind"] == one.distributions["kind"].mode


def test_the_median_is_written_and_the_mode_is_what_is_written_token_by_token(model, processor):
    schema = answer_space(PromptSpec(), ROWS)
    greedy = writer(model, processor, PromptSpec(), schema, estimate=None).generate(PICTURES)
    mode = writer(model, processor, PromptSpec(), schema, estimate="mode").generate(PICTURES)
    assert greedy == mode
    for answer in writer(model, processor, PromptSpec(), schema).generate(PICTURES):
        values = parse_answer(PromptSpec(), answer.text, "<|end|>").values
        assert values is not None
        price = answer.distributions["full_price"]
        assert math.floor(values["full_price"]) == math.floor(price.point("median"))


def test_trees_of_captured_passes_are_the_same(model, processor, monkeypatch):
    schema = answer_space(PromptSpec(), ROWS)
    usual = writer(model, processor, PromptSpec(), schema, 8).generate(PICTURES)
    shapes, post_init = set(), Decoder.__post_init__

    def as_on_a_gpu(decoder: Decoder) -> None:
        post_init(decoder)
        decoder.captured = True

    def run(tree: Any) -> torch.Tensor:
        shapes.add((tree.rows, tree.width))
        return tree.forward()

    monkeypatch.setattr(Decoder, "__post_init__", as_on_a_gpu)
    monkeypatch.setattr("catalens.inference.steps.Pass.run", run)
    found = writer(model, processor, PromptSpec(), schema, 8).generate(PICTURES)
    assert [one.text for one in found] == [one.text for one in usual]
    assert [one.distributions["full_price"] for one in found] == [one.distributions["full_price"] for one in usual]
    assert {width for _, width in shapes} <= {1, 8, 32, 64, 96}


def test_points_quantiles_and_scores_of_a_distribution():
    found = Distribution.of({135.0: 0.28, 118.0: 0.2, 129.0: 0.5})
    assert found.values == (118.0, 129.0, 135.0)
    assert [found.point(estimate) for estimate in ("median", "mean", "mode")] == [129.0, 129.0, 129.0]
    assert (found.quantile(0.1), found.quantile(0.99)) == (118.0, 135.0)
    assert found.near(129.0, Tolerance.parse("5%")) == pytest.approx(0.78)
    assert found.near(129.0, Tolerance.parse(20)) == pytest.approx(0.98)
    words = Distribution.of({"BAGS": 0.7, "SHOES": 0.2, "HATS": 0.1})
    assert words.top(2) == [("BAGS", 0.7), ("SHOES", 0.2)]
    assert words.score("HATS", Tolerance()) == 0.1
    assert words.score("SOCKS", Tolerance()) > 0
