"""Rows that train together: the whole run is planned before its first step.

    lengths  [66, 71, 66, 68, 90, ...]            tokens of each row
    plan     [[[4, 17], [8, 2]], [[11, 0], ...]]  steps, their micro-batches, the rows of each

Every process draws up the same plan from the same seed and takes its own micro-batches, so that a step has the same
rows however many processes share it, and a run that goes on, with as many or with others, skips whole steps. Where
micro-batches run short in a step, a process gets a row without labels, `~i`: all take part in every forward pass.
"""

import math
import os
import random
from collections.abc import Iterator, Sequence

import torch
from torch.utils.data import Sampler

from catalens.config import TrainingSpec

Plan = list[list[list[int]]]
SORTED_TOGETHER = 8
"""Micro-batches whose rows are sorted by length together. More would save little more padding, and rows with the
same words would share a batch, which slows learning: the best validation loss of recipes/furniture.yaml is .722 at
64, .710 at 8, .708 at 1."""
SHAPES = 4
"""Shapes of batches that layers are compiled for, some 20 s each on a GPU."""
NARROW = 32
"""Share of the longest batch, one in so many, that is not worth a shape of its own."""
ALIGNED = 8
"""Tokens that lengths are multiples of then: tensor cores compute in such blocks."""


def plan_training(lengths: Sequence[int], spec: TrainingSpec, processes: int) -> Plan:
    """The steps of a run over rows of these many tokens, for as many processes as it was begun with."""
    per_step = spec.gradient_accumulation * processes
    rng = random.Random(spec.seed)
    steps: Plan = []
    batches: list[list[int]] = []
    remaining = math.inf if spec.max_steps else spec.epochs
    while remaining > 0 and not (spec.max_steps and len(steps) >= spec.max_steps):
        epoch = _epoch(lengths, spec, rng)
        batches += epoch[: math.ceil(len(epoch) * min(1, remaining))]
        whole = len(batches) - len(batches) % per_step
        steps += [batches[start : start + per_step] for start in range(0, whole, per_step)]
        del batches[:whole]
        remaining -= 1
    steps += [batches] if batches else []
    return steps[: spec.max_steps]


def regroup(plan: Plan, processes: int, accumulation: int, passes: int) -> Plan:
    """Compute each step in so many forward passes a process instead of `accumulation`; its rows stay the same.

    `passes` divides `accumulation`, and micro-batches become one, or is a multiple of it, and they are divided.
    """
    if passes >= accumulation:
        parts = passes // accumulation
        return [[part for batch in step for part in _divided(batch, parts)] for step in plan]
    merged = processes * accumulation // passes
    steps: Plan = []
    for step in plan:
        groups = [step[start : start + merged] for start in range(0, len(step), merged)]
        shares = [group[rank::processes] for group in groups for rank in range(processes)]
        steps.append([[row for batch in share for row in batch] for share in shares if share])
    return steps


def possible_passes(accumulation: int, rows: int) -> list[int]:
    """List what `regroup` can make of a step whose micro-batches have so many rows at most, fewest passes first."""
    fewer = [number for number in range(1, accumulation) if accumulation % number == 0]
    return [*fewer, *(accumulation * parts for parts in range(1, rows + 1))]


def shapes_of(plan: Plan, lengths: Sequence[int], packed: bool) -> dict[int, int]:
    """Rows by tokens of at most `SHAPES` shapes that hold all micro-batches: layers are compiled once for each.

    Of packed batches, the samples of the largest one.
    """
    seen = [
        (sum(own) if packed else max(own), len(own))
        for step in plan
        for batch in step
        for own in [[lengths[row] for row in batch]]
    ]
    low, high = min(tokens for tokens, _ in seen), max(tokens for tokens, _ in seen)
    width = max(math.ceil((high - low + 1) / SHAPES), high // NARROW, 1)
    bins: dict[int, list[tuple[int, int]]] = {}
    for tokens, rows in seen:
        bins.setdefault((tokens - low) // width, []).append((tokens, rows))
    shapes: dict[int, int] = {}
    for own in bins.values():
        tokens = math.ceil(max(tokens for tokens, _ in own) / ALIGNED) * ALIGNED
        shapes[tokens] = max(shapes.get(tokens, 0), *(rows for _, rows in own))
    return shapes


def _divided(batch: list[int], parts: int) -> list[list[int]]:
    size = math.ceil(len(batch) / parts)
    return [batch[start : start + size] for start in range(0, len(batch), size)]


def plan_validation(lengths: Sequence[int], batch_size: int, processes: int) -> Plan:
    """Every row once, sorted by length, in steps of one micro-batch a process."""
    order = sorted(range(len(lengths)), key=lambda row: lengths[row])
    batches = [order[start : start + batch_size] for start in range(0, len(order), batch_size)]
    return [batches[start : start + processes] for start in range(0, len(batches), processes)]


def loader_workers(asked: int | None) -> int:
    """Processes that prepare batches ahead of a GPU, as many as the recipe says; none where the cores train."""
    if asked is not None or not torch.cuda.is_available():
        return asked or 0
    return min(8, max(1, (os.cpu_count() or 1) // torch.cuda.device_count() - 1))


class PlannedBatches(Sampler[list[int]]):
    """Micro-batches of one process in the order of the plan, from step `first` on; `accumulation` of them in each."""

    def __init__(self, plan: Plan, rank: int, processes: int, first: int = 0) -> None:
        self.plan, self.rank, self.processes, self.first = plan, rank, processes, first
        self.accumulation = math.ceil(max(map(len, plan)) / processes)

    def __len__(self) -> int:
        return (len(self.plan) - self.first) * self.accumulation

    def __iter__(self) -> Iterator[list[int]]:
        for step in self.plan[self.first :]:
            for turn in range(self.accumulation):
                place = turn * self.processes + self.rank
                yield step[place] if place < len(step) else [~step[0][0]]


def _epoch(lengths: Sequence[int], spec: TrainingSpec, rng: random.Random) -> list[list[int]]:
    """Micro-batches of every row once, in random order; rows of like length share one."""
    order = list(range(len(lengths)))
    rng.shuffle(order)
    backwards = rng.random() < 0.5  # the last batch is a small one: not always of the longest rows
    rows = max(1, spec.batch_tokens * len(lengths) // sum(lengths)) if spec.batch_tokens else spec.rows
    window = SORTED_TOGETHER * rows
    order = [
        row
        for start in range(0, len(order), window)
        for row in sorted(order[start : start + window], key=lambda row: lengths[row], reverse=backwards)
    ]
    rows = spec.rows
    batches = [order[start : start + rows] for start in range(0, len(order), rows)]
    batches = _by_tokens(order, lengths, spec) if spec.batch_tokens else batches
    rng.shuffle(batches)
    return batches


def _by_tokens(order: Sequence[int], lengths: Sequence[int], spec: TrainingSpec) -> list[list[int]]:
    """As many rows as a budget of tokens holds, padding counted where there is any; a longer row stands alone."""
    assert spec.batch_tokens is not None
    batches: list[list[int]] = []
    total = longest = 0
    for row in order:
        total, longest = total + lengths[row], max(longest, lengths[row])
        rows = len(batches[-1]) + 1 if batches else 1
        size = total if spec.packing else longest * rows
        if batches and size <= spec.batch_tokens:
            batches[-1].append(row)
        else:
            batches.append([row])
            total = longest = lengths[row]
    return batches
