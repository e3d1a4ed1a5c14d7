"""What only a GPU can show; `make test-gpu`. Everything else about it is tested on CPUs."""

import json

import pytest
import torch

from catalens.catalog import Catalog
from catalens.checkpoint import load_model, load_processor
from catalens.config import PromptSpec, TrainingSpec
from catalens.data import Collator, Encoder, load_examples
from catalens.devices import gpu_memory
from catalens.features import FeatureCache
from catalens.training.train import train

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
    pytest.mark.filterwarnings("ignore"),  # torch's own, while it compiles
]


@pytest.fixture
def rows(drawn):
    encoder = Encoder(load_processor("tiny"), PromptSpec())
    found = load_examples(Catalog(drawn), encoder, "train", FeatureCache(encoder, features=False))
    return encoder, [found[index] for index in range(8)]


def losses(recipe, folder, **training) -> list[float]:
    settings = {"method": "lora", "max_steps": 6, "num_evals": 1, "validation_rows": 0, "learning_rate": 1e-3}
    spec = TrainingSpec.model_validate(settings | training)
    train(recipe.model_copy(update={"training": spec}), folder)
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [line["train/loss"] for line in lines if "train/loss" in line]


@pytest.mark.parametrize("method", ["lora", "full", "qlora"])
def test_compiled_layers_train_as_others(recipe, tmp_path, method):
    one = losses(recipe, tmp_path / "compiled", method=method, batch_size=8)
    other = losses(recipe, tmp_path / "eager", method=method, batch_size=8, compile=False)
    assert one == pytest.approx(other, rel=2e-2)


def test_packed_rows_train_as_padded_ones(recipe, tmp_path):
    one = losses(recipe, tmp_path / "packed", packing=True, batch_tokens=600)
    other = losses(recipe, tmp_path / "again", packing=True, batch_tokens=600, compile=False)
    assert one == pytest.approx(other, rel=2e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_loss_is_that_of_the_cpu(rows, dtype):
    encoder, examples = rows
    wanted = None
    for where in ("cpu", "cuda"):
        for packed in (False, True):
            model = load_model("tiny", dtype, encoder.family.training_attention).to(where)
            batch = Collator(encoder.family, encoder.tokenizer.pad_token_id, packed)(examples)
            batch = {name: value.to(where) if torch.is_tensor(value) else value for name, value in batch.items()}
            with torch.autocast(where, torch.bfloat16, enabled=dtype == torch.bfloat16):
                loss = model(**batch).loss.item()
            wanted = loss if wanted is None else wanted
            assert loss == pytest.approx(wanted, rel=1e-4 if dtype == torch.float32 else 1e-2)


def test_bytes_are_normalised_on_the_gpu_as_on_the_cpu(rows):
    encoder, examples = rows
    images = [image for example in examples for image in example["images"]]
    model, batch = load_model("tiny"), encoder.family.collate(images)
    here = model.cpu().model.get_image_features(**batch)
    there = model.cuda().model.get_image_features(**{name: value.cuda() for name, value in batch.items()})
    assert (there.cpu() - here).abs().max() < 1e-3 * here.abs().max()


def test_a_gpu_that_is_too_small_takes_more_passes(recipe, tmp_path, capsys):
    free = gpu_memory()
    assert free is not None
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 80e6) / total)
    try:
        losses(recipe, tmp_path / "small", method="full", batch_size=64, max_steps=1, compile=False)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert "passes of fewer rows make a step" in capsys.readouterr().out
