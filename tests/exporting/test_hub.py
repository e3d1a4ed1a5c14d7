"""Publishing: the card before anything is pushed, and pushes to a hub on loopback."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from fake_hub import FakeHub, Repo
from typer.testing import CliRunner

import catalens
from catalens.checkpoint import load_model
from catalens.cli import app
from catalens.errors import CheckpointError, RecipeError
from catalens.exporting import licence_of, publish

pytestmark = pytest.mark.integration
SCRIPT = """
import json, sys
from typer.testing import CliRunner
from catalens.cli import app

for line in sys.stdin:
    result = CliRunner().invoke(app, json.loads(line))
    print(json.dumps([result.exit_code, result.stdout[-2000:], str(result.exception or "")]))
from catalens.checkpoint import load_model, load_processor
loaded = load_model("me/demo")
print(json.dumps([loaded.num_parameters(), load_processor("me/demo").image_processor.num_crops]))
"""


@pytest.fixture(scope="module")
def evaluated(run, tmp_path_factory) -> Path:
    """The run of all tests with its evaluation."""
    folder = shutil.copytree(run, tmp_path_factory.mktemp("evaluated") / "demo")
    catalens.evaluate(folder)
    return folder


@pytest.fixture(scope="module")
def published(evaluated, tmp_path_factory):
    """A dry run."""
    return publish(evaluated, "me/demo", tmp_path_factory.mktemp("exports") / "demo", rows=3, dry_run=True)


def push(hub: FakeHub, *commands: list[str | Path]) -> list[list]:
    """Give commands to one process that knows the hub; the exit code, output and error of each, then what loads."""
    environment = os.environ | {"HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    environment |= {"HF_TOKEN": "hf_test", "HF_HUB_DISABLE_TELEMETRY": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    environment |= {"HF_HOME": os.environ["CATALENS_CACHE"] + "/hf"}
    asked = "".join(json.dumps([str(word) for word in command]) + "\n" for command in commands)
    process = subprocess.run(
        [sys.executable, "-c", SCRIPT], input=asked, env=environment, capture_output=True, text=True, check=False
    )
    assert process.returncode == 0, process.stderr
    return [json.loads(line) for line in process.stdout.splitlines()]


def test_a_dry_run_shows_card_and_files_and_asks_no_network(published, evaluated):
    assert published.url is None
    assert published.card == (published.folder / "README.md").read_text()
    names = [name for name, _ in published.files]
    assert {"README.md", "config.json", "model.safetensors", "prompt.json", "equality.json"} <= set(names)
    assert "reference.parquet" not in names
    result = CliRunner().invoke(
        app,
        ["export", str(evaluated), "--to", "hub", "--repo", "me/demo", "--out", str(published.folder), "--dry-run"],
    )
    assert result.exit_code == 0, result.output
    assert "# me/demo" in result.stdout
    assert "nothing was pushed (--dry-run); it would be private" in result.stdout


def test_the_card_has_every_figure_with_its_interval_and_its_rows(published, evaluated):
    head = yaml.safe_load(published.card.split("---\n")[1])
    metrics = json.loads((evaluated / "evaluation" / "metrics.json").read_text())
    assert head["license"] == "mit"
    assert "base_model" not in head  # `tiny` is no name of the hub
    (dataset,) = head["model-index"][0]["results"]
    assert dataset["dataset"] == {"type": "catalens-catalogue", "name": "drawn", "split": "test"}
    told = {one["type"]: one for one in dataset["metrics"]}
    for column, figures in metrics["model"]["fields"].items():
        for metric, figure in figures.items():
            one = told[f"{column}.{metric}"]
            assert one["value"] == figure["value"]
            assert one["args"]["interval95"] == [figure["low"], figure["high"]]
            assert one["args"]["n"] == metrics["n"][column]


@pytest.mark.parametrize(
    "words",
    [
        "| | This model | Constrained | Before fine-tuning | Nearest neighbour | Majority |",
        "## Does it look at the pictures?",
        "Probabilities are calibrated on",
        "catalens predict demo photo.jpg",
        "The licence of the base is mit.",
        "ok   answers: 3 of 3 rows equal (all must be)",
        "What is shown in this image?",
    ],
)
def test_the_card_says_what_a_reader_asks(published, words):
    assert words in published.card


@pytest.fixture
def unscored(run, tmp_path):
    """A run that nothing has evaluated."""
    return shutil.copytree(run, tmp_path / "run", ignore=shutil.ignore_patterns("evaluation*"))


def test_a_run_without_scores_says_so_in_its_card(unscored, tmp_path):
    card = publish(unscored, "me/demo", tmp_path / "out", rows=2, dry_run=True).card
    assert "It was not evaluated" in card
    assert "model-index" not in card


def test_a_damaged_evaluation_is_one_sentence(unscored, tmp_path):
    (unscored / "evaluation").mkdir()
    (unscored / "evaluation" / "metrics.json").write_text("{")
    with pytest.raises(CheckpointError, match=r"metrics.json cannot be read: run `catalens evaluate"):
        publish(unscored, "me/demo", tmp_path / "out", rows=2, dry_run=True)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("model", "licence"),
    [
        ("tiny", "mit"),
        ("microsoft/Phi-3.5-vision-instruct", "mit"),
        ("someone/else", None),
        ("FOLDER", "apache-2.0"),
        ("RUN", "mit"),
        ("BARE", None),
    ],
)
def test_the_licence_is_that_of_the_base(model, licence, run, tmp_path):
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n# base\n")
    (tmp_path / "bare").mkdir()
    places = {"FOLDER": str(tmp_path), "RUN": str(run), "BARE": str(tmp_path / "bare")}
    assert licence_of(places.get(model, model)) == licence


def test_pushes_are_private_whole_and_without_pictures(evaluated, published):
    command = ["export", evaluated, "--to", "hub", "--out", published.folder]
    with FakeHub() as hub:
        hub.repos |= {"me/open": Repo(private=False), "me/full": Repo(private=True, full=True)}
        whole, again, shown, opened, full, loaded = push(
            hub,
            [*command, "--repo", "demo", "--push-reference"],
            [*command, "--repo", "me/demo"],
            [*command, "--repo", "me/shown", "--public"],
            [*command, "--repo", "me/open"],
            [*command, "--repo", "me/full"],
        )
    assert [whole[0], again[0], shown[0]] == [0, 0, 0], [whole, again, shown]
    demo = hub.repos["me/demo"]
    assert demo.private
    assert not hub.repos["me/shown"].private
    assert "reference.parquet" in whole[1]
    assert f"pushed, private: {hub.url}/me/demo" in again[1]
    assert f"pushed, public: {hub.url}/me/shown" in shown[1]
    kept = {path.name: path.read_bytes() for path in published.folder.iterdir()}
    del kept["reference.parquet"], kept["README.md"]  # the first never, the second with the name of the repository
    assert {name: data for name, data in demo.files.items() if name != "README.md"} == kept
    assert b"# me/demo" in demo.files["README.md"]
    assert demo.commits == ["catalens export of demo"] * 2
    assert "--repo me/open is public: add --public, or name another one" in opened[2]
    assert not hub.repos["me/open"].files
    assert re.search(
        r"--repo me/full: cannot be pushed \(.*storage limit.*\): .*same command again; the export is in", full[2]
    )
    assert loaded == [load_model("tiny").num_parameters(), 4]


def test_a_hub_out_of_reach_is_one_sentence_and_the_export_stays(evaluated, published):
    with pytest.raises(CheckpointError, match=r"--repo me/demo: cannot be pushed \(.*offline.*\): .*hf auth login"):
        publish(evaluated, "me/demo", published.folder)
    assert (published.folder / "model.safetensors").is_file()


def test_only_what_was_certified_is_pushed(run, published, evaluated, tmp_path):
    folder = shutil.copytree(published.folder, tmp_path / "out")
    with (folder / "model.safetensors").open("r+b") as file:
        file.seek(-4, 2)
        file.write(b"\x00\x00\x00\x00")
    with pytest.raises(CheckpointError, match=r"out is no longer as it was certified"):
        publish(evaluated, "me/demo", folder, dry_run=True)


def test_a_folder_of_another_run_is_not_pushed(adapted, published):
    with pytest.raises(CheckpointError, match=r"demo exists already: choose another --out"):
        publish(adapted, "me/demo", published.folder, dry_run=True)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--to", "hub"], "--to hub needs --repo"),
        (["--repo", "me/demo"], "are for --to hub: leave them out"),
        (["--public"], "are for --to hub: leave them out"),
        (["--dry-run"], "are for --to hub: leave them out"),
    ],
)
def test_flags_that_do_not_fit_are_one_sentence(run, arguments, words):
    result = CliRunner().invoke(app, ["export", str(run), *arguments])
    assert isinstance(result.exception, RecipeError)
    assert words in str(result.exception)


def test_a_reference_that_is_not_there_cannot_be_pushed(run, tmp_path):
    with pytest.raises(RecipeError, match=r"--push-reference: .* has no reference.parquet"):
        publish(run, "me/demo", tmp_path / "out", rows=2, reference=False, push_reference=True, dry_run=True)
