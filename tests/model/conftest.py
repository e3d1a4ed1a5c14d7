"""A tiny Phi-3-Vision with its tokenizer, and the benchmark that computes the golden cases."""

import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from catalens.model import Phi3VConfig, Phi3VForCausalLM, Phi3VImageProcessor, Phi3VProcessor

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))  # parity.py, which the parity tests run

SPECIAL = ["<unk>", "<s>", "<|endoftext|>", "<|image|>", "<|user|>", "<|assistant|>", "<|end|>"]
LIMIT = 64  # where the tiny longrope switches


@pytest.fixture(scope="session")
def tokenizer():
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=300, special_tokens=SPECIAL, initial_alphabet=alphabet)
    inner.train_from_iterator(["What is shown in this image? Product: red scarf"], trainer)
    inner.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=inner,
        bos_token="<s>",
        eos_token="<|endoftext|>",
        pad_token="<|endoftext|>",
        unk_token="<unk>",
        additional_special_tokens=SPECIAL[3:],
    )


@pytest.fixture(scope="session")
def processor(tokenizer):
    return Phi3VProcessor(Phi3VImageProcessor(num_crops=4, crop_size=56), tokenizer)


@pytest.fixture(scope="session")
def make_config(tokenizer):
    def make(**changes):
        vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
        fields = {
            "vocab_size": len(tokenizer),
            "hidden_size": 64,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 1024,
            "original_max_position_embeddings": LIMIT,
            "bos_token_id": 1,
            "eos_token_id": 2,
            "pad_token_id": 2,
            "image_token_id": 3,
            "rope_scaling": {"type": "su", "short_factor": [1.1] * 8, "long_factor": [2.0 + i for i in range(8)]},
            "vision_config": {**vision, "image_size": 56, "patch_size": 14},
        }
        return Phi3VConfig(**{**fields, **changes})

    return make


@pytest.fixture(scope="session")
def make_model(make_config):
    def make(seed=0, **changes):
        torch.manual_seed(seed)
        model = Phi3VForCausalLM(make_config(**changes)).eval()
        with torch.no_grad():  # larger than the usual start, so that a wrong factor or place shows
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        return model

    return make


@pytest.fixture
def model(make_model):
    return make_model()


def picture(width, height, seed=0):
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randint(0, 256, (height, width, 3), dtype=torch.uint8, generator=generator)
    return Image.fromarray(pixels.numpy())


@pytest.fixture(scope="session")
def pictures():
    return [picture(80, 60, 1), picture(200, 50, 2), picture(30, 90, 3), picture(56, 56, 4)]


@pytest.fixture
def batch(processor, pictures):
    """Three rows: two pictures of two sizes, none, one; padded on the right."""
    texts = [
        "<|user|>\n<|image_1|> or <|image_2|>?<|end|><|assistant|>\nred",
        "<|user|>\nhello<|end|><|assistant|>\nblue scarf",
        "<|user|>\n<|image_1|>What is it?<|end|><|assistant|>\nscarf",
    ]
    images = [pictures[:2], None, pictures[2]]
    return processor(text=texts, images=images, num_crops=2, padding=True, padding_side="right")
