"""Counts are of what was computed; rates follow from them."""

import pytest
import torch

from catalens.data import IGNORED, Collator
from catalens.estimates import PHI3_VISION, Setup, sample_flops
from catalens.training import throughput
from catalens.training.throughput import Meter, device_peak, peak_memory, row_lengths


def example(tokens: int, taught: bool = True) -> dict[str, torch.Tensor]:
    labels = torch.full((tokens,), 7 if taught else IGNORED)
    return {"input_ids": torch.arange(tokens), "labels": labels, "pixel_values": torch.zeros(5, 3, 2, 2)}


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [100.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    return now


@pytest.mark.parametrize("packed", [False, True])
def test_lengths_of_a_batch(packed: bool):
    batch = Collator(0, packed)([example(4), example(9), example(1)])
    assert row_lengths(batch) == [4, 9, 1]


def test_rates_are_of_training_time_and_of_rows_that_teach(clock):
    setup = Setup("lora")
    meter = Meter(PHI3_VISION, setup, peak=1e12)
    collate = Collator(0)
    meter.count([collate([example(30), example(10)]), collate([example(20, taught=False)])], waited=1.0)
    clock[0] += 4
    with meter.paused():
        clock[0] += 1000  # validation
    rates = meter.recent()
    assert rates["samples_per_second"] == 2 / 4
    assert rates["tokens_per_second"] == 40 / 4
    assert rates["useful_tokens"] == 40 / (2 * 30 + 20)
    assert rates["waiting_for_data"] == 1 / 4
    work = sum(sample_flops(PHI3_VISION, setup, tokens, 5.0) for tokens in (30.0, 10.0))
    assert rates["mfu"] == pytest.approx(work / 4 / 1e12)
    assert meter.recent() == {}
    assert meter.overall() == rates


def test_processes_add_up(clock):
    meter = Meter(PHI3_VISION, Setup("lora"), 1e12, processes=2, total=lambda numbers: [2 * n for n in numbers])
    meter.count([Collator(0)([example(30)])], waited=0.0)
    clock[0] += 4
    rates = meter.recent()
    assert rates["samples_per_second"] == 2 / 4
    assert rates["useful_tokens"] == 1
    alone = sample_flops(PHI3_VISION, Setup("lora"), 30.0, 5.0) / 4 / 1e12
    assert rates["mfu"] == pytest.approx(alone)  # of what both can do


def test_this_machine_has_a_peak():
    assert device_peak(torch.device("cpu"), torch.float32) > 1e8
    assert peak_memory() > 10**8
