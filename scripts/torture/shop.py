"""Tables of a shop, the web server with its pictures, and what `prepare` makes of them undisturbed."""

import csv
import io
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from random import Random
from typing import Any, Self

import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from processes import PATIENCE, Run, files_of, new_case

TABLES = ("urls.csv", "mixed.jsonl", "embedded.parquet")
CONNECTIONS = 8
ROLES = ("--image=photo", "--id=sku", "--text=title", "--category=kind", "--number=price")
WEB = ("--allow-private-hosts", "--rate=1000000", f"--concurrency={CONNECTIONS}", f"--per-host={CONNECTIONS}")


@cache
def picture(number: int) -> bytes:
    """A PNG of noise, its own for every number."""
    buffer = io.BytesIO()
    Image.frombytes("RGB", (16, 16), Random(number).randbytes(768)).save(buffer, "PNG")
    return buffer.getvalue()


class Server(ThreadingHTTPServer):
    """`/picture/7` is a picture, `/shaky/7` is one from the second time on, `/missing/7` is none; counts requests."""

    daemon_threads, request_queue_size = True, 128

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.asked: Counter[str] = Counter()
        self.held_after = math.inf
        """From so many requests on, no answer comes until `release`."""
        self.gate = threading.Event()
        self.url = f"http://127.0.0.1:{self.server_port}"
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()

    def release(self) -> None:
        """Let all answers go."""
        self.held_after = math.inf
        self.gate.set()
        self.gate = threading.Event()

    def handle_error(self, request: object, client_address: object) -> None:
        """Say nothing of clients that were killed."""


class _Answer(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server  # type: ignore[assignment]

    def do_GET(self) -> None:
        _, kind, number = self.path.split("/")
        self.server.asked[self.path] += 1
        first = self.server.asked[self.path] == 1
        if self.server.asked.total() > self.server.held_after:
            self.server.gate.wait(PATIENCE)
        time.sleep(0.01)
        status = 404 if kind == "missing" else 500 if kind == "shaky" and first else 200
        body = picture(int(number)) if status == 200 else b"no"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""


def tables(folder: Path, url: str, size: int, names: Sequence[str]) -> dict[str, list[str]]:
    """Tables of URLs, paths and embedded pictures, some rows of them bad; what `prepare` is told, for some names."""
    (folder / "photos").mkdir(parents=True)
    rows: list[dict[str, Any]] = []
    for n in range(size):
        (folder / "photos" / f"{n}.png").write_bytes(picture(n))
        price = "none" if n % 41 == 7 else str(n + 0.25)
        rows.append({"sku": f"P{n // 2}", "title": f'Bag "{n}", größer', "kind": f"K{n % 5}", "price": price})
    kinds = ["shaky" if n == 5 else "missing" if n % 37 == 9 else "picture" for n in range(size)]
    urls = [f"{url}/{kind}/{n}" for n, kind in enumerate(kinds)]
    paths = [f"photos/{n if n % 29 else 'lost'}.png" for n in range(size)]
    embedded = [{"bytes": picture(n) if n % 23 else b"broken", "path": f"{n}.png"} for n in range(size)]

    def with_photos(cells: Sequence[object]) -> list[dict[str, Any]]:
        return [row | {"photo": cell} for row, cell in zip(rows, cells, strict=True)]

    with (folder / "urls.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [*rows[0], "photo"])
        writer.writeheader()
        writer.writerows(with_photos(urls))
    mixed = with_photos([urls[n] if n % 2 else paths[n] for n in range(size)])
    (folder / "mixed.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in mixed), encoding="utf-8")
    pq.write_table(pa.Table.from_pylist(with_photos(embedded)), folder / "embedded.parquet", row_group_size=200)
    return {name: [str(folder / name), *ROLES, *WEB, "--max-bad=50%"] for name in names}


@dataclass(frozen=True)
class Scenario:
    """Something to disturb: a command, the folder that it starts from, and what comes of it undisturbed."""

    name: str
    arguments: Sequence[str]
    template: Path | None
    case: Path
    """Where it ran undisturbed."""
    files: Mapping[str, str]
    seconds: float
    changes: int
    """Of file names, seen while it ran."""
    temporary: set[str]
    """Names beside the catalogue that were there for a while."""
    asked: Counter[str]
    """Requests by path."""

    @classmethod
    def undisturbed(
        cls, folder: Path, name: str, arguments: Sequence[str], server: Server, template: Path | None = None
    ) -> Self:
        """Run it to its end once."""
        case = new_case(folder / f"undisturbed {name}", template)
        server.asked.clear()
        started = time.monotonic()
        run = Run(case, arguments)
        changes, paths = run.watch(case)
        if (ended := run.end()).code or ended.fault:
            raise SystemExit(f"prepare fails undisturbed: {ended.fault or ended.output}")
        temporary = {path.relative_to(case).parts[0] for path in paths} - {"shop", "shop.work"}
        seconds = time.monotonic() - started
        return cls(
            name, arguments, template, case, files_of(case / "shop"), seconds, changes, temporary, server.asked.copy()
        )
