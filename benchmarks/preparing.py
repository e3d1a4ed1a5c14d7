"""Memory and rate of `catalens prepare`, whatever the length of the table: small pictures from a server on loopback.

    python benchmarks/preparing.py --rows 5000 200000

Each length is prepared by a process of its own; its largest resident size is what the kernel says of it.
"""

import argparse
import asyncio
import csv
import io
import multiprocessing
import os
import shutil
import subprocess
import sys
import tempfile
import time
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
from aiohttp import web
from PIL import Image
from rich.console import Console
from rich.table import Table


def main() -> None:
    """Prepare each length and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="+", default=[5_000, 200_000])
    options = parser.parse_args()
    told, tell = multiprocessing.Pipe(duplex=False)
    server = multiprocessing.Process(target=_serve, args=(tell,), daemon=True)
    server.start()
    address = told.recv()
    table = Table(title="catalens prepare, pictures of 1 KB on loopback")
    for name in ("rows", "seconds", "rows a second", "largest resident size, MB", "of the first"):
        table.add_column(name, justify="right")
    first = None
    for rows in options.rows:
        seconds, size = _prepared(address, rows)
        first = first or size
        table.add_row(
            f"{rows:,}", f"{seconds:.0f}", f"{rows / seconds:.0f}", f"{size / 2**20:.0f}", f"{size / first:.2f}"
        )
    server.kill()
    Console().print(table)


def _prepared(address: str, rows: int) -> tuple[float, int]:
    """Seconds and bytes of one run."""
    folder = Path(tempfile.mkdtemp(prefix="catalens-"))
    try:
        with (folder / "table.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["sku", "title", "category", "price", "image_url"])
            writer.writerows([f"P{n}", f"Bag {n}", f"KIND {n % 9}", n + 1, f"{address}/{n}"] for n in range(rows))
        command = [
            sys.executable,
            "-m",
            "catalens",
            "prepare",
            str(folder / "table.csv"),
            "--out",
            str(folder / "out"),
        ]
        flags = ["--allow-private-hosts", "--rate", "1000000", "--per-host", "64"]
        started = time.monotonic()
        with subprocess.Popen([*command, *flags], stderr=subprocess.PIPE) as process:
            assert process.stderr is not None
            said = process.stderr.read()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise SystemExit(said.decode())
        return time.monotonic() - started, 1024 * usage.ru_maxrss
    finally:
        shutil.rmtree(folder)


def _serve(tell: Connection) -> None:
    asyncio.run(_answer(tell))


async def _answer(tell: Connection) -> None:
    async def picture(request: web.Request) -> web.Response:
        dice = np.random.default_rng(int(request.match_info["number"]))
        buffer = io.BytesIO()
        Image.fromarray(dice.integers(0, 256, (18, 18, 3), np.uint8)).save(buffer, "PNG", compress_level=0)
        return web.Response(body=buffer.getvalue(), content_type="image/png")

    app = web.Application()
    app.router.add_get("/{number}", picture)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    tell.send(f"http://127.0.0.1:{runner.addresses[0][1]}")
    await asyncio.Event().wait()


if __name__ == "__main__":
    main()
