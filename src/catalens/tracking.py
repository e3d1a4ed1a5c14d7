"""Where a run is tracked. Off is a null object, so that nobody asks whether tracking is on."""

import netrc
import os
import secrets
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlparse

from catalens.config import TrackingSpec
from catalens.errors import TrainingError

HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")
"""Where `wandb login` logs in: the old address and the new one."""


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
    """A Weights & Biases run; offline when nobody is logged in, `wandb sync` sends it later.

    Raises TrainingError where W&B refuses, such as a key of the wrong form.
    """

    def __init__(self, project: str, folder: Path, config: Mapping[str, Any]) -> None:
        # tables, media and artifacts are staged in the run's folder, not in the home folder
        os.environ.setdefault("WANDB_DATA_DIR", str(folder))
        os.environ.setdefault("WANDB_CACHE_DIR", str(folder / "wandb" / "cache"))
        import wandb

        mode = os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline")
        known = folder / "wandb_id.txt"  # a run that goes on is the same run there
        if not known.is_file():
            known.write_text(f"{secrets.token_hex(4)}\n", encoding="utf-8")
        try:
            self._run = wandb.init(
                project=project,
                id=known.read_text(encoding="utf-8").strip(),
                resume="allow" if mode == "online" else None,
                name=folder.name,
                dir=str(folder),
                config=dict(config),
                mode=mode,  # type: ignore[arg-type]
                settings=wandb.Settings(silent=True, console="off"),
            )
        except (wandb.Error, ValueError) as error:  # no such mode, a key that is none, no network
            reason = str(error).partition("\n")[0]
            raise TrainingError(
                f"W&B cannot start ({reason}): set WANDB_MODE=offline, or tracking.to=none in the recipe"
            ) from error

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
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    server = os.environ.get("WANDB_BASE_URL")
    hosts = (urlparse(server).netloc,) if server else HOSTS
    try:
        known = netrc.netrc(os.environ.get("NETRC"))
        entries = [known.authenticators(host) for host in hosts]
        return any(entry and entry[2] for entry in entries)
    except (OSError, netrc.NetrcParseError):
        return False
