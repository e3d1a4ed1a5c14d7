"""Checkpoints that are whole or not there, so that a run that was killed goes on from the last one.

runs/demo/checkpoints/
  .partial/                    being written; ignored, and removed by the next run
  checkpoint-300/              model.safetensors or adapter, optimizer.pt, scheduler.pt, rng_state.pth
    trainer_state.json         step, best checkpoint so far, figures so far
"""

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_utils import rotate_checkpoints

from catalens.errors import TrainingError

STATE = "trainer_state.json"
PARTIAL = ".partial"


class SafeCheckpoints(Trainer):
    """A Trainer whose checkpoints are written aside and renamed when they are complete and on disk."""

    _aside: Path | None = None

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._aside or self.args.output_dir)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        with warnings.catch_warnings():
            # transformers reads the official config.json without our class and warns of its older keys
            warnings.simplefilter("ignore", FutureWarning)
            super()._load_from_checkpoint(resume_from_checkpoint, model)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder, limit = Path(str(self.args.output_dir)), self.args.save_total_limit
        final = folder / f"checkpoint-{self.state.global_step}"
        self._aside, self.args.save_total_limit = folder / PARTIAL, None
        written = self._aside / final.name
        if self.args.should_save:
            shutil.rmtree(self._aside, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            super()._save_checkpoint(model, trial)
            self.accelerator.wait_for_everyone()  # each writes its own state
            if self.state.best_model_checkpoint == str(written):
                self.state.best_model_checkpoint = str(final)
                if self.args.should_save:
                    self.state.save_to_json(str(written / STATE))
            if self.args.should_save:
                _sync(written)
        except (OSError, SafetensorError, RuntimeError) as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # torch's zip writer buries it under its own
                raise KeyboardInterrupt from error
            raise TrainingError(
                f"checkpoint {final.name} cannot be written ({error}): make room and go on with "
                f"catalens train --resume {folder.parent}"
            ) from error
        finally:
            self._aside, self.args.save_total_limit = None, limit
        if self.args.should_save:
            shutil.rmtree(final, ignore_errors=True)  # of a run that was resumed from before it
            written.rename(final)
            written.parent.rmdir()
            rotate_checkpoints(
                output_dir=str(folder), save_total_limit=limit, best_model_checkpoint=self.state.best_model_checkpoint
            )
        self.accelerator.wait_for_everyone()


class SaveEvery(TrainerCallback):
    """Asks for a checkpoint every so many steps, besides those at validation rounds."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Ask."""
        if state.global_step % self.steps == 0:
            control.should_save = True


def last_checkpoint(folder: Path) -> Path | None:
    """The latest complete checkpoint of a run, None where there is none."""
    found = sorted((folder / "checkpoints").glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]))
    return next((path for path in reversed(found) if (path / STATE).is_file()), None)


def step_of(checkpoint: Path) -> int:
    """Optimizer steps behind a checkpoint."""
    return json.loads((checkpoint / STATE).read_text(encoding="utf-8"))["global_step"]


def _sync(folder: Path) -> None:
    """Files on disk, so that a rename never stands for what a power cut has taken."""
    for path in folder.iterdir():
        with path.open("rb") as file:
            os.fsync(file.fileno())
