"""Phi-3-Vision of any size in vLLM: our pictures and tower before vLLM's decoder, no remote code.

    <s><|user|>\\n <|image|> <s>What is shown ...     a prompt has one slot a picture
    <s><|user|>\\n <|image|> x 757 <s>What is ...     and gets as many as its HD size makes

vLLM's own class knows 336 pixels, 24 layers of width 1024 and the slot 32044 only, and tokenizes a chat again after
its pictures. `exporting/vllm.py` registers this one, by name: whoever imports this module has vLLM.

Shapes: N pictures, C crops of a picture, the global one first, S crop side, (H, W) HD size, T tokens.
"""

# pyright: reportMissingImports=false, reportUntypedBaseClass=false

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn
from transformers import BatchFeature
from vllm.model_executor.layers.vocab_parallel_embedding import VocabParallelEmbedding
from vllm.model_executor.models.phi3v import Phi3VForCausalLM
from vllm.model_executor.models.utils import init_vllm_registered_model, maybe_prefix
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.inputs import MultiModalFieldConfig
from vllm.multimodal.processing import BaseDummyInputsBuilder, BaseProcessingInfo
from vllm.multimodal.processing.processor import BaseMultiModalProcessor, PromptReplacement

from catalens.tiling import IMAGE_TOKEN, picture_tokens

from .configuration import Phi3VConfig
from .modeling import Phi3VImageEmbedding
from .processing import Phi3VImageProcessor, Phi3VProcessor


class PictureInfo(BaseProcessingInfo):
    """Configuration and image processor of the served model."""

    def get_hf_config(self) -> Phi3VConfig:
        """Give our configuration; TypeError where remote code brought another."""
        return self.ctx.get_hf_config(Phi3VConfig)

    def get_hf_processor(self, **kwargs: object) -> Phi3VProcessor:
        """Give our processor, whatever class the model's files name."""
        return self.ctx.get_hf_processor(Phi3VProcessor, **kwargs)

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        """Allow any number of pictures."""
        return {"image": None}


class DummyPictures(BaseDummyInputsBuilder):
    """Pictures of the most tokens, by which vLLM reserves memory: all crops in one column."""

    def get_dummy_text(self, mm_counts: Mapping[str, int]) -> str:
        """Write a slot for each picture."""
        return IMAGE_TOKEN * mm_counts.get("image", 0)

    def get_dummy_mm_data(self, seq_len: int, mm_counts: Mapping[str, int], mm_options: Mapping[str, Any]) -> Any:
        """Make as many white pictures."""
        images: Phi3VImageProcessor = self.info.get_hf_processor().image_processor
        width, height = images.crop_size, images.crop_size * images.num_crops
        asked = mm_counts.get("image", 0)
        overrides = mm_options.get("image")
        return {"image": self._get_dummy_images(width=width, height=height, num_images=asked, overrides=overrides)}


class PictureProcessor(BaseMultiModalProcessor):
    """Pictures into crops, and slots in their number; the text is tokenized by whoever asks."""

    def _call_hf_processor(self, hf_data: Mapping[str, Any], hf_kwargs: Mapping[str, object]) -> BatchFeature:
        """Cut pictures: `pixel_values`, one [C, 3, S, S] a picture in the model's precision; `image_sizes` [N, 2]."""
        images: Phi3VImageProcessor = self.info.get_hf_processor(**hf_kwargs).image_processor
        cut = [images(picture) for picture in hf_data["images"]]
        dtype = self.info.ctx.model_config.dtype
        return BatchFeature(
            {
                "pixel_values": [one["pixel_values"].to(dtype) for one in cut],
                "image_sizes": torch.cat([one["image_sizes"] for one in cut]),
            }
        )

    def _get_mm_fields_config(self, hf_inputs: BatchFeature, hf_processor_mm_kwargs: Mapping[str, object]) -> Any:
        return {
            "pixel_values": MultiModalFieldConfig.batched("image"),
            "image_sizes": MultiModalFieldConfig.batched("image", keep_on_cpu=True),
        }

    def _get_prompt_updates(
        self, mm_items: Any, hf_processor_mm_kwargs: Mapping[str, object], out_mm_kwargs: Any
    ) -> Sequence[Any]:
        images: Phi3VImageProcessor = self.info.get_hf_processor(**hf_processor_mm_kwargs).image_processor
        slot = self.info.get_hf_config().image_token_id

        def slots(index: int) -> list[int]:
            height, width = out_mm_kwargs["image"][index]["image_sizes"].data.tolist()
            return [slot] * images.num_image_tokens(height, width)

        return [PromptReplacement(modality="image", target=[slot], replacement=slots)]


@MULTIMODAL_REGISTRY.register_processor(PictureProcessor, info=PictureInfo, dummy_inputs=DummyPictures)
class VllmPhi3V(Phi3VForCausalLM):
    """vLLM's Phi-3-Vision with the tower, the HD layout and the slot of the model's own configuration."""

    def __init__(self, *, vllm_config: Any, prefix: str = "") -> None:
        nn.Module.__init__(self)  # vLLM's own builds the published tower
        config = self.config = vllm_config.model_config.hf_config
        self.multimodal_config = vllm_config.model_config.multimodal_config
        self.image_token_id = config.image_token_id
        with self._mark_tower_model(vllm_config, "image"):
            self.embed_tokens = VocabParallelEmbedding(
                config.vocab_size,
                config.hidden_size,
                quant_config=vllm_config.quant_config,
                prefix=maybe_prefix(prefix, "model.embed_tokens"),
            )
            self.vision_embed_tokens = Phi3VImageEmbedding(config)
        with self._mark_language_model(vllm_config):
            self.language_model = init_vllm_registered_model(
                vllm_config=vllm_config, prefix="", architectures=["LlamaForCausalLM"]
            )
        self.make_empty_intermediate_tensors = self.language_model.make_empty_intermediate_tensors

    @classmethod
    def get_placeholder_str(cls, modality: str, i: int) -> str | None:
        """Give the slot of a picture, where a chat template does not say where it stands."""
        return IMAGE_TOKEN if modality == "image" else None

    def embed_multimodal(self, **kwargs: Any) -> Sequence[torch.Tensor]:
        """Embeddings [T of the picture, hidden] of each picture, from crops [C, 3, S, S] and sizes [N, 2]."""
        if kwargs.get("pixel_values") is None:
            return []
        crops, sizes, side = list(kwargs["pixel_values"]), kwargs["image_sizes"].tolist(), self.config.crop_size
        grids = [(height // side, width // side) for height, width in sizes]
        embedding = self.vision_embed_tokens
        features = embedding.crop_features(torch.cat(crops).to(embedding.glb_GN.dtype))
        tokens = [picture_tokens(*grid, self.config.crop_grid) for grid in grids]
        return embedding(features, grids).split(tokens)
