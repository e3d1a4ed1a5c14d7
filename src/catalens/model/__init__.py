"""Phi-3-Vision for transformers 5, no remote code; importing this registers the Auto classes."""

from importlib import import_module
from typing import Any

from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForCausalLM, AutoProcessor

from .configuration import Phi3VConfig
from .family import REFERENCE, Family, ImageInputs, ModelSizes, Size, family_of
from .graphs import Graph, picture_graphs, plain_decoder
from .modeling import Phi3VForCausalLM, Phi3VModel, unused_parameter_names
from .processing import Phi3VImageProcessor, Phi3VProcessor

AutoConfig.register("phi3_v", Phi3VConfig)
AutoImageProcessor.register(Phi3VConfig, image_processor_classes={"pil": Phi3VImageProcessor})
AutoProcessor.register(Phi3VConfig, Phi3VProcessor)
AutoModel.register(Phi3VConfig, Phi3VModel)
AutoModelForCausalLM.register(Phi3VConfig, Phi3VForCausalLM)


def register_in_vllm() -> None:
    """Give vLLM our class in the place of its own; an entry point by which each of its processes begins."""
    registry: Any = import_module("vllm").ModelRegistry
    registry.register_model(Phi3VForCausalLM.__name__, f"{__name__}.vllm:VllmPhi3V")


__all__ = [
    "REFERENCE",
    "Family",
    "Graph",
    "ImageInputs",
    "ModelSizes",
    "Phi3VConfig",
    "Phi3VForCausalLM",
    "Phi3VImageProcessor",
    "Phi3VModel",
    "Phi3VProcessor",
    "Size",
    "family_of",
    "picture_graphs",
    "plain_decoder",
    "register_in_vllm",
    "unused_parameter_names",
]
