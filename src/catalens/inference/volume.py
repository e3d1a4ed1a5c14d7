"""Pictures in any number -> one record each, in their order.

    {"id": "8043", "title": "Check Scarf", "category3_code": "ACCESSORIES", "full_price": 390.0,
     "title_confidence": 0.97, ..., "full_price_low": 351.2, "full_price_high": 431.0,
     "needs_review": false, "review_fields": "", "error": null}
    {"id": "8044", "title": null, ..., "needs_review": true, "review_fields": "", "error": "HTTP 404"}

Rows are taken in chunks that depend on nothing but their place in the source, so that a command which was killed
computes the same batches as one that was not. The next chunk's pictures are read, or fetched, while this one's are
predicted; what is in memory is two chunks. On a Ray cluster each worker has a predictor, and gets chunks as it can.
"""

import asyncio
import hashlib
import os
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any, Literal, NamedTuple, Protocol

from anyio.from_thread import start_blocking_portal
from pydantic import Field

from catalens.config import Frozen, PromptSpec
from catalens.errors import CatalogError, InferenceError, RecipeError
from catalens.inference.inputs import Input
from catalens.inference.parts import Record, line, open_parts, schema_of
from catalens.inference.prediction import Prediction, Predictor, record_of
from catalens.preparing.collect import CollectSpec, join_ray, receive
from catalens.preparing.download import Downloader
from catalens.preparing.fetch import DownloadSpec
from catalens.preparing.journal import TableRow

BATCHES = 8
"""Batches in a chunk."""
CHUNKS_AHEAD = 2
"""Chunks that a worker of a cluster has at a time."""
NAMED = 10
"""Failed rows that are named."""
LONGEST = 300
"""Characters of one that is."""
REASONS = 100
"""Different reasons that are counted apart."""

Load = Callable[[], Predictor]
Heard = Callable[[int, int, str], None]
"""Called with rows done, rows in all, and how many failed."""


class VolumeSpec(Frozen):
    """How many pictures are predicted."""

    batch_size: int = Field(default=16, ge=1)
    """Pictures predicted about together."""
    engine: Literal["native", "vllm", "ray"] = "native"
    """`ray`: on the workers of a cluster."""
    download: DownloadSpec = DownloadSpec()
    raw: bool = False
    """Whether the cells of a CSV stay as they are where a spreadsheet would take them for formulas."""


@dataclass
class Outcome:
    """What came of all rows."""

    calibrated: bool
    """Whether the confidences are calibrated."""
    total: int = 0
    failed: int = 0
    to_review: int = 0
    reasons: Counter[str] = field(default_factory=Counter)
    """Failures by what stands before the first colon of their reason."""
    named: list[str] = field(default_factory=list)
    """Some failed rows with their reasons, a line each."""

    def count(self, record: Record) -> Record:
        """Take a record into account."""
        self.total += 1
        self.to_review += record["needs_review"]
        if (error := record["error"]) is not None:
            self.failed += 1
            reason = error.partition(":")[0][:80]
            self.reasons[reason if reason in self.reasons or len(self.reasons) < REASONS else "other reasons"] += 1
            if len(self.named) < NAMED:
                name = record["file"] if "file" in record else f"row {self.total} ({record['id']})"
                self.named.append(" ".join(f"{name}: {error}".split())[:LONGEST])
        return record


def predict_to(
    out: Path,
    source: Input,
    load: Load,
    spec: VolumeSpec,
    made_by: Mapping[str, Any],
    overwrite: bool = False,
    heard: Heard = lambda done, total, note: None,
) -> Outcome:
    """Write a record of each row into a .jsonl, .csv or .parquet file, which appears when it is whole.

    Goes on from where an earlier start with the same source, settings and `made_by` (the run by its version, and what
    else decides about its predictions) was stopped; its bytes are those of a start that was not. Raises
    InferenceError where the file was begun otherwise, is finished, or cannot be written, CatalogError where the
    source changes while it is read, and what `load` raises.
    """
    size = BATCHES * spec.batch_size
    if any(Path(name).exists() and out.exists() and out.samefile(name) for name in source.where):
        raise RecipeError(f"--out {out}: is what is to be read: choose another file")
    asked = {"source": [*source.where, source.version], "batch_size": spec.batch_size, **made_by}
    with open_parts(out, asked, overwrite) as parts:
        place = _place(load, source, spec)
        outcome = Outcome(place.calibrated)
        schema = schema_of(place.prompt, source.key, source.numbered)
        chunks = (chunk for chunk in _chunks(source, size) if chunk.number not in parts.done)
        progress = _Progress(source, sum(min(size, source.total - number * size) for number in parts.done), heard)
        for number, records in place.records(chunks, progress.under_way):
            parts.write(number, records)
            progress.finish(records)
        parts.finish(_counted(parts.records(), outcome, source), schema, spec.raw)
    return outcome


def _counted(records: Iterator[Record], outcome: Outcome, source: Input) -> Iterator[Record]:
    yield from map(outcome.count, records)
    if outcome.total != source.total:
        raise CatalogError(f"{source.where[0]} changed while it was read: start anew with --overwrite")


def predict_lines(
    source: Input,
    load: Load,
    spec: VolumeSpec,
    write: Callable[[str], object],
    heard: Heard = lambda done, total, note: None,
) -> Outcome:
    """Hand each row's record to `write` as a line of JSON, in the order of the rows; otherwise as `predict_to`."""
    place = _place(load, source, spec)
    outcome = Outcome(place.calibrated)
    schema_of(place.prompt, source.key, source.numbered)
    progress = _Progress(source, 0, heard)
    for _, records in place.records(_chunks(source, BATCHES * spec.batch_size), progress.under_way):
        write("".join(line(outcome.count(record)).decode() for record in records))
        progress.finish(records)
    return outcome


def run_version(run: Path) -> str:
    """Changes when what a run predicts may have changed: its best model and its calibration, by size and time."""
    digest = hashlib.sha256()
    for path in sorted([*(run / "best").rglob("*"), *run.glob("*.json")]):
        state = path.stat()
        digest.update(f"{path.relative_to(run)} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()


class _Progress:
    """Counts for whoever listens."""

    def __init__(self, source: Input, done: int, heard: Heard) -> None:
        self._total, self._done, self._failed, self._heard = source.total, done, 0, heard
        self.under_way(0)

    def under_way(self, more: int) -> None:
        self._heard(self._done + more, self._total, f"{self._failed:,} failed" if self._failed else "")

    def finish(self, records: Sequence[Record]) -> None:
        self._done += len(records)
        self._failed += sum(record["error"] is not None for record in records)
        self.under_way(0)


# Chunks ---------------------------------------------------------------------------------------------------------


class _Chunk(NamedTuple):
    number: int
    rows: list[TableRow]


class _Picture(NamedTuple):
    """A row with the bytes of its picture, or why there are none."""

    number: int
    id: str
    data: bytes | None
    reason: str | None


def _chunks(source: Input, size: int) -> Iterator[_Chunk]:
    rows, number = source.rows(), 0
    while chunk := list(islice(rows, size)):
        yield _Chunk(number, chunk)
        number += 1


async def _fetch(
    rows: Sequence[TableRow], spec: CollectSpec, downloader: Downloader, threads: ThreadPoolExecutor
) -> list[_Picture]:
    async def picture(row: TableRow) -> _Picture:
        if row.reason is not None:
            return _Picture(row.number, row.id, None, row.reason)
        received = await receive(row.picture, row.embedded, spec, downloader, threads)
        return _Picture(row.number, row.id, received.body, received.reason)

    return await asyncio.gather(*map(picture, rows))


def _answer(
    predictor: Predictor, pictures: Sequence[_Picture], key: str, numbered: bool, progress: Callable[[int], None]
) -> list[Record]:
    """A record for each picture."""
    there = [picture.data for picture in pictures if picture.data is not None]
    predictions = iter(predictor.predict(there, progress) if there else [])
    records = []
    for number, id, data, reason in pictures:
        prediction = Prediction(None, error=reason) if data is None else next(predictions)
        records.append({key: number if numbered else id or None} | record_of(predictor.prompt, prediction))
    return records


# Where they are computed ----------------------------------------------------------------------------------------


class _Place(Protocol):
    prompt: PromptSpec
    calibrated: bool

    def records(
        self, chunks: Iterator[_Chunk], progress: Callable[[int], None]
    ) -> Iterator[tuple[int, list[Record]]]: ...


def _place(load: Load, source: Input, spec: VolumeSpec) -> _Place:
    return (_OnRay if spec.engine == "ray" else _Here)(load, source, spec)


class _Here:
    """In this process, with the next chunk read in an event loop in a thread of its own."""

    def __init__(self, load: Load, source: Input, spec: VolumeSpec) -> None:
        self._predictor, self._source = load(), source
        self._spec = CollectSpec(base=source.base, download=spec.download)
        self.prompt, self.calibrated = self._predictor.prompt, self._predictor.calibrated

    def records(
        self, chunks: Iterator[_Chunk], progress: Callable[[int], None]
    ) -> Iterator[tuple[int, list[Record]]]:
        async def following(downloader: Downloader) -> tuple[int, list[_Picture]] | None:
            chunk = await asyncio.get_running_loop().run_in_executor(threads, next, chunks, None)
            return chunk and (chunk.number, await _fetch(chunk.rows, self._spec, downloader, threads))

        with (
            ThreadPoolExecutor(os.cpu_count()) as threads,
            start_blocking_portal() as loop,
            loop.wrap_async_context_manager(Downloader(self._spec.download)) as downloader,
        ):
            ahead = loop.start_task_soon(following, downloader)
            while chunk := ahead.result():
                ahead = loop.start_task_soon(following, downloader)
                number, pictures = chunk
                yield number, _answer(self._predictor, pictures, self._source.key, self._source.numbered, progress)


class _OnRay:
    """On the workers of a Ray cluster, one for each GPU, or for each CPU where there are none.

    Files must be where all workers see them. Chunks come back as they are finished, not in their order.
    """

    def __init__(self, load: Load, source: Input, spec: VolumeSpec) -> None:
        self._ray = join_ray()
        having = self._ray.cluster_resources()
        gpus = int(having.get("GPU", 0))
        count = gpus or max(1, int(having.get("CPU", 1)))
        actor = self._ray.remote(
            num_cpus=0 if gpus else 1, num_gpus=int(gpus > 0), max_restarts=3, max_task_retries=3
        )
        self._workers = [actor(_Worker).remote(load, source.key, source.numbered) for _ in range(count)]
        self._spec = CollectSpec(base=source.base, download=spec.download).shared(CHUNKS_AHEAD * count)
        self.prompt, self.calibrated = self._get(self._workers[0].about.remote())

    def records(
        self, chunks: Iterator[_Chunk], progress: Callable[[int], None]
    ) -> Iterator[tuple[int, list[Record]]]:
        fetch = self._ray.remote(num_cpus=0)(_fetch_alone)  # beside the workers, which have all the CPUs
        free = deque(self._workers * CHUNKS_AHEAD)
        under_way: dict[Any, tuple[int, Any]] = {}
        while True:
            while free and (chunk := next(chunks, None)):
                worker = free.popleft()
                under_way[worker.records.remote(fetch.remote(chunk.rows, self._spec))] = chunk.number, worker
            if not under_way:
                return
            (ready, *_), _ = self._ray.wait(list(under_way))
            number, worker = under_way.pop(ready)
            free.append(worker)
            yield number, self._get(ready)

    def _get(self, reference: Any) -> Any:
        try:
            return self._ray.get(reference)
        except self._ray.exceptions.RayTaskError as error:
            raise error.cause from error
        except self._ray.exceptions.RayError as error:
            reason = str(error).partition("\n")[0]
            raise InferenceError(
                f"a worker of the Ray cluster died ({reason}): give the same command again"
            ) from error


class _Worker:
    """One predictor in a process of its own."""

    def __init__(self, load: Load, key: str, numbered: bool) -> None:
        self._load, self._key, self._numbered = load, key, numbered

    @cached_property
    def _predictor(self) -> Predictor:
        return self._load()  # not in __init__: from there Ray would hide its error

    def about(self) -> tuple[PromptSpec, bool]:
        return self._predictor.prompt, self._predictor.calibrated

    def records(self, pictures: Sequence[_Picture]) -> list[Record]:
        return _answer(self._predictor, pictures, self._key, self._numbered, lambda done: None)


def _fetch_alone(rows: Sequence[TableRow], spec: CollectSpec) -> list[_Picture]:
    async def fetch() -> list[_Picture]:
        with ThreadPoolExecutor(os.cpu_count()) as threads:
            async with Downloader(spec.download) as downloader:
                return await _fetch(rows, spec, downloader, threads)

    return asyncio.run(fetch())
