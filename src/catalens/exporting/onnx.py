"""The export for ONNX Runtime: graphs that run without torch, in fp32, int8 or int4.

    vision.onnx  embedding.onnx  text.onnx  genai_config.json  onnx.json  tokenizer.json

Its runtime is `inference/onnx.py`. In fp32 the calibration is the run's; in int8 and int4, whose confidences are
others, it is learned anew from the export's own answers to the validation rows.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from catalens.errors import CheckpointError
from catalens.examples import Query
from catalens.exporting.certificate import ReferenceRow, Trace, sample_pixels
from catalens.inference.onnx import OnnxGenerator, Precision, describe, open_export
from catalens.progress import Progress

if TYPE_CHECKING:
    from catalens.checkpoint import Run
    from catalens.inference.calibration import Calibration


def write(run: "Run", folder: Path, precision: Precision = "fp32") -> str:
    """Write a run's graphs; gives their precision."""
    from catalens.exporting.onnx_writer import write_graphs

    write_graphs(run, folder, precision)
    return precision


def calibration(run: "Run", folder: Path, progress: Progress) -> "Calibration | None":
    """Give the calibration of what was written; in fp32 None where the run has none."""
    from catalens.evaluation.calibrating import learn_calibration
    from catalens.inference.calibration import load_calibration

    if describe(folder).precision == "fp32":
        return load_calibration(run.folder, run.prompt)
    number = run.recipe.number
    writer = OnnxGenerator(folder, run.prompt, run.space, estimate=number.estimate)
    return learn_calibration(run, writer, run.recipe.evaluation.interval, number, progress)


def load(folder: Path) -> "OnnxRuntime":
    """Load an export, as `catalens predict` does."""
    return OnnxRuntime(open_export(folder)[0])


class OnnxRuntime:
    """An export in ONNX Runtime."""

    def __init__(self, generator: OnnxGenerator) -> None:
        self.generator = generator

    def __call__(
        self, rows: Sequence[ReferenceRow], on_progress: Callable[[int], None] = lambda done: None
    ) -> list[Trace]:
        """Trace rows, in their order."""
        traces, generator = [], self.generator
        for row in rows:
            query = Query(row.pictures, row.question)
            (completion,) = generator.generate([query])
            if completion.error is not None:
                raise CheckpointError(f"reference row {row.id}: {completion.error}: export the run again")
            cut = [generator.pixels(picture) for picture in row.pictures]
            traces.append(
                Trace(
                    sample_pixels(np.concatenate([pixels for pixels, _ in cut])),
                    generator.prompt_ids(row.question, [size for _, size in cut]),
                    generator.first_logits(query),
                    completion.text,
                    sum(completion.log_probabilities),
                )
            )
            on_progress(len(traces))
        return traces
