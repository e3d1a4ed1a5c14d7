"""Greedy decoding of a batch, with a KV cache, token by token or several at once where they are forced.

    prompt  <s> <|user|> <picture> ... <|assistant|> Product :      forced tokens are fed with the prompt
    step 1  Red                                                     chosen
    step 2  ,  Category :  B                                        ...
    step 5  A                -> A G S , Full Price : _              chosen, the rest forced: one step

A row's tokens do not depend on its neighbours: padding is masked, positions count a row's own tokens. In fp32 a batch
of another shape moves log probabilities by rounding errors, less than 1e-4; in bf16 by more, and now and then a token
with them. Where a row comes to the longrope crossing its batch is fed afresh, since keys in the cache carry the other
factors.

Shapes: B rows, T tokens, V vocabulary, C crops of a picture.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from accelerate.utils import reduce
from transformers import DynamicCache
from transformers.integrations.fsdp import is_fsdp_managed_module

from catalens.devices import processes
from catalens.inference.grammar import Constraint, Vocabulary


@dataclass(frozen=True)
class Written:
    """What was written about one picture."""

    pieces: tuple[bytes, ...] = ()
    """The tokens; the last one is `<|end|>` unless the answer was cut off."""
    log_probabilities: tuple[float, ...] = ()
    """Of each token among those that were allowed; 0 for a forced one."""
    prompt_tokens: int = 0
    steps: int = 0
    """Passes through the model after the prompt's."""
    error: str | None = None
    """Why nothing was written."""

    @property
    def text(self) -> str:
        """The answer."""
        return b"".join(self.pieces).decode("utf-8", errors="replace").lstrip()


@dataclass(eq=False)
class _Row:
    prompt: list[int]
    picture: Mapping[str, torch.Tensor]
    matcher: Any
    tokens: list[int] = field(default_factory=list)
    log_probabilities: list[float] = field(default_factory=list)
    fresh: list[int] = field(default_factory=list)  # not fed yet
    steps: int = 0
    done: bool = False

    @property
    def length(self) -> int:
        return len(self.prompt) + len(self.tokens)


def longrope_switch(config: Any) -> float:
    """Most tokens that a row may have before the rope factors change; infinite where they do not."""
    rope = config.rope_parameters
    return rope["original_max_position_embeddings"] if rope["rope_type"] == "longrope" else math.inf


def _fed_now(rows: Sequence[_Row]) -> Sequence[_Row]:
    """Rows of the next step; since it is as wide for all as its widest row, those with several tokens wait."""
    narrow = [row for row in rows if len(row.fresh) == 1 and not row.done]
    return narrow if 8 * len(narrow) > len(rows) else [row for row in rows if not row.done]


class Decoder:
    """Writes answers for the rows of one batch."""

    def __init__(
        self, model: Any, vocabulary: Vocabulary, ends: Sequence[int], longest: int, constraint: Constraint | None
    ) -> None:
        self.model, self.vocabulary, self.ends, self.constraint = model, vocabulary, set(ends), constraint
        self.longest = longest
        """Most tokens of an answer."""
        self.switch = longrope_switch(model.config)
        self.never: int = model.config.image_token_id
        self.together = is_fsdp_managed_module(model) and processes().num_processes > 1

    @torch.no_grad()
    def __call__(self, prompts: Sequence[list[int]], pictures: Sequence[Mapping[str, torch.Tensor]]) -> list[Written]:
        """Answers for prompts of any lengths, each with its one picture.

        A picture is `image_sizes` [1, 2] and `pixel_values` [C, 3, S, S] or `crop_features` [C, m, m, F]. Every
        process of a sharded model calls this with a batch of its own.
        """
        rows = [_Row(ids, seen, None) for ids, seen in zip(prompts, pictures, strict=True)]
        if self.constraint:
            for row in rows:
                row.matcher = self.constraint.start()
                self._take(row, self.constraint.forced(row.matcher))
        self._run(rows)
        return [self._written(row) for row in rows]

    def _run(self, rows: Sequence[_Row]) -> None:
        batch, cache, mask = list(rows), None, torch.empty(0)
        while self._anyone(rows):
            alive = [row for row in batch if not row.done] or batch[:1]
            if cache is None or self._crosses(alive):
                batch, cache = alive, DynamicCache()
                logits, mask = self._feed(batch, [r.prompt + r.tokens for r in batch], cache, None)
            else:
                if 2 * len(alive) <= len(batch):
                    kept = [i for i, row in enumerate(batch) if row in alive]
                    cache.batch_select_indices(torch.tensor(kept, device=mask.device))
                    batch, mask = alive, mask[kept]
                fed = _fed_now(alive)
                logits, mask = self._feed(batch, [r.fresh if r in fed else [] for r in batch], cache, mask)
            self._choose(batch, logits)

    def _feed(
        self, batch: Sequence[_Row], ids: Sequence[list[int]], cache: DynamicCache, mask: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Scores [B, V] of what comes after `ids`, and the mask [B, T] over all that is in the cache then."""
        width, device = max(1, *map(len, ids)), self.model.device
        fed = torch.tensor([[0] * (width - len(own)) + own for own in ids], device=device)  # [B, width]
        real = torch.tensor([[0] * (width - len(own)) + [1] * len(own) for own in ids], device=device)
        pictures: dict[str, torch.Tensor] = {}
        if mask is None:
            for name in batch[0].picture:
                whole = torch.cat([row.picture[name] for row in batch])
                pictures[name] = whole.to(device, self.model.dtype) if whole.is_floating_point() else whole.to(device)
        mask = real if mask is None else torch.cat([mask, real], dim=1)
        outputs = self.model(
            input_ids=fed,
            attention_mask=mask,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
            **pictures,
        )
        for row, own in zip(batch, ids, strict=True):
            row.steps += bool(own)
            row.fresh = [] if own else row.fresh
        return outputs.logits[:, -1].float(), mask

    def _choose(self, batch: Sequence[_Row], logits: torch.Tensor) -> None:
        """Give each row that goes on its next token, and those that must follow."""
        logits[:, self.never] = -torch.inf
        if self.constraint:
            allowed = self.constraint.allowed([None if row.done or row.fresh else row.matcher for row in batch])
            logits = logits.masked_fill(~allowed.to(logits.device), -torch.inf)
        scores = logits.log_softmax(-1)
        best, tokens = scores.max(-1)
        for row, token, score in zip(batch, tokens.tolist(), best.tolist(), strict=True):
            if row.done or row.fresh:
                continue
            forced = self.constraint.follow(row.matcher, token) if self.constraint else []
            self._take(row, [token, *forced], score)

    def _take(self, row: _Row, tokens: Sequence[int], score: float = 0.0) -> None:
        """Append tokens, of which the first was chosen with this score."""
        for place, token in enumerate(tokens):
            row.tokens.append(token)
            row.fresh.append(token)
            row.log_probabilities.append(0.0 if place else score)
        row.done = any(token in self.ends for token in tokens) or len(row.tokens) >= self.longest

    def _crosses(self, rows: Sequence[_Row]) -> bool:
        """Whether a row is about to use the factors beyond the switch over a cache that has the others."""
        return any(row.length > self.switch >= row.length - len(row.fresh) for row in rows)

    def _anyone(self, rows: Sequence[_Row]) -> bool:
        """Whether any row goes on; with a sharded model in any process, since all must take part in each step."""
        alive = sum(not row.done for row in rows)
        if self.together:
            total: Any = reduce(torch.tensor(alive, device=self.model.device), "sum")
            alive = int(total)
        return alive > 0

    def _written(self, row: _Row) -> Written:
        end = next((i + 1 for i, token in enumerate(row.tokens) if token in self.ends), len(row.tokens))
        return Written(
            pieces=tuple(map(self.vocabulary.piece, row.tokens[:end])),
            log_probabilities=tuple(row.log_probabilities[:end]),
            prompt_tokens=len(row.prompt),
            steps=max(0, row.steps - 1),
        )
