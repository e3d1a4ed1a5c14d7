"""Checkpoints that are whole or not there, so that a run that was killed goes on from the last one.

runs/demo/checkpoints/
  .partial/                    being written; ignored, and removed by the next run
  checkpoint-300/              model.safetensors or adapter, optimizer.pt, scheduler.pt, rng_state_0.pt
    trainer_state.json         {"step": 300, "best_step": 200, "best_value": 0.71, ...}

Under FSDP2 pytorch_model_fsdp.bin and optimizer.bin hold what all processes have, put together.
"""

import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import torch
from accelerate import Accelerator
from accelerate.utils import load_fsdp_model, load_fsdp_optimizer, save_fsdp_model, save_fsdp_optimizer
from peft import PeftModel
from safetensors import SafetensorError
from safetensors.torch import load_file

from catalens.errors import TrainingError
from catalens.files import sync

STATE = "trainer_state.json"
PARTIAL = ".partial"


@dataclass
class State:
    """Place in a run, and its best validation round so far."""

    step: int = 0
    """Optimizer steps taken."""
    best_step: int | None = None
    best_value: float | None = None
    """Figure that chooses the best checkpoint."""
    figures: dict[str, float] = field(default_factory=dict)
    """Validation figures of the best round, or of the last where none was better than nothing."""
    rounds_since_best: int = 0

    @classmethod
    def load(cls, checkpoint: Path) -> Self:
        """Read the state of a checkpoint; the best round is forgotten where its checkpoint is gone."""
        try:
            state = cls(**json.loads((checkpoint / STATE).read_text(encoding="utf-8")))
        except TypeError as error:
            raise TrainingError(f"{checkpoint} is of another version of catalens: train anew") from error
        if state.best_step and not checkpoint.with_name(f"checkpoint-{state.best_step}").is_dir():
            state.best_step = state.best_value = None
        return state


class Training:
    """Model, optimizer and schedule as accelerate has prepared them, loaded from and saved to checkpoints.

    `model` is ours, `wrapped` the one that trains: under DDP around ours, under FSDP2 the same.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        model: Any,
        make_optimizer: Callable[[Any], torch.optim.Optimizer],
        make_schedule: Callable[[Any], torch.optim.lr_scheduler.LRScheduler],
        checkpoint: Path | None,
    ) -> None:
        self.accelerator, self.model, self.sharded = accelerator, model, bool(accelerator.is_fsdp2)
        if checkpoint and not self.sharded:
            self.load_weights(checkpoint)
        self.wrapped, self.optimizer = accelerator.prepare(model, make_optimizer(model))
        self.schedule = make_schedule(self.optimizer)
        if checkpoint and self.sharded:
            self.load_weights(checkpoint)
        if checkpoint:
            self._load_optimizer(checkpoint)

    def load_weights(self, checkpoint: Path) -> None:
        """Load the weights, or adapters, of a checkpoint."""
        if self.sharded:
            load_fsdp_model(self._plugin, self.accelerator, self.wrapped, str(checkpoint), adapter_only=True)
        elif isinstance(self.model, PeftModel):
            self.model.load_adapter(str(checkpoint), "default", is_trainable=True)
        else:
            for path in checkpoint.glob("model*.safetensors"):
                self.model.load_state_dict(load_file(path), strict=False)

    def whole(self) -> tuple[Any, dict[str, torch.Tensor] | None]:
        """Our model, and its weights where they are sharded; all processes call this."""
        weights: Any = self.accelerator.get_state_dict(self.model) if self.sharded else None
        return self.accelerator.unwrap_model(self.model), weights

    def load_random_state(self, checkpoint: Path) -> None:
        """Go on with the random numbers of this process; where it took no part, with those of the seed."""
        path = checkpoint / f"rng_state_{self.accelerator.process_index}.pt"
        if path.is_file():
            kept = torch.load(path, weights_only=True)
            torch.set_rng_state(kept["cpu"])
            if torch.cuda.is_available() and "cuda" in kept:
                torch.cuda.set_rng_state(kept["cuda"])

    def save(self, folder: Path, state: State, keep: int) -> None:
        """Write a checkpoint into a run's `checkpoints`, remove the oldest beyond `keep`; all processes call this.

        It is written aside and renamed when it is complete and on disk. Raises TrainingError where it cannot be.
        """
        final = folder / f"checkpoint-{state.step}"
        written = folder / PARTIAL / final.name
        main = self.accelerator.is_main_process
        if main:
            shutil.rmtree(written.parent, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        try:
            written.mkdir(parents=True, exist_ok=True)
            self._write(written)
            self.accelerator.wait_for_everyone()  # each writes its own state
            if main:
                (written / STATE).write_text(json.dumps(asdict(state), indent=2), encoding="utf-8")
                for path in written.iterdir():  # a rename shall not stand for what a power cut has taken
                    sync(path)
        except (OSError, SafetensorError, RuntimeError) as error:
            if isinstance(error.__context__, KeyboardInterrupt):  # torch's zip writer buries it under its own
                raise KeyboardInterrupt from error
            raise TrainingError(
                f"checkpoint {final.name} cannot be written ({error}): make room and go on with "
                f"catalens train --resume {folder.parent}"
            ) from error
        if main:
            shutil.rmtree(final, ignore_errors=True)  # of a run that was resumed from before it
            written.rename(final)
            written.parent.rmdir()
            remove_surplus(folder, keep, state.best_step)
        self.accelerator.wait_for_everyone()

    def _write(self, folder: Path) -> None:
        main, accelerator = self.accelerator.is_main_process, self.accelerator
        if self.sharded:
            save_fsdp_model(self._plugin, accelerator, self.wrapped, str(folder), adapter_only=True)
            save_fsdp_optimizer(self._plugin, accelerator, self.optimizer, self.wrapped, str(folder))
        elif main:
            self.model.save_pretrained(folder)
            torch.save(self.optimizer.state_dict(), folder / "optimizer.pt")
        if main:
            torch.save(self.schedule.state_dict(), folder / "scheduler.pt")
        random = {"cpu": torch.get_rng_state()}
        if torch.cuda.is_available():
            random["cuda"] = torch.cuda.get_rng_state()
        torch.save(random, folder / f"rng_state_{accelerator.process_index}.pt")

    def _load_optimizer(self, checkpoint: Path) -> None:
        if self.sharded:
            load_fsdp_optimizer(self._plugin, self.accelerator, self.optimizer, self.wrapped, str(checkpoint))
        else:
            state = torch.load(checkpoint / "optimizer.pt", map_location="cpu", weights_only=True)
            self.optimizer.load_state_dict(state)
        self.schedule.load_state_dict(torch.load(checkpoint / "scheduler.pt", weights_only=True))

    @property
    def _plugin(self) -> Any:
        return self.accelerator.state.fsdp_plugin


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints of a run's `checkpoints`, the latest last."""
    found = (path for path in folder.glob("checkpoint-*") if (path / STATE).is_file())
    return sorted(found, key=lambda path: int(path.name.split("-")[1]))


def last_checkpoint(run: Path) -> Path | None:
    """Find the latest complete checkpoint of a run, None where there is none."""
    return next(reversed(checkpoints(run / "checkpoints")), None)


def step_of(checkpoint: Path) -> int:
    """Count the optimizer steps behind a checkpoint."""
    return int(checkpoint.name.split("-")[1])


def remove_surplus(folder: Path, keep: int, best_step: int | None, last: bool = True) -> None:
    """Remove the oldest checkpoints beyond `keep`, never the best, nor the `last` one that a run goes on from."""
    found = checkpoints(folder)
    kept = {folder / f"checkpoint-{best_step}", *(found[-1:] if last else ())}
    for path in [path for path in found if path not in kept][: max(0, len(found) - keep)]:
        shutil.rmtree(path, ignore_errors=True)
