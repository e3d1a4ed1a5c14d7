"""Many clients at a time, some of them hostile: the benchmark's own load, at a small size."""

import asyncio
import sys
from pathlib import Path

import pytest
from hostile import jpeg
from served import FakePredictor, expected
from served import serving as served

sys.path.insert(0, str(Path(__file__).parents[2] / "benchmarks"))

import serving as benchmark

POOL = [jpeg(number, 80, 80) for number in range(20)]


def test_nothing_is_lost_or_swapped_among_hostile_clients(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(benchmark, "HUGE", 2**20 + 1)
    with served(FakePredictor(seconds=0.002), max_bytes=2**20, queue=24) as server:
        load = benchmark.Load(server.address, POOL, seed=3)
        asyncio.run(load.learn())
        assert load.expected == [expected(picture) for picture in POOL]
        found = asyncio.run(load.run(600, 64, 0.2, lambda: None))
    assert (found.lost, found.swapped, found.wrong) == (0, 0, [])
    assert set(found.statuses) <= {"200", "429", "503"}
    assert found.statuses["200"] > 400
    assert found.statuses["429"] > 0
    assert len({name.partition(":")[0] for name in found.hostile}) == len(benchmark.BODIES) + len(benchmark.LEAVERS)


def test_a_swapped_answer_would_be_seen():
    class Swapping(FakePredictor):
        def predict(self, pictures, progress=None):
            return super().predict(pictures)[::-1]

    with served(Swapping(seconds=0.01)) as server:
        load = benchmark.Load(server.address, POOL, seed=3)
        asyncio.run(load.learn())
        assert asyncio.run(load.run(60, 16, 0.0, lambda: None)).swapped > 0


@pytest.mark.slow
@pytest.mark.integration
def test_the_benchmark_with_a_server_that_is_killed(capsys: pytest.CaptureFixture[str]):
    benchmark.main(["--fake", "--requests", "1000"])
    printed = capsys.readouterr().out
    assert "connection lost" in printed
    assert "│ lost                                    │                          0 │" in printed
