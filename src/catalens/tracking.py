"""Where a run is tracked. Off is a null object, so that nobody asks whether tracking is on."""

import netrc
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlparse

from catalens.config import TrackingSpec


class Tracker(Protocol):
    """What training and evaluation tell."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Scalars at an optimizer step."""

    def summary(self, values: Mapping[str, float]) -> None:
        """Final figures of the run."""

    def finish(self) -> None:
        """Close the run; everything is on disk afterwards."""


class NoTracker:
    """Tracks nothing."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Nothing."""

    def summary(self, values: Mapping[str, float]) -> None:
        """Nothing."""

    def finish(self) -> None:
        """Nothing."""


class WandbTracker:
    """A Weights & Biases run; offline when nobody is logged in, `wandb sync` sends it later."""

    def __init__(self, project: str, folder: Path, config: Mapping[str, Any]) -> None:
        # tables, media and artifacts are staged in the run's folder, not in the home folder
        os.environ.setdefault("WANDB_DATA_DIR", str(folder))
        os.environ.setdefault("WANDB_CACHE_DIR", str(folder / "wandb" / "cache"))
        import wandb

        mode = os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline")
        self._run = wandb.init(
            project=project,
            name=folder.name,
            dir=str(folder),
            config=dict(config),
            mode=mode,  # type: ignore[arg-type]
            settings=wandb.Settings(silent=True, console="off"),
        )

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Scalars at an optimizer step."""
        self._run.log(dict(values), step=step)

    def summary(self, values: Mapping[str, float]) -> None:
        """Final figures of the run."""
        self._run.summary.update(dict(values))

    def finish(self) -> None:
        """Close the run; everything is on disk afterwards."""
        self._run.finish()


def start_tracker(spec: TrackingSpec, folder: Path, config: Mapping[str, Any]) -> Tracker:
    """The tracker that the recipe asks for; `folder` is the run's, `config` the resolved recipe and the versions."""
    return WandbTracker(spec.project, folder, config) if spec.to == "wandb" else NoTracker()


def logged_in() -> bool:
    """Whether W&B credentials are at hand, asked without a network or a prompt."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    host = urlparse(os.environ.get("WANDB_BASE_URL", "https://api.wandb.ai")).hostname or ""
    try:
        return netrc.netrc(os.environ.get("NETRC")).authenticators(host) is not None
    except (OSError, netrc.NetrcParseError):
        return False
