"""The export for vLLM: the merged layout, with the flags of its server and the chat in Jinja.

    config.json  model.safetensors  ...  vllm.yaml  chat_template.jinja

    vllm serve exports/demo --config exports/demo/vllm.yaml

vLLM finds our class for the model by an entry point (`model/vllm.py`): catalens must be installed beside it.
"""

from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import yaml

from catalens.errors import CheckpointError
from catalens.examples import Query
from catalens.exporting.certificate import ReferenceRow, Trace, sample_pixels
from catalens.files import VLLM
from catalens.inference.records import Completion
from catalens.inference.vllm import Asked, Local, open_vllm
from catalens.progress import Progress

if TYPE_CHECKING:
    from catalens.checkpoint import Run
    from catalens.config import NumberSpec
    from catalens.inference.calibration import Calibration
    from catalens.model import Family

DTYPES = {"fp32": "float32", "bf16": "bfloat16"}


def write(run: "Run", folder: Path) -> str:
    """Write a run's model, adapters merged, for vLLM; gives its precision.

    Raises CheckpointError where a tokenizer reads the chat otherwise in one go than piece by piece, as it was
    trained.
    """
    from catalens.exporting import merged
    from catalens.model import family_of

    precision = merged.write(run, folder)
    family, config = family_of(run.processor.model_type), run.model.config
    longest = min(family.rope_switch(config) or config.max_position_embeddings, config.max_position_embeddings)
    settings = {
        "dtype": DTYPES[precision],
        # beyond the switch it would give every row the long factors of the rotary embedding
        "max-model-len": longest,
        "mm-processor-cache-gb": 0,  # no picture comes twice
        "structured-outputs-config": {"backend": "guidance"},
        "served-model-name": run.folder.resolve().name,
        "chat-template-content-format": "openai",
    }
    text = "# vllm serve FOLDER --config FOLDER/vllm.yaml\n" + yaml.safe_dump(settings, sort_keys=False)
    (folder / VLLM).write_text(text, encoding="utf-8")
    (folder / "chat_template.jinja").write_text(family.chat_template, encoding="utf-8")
    _check_template(run, family)
    return precision


def calibration(run: "Run", folder: Path, progress: Progress) -> "Calibration | None":
    """Give the calibration of what was written; None where the run has none.

    vLLM writes numbers token by token. Where the run does otherwise it is learned anew, from the run writing so.
    """
    from catalens.evaluation.calibrating import learn_calibration
    from catalens.inference.calibration import load_calibration
    from catalens.inference.generation import constrained_generator

    known, spec = load_calibration(run.folder, run.prompt), run.recipe.evaluation
    if known is None or known.number.estimate == "mode":
        return known
    return learn_calibration(run, constrained_generator(run, spec), spec.interval, reading(run), progress)


def reading(run: "Run") -> "NumberSpec":
    """Tell how numbers are read in vLLM: token by token."""
    return run.recipe.number.model_copy(update={"estimate": "mode"})


def load(folder: Path) -> "VllmRuntime":
    """Load an export in vLLM; RecipeError where that is not installed."""
    return VllmRuntime(folder)


def lacking() -> str | None:
    """Say why an export cannot be checked on this machine, and how it can; None where it can."""
    if find_spec("vllm") is not None:
        return None
    return "vLLM is not installed here; `catalens export --check FOLDER` checks it where it is (make vllm-env)"


class VllmRuntime:
    """An export in vLLM."""

    def __init__(self, folder: Path) -> None:
        from catalens.checkpoint import load_processor
        from catalens.model import family_of

        self.backend = Local(folder, max_logprobs=-1)
        self.generator, _ = open_vllm(folder, backend=self.backend)
        self.processor = load_processor(str(folder))
        self.family = family_of(self.processor.model_type)

    def __call__(
        self, rows: Sequence[ReferenceRow], on_progress: Callable[[int], None] = lambda done: None
    ) -> list[Trace]:
        """Trace rows, in their order."""
        queries = [Query(row.pictures, row.question) for row in rows]
        asked = [self.generator.prepare(query) for query in queries]
        completions = self.generator.generate(queries, on_progress)
        for row, completion in zip(rows, completions, strict=True):
            if completion.error is not None:
                raise CheckpointError(f"reference row {row.id}: {completion.error}")
        good = [one for one in asked if isinstance(one, Asked)]
        first = self.backend.ask(good, 1, logprobs=-1)
        return [self._trace(*one) for one in zip(good, completions, first, strict=True)]

    def _trace(self, asked: Asked, completion: Completion, first: Any) -> Trace:
        """Trace a row by its answer and by vLLM's output of one token without a constraint."""
        cut = [self.family.encode_image(self.processor, picture) for picture in asked.pictures]
        told = first.outputs[0].logprobs[0]
        scores = np.full(self.generator.vocabulary.size, -np.inf, np.float32)
        scores[list(told)] = [one.logprob for one in told.values()]
        pixels = sample_pixels(self.family.normalised_pixels(cut).numpy())
        ids = list(first.prompt_token_ids)
        return Trace(pixels, ids, scores, completion.text, sum(completion.log_probabilities))


def _check_template(run: "Run", family: "Family") -> None:
    """Compare the tokens of the chat in Jinja with those of training, for one picture and two."""
    processor, question = run.processor, run.prompt.question
    size = family.hd_size(processor, 100, 100)
    slot, slots = processor.image_token_id, family.image_tokens(processor, size)
    for count in (1, 2):
        parts = [*[{"type": "image"}] * count, {"type": "text", "text": question}]
        text = processor.tokenizer.apply_chat_template(
            [{"role": "user", "content": parts}],
            chat_template=family.chat_template,
            tokenize=False,
            add_generation_prompt=True,
        )
        ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        found = [token for one in ids for token in [one] * (slots if one == slot else 1)]
        if found != family.token_ids(processor, family.chat(question, count), [size] * count):
            raise CheckpointError(f"{run.folder}: its tokenizer reads a chat otherwise in one go: use --to merged")
