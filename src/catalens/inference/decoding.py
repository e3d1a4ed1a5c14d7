"""Greedy decoding of a batch, over keys and values that stand still.

    slot    0 1 2 3 4 5 6 7 8
    row 0   p p p p p t t . .     five tokens of a prompt, two of its answer
    row 1   p p p t . . . . .

The token at position n of a row has its key in slot n, so that it may see the slots up to its own, and no other mask
is needed. Prompts are padded on the right, and so is a step in which rows take several tokens at once: what padding
leaves in the slots behind a row is overwritten before a token sees it. A row that waits, or is done, takes padding.

Nothing moves in memory and shapes are few, so that on a GPU a step is captured once, as a CUDA graph, and replayed:
from Python its hundreds of kernels take several times as long. Elsewhere the same step just runs.

Shapes: B rows, W tokens that a step takes of each, L slots, V vocabulary, h heads of d channels.
"""

import math
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import reduce
from accelerate.utils.memory import should_reduce_batch_size
from transformers.integrations.fsdp import is_fsdp_managed_module

from catalens.devices import processes
from catalens.inference.grammar import Constraint, Vocabulary
from catalens.inference.records import Completion
from catalens.model import Family, ImageInputs

WIDE = 8
"""Tokens that a captured step takes of a row that has several."""
ROUND = 64
"""Slots are a multiple of it, so that batches of nearly the same length share their graphs."""
SPARE = 1.25
"""Most slots for each that is needed, where the cache of another batch is used again: all of them are read."""


class KeyValues:
    """Keys and values of each layer, [rows, h, L, d], written in place; transformers takes it for its cache.

    While `slots` is None a prompt is fed, else one step whose tokens go into `slots` [B, W] and see `visible` slots.
    """

    def __init__(self, rows: int, length: int) -> None:
        self.rows, self.length, self.visible = rows, length, length
        self.slots: torch.Tensor | None = None
        self.pool: Any = None
        """Memory of the graphs that write here."""
        self._layers: list[tuple[torch.Tensor, torch.Tensor]] = []

    @property
    def nbytes(self) -> int:
        """Bytes of all layers."""
        return sum(tensor.nbytes for layer in self._layers for tensor in layer)

    def update(
        self, keys: torch.Tensor, values: torch.Tensor, layer: int, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Write [B, h, W, d] of a layer and give all that its tokens may see; of a prompt that is itself."""
        if layer == len(self._layers):  # zeros: what is masked may be anything but no number
            empty = [new.new_zeros(self.rows, new.shape[1], self.length, new.shape[-1]) for new in (keys, values)]
            self._layers.append((empty[0], empty[1]))
        rows, kept = len(keys), self._layers[layer]
        if self.slots is None:
            for old, new in zip(kept, (keys, values), strict=True):
                old[:rows, :, : new.shape[2]] = new
            return keys, values
        for old, new in zip(kept, (keys, values), strict=True):
            old[:rows].scatter_(2, self.slots[:, None, :, None].expand_as(new), new)
        return kept[0][:rows, :, : self.visible], kept[1][:rows, :, : self.visible]

    def select(self, rows: Sequence[int]) -> None:
        """Put these rows first, in this order; a row may be taken more than once."""
        for layer in self._layers:
            for tensor in layer:
                index = torch.tensor(rows, device=tensor.device)
                tensor[: len(rows)] = tensor[index]

    def grow(self, length: int) -> None:
        """Make room for more tokens of each row."""
        for number, layer in enumerate(self._layers):
            wider = [tensor.new_zeros((*tensor.shape[:2], length, tensor.shape[-1])) for tensor in layer]
            for old, new in zip(layer, wider, strict=True):
                new[:, :, : self.length] = old
            self._layers[number] = (wider[0], wider[1])
        self.length = self.visible = length
        self.pool = None  # the graphs are of no use any more, and it goes with them

    # What transformers' models ask of a cache

    def get_seq_length(self, layer: int = 0) -> int:
        """Tell, as a number, whether a prompt has been fed."""
        return int(self.slots is not None)

    def get_query_offset(self, layer: int = 0) -> int:
        """Place of the first token that is fed: of a prompt, or the only one of a step without a mask."""
        return 0 if self.slots is None else self.visible - 1

    def get_mask_sizes(self, query_length: int, layer: int = 0) -> tuple[int, int]:
        """Number of keys that are seen, and the place of the first."""
        return query_length if self.slots is None else self.visible, 0


class Step:
    """One pass of W tokens of each of B rows through the model, in place: `load`, then `run`.

    The model's attention is torch's, `sdpa`. `captured` records a CUDA graph in the first run, and replays it. Raises
    RuntimeError where memory does not suffice.
    """

    def __init__(self, model: Any, cache: KeyValues, rows: int, width: int, captured: bool = False) -> None:
        self.model, self.cache, self.rows, self.width, self.captured = model, cache, rows, width, captured
        self._inputs = torch.zeros(rows, width + 2, dtype=torch.long, device=model.device)
        self._masked = True
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits = torch.empty(0)

    def load(self, tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> None:
        """Take the tokens of each row, at most W, and the position of the first of them."""
        rows = [
            [*own, *[0] * (self.width - len(own)), start, len(own)] for own, start in zip(tokens, starts, strict=True)
        ]
        everything_seen = self.width == 1 and min(starts) == self.cache.visible - 1
        self._masked = self.captured or not everything_seen
        pinned = self._inputs.device.type == "cuda"
        self._inputs.copy_(torch.tensor(rows, pin_memory=pinned), non_blocking=True)

    def run(self) -> torch.Tensor:
        """Give the scores [B, V] of what comes after each row's last token."""
        if not self.captured:
            return self._pass()
        try:
            self._graph = self._graph or self._capture()
        except RuntimeError as error:
            if should_reduce_batch_size(error):
                raise
            self.captured = False  # some layers cannot be: the answers are the same, later
            return self._pass()
        self._graph.replay()
        return self._logits

    def _pass(self) -> torch.Tensor:
        device, cache = self._inputs.device, self.cache
        ids, start, count = self._inputs[:, : self.width], self._inputs[:, -2:-1], self._inputs[:, -1:]
        slots = start + torch.arange(self.width, device=device)  # [B, W]
        seen = None
        if self._masked:
            seen = torch.arange(cache.visible, device=device) <= slots[:, None, :, None]  # [B, 1, W, L]
        cache.slots = slots
        logits = self.model(
            input_ids=ids,
            attention_mask=seen,
            position_ids=torch.minimum(slots, start + count - 1),  # padding may not reach the longrope switch
            past_key_values=cache,
            use_cache=True,
        ).logits  # [B, W, V]
        last = (count - 1).clamp(min=0)[..., None].expand(-1, -1, logits.shape[-1])  # [B, 1, V]
        return logits.gather(1, last)[:, 0].float()

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Record the pass, after two that warm up: all write the same."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self._pass()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # other threads may pin memory meanwhile; no two graphs of a cache run at once, so that they share theirs
        with torch.cuda.graph(graph, pool=self.cache.pool, capture_error_mode="thread_local"):
            self._logits = self._pass()
        self.cache.pool = graph.pool()
        return graph


@contextmanager
def _torch_attention(config: Any) -> Iterator[None]:
    """Leave the decoder's attention to torch, whose kernels take a mask of slots, and need none for prompts."""
    chosen = config._attn_implementation
    config._attn_implementation = {"": "sdpa"}  # of this one alone, not of the tower's
    try:
        yield
    finally:
        config._attn_implementation = {"": chosen}


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

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.tokens)

    @property
    def fresh(self) -> list[int]:
        """Tokens that are not fed yet; after the prompt is, they are the last ones of the answer."""
        return self.tokens[self.fed - len(self.prompt) :] if self.fed else [*self.prompt, *self.tokens]

    @property
    def waits(self) -> bool:
        """Nothing is chosen for it: it is done, or is still to be fed."""
        return self.done or self.fed < self.length


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

    def __post_init__(self) -> None:
        self.switch = self.family.rope_switch(self.model.config) or math.inf
        self.sharded = is_fsdp_managed_module(self.model)  # its passes talk to other processes
        self.captured = self.model.device.type == "cuda" and not self.sharded
        self.cache: KeyValues | None = None
        self._steps: dict[tuple[int, int], Step] = {}

    def release(self) -> None:
        """Give the memory back."""
        self.cache = None
        self._steps = {}

    @torch.no_grad()
    def __call__(self, prompts: Sequence[list[int]], images: Sequence[Sequence[ImageInputs]]) -> list[Completion]:
        """Answer prompts of any lengths, each with its own images; all with pixels or all with features.

        Every process of a sharded model calls this with a batch of its own.
        """
        rows = [_Row(ids, own, None) for ids, own in zip(prompts, images, strict=True)]
        if self.constraint:
            for row in rows:
                row.matcher = self.constraint.start()
                self._take(row, self.constraint.forced(row.matcher))
        with _torch_attention(self.model.config):
            self._write(rows)
        return [self._completion(row) for row in rows]

    def _write(self, rows: list[_Row]) -> None:
        batch, fed = rows, False
        while self._anyone(rows):
            alive = [row for row in batch if not row.done] or batch[:1]
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
        cache = self._cache(len(batch), width + self.reserve)
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
        going = [row for row in alive if not row.done]
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
        need = max(starts) + width
        if need > self.cache.length:
            self._steps = {}
            self.cache.grow(_rounded(need + self.reserve))
        self.cache.visible = self.cache.length if self.captured else need
        step = self._steps.get((len(batch), width)) or Step(self.model, self.cache, len(batch), width, self.captured)
        if self.captured:
            self._steps[len(batch), width] = step
        step.load(tokens, starts)
        logits = step.run()
        for row, own in zip(batch, tokens, strict=True):
            row.fed += len(own)
            row.steps += bool(own)
        return logits

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
        if self.constraint:
            matchers = [None if row.waits else row.matcher for row in batch]
            logits = logits.masked_fill(~self._allowed(self.constraint, matchers, logits.shape[-1]), -torch.inf)
        best, tokens = logits.log_softmax(-1).max(-1)
        chosen = torch.stack([best.double(), tokens.double()]).tolist()
        for row, score, token in zip(batch, *chosen, strict=True):
            if not row.waits:
                more = self.constraint.follow(row.matcher, int(token)) if self.constraint else []
                self._take(row, [int(token), *more], score)

    def _allowed(self, constraint: Constraint, matchers: Sequence[Any], size: int) -> torch.Tensor:
        """Mask [B, V] of the tokens that may come next, sent to the device as bits."""
        device, words = self.model.device, (size + 31) // 32
        bits = torch.empty(len(matchers), words, dtype=torch.int32, pin_memory=device.type == "cuda")
        constraint.fill(matchers, bits.numpy())
        bits = bits.to(device, non_blocking=True)[..., None] >> torch.arange(32, device=device)
        return (bits & 1).flatten(1)[:, :size].bool()

    def _take(self, row: _Row, tokens: Sequence[int], score: float = 0.0) -> None:
        """Append tokens, of which the first was chosen with this score."""
        row.tokens += tokens
        row.log_probabilities += [score, *[0.0] * len(tokens)][: len(tokens)]
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
            prompt_tokens=len(row.prompt),
            steps=max(0, row.steps - 1),
        )


def _rounded(length: int) -> int:
    return -(-length // ROUND) * ROUND
