"""Two real processes over gloo compute what one computes."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from forked import HANG, torchrun
from safetensors.torch import load_file

from catalens.catalog import Catalog
from catalens.checkpoint import load_model, load_processor
from catalens.config import PromptSpec, TrainingSpec, dump_recipe
from catalens.data import Collator, Encoder
from catalens.errors import TrainingError
from catalens.evaluation import validation_scorer
from catalens.evaluation.evaluate import evaluate
from catalens.training.train import train

pytestmark = [pytest.mark.integration, pytest.mark.xdist_group("gloo")]  # in one worker: they share runs


def changed(recipe, **training):
    spec = TrainingSpec.model_validate(recipe.training.model_dump() | training)
    return recipe.model_copy(update={"training": spec})


@pytest.fixture(scope="module")
def alone(recipe):
    """Global batches of 8 rows as two of 4; the last one has a single micro-batch, so one process gets none of it."""
    steps = {"max_steps": None, "epochs": 0.75, "batch_size": 4, "gradient_accumulation": 2, "num_checkpoints": 5}
    rounds = {"num_evals": 2, "validation_rows": 5, "evaluation_budget": 1.0, "number_smoothing": 0.05}
    return changed(recipe, **steps, **rounds, parts={}, optimizer="adamw", learning_rate=1e-3, feature_cache=False)


@pytest.fixture(scope="module")
def shared(alone):
    """The same global batches, a micro-batch for each of two processes."""
    return changed(alone, gradient_accumulation=1)


@pytest.fixture(scope="module")
def single(alone, tmp_path_factory) -> Path:
    """The run of one process."""
    folder = tmp_path_factory.mktemp("runs") / "single"
    train(alone, folder, validation_scorer(alone))
    return folder


@pytest.fixture(scope="module")
def double(shared, tmp_path_factory) -> Path:
    """The run of two, as a user starts it."""
    folder = tmp_path_factory.mktemp("runs") / "double"
    command = [Path(sys.executable).with_name("torchrun"), "--nproc-per-node", "2", "--rdzv-backend", "c10d"]
    command += ["--rdzv-endpoint", "localhost:0", "-m", "catalens", "train", recipe_file(shared, folder)]
    done = subprocess.run([*command, "--out", folder], capture_output=True, text=True, timeout=HANG, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return folder


def recipe_file(recipe, folder: Path) -> Path:
    path = folder.with_suffix(".yaml")
    path.write_text(dump_recipe(recipe), encoding="utf-8")
    return path


def trace(run: Path) -> list[dict[str, float]]:
    """Steps, losses and figures of validation; what depends on the clock is left out."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    names = ("train/loss", "train/grad_norm", "train/learning_rate", "validation/")
    timed = ("runtime", "per_second")
    return [
        {
            name: value
            for name, value in line.items()
            if name.startswith(("step", *names)) and not name.endswith(timed)
        }
        for line in lines
        if "train/runtime" not in line
    ]


def same_trace(one: Path, other: Path, tolerance: float) -> bool:
    first, second = trace(one), trace(other)
    assert [list(line) for line in first] == [list(line) for line in second]
    return all(
        a[name] == pytest.approx(b[name], rel=tolerance) for a, b in zip(first, second, strict=True) for name in a
    )


def same_weights(one: Path, other: Path, tolerance: float) -> bool:
    first, second = (load_file(folder / "best" / "model.safetensors") for folder in (one, other))
    assert first.keys() == second.keys()
    # attention does not depend on the keys' bias: what AdamW makes of its gradient is noise
    compared = [name for name in first if not name.endswith("k_proj.bias")]
    return all(torch.allclose(first[name], second[name], atol=tolerance) for name in compared)


def test_the_last_batch_is_uneven(single):
    steps = [line["step"] for line in trace(single) if "train/learning_rate" in line]
    assert steps == [1, 2, 3, 4, 5]  # 49 rows, 13 micro-batches of which 10 are three quarters of an epoch


def test_two_processes_train_what_one_trains(single, double):
    assert same_trace(single, double, tolerance=1e-5)
    assert same_weights(single, double, tolerance=1e-5)
    assert json.loads((double / "setup.json").read_text())["processes"] == 2


def test_sharded_weights_train_the_same_and_are_saved_whole(single, shared, tmp_path):
    folder = tmp_path / "sharded"
    torchrun("-m", "catalens", "train", recipe_file(changed(shared, fsdp=True), folder), "--out", folder)
    assert same_trace(single, folder, tolerance=1e-4)
    assert same_weights(single, folder, tolerance=1e-5)
    assert (folder / "checkpoints" / "checkpoint-5" / "optimizer.bin").is_file()


def test_sharded_gradients_are_accumulated_as_in_one_process(alone, tmp_path):
    asked = {"max_steps": 1, "num_evals": 1, "validation_rows": 0}
    one, two = tmp_path / "one", tmp_path / "two"
    train(changed(alone, gradient_accumulation=4, **asked), one)
    sharded = changed(alone, gradient_accumulation=2, fsdp=True, **asked)
    torchrun("-m", "catalens", "train", recipe_file(sharded, two), "--out", two)
    assert same_weights(one, two, tolerance=1e-5)


IN_BF16 = """
import sys, torch
from catalens.config import load_recipe
from catalens.training import loop
from catalens.training.train import train
from forked import HANG, torchrun

def exact(model, spec):
    sums = [p.grad.to_local() for p in model.parameters() if p.grad is not None]
    assert {one.dtype for one in sums} == {torch.float32}
    assert any(bool((one != one.bfloat16()).any()) for one in sums)

loop.check_gradients = exact
train(load_recipe(sys.argv[1]), sys.argv[2])
"""


def test_sharded_in_bf16_losses_and_sums_of_gradients_are_not_rounded(shared, tmp_path):
    asked = changed(shared, fsdp=True, precision="bf16", validation_rows=0, max_grad_norm=1e9)  # none is clipped
    folder = tmp_path / "run"
    (tmp_path / "train.py").write_text(IN_BF16)
    torchrun(tmp_path / "train.py", recipe_file(asked, folder), folder)
    losses = torch.tensor([line["train/loss"] for line in trace(folder) if "train/loss" in line])
    assert len(losses) == 5
    assert (losses != losses.half()).any()  # the mean of two bf16 numbers has ten bits at most
    assert {weight.dtype for weight in load_file(folder / "best" / "model.safetensors").values()} == {torch.float32}


def test_sharded_adapters_go_on_to_the_same_bits(shared, tmp_path):
    asked = changed(
        shared, method="lora", parts={"embeddings": "full"}, fsdp=True, validation_rows=0, num_checkpoints=5
    )
    run, stopped = tmp_path / "run", tmp_path / "stopped"
    torchrun("-m", "catalens", "train", recipe_file(asked, run), "--out", run)
    shutil.copytree(run, stopped)
    shutil.rmtree(stopped / "best")
    shutil.rmtree(stopped / "checkpoints" / "checkpoint-5")
    with pytest.raises(TrainingError, match=r"begun by several processes.*go on under torchrun"):
        train(asked, stopped, resume=True)
    torchrun("-m", "catalens", "train", "--resume", stopped)
    whole, resumed = (load_file(folder / "best" / "adapter_model.safetensors") for folder in (run, stopped))
    assert len(whole) == 4 * 3 * 2 + 2  # A and B of every linear module of three layers; embeddings and head
    assert all(torch.equal(whole[name], resumed[name]) for name in whole)
    assert not torch.equal(whole["base_model.model.lm_head.weight"], load_model("tiny").lm_head.weight)


def test_one_process_goes_on_with_the_run_of_two(shared, double, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(double, run)
    shutil.rmtree(run / "best")
    shutil.rmtree(run / "checkpoints" / "checkpoint-5")
    train(shared, run, validation_scorer(shared), resume=True)
    assert same_trace(double, run, tolerance=1e-5)
    assert same_weights(double, run, tolerance=1e-5)


def without_times(result):
    times = ("ms_per_picture", "pictures_per_second")
    cost = {name: value for name, value in result["cost"].items() if name not in times}
    return {**result, "seconds": None, "cost": cost}


def close(one, other) -> bool:
    """Equal, but for numbers in fractions: batches of other rows round otherwise, by a part in a million or so."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    return other == (pytest.approx(one, rel=1e-4, abs=1e-5) if isinstance(one, float) else one)


def test_two_processes_score_each_row_once(double, shared, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(double, run)
    here = evaluate(run).metrics
    rows = pq.read_table(run / "evaluation" / "predictions.parquet").to_pylist()
    shutil.rmtree(run / "evaluation")
    torchrun("-m", "catalens", "evaluate", run)
    assert close(pq.read_table(run / "evaluation" / "predictions.parquet").to_pylist(), rows)
    there = json.loads((run / "evaluation" / "metrics.json").read_text())
    assert close(without_times(there), without_times(here))


TEXT_ONLY = """
import sys, torch
from torch import distributed as dist
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from catalens.checkpoint import load_model
from catalens.model import loss, unused_parameter_names

dist.init_process_group("gloo")
rank, way = dist.get_rank(), sys.argv[1]
model = load_model("tiny")
for name in unused_parameter_names(model):
    model.get_parameter(name).requires_grad_(False)
batches = torch.load(sys.argv[2], weights_only=True)
if way == "ddp":
    wrapped = DistributedDataParallel(model)
else:
    for module in model.modules():
        if type(module).__name__ in ("Phi3DecoderLayer", "CLIPEncoderLayer"):
            fully_shard(module)
    fully_shard([model.model.norm, model.lm_head], reshard_after_forward=False)  # as accelerate does
    wrapped = fully_shard(model)
fused, original = [], loss.linear_cross_entropy
loss.linear_cross_entropy = lambda *args: fused.append(args) or original(*args)
for _ in range(2):  # DDP reports what was missing at the second step
    model.zero_grad()
    wrapped(**batches[rank], num_items_in_batch=1).loss.backward()
assert len(fused) == 2
grads = {}
for name, parameter in model.named_parameters():
    if parameter.grad is not None:
        grads[name] = parameter.grad.full_tensor() if way == "fsdp" else parameter.grad
if rank == 0:
    torch.save(grads, sys.argv[3])
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.parametrize("way", ["ddp", "fsdp"])
def test_a_process_without_pictures_keeps_up(way, drawn, tmp_path):
    encoder = Encoder(load_processor("tiny"), PromptSpec())
    row = Catalog(drawn).rows("train")[0]
    collate = Collator(encoder.family, encoder.tokenizer.pad_token_id)
    seeing = collate([encoder.example(encoder.answer_ids(row), encoder.image(row["image"]))])
    ids = torch.tensor(encoder.tokenizer("Product: Red Hat")["input_ids"])
    batches = [seeing, collate([{"input_ids": ids, "labels": ids}])]
    assert "pixel_values" not in batches[1]
    torch.save(batches, tmp_path / "batches.pt")
    (tmp_path / "step.py").write_text(TEXT_ONLY)
    torchrun(tmp_path / "step.py", way, tmp_path / "batches.pt", tmp_path / "grads.pt")
    grads = torch.load(tmp_path / "grads.pt", weights_only=True)
    model = load_model("tiny")
    for batch in batches:
        (model(**batch, num_items_in_batch=1).loss / 2).backward()  # the mean over the processes
    tower = [name for name in grads if "img_processor" in name]
    assert len(tower) > 10
    for name, grad in grads.items():
        expected = model.get_parameter(name).grad
        assert expected is not None
        assert torch.allclose(grad, expected, atol=1e-4 * float(expected.abs().max())), name
