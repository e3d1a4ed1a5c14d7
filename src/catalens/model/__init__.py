"""Phi-3-Vision for transformers 5, no remote code; importing this registers the Auto classes."""

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
    "unused_parameter_names",
]
