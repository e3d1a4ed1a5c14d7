"""Crops into picture embeddings: CLIP tower, HD layout, separators, projector.

    pixel_values [C, 3, S, S] -> CLIP, all but its last block -> 2x2 patches merged -> crops laid out as one
    image, rows closed by `sub_GN`, then `glb_GN`, then the global crop the same way -> projector

Shapes: N pictures, C crops of all pictures, S crop side in pixels, h x w crops of a picture, m embeddings
along a crop's side, F features of a merged patch (4 x CLIP hidden size), H hidden size of the text model.
"""

import torch
from torch import nn
from transformers import CLIPVisionModel

from .configuration import Phi3VConfig


class Phi3VTower(nn.Module):
    """The CLIP tower; its last block and final norm exist for the checkpoint's sake and never run."""

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__()
        self.vision_model = CLIPVisionModel(config.vision_config)  # pyright: ignore[reportArgumentType]

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Patch features [C, 2m, 2m, F/4] of crops [C, 3, S, S]: the layer before the last, without CLS."""
        tower = self.vision_model
        hidden = tower.pre_layrnorm(tower.embeddings(pixel_values))
        for layer in tower.encoder.layers[:-1]:
            hidden = layer(hidden, None)
        side = round((hidden.shape[1] - 1) ** 0.5)
        return hidden[:, 1:].unflatten(1, (side, side))


class Phi3VImageEmbedding(nn.Module):
    """Crops into picture embeddings in reading order: tower, HD layout, projector."""

    def __init__(self, config: Phi3VConfig) -> None:
        super().__init__()
        features = config.feature_size
        self.img_processor = Phi3VTower(config)
        self.glb_GN = nn.Parameter(torch.zeros(1, 1, features))
        self.sub_GN = nn.Parameter(torch.zeros(1, 1, 1, features))
        self.img_projection = nn.Sequential(
            nn.Linear(features, config.hidden_size),
            nn.GELU(),
            nn.Linear(config.hidden_size, config.hidden_size),
        )

    def crop_features(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """Tower features [C, m, m, F] of crops [C, 3, S, S], 2x2 patches merged; a frozen tower leaves no graph."""
        learns = pixel_values.requires_grad or any(p.requires_grad for p in self.img_processor.parameters())
        with torch.set_grad_enabled(learns and torch.is_grad_enabled()):
            features = self.img_processor(pixel_values)  # [C, 2m, 2m, F/4]
        features = features.unflatten(2, (-1, 2)).unflatten(1, (-1, 2))  # [C, m, 2, m, 2, F/4]
        return features.transpose(2, 3).flatten(3)  # [C, m, m, F]

    def forward(self, crop_features: torch.Tensor, grids: list[tuple[int, int]]) -> torch.Tensor:
        """Picture embeddings [picture tokens, H], all pictures one after the other.

        Args:
            crop_features: [C, m, m, F], each picture's global crop first.
            grids: (h, w) of each picture.
        """
        crop_features = crop_features.to(self.glb_GN.dtype)  # a weight that no quantizer touches
        pictures = list(crop_features.split([1 + h * w for h, w in grids]))
        laid_out = list(pictures)
        for grid in set(grids):  # pictures of one size are arranged in one go
            members = [i for i, own in enumerate(grids) if own == grid]
            together = self._arrange(torch.stack([pictures[i] for i in members]), *grid)
            for member, tokens in zip(members, together, strict=True):
                laid_out[member] = tokens
        return self.img_projection(torch.cat(laid_out))

    def _arrange(self, crops: torch.Tensor, h: int, w: int) -> torch.Tensor:
        """[n, 1 + h*w, m, m, F] -> [n, tokens of a picture, F]: crops, separator, global crop."""
        n, m = crops.shape[0], crops.shape[2]
        sub = crops[:, 1:].unflatten(1, (h, w)).transpose(2, 3)  # [n, h, m, w, m, F]
        sub = sub.reshape(n, h * m, w * m, -1)
        separator = self.glb_GN.flatten().expand(n, 1, -1)  # flat, its gradient lies as DDP wants it
        return torch.cat([self._end_rows(sub), separator, self._end_rows(crops[:, 0])], dim=1)

    def _end_rows(self, image: torch.Tensor) -> torch.Tensor:
        """[n, rows, columns, F] -> [n, rows * (columns + 1), F]: `sub_GN` closes every row."""
        ends = self.sub_GN.flatten().expand(*image.shape[:2], 1, -1)
        return torch.cat([image, ends], dim=2).flatten(1, 2)


def unused_parameter_names(model: nn.Module) -> list[str]:
    """Names of the parameters that never run: the last CLIP block and the norm after it.

    They are in every checkpoint and have no gradient; keep them out of optimizers, adapters and DDP.
    Works on a model that is wrapped (PEFT, DDP) as well.
    """
    dead = [
        part
        for name, module in model.named_modules()
        if isinstance(module, CLIPVisionModel)
        for part in (f"{name}.encoder.layers.{len(module.encoder.layers) - 1}.", f"{name}.post_layernorm.")
    ]
    return [name for name, _ in model.named_parameters() if name.startswith(tuple(dead))]


__all__ = ["Phi3VImageEmbedding", "unused_parameter_names"]
