"""An exported model in vLLM in place of our own engine: the seam behind `--engine vllm`.

    engine = load_vllm(Path("exported/demo"), PromptSpec(), grammar)
    engine.write([photo])[0].text
    "Product: Red Tote Bag, Category: BAGS, Full Price: 129.0<|end|>"

vLLM's own Phi-3-V is fixed to the official sizes (crops of 336 pixels, `<|image|>` at 32044), so the tiny model does
not run there; and it takes pictures through the official processor, which an export has to bring along.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from catalens.catalog.pictures import open_picture
from catalens.config import PromptSpec
from catalens.errors import CheckpointError, PictureError, RecipeError, first_line
from catalens.examples import AnswerSpace, render_prompt
from catalens.inference.decoding import Written
from catalens.inference.grammar import Constraint, Vocabulary

LONGEST = 4096
"""Tokens of prompt and answer; a longer limit would make vLLM use the long rope factors for every row."""


class LanguageModel(Protocol):
    """What is used of `vllm.LLM`."""

    def get_tokenizer(self) -> Any:
        """The tokenizer of the model, of transformers."""
        ...

    def generate(self, prompts: Sequence[Any], sampling_params: Any, *, use_tqdm: bool) -> Sequence[Any]:
        """One `RequestOutput` a prompt, in their order."""
        ...


class VllmEngine:
    """Writes answers through a language model of vLLM; `sampling` are its `SamplingParams`."""

    def __init__(self, prompt: PromptSpec, llm: LanguageModel, vocabulary: Vocabulary, sampling: Any) -> None:
        self.llm, self.vocabulary, self.sampling = llm, vocabulary, sampling
        self._prompt = render_prompt(prompt)

    def write(self, pictures: Sequence[bytes], progress: Callable[[int], None] = lambda done: None) -> list[Written]:
        """One answer a picture, in their order; vLLM makes the batches.

        Log probabilities are natural ones, after the grammar's mask. What cannot be decoded gets an answer that has
        an `error`.
        """
        written: list[Written] = [Written()] * len(pictures)
        asked: dict[int, Any] = {}
        for i, picture in enumerate(pictures):
            try:
                asked[i] = {"prompt": self._prompt, "multi_modal_data": {"image": open_picture(picture)}}
            except PictureError as error:
                written[i] = Written(error=f"picture {error}")
        if asked:
            outputs = self.llm.generate(list(asked.values()), self.sampling, use_tqdm=False)
            for i, output in zip(asked, outputs, strict=True):
                written[i] = self._written(output)
        progress(len(pictures))
        return written

    def _written(self, output: Any) -> Written:
        completion = output.outputs[0]
        ids = list(completion.token_ids)
        return Written(
            pieces=tuple(map(self.vocabulary.piece, ids)),
            log_probabilities=tuple(
                step[token].logprob for step, token in zip(completion.logprobs, ids, strict=True)
            ),
            prompt_tokens=len(output.prompt_token_ids),
            steps=len(ids) - 1,
        )


def load_vllm(
    folder: Path,
    prompt: PromptSpec,
    space: AnswerSpace | None = None,
    free_categories: bool = False,
    max_new_tokens: int = 128,
) -> VllmEngine:
    """Load a model, whole and in the official layout, into vLLM; the options are those of `Writer`.

    Raises RecipeError where vLLM is not installed or the folder holds an adapter, CheckpointError where vLLM cannot
    load the model.
    """
    if (folder / "adapter_config.json").is_file():
        raise RecipeError(f"--engine vllm: {folder} is an adapter, and vLLM takes whole models: leave it out")
    try:
        vllm = import_module("vllm")
    except ImportError as error:
        raise RecipeError("--engine vllm: vLLM is not installed: run `pip install vllm`, or leave it out") from error
    import catalens.model  # noqa: F401  # registers Phi3VConfig, so that no remote code is needed

    try:
        llm = vllm.LLM(
            model=str(folder),
            max_model_len=LONGEST,
            limit_mm_per_prompt={"image": 1},
            structured_outputs_config={"backend": "guidance"},
        )
    except Exception as error:
        reason = first_line(error)
        raise CheckpointError(f"{folder} cannot be loaded by vLLM ({reason}): leave out --engine vllm") from error
    tokenizer = llm.get_tokenizer()
    vocabulary = Vocabulary(tokenizer, len(tokenizer))
    constraint = Constraint(vocabulary, prompt, space, free_categories) if space else None
    grammar = constraint and vllm.sampling_params.StructuredOutputsParams(grammar=constraint.grammar)
    sampling = vllm.SamplingParams(
        temperature=0.0,
        max_tokens=constraint.longest if constraint else max_new_tokens,
        stop_token_ids=sorted({vocabulary.end, tokenizer.eos_token_id}),
        logprobs=0,  # of the token that was taken, no other
        detokenize=False,
        structured_outputs=grammar,
    )
    return VllmEngine(prompt, llm, vocabulary, sampling)
