import random
from pathlib import Path

import llguidance
import numpy as np
import pytest

from catalens.checkpoint import load_processor
from catalens.config import FieldSpec, NumberFormat, PromptSpec
from catalens.examples import (
    Answer,
    AnswerSchema,
    FieldConstraints,
    answer_space,
    canonical_text,
    render_answer,
)
from catalens.examples import parse_answer as parse_to
from catalens.inference import Constraint, Vocabulary
from catalens.model import REFERENCE
from catalens.tiling import tokenize

OFFICIAL = Path(__file__).parents[3] / "shared" / "golden" / "official"
ROWS = [
    {"title": "Red Tote Bag, large", "category3_code": "BAGS", "full_price": 1290.0},
    {"title": 'Chemise "Été" <3', "category3_code": "T-SHIRTS & TOPS", "full_price": 85.5},
    {"title": "Sock", "category3_code": "FOOT/WEAR \\ misc", "full_price": 7.0},
]
EUROS = NumberFormat(decimal=",", thousands=".", decimals=2, prefix="€ ", suffix=" (net)")
ORDERS = [
    PromptSpec(),
    PromptSpec(numbers=EUROS),
    PromptSpec(
        fields=(
            FieldSpec(column="full_price", label="Width [cm]", kind="number"),
            FieldSpec(column="category3_code", label="Genre", kind="category"),
            FieldSpec(column="title", label="名前", kind="text"),
        ),
        numbers=NumberFormat(decimals=0),
    ),
]


@pytest.fixture(scope="module", params=["tiny", "phi3_v", "phi3_5_v"])
def vocabulary(request):
    if request.param == "tiny":
        processor = load_processor("tiny")
    elif not (OFFICIAL / request.param).is_dir():
        pytest.skip(f"{OFFICIAL} is not there: it holds the official tokenizers")
    else:
        processor = load_processor(str(OFFICIAL / request.param))
    found = Vocabulary(processor.tokenizer.backend_tokenizer, len(processor.tokenizer) + 19, REFERENCE)
    found.processor = processor
    return found


def parse_answer(prompt: PromptSpec, text: str) -> Answer:
    return parse_to(prompt, text, REFERENCE.end_token)


def walk(constraint: Constraint, seed: int) -> tuple[str, int]:
    """An answer of random tokens among the allowed ones, and how many were chosen."""
    rng, matcher = random.Random(seed), constraint.start()
    tokens, chosen = constraint.forced(matcher), 0
    while not tokens or tokens[-1] != constraint.vocabulary.end:
        allowed = np.flatnonzero(constraint.allowed([matcher])[0])
        token = rng.choice(allowed.tolist())
        tokens += [token, *constraint.follow(matcher, token)]
        chosen += 1
        assert len(tokens) <= constraint.max_new_tokens
    return b"".join(map(constraint.vocabulary.piece, tokens)).decode().lstrip(), chosen


@pytest.mark.parametrize("prompt", ORDERS, ids=["reference", "euros", "text last"])
def test_whatever_is_chosen_parses_into_the_space_of_the_answers(vocabulary, prompt):
    space = answer_space(prompt, ROWS)
    constraint = Constraint(vocabulary, prompt, space)
    categories = {row["category3_code"] for row in ROWS}
    texts = set()
    for seed in range(25):
        text, _ = walk(constraint, seed)
        values = parse_answer(prompt, text).values
        assert values is not None, text
        assert values["category3_code"] in categories
        assert 0 < len(str(values["title"])) <= 2 * space.of("title").longest
        assert 0 <= float(values["full_price"]) < 10**5
        texts.add(text)
    assert len(texts) > 20


@pytest.mark.parametrize("seed", range(4))
def test_masks_of_a_batch_are_those_of_its_rows_alone(vocabulary, seed):
    """Of rows at any place in answers of random closed sets, waiting rows and ended ones among them."""
    rng = random.Random(seed)
    values = tuple({"".join(rng.choices("ABCDE &-", k=rng.randint(1, 9))).strip() or "A" for _ in range(40)})
    known = {"category3_code": FieldConstraints(values=values), "title": FieldConstraints(longest=rng.randint(1, 30))}
    prompt = ORDERS[seed % 3]
    alone, together = (Constraint(vocabulary, prompt, AnswerSchema(fields=known)) for _ in range(2))
    alone.executor, together.executor = None, llguidance.LLExecutor(3)
    matchers: list[llguidance.LLMatcher | None] = [None]
    for _ in range(24):
        matcher, steps = alone.start(), rng.randint(0, 60)
        alone.forced(matcher)
        while steps and not matcher.is_stopped():
            choices = np.flatnonzero(alone.allowed([matcher])[0])
            alone.follow(matcher, int(rng.choice(choices)))
            steps -= 1
        matchers.append(matcher)
    found = together.allowed(matchers)
    assert any(matcher.is_stopped() for matcher in matchers[1:])
    assert found[0].all()
    for row, matcher in enumerate(matchers):
        assert np.array_equal(found[row], alone.allowed([matcher])[0])


@pytest.mark.parametrize("prompt", ORDERS, ids=["reference", "euros", "text last"])
def test_the_catalogues_own_answers_can_be_written_in_their_own_tokens(vocabulary, prompt):
    constraint = Constraint(vocabulary, prompt, answer_space(prompt, ROWS))
    question = REFERENCE.chat(prompt.question).partition(REFERENCE.image_tag)[2]
    for row in ROWS:
        encode = vocabulary.tokenizer.encode
        before = len(encode(question).ids)
        own = encode(question + render_answer(prompt, row) + REFERENCE.end_token).ids[before:]
        matcher = constraint.start()
        tokens = constraint.forced(matcher)
        chosen = 0
        while len(tokens) < len(own):
            assert tokens == own[: len(tokens)]
            tokens += [own[len(tokens)], *constraint.follow(matcher, own[len(tokens)])]
            chosen += 1
        assert tokens == own
        assert chosen < len(own) - 4  # labels and the end were forced


def test_free_categories_and_nothing_known(vocabulary):
    free = Constraint(vocabulary, PromptSpec(), answer_space(PromptSpec(), ROWS), free_categories=True)
    written = {parse_answer(PromptSpec(), walk(free, seed)[0]).values["category3_code"] for seed in range(5)}
    assert not written <= {row["category3_code"] for row in ROWS}
    unknown = Constraint(vocabulary, PromptSpec(), AnswerSchema())
    assert parse_answer(PromptSpec(), walk(unknown, 1)[0]).values


def test_text_that_is_full_is_followed_by_the_label(vocabulary):
    space = AnswerSchema(
        fields={"title": FieldConstraints(longest=3), "category3_code": FieldConstraints(values=("A",))}
    )
    constraint = Constraint(vocabulary, PromptSpec(), space)
    titles = [str(parse_answer(PromptSpec(), walk(constraint, seed)[0]).values["title"]) for seed in range(20)]
    assert max(len(title.replace(" ", "").replace("<", "").replace(",", "")) for title in titles) == 3


def test_many_categories_stay_quick_to_follow(vocabulary):
    values = tuple(sorted(f"{kind} {n}" for kind in ("BAGS", "COATS", "SHOES & SOCKS") for n in range(1500)))
    space = AnswerSchema(fields={"category3_code": FieldConstraints(values=values)})
    constraint = Constraint(vocabulary, PromptSpec(), space)
    assert parse_answer(PromptSpec(), walk(constraint, 3)[0]).values["category3_code"] in values


def accepts(constraint: Constraint, answer: str) -> bool:
    """Whether an answer is in the language, in its own tokens."""
    return constraint.refused(tokens_of(constraint, answer.removesuffix(REFERENCE.end_token))) is None


def tokens_of(constraint: Constraint, answer: str) -> list[int]:
    """As training makes them."""
    question = REFERENCE.chat(constraint.prompt.question).partition(REFERENCE.image_tag)[2]
    encode = constraint.vocabulary.tokenizer.encode
    return encode(question + answer).ids[len(encode(question).ids) :]


ODD = [
    "Nim\u200cfasl\u200bhe\u00ad", "\u0646\u0627\u0641\u200c\u0647", "\u0915\u094d\u200d\u0937", "e\u0301t\u00e9",
    "\U0001f469\u200d\U0001f467 set", "\ue000 private", "\U0001fae9 new sign", "\ufeffmark", "|pipe|", 'q"uote\\',
    "<3 socks", "a<b", "a < b", "a<", "x <y", "<a> & </b>", "< 3",
    ",5 mm nib", "a ,b", "a,", "a,,b", "A, Category B",
]  # fmt: skip


@pytest.mark.parametrize("text", ODD)
@pytest.mark.parametrize("prompt", ORDERS[::2], ids=["reference", "text last"])
def test_text_that_training_accepts_can_be_written(vocabulary, prompt, text):
    row = {"title": text, "category3_code": text, "full_price": 999.0}
    constraint = Constraint(vocabulary, prompt, answer_space(prompt, [row]))
    answer = render_answer(prompt, row)
    assert accepts(constraint, answer)
    assert parse_answer(prompt, answer + REFERENCE.end_token).values["title"] == canonical_text(text)


def test_a_number_may_have_a_digit_more_than_those_of_the_training(vocabulary):
    space = answer_space(PromptSpec(), [{"title": "Sock", "category3_code": "A", "full_price": 999.0}])
    constraint = Constraint(vocabulary, PromptSpec(), space)
    assert accepts(constraint, "Product: Sock, Category: A, Full Price: 1000.0<|end|>")
    assert not accepts(constraint, "Product: Sock, Category: A, Full Price: 10000.0<|end|>")
    largest = answer_space(PromptSpec(), [{"title": "Sock", "category3_code": "A", "full_price": 10**15 - 1}])
    assert largest.of("full_price").digits == 15


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"title": "a , b"}, "title"),
        ({"title": "<| b"}, "title"),
        ({"title": "a << b"}, "title"),
        ({"title": "Sock, Category:x"}, "category3_code"),
        ({"title": "Sock " * 9}, "title"),
        ({"category3_code": "B"}, "category3_code"),
        ({"full_price": 12345.0}, "full_price"),
        ({"full_price": 12.25}, "full_price"),
        ({"full_price": -1.0}, "full_price"),
        ({}, None),
    ],
)
def test_what_cannot_be_written_is_told_by_its_field(vocabulary, row, column):
    known = {"title": "Large sock", "category3_code": "A", "full_price": 999.0}
    constraint = Constraint(vocabulary, PromptSpec(), answer_space(PromptSpec(), [known]))
    assert constraint.refused(tokens_of(constraint, render_answer(PromptSpec(), known | row))) == column


def test_no_choice_of_tokens_makes_a_label_or_an_end_part_of_a_text(vocabulary):
    """Walks that go for them wherever they can."""
    values = ("A", "Sock")
    space = AnswerSchema(
        fields={"title": FieldConstraints(longest=30), "category3_code": FieldConstraints(values=values)}
    )
    constraint = Constraint(vocabulary, PromptSpec(), space)
    wanted = [b", Category: ", b" , Category: ", b",, Category: ", b"<, Category: ", b"<|end|>", b" <"]
    for seed in range(40):
        rng, matcher, text = random.Random(seed), constraint.start(), b""
        tokens = constraint.forced(matcher)
        while not tokens or tokens[-1] != vocabulary.end:
            text += b"".join(map(vocabulary.piece, tokens))
            allowed = np.flatnonzero(constraint.allowed([matcher])[0]).tolist()
            aim = rng.choice(wanted)
            begun = max(n for n in range(len(aim)) if text.endswith(aim[:n]))
            nearer = [t for t in allowed if vocabulary.piece(t) and aim[begun:].startswith(vocabulary.piece(t))]
            token = rng.choice(nearer or allowed)
            tokens = [token, *constraint.follow(matcher, token)]
        text += b"".join(map(vocabulary.piece, tokens))
        found = parse_answer(PromptSpec(), text.decode().lstrip()).values
        assert found is not None, text
        assert found["category3_code"] in values, text


PRICE_FIRST = tuple(reversed(PromptSpec().fields))


@pytest.mark.parametrize(
    ("numbers", "price", "text"),
    [
        (NumberFormat(thousands=","), 1290.0, "1,290.0"),
        (NumberFormat(decimal=",", thousands=".", decimals=2), 12.0, "12,00"),
        (NumberFormat(decimal=","), 12, "12"),
    ],
)
def test_a_comma_is_the_numbers_or_the_labels(vocabulary, numbers, price, text):
    prompt = PromptSpec(fields=PRICE_FIRST, numbers=numbers)
    rows = [{"title": "Sock", "category3_code": "A", "full_price": value} for value in (price, 123456.5, 7)]
    constraint = Constraint(vocabulary, prompt, answer_space(prompt, rows))
    assert accepts(constraint, f"Full Price: {text}, Category: A, Product: Sock<|end|>")
    assert render_answer(prompt, rows[0]) == f"Full Price: {text}, Category: A, Product: Sock"


def test_a_category_may_begin_another(vocabulary):
    values = ("A", "A, B", "A, Full")
    space = AnswerSchema(fields={"category3_code": FieldConstraints(values=values)})
    constraint = Constraint(vocabulary, PromptSpec(), space)
    for value in values:
        assert accepts(constraint, f"Product: Sock, Category: {value}, Full Price: 12.0<|end|>")
    assert not accepts(constraint, "Product: Sock, Category: B, Full Price: 12.0<|end|>")


def test_no_text_is_empty_or_a_comma(vocabulary):
    constraint = Constraint(vocabulary, PromptSpec(), AnswerSchema())
    assert not accepts(constraint, "Product: , Category: foo, Category: A, Full Price: 12.0<|end|>")


def test_labels_in_any_script_leave_room_for_the_answer(vocabulary):
    prompt = PromptSpec(fields=(FieldSpec(column="full_price", label="販売価格(税込)", kind="number"),))
    constraint = Constraint(vocabulary, prompt, AnswerSchema(fields={"full_price": FieldConstraints(digits=1)}))
    for seed in range(5):
        assert parse_answer(prompt, walk(constraint, seed)[0]).values


def test_a_space_that_makes_no_sense_is_refused():
    for wrong in ({"digits": 0}, {"longest": 0}, {"decimals": (3, 1)}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            FieldConstraints(**wrong)


@pytest.mark.parametrize(
    "question", ["What is shown in this image?", "Ölfarbe  <b>\n名前 é!", " {title} ", "1290.50 %"]
)
def test_texts_are_tokenized_without_transformers_as_with_it(vocabulary, question):
    for images in (1, 2):
        text = REFERENCE.chat(question, images) + "Product: Red scarf, Full Price: 1290.0" + REFERENCE.end_token
        sizes = [(336, 672), (336, 336)][:images]
        counts = [vocabulary.processor.image_processor.num_image_tokens(*size) for size in sizes]
        slot = vocabulary.processor.image_token_id
        found = tokenize(lambda piece: vocabulary.tokenizer.encode(piece).ids, text, counts, slot)
        assert found == vocabulary.processor.tokenize(text, sizes)
