"""A run in Weights & Biases; offline when nobody is logged in, and `wandb sync` sends it later.

runs/demo/
  wandb_id.txt       the run's id there: a run that goes on is the same run
  wandb/
    offline-run-20261121_095538-1f2e3d4c/    what `wandb sync` sends
    artifacts/staging/                       tables, their pictures; the model's files are only pointed at
    cache/
"""

import netrc
import os
import secrets
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast
from urllib.parse import urlparse

import wandb

from catalens.tracking.tracker import (
    EXAMPLES,
    ExampleTable,
    LoggedExample,
    NoTracker,
    Tracker,
    artifact_name,
    environment,
    reason,
)

HOSTS = ("api.wandb.ai", "api.forge.coreweave.com")  # where `wandb login` logs in: the old address and the new one
FINISH_SECONDS = 3600  # for which a run's end may wait for uploads: a network that went away would hold it for ever


def start_wandb(project: str, folder: Path, config: Mapping[str, Any], warn: Callable[[str], None]) -> Tracker:
    """Start a run in the mode that WANDB_MODE names, else online when logged in, else offline.

    Where that does not start (a bad key, no network, no such mode) the run is tracked offline, and `warn` told so.
    """
    mode = os.environ.get("WANDB_MODE") or ("online" if logged_in() else "offline")
    if mode == "disabled":
        return NoTracker()
    try:
        return _WandbTracker(project, folder, config, mode)
    except Exception as error:  # wandb.Error, ValueError, and errors of its service that have no public name
        if mode == "offline":
            raise
        wandb.teardown()  # its service still holds the id of the run that did not start
        tracker = _WandbTracker(project, folder, config, "offline")
        warn(f"W&B cannot start {mode} ({reason(error)}): the run is tracked offline, `wandb sync` sends it")
        return tracker


class _WandbTracker:
    """A run that has started; raises what `wandb.init` raises."""

    def __init__(self, project: str, folder: Path, config: Mapping[str, Any], mode: str) -> None:
        # tables, pictures and artifacts are staged in the run's folder, not in the home folder
        ours = {
            "WANDB_DATA_DIR": os.environ.get("WANDB_DATA_DIR") or str(folder / "wandb"),
            "WANDB_CACHE_DIR": os.environ.get("WANDB_CACHE_DIR") or str(folder / "wandb" / "cache"),
            "WANDB_MODE": mode,
            "WANDB_SILENT": "true",
        }
        known = folder / "wandb_id.txt"
        if not known.is_file():
            known.write_text(f"{secrets.token_hex(4)}\n", encoding="utf-8")
        silent: dict[str, Any] = {"silent": True, "console": "off", "finish_timeout_raises": True}
        with ExitStack() as undo:
            undo.enter_context(environment(ours))
            self._run = wandb.init(
                project=project,
                id=known.read_text(encoding="utf-8").strip(),
                resume="allow" if mode == "online" else None,
                name=folder.name,
                dir=str(folder),
                config=dict(config),
                mode=cast(Any, mode),
                settings=wandb.Settings(finish_timeout=FINISH_SECONDS, **silent),
            )
            self._undo = undo.pop_all()
        self._name, self._catalog = folder.name, config.get("versions", {}).get("catalog")
        self._lines = ExampleTable(lambda picture, id: wandb.Image(picture, file_type="jpg"))
        self._table: wandb.Table | None = None

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._run.log(dict(values), step=step)

    def examples(self, rows: Sequence[LoggedExample], step: int) -> None:
        for line in self._lines.lines(rows, step):
            self._table = self._table or wandb.Table(columns=list(line), log_mode="INCREMENTAL")  # logs what is new
            self._table.add_data(*(line.get(str(name)) for name in self._table.columns))
        self._run.log({EXAMPLES: self._table}, step=step)

    def warn(self, title: str, text: str) -> None:
        self._run.alert(title, text, level="WARN")
        self.summary({f"warning/{title}": text})

    def model(self, folder: Path, step: int, metadata: Mapping[str, Any]) -> None:
        if self._catalog:
            metadata = {**metadata, "dataset": self._log_dataset(self._catalog)}
        artifact = wandb.Artifact(artifact_name(self._name), type="model", metadata=dict(metadata))
        artifact.add_dir(str(folder), policy="immutable", skip_cache=True)  # no second copy, here or in the cache
        self._run.log_artifact(artifact, aliases=["best", f"step-{step}"])

    def summary(self, values: Mapping[str, float | bool | str]) -> None:
        self._run.summary.update(dict(values))

    def finish(self, exit_code: int = 0) -> None:  # TimeoutError where uploads take longer than FINISH_SECONDS
        try:
            self._run.finish(exit_code=exit_code)
        finally:
            self._undo.close()

    def _log_dataset(self, content_hash: str) -> str:
        """Log an artifact that stands for the catalogue: its hash, no rows; the same for every run on it."""
        name = f"catalog-{content_hash.rpartition(':')[2][:16]}"
        artifact = wandb.Artifact(name, type="dataset", metadata={"content_hash": content_hash})
        with artifact.new_file("content_hash.txt") as file:
            file.write(content_hash)
        self._run.log_artifact(artifact)  # `use_artifact` would draw the arrow the other way, but not offline
        return name


def logged_in() -> bool:
    """Look for W&B credentials, without a network or a prompt."""
    if os.environ.get("WANDB_API_KEY") or os.environ.get("WANDB_IDENTITY_TOKEN_FILE"):
        return True
    server = os.environ.get("WANDB_BASE_URL")
    hosts = (urlparse(server).netloc,) if server else HOSTS
    try:
        known = netrc.netrc(os.environ.get("NETRC"))
    except (OSError, netrc.NetrcParseError):
        return False
    return any((entry := known.authenticators(host)) and entry[2] for host in hosts)
