"""A run is tracked in its own folder, or nowhere; nothing is asked and nothing is sent."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from catalens.config import TrackingSpec
from catalens.tracking import NoTracker, logged_in, start_tracker

KEY = "0123456789abcdef0123456789abcdef01234567"
ASKED = ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE", "NETRC")

TRACK = """
import json, sys
from pathlib import Path
from catalens.config import TrackingSpec
from catalens.errors import TrainingError
from catalens.tracking import start_tracker

try:
    tracker = start_tracker(TrackingSpec(project="shop"), Path(sys.argv[1]), {"training": {"epochs": 3}})
except TrainingError as error:
    sys.exit(str(error))
tracker.log({"loss": 2.5}, step=1)
tracker.log({"loss": 1.5}, step=2)
tracker.summary({"best/loss": 1.5})
tracker.finish()
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder without credentials."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ASKED:
        monkeypatch.delenv(name, raising=False)
    return home


def track(folder: Path, home: Path, **settings: str) -> subprocess.CompletedProcess:
    """Track a run in a process of its own, whose environment holds nothing else."""
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", TRACK, str(folder)],
        env={"PATH": os.environ["PATH"], "HOME": str(home), **settings},
        cwd=folder,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )


def test_nobody_logged_in_means_an_offline_run_in_the_folder_and_nothing_at_home(tmp_path: Path, home: Path):
    folder = tmp_path / "runs" / "demo"
    folder.mkdir(parents=True)
    done = track(folder, home)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (written,) = folder.glob("wandb/offline-run-*/run-*.wandb")
    records = written.read_bytes()
    for said in (b"shop", b"demo", b"epochs", b"loss", b"2.5", b"1.5", b"best/loss"):
        assert said in records
    assert list(home.iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["home", "runs"]


@pytest.mark.parametrize(
    "settings", [{"WANDB_MODE": "sometimes"}, {"WANDB_API_KEY": "short"}], ids=lambda settings: next(iter(settings))
)
def test_what_wandb_refuses_is_one_sentence_with_a_way_out(tmp_path: Path, home: Path, settings: dict[str, str]):
    done = track(tmp_path, home, **settings)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("W&B cannot start (")
    assert last.endswith("): set WANDB_MODE=offline, or tracking.to=none in the recipe")


def test_none_is_a_tracker_that_does_nothing(tmp_path: Path):
    before = dict(os.environ)
    tracker = start_tracker(TrackingSpec(to="none"), tmp_path, {})
    assert isinstance(tracker, NoTracker)
    tracker.log({"loss": 1.0}, step=1)
    tracker.summary({"loss": 1.0})
    tracker.finish()
    assert list(tmp_path.iterdir()) == []
    assert dict(os.environ) == before


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
