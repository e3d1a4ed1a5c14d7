"""The seam to vLLM, with a language model that was recorded; a real one where there is a GPU."""

import importlib.util
import io
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from catalens.checkpoint import load_processor
from catalens.config import PromptSpec
from catalens.errors import CheckpointError, RecipeError
from catalens.examples import AnswerSpace, FieldSpace, parse_answer
from catalens.inference.grammar import Vocabulary
from catalens.inference.reading import RunPredictor
from catalens.inference.vllm import VllmEngine, load_vllm

HAS_VLLM = importlib.util.find_spec("vllm") is not None
ANSWERS = {
    (250, 10, 10): "Product: Red Tote Bag, Category: BAGS, Full Price: 129.0<|end|>",
    (10, 10, 250): "Product: Écharpe Bleue, Category: ACCESSORIES, Full Price: 39.0<|end|>",
}


@dataclass
class Logprob:
    logprob: float


@dataclass
class Completion:
    token_ids: list[int]
    logprobs: list[dict[int, Logprob]]


@dataclass
class Output:
    outputs: list[Completion]
    prompt_token_ids: list[int]


class Recorded:
    """Answers by the colour of the picture; the n-th token has the probability 1 / n, another one is surer."""

    def __init__(self) -> None:
        self.tokenizer: Any = load_processor("tiny").tokenizer
        self.calls: list[tuple[list[Any], Any]] = []

    def get_tokenizer(self) -> Any:
        return self.tokenizer

    def generate(self, prompts: Any, sampling_params: Any, *, use_tqdm: bool) -> list[Output]:
        self.calls.append((prompts, sampling_params))
        return [self._answer(ANSWERS[asked["multi_modal_data"]["image"].getpixel((0, 0))]) for asked in prompts]

    def _answer(self, text: str) -> Output:
        ids = self.tokenizer(text, add_special_tokens=False)["input_ids"]
        logs = [{token: Logprob(-math.log(n)), -1: Logprob(-0.001)} for n, token in enumerate(ids, start=1)]
        return Output([Completion(ids, logs)], [1, 2, 3])


def picture(colour: tuple[int, int, int]) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (32, 24), colour).save(buffer, "PNG")
    return buffer.getvalue()


def engine(llm: Recorded, prompt: PromptSpec | None = None) -> VllmEngine:
    vocabulary = Vocabulary(llm.tokenizer, len(llm.tokenizer))
    return VllmEngine(prompt or PromptSpec(), llm, vocabulary, sampling="params")


def test_each_picture_gets_its_answer_with_its_tokens():
    llm = Recorded()
    red, blue = ANSWERS
    written = engine(llm).write([picture(blue), picture(red), picture(blue)])
    assert [one.text for one in written] == [ANSWERS[blue], ANSWERS[red], ANSWERS[blue]]
    for one in written:
        assert one.pieces[-1] == b"<|end|>"
        assert list(one.log_probabilities) == [-math.log(n) for n in range(1, len(one.pieces) + 1)]


def test_a_predictor_reads_what_it_writes():
    first, second = ANSWERS
    predictions = RunPredictor(engine(Recorded()), PromptSpec()).predict([picture(first), b"<svg/>", picture(second)])
    assert predictions[0].values == {"title": "Red Tote Bag", "category3_code": "BAGS", "full_price": 129.0}
    assert "picture" in str(predictions[1].error)
    assert predictions[2].values["title"] == "Écharpe Bleue"
    assert 0 < predictions[0].confidence["full_price"] < predictions[0].confidence["title"] < 1


def test_the_model_is_asked_once_with_the_prompt_of_the_training():
    llm = Recorded()
    engine(llm, PromptSpec(question="Que montre cette image ?")).write([picture(colour) for colour in ANSWERS])
    ((prompts, sampling),) = llm.calls
    assert sampling == "params"
    assert [asked["prompt"] for asked in prompts] == [
        "<|user|>\n<|image_1|>Que montre cette image ?<|end|><|assistant|>\n"
    ] * 2
    assert [asked["multi_modal_data"]["image"].size for asked in prompts] == [(32, 24)] * 2


def test_no_pictures_ask_nothing_and_no_picture_is_named():
    llm = Recorded()
    assert engine(llm).write([]) == []
    assert "picture" in str(engine(llm).write([b"<svg/>"])[0].error)
    assert not llm.calls


def test_an_adapter_is_refused(tmp_path: Path):
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(RecipeError, match="takes whole models"):
        load_vllm(tmp_path, PromptSpec())


@pytest.mark.skipif(HAS_VLLM, reason="vLLM is installed")
def test_without_vllm_the_fix_is_named(tmp_path: Path):
    with pytest.raises(RecipeError, match="pip install vllm"):
        load_vllm(tmp_path, PromptSpec())


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed")
def test_a_folder_without_a_model_is_one_sentence(tmp_path: Path):
    with pytest.raises(CheckpointError, match="cannot be loaded by vLLM"):
        load_vllm(tmp_path, PromptSpec())


@pytest.mark.gpu
@pytest.mark.skipif(not HAS_VLLM, reason="vLLM is not installed")
@pytest.mark.skipif(
    "CATALENS_PHI3V" not in os.environ, reason="needs CATALENS_PHI3V, a folder of the full-size model"
)
def test_the_full_size_model_writes_under_a_grammar():
    space = AnswerSpace(fields={"category3_code": FieldSpace(values=("BAGS", "SHOES"))})
    (written,) = load_vllm(Path(os.environ["CATALENS_PHI3V"]), PromptSpec(), space).write([picture((250, 10, 10))])
    values = parse_answer(PromptSpec(), written.text).values
    assert values is not None
    assert values["category3_code"] in ("BAGS", "SHOES")
    assert all(score <= 0 for score in written.log_probabilities)
