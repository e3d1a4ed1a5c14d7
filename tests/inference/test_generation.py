import io
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from catalens.catalog import Catalog, open_picture
from catalens.checkpoint import greedy, load_model, load_processor
from catalens.config import PromptSpec
from catalens.data import Encoder, Query
from catalens.errors import InferenceError, PictureError
from catalens.examples import answer_space
from catalens.features import FeatureCache
from catalens.inference import Generator
from catalens.model import REFERENCE, Phi3VConfig, Phi3VForCausalLM

pytestmark = pytest.mark.integration

CHAT = REFERENCE.chat(PromptSpec().question)
SWITCH = 32
CROPS = 3  # wide pictures have more tokens


@pytest.fixture(scope="module")
def model():
    return load_model("tiny")


@pytest.fixture(scope="module")
def pictures(drawn):
    return [row["image"] for row in Catalog(drawn).rows("train")[:7]]


def jpeg(picture: Image.Image) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG")
    return buffer.getvalue()


def generator(model, batch_size: int, max_new_tokens: int = 40) -> Generator:
    return Generator(model, load_processor("tiny"), PromptSpec(), batch_size, max_new_tokens)


def test_a_batch_writes_what_single_pictures_write_in_their_order(model, pictures):
    heard: list[int] = []
    together = [one.text for one in generator(model, 3).generate(pictures, heard.append)]
    assert together == [generator(model, 1).generate([picture])[0].text for picture in pictures]
    assert heard == [3, 6, 7]
    assert len(set(together)) > 1
    assert all(answer.endswith("<|end|>") and answer.count("<|") == 1 for answer in together)


def test_generation_stops_at_the_longest_and_leaves_the_model_as_it_was(model, pictures):
    model.train()
    short = generator(model, 4, max_new_tokens=3).generate(pictures[:2])
    assert model.training
    assert [len(answer.pieces) for answer in short] == [3, 3]


def test_no_pictures_and_no_picture(model, pictures):
    assert generator(model, 4).generate([]) == []
    bad, good = generator(model, 4).generate([b"<svg/>", pictures[0]])
    assert "picture" in str(bad.error)
    assert not bad.pieces
    assert good == generator(model, 4).generate(pictures[:1])[0]


def test_equal_queries_are_answered_once_and_all_of_them_get_the_answer(model, pictures):
    once, twice = generator(model, 3), generator(model, 3)
    passes: list[int] = []
    handle = model.register_forward_hook(lambda *_: passes.append(1))
    heard: list[int] = []
    alone = once.generate(pictures[:2])
    expected, passes[:] = len(passes), []
    found = twice.generate(
        [pictures[0], pictures[1], pictures[0], Query((pictures[0],), once._question)], heard.append
    )
    handle.remove()
    assert found == [alone[0], alone[1], alone[0], alone[0]]
    assert len(passes) == expected
    assert heard[-1] == 4


def test_a_query_is_tokenized_once(model, pictures, monkeypatch):
    asked = generator(model, 3)
    questions: list[str] = []
    usual = asked._encoder.prompt_ids
    monkeypatch.setattr(asked._encoder, "prompt_ids", lambda sizes, own: questions.append(own) or usual(sizes, own))
    asked.generate([Query((picture,), f"What is {n}?") for n, picture in enumerate(pictures)])
    assert sorted(questions) == [f"What is {n}?" for n in range(len(pictures))]


def test_compiled_layers_run_as_they_are(pictures):
    """Batches have many shapes, each of which would be compiled anew."""
    shapes: list[object] = []
    compiled = load_model("tiny")
    for layer in compiled.model.layers:
        layer.compile(dynamic=False, backend=lambda graph, inputs: shapes.append(inputs) or graph)
    assert generator(compiled, 3).generate(pictures[:2])[0].text
    assert not shapes


def test_a_row_is_given_the_room_that_answers_of_the_training_need(model):
    rows = [{"title": "Sock" * (1 + n // 99), "category3_code": "A", "full_price": 9.0} for n in range(100)]
    known = answer_space(PromptSpec(), rows, [20 + n // 99 * 40 for n in range(100)])
    assert known.answer_tokens == 20
    for schema, longest, room in ((known, 128, 20), (answer_space(PromptSpec(), rows), 24, 24), (None, 24, 24)):
        assert Generator(model, load_processor("tiny"), PromptSpec(), 8, longest, schema).answer_tokens == room


@pytest.fixture(scope="module")
def space(drawn):
    return answer_space(PromptSpec(), Catalog(drawn).rows("train"))


def test_tokens_do_not_depend_on_the_batch_and_scores_hardly(model, pictures, space):
    """Different canvases, so that rows of a batch are padded; forced tokens, so that steps differ in width."""
    shapes = [(120, 60), (60, 120), (80, 80), (300, 40), (64, 64)]
    cut = [jpeg(Image.new("RGB", size, (40 * i, 90, 200 - 30 * i))) for i, size in enumerate(shapes)]
    everything = [*pictures, *cut]
    processor = load_processor("tiny", num_crops=CROPS)
    for kind in (None, space):
        alone = [Generator(model, processor, PromptSpec(), 1, 40, kind).generate([p])[0] for p in everything]
        for batch_size in (2, 5, 16):
            together = Generator(model, processor, PromptSpec(), batch_size, 40, kind).generate(everything)
            assert len({one.prompt_tokens for one in together}) > 1
            for one, other in zip(alone, together, strict=True):
                assert one.pieces == other.pieces
                assert other.log_probabilities == pytest.approx(one.log_probabilities, abs=1e-4)


def test_free_answers_are_those_of_generate(model, pictures):
    processor = load_processor("tiny")
    prompt = CHAT
    inputs = processor(text=[prompt] * 7, images=[[open_picture(p)] for p in pictures], return_tensors="pt")
    ids = model.generate(**inputs, generation_config=greedy(processor), max_new_tokens=40)
    texts = processor.tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1] :])
    written = generator(model, 4).generate(pictures)
    assert [text.partition("<|end|>")[0] + "<|end|>" for text in texts] == [one.text for one in written]


def test_forced_tokens_cost_no_step(model, pictures, space):
    free = generator(model, 7).generate(pictures)
    forced = Generator(model, load_processor("tiny"), PromptSpec(), 7, 40, space).generate(pictures)
    assert all(one.steps == len(one.pieces) - 1 for one in free)
    assert sum(one.steps for one in forced) < 0.7 * sum(len(one.pieces) for one in forced)
    assert all(one.pieces[:2] == (b"Product", b":") and one.log_probabilities[:2] == (0.0, 0.0) for one in forced)


def cached(processor, room: int = 2**30) -> FeatureCache:
    return FeatureCache(Encoder(processor, PromptSpec()), room)


def test_the_tower_runs_once_a_picture_for_generators_that_share_a_cache(model, pictures, monkeypatch):
    crops: list[int] = []
    features = model.model.vision_embed_tokens.crop_features
    monkeypatch.setattr(
        model.model.vision_embed_tokens, "crop_features", lambda pixels: crops.append(len(pixels)) or features(pixels)
    )
    cache = cached(load_processor("tiny"))
    first, again = (
        Generator(model, load_processor("tiny"), PromptSpec(), 4, 40, cache=cache).generate(pictures)
        for _ in range(2)
    )
    assert sum(crops) == sum(len(kept.features) for kept in cache.kept.values())
    assert [one.text for one in first] == [one.text for one in again]
    assert [one.text for one in first] == [one.text for one in generator(model, 4).generate(pictures)]


@pytest.mark.parametrize("room", ["none", "two pictures", "all"])
def test_a_cache_of_any_size_gives_the_same_answers_however_the_pictures_are_mixed(model, pictures, room):
    """Several passes over rotated pictures, so that batches mix what the cache holds with what it does not."""
    processor = load_processor("tiny", num_crops=CROPS)
    shapes = [(120, 60), (60, 120), (300, 40)]
    everything = [*pictures, *(jpeg(Image.new("RGB", size, (40, 90, 200))) for size in shapes)]
    plain = {p: Generator(model, processor, PromptSpec(), 4, 40).generate([p])[0] for p in everything}
    two = 2**30 - filled(model, processor, everything[:2]).room
    cache = cached(processor, {"none": 0, "two pictures": two, "all": 2**30}[room])
    for turn in range(3):
        mixed = [*everything[3 * turn :], *everything[: 3 * turn]]
        written = Generator(model, processor, PromptSpec(), 4, 40, cache=cache).generate(mixed)
        for picture, answer in zip(mixed, written, strict=True):
            assert answer.pieces == plain[picture].pieces
            assert answer.log_probabilities == pytest.approx(plain[picture].log_probabilities, abs=1e-4)
    assert len(cache.kept) == {"none": 0, "two pictures": 2, "all": len(everything)}[room]
    assert cache.room >= 0


def filled(model, processor, pictures) -> FeatureCache:
    cache = cached(processor)
    Generator(model, processor, PromptSpec(), 4, 40, cache=cache).features(pictures)
    return cache


def test_features_are_means_over_the_quarters_of_the_whole_picture(model, pictures):
    processor = load_processor("tiny", num_crops=CROPS)
    everything = [*pictures, jpeg(Image.new("RGB", (300, 40), (40, 90, 200)))]
    heard: list[int] = []
    reader = Generator(model, processor, PromptSpec(), 3, cache=cached(processor, 0))
    found = reader.features(everything, heard.append)
    assert heard[-1] == len(everything)
    assert (found.dtype, found.shape) == (np.float32, (len(everything), 4 * model.config.feature_size))
    for own, picture in zip(found, everything, strict=True):
        encoded = processor.image_processor(open_picture(picture), return_tensors="pt")
        with torch.no_grad():
            crops = model.model.vision_embed_tokens.crop_features(encoded["pixel_values"])
        half = crops.shape[1] // 2
        corners = crops[0].unflatten(0, (2, half)).unflatten(2, (2, half)).mean((1, 3))  # [2, 2, F]
        assert own == pytest.approx(corners.permute(2, 0, 1).flatten().numpy(), abs=1e-4)
    with pytest.raises(PictureError):
        Generator(model, processor, PromptSpec(), 3).features([b"<svg/>"])


@pytest.mark.parametrize("free", [0, 2**40])
def test_batches_follow_the_size_of_the_memory_and_not_what_is_free_in_it(model, pictures, space, monkeypatch, free):
    """So that a command which was stopped makes the batches of one that was not; a constrained row is given room for
    `max_new_tokens` and not for the longest answer that its grammar allows."""
    wide = jpeg(Image.new("RGB", (300, 40), (40, 90, 200)))
    constrained = Generator(model, load_processor("tiny", num_crops=CROPS), PromptSpec(), 8, 4, space)
    small, large = ([Query((one,), PromptSpec().question) for one in some] for some in (pictures, [wide]))
    rows = sorted(constrained._tokens(constrained._asked(0, one)) for one in [*small, *large])
    config, weights = model.config, sum(weight.nbytes for weight in model.parameters())
    token = 2 * config.num_hidden_layers * config.hidden_size * 4  # bytes of fp32 keys and values
    size = weights + int(2 * token * 3 * rows[0])  # half of what the weights leave holds three small rows
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=size, available=free))
    assert rows[-1] > rows[0] == len(slow_ids(constrained, pictures[0])) + 4
    assert indices(constrained, [*large, *small]) == [[1, 2, 3], [4, 5, 6], [7, 0]]


def indices(generator: Generator, queries: list[Query]) -> list[list[int]]:
    return [[row.index for row in batch] for batch in generator._batches(queries)]


def slow_ids(generator: Generator, picture: bytes) -> list[int]:
    encoded = generator.processor(text=CHAT, images=[open_picture(picture)], return_tensors="pt")
    return encoded["input_ids"][0].tolist()


class Narrow(torch.nn.Module):
    """A model on a device that is full at more than three rows."""

    def __init__(self, model) -> None:
        super().__init__()
        self.inner, self.config, self.asked = model, model.config, []

    def forward(self, **inputs):
        rows = len(inputs["input_ids"])
        self.asked.append(rows)
        if rows > 3:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
        return self.inner(**inputs)

    device = property(lambda self: self.inner.device)
    dtype = property(lambda self: self.inner.dtype)


def test_a_batch_that_does_not_fit_is_halved_and_the_answers_stay(model, pictures):
    narrow = Narrow(model)
    small = Generator(narrow, load_processor("tiny"), PromptSpec(), 7, 40)
    assert [one.text for one in small.generate(pictures)] == [
        one.text for one in generator(model, 1).generate(pictures)
    ]
    assert small.batch_size <= 3
    assert narrow.asked.count(7) == 1


def test_one_picture_too_much_is_an_error_with_the_fix(model, pictures):
    class Full(Narrow):
        def forward(self, **inputs):
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")

    with pytest.raises(InferenceError, match="lower num_crops"):
        Generator(Full(model), load_processor("tiny"), PromptSpec(), 7, 40).generate(pictures)


@pytest.fixture(scope="module")
def crossing(model):
    """The tiny model with rope factors that change in the middle of its answers."""
    half = model.config.hidden_size // model.config.num_attention_heads // 2
    factors = {"type": "longrope", "short_factor": [1.0] * half, "long_factor": [1.5] * half}
    fields = model.config.to_dict() | {"rope_scaling": factors, "original_max_position_embeddings": SWITCH}
    config = Phi3VConfig(**fields)
    crossing = Phi3VForCausalLM(config).eval()
    crossing.load_state_dict(model.state_dict())
    return crossing


def slow(model, picture: bytes, longest: int) -> list[int]:
    """Greedy tokens without any cache."""
    processor = load_processor("tiny", num_crops=CROPS)
    inputs = processor(text=CHAT, images=[open_picture(picture)], return_tensors="pt")
    ids, start = inputs["input_ids"], inputs["input_ids"].shape[1]
    while ids.shape[1] < start + longest and ids[0, -1] not in greedy(processor).eos_token_id:
        with torch.no_grad():
            logits = model(
                input_ids=ids, pixel_values=inputs["pixel_values"], image_sizes=inputs["image_sizes"], use_cache=False
            ).logits[0, -1]
        logits[model.config.image_token_id] = -torch.inf
        ids = torch.cat([ids, logits.argmax()[None, None]], dim=1)
    return ids[0, start:].tolist()


def test_rows_that_come_to_the_longrope_switch_are_written_as_without_a_cache(crossing, pictures):
    wide = jpeg(Image.new("RGB", (300, 40), (40, 90, 200)))  # beyond the switch from the start
    everything = [*pictures, wide]
    several = Generator(crossing, load_processor("tiny", num_crops=CROPS), PromptSpec(), 8, 40)
    written = several.generate(everything)
    pieces = several.vocabulary.piece
    for one, picture in zip(written, everything, strict=True):
        assert one.pieces == tuple(map(pieces, slow(crossing, picture, 40)))
    assert {one.prompt_tokens > SWITCH for one in written} == {True, False}
    assert any(one.prompt_tokens <= SWITCH < one.prompt_tokens + len(one.pieces) for one in written)


def test_batches_do_not_mix_sides_of_the_longrope_switch(crossing, pictures):
    wide = jpeg(Image.new("RGB", (300, 40), (40, 90, 200)))
    short = Generator(crossing, load_processor("tiny", num_crops=CROPS), PromptSpec(), 8, 4)
    batches = indices(short, [Query((one,), PromptSpec().question) for one in (wide, *pictures, wide)])
    assert sorted(batches, key=len) == [[0, 8], [1, 2, 3, 4, 5, 6, 7]]


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_answers_are_written_with_torchs_attention_whatever_the_model_has(pictures, attention):
    other = load_model("tiny", attention=attention)
    tower = other.config.vision_config
    written = generator(other, 4).generate(pictures)
    assert [one.pieces for one in written] == [
        one.pieces for one in generator(load_model("tiny"), 4).generate(pictures)
    ]
    assert (other.config._attn_implementation, tower._attn_implementation) == (attention, attention)
