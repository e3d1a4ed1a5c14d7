"""Predictions on disk while they are made, durable a chunk at a time, and the whole file at the end.

    predictions.parquet.partial/  manifest.json   what was asked for: source, run and settings, each by its version
                                  00000000.jsonl  records of rows 1-128
                                  00000001.jsonl  records of rows 129-256
    predictions.parquet                           all of them, there as a whole or not at all

A part is written aside, synced and renamed: `kill -9` finds each chunk done or not begun. The folder is locked by its
process, and goes when the whole file is there.
"""

import csv
import json
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from catalens.config import PromptSpec
from catalens.config.characters import visible_json
from catalens.errors import InferenceError, RecipeError
from catalens.files import locked
from catalens.inference.prediction import record_columns

FORMATS = (".jsonl", ".csv", ".parquet")
PART = "[0-9]" * 8
"""Name of a part, as a pattern."""
GROUP_ROWS = 1000
"""Rows in a group of a Parquet file."""

FORMULA = re.compile(r"[=+\-@\t\r]")
"""How a cell begins that a spreadsheet takes for a formula; the same rule as in `serving/static/page.js`."""
NUMBER = re.compile(r"[-+]?\d+(\.\d+)?(e[-+]?\d+)?", re.ASCII | re.IGNORECASE)

Record = Mapping[str, Any]


class Parts:
    """The finished chunks of an output, by their numbers from 0."""

    def __init__(self, out: Path) -> None:
        self.out, self.folder = out, _folder(out)
        self._manifest = self.folder / "manifest.json"
        self.done: set[int] = set()

    def start(self, asked: Mapping[str, Any], overwrite: bool) -> None:
        """Go on with what an earlier start has done, or begin; InferenceError where that may not be."""
        before = None if overwrite else self._begun()
        if before is None:
            if self.out.exists() and not overwrite:
                raise InferenceError(f"{self.out} is there already: give --overwrite to replace it, or another --out")
            self._clear()
            _write(self._manifest, json.dumps(asked, indent=2).encode())
        elif before != (now := json.loads(json.dumps(asked))) and not any(self.folder.glob(f"{PART}.jsonl")):
            _write(self._manifest, json.dumps(asked, indent=2).encode())  # that command came to nothing
        elif before != now:
            differing = ", ".join(name.replace("_", " ") for name in now if before.get(name) != now[name])
            raise InferenceError(
                f"{self.folder} was begun with another {differing}: give the same command again to go on with it, "
                "or --overwrite to start anew"
            )
        self.done = {int(path.stem) for path in self.folder.glob(f"{PART}.jsonl") if path.stem.isdecimal()}

    def _begun(self) -> dict[str, Any] | None:
        """What an earlier start was asked for."""
        try:
            before = json.loads(self._manifest.read_bytes())
        except FileNotFoundError:
            return None
        except ValueError:
            before = None
        if not isinstance(before, dict):
            raise InferenceError(f"{self._manifest} cannot be read: give --overwrite to start anew")
        return before

    def write(self, number: int, records: Sequence[Record]) -> None:
        """Keep the records of a chunk; durable when this returns."""
        with _written(self.out):
            _write(self.folder / f"{number:08d}.jsonl", b"".join(line(record) for record in records))
        self.done.add(number)

    def records(self) -> Iterator[Record]:
        """All records, in the order of the source."""
        for number in sorted(self.done):
            with (self.folder / f"{number:08d}.jsonl").open("rb") as part:
                yield from map(json.loads, part)

    def finish(self, records: Iterator[Record], schema: pa.Schema, raw: bool = False) -> None:
        """Write the whole file, and leave nothing else; `raw` leaves a CSV's cells as they are."""
        aside = self.folder / f"whole{self.out.suffix}"
        write_csv = partial(_write_csv, cell=_raw if raw else _disarmed)
        write = {".jsonl": _write_jsonl, ".csv": write_csv, ".parquet": _write_parquet}[self.out.suffix]
        with _written(self.out):
            write(aside, records, schema)
            _sync(aside)
            aside.replace(self.out)
            _sync(self.out.parent)
            self._clear()

    def _clear(self) -> None:
        """Remove all that was done; the manifest first, because parts without one count for nothing."""
        self._manifest.unlink(missing_ok=True)
        for ours in (f"{PART}.jsonl", f"{PART}.new", "manifest.new", "whole.*"):
            for path in self.folder.glob(ours):
                path.unlink()


@contextmanager
def open_parts(out: Path, asked: Mapping[str, Any], overwrite: bool) -> Iterator[Parts]:
    """The parts of the output `out`, locked until the block ends.

    Raises RecipeError where `out` is no .jsonl, .csv or .parquet, and InferenceError where it is finished, was begun
    with other settings than `asked`, is another process's, or cannot be written.
    """
    if out.suffix not in FORMATS:
        raise RecipeError(f"--out {out}: give a file that ends in {', '.join(FORMATS)}")
    if out.is_dir():
        raise InferenceError(f"{out} is a folder: choose another --out")
    parts = Parts(out)
    with ExitStack() as held:
        with _written(out):
            if not held.enter_context(locked(parts.folder)):
                raise InferenceError(
                    f"{out} is being written by another process: wait for it or choose another --out"
                )
            parts.start(asked, overwrite)
        yield parts


def schema_of(prompt: PromptSpec, key: str, numbered: bool) -> pa.Schema:
    """Columns of an output with their types; the first, `key`, names the picture."""
    numbers = {f"{spec.column}{end}" for spec in prompt.fields for end in ("_confidence", "_low", "_high")}
    numbers |= {spec.column for spec in prompt.fields if spec.kind == "number"}
    types = {name: pa.float64() if name in numbers else pa.string() for name in record_columns(prompt)}
    names = [key, *record_columns(prompt)]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise RecipeError(f"the output would have two columns {twice!r}: rename that field of the run")
    return pa.schema({key: pa.int64() if numbered else pa.string()} | types | {"needs_review": pa.bool_()})


def line(record: Record) -> bytes:
    """A record as a line of JSON; half a character, which hostile text may hold, becomes a question mark."""
    return visible_json(json.dumps(record, ensure_ascii=False)).encode(errors="replace") + b"\n"


def _folder(out: Path) -> Path:
    return out.with_name(f"{out.name}.partial")


@contextmanager
def _written(out: Path) -> Iterator[None]:
    """Whatever a file system raises becomes one sentence."""
    try:
        yield
    except OSError as error:
        raise InferenceError(
            f"{out} cannot be written ({error.strerror or error}): mend that and give the same command again, "
            "what is done is kept"
        ) from error


def _write(path: Path, data: bytes) -> None:
    aside = path.with_suffix(".new")
    aside.write_bytes(data)
    _sync(aside)
    aside.replace(path)
    _sync(path.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _write_jsonl(path: Path, records: Iterator[Record], schema: pa.Schema) -> None:
    with path.open("wb") as file:
        file.writelines(map(line, records))


def _raw(value: Any) -> Any:
    """A cell as it is."""
    return {True: "true", False: "false"}[value] if isinstance(value, bool) else value


def _disarmed(value: Any) -> Any:
    """A cell as text where a spreadsheet would take it for a formula; numbers stay numbers."""
    armed = isinstance(value, str) and FORMULA.match(value) and not NUMBER.fullmatch(value)
    return f"'{value}" if armed else _raw(value)


def _write_csv(path: Path, records: Iterator[Record], schema: pa.Schema, cell: Callable[[Any], Any]) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(map(cell, schema.names))
        for record in records:
            writer.writerow([cell(record[name]) for name in schema.names])


def _write_parquet(path: Path, records: Iterator[Record], schema: pa.Schema) -> None:
    with pq.ParquetWriter(path, schema) as writer:
        while group := list(islice(records, GROUP_ROWS)):
            writer.write_table(pa.Table.from_pylist(group, schema=schema))
