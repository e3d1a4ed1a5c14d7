"""The folder of a run, and a home folder without credentials."""

from pathlib import Path

import pytest

ASKED = ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_IDENTITY_TOKEN_FILE", "NETRC")


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder without credentials."""
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    for name in ASKED:
        monkeypatch.delenv(name, raising=False)
    return home


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """The folder of a run."""
    folder = tmp_path / "runs" / "demo"
    folder.mkdir(parents=True)
    return folder
