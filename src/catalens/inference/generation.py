"""Pictures -> answers, greedily, in batches: nothing of an answer is shown to the model.

    Generator(run.model, run.processor, run.prompt).generate([picture])[0].text
    "Product: Red Tote Bag, Category: BAGS, Full Price: 129.0<|end|>"

One generator stands behind `evaluate`, `predict` and `serve`. Batches are rows of like length on one side of the
longrope switch; pictures of the next ones are decoded meanwhile; a batch that does not fit in memory is halved. A
batch is written with a KV cache, token by token or several at once where they are forced:

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
import os
from collections import deque
from collections.abc import Callable, Collection, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np
import psutil
import torch
from accelerate.utils import gather_object, reduce
from accelerate.utils.memory import should_reduce_batch_size
from numpy.typing import NDArray
from torch.nn.functional import adaptive_avg_pool2d
from transformers import DynamicCache
from transformers.integrations.fsdp import is_fsdp_managed_module

from catalens.catalog.pictures import picture_size
from catalens.checkpoint import greedy
from catalens.config import PromptSpec
from catalens.data import Encoded, Encoder, Picture, Query
from catalens.devices import processes
from catalens.distributions import Distribution, Estimate
from catalens.errors import InferenceError, PictureError
from catalens.examples import AnswerSchema, complete_question
from catalens.features import FeatureCache
from catalens.inference.grammar import Constraint, Vocabulary
from catalens.inference.growth import grow_over_cache
from catalens.inference.records import Completion
from catalens.inference.trees import Choices, Forest, Turn, choices_of
from catalens.model import Family, ImageInputs, family_of

CHUNK = 8
"""Batches that are sorted by length together."""
QUARTERS = 2
"""Parts of a picture's side of which `features` are means: they know roughly what is where."""
AHEAD = 2
"""Batches whose pictures are decoded before their turn."""
MEMORY = 0.5
"""Share of the memory beside the weights that a batch's cache may take; the rest is for what a pass needs besides."""

OnProgress = Callable[[int], None]
"""Called with how many are done."""
Asked = TypeVar("Asked")
Made = TypeVar("Made")


class Generator:
    """Writer of answers about pictures, until the end token.

    With an answer `schema` decoding is constrained to it, and every answer is whole; `free_categories` leaves
    categories open. Without, answers are free and at most `max_new_tokens` long. `batch_size` is the largest; rows
    share a batch as their lengths and the size of the machine's memory allow, not as what is free at the moment, so
    that the same pictures make the same batches. Pictures are looked up in a `cache`, where there is one, and kept in
    it as far as it holds features; generators of one model may share it. With an `estimate` numbers and categories
    out of closed sets are written by the distributions of their values (`trees.py`), which completions have then.
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
        estimate: Estimate | None = None,
    ) -> None:
        self.model, self.processor, self.batch_size = model, processor, batch_size
        self.family = family_of(processor.model_type)
        self.vocabulary = Vocabulary(processor.tokenizer.backend_tokenizer, model.config.vocab_size, self.family)
        constraint = Constraint(self.vocabulary, prompt, schema, free_categories) if schema else None
        longest = constraint.max_new_tokens if constraint else max_new_tokens
        ends: Any = greedy(processor).eos_token_id
        self._switch = self.family.rope_switch(model.config) or math.inf
        self._decoder = _Decoder(model, self.family, self.vocabulary, ends, longest, constraint, estimate)
        if constraint and schema and estimate and not self._decoder.together:
            closed = [] if free_categories else schema.closed
            self._decoder.fields = choices_of(constraint, prompt, closed, estimate)
        self._answer_tokens = min(longest, max_new_tokens)  # room that a row is given; few answers need more
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
        return self._shared(self._generate, queries, on_progress)

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
            if state.num_processes == 1 or not queries:
                return work(queries, on_progress)
            share = math.ceil(len(queries) / state.num_processes)  # the same in each: they wait for one another
            indices = [min(state.process_index + n * state.num_processes, len(queries) - 1) for n in range(share)]
            mine = work([queries[i] for i in indices], lambda done: on_progress(done * state.num_processes))
        finally:
            self.model.train(was_training)
        everyones = gather_object(mine)  # one process after the other
        return [made for n in range(share) for made in everyones[n::share]][: len(queries)]

    def _generate(self, queries: Sequence[Query], on_progress: OnProgress) -> list[Completion]:
        completions: list[Completion] = [Completion()] * len(queries)
        for indices, images in self._batches_ahead(queries, on_progress):
            good: dict[int, list[ImageInputs]] = {}
            for i, own in zip(indices, images, strict=True):
                if isinstance(own, PictureError):
                    completions[i] = Completion(error=f"picture {own}")
                else:
                    good[i] = own
            rows = [queries[i] for i in good]
            batch = list(good.values())
            if self._cache and self._cache.features:  # all of them or none: a batch is of one kind
                batch = self._with_features(rows, batch)
            asked = list(zip(rows, batch, strict=True))
            for i, completion in zip(good, self._fitting(self._answers, asked), strict=True):
                completions[i] = completion
        return completions

    def _features(self, queries: Sequence[Query], on_progress: OnProgress) -> list[NDArray[np.float32]]:
        quarters: list[NDArray[np.float32]] = [np.empty(0, np.float32)] * len(queries)
        for indices, images in self._batches_ahead(queries, on_progress):
            if problem := next((own for own in images if isinstance(own, PictureError)), None):
                raise problem
            good = [own for own in images if not isinstance(own, PictureError)]
            for i, own in zip(indices, self._with_features([queries[i] for i in indices], good), strict=True):
                assert own[0].features is not None
                whole = own[0].features[0].float().movedim(-1, 0)  # [F, m, m]
                quarters[i] = adaptive_avg_pool2d(whole, QUARTERS).flatten().numpy()
        return quarters

    def _batches_ahead(
        self, queries: Sequence[Query], on_progress: OnProgress
    ) -> Iterator[tuple[list[int], list[list[ImageInputs] | PictureError]]]:
        """Batches of indices with their pictures, decoded while the batches before are worked on."""
        waiting: deque[tuple[list[int], list[Future[list[ImageInputs] | PictureError]]]] = deque()
        batches, done = self._batches(queries), 0
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            while True:
                while len(waiting) <= AHEAD and (batch := next(batches, None)):
                    waiting.append((batch, [pool.submit(self._encoded, queries[i]) for i in batch]))
                if not waiting:
                    return
                indices, coming = waiting.popleft()
                yield indices, [one.result() for one in coming]
                done += len(indices)
                on_progress(done)

    def _batches(self, queries: Sequence[Query]) -> Iterator[list[int]]:
        chunk, room = CHUNK * self.batch_size, self._cache_tokens()
        for start in range(0, len(queries), chunk):
            indices = range(start, min(start + chunk, len(queries)))
            tokens = {i: self._tokens(queries[i]) for i in indices}
            batch: list[int] = []
            for i in sorted(indices, key=tokens.__getitem__):
                fits = len(batch) < self.batch_size and (len(batch) + 1) * tokens[i] <= room
                if batch and not (fits and self._side(tokens[batch[0]]) == self._side(tokens[i])):
                    yield batch
                    batch = []
                batch.append(i)
            yield batch

    def _tokens(self, query: Query) -> int:
        """Tokens that a row is given room for, its answer counted; 0 where a picture is none."""
        try:
            seen = [one.size if isinstance(one, Picture) else picture_size(one) for one in query.pictures]
        except PictureError:
            return 0
        prompt = self._encoder.prompt_ids([self._encoder.hd_size(size) for size in seen], query.question)
        return len(prompt) + self._answer_tokens

    def _side(self, tokens: int) -> int:
        """0 below the longrope switch, 2 beyond it, 1 where an answer may cross it."""
        return (tokens > self._switch) + (tokens - self._answer_tokens > self._switch)

    def _cache_tokens(self) -> float:
        """Tokens that a batch's KV cache may hold, by the size of the device's memory, whatever is free of it."""
        config, device = self.model.config, self.model.device
        head = config.hidden_size // config.num_attention_heads
        token = 2 * config.num_hidden_layers * config.num_key_value_heads * head * self.model.dtype.itemsize
        weights = sum(weight.nbytes for weight in self.model.parameters())
        gpu = device.type == "cuda"
        memory = torch.cuda.get_device_properties(device).total_memory if gpu else psutil.virtual_memory().total
        return MEMORY * (memory - weights) / token

    def _encoded(self, query: Query) -> list[ImageInputs] | PictureError:
        try:
            return [(self._cache or self._encoder.image)(picture) for picture in query.pictures]
        except PictureError as error:
            return error

    def _with_features(
        self, queries: Sequence[Query], images: Sequence[Sequence[ImageInputs]]
    ) -> list[list[ImageInputs]]:
        """Run the tower on pictures that lack features, and keep these as long as there is room."""
        rows = zip(queries, images, strict=True)
        known = {data: image for query, own in rows for data, image in zip(query.pictures, own, strict=True)}
        new = {data: image for data, image in known.items() if image.features is None}
        made = self._fitting(
            lambda some: self.family.encode_features(self.model, some, self.model.dtype), list(new.values())
        )
        known |= zip(new, made, strict=True)
        if self._cache:
            for data in new:
                self._cache.add(data, known[data])
        return [[known[data] for data in query.pictures] for query in queries]

    def _answers(self, rows: Sequence[tuple[Query, Sequence[ImageInputs]]]) -> list[Completion]:
        prompts = [
            self._encoder.prompt_ids([image.hd_size for image in images], query.question).tolist()
            for query, images in rows
        ]
        return self._decoder(prompts, [images for _, images in rows])

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
        gc.collect()  # what the failed pass held has gone with its exception
        torch.cuda.empty_cache()
        half = self.batch_size = len(batch) // 2
        return self._fitting(work, batch[:half]) + self._fitting(work, batch[half:])


@dataclass(eq=False)
class _Row:
    prompt: list[int]
    images: Sequence[ImageInputs]
    matcher: Any
    tokens: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    fresh: list[int] = field(default_factory=list)  # not fed yet
    steps: int = 0
    done: bool = False
    text: bytes = b""
    turn: Turn = field(default_factory=lambda: Turn(()))
    waiting: torch.Tensor | None = None  # scores [V] of what comes after a label, until all rows are there
    distributions: dict[str, Distribution] = field(default_factory=dict)

    @property
    def idle(self) -> bool:
        """Nothing is to be chosen for it now."""
        return self.done or bool(self.fresh) or self.waiting is not None


@dataclass(eq=False)
class _Decoder:
    model: Any
    family: Family
    vocabulary: Vocabulary
    ends: Collection[int]
    max_new_tokens: int
    constraint: Constraint | None
    estimate: Estimate | None = None
    fields: Sequence[Choices] = ()

    def __post_init__(self) -> None:
        self.switch = self.family.rope_switch(self.model.config) or math.inf
        self.together = is_fsdp_managed_module(self.model) and processes().num_processes > 1

    @torch.no_grad()
    def __call__(self, prompts: Sequence[list[int]], images: Sequence[Sequence[ImageInputs]]) -> list[Completion]:
        """Answer prompts of any lengths, each with its own images; all with pixels or all with features.

        Every process of a sharded model calls this with a batch of its own.
        """
        rows = [
            _Row(ids, own, None, turn=Turn(self.fields, self.switch))
            for ids, own in zip(prompts, images, strict=True)
        ]
        if self.constraint:
            for row in rows:
                row.matcher = self.constraint.start()
                self._take(row, self.constraint.forced(row.matcher))
        self._run(rows)
        return [self._completion(row) for row in rows]

    def _run(self, rows: Sequence[_Row]) -> None:
        batch, cache, mask = list(rows), None, torch.empty(0)
        while self._anyone(rows):
            alive = [row for row in batch if not row.done] or batch[:1]
            if all(row.waiting is not None for row in alive):
                self._grow(batch, cache, mask)
                continue
            if cache is None or any(self._crosses(row) for row in alive):
                batch, cache = alive, DynamicCache()
                logits, mask = self._feed(batch, [r.prompt + r.tokens for r in batch], cache, None)
            else:
                if 2 * len(alive) <= len(batch):
                    kept = [i for i, row in enumerate(batch) if row in alive]
                    cache.batch_select_indices(torch.tensor(kept, device=mask.device))
                    batch, mask = alive, mask[kept]
                # a step is as wide for all as its widest row: those with several tokens wait
                going = [row for row in alive if row.fresh]
                narrow = [row for row in going if len(row.fresh) == 1]
                fed = narrow if 8 * len(narrow) > len(going) else going
                logits, mask = self._feed(batch, [r.fresh if r in fed else [] for r in batch], cache, mask)
            self._choose(batch, logits)

    def _feed(
        self, batch: Sequence[_Row], ids: Sequence[list[int]], cache: DynamicCache, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores [B, V] of what comes after `ids`, and the mask [B, T] over all that is in the cache then."""
        width, device = max(1, *map(len, ids)), self.model.device
        fed = torch.tensor([[0] * (width - len(own)) + own for own in ids], device=device)  # [B, width]
        real = torch.tensor([[0] * (width - len(own)) + [1] * len(own) for own in ids], device=device)
        inputs = self.family.collate([image for row in batch for image in row.images]) if mask is None else {}
        images = {
            name: value.to(device, self.model.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }
        mask = real if mask is None else torch.cat([mask, real], dim=1)
        outputs = self.model(
            input_ids=fed, attention_mask=mask, past_key_values=cache, use_cache=True, logits_to_keep=1, **images
        )
        for row, own in zip(batch, ids, strict=True):
            row.steps += bool(own)
            row.fresh = [] if own else row.fresh
        return outputs.logits[:, -1].float(), mask

    def _choose(self, batch: Sequence[_Row], logits: torch.Tensor) -> None:
        logits[:, self.model.config.image_token_id] = -torch.inf
        for row, own in zip(batch, logits, strict=True):
            if not row.idle and row.turn.now(row.text, len(row.prompt) + len(row.tokens)):
                row.waiting = own
        if self.constraint:
            allowed = self.constraint.allowed([None if row.idle else row.matcher for row in batch])
            logits = logits.masked_fill(~torch.from_numpy(allowed).to(logits.device), -torch.inf)
        scores = logits.log_softmax(-1)
        best, tokens = scores.max(-1)
        for row, token, score in zip(batch, tokens.tolist(), best.tolist(), strict=True):
            if row.idle:
                continue
            forced = self.constraint.follow(row.matcher, token) if self.constraint else []
            self._take(row, [token, *forced], [score])

    def _grow(self, batch: Sequence[_Row], cache: Any, mask: torch.Tensor) -> None:
        """Write the values of all rows that wait, of the same field, out of their distributions."""
        assert self.estimate is not None
        waiting = {i: row.waiting for i, row in enumerate(batch) if row.waiting is not None}
        rows = [batch[i] for i in waiting]
        choices = self.fields[rows[0].turn.place]
        forest = Forest(choices, [row.matcher for row in rows], [choices.opened(row.text) or b"" for row in rows])
        grow_over_cache(self.model, forest, list(waiting), list(waiting.values()), cache, mask)
        for row, found in zip(rows, forest.found(self.estimate), strict=True):
            row.matcher.consume_tokens(list(found.tokens))
            self._take(row, found.tokens, found.log_probabilities)
            row.distributions[choices.spec.column] = found.distribution
            row.waiting = None

    def _take(self, row: _Row, tokens: Sequence[int], scores: Sequence[float] = ()) -> None:
        """Append tokens; the first of them were chosen with these scores."""
        row.tokens += tokens
        row.fresh += tokens
        row.log_probabilities += [*scores, *[0.0] * (len(tokens) - len(scores))]
        if self.fields:
            row.text += b"".join(map(self.vocabulary.piece, tokens))
        row.done = any(token in self.ends for token in tokens) or len(row.tokens) >= self.max_new_tokens

    def _crosses(self, row: _Row) -> bool:
        """Tell whether a row is about to use the factors beyond the switch over a cache that has the others."""
        length = len(row.prompt) + len(row.tokens)
        return length > self.switch >= length - len(row.fresh)

    def _anyone(self, rows: Sequence[_Row]) -> bool:
        """Tell whether any row goes on; with a sharded model in any process, as all must take part in each step."""
        alive = sum(not row.done for row in rows)
        if self.together:
            total: Any = reduce(torch.tensor(alive, device=self.model.device), "sum")
            alive = int(total)
        return alive > 0

    def _completion(self, row: _Row) -> Completion:
        end = next((i + 1 for i, token in enumerate(row.tokens) if token in self.ends), len(row.tokens))
        return Completion(
            pieces=tuple(map(self.vocabulary.piece, row.tokens[:end])),
            log_probabilities=tuple(row.log_probabilities[:end]),
            distributions=row.distributions,
            prompt_tokens=len(row.prompt),
            steps=max(0, row.steps - 1),
        )
