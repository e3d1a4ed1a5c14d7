"""The certificate of an export: how far its answers are from those of the run, and how far they may be.

    {"format": 1, "to": "merged", "precision": "fp32", "rows": 32, "passed": true,
     "checks": [{"name": "pixels", "measured": 0.0, "allowed": 0.0001}, {"name": "ids", "measured": 0, "allowed": 0},
                {"name": "logits", ...}, {"name": "answers", ...}, {"name": "log_probability", ...}],
     "accuracy": {"title": {"run": 0.97, "export": 0.97}}, "differences": [], "platform": "Linux-6.1-x86_64"}

is `equality.json`; `reference.parquet` has a line for each row: what was asked, the truth, and the trace of the run.
This module imports numpy, and pyarrow where the reference is read or written: a runtime may have no torch.
"""

import json
import math
import platform
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from catalens.errors import CheckpointError
from catalens.files import CERTIFICATE

REFERENCE = "reference.parquet"
FORMAT = 1
PIXELS = 4096
"""Values of a row's pixels that are compared, spread over all tiles."""
SHOWN = 10
"""Differences that are kept."""
SCORED = ("vllm",)
"""Targets whose runtime tells log-probabilities in the place of logits, which are compared as such."""


@dataclass(frozen=True)
class Limits:
    """Largest differences at which an export passes; None: measured, and not judged."""

    pixels: float | None = 1e-4
    logits: float | None = 1e-4
    log_probability: float | None = 1e-4
    answers: float | None = 0.0
    """Share of the answers."""
    accuracy: float | None = None
    """Share of right values that a field may lose; None: told, and no check."""


LIMITS: Mapping[str, Limits] = {
    "fp32": Limits(),
    # 8 bits of mantissa: near 20 two neighbours are 0.125 apart, and other kernels round otherwise
    "bf16": Limits(logits=0.5, log_probability=0.5, answers=0.1),
    # other weights: what counts is how often they are right, of which one row of 32 is 3 points
    "int8": Limits(logits=None, log_probability=None, answers=None, accuracy=0.1),
    "int4": Limits(logits=None, log_probability=None, answers=None, accuracy=0.1),
}
"""By precision of the export."""


@dataclass(frozen=True)
class ReferenceRow:
    """A row that run and export answer, and its truth."""

    id: str
    pictures: tuple[bytes, ...]
    """As they are stored."""
    question: str
    """With the row's texts in it."""
    truth: Mapping[str, Any]
    """By column; None where the row lacks it."""


@dataclass(frozen=True)
class Trace:
    """Stations of a row on its way through a runtime."""

    pixels: NDArray[np.float32]
    """By `sample_pixels`."""
    ids: Sequence[int]
    """Of the prompt, the slots of the pictures included."""
    logits: NDArray[np.float32]
    """Of the first token of the answer, [V], before any constraint; of a target of SCORED log-probabilities."""
    answer: str
    """Greedy and constrained, with its end token."""
    log_probability: float
    """Of the answer: the sum over its tokens, each among those that were allowed."""


class Runtime(Protocol):
    """A model in the program that runs it."""

    def __call__(
        self, rows: Sequence[ReferenceRow], on_progress: Callable[[int], None] = lambda done: None
    ) -> list[Trace]:
        """Trace rows, in their order; `on_progress` is called with how many are done."""
        ...


@dataclass(frozen=True)
class Check:
    """One thing that was compared over all rows."""

    name: str
    measured: float | None
    """Largest difference, or the share of rows that differ; None where it cannot be compared."""
    allowed: float | None
    """Most that passes; None where it is not judged."""

    @property
    def passed(self) -> bool:
        """Tell whether it is within its limit."""
        return self.allowed is None or (self.measured is not None and self.measured <= self.allowed)

    def line(self, rows: int) -> str:
        """Say it in a line: `logits: 5.5e-06 apart at most, of 0.0001 allowed`."""
        if self.measured is None:
            says = "cannot be compared"
        elif self.name in ("ids", "answers"):
            says = f"{rows - round(self.measured * rows)} of {rows} rows equal"
        elif self.name == "accuracy":
            says = f"{100 * self.measured:.1f} points lost at most"
        else:
            says = f"{self.measured:.2g} apart at most"
        if self.allowed is None:
            bound = "not judged"
        else:
            bound = "all must be" if self.name == "ids" or not self.allowed else f"{self.allowed:g} allowed"
        return f"{'ok  ' if self.passed else 'FAIL'} {self.name.replace('_', ' ')}: {says} ({bound})"


@dataclass(frozen=True)
class Certificate:
    """All checks of an export."""

    to: str
    precision: str
    rows: int
    checks: Sequence[Check]
    accuracy: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    """By column: share of right values of the run and of the export."""
    differences: Sequence[Mapping[str, str]] = ()
    """Rows whose ids or answers differ: id, run, export."""
    unchecked: str | None = None
    """Reason why nothing was compared, and how it can be."""

    @property
    def passed(self) -> bool:
        """Tell whether every check was made, and passed."""
        return bool(self.rows) and self.unchecked is None and all(check.passed for check in self.checks)

    def lines(self) -> list[str]:
        """Say every check and what differs."""
        told = [check.line(self.rows) for check in self.checks]
        told += [f"not checked: {self.unchecked}"] if self.unchecked else []
        told += [
            f"     {name}: {one['run']:.1%} right, {one['export']:.1%} exported"
            for name, one in self.accuracy.items()
        ]
        return told + [f"  {one['id']}: run {one['run']!r}, export {one['export']!r}" for one in self.differences]

    def save(self, folder: Path) -> None:
        """Write `equality.json`."""
        values = {"format": FORMAT, **asdict(self), "passed": self.passed, "platform": platform.platform()}
        text = json.dumps(values, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
        (folder / CERTIFICATE).write_text(text, encoding="utf-8", errors="replace")

    @classmethod
    def load(cls, folder: Path) -> Self:
        """Read that of an export; CheckpointError where it has none that can be read."""
        try:
            values = json.loads((folder / CERTIFICATE).read_bytes())
            checks = [Check(**one) for one in values["checks"]]
            known = {name: values[name] for name in ("to", "precision", "rows", "accuracy", "differences")}
            return cls(checks=checks, unchecked=values.get("unchecked"), **known)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{folder / CERTIFICATE} cannot be read: export the run again") from error


def sample_pixels(pixels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Choose values of the tiles of a row [C, 3, S, S], always the same ones of a shape."""
    flat = pixels.reshape(-1)
    step = max(1, flat.size // PIXELS)
    while math.gcd(step, flat.size) > 1:  # so that all columns, rows and channels have their turn
        step += 1
    return flat[np.arange(min(flat.size, PIXELS)) * step % flat.size]


def compare(
    to: str,
    precision: str,
    rows: Sequence[ReferenceRow],
    traces: tuple[Sequence[Trace], Sequence[Trace]],
    accuracy: Mapping[str, Mapping[str, float]] | None = None,
) -> Certificate:
    """Certify the traces of a run and of its export, in this order; `accuracy` is of the same rows."""
    limits, pairs = LIMITS[precision], list(zip(*traces, strict=True))
    same = [(a, b) for a, b in pairs if a.answer == b.answer]
    first = [(a.logits, b.logits) for a, b in pairs]
    if to in SCORED:
        first = [(_log_softmax(a), _log_softmax(b)) for a, b in first]
    checks = [
        Check("pixels", _largest([_apart(a.pixels, b.pixels) for a, b in pairs]), limits.pixels),
        Check("ids", _share([list(a.ids) != list(b.ids) for a, b in pairs]), 0.0),
        Check("logits", _largest([_apart(*logits) for logits in first]), limits.logits),
        Check("answers", _share([a.answer != b.answer for a, b in pairs]), limits.answers),
        Check(
            "log_probability",
            _largest([abs(a.log_probability - b.log_probability) for a, b in same]),
            limits.log_probability,
        ),
    ]
    if limits.accuracy is not None:
        lost = [shares["run"] - shares["export"] for shares in (accuracy or {}).values()]
        checks.append(Check("accuracy", _largest(lost), limits.accuracy))
    differences = [
        {"id": row.id, "run": a.answer, "export": b.answer}
        for row, (a, b) in zip(rows, pairs, strict=True)
        if a.answer != b.answer
    ]
    return Certificate(to, precision, len(rows), checks, accuracy or {}, differences[:SHOWN])


def _apart(one: NDArray[np.float32], other: NDArray[np.float32]) -> float:
    """The largest difference; infinite where the shapes differ."""
    if one.shape != other.shape:
        return math.inf
    return float(np.abs(one.astype(float) - other.astype(float)).max(initial=0.0))


def _log_softmax(logits: NDArray[np.float32]) -> NDArray[np.float32]:
    highest = logits - logits.max(initial=-np.inf)
    return highest - np.log(np.exp(highest).sum())


def _largest(values: Sequence[float]) -> float | None:
    """The largest of some finite values; None where one is not, or there are none."""
    return max(values) if values and all(map(math.isfinite, values)) else None


def _share(differ: Sequence[bool]) -> float:
    return sum(differ) / max(1, len(differ))


def save_reference(folder: Path, rows: Sequence[ReferenceRow], traces: Sequence[Trace]) -> None:
    """Write `reference.parquet`: rows, and what the run made of them."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    lists = {"pictures": pa.binary(), "pixels": pa.float32(), "ids": pa.int32(), "logits": pa.float32()}
    texts = dict.fromkeys(("id", "question", "truth", "answer"), pa.string())
    schema = pa.schema(
        texts | {name: pa.list_(kind) for name, kind in lists.items()} | {"log_probability": pa.float64()}
    )
    records = [
        {**vars(row), **vars(trace), "truth": json.dumps(dict(row.truth), ensure_ascii=False, default=str)}
        for row, trace in zip(rows, traces, strict=True)
    ]
    pq.write_table(pa.Table.from_pylist(records, schema=schema), folder / REFERENCE)


def load_reference(folder: Path) -> tuple[list[ReferenceRow], list[Trace]]:
    """Read `reference.parquet`; CheckpointError where there is none that can be read."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    path = folder / REFERENCE
    try:
        records = pq.read_table(path).to_pylist()
        rows = [
            ReferenceRow(one["id"], tuple(one["pictures"]), one["question"], json.loads(one["truth"]))
            for one in records
        ]
        traces = [
            Trace(
                np.array(one["pixels"], np.float32),
                one["ids"],
                np.array(one["logits"], np.float32),
                one["answer"],
                one["log_probability"],
            )
            for one in records
        ]
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{folder} has no {REFERENCE} to be checked by: export the run again, without --no-reference"
        ) from error
    except (OSError, ValueError, KeyError, TypeError, pa.ArrowException) as error:
        raise CheckpointError(f"{path} cannot be read ({type(error).__name__}): export the run again") from error
    return rows, traces
