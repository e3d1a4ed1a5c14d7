"""Whether a run's confidences, intervals and review thresholds hold on the rows that it was evaluated on.

    python benchmarks/calibration.py runs/demo --accept-error 0.05

Reads `calibration.json` and `evaluation/predictions.parquet` (`truth.*`, `predicted.*`, `confidence.*`). By field:
the expected calibration error (ECE), beside the one that chance alone gives to perfect confidences; the share of
truths within their intervals; and in how many of 100 draws of the rows, with replacement, the error on accepted rows
is at or below the target. That asks for more than the threshold promises: chance in these rows is drawn as well.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table

from catalens.confidence import calibration_error, interval_coverage, reliability, review_outcome
from catalens.config import FieldSpec, PromptSpec
from catalens.errors import CheckpointError
from catalens.inference import Calibration, load_calibration
from catalens.metrics import correctness

DRAWS = 100
KEPT = ("truth", "low", "high")


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a run's folder, evaluated")
    parser.add_argument("--accept-error", type=float, default=0.05, help="share of wrong values among accepted rows")
    options = parser.parse_args()
    prompt = PromptSpec.model_validate_json((options.run / "best" / "prompt.json").read_bytes())
    calibration = load_calibration(options.run, prompt)
    if calibration is None:
        raise CheckpointError(f"{options.run} has no calibration.json: calibrate it first")
    rows = pq.read_table(options.run / "evaluation" / "predictions.parquet").to_pylist()
    of, target = f"calibrated on {calibration.products} products", f"target {options.accept_error:.1%}"
    table = Table(title=f"{len(rows)} rows, {of}, {target}")
    table.add_column("field", no_wrap=True)
    for name in ("right", "ECE", "by chance", "intervals hold", "threshold", "accepted", "error", f"kept of {DRAWS}"):
        table.add_column(name, justify="right")
    for field in prompt.fields:
        table.add_row(field.column, *_measure(field, calibration, rows, options.accept_error))
    Console(width=118).print(table)


def _measure(field: FieldSpec, calibration: Calibration, rows: list[dict[str, Any]], target: float) -> list[str]:
    name = field.column
    said = [row[f"predicted.{name}"] for row in rows]
    truths = [{name: row[f"truth.{name}"]} for row in rows]
    right = correctness(
        name,
        field.kind,
        truths,
        [None if value is None else {name: value} for value in said],
        calibration.number.tolerance,
    )
    confidence = np.array([row[f"confidence.{name}"] or 0.0 for row in rows])
    cells = [
        f"{right.mean():.3f}",
        f"{calibration_error(confidence, right)['value']:.3f}",
        f"{_chance(confidence):.3f}",
        _coverage(calibration, name, rows) if field.kind == "number" else "",
    ]
    threshold = calibration.threshold(name, target)
    outcome = review_outcome(confidence, right, threshold)
    accepted, error = outcome["accepted"], outcome["error"]
    if threshold is None or accepted is None or error is None:
        return [*cells, "none", "0", "", ""]
    kept = _kept(confidence >= threshold, right, target)
    return [*cells, f"{threshold:.4f}", f"{accepted['value']:.3f}", f"{error['value']:.4f}", str(kept)]


def _chance(confidence: NDArray[np.float64]) -> float:
    """Mean calibration error of perfect confidences on so many rows."""
    rng = np.random.default_rng(0)
    bins = [one for _ in range(DRAWS) for one in reliability(confidence, rng.random(len(confidence)) < confidence)]
    return sum(one["rows"] * abs(one["confidence"] - one["right"]["value"]) for one in bins) / (
        DRAWS * len(confidence)
    )


def _coverage(calibration: Calibration, name: str, rows: list[dict[str, Any]]) -> str:
    truths, lows, highs = (np.array([row.get(f"{what}.{name}") for row in rows], float) for what in KEPT)
    found = interval_coverage(truths, lows, highs)
    return f"{found['value']:.3f} of {calibration.interval}"


def _kept(accepted: NDArray[np.bool_], right: NDArray[np.bool_], target: float) -> int:
    """In how many draws of the rows the error on accepted rows is at or below the target."""
    rng = np.random.default_rng(0)
    kept = 0
    for _ in range(DRAWS):
        drawn = rng.integers(0, len(right), len(right))
        wrong = ~right[drawn][accepted[drawn]]
        kept += bool(wrong.sum() <= target * len(wrong))
    return kept


if __name__ == "__main__":
    main()
