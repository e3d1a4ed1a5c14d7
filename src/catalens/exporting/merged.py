"""The merged export: the official layout of the model's family, which other runtimes read as any published model.

config.json  model.safetensors (several of 5 GB at most, with an index)  generation_config.json
preprocessor_config.json  processor_config.json  tokenizer.json  tokenizer_config.json

Its runtime is catalens' own, loaded from the folder; the run is traced by the same class.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from catalens.checkpoint import Run, load_run, save_best
from catalens.data import Encoder
from catalens.errors import CheckpointError
from catalens.examples import Query
from catalens.exporting.certificate import ReferenceRow, Trace, sample_pixels
from catalens.inference.calibration import Calibration, load_calibration
from catalens.inference.generation import constrained_generator
from catalens.progress import Progress

PRECISIONS = {torch.float32: "fp32", torch.bfloat16: "bf16"}


def write(run: Run, folder: Path) -> str:
    """Write a run's model with its adapters merged; gives its precision, the one in which the run computes here."""
    save_best(folder, run.model, run.processor, run.prompt, run.space)
    return PRECISIONS[run.model.dtype]


def calibration(run: Run, folder: Path, progress: Progress) -> Calibration | None:
    """Give the calibration of what was written, the run's; None where it has none."""
    return load_calibration(run.folder, run.prompt)


def load(folder: Path) -> "NativeRuntime":
    """Load an export, as `catalens predict` does."""
    return NativeRuntime(load_run(folder))


class NativeRuntime:
    """A run or a merged export in catalens."""

    def __init__(self, run: Run) -> None:
        self.model, self.encoder = run.model, Encoder(run.processor, run.prompt)
        self.generator = constrained_generator(run, run.recipe.evaluation)

    def __call__(
        self, rows: Sequence[ReferenceRow], on_progress: Callable[[int], None] = lambda done: None
    ) -> list[Trace]:
        """Trace rows, in their order."""
        written = self.generator.generate([Query(row.pictures, row.question) for row in rows], on_progress)
        traces = []
        for row, completion in zip(rows, written, strict=True):
            if completion.error is not None:
                raise CheckpointError(f"reference row {row.id}: {completion.error}: export the run again")
            images = [self.encoder.image(picture) for picture in row.pictures]
            ids = self.encoder.prompt_ids([image.hd_size for image in images], row.question)
            batch = self.encoder.family.collate(images)
            pixels = self.encoder.family.normalised_pixels(images)
            traces.append(
                Trace(
                    sample_pixels(pixels.numpy()),
                    ids.tolist(),
                    self._first_logits(ids, batch).numpy(),
                    completion.text,
                    sum(completion.log_probabilities),
                )
            )
        return traces

    @torch.no_grad()
    def _first_logits(self, ids: torch.Tensor, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        """Logits [V] of the token after a prompt [T], on the CPU."""
        device, dtype = self.model.device, self.model.dtype
        images = {
            name: value.to(device, dtype if value.is_floating_point() else None) for name, value in batch.items()
        }
        outputs = self.model(
            input_ids=ids[None].to(device), attention_mask=torch.ones_like(ids)[None].to(device), **images
        )
        return outputs.logits[0, -1].float().cpu()
