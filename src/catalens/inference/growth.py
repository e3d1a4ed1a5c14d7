"""Trees of values over the KV cache of a batch: each level is one pass of all rows, by attention along the branches.

    cache  <s> <picture> ... Price :        1  1        a level feeds the tokens that its branches have gained;
    level 1                     1  9        each sees the cache of its row and the tokens before it in its branch
    level 2                     2  1  9

The batch's own cache is left as it is. Shapes: B rows, T tokens in the cache, N fed for the trees so far.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import DynamicCache

from catalens.inference.trees import Branch, Forest


def grow_over_cache(
    model: Any, forest: Forest, rows: Sequence[int], logits: Sequence[torch.Tensor], cache: Any, mask: torch.Tensor
) -> None:
    """Grow the trees of some `rows` of a batch to their ends.

    `logits` [V] of each of them are of what comes after its cache, `mask` [B, T] is 1 where the cache of a row holds
    a token. A token's position counts those that its row has, and its branch.
    """
    first = torch.stack(list(logits))
    forest.grow(lambda branches, tokens: first[branches][:, tokens].float().cpu().numpy())
    own, lengths, fed = _copy(cache), mask.sum(dim=1), 0
    seen = mask.bool()
    while forest.growing:
        level = _level(forest.fresh(), rows, len(mask), fed)
        width = level.ids.shape[1]
        along = torch.from_numpy(level.along).to(mask.device)  # [B, N, fed + N]
        whole = torch.cat([seen[:, None].expand(-1, width, -1), along], dim=2)[:, None]
        scores = model(
            input_ids=torch.from_numpy(level.ids).to(mask.device),
            attention_mask=whole,
            position_ids=lengths[:, None] + torch.from_numpy(level.depths).to(mask.device),
            past_key_values=own,
            use_cache=True,
        ).logits
        ends = torch.from_numpy(level.ends).to(mask.device)  # [branches, 2]

        def of(branches: NDArray[np.intp], tokens: NDArray[np.intp]) -> NDArray[np.float32]:
            places = ends[torch.from_numpy(branches)]  # noqa: B023
            picked = scores[places[:, 0], places[:, 1]]  # noqa: B023
            return picked[:, torch.from_numpy(tokens)].float().cpu().numpy()

        forest.grow(of)
        fed += width


class _Level:
    """Tokens that one pass feeds: `ids` and `depths` [B, N], and which of all that was fed each of them sees."""

    def __init__(self, batch: int, width: int, fed: int, branches: int) -> None:
        self.ids, self.depths = np.zeros((batch, width), np.int64), np.zeros((batch, width), np.int64)
        self.along = np.zeros((batch, width, fed + width), bool)
        self.ends = np.zeros((branches, 2), np.int64)
        """Row and place of the last token of each branch."""


def _level(fresh: Sequence[Sequence[Branch]], rows: Sequence[int], batch: int, fed: int) -> _Level:
    new = [sum(len(one.tokens) - len(one.places) for one in branches) for branches in fresh]
    level, count = _Level(batch, max(new), fed, sum(map(len, fresh))), 0
    for row, branches in zip(rows, fresh, strict=True):
        place = 0
        for branch in branches:
            places = list(branch.places)
            for depth in range(len(places), len(branch.tokens)):
                places.append(fed + place)
                level.ids[row, place], level.depths[row, place] = branch.tokens[depth], depth
                level.along[row, place, places] = True
                place += 1
            branch.places = tuple(places)
            level.ends[count] = row, place - 1
            count += 1
    return level


def _copy(cache: Any) -> DynamicCache:
    """Make a cache that goes on from another, whose tensors it shares."""
    copied = DynamicCache()
    for index, layer in enumerate(cache.layers):
        copied.update(layer.keys, layer.values, index)
    return copied
