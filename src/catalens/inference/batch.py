"""Pictures in any number -> one record each, in their order.

    {"id": "8043", "title": "Check Scarf", "category3_code": "ACCESSORIES", "full_price": 390.0,
     "title_confidence": 0.97, ..., "full_price_low": 351.2, "full_price_high": 431.0,
     "needs_review": false, "review_fields": "", "error": null}
    {"id": "8044", "title": null, ..., "needs_review": true, "review_fields": "", "error": "HTTP 404"}

Rows are taken in chunks that depend on nothing but their place in the source, so that a command which was killed
computes the same batches as one that was not. The next chunk's pictures are read, or fetched, while this one's are
predicted; what is in memory is two chunks.
"""

import asyncio
import hashlib
import os
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

from anyio.from_thread import start_blocking_portal
from pydantic import Field

from catalens.config import Frozen
from catalens.errors import CatalogError, RecipeError
from catalens.files import model_folder
from catalens.inference.inputs import Input
from catalens.inference.output_writer import finish_output, open_output
from catalens.inference.predictor import Predictor
from catalens.inference.records import Outcome, Record, json_line, record_schema
from catalens.predictions import Prediction, record_of
from catalens.preparing.collect import CollectSpec, receiving
from catalens.preparing.download import Downloader
from catalens.preparing.fetch import DownloadSpec
from catalens.progress import Progress, silent
from catalens.reading.table import TableRow

BATCHES = 8
"""Batches in a chunk."""

Load = Callable[[], Predictor]
Product = Sequence[TableRow]
"""The rows of its pictures."""
Chunks = Iterator[tuple[int, Sequence[Product]]]
Records = Iterator[tuple[int, list[Record]]]
"""Of one chunk, with its number."""


class BatchSpec(Frozen):
    """Settings of a batch prediction."""

    batch_size: int = Field(default=16, ge=1)
    """Pictures predicted about together."""
    download: DownloadSpec = DownloadSpec()
    raw: bool = False
    """Cells of a CSV stay as they are where a spreadsheet would take them for formulas."""


def predict_to(
    out: Path,
    source: Input,
    load: Load,
    spec: BatchSpec,
    made_by: Mapping[str, Any],
    overwrite: bool = False,
    progress: Progress = silent,
) -> Outcome:
    """Write a record of each row into a .jsonl, .csv or .parquet file, which appears when it is whole.

    Goes on from where an earlier start with the same source, settings and `made_by` (the run by its version, and what
    else decides about its predictions) was stopped; its bytes are those of a start that was not. Raises
    InferenceError where the file was begun otherwise, is finished, or cannot be written, CatalogError where the
    source changes while it is read, and what `load` raises.
    """
    if any(Path(name).exists() and out.exists() and out.samefile(name) for name in source.where):
        raise RecipeError(f"--out {out}: is what is to be read: choose another file")
    asked = {"source": [*source.where, source.version], "batch_size": spec.batch_size, **made_by}
    with open_output(out, asked, overwrite) as journal:
        predictor = load()
        outcome = Outcome(predictor.calibrated)
        schema = record_schema(predictor.prompt, source.key, source.numbered)
        for number, records in _predicted(predictor, source, spec, journal.done(), progress):
            journal.write(number, records)
        finish_output(out, _counted(journal.records(), outcome, source), schema, spec.raw)
    return outcome


def predict_lines(
    source: Input, load: Load, spec: BatchSpec, write: Callable[[str], object], progress: Progress = silent
) -> Outcome:
    """Hand each row's record to `write` as a line of JSON, in the order of the rows; otherwise as `predict_to`."""
    predictor = load()
    outcome = Outcome(predictor.calibrated)
    record_schema(predictor.prompt, source.key, source.numbered)
    for _, records in _predicted(predictor, source, spec, (), progress):
        write("".join(json_line(outcome.count(record)).decode() for record in records))
    return outcome


def run_version(run: Path) -> str:
    """Digest that changes with what a run predicts: its best model and its calibration, by size and time."""
    digest = hashlib.sha256()
    for path in sorted([*model_folder(run).rglob("*"), *run.glob("*.json")]):
        state = path.stat()
        digest.update(f"{path.relative_to(run)} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def _counted(records: Iterator[Record], outcome: Outcome, source: Input) -> Iterator[Record]:
    yield from map(outcome.count, records)
    if outcome.total != source.total:
        raise CatalogError(f"{source.where[0]} changed while it was read: start anew with --overwrite")


def _predicted(
    predictor: Predictor, source: Input, spec: BatchSpec, done: Collection[int], progress: Progress
) -> Records:
    """Records of all chunks but those that are done; progress counts a chunk when the next one is asked for."""
    size, failed = BATCHES * spec.batch_size, 0
    finished = sum(min(size, source.total - number * size) for number in done)

    def report(more: int) -> None:
        progress("pictures", finished + more, source.total, f"{failed:,} failed" if failed else "")

    products = source.products()
    chunks = enumerate(iter(lambda: list(islice(products, size)), []))
    report(0)
    for number, chunk in _fetched((one for one in chunks if one[0] not in done), source, spec):
        records = _answer(predictor, source, chunk, report)
        yield number, records
        finished += len(records)
        failed += sum(record["error"] is not None for record in records)
        report(0)


def _fetched(chunks: Chunks, source: Input, spec: BatchSpec) -> Chunks:
    """Chunks with the bytes of their pictures, or the reasons why there are none, in their rows.

    The next one is fetched, in an event loop in a thread of its own, while one is used.
    """
    asked = CollectSpec(base=source.base, download=spec.download)

    async def fetch(row: TableRow) -> TableRow:
        if row.reason is not None:
            return row
        async with receiving(row.picture, row.embedded, asked, downloader, threads) as got:
            return replace(row, embedded=got.body, reason=got.reason)

    async def fetch_all(rows: Product) -> Product:
        return await asyncio.gather(*map(fetch, rows))

    async def following() -> tuple[int, Sequence[Product]] | None:
        chunk = await asyncio.get_running_loop().run_in_executor(threads, next, chunks, None)
        return chunk and (chunk[0], await asyncio.gather(*map(fetch_all, chunk[1])))

    with (
        ThreadPoolExecutor(os.cpu_count()) as threads,
        start_blocking_portal() as loop,
        loop.wrap_async_context_manager(Downloader(spec.download)) as downloader,
    ):
        ahead = loop.start_task_soon(following)
        while chunk := ahead.result():
            ahead = loop.start_task_soon(following)
            yield chunk


def _answer(
    predictor: Predictor, source: Input, products: Sequence[Product], on_progress: Callable[[int], None]
) -> list[Record]:
    """Predict a record for each fetched product; of several pictures those count that there are."""
    asked = []
    for first, *more in products:
        pictures = [row.embedded for row in (first, *more) if row.reason is None and row.embedded is not None]
        alone = len(pictures) == 1 and not first.fields
        asked.append((pictures[0] if alone else predictor.query(pictures, first.fields)) if pictures else None)
    queries = [query for query in asked if query is not None]
    predictions = iter(predictor.predict(queries, on_progress) if queries else [])
    records = []
    for (row, *_), query in zip(products, asked, strict=True):
        prediction = next(predictions) if query is not None else Prediction(None, error=row.reason)
        name = row.number if source.numbered else row.id or None
        records.append({source.key: name} | record_of(predictor.prompt, prediction))
    return records
