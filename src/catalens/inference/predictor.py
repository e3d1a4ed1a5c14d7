"""A run and pictures -> predictions.

    predictor = load_predictor("runs/demo", accept_error={"title": 0.05})
    predictor.predict([Path("photo.jpg").read_bytes()])[0].values

A field's score comes from the tokens of its value and of what stands up to the next value: that it ended there was a
choice too. That choice counts as one token, however many the label has; the label before the value is no part of it.

    Product :  Red  Tote  Bag  ,  Category :  B  A G S , Full Price : _ 1 2 9 . 0 <|end|>
               `-- title ----------------'    `-- category ---------'   `-- price -------'

What takes seconds to import is imported where a model is loaded.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol

from catalens.catalog.pictures import Encoded
from catalens.config import NumberSpec, PromptSpec
from catalens.errors import RecipeError
from catalens.examples import ChatTemplate, Query, complete_question, parse_answer
from catalens.files import EXPORT, ONNX, model_folder, read_export
from catalens.inference.records import Completion, FieldScore
from catalens.predictions import Prediction
from catalens.tolerance import TEN_PER_CENT, Tolerance

if TYPE_CHECKING:
    from catalens.inference.calibration import Calibration

Engine = Literal["torch", "onnx", "vllm"]


class Writer(Protocol):
    """Writer of answers about pictures, and the chat that it writes in: the generator of an engine."""

    @property
    def family(self) -> ChatTemplate:
        """Template of the chats."""
        ...

    def generate(
        self, asked: Sequence[Encoded | Query], on_progress: Callable[[int], None] = ...
    ) -> list[Completion]:
        """Write one answer each, in their order."""
        ...


class Predictor:
    """Generator, calibration and review rule of a run. Not safe to call from two threads at once.

    `accept_error` maps columns to the largest share of wrong values that is borne among those not marked for review.
    Where no threshold keeps to it, or nothing is calibrated, every value of the column is marked.
    """

    def __init__(
        self,
        generator: Writer,
        prompt: PromptSpec,
        calibration: "Calibration | None" = None,
        accept_error: Mapping[str, float] | None = None,
        number: NumberSpec = NumberSpec(),  # noqa: B008
    ) -> None:
        self.generator, self.prompt, self.calibration = generator, prompt, calibration
        self.number = calibration.number if calibration else number
        """Reading of numbers, and the error within which they are right."""
        self._end = generator.family.end_token
        self.calibrated = calibration is not None
        """Set where confidences are calibrated; else they are the model's own."""
        self.targets = accept_error or {}
        self.thresholds = {
            column: calibration.threshold(column, target) if calibration else None
            for column, target in self.targets.items()
        }
        """By column of the rule: values with less confidence are marked; None marks all."""

    def query(self, pictures: Sequence[bytes], texts: Mapping[str, object] | None = None) -> Query:
        """Make a query of several pictures of one product, or of the texts that the question asks for, by column."""
        return Query(tuple(pictures), complete_question(self.prompt, texts or {}))

    def predict(
        self, asked: Sequence[bytes | Query], on_progress: Callable[[int], None] = lambda done: None
    ) -> list[Prediction]:
        """Predict each picture or query, in their order; bytes that are no picture give one with an `error`.

        `on_progress` is called with how many are done.
        """
        return [self.judge(completion) for completion in self.generator.generate(asked, on_progress)]

    def judge(self, completion: Completion) -> Prediction:
        """Read an answer, with confidences and what needs review."""
        everything = tuple(field.column for field in self.prompt.fields)
        if completion.error is not None:
            return Prediction(None, needs_review=everything, error=completion.error)
        answer = parse_answer(self.prompt, completion.text, self._end)
        if answer.values is None:
            error = f"answer {completion.text!r} {answer.error}"
            return Prediction(None, needs_review=everything, answer=completion.text, error=error)
        scores = field_scores(self.prompt, completion, self._end, self.number.tolerance)
        if self.calibration is None:
            confidence = {column: math.exp(score.log_probability) for column, score in scores.items()}
        else:
            confidence = {column: self.calibration.apply(column, score) for column, score in scores.items()}
        intervals = {}
        for field in self.prompt.fields:
            if self.calibration and field.kind == "number":
                value, known = float(answer.values[field.column]), completion.distributions.get(field.column)
                bounds = self.calibration.bounds(field.column, value, known)
                intervals |= {field.column: bounds} if bounds else {}
        unsure = tuple(
            column
            for column, threshold in self.thresholds.items()
            if threshold is None or confidence[column] < threshold
        )
        known = completion.distributions
        return Prediction(answer.values, confidence, intervals, unsure, completion.text, distributions=known)


def load_predictor(
    run: Path | str | None = None,
    *,
    batch_size: int = 16,
    accept_error: Mapping[str, float] | float | None = None,
    free_categories: bool = False,
    engine: str | None = None,
    server: str | None = None,
) -> Predictor:
    """Load the predictor of a finished run, or of the model that ships with catalens where `run` is None.

    `accept_error` is the share of wrong values that is borne among those not marked for review, for all columns or
    by column. Decoding is constrained: every answer parses, and categories are the catalogue's, unless
    `free_categories`, which no calibration covers. An export for ONNX Runtime is run by the engine `onnx`, without
    torch and a picture at a time; one for vLLM by the engine `vllm`, in this process, or by the vLLM that listens at
    the URL `server`. Raises CheckpointError where it is no finished run or export, RecipeError where an option does
    not fit, InferenceError where a server cannot be reached.
    """
    folder = None if run is None else Path(run)
    ran = engine_of(folder, engine, server)
    if ran != "torch" and folder is None:
        raise RecipeError(f"--engine {ran} needs an export: give the folder that `catalens export --to {ran}` made")
    if folder and ran != "torch":
        writer, prompt, calibration, number = _opened(folder, ran, free_categories, server)
    else:
        writer, prompt, calibration, number = _loaded(folder, batch_size, free_categories)
    columns = [field.column for field in prompt.fields]
    targets = dict.fromkeys(columns, accept_error) if isinstance(accept_error, int | float) else accept_error or {}
    if unknown := [column for column in targets if column not in columns]:
        raise RecipeError(f"--accept-error names {unknown[0]!r}: the fields are {', '.join(columns)}")
    if targets and free_categories:
        raise RecipeError("--accept-error holds for the catalogue's own categories: leave it out")
    return Predictor(writer, prompt, calibration, targets, number)


Parts = tuple[Writer, PromptSpec, "Calibration | None", NumberSpec]
"""Of a predictor."""


def _opened(folder: Path, engine: Engine, free_categories: bool, server: str | None) -> Parts:
    """Open an export in its own runtime."""
    from catalens.inference.calibration import load_calibration

    number, covered = NumberSpec(estimate="mode"), not free_categories
    if (folder / EXPORT).is_file() and (told := read_export(folder).get("number")):
        number = NumberSpec.model_validate(told)  # those of earlier versions say nothing
    if engine == "vllm":
        from catalens.inference.vllm import is_certified, open_vllm

        writer, prompt = open_vllm(folder, free_categories, server)
        covered = covered and is_certified(folder)
    else:
        from catalens.inference.onnx import open_export

        writer, prompt = open_export(folder, free_categories, number.estimate)
    return writer, prompt, load_calibration(folder, prompt) if covered else None, number


def _loaded(folder: Path | None, batch_size: int, free_categories: bool) -> Parts:
    """Load a run, or the model that ships with catalens."""
    from catalens.checkpoint import load_run, load_untrained
    from catalens.inference.calibration import load_calibration
    from catalens.inference.generation import Generator

    run = load_untrained() if folder is None else load_run(folder)
    longest, covered = run.recipe.evaluation.max_new_tokens, not free_categories
    calibration = load_calibration(folder, run.prompt) if folder and covered else None
    number = calibration.number if calibration else run.recipe.number
    settings = (run.prompt, batch_size, longest, run.space, free_categories)
    writer = Generator(run.model, run.processor, *settings, estimate=number.estimate)
    return writer, run.prompt, calibration, number


def engine_of(run: Path | None, engine: str | None = None, server: str | None = None) -> Engine:
    """Give what runs a model: the engine that is named, `vllm` at a server, `onnx` of an export for it, else `torch`.

    An export for vLLM is a model for torch too: vLLM runs it where it is asked for.
    """
    if engine not in (None, "torch", "onnx", "vllm"):
        raise RecipeError(f"--engine {engine}: the choices are torch, onnx, vllm")
    if server is not None:
        if engine not in (None, "vllm"):
            raise RecipeError(f"--server is for --engine vllm, not {engine}: leave one of them out")
        return "vllm"
    if engine is None:
        return "onnx" if run is not None and (run / ONNX).is_file() else "torch"
    return engine


def question_inputs(run: Path) -> list[str]:
    """Columns whose texts the question of a run asks for; none where it cannot be read: loading it says why."""
    try:
        return PromptSpec.model_validate_json((model_folder(run) / "prompt.json").read_bytes()).inputs
    except (OSError, ValueError):
        return []


def field_scores(
    prompt: PromptSpec, completion: Completion, end_token: str, within: Tolerance = TEN_PER_CENT
) -> dict[str, FieldScore]:
    """Score each field of an answer that parses, by column; forced tokens are certain.

    One with a distribution has its value's probability, a number that of a truth within the tolerance.
    """
    values = parse_answer(prompt, completion.text, end_token).values or {}
    known = {name: one.score(values[name], within) for name, one in completion.distributions.items()}
    own = _token_scores(prompt, completion, end_token) | {
        name: FieldScore(math.log(share), 1) for name, share in known.items()
    }
    sums = accumulate((own[field.column].log_probability for field in prompt.fields), initial=0.0)
    return {
        field.column: replace(own[field.column], before=before)
        for field, before in zip(prompt.fields, sums, strict=False)
    }


def _token_scores(prompt: PromptSpec, completion: Completion, end_token: str) -> dict[str, FieldScore]:
    text = b"".join(completion.pieces)
    ends = list(accumulate(map(len, completion.pieces)))  # bytes up to the end of each token
    spans = list(zip([0, *ends], ends, completion.log_probabilities, strict=False))
    values: list[tuple[int, int]] = []  # bytes of each value, from and to
    at = 0
    for field, following in zip(prompt.fields, (*prompt.fields[1:], None), strict=True):
        first = text.index(f"{field.label}: ".encode(), at) + len(f"{field.label}: ".encode())
        at = text.index(f", {following.label}: ".encode() if following else end_token.encode(), first)
        values.append((first, at))
    scores = {}
    for field, (first, last), (following, _) in zip(
        prompt.fields, values, [*values[1:], (len(text), 0)], strict=True
    ):
        own = [score for start, end, score in spans if first < end and start < last]
        ending = [score for start, end, score in spans if last <= start and end <= following]
        scores[field.column] = FieldScore(sum(own) + sum(ending), len(own) + bool(ending))
    return scores
