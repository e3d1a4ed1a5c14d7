"""Shards of rows -> their pictures, fetched, decoded and recorded, several at a time.

    row 3, https://shop.example/8043.jpg  ->  record 3: 200, 1 attempt, sha256, fingerprint, the picture to store

One loop serves all shards that it is given, so that a slow row at the end of one does not hold up the next; on a
cluster each shard is a task of its own. Whatever comes of a row is written down before the next is asked for.
"""

import asyncio
import hashlib
import logging
import os
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, Self
from urllib.parse import urljoin, urlsplit

from catalens.catalog.downloading import Downloader, DownloadSpec, Fetched
from catalens.catalog.duplicates import fingerprint
from catalens.catalog.pictures import storable_picture
from catalens.catalog.records import Record, Shard, TableRow
from catalens.catalog.sources import open_bytes
from catalens.config import Frozen
from catalens.errors import CatalogError, PictureError

AHEAD = 16
"""Rows under way for each connection, so that one slow host does not keep the others waiting."""
WEB = ("http", "https")

Heard = Callable[[int, Mapping[str, int]], None]
"""Called with rows done so far and failures by reason."""


class CollectSpec(Frozen):
    """How pictures are fetched and stored."""

    base: str
    """Folder or URL that paths are relative to."""
    download: DownloadSpec = DownloadSpec()
    max_side: int | None = None
    """Longest side of a stored picture in pixels; unset: as it came."""

    def shared(self, workers: int) -> Self:
        """The settings of one of several workers that ask the same hosts."""
        asked, workers = self.download, max(1, workers)
        share = {
            "per_host": max(1, asked.per_host // workers),
            "per_host_rate": max(0.5, asked.per_host_rate / workers),
        }
        return self.model_copy(update={"download": asked.model_copy(update=share)})


def collect(shards: Sequence[Path], spec: CollectSpec, heard: Heard = lambda done, failures: None) -> int:
    """Give every pending row of the shards a record; how many that were."""
    return asyncio.run(_collect(shards, spec, heard))


def collect_on_ray(shards: Sequence[Path], spec: CollectSpec, heard: Heard = lambda done, failures: None) -> int:
    """The same, a shard a task on the Ray cluster of `RAY_ADDRESS`, or on a local one.

    All workers must see the shards' folder; the requests to one host are shared out among them. Raises
    CatalogError where Ray is not installed.
    """
    ray = join_ray()
    share = spec.shared(int(ray.cluster_resources().get("CPU", 1)))
    task = ray.remote(collect)
    waiting = [task.remote([shard.resolve()], share) for shard in shards]
    done = 0
    while waiting:
        ready, waiting = ray.wait(waiting)
        done += sum(ray.get(ready))
        heard(done, {})
    return done


def join_ray() -> Any:
    """The `ray` module, with the cluster of `RAY_ADDRESS` or a local one; CatalogError where it is not installed."""
    try:
        import ray
    except ImportError as error:
        raise CatalogError("--engine ray needs Ray: pip install 'catalens[ray]'") from error
    ray.init(ignore_reinit_error=True, include_dashboard=False, log_to_driver=False, logging_level=logging.WARNING)
    return ray


async def receive(row: TableRow, spec: CollectSpec, downloader: Downloader, threads: ThreadPoolExecutor) -> Fetched:
    """The bytes of a row's picture, whatever they are: from the row, a file below the table's folder, or the web.

    Never raises: `reason` says why there are none.
    """
    if row.embedded is not None:
        return _found(row.embedded)
    url = _url(row.picture, spec.base)
    if url is None:
        return await asyncio.get_running_loop().run_in_executor(threads, _read, row.picture, spec)
    return await downloader.fetch(url)


async def _collect(shards: Sequence[Path], spec: CollectSpec, heard: Heard) -> int:
    done = 0
    failures: Counter[str] = Counter()
    queue = _Queue(shards)
    with ThreadPoolExecutor(os.cpu_count() or 1) as threads:
        async with Downloader(spec.download) as downloader:

            async def work() -> None:
                nonlocal done
                for shard, row in queue:
                    record = await _record(row, spec, downloader, threads)
                    queue.done(shard, row, record)
                    done += 1
                    if record.reason:
                        failures[record.reason.split(":")[0]] += 1
                    heard(done, failures)

            async with asyncio.TaskGroup() as tasks:
                for _ in range(AHEAD * spec.download.concurrency):
                    tasks.create_task(work())
    return done


class _Queue:
    """Rows to fetch, shard after shard; a shard is open from its first row to the record of its last."""

    def __init__(self, shards: Sequence[Path]) -> None:
        self._rows = self._all(shards)
        self._under_way: Counter[Shard] = Counter()

    def __iter__(self) -> Iterator[tuple[Shard, TableRow]]:
        return self._rows

    def _all(self, shards: Sequence[Path]) -> Iterator[tuple[Shard, TableRow]]:
        for path in shards:
            shard = Shard(path)
            self._under_way[shard] += 1  # as long as rows may follow
            for row in shard.pending():
                self._under_way[shard] += 1
                yield shard, row
            self._leave(shard)

    def done(self, shard: Shard, row: TableRow, record: Record) -> None:
        """Write a record down."""
        shard.record(row.number, record)
        self._leave(shard)

    def _leave(self, shard: Shard) -> None:
        self._under_way[shard] -= 1
        if not self._under_way[shard]:
            del self._under_way[shard]
            shard.close()


async def _record(row: TableRow, spec: CollectSpec, downloader: Downloader, threads: ThreadPoolExecutor) -> Record:
    """What comes of a row; never raises."""
    got = await receive(row, spec, downloader, threads)
    record = Record(got.reason)
    if got.body is not None:
        record = await asyncio.get_running_loop().run_in_executor(threads, _checked, got.body, spec.max_side)
    return replace(record, status=got.status, final_url=got.final_url, attempts=got.attempts)


def _url(picture: str, base: str) -> str | None:
    """Where the web has the picture; None where it is a file."""
    if urlsplit(base).scheme in WEB:
        return urljoin(f"{base}/", picture)
    return picture if picture.lower().startswith(("http://", "https://")) else None


def _read(picture: str, spec: CollectSpec) -> Fetched:
    """A file below the table's folder, here or on the table's own file system."""
    if "://" in spec.base:
        parts = picture.split("/")
        if "://" in picture or picture.startswith("/") or ".." in parts:
            return _found(None, "picture path leaves the table's folder")
        path = f"{spec.base}/{picture}"
    else:
        base = Path(spec.base).resolve()
        try:
            inside = (base / picture).resolve()
        except (ValueError, RuntimeError, OSError):  # a null character, a circle of links, a name too long
            return _found(None, "picture path is none")
        if not inside.is_relative_to(base):
            return _found(None, "picture path leaves the table's folder")
        path = str(inside)
    try:
        with open_bytes(path) if "://" in path else Path(path).open("rb") as file:
            data = file.read(spec.download.max_bytes + 1)
    except ValueError:
        return _found(None, "picture path is none")
    except OSError as error:
        return _found(None, f"picture cannot be read: {error.strerror or error}")
    if len(data) > spec.download.max_bytes:
        return _found(None, f"too large: more than {spec.download.max_bytes:,} bytes")
    return _found(data)


def _found(data: bytes | None, reason: str | None = None) -> Fetched:
    """What did not come from the web."""
    return Fetched(final_url=None, status=None, body=data, attempts=1, reason=reason, retryable=False)


def _checked(data: bytes, max_side: int | None) -> Record:
    try:
        stored, seen = storable_picture(data, max_side)
    except PictureError as error:
        return Record(f"picture: {error}", received=len(data))
    return Record(None, stored, hashlib.sha256(stored).digest(), fingerprint(seen), received=len(data))
