"""Greedy decoding of a batch, over keys and values that stand still.

    slot    0 1 2 3 4 5 6 7 8
    row 0   p p p p p t t . .     five tokens of a prompt, two of its answer
    row 1   p p p t . . . . .

The token at position n of a row has its key in slot n, so that it may see the slots up to its own, and no other mask
is needed. Prompts are padded on the right, and so is a step in which rows take several tokens at once: what padding
leaves in the slots behind a row is overwritten before a token sees it. A row that waits, or is done, takes padding.

Nothing moves in memory and shapes are few, so that on a GPU a step is captured once, as a CUDA graph, and replayed
(`steps.py`): from Python its hundreds of kernels take several times as long. Elsewhere the same step just runs.

Rows whose next value grows on a tree (`trees.py`) wait until all that go on are there, or done: they grow together.

Shapes: B rows, W tokens that a step takes of each, L slots, V vocabulary, h heads of d channels.
"""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import reduce
from transformers.integrations.fsdp import is_fsdp_managed_module

from catalens.devices import processes
from catalens.distributions import Distribution, Estimate
from catalens.inference.grammar import Constraint, Vocabulary
from catalens.inference.growth import TreePass, grow
from catalens.inference.records import Completion
from catalens.inference.steps import KeyValues, Step, torch_attention
from catalens.inference.trees import Choices, Forest, Turn
from catalens.model import Family, ImageInputs

WIDE = 8
"""Tokens that a captured step takes of a row that has several."""
TREE = 192
"""Slots that most trees take: they are kept free behind a row, lest the cache grows in every batch."""
ROUND = 64
"""Slots are a multiple of it, so that batches of nearly the same length share their graphs."""
SPARE = 1.25
"""Most slots for each that is needed, where the cache of another batch is used again: all of them are read."""


@dataclass(eq=False)
class _Row:
    prompt: list[int]
    images: Sequence[ImageInputs]
    matcher: Any
    tokens: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    fed: int = 0  # tokens of prompt and answer that are in the cache
    steps: int = 0
    done: bool = False
    turn: Turn = field(default_factory=lambda: Turn(()))
    written: bytes = b""  # the answer so far, where there are fields that grow on trees
    scores: torch.Tensor | None = None  # [V], of what comes after a label, while it waits for its tree
    distributions: dict[str, Distribution] = field(default_factory=dict)

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.tokens)

    @property
    def fresh(self) -> list[int]:
        """Tokens that are not fed yet; after the prompt is, they are the last ones of the answer."""
        return self.tokens[self.fed - len(self.prompt) :] if self.fed else [*self.prompt, *self.tokens]

    @property
    def waits(self) -> bool:
        """Nothing is chosen for it: it is done, is still to be fed, or its tree is to grow."""
        return self.done or self.fed < self.length or self.scores is not None


@dataclass(eq=False)
class Decoder:
    """Writer of answers to prompts, with the cache and the steps of its last batch.

    A row has room for `reserve` tokens of an answer at first; the cache grows where one is longer.
    """

    model: Any
    family: Family
    vocabulary: Vocabulary
    ends: Collection[int]
    max_new_tokens: int
    reserve: int
    constraint: Constraint | None
    fields: Sequence[Choices] = ()
    """Those whose values grow on trees; none of a sharded model, whose processes take the same passes."""
    estimate: Estimate = "median"

    def __post_init__(self) -> None:
        self.switch = self.family.rope_switch(self.model.config) or math.inf
        self.sharded = is_fsdp_managed_module(self.model)  # its passes talk to other processes
        self.captured = self.model.device.type == "cuda" and not self.sharded
        self.cache: KeyValues | None = None
        self._steps: dict[tuple[int, int], Step] = {}
        self.levels: dict[tuple[int, int], TreePass] = {}
        """Passes of trees."""

    def release(self) -> None:
        """Give the memory back."""
        self.cache = None
        self._steps, self.levels = {}, {}

    @torch.no_grad()
    def __call__(self, prompts: Sequence[list[int]], images: Sequence[Sequence[ImageInputs]]) -> list[Completion]:
        """Answer prompts of any lengths, each with its own images; all with pixels or all with features.

        Every process of a sharded model calls this with a batch of its own.
        """
        pairs = zip(prompts, images, strict=True)
        rows = [_Row(ids, own, None, turn=Turn(self.fields, self.switch)) for ids, own in pairs]
        if self.constraint:
            for row in rows:
                row.matcher = self.constraint.start()
                self._take(row, self.constraint.forced(row.matcher))
        with torch_attention(self.model.config):
            self._write(rows)
        return [self._completion(row) for row in rows]

    def _write(self, rows: list[_Row]) -> None:
        batch, fed = rows, False
        while self._anyone(rows):
            alive = [row for row in batch if not row.done] or batch[:1]
            if all(row.scores is not None for row in alive):
                self._grow(batch, alive)
                continue
            if not fed or any(self._crosses(row) for row in alive):
                batch, fed = alive, True
                logits = self._prefill(batch)
            else:
                batch = self._compacted(batch, alive)
                logits = self._step(batch, self._turn(alive))
            self._choose(batch, logits)

    def _prefill(self, batch: Sequence[_Row]) -> torch.Tensor:
        """Feed everything of rows anew; scores [B, V] of what comes next."""
        device, width = self.model.device, max(row.length for row in batch)
        cache = self._cache(len(batch), width + self.reserve + (TREE if self.fields else 0))
        ids = torch.tensor([row.prompt + row.tokens + [0] * (width - row.length) for row in batch], device=device)
        last = [row.length - 1 for row in batch]
        ends = sorted(set(last))
        places = torch.tensor([ends.index(place) for place in last], device=device)
        inputs = self.family.collate([image for row in batch for image in row.images])
        images = {
            name: value.to(device, self.model.dtype if value.is_floating_point() else None)
            for name, value in inputs.items()
        }
        cache.slots = None
        logits = self.model(
            input_ids=ids,
            position_ids=torch.minimum(
                torch.arange(width, device=device), torch.tensor(last, device=device)[:, None]
            ),
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=torch.tensor(ends, device=device),
            **images,
        ).logits  # [B, different lengths, V]
        for row in batch:
            row.fed = row.length
            row.steps += 1
        return logits[torch.arange(len(batch), device=device), places].float()

    def _cache(self, rows: int, length: int) -> KeyValues:
        """Give the cache of the batch before, or a new one where that has no room, or too much."""
        known = self.cache
        if known is None or rows > known.rows or not length <= known.length <= SPARE * length + ROUND:
            self.release()
            self.cache = known = KeyValues(rows, _rounded(length))
        return known

    def _turn(self, alive: Sequence[_Row]) -> list[_Row]:
        """Choose the rows that are fed: a step is as wide for all as for its widest, so those with several tokens
        wait until they are most."""
        going = [row for row in alive if not row.done and row.scores is None]
        narrow = [row for row in going if row.length - row.fed == 1]
        return narrow if 8 * len(narrow) > len(going) else going

    def _step(self, batch: Sequence[_Row], fed: Sequence[_Row]) -> torch.Tensor:
        """Feed tokens of some rows of the batch; scores [B, V] of what comes next, where a row does not wait."""
        assert self.cache is not None
        width = max((row.length - row.fed for row in fed), default=1)
        if self.captured:
            width = WIDE if width > 1 else 1
        turn = set(map(id, fed))
        tokens = [row.fresh[:width] if id(row) in turn else [] for row in batch]
        starts = [row.fed for row in batch]
        self.see(max(starts) + width)
        step = self._steps.get((len(batch), width)) or Step(self.model, self.cache, len(batch), width, self.captured)
        if self.captured:
            self._steps[len(batch), width] = step
        step.load(tokens, starts)
        logits = step.run()
        for row, own in zip(batch, tokens, strict=True):
            row.fed += len(own)
            row.steps += bool(own)
        return logits

    def see(self, need: int) -> None:
        """Let the next pass see so many slots, or all where it is captured, and make room for them."""
        assert self.cache is not None
        if need > self.cache.length:
            self._steps, self.levels = {}, {}
            self.cache.grow(_rounded(need + self.reserve))
        self.cache.visible = self.cache.length if self.captured else need

    def _grow(self, batch: Sequence[_Row], waiting: Sequence[_Row]) -> None:
        """Write the values of rows that wait for the same field out of their distributions."""
        assert self.cache is not None
        choices = self.fields[waiting[0].turn.place]
        texts = [row.written[row.turn.at :] for row in waiting]
        forest = Forest(choices, [row.matcher for row in waiting], texts)
        first = torch.stack([row.scores for row in waiting if row.scores is not None])
        forest.grow(lambda branches, tokens: first[branches][:, tokens].cpu().numpy())
        places = [batch.index(row) for row in waiting]
        grow(self, forest, places, [row.fed for row in batch])
        for row, found in zip(waiting, forest.found(self.estimate), strict=True):
            row.matcher.consume_tokens(list(found.tokens))
            row.scores = None
            row.distributions[choices.spec.column] = found.distribution
            self._take(row, found.tokens, found.log_probabilities)

    def _compacted(self, batch: list[_Row], alive: Sequence[_Row]) -> list[_Row]:
        """Leave rows that are done out of the batch where they are half of it; captured steps are of few sizes."""
        assert self.cache is not None
        if 2 * len(alive) > len(batch):
            return batch
        size = 1 << (len(alive) - 1).bit_length() if self.captured else len(alive)
        done = [row for row in batch if row.done and row not in alive]
        kept = [*alive, *done[: size - len(alive)]]
        self.cache.select([batch.index(row) for row in kept])
        return kept

    def _choose(self, batch: Sequence[_Row], logits: torch.Tensor) -> None:
        """Take the likeliest allowed token of each row that does not wait; masks are made while the device works."""
        logits[:, self.model.config.image_token_id] = -torch.inf
        for row, own in zip(batch, logits, strict=True):
            if not row.waits and row.turn.now(row.written, row.length):
                row.scores = own.clone()  # a captured step writes there again
        if self.constraint:
            matchers = [None if row.waits else row.matcher for row in batch]
            logits = logits.masked_fill(~self._allowed(self.constraint, matchers, logits.shape[-1]), -torch.inf)
        best, tokens = logits.log_softmax(-1).max(-1)
        chosen = torch.stack([best.double(), tokens.double()]).tolist()
        for row, score, token in zip(batch, *chosen, strict=True):
            if not row.waits:
                more = self.constraint.follow(row.matcher, int(token)) if self.constraint else []
                self._take(row, [int(token), *more], [score])

    def _allowed(self, constraint: Constraint, matchers: Sequence[Any], size: int) -> torch.Tensor:
        """Mask [B, V] of the tokens that may come next, sent to the device as bits."""
        device, words = self.model.device, (size + 31) // 32
        bits = torch.empty(len(matchers), words, dtype=torch.int32, pin_memory=device.type == "cuda")
        constraint.fill(matchers, bits.numpy())
        bits = bits.to(device, non_blocking=True)[..., None] >> torch.arange(32, device=device)
        return (bits & 1).flatten(1)[:, :size].bool()

    def _take(self, row: _Row, tokens: Sequence[int], scores: Sequence[float] = ()) -> None:
        """Append tokens, of which the first were chosen with these scores."""
        row.tokens += tokens
        row.log_probabilities += [*scores, *[0.0] * (len(tokens) - len(scores))]
        if self.fields:
            row.written += b"".join(map(self.vocabulary.piece, tokens))
        row.done = any(token in self.ends for token in tokens) or len(row.tokens) >= self.max_new_tokens

    def _crosses(self, row: _Row) -> bool:
        """Tell whether a row is about to use the factors beyond the switch over a cache that has the others."""
        return row.length > self.switch >= row.fed

    def _anyone(self, rows: Sequence[_Row]) -> bool:
        """Tell whether any row goes on; with a sharded model in any process, as all must take part in each step."""
        alive = sum(not row.done for row in rows)
        if self.sharded and processes().num_processes > 1:
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


def _rounded(length: int) -> int:
    return -(-length // ROUND) * ROUND
