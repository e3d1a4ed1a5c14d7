"""Killed at any moment, a run goes on from its last whole checkpoint and ends as if it had never been stopped."""

import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from forked import start
from safetensors.torch import load_file

from catalens import checkpoint
from catalens.config import TrainingSpec, dump_recipe
from catalens.errors import TrainingError
from catalens.evaluation.evaluate import evaluate
from catalens.training import last_checkpoint, step_of
from catalens.training.train import train

pytestmark = pytest.mark.integration


@pytest.fixture(scope="module")
def short(recipe):
    """Twelve steps, a checkpoint every two, generation left out."""
    training = recipe.training.model_dump() | {
        "max_steps": 12,
        "num_evals": 3,
        "num_checkpoints": 6,
        "validation_rows": 0,
    }
    return recipe.model_copy(update={"training": TrainingSpec.model_validate(training)})


@pytest.fixture(scope="module")
def peace(short, tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "peace"
    train(short, folder)
    return folder


def same(one: Path, other: Path) -> bool:
    first, second = (load_file(folder / "best" / "model.safetensors") for folder in (one, other))
    return all(torch.equal(first[name], second[name]) for name in first)


def log(folder: Path) -> list[tuple[int, float]]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(line["step"], line["train/loss"]) for line in lines if "train/learning_rate" in line]


def entries(folder: Path) -> int:
    """Files and folders below one whose folders come and go; `Path.glob` raises when one is renamed meanwhile."""
    return sum(len(folders) + len(files) for _, folders, files in os.walk(folder))


def test_killed_at_random_moments_it_ends_with_the_same_bits(short, peace, tmp_path):
    (tmp_path / "recipe.yaml").write_text(dump_recipe(short))
    dice, kills, run = random.Random(1), 0, tmp_path / "run"
    for _ in range(12):
        begun = run.is_dir() and (run / "versions.json").is_file()
        if not begun:
            shutil.rmtree(run, ignore_errors=True)
        where = ("--resume", run) if begun else (tmp_path / "recipe.yaml", "--out", run)
        process = start("-m", "catalens", "train", *where)
        if kills < 3:  # in the middle of steps and of writing a checkpoint
            before = entries(run / "checkpoints")
            while process.is_alive() and entries(run / "checkpoints") <= before + dice.randint(1, 9):
                time.sleep(0.005)
            process.kill()
            kills += 1
        process.join()
        if process.exitcode == 0:
            break
    assert process.exitcode == 0
    assert kills == 3
    assert same(peace, run)
    assert log(run) == log(peace)


def test_in_bf16_beside_full_parts_it_goes_on_to_the_same_bits_and_is_scored(short, tmp_path):
    """As on a GPU: the base and its products are bf16, what trains is fp32, inference is bf16."""
    parts = {"projector": {"train": "full", "learning_rate": 1e-5}, "embeddings": "full"}
    asked = {
        "method": "lora",
        "optimizer": "adamw",
        "precision": "bf16",
        "parts": parts,
        "max_steps": 4,
        "num_checkpoints": 2,
        "num_evals": 1,
    }
    training = TrainingSpec.model_validate(short.training.model_dump() | asked)
    evaluation = short.evaluation.model_copy(update={"before": False, "rows": 8})
    recipe = short.model_copy(update={"training": training, "evaluation": evaluation})
    whole, run = tmp_path / "whole", tmp_path / "run"
    train(recipe, whole)
    shutil.copytree(whole, run)
    shutil.rmtree(run / "best")
    shutil.rmtree(run / "checkpoints" / "checkpoint-4")
    train(recipe, run, resume=True)
    assert log(run) == log(whole)
    weights, others = (load_file(folder / "best" / "adapter_model.safetensors") for folder in (whole, run))
    assert {weight.dtype for weight in weights.values()} == {torch.float32}
    assert all(torch.equal(weights[name], others[name]) for name in weights)
    assert checkpoint.load_run(run).model.dtype == torch.bfloat16
    assert evaluate(run).metrics["rows"] == 8


def test_a_half_written_checkpoint_is_not_there(short, peace, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(peace, run)
    shutil.rmtree(run / "best")
    last = last_checkpoint(run)
    assert last is not None
    assert step_of(last) == 12
    (last / "trainer_state.json").unlink()
    earlier = last_checkpoint(run)
    assert earlier is not None
    assert step_of(earlier) < 12
    train(short, run, resume=True)
    assert same(peace, run)
    assert log(run) == log(peace)


def test_a_bad_disk_is_one_sentence_and_the_run_goes_on(short, peace, tmp_path, monkeypatch):
    from catalens.training import checkpoints

    def full(path: Path) -> None:
        if path.parent.name == "checkpoint-8":
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(checkpoints, "sync", full)
        with pytest.raises(
            TrainingError, match=r"checkpoint-8 cannot be written \(.*No space left on device\).*--resume"
        ):
            train(short, tmp_path / "run")
    assert step_of(last_checkpoint(tmp_path / "run") or Path()) == 6
    train(short, tmp_path / "run", resume=True)
    assert same(peace, tmp_path / "run")


def test_what_cannot_go_on_says_why(short, peace, tmp_path):
    with pytest.raises(TrainingError, match="is finished"):
        train(short, peace, resume=True)
    run = tmp_path / "run"
    shutil.copytree(peace, run)
    shutil.rmtree(run / "best")
    versions = json.loads((run / "versions.json").read_text())
    (run / "versions.json").write_text(json.dumps(versions | {"catalog": "sha256:other"}))
    with pytest.raises(TrainingError, match="the catalogue has changed since"):
        train(short, run, resume=True)


def test_a_disk_that_fills_up_while_torch_writes_is_one_sentence(short, peace, tmp_path):
    weights = (peace / "best" / "model.safetensors").stat().st_size
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(
        resource.RLIMIT_FSIZE, (weights // 4, usual[1])
    )  # what a full disk does, to this process alone
    try:
        with pytest.raises(TrainingError, match=r"checkpoint-2 cannot be written .*--resume"):
            train(short, tmp_path / "run")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert last_checkpoint(tmp_path / "run") is None


@pytest.mark.parametrize("moment", ["checkpoint-*/trainer_state.json", ".partial/checkpoint-*/optimizer.pt"])
def test_control_c_is_one_line_and_the_run_can_go_on(short, tmp_path, moment):
    long = short.training.model_copy(update={"max_steps": 3000, "num_checkpoints": 1500, "num_evals": 1})
    (tmp_path / "recipe.yaml").write_text(dump_recipe(short.model_copy(update={"training": long})))
    train_it = ["-m", "catalens", "train", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run")]
    usual = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)  # a shell lets what it runs behind ignore it
    command = [sys.executable, *train_it]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=usual) as process:
        checkpoints = tmp_path / "run" / "checkpoints"
        while process.poll() is None and not (last_checkpoint(tmp_path / "run") and any(checkpoints.glob(moment))):
            time.sleep(0.0005)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said[-1500:]
    assert "interrupted; `prepare`, `train --resume` and `predict --out` go on from where" in " ".join(said.split())
    assert "Traceback" not in said
    assert last_checkpoint(tmp_path / "run")
