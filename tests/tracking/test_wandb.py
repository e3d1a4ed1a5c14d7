"""A real run of wandb, read back by wandb's own inspector; whatever fails, the run goes on."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from tracked import CONFIG, HOSTILE, METADATA, WARNING, alone, artifacts, assert_quiet, history, records, track

from catalens.tracking.wandb import logged_in

KEY = "0123456789abcdef0123456789abcdef01234567"


def stored(artifact: dict[str, Any]) -> dict[str, Path]:
    """Name of each file of an artifact to where it lies on this machine."""
    return {entry["path"]: Path(entry["local_path"]) for entry in artifact["manifest"]["contents"]}


def test_an_offline_wandb_run_holds_everything(folder: Path, home: Path):
    assert_quiet(track(folder, home, {"to": "wandb"}))
    (run,) = folder.glob("wandb/offline-run-*")
    kinds = records(run, home)
    (begun,) = kinds["run"]
    assert (begun["project"], begun["display_name"]) == ("shop", "demo")
    assert "entity" not in begun
    assert begun["run_id"] == (folder / "wandb_id.txt").read_text().strip()
    assert {name: value for name, value in begun["config"]["update"].items() if name != "_wandb"} == CONFIG

    logged = history(kinds)
    scalars = {
        step: {name: value for name, value in row.items() if not name.startswith("validation/examples")}
        for step, row in logged.items()
    }
    assert scalars == {
        1: {"train/loss": 2.5, "train/learning_rate": 0.001},
        2: {"train/loss": 1.5, "validation/loss": 1.25},
        4: {"validation/loss": 0.75},
    }
    (alert,) = kinds["alert"]
    assert (alert["level"], alert["title"], alert["text"]) == ("WARN", *WARNING)

    (dataset,) = artifacts(kinds, "dataset")
    assert json.loads(dataset["metadata"]) == {"content_hash": CONFIG["versions"]["catalog"]}
    (model,) = artifacts(kinds, "model")
    assert model["name"] == "model-demo"
    assert {"best", "step-4"} <= set(model["aliases"])
    assert json.loads(model["metadata"]) == {**METADATA, "dataset": dataset["name"]}
    best = folder / "best"
    names = ("model.safetensors", "processor/tokenizer.json")
    assert stored(model) == {name: best / name for name in names}  # pointed at, not copied
    assert [path for path in folder.rglob("*") if path.is_file() and path.stat().st_size == 54_321] == [
        best / names[0]
    ]

    summary = {name: value for record in kinds["summary"] for name, value in record.get("update", {}).items()}
    assert (summary["best/loss"], summary["best/shuffled_hurts"], summary["best/by"]) == (0.75, False, "loss")
    assert summary[f"warning/{WARNING[0]}"] == WARNING[1]
    assert [record["exit_code"] for record in kinds["exit"]] == [0]
    assert list(home.iterdir()) == []
    assert sorted(path.name for path in folder.iterdir()) == ["best", "wandb", "wandb_id.txt"]


def test_the_table_of_wandb_is_one_that_grows(folder: Path, home: Path):
    track(folder, home, {"to": "wandb"})
    (run,) = folder.glob("wandb/offline-run-*")
    kinds = records(run, home)
    first, second = artifacts(kinds, "wandb-run-incremental-table")
    assert first["name"] == second["name"]
    last = history(kinds)[4]
    assert (last["validation/examples._type"], last["validation/examples.nrows"]) == ("incremental-table-file", 4)
    (previous,) = last["validation/examples.previous_increments_paths"]
    assert first["client_id"] in previous
    assert second["client_id"] in last["validation/examples.artifact_path"]

    rows = []
    for artifact in (first, second):
        files = stored(artifact)
        (table,) = (json.loads(path.read_text()) for name, path in files.items() if name.endswith(".table.json"))
        fields = ["truth/title", "prediction/title", "truth/price", "prediction/price"]
        assert table["columns"] == ["step", "id", "picture", *fields, "error"]
        for row in table["data"]:
            kept = files[row[2]["path"]]
            assert kept.is_relative_to(folder)
            with Image.open(kept) as shown:
                assert (shown.format, shown.size) == ("JPEG", (512, 384))
            rows.append([*row[:2], *row[3:]])
    assert rows == [
        [2, "coat-1", "Coat", "Cape", 10.0, 12.0, None],
        [2, "bag-2", HOSTILE, None, 5.5, None, "no price"],
        [4, "coat-1", "Coat", "Cape", 10.0, 10.5, None],
        [4, "bag-2", HOSTILE, None, 5.5, None, "no price"],
    ]


def test_a_run_that_goes_on_is_the_same_and_shows_no_more_than_the_recipe_allows(folder: Path, home: Path):
    for _ in range(2):
        assert_quiet(track(folder, home, {"to": "wandb", "examples": 0, "model": False}))
    runs = sorted(folder.glob("wandb/offline-run-*"))
    assert len(runs) == 2
    identity = (folder / "wandb_id.txt").read_text().strip()
    for run in runs:
        kinds = records(run, home)
        assert kinds["run"][0]["run_id"] == identity
        assert "artifact" not in kinds
        assert history(kinds)[4] == {"validation/loss": 0.75}
    assert not list(folder.glob("wandb/**/*.jpg"))
    assert not list(folder.glob("wandb/**/staging/*"))


def test_wandb_disabled_leaves_nothing(folder: Path, home: Path):
    assert_quiet(track(folder, home, {"to": "wandb"}, WANDB_MODE="disabled"))
    assert [path.name for path in folder.iterdir()] == ["best"]
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    ("settings", "why"),
    [
        ({"WANDB_MODE": "sometimes"}, "'sometimes'"),
        ({"WANDB_API_KEY": "short"}, "40+ characters"),
        # nothing listens on port 9
        ({"WANDB_API_KEY": KEY, "WANDB_BASE_URL": "http://127.0.0.1:9", "WANDB_INIT_TIMEOUT": "2"}, "127.0.0.1:9"),
    ],
    ids=["mode", "key", "network"],
)
def test_what_wandb_refuses_is_one_sentence_and_an_offline_run(
    folder: Path, home: Path, settings: dict[str, str], why: str
):
    done = track(folder, home, {"to": "wandb", "model": False}, **settings)
    assert (done.returncode, done.stdout) == (0, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("W&B cannot start ")
    assert why in line
    assert line.endswith("the run is tracked offline, `wandb sync` sends it")
    (run,) = folder.glob("wandb/offline-run-*")
    assert history(records(run, home))[4]["validation/loss"] == 0.75


KILLED = """
import sys
from pathlib import Path
import psutil
from catalens.config import TrackingSpec
from catalens.tracking import start_tracker

tracker = start_tracker(TrackingSpec(), Path(sys.argv[1]), {}, print)
tracker.log({"train/loss": 2.5}, step=1)
for service in psutil.Process().children():
    service.kill()
    service.wait()
for step in range(2, 9):
    tracker.log({"train/loss": 1.5}, step)
tracker.warn("Title", "text")
tracker.summary({"best/loss": 1.5})
tracker.finish()
print("went on")
"""


def test_a_run_outlives_the_death_of_wandb(folder: Path, home: Path):
    killed = [sys.executable, "-c", KILLED, str(folder)]
    done = subprocess.run(killed, env=alone(home), cwd=folder, capture_output=True, text=True, check=True)
    told, went_on = done.stdout.splitlines()
    assert told.startswith("wandb failed (")
    assert went_on == "went on"


def test_nobody_is_logged_in_without_credentials(home: Path):
    assert not logged_in()


@pytest.mark.parametrize("name", ["WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE"])
def test_credentials_in_the_environment(home: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    monkeypatch.setenv(name, KEY)
    assert logged_in()
    monkeypatch.setenv(name, "")
    assert not logged_in()


def netrc(folder: Path, text: str) -> Path:
    path = folder / ".netrc"
    path.write_text(text, encoding="utf-8")
    path.chmod(0o600)
    return path


@pytest.mark.parametrize(
    ("machine", "server", "known"),
    [
        ("api.wandb.ai", None, True),
        ("api.forge.coreweave.com", None, True),
        ("example.org", None, False),
        ("wandb.shop.example:8080", "http://wandb.shop.example:8080", True),
        ("api.wandb.ai", "http://wandb.shop.example:8080", False),
    ],
)
def test_credentials_in_netrc(
    home: Path, monkeypatch: pytest.MonkeyPatch, machine: str, server: str | None, known: bool
):
    netrc(home, f"machine {machine} login user password {KEY}\n")
    if server:
        monkeypatch.setenv("WANDB_BASE_URL", server)
    assert logged_in() is known


def test_netrc_may_stand_elsewhere(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("NETRC", str(netrc(tmp_path, f"machine api.wandb.ai login user password {KEY}\n")))
    assert logged_in()


@pytest.mark.parametrize("text", ["", "machine", "nonsense here", "machine api.wandb.ai login"])
def test_a_broken_netrc_is_no_login(home: Path, text: str):
    netrc(home, text)
    assert not logged_in()


def test_the_installed_wandb_logs_in_where_we_look(home: Path):
    """A new address in a new wandb is noticed here."""
    code = "import json, wandb; print(json.dumps(wandb.Settings().base_url))"
    asked = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": os.environ["PATH"], "HOME": str(home)},
        capture_output=True,
        check=True,
    )
    host = json.loads(asked.stdout).removeprefix("https://")
    netrc(home, f"machine {host} login user password {KEY}\n")
    assert logged_in()
