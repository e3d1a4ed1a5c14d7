"""Ways of doing the same work take turns, so that a busy machine disturbs all of them alike.

    take_turns({"theirs": theirs, "ours": ours}, rounds=5, rows=32)
    -> {"theirs": Times(wall=[72.9, ...], cpu=[144.1, ...]), "ours": ...}    milliseconds a row

A ratio is taken within each round, between figures of the same minute; its median and its range are what counts.
"""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeVar

import torch

Way = TypeVar("Way")


@dataclass(frozen=True)
class Times:
    """Milliseconds a row, one figure a round: by the clock, and on all cores together."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        """Median by the clock."""
        return statistics.median(self.wall)


@dataclass(frozen=True)
class Ratio:
    """How many times faster, over the rounds."""

    median: float
    lowest: float
    highest: float

    @property
    def range(self) -> str:
        """Lowest to highest, as a table shows it."""
        return f"{self.lowest:.2f}-{self.highest:.2f}"


def take_turns(ways: Mapping[Way, Callable[[], None]], rounds: int, rows: int) -> dict[Way, Times]:
    """Run every way once a round; a first round warms up and does not count."""
    times = {way: Times() for way in ways}
    for turn in range(rounds + 1):
        for way, run in ways.items():
            wall, cpu = time.perf_counter(), time.process_time()
            run()
            if torch.cuda.is_available():
                torch.cuda.synchronize()
            if turn:
                times[way].wall.append(1000 * (time.perf_counter() - wall) / rows)
                times[way].cpu.append(1000 * (time.process_time() - cpu) / rows)
    return times


def ratio(slow: Times, fast: Times) -> Ratio:
    """How many times faster `fast` is."""
    by_round = [one / other for one, other in zip(slow.wall, fast.wall, strict=True)]
    return Ratio(statistics.median(by_round), min(by_round), max(by_round))
