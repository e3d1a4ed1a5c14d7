"""Our downloader against a bare aiohttp loop and a serial `requests` loop, from one server in one run.

The server of `tests/hostile.py`, in a process of its own on loopback, waits some milliseconds before each answer and
gives a JPEG of about 24 KB. The bare loop is `session.get` under a semaphore, reading each body and nothing else: no
retries, limits, checks or pacing. The serial loop is how the Phi-3 cookbook gets its pictures; it takes fewer URLs,
as only its rate counts. The ways take turns; a figure is the median over the rounds. The time of our own process
on the CPU is printed too: it does not hide behind the server's.
"""

import argparse
import asyncio
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import requests
from rich.console import Console
from rich.table import Table

from catalens.preparing import Downloader, DownloadSpec

SERVER = Path(__file__).parents[1] / "tests" / "hostile.py"


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--urls", type=int, default=2000)
    parser.add_argument("--serial-urls", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--concurrency", type=int, default=64)
    parser.add_argument("--latency", type=float, default=0.02, help="seconds before every answer of the server")
    options = parser.parse_args()

    with _server(options.latency) as base:
        urls = [f"{base}/jpeg/{number}" for number in range(options.urls)]
        ways: dict[str, tuple[Callable[[list[str], int], int], list[str]]] = {
            "bare aiohttp loop": (_bare, urls),
            "catalens": (_ours, urls),
            "serial requests loop": (_serial, urls[: options.serial_urls]),
        }
        rates: dict[str, list[float]] = {name: [] for name in ways}
        costs: dict[str, list[float]] = {name: [] for name in ways}
        for turn in range(options.rounds + 1):  # the first round warms up: the server draws its pictures then
            for name, (fetch_all, some) in ways.items():
                started, cpu = time.perf_counter(), time.process_time()
                if (failed := fetch_all(some, options.concurrency)) != 0:
                    raise SystemExit(f"{name}: {failed} of {len(some)} URLs failed")
                if turn:
                    rates[name].append(len(some) / (time.perf_counter() - started))
                    costs[name].append(1000 * (time.process_time() - cpu) / len(some))
    _print(rates, costs, options)


@contextmanager
def _server(latency: float) -> Iterator[str]:
    command = [sys.executable, str(SERVER), "--port", "0", "--latency", str(latency)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().strip()
        finally:
            process.terminate()


def _bare(urls: list[str], concurrency: int) -> int:
    async def run() -> int:
        places = asyncio.Semaphore(concurrency)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as client:

            async def fetch(url: str) -> bool:
                async with places, client.get(url) as response:
                    return len(await response.read()) > 0

            return (await asyncio.gather(*map(fetch, urls))).count(False)

    return asyncio.run(run())


def _ours(urls: list[str], concurrency: int) -> int:
    async def run() -> int:
        spec = DownloadSpec(
            concurrency=concurrency, per_host=concurrency, per_host_rate=1e6, allow_private_hosts=True
        )
        async with Downloader(spec) as downloader:
            fetched = await asyncio.gather(*map(downloader.fetch, urls))
            return sum(one.body is None or one.attempts > 1 for one in fetched)

    return asyncio.run(run())


def _serial(urls: list[str], concurrency: int) -> int:
    return sum(not requests.get(url, timeout=10).content for url in urls)


def _print(rates: dict[str, list[float]], costs: dict[str, list[float]], options: argparse.Namespace) -> None:
    table = Table(
        title=f"{options.urls} URLs ({options.serial_urls} for the serial loop), {options.concurrency} at a time, "
        f"{1000 * options.latency:g} ms latency, medians of {options.rounds} rounds"
    )
    for column in ("way", "pictures a second", "lowest-highest", "times the bare loop's", "CPU ms a picture"):
        table.add_column(column, justify="left" if column == "way" else "right")
    bare = statistics.median(rates["bare aiohttp loop"])
    for name, figures in rates.items():
        middle, spread = statistics.median(figures), f"{min(figures):.0f}-{max(figures):.0f}"
        cost = statistics.median(costs[name])
        table.add_row(name, f"{middle:.0f}", spread, f"{middle / bare:.2f}x", f"{cost:.2f}")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
