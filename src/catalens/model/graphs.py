"""Phi-3-Vision as graphs that run without torch: pictures, embeddings, and a decoder that is a plain Phi-3.

    pixel_values [1, C, 3, S, S], image_sizes [1, 2] -> image_features [N, H]     one picture
    input_ids [B, T], image_features [N, H]          -> inputs_embeds [B, T, H]

Shapes: B rows, T tokens, H hidden size, C crops of one picture, the global one first, S crop side, N tokens of
pictures, m embeddings along a crop's side, h x w crops, F features.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from transformers import Phi3Config

from .configuration import Phi3VConfig
from .modeling import Phi3VForCausalLM

Free = Mapping[str, Mapping[int, Any]]


@dataclass(frozen=True)
class Graph:
    """Module that can be exported, with example inputs by name and the dimensions in which they vary."""

    name: str
    module: nn.Module
    inputs: Mapping[str, torch.Tensor]
    output: str
    dynamic_shapes: Free


class VisionGraph(nn.Module):
    """Pixels of one picture and its HD size -> its embeddings, in operators that take any number of crops."""

    def __init__(self, model: Phi3VForCausalLM) -> None:
        super().__init__()
        self.embedding, self.crop_size = model.model.vision_embed_tokens, model.config.crop_size
        self.side = model.config.crop_grid

    def forward(self, pixel_values: torch.Tensor, image_sizes: torch.Tensor) -> torch.Tensor:
        """[1, C, 3, S, S], [1, 2] -> [N, H].

        Every token is looked up in one table: the embeddings of all crops, then `sub_GN`, then `glb_GN`.
        """
        side, embedding = self.side, self.embedding
        crops = embedding.crop_features(pixel_values[0])  # [C, m, m, F]
        features = crops.shape[-1]
        ends = [embedding.sub_GN.reshape(1, features), embedding.glb_GN.reshape(1, features)]
        table = torch.cat([crops.reshape(-1, features), *ends])
        down, across = image_sizes[0, 0] // self.crop_size, image_sizes[0, 1] // self.crop_size
        row_end = (down * across + 1) * side**2  # place of `sub_GN`
        columns = across * side
        count = (down * side * (columns + 1)).item()
        torch._check(count >= 2)
        row, column = _divide(torch.arange(count), columns + 1)
        crop_row, inner_row = _divide(row, side)
        crop_column, inner_column = _divide(torch.minimum(column, columns - 1), side)
        crop = 1 + crop_row * across + crop_column
        sub = torch.where(column == columns, row_end, (crop * side + inner_row) * side + inner_column)
        row, column = _divide(torch.arange(side * (side + 1)), side + 1)
        whole = torch.where(column == side, row_end, row * side + column)
        return embedding.img_projection(table[torch.cat([sub, (row_end + 1).reshape(1), whole])])


def _divide(number: torch.Tensor, divisor: torch.Tensor | int) -> tuple[torch.Tensor, torch.Tensor]:
    """Quotient and rest; the exporter breaks on `%`."""
    quotient = torch.div(number, divisor, rounding_mode="floor")
    return quotient, number - quotient * divisor


class EmbeddingGraph(nn.Module):
    """Token ids and embeddings of pictures -> embeddings of both; a slot is `image_token_id` or negative."""

    def __init__(self, model: Phi3VForCausalLM) -> None:
        super().__init__()
        self.embed_tokens, self.slot = model.model.embed_tokens, model.config.image_token_id

    def forward(self, input_ids: torch.Tensor, image_features: torch.Tensor) -> torch.Tensor:
        """[B, T], [N, H] -> [B, T, H]; without slots no picture is needed (N is 0)."""
        ids = input_ids.long()
        slots = (ids < 0) | (ids == self.slot)
        text = self.embed_tokens(torch.where(slots, 0, ids))
        count = image_features.shape[0]
        padded = torch.cat([image_features, image_features.new_zeros(1, image_features.shape[1])])  # where N is 0
        place = (slots.flatten().long().cumsum(0) - 1).view_as(ids)
        place = torch.minimum(torch.where(slots, place, count), torch.full_like(ids, count))
        return torch.where(slots[..., None], padded[place], text)


def picture_graphs(model: Phi3VForCausalLM) -> list[Graph]:
    """Make the graphs of the pictures and of the embeddings; ValueError where the model is of another family."""
    if not isinstance(model, Phi3VForCausalLM):
        raise ValueError(f"a {type(model).__name__} has no graphs: give a model of type {Phi3VConfig.model_type}")
    config, free = model.config, torch.export.Dim
    side, slot = config.crop_size, config.image_token_id
    pictures = {"pixel_values": torch.randn(1, 7, 3, side, side), "image_sizes": torch.tensor([[2 * side, 3 * side]])}
    ids = torch.tensor([[1, slot, slot, 1, 1]], dtype=torch.int32)
    texts = {"input_ids": ids, "image_features": torch.randn(2, config.hidden_size)}
    varying: list[Free] = [
        {"pixel_values": {1: free("crops", min=2)}, "image_sizes": {}},
        {"input_ids": {0: free.DYNAMIC, 1: free.DYNAMIC}, "image_features": {0: free("tokens", min=0)}},
    ]
    return [
        Graph("vision", VisionGraph(model).eval(), pictures, "image_features", varying[0]),
        Graph("embedding", EmbeddingGraph(model).eval(), texts, "inputs_embeds", varying[1]),
    ]


def plain_decoder(model: Phi3VForCausalLM) -> tuple[Phi3Config, dict[str, torch.Tensor]]:
    """Take the decoder out as a Phi-3 without pictures: its configuration and weights."""
    own, known = model.config.to_dict(), Phi3Config().to_dict()
    kept = {name: value for name, value in own.items() if name in known and not name.startswith("rope_")}
    kept |= {"architectures": ["Phi3ForCausalLM"], "model_type": "phi3"}
    config = Phi3Config(**kept, rope_parameters=dict(model.config.rope_parameters or {}))
    weights = {name: w for name, w in model.state_dict().items() if "vision_embed_tokens" not in name}
    return config, weights
