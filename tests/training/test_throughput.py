"""Counts are of what was computed; rates follow from them."""

import pytest
import torch

from catalens.training import Meter, device_peak, peak_memory, throughput

TOKENS, FLOPS = [30, 10, 20], [3e12, 1e12, 2e12]


@pytest.fixture
def clock(monkeypatch):
    """A clock that the test moves."""
    now = [100.0]
    monkeypatch.setattr(throughput.time, "perf_counter", lambda: now[0])
    return now


def test_rates_are_of_training_time_and_of_rows_that_teach(clock):
    meter = Meter(TOKENS, FLOPS, peak=1e12)
    meter.count([0, 1, ~2], positions=2 * 30 + 20, waited=1.0)
    clock[0] += 4
    with meter.paused():
        clock[0] += 1000  # validation
    rates = meter.recent()
    assert rates["samples_per_second"] == 2 / 4
    assert rates["tokens_per_second"] == 40 / 4
    assert rates["useful_tokens"] == 40 / (2 * 30 + 20)
    assert rates["waiting_for_data"] == 1 / 4
    assert rates["mfu"] == 1
    assert meter.recent() == {}
    assert meter.overall() == rates


def test_processes_add_up(clock):
    meter = Meter(TOKENS, FLOPS, 1e12, processes=2, total=lambda numbers: [2 * n for n in numbers])
    meter.count([0], positions=30, waited=0.0)
    clock[0] += 4
    rates = meter.recent()
    assert rates["samples_per_second"] == 2 / 4
    assert rates["useful_tokens"] == 1
    assert rates["mfu"] == 3 / 4  # of what both can do


def test_this_machine_has_a_peak():
    assert device_peak(torch.device("cpu"), torch.float32) > 1e8
    assert peak_memory() > 10**8
