"""Model families: everything that the pipeline asks of a vision-language model, in one protocol.

    family = family_of("phi3_v")                                   a model's `config.model_type`
    image = family.encode_image(processor, photo)                  ImageInputs((672, 672), [5, 3, 336, 336])
    ids = family.token_ids(processor, family.chat("What is it?"), [image.hd_size])
    model(input_ids=..., **family.collate([image]))

A new family is one more class here and one more entry of `FAMILIES`.

Shapes: C tiles of an image, the whole image first; S side of a tile in pixels; m embeddings along a tile's side;
F features of an embedding; (H, W) size in pixels of what the tiles are cut from.
"""

# ruff: noqa: D102 - the methods of a family are documented in the protocol

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol

import torch
from PIL import Image
from torch import nn

from catalens.tiling import CLIP_MEAN, CLIP_STD, Chat, Size

from .attention import CAUSAL
from .configuration import Phi3VConfig
from .modeling import Phi3VForCausalLM, Phi3VModel, unused_parameter_names
from .processing import Phi3VImageProcessor, Phi3VProcessor, normalised_crops, raw_crops

Part = Literal["vision", "projector", "embeddings", "text"]
"""Group of a model's modules that is frozen, adapted or trained together."""


@dataclass(frozen=True)
class ImageInputs:
    """One image as a model takes it: its pixels, or in their place what the vision tower makes of them."""

    hd_size: Size
    """(H, W)."""
    pixels: torch.Tensor | None = None
    """As the family's model takes them, so that they travel as they are."""
    features: torch.Tensor | None = None
    """[C, m, m, F]."""


@dataclass(frozen=True)
class ModelSizes:
    """Widths and depths of a model, which decide over its cost."""

    layers: int
    hidden: int
    intermediate: int
    vocabulary: int
    tower_layers: int  # blocks of the vision tower that run
    tower_hidden: int
    tower_intermediate: int
    tower_weights: int  # all that are stored, norms and biases left out
    tile_positions: int  # of a tile in the tower: its patches and the class token
    tile_tokens: int  # embeddings of a tile
    projector_weights: int


class Family(Protocol):
    """Vision-language models of one architecture, with their processors.

    `image_tag` stands for the first image in a chat and `end_token` ends an answer; `chat_template` is the chat in
    Jinja; `whole_modules` can be trained in
    full beside adapters, each with its part; `full_precision` modules are not quantised; `layer_classes` are sharded
    one by one, and compiled; `training_attention` names the implementation to train with; `tables`, parts of names,
    are embeddings and heads, which are no matrices that transform. Processors load by `AutoProcessor` and have the
    family's `model_type`.

    chat: render a question about so many images, which stand before it, up to where the answer begins.
    hd_size: give the (H, W) of an image of `width` x `height` pixels, cut into `max_tiles`, or as the processor does;
        like the two below it takes None for the processor of the published model.
    limit_tiles: cut images into at most so many tiles from now on.
    num_tiles: count the tiles C of an image.
    image_tokens: count the tokens of an image.
    token_ids: tokenize a chat, with slots for images of these sizes.
    encode_image: cut an image into tiles.
    encode_features: run the vision tower on the pixels of images, cast to `dtype`; features come back on the CPU.
    normalised_pixels: normalise the pixels of images, [C, 3, S, S] of all of them.
    collate: batch images, all with pixels or all with features, as keyword arguments of the model.
    part_of: give the part of a parameter or module by its name, with or without the prefixes of wrappers.
    unused_parameter_names: list the parameters that never run.
    rope_switch: give the most positions before the factors of the rotary embedding, and all keys, change; else None.
    sizes: give the widths and depths of a configuration, or of the published model.
    """

    model_type: str
    model_class: Any
    image_tag: str
    end_token: str
    chat_template: str
    full_precision: Sequence[str]
    whole_modules: Mapping[str, Part]
    layer_classes: Sequence[str]
    training_attention: str
    tables: Collection[str]

    def chat(self, question: str, images: int = 1) -> str: ...
    def hd_size(self, processor: Any, width: int, height: int, max_tiles: int | None = None) -> Size: ...
    def limit_tiles(self, processor: Any, most: int) -> None: ...
    def num_tiles(self, processor: Any, hd_size: Size) -> int: ...
    def image_tokens(self, processor: Any, hd_size: Size) -> int: ...
    def token_ids(self, processor: Any, text: str, hd_sizes: Sequence[Size]) -> list[int]: ...
    def encode_image(self, processor: Any, image: Image.Image) -> ImageInputs: ...
    def encode_features(self, model: Any, images: Sequence[ImageInputs], dtype: torch.dtype) -> list[ImageInputs]: ...
    def normalised_pixels(self, images: Sequence[ImageInputs]) -> torch.Tensor: ...
    def collate(self, images: Sequence[ImageInputs]) -> dict[str, torch.Tensor]: ...
    def part_of(self, name: str) -> Part: ...
    def unused_parameter_names(self, model: nn.Module) -> list[str]: ...
    def rope_switch(self, config: Any) -> int | None: ...
    def sizes(self, config: Any = None) -> ModelSizes: ...


class Phi3V(Chat):
    """Phi-3-Vision and Phi-3.5-Vision."""

    model_type = Phi3VConfig.model_type
    model_class = Phi3VForCausalLM
    full_precision: Sequence[str] = ("lm_head", "model.vision_embed_tokens")
    layer_classes: Sequence[str] = ("Phi3DecoderLayer", "CLIPEncoderLayer")
    training_attention = CAUSAL
    tables: Collection[str] = frozenset({"embed_tokens", "lm_head", "position_embedding"})
    unused_parameter_names = staticmethod(unused_parameter_names)
    whole_modules: Mapping[str, Part] = {
        "model.embed_tokens": "embeddings",
        "lm_head": "embeddings",
        "model.vision_embed_tokens.img_projection": "projector",
        "model.vision_embed_tokens.img_processor": "vision",
    }

    def hd_size(self, processor: Phi3VProcessor, width: int, height: int, max_tiles: int | None = None) -> Size:
        return _images(processor).hd_size(width, height, max_tiles)

    def limit_tiles(self, processor: Phi3VProcessor, most: int) -> None:
        processor.image_processor.num_crops = most

    def num_tiles(self, processor: Phi3VProcessor, hd_size: Size) -> int:
        return 1 + hd_size[0] * hd_size[1] // _images(processor).crop_size ** 2

    def image_tokens(self, processor: Phi3VProcessor, hd_size: Size) -> int:
        return _images(processor).num_image_tokens(*hd_size)

    def token_ids(self, processor: Phi3VProcessor, text: str, hd_sizes: Sequence[Size]) -> list[int]:
        return processor.tokenize(text, hd_sizes)

    def encode_image(self, processor: Phi3VProcessor, image: Image.Image) -> ImageInputs:
        images = processor.image_processor
        if (*images.image_mean, *images.image_std) != (*CLIP_MEAN, *CLIP_STD):  # which the model normalises by
            encoded = images(image, return_tensors="pt")
            height, width = encoded["image_sizes"][0].tolist()
            return ImageInputs((height, width), encoded["pixel_values"])
        hd = images.cutter().hd_transform(image)
        return ImageInputs((hd.height, hd.width), raw_crops(hd, images.crop_size))

    @torch.no_grad()
    def encode_features(self, model: Any, images: Sequence[ImageInputs], dtype: torch.dtype) -> list[ImageInputs]:
        inner = next(module for module in model.modules() if isinstance(module, Phi3VModel))
        pixels = self._normalised(self.collate(images)["pixel_values"].to(inner.device), images)
        features = inner.vision_embed_tokens.crop_features(pixels.to(dtype)).cpu()
        own = features.split([1 + h * w for h, w in self._grids(images, pixels.shape[-1])])
        return [replace(image, pixels=None, features=f.clone()) for image, f in zip(images, own, strict=True)]

    def normalised_pixels(self, images: Sequence[ImageInputs]) -> torch.Tensor:
        return self._normalised(self.collate(images)["pixel_values"], images)

    def _normalised(self, pixels: torch.Tensor, images: Sequence[ImageInputs]) -> torch.Tensor:
        return (
            normalised_crops(pixels, self._grids(images, pixels.shape[-1])) if pixels.dtype == torch.uint8 else pixels
        )

    def _grids(self, images: Sequence[ImageInputs], side: int) -> list[tuple[int, int]]:
        return [(height // side, width // side) for height, width in (image.hd_size for image in images)]

    def collate(self, images: Sequence[ImageInputs]) -> dict[str, torch.Tensor]:
        parts = {
            "pixel_values": [image.pixels for image in images if image.pixels is not None],
            "crop_features": [image.features for image in images if image.features is not None],
        }
        return {
            "image_sizes": torch.tensor([image.hd_size for image in images]),
            **{name: torch.cat(values) for name, values in parts.items() if values},
        }

    def part_of(self, name: str) -> Part:
        if "vision_embed_tokens" in name:
            return "vision" if "img_processor" in name else "projector"
        return "embeddings" if {"embed_tokens", "lm_head"} & set(name.split(".")) else "text"

    def rope_switch(self, config: Phi3VConfig) -> int | None:
        rope: Any = config.rope_parameters
        return rope["original_max_position_embeddings"] if rope["rope_type"] == "longrope" else None

    def sizes(self, config: Phi3VConfig | None = None) -> ModelSizes:
        config = config or Phi3VConfig()
        vision: Any = config.vision_config
        h, g, positions = (
            vision.hidden_size,
            vision.intermediate_size,
            (config.crop_size // config.patch_size) ** 2 + 1,
        )
        return ModelSizes(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            vocabulary=config.vocab_size,
            tower_layers=vision.num_hidden_layers - 1,  # the last block is stored and never runs
            tower_hidden=h,
            tower_intermediate=g,
            tower_weights=vision.num_hidden_layers * (4 * h**2 + 2 * h * g)
            + (3 * config.patch_size**2 + positions) * h,
            tile_positions=positions,
            tile_tokens=config.crop_grid**2,
            projector_weights=config.feature_size * config.hidden_size + config.hidden_size**2,
        )


PUBLISHED = Phi3VImageProcessor()


def _images(processor: Phi3VProcessor | None) -> Phi3VImageProcessor:
    return processor.image_processor if processor else PUBLISHED


REFERENCE = Phi3V()
"""Family by which texts and costs are reckoned where no model is at hand."""
FAMILIES: tuple[Family, ...] = (REFERENCE,)


def family_of(model_type: str) -> Family:
    """Choose the family by a configuration's `model_type`; ValueError where there is none."""
    found = next((family for family in FAMILIES if family.model_type == model_type), None)
    if found is None:
        known = " or ".join(family.model_type for family in FAMILIES)
        raise ValueError(f"model_type is {model_type!r}: give a model of type {known}")
    return found
