"""What a run tells a tracker, and what every tracker shares.

One validation row at step 50, as a line of the table `validation/examples`:

step  id      picture  truth/title  prediction/title  truth/price  prediction/price  error
50    17.jpg  <image>  Duffle Coat  Duffle Jacket     1290.0       1150.0            None
"""

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

EXAMPLES = "validation/examples"
"""Name of the table."""
SIDE = 512
"""Longest side, in pixels, of a picture that is shown."""


@dataclass(frozen=True)
class Shown:
    """One validation row at one evaluation."""

    id: str
    picture: bytes
    """Encoded, as in the catalogue."""
    truth: Mapping[str, Any]
    """Field to value."""
    prediction: Mapping[str, Any] | None
    """Field to value; None where the answer did not parse."""
    error: str | None
    """Why the answer did not parse, else None."""


class Tracker(Protocol):
    """What training and evaluation tell."""

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Scalars at an optimizer step."""

    def examples(self, rows: Sequence[Shown], step: int) -> None:
        """Append to the table that shows the same validation pictures at every evaluation."""

    def warn(self, title: str, text: str) -> None:
        """What nobody may overlook; the title is shorter than 64 characters."""

    def model(self, folder: Path, step: int, metadata: Mapping[str, Any]) -> None:
        """The best model, from that step, as an artifact; its files stay where they are."""

    def summary(self, values: Mapping[str, float | bool | str]) -> None:
        """Final figures of the run."""

    def finish(self, exit_code: int = 0) -> None:
        """Close the run; everything is on disk afterwards."""


class NoTracker(Tracker):
    """Tracks nothing: it does what the protocol's methods do as they stand."""


class Unfailing:
    """A tracker whose failures are told once and stop nothing; it is told no more than the recipe allows."""

    def __init__(self, tracker: Tracker, spec: TrackingSpec, warn: Callable[[str], None]) -> None:
        self._tracker, self._spec, self._warn = tracker, spec, warn
        self._warned = False

    def log(self, values: Mapping[str, float], step: int) -> None:
        """Scalars at an optimizer step."""
        self._try(self._tracker.log, values, step)

    def examples(self, rows: Sequence[Shown], step: int) -> None:
        """The first `tracking.examples` rows."""
        if allowed := rows[: self._spec.examples]:
            self._try(self._tracker.examples, allowed, step)

    def warn(self, title: str, text: str) -> None:
        """What nobody may overlook."""
        self._try(self._tracker.warn, title, text)

    def model(self, folder: Path, step: int, metadata: Mapping[str, Any]) -> None:
        """The best model, where `tracking.model` says so."""
        if self._spec.model:
            self._try(self._tracker.model, folder.absolute(), step, metadata)

    def summary(self, values: Mapping[str, float | bool | str]) -> None:
        """Final figures of the run."""
        self._try(self._tracker.summary, values)

    def finish(self, exit_code: int = 0) -> None:
        """Close the run."""
        self._try(self._tracker.finish, exit_code)

    def _try(self, call: Callable[..., None], *arguments: Any) -> None:
        try:
            call(*arguments)
        except Exception as error:  # whatever a library raises, the run is worth more
            if not self._warned:
                self._warn(
                    f"{self._spec.to} failed ({reason(error)}): the run goes on, its metrics.jsonl holds every figure"
                )
            self._warned = True


def columns(row: Shown, step: int, picture: Any) -> dict[str, Any]:
    """A line of the table; `picture` is the tracker's own image."""
    answered = row.prediction or {}
    values = {
        f"{kind}/{field}": source.get(field)
        for field in row.truth
        for kind, source in (("truth", row.truth), ("prediction", answered))
    }
    return {"step": step, "id": row.id, "picture": picture, **values, "error": row.error}


def thumbnail(picture: bytes) -> Image.Image:
    """RGB, upright, no side longer than `SIDE`, nothing but pixels; raises PictureError."""
    image = open_picture(picture)
    image.thumbnail((SIDE, SIDE))
    image.info = {}  # Pillow would write comments and profiles into what is saved of it
    return image


def artifact_name(run: str) -> str:
    """Name of a run's model among artifacts, which allow letters, digits, `-`, `_` and `.` alone."""
    return f"model-{re.sub(r'[^A-Za-z0-9_.-]+', '-', run)}"[:128]


def reason(error: Exception) -> str:
    """What a library says, on one line."""
    return textwrap.shorten(str(error) or type(error).__name__, width=300, placeholder=" ...")


@contextmanager
def environment(values: Mapping[str, str | None]) -> Iterator[None]:
    """Environment variables that hold inside (None: unset) and are as before afterwards."""
    before = {name: os.environ.get(name) for name in values}
    _set(values)
    try:
        yield
    finally:
        _set(before)


def _set(values: Mapping[str, str | None]) -> None:
    for name, value in values.items():
        if value is None:
            os.environ.pop(name, None)
        else:
            os.environ[name] = value
