"""Keys and values that stand still, and passes through the model that a GPU can replay.

    slot    0 1 2 3 4 5 6 7 8
    row 0   p p p p p t t . .     five tokens of a prompt, two of its answer
    row 1   p p p t . . . . .

Shapes: B rows, W tokens that a pass takes of each, L slots, V vocabulary, h heads of d channels.
"""

import logging
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any

import torch
from accelerate.utils.memory import should_reduce_batch_size

from catalens.errors import first_line

logger = logging.getLogger(__name__)


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


@lru_cache
def _warn(reason: str) -> None:
    """Log each reason once: a pass of every shape has the same."""
    logger.warning("answers are the same and come later, since no CUDA graph could be captured: %s", reason)


class Pass(ABC):
    """One pass of W tokens of each of B rows through the model, over inputs that stand still: load them, then `run`.

    The model's attention is torch's, `sdpa`. `captured` records a CUDA graph in the first run, and replays it. Raises
    RuntimeError where memory does not suffice.
    """

    def __init__(self, model: Any, cache: KeyValues, rows: int, width: int, captured: bool = False) -> None:
        self.model, self.cache, self.rows, self.width, self.captured = model, cache, rows, width, captured
        self._graph: torch.cuda.CUDAGraph | None = None
        self._logits = torch.empty(0)

    @abstractmethod
    def forward(self) -> torch.Tensor:
        """Run the model on the inputs as they are."""

    def run(self) -> torch.Tensor:
        """Give the scores of what comes after the tokens."""
        if not self.captured:
            return self.forward()
        try:
            self._graph = self._graph or self._capture()
        except RuntimeError as error:
            if should_reduce_batch_size(error):
                raise
            self.captured = False  # some layers cannot be
            _warn(first_line(error))
            return self.forward()
        self._graph.replay()
        return self._logits

    def _capture(self) -> torch.cuda.CUDAGraph:
        """Record the pass, after two that warm up: all write the same."""
        side = torch.cuda.Stream()
        side.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(side):
            for _ in range(2):
                self.forward()
        torch.cuda.current_stream().wait_stream(side)
        graph = torch.cuda.CUDAGraph()
        # other threads may pin memory meanwhile; no two graphs of a cache run at once, so that they share theirs
        with torch.cuda.graph(graph, pool=self.cache.pool, capture_error_mode="thread_local"):
            self._logits = self.forward()
        self.cache.pool = graph.pool()
        return graph


class Step(Pass):
    """Pass of the next tokens of rows."""

    def __init__(self, model: Any, cache: KeyValues, rows: int, width: int, captured: bool = False) -> None:
        super().__init__(model, cache, rows, width, captured)
        self._inputs = torch.zeros(rows, width + 2, dtype=torch.long, device=model.device)
        self._masked = True

    def load(self, tokens: Sequence[Sequence[int]], starts: Sequence[int]) -> None:
        """Take the tokens of each row, at most W, and the position of the first of them."""
        rows = [
            [*own, *[0] * (self.width - len(own)), start, len(own)] for own, start in zip(tokens, starts, strict=True)
        ]
        everything_seen = self.width == 1 and min(starts) == self.cache.visible - 1
        self._masked = self.captured or not everything_seen
        pinned = self._inputs.device.type == "cuda"
        self._inputs.copy_(torch.tensor(rows, pin_memory=pinned), non_blocking=True)

    def forward(self) -> torch.Tensor:
        """Give the scores [B, V] of what comes after each row's last token."""
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


@contextmanager
def torch_attention(config: Any) -> Iterator[None]:
    """Leave the decoder's attention to torch, whose kernels take a mask of slots, and need none for prompts."""
    chosen = config._attn_implementation
    config._attn_implementation = {"": "sdpa"}  # of this one alone, not of the tower's
    try:
        yield
    finally:
        config._attn_implementation = {"": chosen}
