"""Merged exports: the official layout, loaded back by every stage, in place whole or not at all."""

import json
import resource
import shutil
import signal
import time
from pathlib import Path

import parity
import pytest
import torch
from forked import start
from safetensors import safe_open
from safetensors.torch import load_file
from typer.testing import CliRunner

import catalens
from catalens import Catalog, checkpoint
from catalens.checkpoint import load_model, load_run, save_best, weights_hash
from catalens.cli import app
from catalens.config import PromptSpec, dump_recipe, load_recipe, make_recipe
from catalens.errors import CatalogError, CheckpointError, TrainingError
from catalens.examples import AnswerSchema
from catalens.exporting import check, target_of
from catalens.files import file_hash
from catalens.model import Phi3VForCausalLM

pytestmark = pytest.mark.integration
LOCAL = {"_name_or_path", "auto_map", "_attn_implementation", "transformers_version", "torch_dtype"}
"""Fields of an official config.json that tell of its machine, its library or its remote code."""
LATER = {"embd_pdrop", "resid_pdrop", "pad_token_id"}
"""Fields that the file of Phi-3.5 has and that of Phi-3 leaves to its defaults."""
golden = pytest.mark.skipif(not parity.available(), reason="no goldens (set CATALENS_GOLDEN)")


def photo(catalog: Path) -> bytes:
    return bytes(next(iter(Catalog(catalog).batches("test", ["image"])))[0]["image"])


def saved(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def golden_run(folder: Path, family: str) -> Path:
    """A run of the golden configuration of a family with the official tokenizer, as if it had been trained."""
    torch.manual_seed(0)
    model = Phi3VForCausalLM(parity.small_config(family))
    save_best(folder / "best", model, parity.processor(family), PromptSpec(), AnswerSchema())
    (folder / "recipe.yaml").write_text(dump_recipe(make_recipe({"catalog": "none", "training": {"method": "full"}})))
    (folder / "versions.json").write_text("{}")
    return folder


@golden
@pytest.mark.parity
@pytest.mark.parametrize("family", parity.FAMILIES)
def test_an_export_of_the_golden_model_has_the_official_keys_shapes_and_fields(family, tmp_path):
    out = tmp_path / "out"
    assert target_of("merged").write(load_run(golden_run(tmp_path / "run", family)), out) == "fp32"
    with safe_open(out / "model.safetensors", "pt") as weights:
        shapes = {name: weights.get_slice(name).get_shape() for name in weights.keys()}  # noqa: SIM118
    assert shapes == parity.document(f"state_dict_small_{family}")["shapes"]
    expected = json.loads((parity.FOLDER / f"config_small_{family}.json").read_text())
    fields = saved(out)
    assert {name: fields[name] for name in expected.keys() - LOCAL - {"clip_num_hidden_layers"}} == {
        name: value for name, value in expected.items() if name not in LOCAL | {"clip_num_hidden_layers"}
    }
    assert fields["torch_dtype"] == "float32"
    assert fields.keys() - expected.keys() <= LATER | {
        "vision_config"
    }  # three layers of the tower are no official ones
    preprocessor = json.loads((out / "preprocessor_config.json").read_text())
    asked = json.loads((parity.FOLDER / "official" / family / "preprocessor_config.json").read_text())
    assert [preprocessor[n] for n in ("num_crops", "image_mean", "image_std", "image_processor_type")] == [
        asked[n] for n in ("num_crops", "image_mean", "image_std", "image_processor_type")
    ]


def test_weights_lie_in_files_of_the_official_size(tmp_path, monkeypatch, run):
    monkeypatch.setattr("catalens.checkpoint.SHARD", "2MB")
    export = catalens.export(run, "merged", tmp_path / "out", rows=2)
    index = json.loads((export.folder / "model.safetensors.index.json").read_text())
    assert (
        len(set(index["weight_map"].values()))
        == len(list(export.folder.glob("model-0000?-of-0000?.safetensors")))
        > 2
    )
    assert load_model(str(export.folder)).num_parameters() == load_model("tiny").num_parameters()


def test_an_adapter_is_merged_into_the_model_that_the_run_predicts_with(adapted, merged):
    assert not list(merged.glob("adapter*"))
    own = load_run(adapted).model.state_dict()
    exported = load_file(merged / "model.safetensors")
    assert exported.keys() == own.keys()
    assert all(torch.equal(exported[name], weight) for name, weight in own.items())
    plain = load_model("tiny").state_dict()
    assert any(not torch.equal(exported[name], weight) for name, weight in plain.items())


def test_a_model_of_4_bits_is_exported_in_the_weights_that_it_was_validated_on(recipe, tmp_path):
    fields = recipe.model_dump(mode="json")
    training = {"method": "qlora", "max_steps": 2, "batch_size": 8, "num_evals": 1, "validation_rows": 0}
    catalens.train(make_recipe(fields | {"training": training}), tmp_path / "run")
    export = catalens.export(tmp_path / "run", "merged", tmp_path / "out", rows=2)
    assert "quantization_config" not in saved(export.folder)
    own = load_run(tmp_path / "run").model.state_dict()
    assert all(
        torch.equal(own[name], value) for name, value in load_file(export.folder / "model.safetensors").items()
    )


def test_predict_and_serve_take_an_export_as_they_take_the_run(adapted, merged, drawn, tmp_path):
    pictures = [photo(drawn)]
    run, export = catalens.load_predictor(adapted), catalens.load_predictor(merged)
    assert run.calibrated
    assert export.calibrated
    one, other = run.predict(pictures)[0], export.predict(pictures)[0]
    assert one.values == other.values
    assert one.confidence == pytest.approx(other.confidence, abs=1e-6)
    assert one.intervals == pytest.approx(other.intervals)
    (tmp_path / "photo.jpg").write_bytes(pictures[0])
    result = CliRunner().invoke(app, ["predict", str(merged), str(tmp_path / "photo.jpg")])
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["title"] == other.values["title"]


def test_a_second_stage_trains_on_an_export(recipe, merged, tmp_path):
    trained = catalens.train(
        recipe, tmp_path / "second", model=str(merged), overrides=["training.max_steps=1", "training.num_evals=1"]
    )
    assert load_recipe(trained.folder / "recipe.yaml").model == str(merged)


def test_an_export_is_checked_again_without_its_run(adapted, merged, tmp_path, monkeypatch):
    moved = shutil.copytree(merged, tmp_path / "elsewhere")
    monkeypatch.chdir(tmp_path)
    certificate = check("elsewhere")
    assert certificate.passed
    assert certificate.rows == 6
    result = CliRunner().invoke(app, ["export", "--check", str(moved)])
    assert result.exit_code == 0, result.output
    assert "answers: 6 of 6 rows equal" in result.stdout


def test_the_rows_stay_at_home_where_it_is_asked(run, tmp_path):
    export = catalens.export(run, "merged", tmp_path / "out", rows=2, reference=False)
    assert export.certificate.passed
    assert not (export.folder / "reference.parquet").exists()
    with pytest.raises(CheckpointError, match=r"has no reference.parquet to be checked by: .*--no-reference"):
        check(export.folder)


def test_files_of_an_export_are_as_readable_as_any_other(merged, tmp_path):
    (tmp_path / "usual").touch()
    assert {path.stat().st_mode for path in merged.iterdir()} == {(tmp_path / "usual").stat().st_mode}


def test_nothing_of_this_machine_is_in_an_export(merged):
    for path in merged.glob("*.json"):
        assert "/tmp/" not in path.read_text(), path
        assert str(Path.home()) not in path.read_text(), path


# Where it may be put


def test_a_folder_that_is_there_is_not_touched(run, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match="out exists already: choose another --out"):
        catalens.export(run, "merged", tmp_path / "out", rows=2)
    (tmp_path / ".other.partial").mkdir()
    (tmp_path / ".other.partial" / "mine.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"\.other\.partial is in the way"):
        catalens.export(run, "merged", tmp_path / "other", rows=2)
    assert (tmp_path / ".other.partial" / "mine.txt").read_text() == "mine"


@pytest.mark.parametrize("moment", [".export", "model.safetensors"])
def test_an_export_that_is_killed_leaves_nothing_that_looks_whole(run, tmp_path, moment):
    process = start("-m", "catalens", "export", run, "--out", tmp_path / "out", "--rows", "2")
    until = time.monotonic() + 120
    while not (tmp_path / ".out.partial" / moment).exists() and not (tmp_path / "out").exists():
        assert process.is_alive()
        assert time.monotonic() < until
        time.sleep(0.001)
    process.kill()
    process.join()
    assert not (tmp_path / "out").exists()
    assert catalens.export(run, "merged", tmp_path / "out", rows=2).certificate.passed
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


KILLED = """
import os, signal, sys
from pathlib import Path
from catalens.exporting import Certificate
import catalens

def kill(*_):
    os.kill(os.getpid(), signal.SIGKILL)

moment, run, out = sys.argv[1:]
usual = {"rename": Path.rename, "unlink": Path.unlink, "chmod": Path.chmod}

def half(certificate, folder):
    (folder / "equality.json").write_text('{"format": 1, "to": "mer')
    kill()

def renamed(path, target):
    moment == "before the rename" and kill()
    usual["rename"](path, target)
    kill()

def unlinked(path, missing_ok=False):
    usual["unlink"](path, missing_ok)
    path.name == ".export" and not missing_ok and kill()

if moment == "half a certificate":
    Certificate.save = half
elif moment == "without its mark":
    Path.unlink = unlinked
elif moment == "before the card":
    Path.replace = kill
else:
    Path.rename = renamed
catalens.export(run, "merged", out, rows=2)
"""
"""Kills itself at a moment that no clock would meet."""


@pytest.mark.parametrize(
    "moment", ["half a certificate", "before the card", "without its mark", "before the rename", "after the rename"]
)
def test_an_export_that_is_killed_at_its_end_is_there_whole_or_not_at_all(run, tmp_path, moment):
    out, script = tmp_path / "there" / "out", tmp_path / "killed.py"
    script.write_text(KILLED)
    process = start(script, moment, run, out)
    process.join(240)
    assert process.exitcode == -signal.SIGKILL
    if moment == "after the rename":
        assert check(out).passed
        with pytest.raises(CheckpointError, match="exists already"):
            catalens.export(run, "merged", out, rows=2)
    else:
        assert not out.exists()
        assert catalens.export(run, "merged", out, rows=2).certificate.passed
    assert [path.name for path in out.parent.iterdir()] == ["out"]


def test_two_exports_into_one_place_are_refused(run, tmp_path):
    from catalens.files import locked

    with locked(tmp_path / ".out.partial"), pytest.raises(CheckpointError, match=r"another process writes .*out"):
        catalens.export(run, "merged", tmp_path / "out", rows=2)


@pytest.mark.parametrize("share", [0.02, 0.5])
def test_a_full_disk_is_one_sentence(run, tmp_path, share):
    weights = (run / "best" / "model.safetensors").stat().st_size
    usual = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(weights * share), usual[1]))  # what a full disk does to a process
    try:
        with pytest.raises(
            CheckpointError, match=r"out cannot be written \(.*\): make room, or choose another --out"
        ):
            catalens.export(run, "merged", tmp_path / "out", rows=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, usual)
    assert not list(tmp_path.iterdir())


# What a run needs


def test_an_adapter_names_its_base_by_what_it_is(adapted):
    names = json.loads((adapted / "best" / "adapter_config.json").read_text())["base_model_name_or_path"]
    assert names == "tiny"
    assert json.loads((adapted / "versions.json").read_text())["base"].startswith("sha256:")
    assert not (adapted / "best" / "README.md").exists()


@pytest.fixture(scope="module")
def on_a_folder(recipe, tmp_path_factory):
    """A LoRA run whose base is a folder of a person."""
    root = tmp_path_factory.mktemp("moved")
    load_model("tiny").save_pretrained(root / "base")
    load_run_processor(root / "base")
    fields = recipe.model_dump(mode="json") | {"model": str(root / "base")}
    training = {"method": "lora", "max_steps": 1, "batch_size": 8, "num_evals": 1, "validation_rows": 0}
    catalens.train(make_recipe(fields | {"training": training}), root / "run")
    return root


def load_run_processor(folder: Path) -> None:
    from catalens.checkpoint import load_processor

    load_processor("tiny").save_pretrained(folder)


def test_a_run_that_moved_finds_its_base_or_says_what_is_missing(on_a_folder, tmp_path, monkeypatch):
    root = shutil.copytree(on_a_folder, tmp_path / "all")
    base = json.loads((root / "run" / "versions.json").read_text())["base"]
    adapter = json.loads((root / "run" / "best" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == base
    monkeypatch.chdir(tmp_path)
    assert load_run("all/run").model is not None
    recipe = (root / "run" / "recipe.yaml").read_text()
    (root / "run" / "recipe.yaml").write_text(recipe.replace(str(on_a_folder / "base"), str(root / "gone")))
    with pytest.raises(
        CheckpointError, match=rf"its base model .*gone is not there \(weights {base}\): name the folder"
    ):
        load_run(root / "run")
    (root / "base").rename(root / "gone")
    assert load_run(root / "run").model is not None


def test_another_base_than_the_one_of_the_training_is_refused(on_a_folder, tmp_path):
    root = shutil.copytree(on_a_folder, tmp_path / "all")
    recipe = (root / "run" / "recipe.yaml").read_text()
    (root / "run" / "recipe.yaml").write_text(recipe.replace(str(on_a_folder), str(root)))
    assert load_run(root / "run").model is not None
    other = load_model("tiny")
    other.lm_head.weight.data.mul_(1.01)
    other.save_pretrained(root / "base")
    with pytest.raises(CheckpointError, match=r"its base model .*base has changed since the training"):
        load_run(root / "run")


def test_a_run_does_not_go_on_beside_another_base(on_a_folder, tmp_path):
    run = shutil.copytree(on_a_folder / "run", tmp_path / "run")
    shutil.rmtree(run / "best")
    versions = json.loads((run / "versions.json").read_text())
    (run / "versions.json").write_text(json.dumps(versions | {"base": "sha256:other"}))
    with pytest.raises(TrainingError, match=r"the base model has changed since .*run was begun"):
        catalens.train(resume=run)


def test_an_adapter_beside_an_adapted_run_is_exported_with_both(recipe, adapted, tmp_path):
    fields = recipe.model_dump(mode="json") | {"model": str(adapted)}
    training = {"method": "lora", "max_steps": 2, "batch_size": 8, "num_evals": 1, "validation_rows": 0}
    catalens.train(make_recipe(fields | {"training": training}), tmp_path / "run")
    export = catalens.export(tmp_path / "run", "merged", tmp_path / "out", rows=2)
    first, both = load_model(str(adapted)).state_dict(), load_file(export.folder / "model.safetensors")
    assert any(not torch.equal(first[name], weight) for name, weight in both.items())
    assert json.loads((export.folder / "export.json").read_text())["base"].startswith("sha256:")


def test_weights_of_the_hub_are_known_by_their_names_in_the_cache(tmp_path, monkeypatch):
    """The hub keeps large files under their SHA-256: a base of many gigabytes is not read for it."""
    plain, snapshot = tmp_path / "plain", tmp_path / "snapshot"
    plain.mkdir()
    snapshot.mkdir()
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        (plain / name).write_bytes(name.encode())
        blob = tmp_path / file_hash(plain / name)
        blob.write_bytes(name.encode())
        (snapshot / name).symlink_to(blob)
    expected = weights_hash(str(plain))
    monkeypatch.setattr(checkpoint, "file_hash", lambda path: 1 / 0)
    assert weights_hash(str(snapshot)) == expected


def test_a_catalogue_that_moved_is_named(run, drawn, tmp_path):
    copy = shutil.copytree(run, tmp_path / "run")
    recipe = (copy / "recipe.yaml").read_text()
    (copy / "recipe.yaml").write_text(recipe.replace(str(drawn), str(tmp_path / "gone")))
    with pytest.raises(CatalogError, match="gone"):
        catalens.export(copy, "merged", tmp_path / "out", rows=2)
    assert catalens.export(copy, "merged", tmp_path / "out", rows=2, catalog=drawn).certificate.passed


def test_a_catalogue_that_changed_is_refused(run, tmp_path):
    catalens.sample(tmp_path / "other", 40, seed=9)
    with pytest.raises(CatalogError, match=r"other is not the catalogue that .* was trained on"):
        catalens.export(run, "merged", tmp_path / "out", rows=2, catalog=tmp_path / "other")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "give a run to export, or --check"),
        (["RUN", "--check", "x"], "give a run to export, or --check"),
        (["RUN", "--to", "gguf"], "--to gguf: the choices are"),
        (["--check", "nowhere"], "nowhere is not an export"),
    ],
)
def test_what_cannot_be_exported_is_one_sentence(run, arguments, words):
    result = CliRunner().invoke(app, ["export", *(str(run) if one == "RUN" else one for one in arguments)])
    assert result.exit_code
    assert words in str(result.exception)


def test_the_run_itself_stays_as_it_was(run, tmp_path):
    before = {path: file_hash(path) for path in run.rglob("*") if path.is_file()}
    catalens.export(run, "merged", tmp_path / "out", rows=2)
    assert before == {path: file_hash(path) for path in run.rglob("*") if path.is_file()}
