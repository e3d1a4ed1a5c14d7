"""The step over slots against forward passes without any cache, and its capture on a GPU."""

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from catalens.checkpoint import load_model, load_processor
from catalens.config import PromptSpec
from catalens.examples import answer_space
from catalens.inference import Decoder, Generator, KeyValues, Step
from catalens.model import Phi3VForCausalLM
from catalens.sampling import draw_catalog

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))
from random_models import SMALL, official_config, random_model

pytestmark = pytest.mark.integration

LENGTHS = (5, 31, 17, 9)


@pytest.fixture(scope="module", params=["tiny", "golden"])
def model(request):
    """The model that ships, and one of the sizes of the reference figures, whose rope factors change at 4,096."""
    return (
        load_model("tiny")
        if request.param == "tiny"
        else random_model(official_config(**SMALL), torch.float32).eval()
    )


def ids(model: Any, lengths: tuple[int, ...] = LENGTHS, seed: int = 0) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    most = min(500, model.config.vocab_size)
    return [torch.randint(10, most, (length,), generator=generator).tolist() for length in lengths]


def without_cache(model: Any, tokens: list[int]) -> torch.Tensor:
    """Log-probabilities [V] of what comes after the tokens."""
    with torch.no_grad():
        return model(input_ids=torch.tensor([tokens]), use_cache=False).logits[0, -1].float().log_softmax(-1)


def prefilled(model: Any, rows: list[list[int]], length: int) -> KeyValues:
    cache, width, device = KeyValues(len(rows), length), max(map(len, rows)), model.device
    ends = torch.tensor([[len(row) - 1] for row in rows], device=device)
    with torch.no_grad():
        model(
            input_ids=torch.tensor([row + [0] * (width - len(row)) for row in rows], device=device),
            position_ids=torch.minimum(torch.arange(width, device=device), ends),
            past_key_values=cache,
            use_cache=True,
        )
    return cache


@torch.no_grad()
def test_a_step_gives_what_a_pass_without_cache_gives_whatever_its_rows_take(model):
    """One token, several, none; then rows that were left out go on; then fewer rows, and a cache that grew."""
    rows, more = ids(model), ids(model, (3, 1, 0, 8), seed=1)
    cache = prefilled(model, rows, 64)
    fed = [list(row) for row in rows]

    def check(width: int, tokens: list[list[int]]) -> None:
        step = Step(model, cache, len(tokens), width)
        step.load(tokens, [len(row) for row in fed])
        scores = step.run().log_softmax(-1)
        for row, new, found in zip(fed, tokens, scores, strict=True):
            row += new
            if new:
                torch.testing.assert_close(found, without_cache(model, row), atol=1e-5, rtol=0)

    check(8, more)
    check(1, ids(model, (0, 1, 1, 0), seed=2))
    cache.select([3, 1])
    fed = [fed[3], fed[1]]
    check(1, ids(model, (1, 1), seed=3))
    cache.grow(128)
    check(8, ids(model, (8, 2), seed=4))
    cache.select([1, 1])
    fed = [list(fed[1]), list(fed[1])]
    check(2, ids(model, (2, 1), seed=5))  # one row went on in two ways


class Operators(TorchDispatchMode):
    """Names of the operators that run."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.names.add(func.overloadpacket.__name__)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("width", [1, 8])
@torch.no_grad()
def test_a_step_takes_nothing_from_the_host_and_gives_it_nothing(model, width):
    """Or no graph of it could be recorded: no tensor of numbers, no number of a tensor, no shape by values."""
    rows = ids(model)
    step = Step(model, prefilled(model, rows, 64), len(rows), width)
    step.load([[7]] * len(rows), [len(row) for row in rows])
    with Operators() as ran:
        step.run()
    assert "scatter_" in ran.names
    assert not ran.names & {"lift_fresh", "_local_scalar_dense", "nonzero", "_unique2", "masked_select"}
    with Operators() as control:
        torch.tensor([1.0, 2.0]).sum().item()
    assert {"lift_fresh", "_local_scalar_dense"} <= control.names


class Captured(Step):
    """A step of few shapes as on a GPU, that runs where a graph would be replayed, and remembers its shape."""

    shapes: list[tuple[int, int, int]]

    def run(self) -> torch.Tensor:
        self.shapes.append((self.rows, self.width, self.cache.visible))
        return self.forward()


@pytest.fixture
def captured(monkeypatch):
    """Decoders that take their steps as on a GPU."""
    Captured.shapes = []
    monkeypatch.setattr("catalens.inference.decoding.Step", Captured)
    usual = Decoder.__post_init__

    def post_init(decoder: Decoder) -> None:
        usual(decoder)
        decoder.captured = True

    monkeypatch.setattr(Decoder, "__post_init__", post_init)
    return Captured.shapes


PICTURES = [row.image for row in draw_catalog(21, seed=3)]
ROWS = [
    {"title": row.title, "category3_code": row.category3_code, "full_price": row.full_price}
    for row in draw_catalog(60, seed=0)
]


def test_steps_that_cannot_be_captured_run_from_python_and_say_so_once(monkeypatch, caplog):
    def refused(_: Step) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore lines")

    model, processor, usual = load_model("tiny"), load_processor("tiny"), Decoder.__post_init__
    expected = [one.text for one in Generator(model, processor, PromptSpec(), 8, 24).generate(PICTURES)]

    def post_init(decoder: Decoder) -> None:
        usual(decoder)
        decoder.captured = True

    monkeypatch.setattr(Decoder, "__post_init__", post_init)
    monkeypatch.setattr(Step, "_capture", refused)
    assert [one.text for one in Generator(model, processor, PromptSpec(), 8, 24).generate(PICTURES)] == expected
    (told,) = [record.getMessage() for record in caplog.records if record.name.startswith("catalens")]
    assert told.endswith("captured: operation not permitted when stream is capturing")


@pytest.mark.parametrize("constrained", [False, True])
def test_steps_of_few_shapes_write_what_any_others_write(captured, monkeypatch, constrained):
    model, processor = load_model("tiny"), load_processor("tiny", num_crops=3)
    schema = answer_space(PromptSpec(), ROWS) if constrained else None

    def written(batch_size: int) -> list[Any]:
        return Generator(model, processor, PromptSpec(), batch_size, 40, schema).generate(PICTURES)

    few = written(16)
    assert {rows for rows, _, _ in captured} <= {16, 8, 5, 4, 2, 1}  # the batches' own sizes, and powers of two
    assert {width for _, width, _ in captured} <= {1, 8}
    assert len({length for _, _, length in captured}) <= 2
    monkeypatch.undo()
    for one, other in zip(few, written(16), strict=True):
        assert one.pieces == other.pieces
        assert one.log_probabilities == pytest.approx(other.log_probabilities, abs=1e-5)


@pytest.mark.parametrize("reserve", [1, 3])
def test_answers_longer_than_their_room_go_on(captured, reserve):
    model, processor = load_model("tiny"), load_processor("tiny")
    usual = Generator(model, processor, PromptSpec(), 7, 100).generate(PICTURES)
    narrow = Generator(model, processor, PromptSpec(), 7, 100, answer_tokens=reserve)
    found = narrow.generate(PICTURES)
    assert [one.pieces for one in found] == [one.pieces for one in usual]


@pytest.mark.gpu
@pytest.mark.parametrize("constrained", [False, True])
def test_captured_steps_write_what_the_processor_writes(constrained):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    processor, schema = load_processor("tiny", num_crops=3), answer_space(PromptSpec(), ROWS) if constrained else None
    model = load_model("tiny").float()
    fast = Generator(model.cuda(), processor, PromptSpec(), 16, 40, schema)
    written = fast.generate(PICTURES)
    assert fast.generate(PICTURES) == written  # over the graphs of the first time
    decoder = fast.decoder
    decoder.captured = False
    decoder.release()
    eager = fast.generate(PICTURES)
    slow = Generator(model.cpu(), processor, PromptSpec(), 16, 40, schema).generate(PICTURES)
    for one, other, third in zip(written, eager, slow, strict=True):
        assert one.pieces == other.pieces == third.pieces
        assert one.log_probabilities == pytest.approx(other.log_probabilities, abs=1e-3)


@pytest.mark.gpu
def test_a_step_is_captured_once_for_each_shape_and_replayed():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    model: Phi3VForCausalLM = random_model(official_config(**SMALL), torch.bfloat16, "cuda").eval()
    rows = ids(model)
    cache = prefilled(model, rows, 128)
    with torch.no_grad():
        one = Step(model, cache, 4, 1, captured=True)
        passes = []
        model.register_forward_hook(lambda *_: passes.append(1))
        for seed in range(4):
            tokens = ids(model, (1, 1, 1, 1), seed=seed)
            one.load(tokens, [len(row) for row in rows])
            replayed = one.run().clone()
            eager = Step(model, cache, 4, 1)
            eager.load(tokens, [len(row) for row in rows])
            torch.testing.assert_close(replayed, eager.run(), atol=0.05, rtol=0.05)
            rows = [row + own for row, own in zip(rows, tokens, strict=True)]
    assert one.captured
    assert len(passes) == 3 + 4  # two that warm up, one that is recorded; and the eager ones
