"""The certificate: what is equal passes, what is not is named and left out, and the figures are those of the rows."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import catalens
from catalens import Catalog
from catalens.cli import app
from catalens.errors import CheckError, CheckpointError
from catalens.exporting import Certificate, Check, ReferenceRow, Trace, check, compare, sample_pixels

ROWS = [ReferenceRow(f"BAG-{n}", (b"photo",), "What?", {"title": "Red Bag"}) for n in range(4)]
ACCURACY = {"title": {"run": 1.0, "export": 0.75}}


def trace(**changes) -> Trace:
    ones = np.ones(8, np.float32)
    return replace(Trace(ones, [1, 2, 3], ones, "Product: Red Bag<|end|>", -0.5), **changes)


def certify(precision: str = "fp32", **changes) -> Certificate:
    """A certificate of four rows, of which the third differs in the export."""
    usual = [trace() for _ in ROWS]
    return compare("merged", precision, ROWS, (usual, [*usual[:2], trace(**changes), usual[3]]), ACCURACY)


def failed(certificate: Certificate) -> list[str]:
    return [one.name for one in certificate.checks if not one.passed]


@pytest.mark.parametrize(
    ("changes", "names"),
    [
        ({}, []),
        ({"pixels": np.full(8, 1.01, np.float32)}, ["pixels"]),
        ({"pixels": np.ones(9, np.float32)}, ["pixels"]),
        ({"ids": [1, 2, 4]}, ["ids"]),
        ({"logits": np.full(8, 1.001, np.float32)}, ["logits"]),
        ({"logits": np.full(8, np.nan, np.float32)}, ["logits"]),
        ({"logits": np.ones(7, np.float32)}, ["logits"]),
        ({"logits": np.full(8, 1.00001, np.float32)}, []),
        ({"answer": "Product: Red Hat<|end|>"}, ["answers"]),
        ({"log_probability": -0.51}, ["log_probability"]),
        ({"log_probability": float("nan")}, ["log_probability"]),
        ({"log_probability": -0.50001}, []),
    ],
)
def test_what_differs_beyond_its_tolerance_fails_by_its_name(changes, names, tmp_path):
    certificate = certify(**changes)
    assert failed(certificate) == names
    assert certificate.passed == (not names)
    certificate.save(tmp_path)
    assert Certificate.load(tmp_path) == certificate
    assert json.loads((tmp_path / "equality.json").read_text())["passed"] == certificate.passed


def test_answers_that_differ_are_shown_with_their_row():
    lines = certify(answer="Product: Red Hat<|end|>").lines()
    assert "FAIL answers: 3 of 4 rows equal (all must be)" in lines
    assert lines[-1] == "  BAG-2: run 'Product: Red Bag<|end|>', export 'Product: Red Hat<|end|>'"
    assert "     title: 100.0% right, 75.0% exported" in lines


def test_log_probabilities_are_of_answers_that_are_the_same():
    certificate = certify(answer="Product: Red Hat<|end|>", log_probability=-9.0)
    assert failed(certificate) == ["answers"]


def test_no_rows_prove_nothing():
    certificate = compare("merged", "fp32", [], ([], []))
    assert not certificate.passed


def test_bf16_is_judged_by_its_own_rounding():
    assert not failed(certify("bf16", logits=np.full(8, 1.1, np.float32), log_probability=-0.6))
    assert failed(certify("bf16", logits=np.full(8, 2.0, np.float32), ids=[1])) == ["ids", "logits"]


@pytest.mark.parametrize(
    ("one", "line"),
    [
        (Check("pixels", 0.0, 1e-4), "ok   pixels: 0 apart at most (0.0001 allowed)"),
        (Check("log_probability", 5.5e-6, 1e-4), "ok   log probability: 5.5e-06 apart at most (0.0001 allowed)"),
        (Check("logits", None, 1e-4), "FAIL logits: cannot be compared (0.0001 allowed)"),
        (Check("answers", 0.125, 0.2), "ok   answers: 28 of 32 rows equal (0.2 allowed)"),
        (Check("answers", 0.125, None), "ok   answers: 28 of 32 rows equal (not judged)"),
        (Check("accuracy", 0.02, 0.01), "FAIL accuracy: 2.0 points lost at most (0.01 allowed)"),
    ],
)
def test_a_check_is_one_line(one, line):
    assert one.line(32) == line


@pytest.mark.parametrize("shape", [(1, 3, 56, 56), (17, 3, 336, 336), (1, 3, 8, 8)])
def test_pixels_are_sampled_from_all_tiles_channels_rows_and_columns(shape):
    places = np.indices(shape).reshape(4, -1)
    for size, place in zip(shape, places, strict=True):
        assert len(np.unique(sample_pixels(place.astype(np.float32)))) == size


def test_a_runtime_without_torch_can_be_certified():
    code = "import sys, catalens.exporting.certificate; print({'torch', 'transformers', 'pydantic'} & {*sys.modules})"
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert shown == "set()\n"


# On a real export


@pytest.fixture
def copied(merged, tmp_path) -> Path:
    return shutil.copytree(merged, tmp_path / "export")


def scale(folder: Path, weight: str, factor: float) -> None:
    weights = load_file(folder / "model.safetensors")
    weights[weight] *= factor
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "calibration.json").unlink(missing_ok=True)


def change(folder: Path, name: str, *changes: tuple[str, str]) -> None:
    text = (folder / name).read_text()
    for before, after in changes:
        assert before in text
        text = text.replace(before, after)
    (folder / name).write_text(text)


@pytest.mark.integration
@pytest.mark.parametrize(
    ("damage", "names"),
    [
        (lambda folder: scale(folder, "lm_head.weight", 1.001), ["logits", "log_probability"]),
        (lambda folder: change(folder, "config.json", ("1e-05", "1e-02")), ["logits"]),
        (lambda folder: change(folder, "processor_config.json", ("0.48145466", "0.5")), ["pixels", "logits"]),
        (lambda folder: change(folder, "processor_config.json", (": 4", ": 1")), ["pixels", "ids"]),
    ],
)
def test_an_export_that_was_damaged_fails_its_check_by_name(copied, damage, names):
    assert check(copied).passed
    damage(copied)
    assert set(names) <= set(failed(check(copied)))
    result = CliRunner().invoke(app, ["export", "--check", str(copied)])
    assert isinstance(result.exception, CheckError)
    assert f"FAIL {names[0]}" in result.stdout


@pytest.mark.integration
def test_an_export_that_answers_otherwise_is_not_written(adapted, tmp_path, monkeypatch):
    from catalens.exporting import merged

    write = merged.write

    def damaged(run, folder):
        precision = write(run, folder)
        scale(folder, "model.embed_tokens.weight", -1.0)
        return precision

    monkeypatch.setattr(merged, "write", damaged)
    with pytest.raises(CheckError, match=r"does not answer as the run does \(logits: .*\): .*out is not written"):
        catalens.export(adapted, "merged", tmp_path / "out", rows=3)
    assert not list(tmp_path.iterdir())


@pytest.mark.integration
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("export.json", "export.json cannot be read"),
        ("reference.parquet", "reference.parquet cannot be read"),
        ("prompt.json", "prompt.json"),
        ("answers.json", "answers.json"),
        ("model.safetensors", "cannot be loaded"),
    ],
)
def test_a_damaged_file_is_one_sentence(copied, name, words):
    (copied / name).write_bytes(b"\x00{")
    with pytest.raises(CheckpointError, match=words):
        check(copied)


@pytest.mark.integration
def test_the_reference_holds_validation_rows_with_their_pictures_and_truths(merged, drawn):
    batches = Catalog(drawn).batches("validation", ["image", "title"])
    stored = {bytes(row["image"]): row["title"] for batch in batches for row in batch}
    rows = pq.read_table(merged / "reference.parquet").to_pylist()
    assert len(rows) == 6
    assert [json.loads(row["truth"])["title"] for row in rows] == [stored[row["pictures"][0]] for row in rows]
