"""Trees of values over the keys and values of a batch: each level is a pass of all rows, along the branches.

    slot     0 1 2 3 4 5   6 7   8 9 10
             prompt of the row   1 1 9      a level feeds the tokens that its branches have gained
                           1 9              each sees the row and the tokens before it in its branch

What a tree leaves in the slots behind its row is overwritten by the answer, as padding is. Shapes: B rows, W tokens
of a level, L slots, V vocabulary.
"""

from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from catalens.inference.steps import KeyValues, Pass
from catalens.inference.trees import QUANTILES, Branch, Forest


class Grower(Protocol):
    """Decoder in whose batch trees grow."""

    model: Any
    cache: KeyValues | None
    captured: bool
    levels: dict[tuple[int, int], "TreePass"]
    """Passes that were captured, by rows and tokens."""

    def see(self, need: int) -> None:
        """Let the next pass see so many slots."""
        ...


class TreePass(Pass):
    """Pass of a level of the trees of rows."""

    def __init__(self, model: Any, cache: KeyValues, rows: int, width: int, captured: bool = False) -> None:
        super().__init__(model, cache, rows, width, captured)
        empty = torch.zeros(3, rows, width, dtype=torch.long, device=model.device)
        self._ids, self._slots, self._positions = empty
        self._seen = torch.zeros(rows, 1, width, cache.visible, dtype=torch.bool, device=model.device)

    def load(self, ids: NDArray[Any], slots: NDArray[Any], positions: NDArray[Any], seen: NDArray[np.bool_]) -> None:
        """Take tokens with their slots and positions, [B, W], and the slots that each of them sees, [B, W, L]."""
        for own, given in ((self._ids, ids), (self._slots, slots), (self._positions, positions)):
            own.copy_(torch.from_numpy(given))
        self._seen.copy_(torch.from_numpy(seen)[:, None])

    def forward(self) -> torch.Tensor:
        """Give the scores [B, W, V] of what comes after each token."""
        self.cache.slots = self._slots
        return self.model(
            input_ids=self._ids,
            attention_mask=self._seen,
            position_ids=self._positions,
            past_key_values=self.cache,
            use_cache=True,
        ).logits


def grow(decoder: Grower, forest: Forest, rows: Sequence[int], fed: Sequence[int]) -> None:
    """Grow trees, which have begun, of some rows of a batch to their ends: after the tokens `fed` [B] of each row."""
    spent = 0  # slots that the levels before took of each row
    while forest.growing:
        fresh = forest.fresh()
        width = max(sum(len(one.tokens) - len(one.places) for one in branches) for branches in fresh)
        if decoder.captured:
            width = -(-width // QUANTILES) * QUANTILES
        decoder.see(max(fed) + spent + width)
        assert decoder.cache is not None
        known = decoder.levels.get((len(fed), width))
        if known is None:
            known = TreePass(decoder.model, decoder.cache, len(fed), width, decoder.captured)
        if decoder.captured:
            decoder.levels[len(fed), width] = known
        ends = _load(known, fresh, rows, np.array(fed), spent)
        logits, at = known.run(), torch.from_numpy(ends).to(decoder.model.device)

        def scores(branches: NDArray[np.intp], tokens: NDArray[np.intp]) -> NDArray[np.float32]:
            places = at[torch.from_numpy(branches)]  # noqa: B023
            picked = logits[places[:, 0], places[:, 1]]  # noqa: B023
            return picked[:, torch.from_numpy(tokens)].float().cpu().numpy()

        forest.grow(scores)
        spent += width


def _load(
    level: TreePass, fresh: Sequence[Sequence[Branch]], rows: Sequence[int], fed: NDArray[Any], spent: int
) -> NDArray[np.int64]:
    """Load the tokens that branches have gained; gives row and place of the last one of each branch."""
    batch, width = level.rows, level.width
    ids, depths = np.zeros((batch, width), np.int64), np.zeros((batch, width), np.int64)
    slots = np.repeat((fed + spent)[:, None], width, 1) + np.arange(width)
    seen = np.repeat((np.arange(level.cache.visible) < fed[:, None])[:, None], width, 1)
    ends = []
    for row, branches in zip(rows, fresh, strict=True):
        place = 0
        for branch in branches:
            places = list(branch.places)
            for depth in range(len(places), len(branch.tokens)):
                places.append(int(slots[row, place]))
                ids[row, place], depths[row, place] = branch.tokens[depth], depth
                seen[row, place, places] = True
                place += 1
            branch.places = tuple(places)
            ends.append((row, place - 1))
    level.load(ids, slots, fed[:, None] + depths, seen)
    return np.array(ends, np.int64)
