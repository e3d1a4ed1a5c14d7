import json
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from catalens.cli import app
from catalens.config import Recipe
from catalens.errors import InferenceError

VERBS = ("demo", "sample", "prepare", "check", "train", "evaluate", "compare", "predict", "serve", "recipe-schema")
HEAVY = ("torch", "transformers", "wandb", "datasets", "sklearn", "fastapi", "uvicorn")


def catalens(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command as a user runs it."""
    command = [sys.executable, "-m", "catalens", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, check=False, timeout=300)


def test_help_imports_nothing_heavy():
    code = (
        "import sys\nfrom typer.testing import CliRunner\nfrom catalens.cli import app\n"
        "assert CliRunner().invoke(app, ['--help']).exit_code == 0\n"
        f"print([name for name in {HEAVY} if name in sys.modules])"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


@pytest.mark.parametrize("verb", VERBS)
def test_help_teaches_by_example(verb: str):
    result = CliRunner().invoke(app, [verb, "--help"])
    assert result.exit_code == 0
    assert f"Example:  catalens {verb}" in " ".join(result.output.split("\n"))


def test_the_help_names_every_verb_and_the_exit_codes():
    output = CliRunner().invoke(app, ["--help"]).output
    assert all(verb in output for verb in VERBS)
    assert "Exit codes" in output


def test_the_schema_is_the_recipe():
    assert json.loads(CliRunner().invoke(app, ["recipe-schema"]).output) == Recipe.model_json_schema()


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["train", "no.yaml"], 2, "no.yaml: cannot be read"),
        (["train", "recipe.yaml", "--set", "training.epoch=3"], 2, "did you mean 'epochs'"),
        (["train", "recipe.yaml", "--set", "nonsense"], 2, "key.key=value"),
        (["train", "recipe.yaml"], 3, "catalogs/none is not a catalogue"),
        (["evaluate", "runs/none"], 7, "runs/none is not a run"),
        (["predict", "runs/none", "photo.jpg"], 7, "runs/none is not a finished run"),
        (["predict", "runs/none", "shop.csv"], 3, "shop.csv: there is no such file"),
        (["predict", "runs/none", "shop.csv", "--split", "test"], 2, "--split: leave it out, shop.csv is a table"),
        (["predict", "runs/none", "shop.csv", "photo.jpg"], 2, "give a table or a catalogue alone"),
        (["predict", "runs/none", "photo.jpg", "--out", "out.xls"], 2, "ends in .jsonl, .csv, .parquet"),
        (["predict", "runs/none", "photo.jpg", "--overwrite"], 2, "--overwrite needs --out"),
        (["predict", "runs/none", "photo.jpg", "--max-bad", "half"], 2, "give a share such as 5%"),
        (["sample", "x", "--splits", "1,2"], 2, "three shares"),
        (["prepare", "no.csv"], 3, "no.csv: there is no such file"),
        (["prepare", "no.csv", "--retry", "all"], 2, "the only choice is failed"),
        (["prepare", "no.csv", "--engine", "spark"], 2, "engine"),
        (["prepare", "no.csv", "--decimal", ";"], 2, "decimal"),
        (["prepare", "no.csv", "--image", "i", "--id", "d", "--text", "d", "--out", "x"], 2, "two roles"),
        (["prepare", "no.csv", "--image", "i", "--id", "d", "--text", "t", "--out", "x"], 3, "no.csv"),
        (["train"], 2, "give a recipe"),
        (["train", "--resume", "runs/none"], 7, "runs/none is not a run"),
        (["train", "recipe.yaml", "--resume", "runs/none"], 2, "give nothing else"),
        (["sample"], 2, "Missing argument"),
        (["check", "catalogs/none"], 3, "catalogs/none is not a catalogue"),
    ],
)
def test_errors_are_one_sentence_and_an_exit_code(arguments: list[str], code: int, words: str, tmp_path: Path):
    (tmp_path / "recipe.yaml").write_text("catalog: catalogs/none\n")
    result = catalens(*arguments, cwd=tmp_path)
    assert result.returncode == code, result.stderr
    assert words in " ".join(result.stderr.split())
    assert "Traceback" not in result.stderr
    assert not result.stdout


@pytest.mark.integration
def test_predict_prints_one_json_line_a_picture(run, drawn, tmp_path):
    from catalens.catalog import Catalog

    good, bad = tmp_path / "good.jpg", tmp_path / "bad.jpg"
    good.write_bytes(Catalog(drawn).rows("test")[0]["image"])
    bad.write_bytes(b"<html>not found</html>")
    result = catalens("predict", run, good, bad, tmp_path / "absent.jpg", good, "--batch-size", "3")
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [Path(line["file"]).name for line in lines] == ["good.jpg", "bad.jpg", "absent.jpg", "good.jpg"]
    assert result.returncode == 6
    assert lines[0] == lines[3]
    assert {"title", "category3_code", "full_price"} <= set(lines[0]) or "error" in lines[0]
    assert "not a picture" in lines[1]["error"]
    assert "No such file" in lines[2]["error"]
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize(
    "error", [RuntimeError("CUDA out of memory\nTried to"), InferenceError("too much"), OSError(28, "disk full")]
)
def test_a_calibration_that_fails_leaves_a_finished_run_and_one_sentence(error, tmp_path, monkeypatch):
    def fails(*args: object) -> None:
        raise error

    monkeypatch.setattr("catalens.evaluation.evaluate.validation_scorer", lambda recipe: None)
    monkeypatch.setattr("catalens.training.train.train", lambda *args: None)
    monkeypatch.setattr("catalens.evaluation.evaluate.calibrate", fails)
    (tmp_path / "recipe.yaml").write_text("catalog: shop")
    ended = CliRunner().invoke(app, ["train", str(tmp_path / "recipe.yaml"), "--out", "runs/a"])
    assert ended.exit_code == 0
    reason = str(error).partition("\n")[0]
    sentence = f"not calibrated ({reason}): runs/a is finished; `catalens evaluate runs/a` calibrates it"
    assert ended.stderr == f"{sentence}\n"
