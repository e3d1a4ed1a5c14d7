"""Throughput of a run: how fast it trains, and how much of its work is of use.

    {"samples_per_second": 196.2, "tokens_per_second": 12950.0, "useful_tokens": 0.97, "mfu": 0.31,
     "peak_memory_gb": 1.4, "waiting_for_data": 0.02}

Rates are of all processes together and of training alone: validation and checkpoints do not count. Model FLOPs
utilisation (Chowdhery et al., 2022, PaLM) takes the operations that the model needs, without what is recomputed, by
the formula of docs/estimates.md, over what the device can do.
"""

import resource
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass

import torch

PEAKS = {
    "B200": 2250e12,
    "H200": 989e12,
    "H100 PCIe": 756e12,
    "H100 NVL": 835e12,
    "H100": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "L40": 181e12,
    "L4": 121e12,
    "RTX 4090": 165e12,
    "RTX 3090": 71e12,
}
"""bf16 operations a second of dense matrix products, by NVIDIA's data sheets; the first name found in the device's
counts."""


@dataclass
class Counts:
    """Work of some batches, and the time that it took."""

    samples: float = 0
    tokens: float = 0  # of rows that teach, without padding
    positions: float = 0  # all that went through the text layers
    flops: float = 0
    waited: float = 0  # seconds for the loader
    seconds: float = 0

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(a + b for a, b in zip(astuple(self), astuple(other), strict=True)))


class Meter:
    """Counts the batches of a run.

    `tokens` and `flops` are of each training row; `peak` is what one device can do, in operations a second; `total`
    sums numbers over the processes.
    """

    def __init__(
        self,
        tokens: Sequence[int],
        flops: Sequence[float],
        peak: float,
        processes: int = 1,
        total: Callable[[Sequence[float]], Sequence[float]] = lambda numbers: numbers,
    ) -> None:
        self.tokens, self.flops, self.peak, self.processes, self.total = tokens, flops, peak, processes, total
        self._recent, self._all, self._from = Counts(), Counts(), time.perf_counter()

    def start(self) -> None:
        """Time counts from here."""
        self._from = time.perf_counter()

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Time does not count within."""
        self._recent.seconds += time.perf_counter() - self._from
        try:
            yield
        finally:
            self.start()

    def count(self, rows: Sequence[int], positions: int, waited: float) -> None:
        """Count a step's rows, those that only fill a place being below 0, and all positions of its batches."""
        teaching = [row for row in rows if row >= 0]
        self._recent.samples += len(teaching)
        self._recent.tokens += sum(self.tokens[row] for row in teaching)
        self._recent.flops += sum(self.flops[row] for row in teaching)
        self._recent.positions += positions
        self._recent.waited += waited

    def recent(self) -> dict[str, float]:
        """Rates since the last call."""
        with self.paused():
            summed = Counts(*self.total(astuple(self._recent)))
            self._recent, self._all = Counts(), self._all + summed
        return self._rates(summed)

    def overall(self) -> dict[str, float]:
        """Rates of all that `recent` has reported."""
        return self._rates(self._all)

    def _rates(self, counts: Counts) -> dict[str, float]:
        if not counts.positions:
            return {}
        seconds = counts.seconds / self.processes  # each was at work all the time
        return {
            "samples_per_second": counts.samples / seconds,
            "tokens_per_second": counts.tokens / seconds,
            "useful_tokens": counts.tokens / counts.positions,
            "mfu": counts.flops / counts.seconds / self.peak,
            "peak_memory_gb": peak_memory() / 1e9,
            "waiting_for_data": counts.waited / counts.seconds,
        }


def peak_memory() -> int:
    """Bytes that were held at most: of the GPU, or of the process where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def device_peak(device: torch.device, dtype: torch.dtype) -> float:
    """Operations a second that a device can do: by its data sheet, else what a product of two matrices reaches."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
        if (known := next((peak for part, peak in PEAKS.items() if part in name), None)) and dtype == torch.bfloat16:
            return known
    side = 8192 if device.type == "cuda" else 1024
    left = torch.ones(side, side, device=device, dtype=dtype)
    times: list[float] = []
    for _ in range(4):  # the first one warms up
        started = time.perf_counter()
        float((left @ left)[0, 0])  # waits for the device
        times.append(time.perf_counter() - started)
    return 2 * side**3 / min(times)
