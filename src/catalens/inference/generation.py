"""Pictures -> answers, greedily, in batches: nothing of an answer is shown to the model.

    Generator(run.model, run.processor, run.prompt).generate([picture])[0].text
    "Product: Red Tote Bag, Category: BAGS, Full Price: 129.0<|end|>"

One generator stands behind `evaluate`, `predict` and `serve`. What is asked twice is answered once. Batches are rows
of like length on one side of the longrope switch; pictures of the next ones are decoded meanwhile; a batch that does
not fit in memory is halved. It is written (`decoding.py`) token by token, or several at once where they are forced:

    prompt  <s> <|user|> <picture> ... <|assistant|> Product :      forced tokens are fed with the prompt
    step 1  Red                                                     chosen
    step 2  ,  Category :  B                                        ...
    step 5  A                -> A G S , Full Price : _              chosen, the rest forced: one step

A row's tokens do not depend on its neighbours: padding is masked, positions count a row's own tokens. In fp32 a batch
of another shape moves log probabilities by rounding errors, less than 1e-4; in bf16 by more, and now and then a token
with them. Where a row comes to the longrope switch its batch is fed afresh, since keys in the cache carry the other
factors.

Shapes: B rows, T tokens, V vocabulary, F features of an embedding.
"""

import gc
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import psutil
import torch
from accelerate.utils import gather_object
from accelerate.utils.memory import should_reduce_batch_size
from numpy.typing import NDArray
from torch.nn.functional import adaptive_avg_pool2d

from catalens.catalog.pictures import picture_size
from catalens.checkpoint import Run, greedy
from catalens.config import EvaluationSpec, PromptSpec
from catalens.data import Encoded, Encoder, Picture, Query
from catalens.devices import eager, free_memory, processes
from catalens.distributions import Estimate
from catalens.errors import InferenceError, PictureError
from catalens.examples import AnswerSchema, complete_question
from catalens.features import FeatureCache, decoded_ahead
from catalens.inference.decoding import Decoder
from catalens.inference.grammar import Constraint, Vocabulary
from catalens.inference.records import Completion
from catalens.inference.trees import choices_of
from catalens.model import ImageInputs, family_of

CHUNK = 8
"""Batches that are sorted by length together."""
QUARTERS = 2
"""Parts of a picture's side of which `features` are means: they know roughly what is where."""
AHEAD = 2
"""Batches whose pictures are decoded before their turn."""
MEMORY = 0.5
"""Share of the memory beside the weights that a batch's cache may take; the rest is for what a pass needs besides."""
KEPT = 0.1
"""Share that the cache of the last batch may take until the next call: a server's batches are small."""
ROUGH = 2**28
"""Bytes to which the free memory of a GPU is rounded, so that small differences make no other batches."""

OnProgress = Callable[[int], None]
"""Called with how many are done."""
Asked = TypeVar("Asked")
Made = TypeVar("Made")


@dataclass(frozen=True)
class _Asked:
    """Query, its place among those that are asked, and its tokens."""

    index: int
    query: Query
    prompt: list[int]


class Generator:
    """Writer of answers about pictures, until the end token.

    With an answer `schema` decoding is constrained to it, and every answer is whole; `free_categories` leaves
    categories open. Without, answers are free and at most `max_new_tokens` long. Few are longer than `answer_tokens`,
    by default those of the schema: so much room a row is given, and more when it needs it. `batch_size` is the
    largest; rows share a batch as their lengths and the memory allow. That is the size of the machine's, or what is
    free of a GPU's when the first batch is made, so that the same pictures make the same batches. Pictures are looked
    up in a `cache`, where there is one, and kept in it as far as it holds features; generators of one model may share
    it. With an `estimate` numbers and closed sets are written out of the distributions of their values (`trees.py`).
    """

    def __init__(
        self,
        model: Any,  # of any family, or one wrapped by PEFT
        processor: Any,
        prompt: PromptSpec,
        batch_size: int = 16,
        max_new_tokens: int = 128,
        schema: AnswerSchema | None = None,
        free_categories: bool = False,
        cache: FeatureCache | None = None,
        answer_tokens: int | None = None,
        estimate: Estimate | None = None,
    ) -> None:
        self.model, self.processor, self.batch_size = model, processor, batch_size
        self.family = family_of(processor.model_type)
        self.vocabulary = Vocabulary(processor.tokenizer.backend_tokenizer, model.config.vocab_size, self.family)
        constraint = Constraint(self.vocabulary, prompt, schema, free_categories) if schema else None
        longest = constraint.max_new_tokens if constraint else max_new_tokens
        ends: Any = greedy(processor).eos_token_id
        self._switch = self.family.rope_switch(model.config) or math.inf
        answer_tokens = answer_tokens or (schema.answer_tokens if schema else None) or max_new_tokens
        self.answer_tokens = min(longest, answer_tokens)
        """Room that a row is given at first."""
        self.decoder = Decoder(model, self.family, self.vocabulary, ends, longest, self.answer_tokens, constraint)
        if constraint and schema and estimate and not self.decoder.sharded:
            closed = [] if free_categories else schema.closed
            self.decoder.fields, self.decoder.estimate = choices_of(constraint, prompt, closed, estimate), estimate
        self._encoder, self._question = Encoder(processor, prompt), complete_question(prompt, {})
        self._cache = cache

    def generate(
        self, asked: Sequence[Query | Encoded], on_progress: OnProgress = lambda done: None
    ) -> list[Completion]:
        """Write one answer each, in their order; about a picture alone the question is the prompt's, without texts.

        What cannot be decoded gets an answer that has an `error`. Under torchrun the processes share the work
        and all get all answers. Raises InferenceError where a single row is too much for the memory.
        """
        queries = [one if isinstance(one, Query) else Query((one,), self._question) for one in asked]
        once = list(dict.fromkeys(queries))
        answers = self._shared(self._generate, once, lambda done: on_progress(done * len(queries) // len(once)))
        by_query = dict(zip(once, answers, strict=True))
        return [by_query[query] for query in queries]

    def features(
        self, pictures: Sequence[Encoded], on_progress: OnProgress = lambda done: None
    ) -> NDArray[np.float32]:
        """Give the tower's features of each whole picture, [n, 4F], by their means over its quarters.

        They come from the cache, and fill it. Shared, and raised, as by `generate`; PictureError where one is no
        picture.
        """
        queries = [Query((picture,), self._question) for picture in pictures]
        return np.stack(self._shared(self._features, queries, on_progress))

    def _shared(
        self,
        work: Callable[[Sequence[Query], OnProgress], list[Made]],
        queries: Sequence[Query],
        on_progress: OnProgress,
    ) -> list[Made]:
        """Work on all queries; under torchrun each process does its share, and all get everything."""
        state, was_training = processes(), self.model.training
        self.model.eval()  # while it trains, checkpointing would drop the KV cache
        try:
            with eager(self.model):  # each of a batch's shapes would be compiled anew
                if state.num_processes == 1 or not queries:
                    return work(queries, on_progress)
                share = math.ceil(len(queries) / state.num_processes)  # the same in each: they wait for one another
                last = len(queries) - 1
                indices = [min(state.process_index + n * state.num_processes, last) for n in range(share)]
                mine = work([queries[i] for i in indices], lambda done: on_progress(done * state.num_processes))
        finally:
            self.model.train(was_training)
            if self.decoder.cache and self.decoder.cache.nbytes > KEPT * self._memory:
                self.decoder.release()
        everyones = gather_object(mine)  # one process after the other
        return [made for n in range(share) for made in everyones[n::share]][: len(queries)]

    def _generate(self, queries: Sequence[Query], on_progress: OnProgress) -> list[Completion]:
        completions: list[Completion] = [Completion()] * len(queries)
        for rows, images in self._batches_ahead(queries, on_progress):
            good: list[_Asked] = []
            batch: list[list[ImageInputs]] = []
            for row, own in zip(rows, images, strict=True):
                if isinstance(own, PictureError):
                    completions[row.index] = Completion(error=f"picture {own}")
                else:
                    good.append(row)
                    batch.append(own)
            if self._cache and self._cache.features:  # all of them or none: a batch is of one kind
                batch = self._with_features(good, batch)
            answers = self._fitting(self._answers, list(zip(good, batch, strict=True)))
            for row, completion in zip(good, answers, strict=True):
                completions[row.index] = completion
        return completions

    def _features(self, queries: Sequence[Query], on_progress: OnProgress) -> list[NDArray[np.float32]]:
        quarters: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(queries)
        for rows, images in self._batches_ahead(queries, on_progress):
            if problem := next((own for own in images if isinstance(own, PictureError)), None):
                raise problem
            good = [own for own in images if not isinstance(own, PictureError)]
            for row, own in zip(rows, self._with_features(rows, good), strict=True):
                assert own[0].features is not None
                whole = own[0].features[0].float().movedim(-1, 0)  # [F, m, m]
                quarters[row.index] = adaptive_avg_pool2d(whole, QUARTERS).flatten().numpy()
        return quarters

    def _batches_ahead(
        self, queries: Sequence[Query], on_progress: OnProgress
    ) -> Iterator[tuple[Sequence[_Asked], list[list[ImageInputs] | PictureError]]]:
        """Batches with their pictures, which are counted when the next one is asked for."""
        done = 0
        for rows, images in decoded_ahead(self._batches(queries), self._encoded, AHEAD):
            yield rows, images
            done += len(rows)
            on_progress(done)

    def _batches(self, queries: Sequence[Query]) -> Iterator[list[_Asked]]:
        chunk, room = CHUNK * self.batch_size, self._cache_tokens()
        for start in range(0, len(queries), chunk):
            rows = [self._asked(index, queries[index]) for index in range(len(queries))[start : start + chunk]]
            batch: list[_Asked] = []
            for row in sorted(rows, key=self._tokens):
                fits = len(batch) < self.batch_size and (len(batch) + 1) * self._tokens(row) <= room
                if batch and not (fits and self._side(batch[0]) == self._side(row)):
                    yield batch
                    batch = []
                batch.append(row)
            yield batch

    def _asked(self, index: int, query: Query) -> _Asked:
        """Tokenize a query; where a picture is none it has no prompt."""
        try:
            seen = [one.size if isinstance(one, Picture) else picture_size(one) for one in query.pictures]
        except PictureError:
            return _Asked(index, query, [])
        prompt = self._encoder.prompt_ids([self._encoder.hd_size(size) for size in seen], query.question)
        return _Asked(index, query, prompt.tolist())

    def _tokens(self, row: _Asked) -> int:
        """Tokens that a row is given room for, its answer counted; 0 where a picture is none."""
        return len(row.prompt) + self.answer_tokens if row.prompt else 0

    def _side(self, row: _Asked) -> int:
        """0 below the longrope switch, 2 beyond it, 1 where an answer may cross it."""
        return (self._tokens(row) > self._switch) + (len(row.prompt) > self._switch)

    def _cache_tokens(self) -> float:
        """Tokens that a batch's keys and values may be of."""
        config = self.model.config
        head = config.hidden_size // config.num_attention_heads
        token = 2 * config.num_hidden_layers * config.num_key_value_heads * head * self.model.dtype.itemsize
        return MEMORY * self._memory / token

    @cached_property
    def _memory(self) -> float:
        """Bytes beside the weights: of a GPU what is free, of a machine whatever is."""
        device = self.model.device
        if device.type != "cuda":
            weights = sum(weight.nbytes for weight in self.model.parameters())
            return psutil.virtual_memory().total - weights
        return free_memory(device) // ROUGH * ROUGH

    def _encoded(self, row: _Asked) -> list[ImageInputs] | PictureError:
        try:
            return [(self._cache or self._encoder.image)(picture) for picture in row.query.pictures]
        except PictureError as error:
            return error

    def _with_features(
        self, rows: Sequence[_Asked], images: Sequence[Sequence[ImageInputs]]
    ) -> list[list[ImageInputs]]:
        """Run the tower on pictures that lack features, and keep these as long as there is room."""
        pairs = zip(rows, images, strict=True)
        known = {data: image for row, own in pairs for data, image in zip(row.query.pictures, own, strict=True)}
        new = {data: image for data, image in known.items() if image.features is None}
        made = self._fitting(
            lambda some: self.family.encode_features(self.model, some, self.model.dtype), list(new.values())
        )
        known |= zip(new, made, strict=True)
        if self._cache:
            for data in new:
                self._cache.add(data, known[data])
        return [[known[data] for data in row.query.pictures] for row in rows]

    def _answers(self, rows: Sequence[tuple[_Asked, Sequence[ImageInputs]]]) -> list[Completion]:
        return self.decoder([row.prompt for row, _ in rows], [images for _, images in rows])

    def _fitting(self, work: Callable[[Sequence[Asked]], list[Made]], batch: Sequence[Asked]) -> list[Made]:
        """Work on a batch; on halves of it, from then on, where the memory does not suffice."""
        if not batch:
            return []
        try:
            return work(batch)
        except RuntimeError as error:
            if not should_reduce_batch_size(error):
                raise
            if len(batch) == 1:
                raise InferenceError("one row alone is too much for the memory: lower num_crops") from error
        self.decoder.release()
        gc.collect()  # what the failed pass held has gone with its exception
        torch.cuda.empty_cache()
        half = self.batch_size = len(batch) // 2
        return self._fitting(work, batch[:half]) + self._fitting(work, batch[half:])


def constrained_generator(
    run: Run, spec: EvaluationSpec, estimate: Estimate | None = None, cache: FeatureCache | None = None
) -> Generator:
    """Make the generator of a run's answers under its answer schema, as `predict` has it."""
    limits = spec.batch_size, spec.max_new_tokens
    return Generator(run.model, run.processor, run.prompt, *limits, run.space, cache=cache, estimate=estimate)
