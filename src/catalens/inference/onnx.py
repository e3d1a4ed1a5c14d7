"""Answers of an exported run about pictures, with ONNX Runtime: no torch, no transformers.

    predictor = load_predictor("exports/onnx", engine="onnx")
    predictor.predict([photo])[0].values

Pictures are cut, texts tokenized and answers constrained as by `generation.py`; pixels become embeddings in
vision.onnx, these and the ids one sequence in embedding.onnx, and text.onnx scores the token that comes next. Keys
and values stay within the runtime from step to step. A row that comes to the longrope switch is fed afresh, since
keys in the cache carry the other factors.

Shapes: H hidden size, V vocabulary, C tiles of a picture, S side of a tile, N tokens of the pictures.
"""

import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError
from tokenizers import Tokenizer

from catalens.catalog.pictures import Encoded, open_picture
from catalens.config import Frozen, PromptSpec
from catalens.distributions import Estimate
from catalens.errors import CheckpointError, PictureError, RecipeError, first_line
from catalens.examples import AnswerSchema, Query, complete_question, load_form
from catalens.files import ONNX
from catalens.inference.grammar import Constraint, Vocabulary
from catalens.inference.records import Completion
from catalens.inference.trees import QUANTILES, Choices, Forest, Found, Turn, choices_of
from catalens.tiling import Chat, Floats, Tiler, tokenize

Precision = Literal["fp32", "int8", "int4"]
TREE_BYTES = 2**28
"""Memory that the caches of branches may take that are grown together."""


class Description(Frozen):
    """Description of an export, `onnx.json`."""

    format: Literal[1] = 1
    precision: Precision
    """Of the decoder's matrices."""
    vocabulary: int
    """Rows of the embedding."""
    image_token: int
    """Id of a slot for a token of a picture."""
    ends: tuple[int, ...]
    """Ids that end an answer."""
    layers: int
    key_value_heads: int
    head_size: int
    hidden: int
    switch: int | None
    """Most positions before the factors of the rotary embedding change."""
    tiling: Tiler


def runtime() -> Any:
    """Import ONNX Runtime, which sends telemetry unless it is told not to before."""
    os.environ["ORT_DISABLE_TELEMETRY"] = "1"
    try:
        import onnxruntime  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise RecipeError("--engine onnx needs onnxruntime: pip install 'catalens[onnx]'") from error
    return onnxruntime


class OnnxGenerator:
    """Writer of answers about pictures by an export's graphs, one row at a time, under the constraints of a schema.

    Raises CheckpointError where the folder is no whole export.
    """

    def __init__(
        self,
        folder: Path,
        prompt: PromptSpec,
        schema: AnswerSchema,
        free_categories: bool = False,
        estimate: Estimate | None = None,
    ) -> None:
        self.family, self.folder = Chat(), folder
        self.about = about = describe(folder)
        self.tokenizer = _tokenizer(folder)
        vocabulary = Vocabulary(self.tokenizer, about.vocabulary, self.family)
        self.constraint = Constraint(vocabulary, prompt, schema, free_categories)
        self._question = complete_question(prompt, {})
        self.estimate: Estimate | None = estimate
        closed = [] if free_categories else schema.closed
        self._fields = choices_of(self.constraint, prompt, closed, estimate) if estimate else []
        self._ort = runtime()
        self._vision, self._embedding, self._text = map(self._session, ("vision", "embedding", "text"))
        self._past = [value.name for value in self._text.get_inputs() if value.name.startswith("past_")]
        self._outputs = [value.name for value in self._text.get_outputs()]
        self._wrap = self._ort.OrtValue.ortvalue_from_numpy
        self._empty = self._wrap(np.zeros((1, about.key_value_heads, 0, about.head_size), np.float32))

    def generate(
        self, asked: Sequence[Query | Encoded], on_progress: Callable[[int], None] = lambda done: None
    ) -> list[Completion]:
        """Write one answer each, in their order; what cannot be decoded gets one that has an `error`."""
        completions = []
        for one in asked:
            query = one if isinstance(one, Query) else Query((one,), self._question)
            try:
                completions.append(self._answer(query))
            except PictureError as error:
                completions.append(Completion(error=f"picture {error}"))
            on_progress(len(completions))
        return completions

    def pixels(self, picture: Encoded) -> tuple[Floats, tuple[int, int]]:
        """Cut a picture into tiles [C, 3, S, S]; with the (H, W) of what they are cut from."""
        image = open_picture(bytes(picture))
        return self.about.tiling.cut(image), self.about.tiling.hd_size(*image.size)

    def prompt_ids(self, question: str, hd_sizes: Sequence[tuple[int, int]]) -> list[int]:
        """Tokens before an answer about pictures of these HD sizes."""
        counts = [self.about.tiling.image_tokens(size) for size in hd_sizes]
        text = self.family.chat(question, len(hd_sizes))
        return tokenize(lambda piece: self.tokenizer.encode(piece).ids, text, counts, self.about.image_token)

    def first_logits(self, query: Query) -> Floats:
        """Scores [V] of the first token of an answer."""
        sizes, features = self.features(query.pictures)
        return self._feed([self.prompt_ids(query.question, sizes)], features, None)[0][0]

    def _answer(self, query: Query) -> Completion:
        sizes, features = self.features(query.pictures)
        prompt = self.prompt_ids(query.question, sizes)
        constraint, switch = self.constraint, self.about.switch or math.inf
        matcher = constraint.start()
        tokens = constraint.forced(matcher)
        scores, fresh, steps, cache = [0.0] * len(tokens), len(tokens), 0, None
        piece, turn, distributions = constraint.vocabulary.piece, Turn(self._fields, switch), {}
        while len(tokens) < constraint.max_new_tokens and not self._ended(tokens):
            length = len(prompt) + len(tokens)
            if cache is None or length > switch >= length - fresh:
                (logits,), cache = self._feed([prompt + tokens], features, None)
            else:
                (logits,), cache = self._feed([tokens[-fresh:]], features[:0], cache)
            logits[self.about.image_token] = -np.inf
            text = b"".join(map(piece, tokens)) if self._fields else b""
            if choices := turn.now(text, len(prompt) + len(tokens)):
                found = self._grown(choices, matcher, text[turn.at :], logits, cache)
                matcher.consume_tokens(list(found.tokens))
                distributions[choices.spec.column] = found.distribution
                tokens, scores = tokens + list(found.tokens), scores + list(found.log_probabilities)
                fresh, steps = len(found.tokens), steps + 1
                continue
            logits[~constraint.allowed([matcher])[0]] = -np.inf
            chosen = int(logits.argmax())
            more = [chosen, *constraint.follow(matcher, chosen)]
            scores += [-float(np.log(np.exp(logits - logits[chosen]).sum())), *[0.0] * (len(more) - 1)]
            tokens, fresh, steps = tokens + more, len(more), steps + 1
        kept = self._ended(tokens) or len(tokens)
        pieces = tuple(map(piece, tokens[:kept]))
        return Completion(pieces, tuple(scores[:kept]), distributions, len(prompt), max(0, steps - 1))

    def _grown(
        self, choices: Choices, matcher: Any, begun: bytes, logits: Floats, cache: tuple[int, Sequence[Any]]
    ) -> Found:
        """Grow the tree of a value over a cache: a level feeds all tokens of its branches, many branches together.

        The runtime's attention takes one token at a time of several rows, any number of one row: a large cache is not
        repeated.
        """
        assert self.estimate is not None
        forest = Forest(choices, [matcher], [begun])
        forest.grow(lambda branches, tokens: logits[None, tokens])
        none = np.zeros((0, self.about.hidden), np.float32)
        length, past = cache
        keys = [value.numpy() for value in past]
        repeats = QUANTILES * sum(value.nbytes for value in keys) <= TREE_BYTES
        while forest.growing:
            rows: list[Floats] = [logits] * len(forest.growing)
            for count in {len(branch.tokens) for branch in forest.growing} if repeats else ():
                same = [n for n, branch in enumerate(forest.growing) if len(branch.tokens) == count]
                own = length, [self._wrap(np.repeat(value, len(same), axis=0)) for value in keys]
                scores = logits[None]
                for place in range(count):
                    scores, own = self._feed([forest.growing[n].tokens[place : place + 1] for n in same], none, own)
                for n, found in zip(same, list(scores), strict=True):
                    rows[n] = found
            if not repeats:
                rows = [self._feed([branch.tokens], none, cache)[0][0] for branch in forest.growing]
            level = np.stack(rows)
            forest.grow(lambda branches, tokens: level[branches][:, tokens])  # noqa: B023
        return forest.found(self.estimate)[0]

    def _ended(self, tokens: Sequence[int]) -> int:
        """Count the tokens up to the first that ends an answer; 0 where none does."""
        return next((count for count, token in enumerate(tokens, 1) if token in self.about.ends), 0)

    def features(self, pictures: Sequence[Encoded]) -> tuple[list[tuple[int, int]], Floats]:
        """HD sizes of pictures, and their embeddings [N, H], one picture after the other."""
        names = [value.name for value in self._vision.get_inputs()]
        sizes, features = [], []
        for pixels, size in map(self.pixels, pictures):
            sizes.append(size)
            features += self._vision.run(None, dict(zip(names, (pixels[None], np.array([size])), strict=True)))
        return sizes, np.concatenate(features)

    def _feed(
        self, ids: Sequence[Sequence[int]], features: Floats, cache: tuple[int, Sequence[Any]] | None
    ) -> tuple[Floats, tuple[int, Sequence[Any]]]:
        """Scores [B, V] of what comes after `ids` [B, T], and the cache, with how many tokens are in it then."""
        names = [value.name for value in self._embedding.get_inputs()]
        inputs = dict(zip(names, (np.array(ids, np.int32), features), strict=True))
        (embeddings,) = self._embedding.run(None, inputs)
        before, past = cache or (0, [self._empty] * len(self._past))
        length = before + len(ids[0])
        mask = np.ones((len(ids), length), np.int64)
        fed = {"inputs_embeds": self._wrap(embeddings), "attention_mask": self._wrap(mask)}
        logits, *present = self._text.run_with_ort_values(
            self._outputs, fed | dict(zip(self._past, past, strict=True))
        )
        return logits.numpy()[:, -1].astype(np.float32), (length, present)

    def _session(self, name: str) -> Any:
        options = self._ort.SessionOptions()
        options.log_severity_level = 3
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        path = self.folder / f"{name}.onnx"
        try:
            return self._ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:  # of the runtime's own kinds
            raise CheckpointError(f"{path} cannot be loaded ({first_line(error)}): export the run again") from error


def describe(folder: Path) -> Description:
    """Read what an export is; CheckpointError where it is none."""
    try:
        return Description.model_validate_json((folder / ONNX).read_bytes())
    except OSError as error:
        raise CheckpointError(
            f"{folder} is no export for onnx (no {ONNX}): make one by `catalens export RUN --to onnx`"
        ) from error
    except ValidationError as error:
        raise CheckpointError(f"{folder / ONNX} is not of this version of catalens: export the run again") from error


def open_export(
    folder: Path, free_categories: bool = False, estimate: Estimate | None = None
) -> tuple[OnnxGenerator, PromptSpec]:
    """Load the graphs of an export, and its prompt; CheckpointError where it is no whole export."""
    describe(folder)
    prompt, schema = load_form(folder)
    return OnnxGenerator(folder, prompt, schema, free_categories, estimate), prompt


def _tokenizer(folder: Path) -> Tokenizer:
    try:
        return Tokenizer.from_str((folder / "tokenizer.json").read_text(encoding="utf-8"))
    except Exception as error:  # the library raises bare ones
        raise CheckpointError(f"{folder / 'tokenizer.json'} cannot be read: export the run again") from error
