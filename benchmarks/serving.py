"""`catalens serve` under load, on loopback: what is answered, lost or swapped, how fast, and in how much memory.

    python benchmarks/serving.py                 10,000 requests, 64 at a time, 5 % of them hostile; the tiny model
    python benchmarks/serving.py --run runs/demo
    python benchmarks/serving.py --fake          a predictor that costs nothing: the server alone

Each request asks for one to three of 50 drawn pictures, whose answers were asked for one by one before. Clients come
back after 429, 503 and lost connections, as they are told to. In a second round the server is killed (`kill -9`)
within the load and started again on its port. Exits with an error where an answer was lost or swapped, a hostile
request got a status that it should not, or any status was 500 or more and not 503.
"""

import argparse
import asyncio
import base64
import io
import json
import random
import resource
import signal
import statistics
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from rich.console import Console
from rich.table import Table

from catalens.sampling import draw_catalog
from catalens.sampling.assortment import DEMO

ROOT = Path(__file__).parents[1]
MOST_TRIES = 600
HUGE = 33 * 2**20 + 1
"""Bytes; more than the server takes."""
BOUNDARY = "serving"
PART = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="pictures"; filename="p.png"\r\n\r\n'.encode()


@dataclass
class Round:
    """What came of one load."""

    statuses: Counter[str] = field(default_factory=Counter)
    hostile: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    """Hostile requests with a status that they should not have got."""
    lost: int = 0
    swapped: int = 0
    seconds: float = 0.0
    latencies: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    """Resident MB of the server, one a second."""


class Load:
    """Clients of one server."""

    def __init__(self, address: str, pool: Sequence[bytes], seed: int) -> None:
        self.address, self.pool, self.random = address, pool, random.Random(seed)
        self.expected: list[Any] = []
        self.round = Round()

    async def learn(self) -> None:
        """Ask for each picture alone."""
        async with aiohttp.ClientSession() as client:
            for picture in self.pool:
                status, predictions, _ = await self._post(client, *as_form([picture]))
                if status != 200:
                    raise SystemExit(f"a picture alone got {status}")
                self.expected.append(values_of(predictions[0]))

    async def run(self, requests: int, clients: int, hostile: float, halfway: Callable[[], None]) -> Round:
        """Send them all; `halfway` is called, in a thread, when half of them are answered."""
        self.round = Round()
        turns = iter(range(requests))
        started = time.perf_counter()

        async def work(client: aiohttp.ClientSession) -> None:
            for turn in turns:
                if turn == requests // 2:
                    await asyncio.to_thread(halfway)
                if self.random.random() < hostile:
                    await self._hostile(client)
                else:
                    await self._honest(client)

        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(120)) as client:
            await asyncio.gather(*(work(client) for _ in range(clients)))
        self.round.seconds = time.perf_counter() - started
        return self.round

    async def _honest(self, client: aiohttp.ClientSession) -> None:
        places = [self.random.randrange(len(self.pool)) for _ in range(self.random.choice((1, 1, 2, 3)))]
        pictures = [self.pool[place] for place in places]
        body, kind = as_json(pictures) if self.random.random() < 0.25 else as_form(pictures)
        for _ in range(MOST_TRIES):
            asked = time.perf_counter()
            try:
                status, predictions, pause = await self._post(client, body, kind)
            except (aiohttp.ClientError, ConnectionError, TimeoutError):
                self.round.statuses["connection lost"] += 1
                await asyncio.sleep(0.2)
                continue
            self.round.statuses[str(status)] += 1
            if status in (429, 503):
                await asyncio.sleep(pause)
                continue
            if status != 200:
                break
            self.round.latencies.append(time.perf_counter() - asked)
            self.round.swapped += [values_of(one) for one in predictions] != [self.expected[p] for p in places]
            return
        self.round.lost += 1

    async def _post(self, client: aiohttp.ClientSession, body: Any, kind: str) -> tuple[int, Any, float]:
        headers = {"Content-Type": kind}
        async with client.post(f"{self.address}/v1/predict", data=body, headers=headers) as answer:
            said: Any = await answer.read()
            predictions = json.loads(said)["predictions"] if answer.status == 200 else None
            return answer.status, predictions, float(answer.headers.get("Retry-After", "1"))

    async def _hostile(self, client: aiohttp.ClientSession) -> None:
        name = self.random.choice(sorted({**BODIES, **LEAVERS}))
        try:
            if name in LEAVERS:
                self.round.hostile[f"{name}: left"] += 1
                await LEAVERS[name](self.address, self.pool[0])
                return
            make, right = BODIES[name]
            status, _, _ = await self._post(client, *make(self.pool[0]))
        except (aiohttp.ClientError, ConnectionError, TimeoutError):
            self.round.hostile[f"{name}: connection lost"] += 1
            return
        self.round.hostile[f"{name}: {status}"] += 1
        if status not in (right, 429, 503):
            self.round.wrong.append(f"{name}: {status}")


# Bodies ---------------------------------------------------------------------------------------------------------


def as_form(pictures: Sequence[bytes]) -> tuple[bytes, str]:
    """A body and its type."""
    parts = b"".join(PART + picture + b"\r\n" for picture in pictures)
    return parts + f"--{BOUNDARY}--\r\n".encode(), f"multipart/form-data; boundary={BOUNDARY}"


def as_json(pictures: Sequence[bytes]) -> tuple[bytes, str]:
    """The same in base64."""
    encoded = [{"base64": base64.b64encode(picture).decode()} for picture in pictures]
    return json.dumps({"pictures": encoded}).encode(), "application/json"


def values_of(prediction: Any) -> Any:
    """What has to be equal, however a picture was batched."""
    return {column: found["value"] for column, found in prediction["fields"].items()}


async def _pieces(size: int) -> AsyncIterator[bytes]:
    for _ in range(0, size, 2**20):
        yield bytes(2**20)


def _bomb() -> bytes:
    """A PNG whose header says that it has 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return len(data).to_bytes(4, "big") + kind + data + zlib.crc32(kind + data).to_bytes(4, "big")

    header = chunk(b"IHDR", (60_000).to_bytes(4, "big") * 2 + bytes((8, 2, 0, 0, 0)))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(9000))) + chunk(b"IEND", b"")


BODIES: dict[str, tuple[Callable[[bytes], tuple[Any, str]], int]] = {
    "bomb": (lambda picture: as_form([_bomb()]), 413),
    "truncated": (lambda picture: as_form([picture[: len(picture) // 2]]), 422),
    "HTML": (lambda picture: as_form([b"<!doctype html><script>alert(1)</script>"]), 422),
    "huge": (lambda picture: (io.BytesIO(bytes(HUGE)), "application/json"), 413),
    "huge, unannounced": (lambda picture: (_pieces(HUGE), "application/json"), 413),
    "a bare picture": (lambda picture: (picture, "image/png"), 415),
    "JSON of another form": (lambda picture: (b'{"pictures": [7]}', "application/json"), 422),
    "deep JSON": (lambda picture: (b"[" * 50_000, "application/json"), 422),
    "a URL": (lambda picture: (b'{"pictures": [{"url": "http://127.0.0.1/"}]}', "application/json"), 422),
    "half a form": (lambda picture: (as_form([picture])[0][:-40], as_form([picture])[1]), 400),
}
"""Hostile bodies, each with the one status that is right."""


async def _send(address: str, picture: bytes, shares: Sequence[float], pause: float) -> None:
    """Send a request piece by piece, up to the last share of its body, and hang up."""
    body, kind = as_form([picture])
    host, port = address.removeprefix("http://").split(":")
    head = f"POST /v1/predict HTTP/1.1\r\nHost: {host}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    _, writer = await asyncio.open_connection(host, int(port))
    try:
        writer.write(head.encode())
        for begin, end in zip((0.0, *shares), shares, strict=False):
            writer.write(body[int(begin * len(body)) : int(end * len(body))])
            await writer.drain()
            await asyncio.sleep(pause)
    finally:
        writer.close()


LEAVERS: dict[str, Callable[[str, bytes], Awaitable[None]]] = {
    "slow": lambda address, picture: _send(address, picture, [0.1, 0.2, 0.3, 0.4], 0.5),
    "leaves within the body": lambda address, picture: _send(address, picture, [0.5], 0.0),
    "leaves before the answer": lambda address, picture: _send(address, picture, [1.0], 0.0),
}
"""Clients that never see an answer."""


# The server -----------------------------------------------------------------------------------------------------


class Server:
    """The process, which may be killed and started again on its port."""

    def __init__(self, options: argparse.Namespace) -> None:
        served = [str(ROOT / "tests" / "served.py")]
        run = [str(options.run)] if options.run else []
        self._command = [sys.executable, *(served if options.fake else ["-m", "catalens", "serve", *run])]
        self.address = ""
        self.start()

    def start(self) -> None:
        """Start, on the port that it had before."""
        port = self.address.rpartition(":")[2] or "0"
        self.process = subprocess.Popen([*self._command, "--port", port], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        self.address = self.process.stdout.readline().strip()
        if not self.address:
            raise SystemExit("the server did not start")

    def kill_and_start(self) -> None:
        """`kill -9`, and once more."""
        self.process.kill()
        self.process.communicate()
        self.start()

    def resident(self) -> float:
        """MB."""
        pages = int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1])
        return pages * resource.getpagesize() / 2**20


@contextmanager
def _started(options: argparse.Namespace) -> Iterator[Server]:
    server = Server(options)
    try:
        yield server
        server.process.send_signal(signal.SIGTERM)
        if (code := server.process.wait(60)) != 0:
            raise SystemExit(f"the server ended with {code}")
    finally:
        server.process.kill()
        server.process.wait()


async def _measure(server: Server, options: argparse.Namespace) -> tuple[Round, Round]:
    pool = [row.image for row in draw_catalog(50, 1234, DEMO, 1, 0.08)]
    load = Load(server.address, pool, options.seed)
    await load.learn()

    async def watch() -> None:
        while True:
            load.round.memory.append(server.resident())
            await asyncio.sleep(1)

    watching = asyncio.create_task(watch())
    steady = await load.run(options.requests, options.clients, options.hostile, lambda: None)
    watching.cancel()
    killed = await load.run(max(100, options.requests // 10), options.clients, 0.0, server.kill_and_start)
    return steady, killed


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print, and fail where something was lost, swapped or wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=64)
    parser.add_argument("--hostile", type=float, default=0.05, help="share of the requests")
    parser.add_argument("--run", type=Path, help="a finished run; the tiny model by default")
    parser.add_argument("--fake", action="store_true", help="tests/served.py in place of `catalens serve`")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    with _started(options) as server:
        steady, killed = asyncio.run(_measure(server, options))
    _print(steady, killed, options)
    bad = [
        status for one in (steady, killed) for status in one.statuses if status.startswith("5") and status != "503"
    ]
    if steady.lost or steady.swapped or steady.wrong or killed.lost or killed.swapped or bad:
        raise SystemExit(f"failed: {bad} {steady.wrong[:5]}")


def _print(steady: Round, killed: Round, options: argparse.Namespace) -> None:
    table = Table(title=f"{options.clients} clients at a time")
    table.add_column("")
    table.add_column(f"{options.requests:,} requests, {options.hostile:.0%} hostile", justify="right")
    table.add_column("killed within the load", justify="right")
    rows: dict[str, Callable[[Round], str]] = {
        "answered": lambda one: f"{len(one.latencies):,}",
        "lost": lambda one: f"{one.lost}",
        "swapped": lambda one: f"{one.swapped}",
        "hostile, answered as they should not be": lambda one: f"{len(one.wrong)}",
        "requests a second": lambda one: f"{len(one.latencies) / one.seconds:.0f}",
        "latency, median": lambda one: f"{1000 * statistics.median(one.latencies):.0f} ms",
        "latency, 95 %": lambda one: f"{1000 * statistics.quantiles(one.latencies, n=20)[-1]:.0f} ms",
        "statuses": lambda one: ", ".join(f"{status}: {n:,}" for status, n in sorted(one.statuses.items())),
    }
    for name, figure in rows.items():
        table.add_row(name, figure(steady), figure(killed))
    Console(width=140).print(table)
    for name, count in sorted(steady.hostile.items()):
        print(f"hostile, {name}: {count}")
    quarter = max(1, len(steady.memory) // 4)
    curve = [statistics.mean(steady.memory[start : start + quarter]) for start in range(0, 4 * quarter, quarter)]
    print("resident MB of the server, by quarter: " + ", ".join(f"{size:.0f}" for size in curve if size))


if __name__ == "__main__":
    main()
