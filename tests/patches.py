"""A family from outside: another small vision model, as somebody would add it in one file.

    monkeypatch.setattr("catalens.model.family.FAMILIES", (*FAMILIES, Patches()))
    save_patches(folder)      a model with random weights that `catalens train` takes by `model: folder`

Every image is one tile of 16 x 16 pixels in four patches; a linear layer sees a patch, another maps it to the
decoder, which is a Llama. An answer ends where any text of its tokenizer does.
"""

from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn
from transformers import (
    AutoImageProcessor,
    AutoProcessor,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)
from transformers.image_processing_utils import BaseImageProcessor
from transformers.processing_utils import ProcessorMixin

from catalens.checkpoint import load_processor
from catalens.model import ImageInputs, ModelSizes

SIDE, PATCHES, WIDTH = 16, 4, 32
SLOT = "<|image|>"


class PatchesConfig(LlamaConfig):
    model_type = "patches"
    image_token_id: int = 0


class PatchesImageProcessor(BaseImageProcessor):
    """Nothing to configure."""


class PatchesProcessor(ProcessorMixin):
    model_type = "patches"

    def __init__(self, image_processor: Any = None, tokenizer: Any = None, **kwargs: Any) -> None:
        super().__init__(image_processor, tokenizer, **kwargs)

    @classmethod
    def _load_tokenizer_from_pretrained(cls, kind: str, name: Any, subfolder: str = "", **kwargs: Any) -> Any:
        kwargs.pop("_from_auto", None)
        return PreTrainedTokenizerFast.from_pretrained(name, **kwargs)


class PatchesForCausalLM(LlamaForCausalLM):
    config_class = PatchesConfig

    def __init__(self, config: PatchesConfig) -> None:
        super().__init__(config)
        self.eye = nn.Linear(3 * (SIDE // 2) ** 2, WIDTH)
        self.bridge = nn.Linear(WIDTH, config.hidden_size)
        self.post_init()

    def see(self, tiles: torch.Tensor) -> torch.Tensor:
        """Features [C, 2, 2, F] of tiles [C, 3, S, S]."""
        half = SIDE // 2
        patches = tiles.unflatten(3, (2, half)).unflatten(2, (2, half)).permute(0, 2, 4, 1, 3, 5)
        return self.eye(patches.flatten(3))

    def forward(  # type: ignore[override]
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        tiles: torch.Tensor | None = None,
        seen: torch.Tensor | None = None,
        inputs_embeds: None = None,
        **kwargs: Any,
    ) -> Any:
        embeds = self.model.embed_tokens(input_ids)
        if tiles is not None or seen is not None:
            slots = (input_ids == self.config.image_token_id)[..., None]
            seen = self.see(tiles.to(embeds.dtype)) if tiles is not None else seen
            embeds = embeds.masked_scatter(slots, self.bridge(seen.to(embeds.dtype)).to(embeds.dtype))
        if position_ids is None and attention_mask is not None:
            position_ids = (attention_mask.cumsum(-1) - 1).clamp(min=0)[:, -input_ids.shape[1] :]
        return super().forward(
            inputs_embeds=embeds, attention_mask=attention_mask, position_ids=position_ids, **kwargs
        )


AutoImageProcessor.register(PatchesConfig, image_processor_classes={"pil": PatchesImageProcessor})
AutoProcessor.register(PatchesConfig, PatchesProcessor)


class Patches:
    model_type = "patches"
    model_class = PatchesForCausalLM
    image_tag = "<picture>"
    end_token = "<|endoftext|>"
    full_precision = ("lm_head", "eye", "bridge")
    whole_modules = MappingProxyType(
        {"model.embed_tokens": "embeddings", "lm_head": "embeddings", "bridge": "projector"}
    )
    layer_classes = ("LlamaDecoderLayer",)
    training_attention = "sdpa"
    tables = frozenset({"embed_tokens", "lm_head"})

    def chat(self, question, images=1):
        return f"{self.image_tag}{question}<|assistant|>"

    def hd_size(self, processor, width, height, max_tiles=None):
        return SIDE, SIDE

    def limit_tiles(self, processor, most):
        pass

    def num_tiles(self, processor, hd_size):
        return 1

    def image_tokens(self, processor, hd_size):
        return PATCHES

    def token_ids(self, processor, text, hd_sizes):
        tokenizer = processor.tokenizer
        before, _, after = text.partition(self.image_tag)
        slots = [tokenizer.convert_tokens_to_ids(SLOT)] * PATCHES * len(hd_sizes)
        return [*tokenizer(before)["input_ids"], *slots, *tokenizer(after)["input_ids"]]

    def encode_image(self, processor, image):
        pixels = np.asarray(image.resize((SIDE, SIDE), Image.Resampling.BILINEAR), np.float32) / 127.5 - 1
        return ImageInputs((SIDE, SIDE), torch.from_numpy(pixels).permute(2, 0, 1)[None])

    @torch.no_grad()
    def encode_features(self, model, images, dtype):
        seen = model.see(self.collate(images)["tiles"].to(model.device, dtype)).cpu()
        return [replace(image, pixels=None, features=own[None]) for image, own in zip(images, seen, strict=True)]

    def normalised_pixels(self, images):
        return self.collate(images)["tiles"]

    def collate(self, images):
        if images[0].features is not None:
            return {"seen": torch.cat([image.features for image in images])}
        return {"tiles": torch.cat([image.pixels for image in images])}

    def part_of(self, name):
        if "eye." in name or "bridge." in name:
            return "vision" if "eye." in name else "projector"
        return "embeddings" if {"embed_tokens", "lm_head"} & set(name.split(".")) else "text"

    def unused_parameter_names(self, model):
        return []

    def rope_switch(self, config):
        return None

    def sizes(self, config=None):
        config = config or PatchesConfig()
        return ModelSizes(
            layers=config.num_hidden_layers,
            hidden=config.hidden_size,
            intermediate=config.intermediate_size,
            vocabulary=config.vocab_size,
            tower_layers=0,
            tower_hidden=WIDTH,
            tower_intermediate=WIDTH,
            tower_weights=3 * (SIDE // 2) ** 2 * WIDTH,
            tile_positions=PATCHES,
            tile_tokens=PATCHES,
            projector_weights=WIDTH * config.hidden_size,
        )


def save_patches(folder: Path) -> None:
    """A model with random weights and its processor."""
    tokenizer = load_processor("tiny").tokenizer
    torch.manual_seed(0)
    config = PatchesConfig(
        vocab_size=len(tokenizer),
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        image_token_id=tokenizer.convert_tokens_to_ids(SLOT),
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    PatchesForCausalLM(config).save_pretrained(folder)
    PatchesProcessor(PatchesImageProcessor(), tokenizer).save_pretrained(folder)
