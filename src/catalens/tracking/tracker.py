"""The protocol of a tracker, and what every tracker shares.

One validation row at step 50, as a line of the table `validation/examples`:

step  id      picture  truth/title  prediction/title  truth/price  prediction/price  error
50    17.jpg  <image>  Duffle Coat  Duffle Jacket     1290.0       1150.0            None
"""
# ruff: noqa: D102 - the methods of SafeTracker are those of the protocol

import importlib.util
import os
import re
import textwrap
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from PIL import Image

from catalens.catalog.pictures import open_picture
from catalens.config import TrackingSpec
from catalens.errors import RecipeError

EXAMPLES = "validation/examples"
"""Name of the table."""
SIDE = 512
"""Longest side of a logged picture, in pixels."""


@dataclass(frozen=True)
class LoggedExample:
    """One validation row at one evaluation."""

    id: str
    picture: bytes
    """Encoded, as in the catalogue."""
    truth: Mapping[str, Any]
    """Field to value."""
    prediction: Mapping[str, Any] | None
    """Field to value; None where the answer did not parse."""
    error: str | None
    """Reason why the answer did not parse, else None."""


class Tracker(Protocol):
    """Destination of a run's figures, examples and best model."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Log scalars at an optimizer step."""

    def examples(self, rows: Sequence[LoggedExample], step: int) -> None:
        """Append to the table that shows the same validation pictures at every evaluation."""

    def warn(self, title: str, text: str) -> None:
        """Alert to what nobody may overlook; the title is shorter than 64 characters."""

    def model(self, folder: Path, step: int, metadata: Mapping[str, Any]) -> None:
        """Log the best model, from that step, as an artifact; its files stay where they are."""

    def summary(self, values: Mapping[str, float | bool | str]) -> None:
        """Log final figures of the run."""

    def finish(self, exit_code: int = 0) -> None:
        """Close the run; everything is on disk afterwards."""


class NoTracker(Tracker):
    """Tracker that does nothing: the protocol's methods as they stand."""


class SafeTracker:
    """Tracker whose failures are told once and stop nothing; it logs no more than the recipe allows."""

    def __init__(self, tracker: Tracker, spec: TrackingSpec, warn: Callable[[str], None]) -> None:
        self._tracker, self._spec, self._warn, self._warned = tracker, spec, warn, False

    def log(self, values: Mapping[str, float], step: int) -> None:
        self._try(self._tracker.log, values, step)

    def examples(self, rows: Sequence[LoggedExample], step: int) -> None:
        if allowed := rows[: self._spec.examples]:
            self._try(self._tracker.examples, allowed, step)

    def warn(self, title: str, text: str) -> None:
        self._try(self._tracker.warn, title, text)

    def model(self, folder: Path, step: int, metadata: Mapping[str, Any]) -> None:
        if self._spec.model:
            self._try(self._tracker.model, folder.absolute(), step, metadata)

    def summary(self, values: Mapping[str, float | bool | str]) -> None:
        self._try(self._tracker.summary, values)

    def finish(self, exit_code: int = 0) -> None:
        self._try(self._tracker.finish, exit_code)

    def _try(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception as error:  # whatever a library raises, the run is worth more
            if not self._warned:
                goes_on = "the run goes on, its metrics.jsonl holds every figure"
                self._warn(f"{self._spec.to} failed ({reason(error)}): {goes_on}")
            self._warned = True


def start_tracker(
    spec: TrackingSpec, folder: Path, config: Mapping[str, Any], warn: Callable[[str], None]
) -> Tracker:
    """Start the tracker that the recipe asks for, which never stops a run.

    `folder` is the run's, its name the run's name; `config` is the resolved recipe and the versions, with the
    catalogue's content hash at `config["versions"]["catalog"]`; `warn` is called, with one sentence, where something
    does not work. Raises RecipeError where the tracker is not installed.
    """
    if spec.to == "none":
        return NoTracker()
    if spec.to != "wandb" and importlib.util.find_spec(spec.to) is None:
        raise RecipeError(f"tracking.to is {spec.to!r}, which is not installed: pip install 'catalens[{spec.to}]'")
    folder = folder.absolute()
    try:
        if spec.to == "wandb":
            from catalens.tracking.wandb import start_wandb

            tracker = start_wandb(spec.project, folder, config, warn)
        elif spec.to == "trackio":
            from catalens.tracking.trackio import TrackioTracker

            tracker = TrackioTracker(spec.project, folder, config, warn)
        else:
            from catalens.tracking.tensorboard import TensorBoardTracker

            tracker = TensorBoardTracker(folder, config)
    except Exception as error:  # whatever a library raises, the run is worth more
        warn(f"{spec.to} cannot start ({reason(error)}): the run is tracked in its metrics.jsonl alone")
        return NoTracker()
    return SafeTracker(tracker, spec, warn)


class ExampleTable:
    """Lines of the table `validation/examples`; `image` makes a tracker's picture of a thumbnail and an id, once."""

    def __init__(self, image: Callable[[Image.Image, str], Any]) -> None:
        self._image, self._images = image, {}

    def lines(self, rows: Sequence[LoggedExample], step: int) -> Iterator[dict[str, Any]]:
        """Make a line of each row."""
        for row in rows:
            if row.id not in self._images:
                self._images[row.id] = self._image(thumbnail(row.picture), row.id)
            line = {"step": step, "id": row.id, "picture": self._images[row.id]}
            for field, truth in row.truth.items():
                line |= {f"truth/{field}": truth, f"prediction/{field}": (row.prediction or {}).get(field)}
            yield line | {"error": row.error}


def thumbnail(picture: bytes) -> Image.Image:
    """Shrink a picture to RGB, upright, no side longer than `SIDE`, nothing but pixels; raises PictureError."""
    image = open_picture(picture)
    image.thumbnail((SIDE, SIDE))
    image.info = {}  # Pillow would write comments and profiles into what is saved of it
    return image


def artifact_name(run: str) -> str:
    """Name a run's model among artifacts, which allow letters, digits, `-`, `_` and `.` alone."""
    return f"model-{re.sub(r'[^A-Za-z0-9_.-]+', '-', run)}"[:128]


def reason(error: Exception) -> str:
    """Shorten what a library says, often in several lines, to one."""
    return textwrap.shorten(str(error) or type(error).__name__, width=300, placeholder=" ...")


@contextmanager
def environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Set environment variables inside (None: unset) and put them back afterwards."""

    def put(values: Mapping[str, str | None]) -> None:
        for name, value in values.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

    before = {name: os.environ.get(name) for name in values}
    try:
        put(values)
        yield
    finally:
        put(before)
