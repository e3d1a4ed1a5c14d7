"""Models of the official architecture with random weights, and rows for them: nothing is downloaded.

    model = random_model(official_config(), torch.bfloat16, "cuda")    4.15 B parameters
    row, = drawn_rows(model.config, 1, num_crops=4)
    -> {"input_ids": [817], "labels": [817], "images": [ImageInputs((672, 672), pixels [5, 3, 336, 336])]}

What a step costs does not depend on what the weights and tokens are, only on how many there are.
"""

from collections.abc import Iterator
from typing import Any

import torch

from catalens.catalog import open_picture
from catalens.data import IGNORED
from catalens.model import REFERENCE, ImageInputs, Phi3VConfig, Phi3VForCausalLM, Phi3VImageProcessor
from catalens.sampling import draw_catalog

SMALL: dict[str, Any] = {
    "hidden_size": 192,
    "intermediate_size": 384,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 6,
    "vision_config": {"num_hidden_layers": 3},
}
"""The model that the reference figures of the original code were made with: few layers, a small text model, but the
official vocabulary and the official width of the tower."""
TEXT_TOKENS, ANSWER_TOKENS = 60, 30
"""Of a row: the cookbook's question with a title, a category and a price in Phi-3's tokens."""
SPREAD = 0.02


def official_config(**sizes: Any) -> Phi3VConfig:
    """The configuration of Phi-3.5-vision with other sizes where given.

    Its rope factors are ones here: with random weights they decide nothing.
    """
    fields: dict[str, Any] = {
        "hidden_size": 3072,
        "num_attention_heads": 32,
        "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096,
        "sliding_window": 262144,
        "eos_token_id": 2,
        **sizes,
    }
    ones: list[float] = [1.0] * (fields["hidden_size"] // fields["num_attention_heads"] // 2)
    fields["rope_scaling"] = {"type": "su", "short_factor": ones, "long_factor": ones}
    return Phi3VConfig(**fields)


@torch.no_grad()
def random_model(
    config: Phi3VConfig,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    attention: str = REFERENCE.training_attention,
    seed: int = 0,
) -> Phi3VForCausalLM:
    """A model with random weights, filled in place: its memory is that of the weights, its time about 4 s a GB."""
    with torch.device("meta"):
        model: Any = Phi3VForCausalLM._from_config(config, dtype=dtype, attn_implementation=attention)
    model.to_empty(device=device)
    positions = model.model.vision_embed_tokens.img_processor.vision_model.embeddings.position_ids
    positions.copy_(torch.arange(positions.shape[-1])[None])  # which no checkpoint holds
    generator = torch.Generator(device).manual_seed(seed)
    for name, parameter in model.named_parameters():
        if "norm" in name and name.endswith("weight"):
            parameter.fill_(1.0)
        elif name.endswith("bias"):
            parameter.zero_()
        else:  # drawn twice as fast as from a normal distribution
            width = SPREAD * 3**0.5
            parameter.uniform_(-width, width, generator=generator)
    return model


def drawn_rows(config: Phi3VConfig, count: int, num_crops: int, tall: bool = False) -> Iterator[dict[str, Any]]:
    """Rows for a collator: a drawn picture, its slots after the first token, and random text.

    Drawn pictures are nearly square; `tall` cuts out their middle, twice as high as wide.
    """
    images = Phi3VImageProcessor(num_crops, crop_size=config.crop_size, patch_size=config.patch_size)
    generator = torch.Generator().manual_seed(0)
    for row in draw_catalog(count, seed=0):
        picture = open_picture(row.image)
        if tall:
            middle, width = picture.width // 2, picture.height // 2
            picture = picture.crop((middle - width // 2, 0, middle - width // 2 + width, picture.height))
        encoded = images(picture)
        hd_size = tuple(encoded["image_sizes"][0].tolist())
        slots = images.num_image_tokens(*hd_size)
        # Behind the special tokens of the tiny tokenizer, in front of those of the official one.
        text = torch.randint(10, min(config.vocab_size, 32000), (TEXT_TOKENS,), generator=generator)
        ids = torch.cat([text[:1], torch.full((slots,), config.image_token_id), text[1:]])
        labels = ids.clone()
        labels[:-ANSWER_TOKENS] = IGNORED
        yield {"input_ids": ids, "labels": labels, "images": [ImageInputs(hd_size, encoded["pixel_values"])]}
