"""A run in trackio: wandb's way of logging, kept in SQLite on this machine.

runs/demo/
  trackio_id.txt             the run's id there: a run that goes on is the same run
  trackio/
    catalens.db              runs, configurations, figures, tables, alerts of the project `catalens`
    media/catalens/demo/50/  pictures of the table

TRACKIO_DIR=runs/demo/trackio trackio show --project catalens
"""
# ruff: noqa: D102 - the methods are those of the protocol

import io
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

from catalens.tracking.tracker import EXAMPLES, ExampleTable, LoggedExample, artifact_name, environment


class TrackioTracker:
    """A run that has started. Nothing is sent and no page is opened; TRACKIO_DIR keeps many runs in one place."""

    def __init__(self, project: str, folder: Path, config: Mapping[str, Any], warn: Callable[[str], None]) -> None:
        home = Path(os.environ.get("TRACKIO_DIR") or folder / "trackio")
        with environment({"TRACKIO_DIR": str(home)}):
            import trackio  # reads TRACKIO_DIR once, when it is imported
            from trackio.utils import TRACKIO_DIR
        if home != TRACKIO_DIR:
            warn(f"trackio was loaded earlier in this process and keeps this run in {TRACKIO_DIR}, not in {home}")
        self._trackio = trackio
        known = folder / "trackio_id.txt"
        resume = "allow" if known.is_file() else "never"
        with _at_home(), redirect_stdout(io.StringIO()):  # it greets, and says what docs/tracking.md says
            self._run = trackio.init(project, name=folder.name, config=dict(config), resume=resume, embed=False)
        known.write_text(f"{self._run.id}\n", encoding="utf-8")
        self._step = 0
        self._lines: list[Any] = []  # dictionaries, which trackio takes for rows as well
        self._table = ExampleTable(lambda picture, id: trackio.Image(picture, caption=id))

    def log(self, values: Mapping[str, Any], step: int) -> None:
        self._run.log(dict(values), step=step)
        self._step = step

    def examples(self, rows: Sequence[LoggedExample], step: int) -> None:
        """Log the whole table again: trackio knows none that grow; a picture is stored once."""
        self._lines += self._table.lines(rows, step)
        self.log({EXAMPLES: self._trackio.Table(data=self._lines)}, step)

    def warn(self, title: str, text: str) -> None:
        with redirect_stdout(io.StringIO()):
            self._run.alert(title, text)
        self.summary({f"warning/{title}": text})

    def model(self, folder: Path, step: int, metadata: Mapping[str, Any]) -> None:
        """Log an artifact of references: where the files are, and their checksums."""
        artifact = self._trackio.Artifact(artifact_name(self._run.name), type="model", metadata=dict(metadata))
        artifact.add_reference(folder.as_uri())
        self._run.log_artifact(artifact, aliases=["best", f"step-{step}"])

    def summary(self, values: Mapping[str, float | bool | str]) -> None:
        """Log final figures, at the last step: trackio has no summary of its own."""
        self.log(values, self._step)

    def finish(self, exit_code: int = 0) -> None:
        """Close the run; trackio keeps no exit code."""
        with redirect_stdout(io.StringIO()):
            self._trackio.finish()


@contextmanager
def _at_home() -> Iterator[None]:
    """Keep trackio on this machine: it would ask the Hub whose token it finds, and log to a Space that is named."""
    from huggingface_hub import constants  # has read HF_HUB_OFFLINE long ago

    before, constants.HF_HUB_OFFLINE = constants.HF_HUB_OFFLINE, True
    try:
        with environment({"TRACKIO_SPACE_ID": None, "TRACKIO_SERVER_URL": None}):
            yield
    finally:
        constants.HF_HUB_OFFLINE = before
