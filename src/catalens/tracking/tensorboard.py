"""A run in TensorBoard: scalars, texts and pictures; it has no artifacts, so the best model is only in the run.

runs/demo/tensorboard/events.out.tfevents.1795255131.host.4711.0

tensorboard --logdir runs
"""
# ruff: noqa: D102 - the methods are those of the protocol

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch.utils.tensorboard import SummaryWriter

from catalens.tracking.tracker import EXAMPLES, LoggedExample, thumbnail


class TensorBoardTracker:
    """Writes event files into the run's folder."""

    def __init__(self, folder: Path, config: Mapping[str, Any]) -> None:
        self._writer = SummaryWriter(str(folder / "tensorboard"))
        text = yaml.safe_dump(dict(config), sort_keys=False, allow_unicode=True)
        self._writer.add_text("config", f"```yaml\n{text}```")
        self._step = 0
        self._pictures: set[str] = set()

    def log(self, values: Mapping[str, float], step: int) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)
        self._step = step

    def examples(self, rows: Sequence[LoggedExample], step: int) -> None:
        """Log the picture of a row once, and what was read in it at every evaluation as a text of the same name."""
        for row in rows:
            name = f"{EXAMPLES}/{row.id}"
            if row.id not in self._pictures:
                self._writer.add_image(name, np.asarray(thumbnail(row.picture)), step, dataformats="HWC")
                self._pictures.add(row.id)
            self._writer.add_text(name, _markdown(row), step)
        self._step = step

    def warn(self, title: str, text: str) -> None:
        """Log a text: TensorBoard has no alerts."""
        self.summary({f"warning/{title}": text})

    def model(self, folder: Path, step: int, metadata: Mapping[str, Any]) -> None:
        """Do nothing: TensorBoard has no artifacts."""

    def summary(self, values: Mapping[str, float | bool | str]) -> None:
        """Log final figures, as scalars and texts at the last step."""
        for name, value in values.items():
            if isinstance(value, str):
                self._writer.add_text(name, value, self._step)
            else:
                self._writer.add_scalar(name, value, self._step)

    def finish(self, exit_code: int = 0) -> None:
        self._writer.close()


def _markdown(row: LoggedExample) -> str:
    """| field | truth | prediction | and one line a field."""
    answered = row.prediction or {}
    lines = [("field", "truth", "prediction"), ("---",) * 3]
    lines += [(field, truth, answered.get(field, "")) for field, truth in row.truth.items()]
    table = "\n".join("| " + " | ".join(_cell(value) for value in line) + " |" for line in lines)
    return f"{table}\n\n{row.error}" if row.error else table


def _cell(value: Any) -> str:
    return "" if value is None else " ".join(str(value).split()).replace("|", "\\|")
