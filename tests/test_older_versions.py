"""What earlier versions have written still opens, and says what it said.

`assets/v0.1` holds a catalogue of 14 rows, a recipe, a LoRA run of the tiny model with a checkpoint before its end
and its evaluation, and predictions; its README says by which commands they were made.
"""

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from catalens.cli import app
from catalens.errors import InferenceError, TrainingError

pytestmark = [pytest.mark.integration, pytest.mark.filterwarnings("ignore:.*training:FutureWarning")]

ADAPTER = "best/adapter_model.safetensors"


@pytest.fixture
def old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of what version 0.1 has written, as the working directory: its paths are relative."""
    folder = tmp_path / "v0.1"
    shutil.copytree(Path(__file__).with_name("assets") / "v0.1", folder)
    monkeypatch.chdir(folder)
    return folder


def catalens(*arguments: str) -> str:
    """Run a command to a good end; what it printed to stdout."""
    ended = CliRunner().invoke(app, [*arguments], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    return ended.stdout


def close(one: Any, other: Any) -> bool:
    """Equal, but for numbers in fractions, which another processor rounds otherwise."""
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(close(one[name], other[name]) for name in one)
    if isinstance(one, list):
        return len(one) == len(other) and all(map(close, one, other))
    return other == (pytest.approx(one, rel=1e-3, abs=1e-3) if isinstance(one, float) else one)


def of_today(one: Any, today: Any) -> Any:
    """Figures of an earlier version under their names of today, beside those that it did not know."""
    if not isinstance(one, dict):
        return one
    named = {{"within_10pct": "within_tolerance"}.get(name, name): value for name, value in one.items()}
    return today | {name: of_today(value, today[name]) for name, value in named.items()}


def same_adapter(one: Path, other: Path) -> bool:
    first, second = load_file(one / ADAPTER), load_file(other / ADAPTER)
    return first.keys() == second.keys() and all(torch.allclose(first[n], second[n], atol=1e-5) for n in first)


def losses(run: Path) -> dict[int, float]:
    """Training loss by step."""
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return {line["step"]: line["train/loss"] for line in lines if "train/grad_norm" in line}


def test_a_catalogue_is_checked(old: Path):
    output = " ".join(catalens("check", "catalog", "--recipe", "recipe.yaml").split())
    assert "5 train, 4 validation, 5 test rows of 8 products" in output
    assert "warning 1 category of category3_code without any training row validation row 1 (56401187)" in output
    assert "fields: title (text), category3_code (category), full_price (number)" in output
    assert (old / "catalog" / "check.html").is_file()


def test_a_recipe_of_the_old_field_names_trains_the_same_run(old: Path):
    """The recipe names every field that had another name, or was a choice, in version 0.1."""
    catalens("train", "recipe.yaml", "--out", "again")
    assert same_adapter(old / "again", old / "run")
    assert json.loads((old / "again" / "best" / "adapter_config.json").read_bytes())["r"] == 1
    assert losses(old / "again") == pytest.approx(losses(old / "run"), rel=1e-4)
    assert [*losses(old / "again")] == [1, 2, 3, 4]


def test_a_stopped_run_of_the_former_trainer_is_told_to_train_anew(old: Path):
    shutil.copytree("run", "stopped")
    shutil.rmtree("stopped/best")
    with pytest.raises(TrainingError, match="of another version of catalens: train anew"):
        catalens("train", "--resume", "stopped")


def test_a_finished_run_is_evaluated_to_the_same_scores(old: Path):
    before = json.loads((old / "run/evaluation/metrics.json").read_bytes())
    shutil.rmtree("run/evaluation")
    catalens("evaluate", "run")
    after = json.loads((old / "run/evaluation/metrics.json").read_bytes())
    assert (after["rows"], after["split"]) == (5, "test")
    for name in ("model", "constrained", "baselines", "before", "noise_floor"):
        assert close(of_today(before[name], after[name]), after[name]), name
    assert after["model"]["fields"]["title"]["exact"]["value"] == 1.0
    assert after["constrained"]["fields"]["full_price"]["mae"]["value"] == pytest.approx(371.6)


def test_an_evaluation_is_compared_with_another_one(old: Path):
    shutil.copytree("run", "second")
    figures = json.loads(catalens("compare", "run", "second", "--json"))
    assert (figures["rows"], figures["products"], len(figures["runs"])) == (5, 2, 2)
    for run in figures["runs"]:
        assert run["scores"]["fields"]["category3_code"]["accuracy"]["value"] == pytest.approx(0.4)


def read(path: Path) -> list[dict[str, Any]]:
    match path.suffix:
        case ".parquet":
            return pq.read_table(path).to_pylist()
        case ".jsonl":
            return [json.loads(line) for line in path.read_text().splitlines()]
    with path.open(newline="") as file:
        return [*csv.DictReader(file)]


@pytest.mark.parametrize("suffix", [".parquet", ".csv", ".jsonl"])
def test_a_finished_run_predicts_the_same_file(suffix: str, old: Path):
    before, after = old / f"predictions/predictions{suffix}", old / f"after{suffix}"
    asked = ("predict", "run", "catalog", "--split", "test", "--batch-size", "4", "--out")
    with pytest.raises(InferenceError, match="is there already"):
        catalens(*asked, str(before))
    catalens(*asked, str(after))
    assert list(read(after)[0]) == list(read(before)[0])
    assert [row["title"] for row in read(after)] == ["Checked Orange Boot"] * 4 + ["Silver-Trim Dotted Black Sneaker"]
    assert [float(row["full_price"]) for row in read(after)] == [82.0, 83.0, 83.0, 83.0, 127.0]
    numbers = [[float(row["title_confidence"]) for row in read(file)] for file in (before, after)]
    assert numbers[0] == pytest.approx(numbers[1], abs=2e-4)
