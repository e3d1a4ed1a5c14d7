"""Predictions on disk while they are made, durable a chunk at a time, and the whole file at the end.

    predictions.parquet.partial/  manifest.json   what was asked for: source, run and settings, each by its version
                                  00000000.jsonl  records of rows 1-128
                                  00000001.jsonl  records of rows 129-256
    predictions.parquet                           all of them, there as a whole or not at all

A part is written aside, synced and renamed: `kill -9` finds each chunk done or not begun. The folder is locked by its
process, and goes when the whole file is there.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pyarrow as pa

from catalens.errors import InferenceError, RecipeError
from catalens.files import atomic, locked, sync, writing
from catalens.inference.records import FORMATS, Record, json_line, write_records

PART = "[0-9]" * 8
"""Name of a part, as a pattern."""
FIX = "mend that and give the same command again, what is done is kept"


class OutputWriter:
    """The finished chunks of an output, by their numbers from 0."""

    def __init__(self, out: Path) -> None:
        self.out, self.folder = out, out.with_name(f"{out.name}.partial")
        self._manifest = self.folder / "manifest.json"
        self.done: set[int] = set()

    def start(self, asked: Mapping[str, Any], overwrite: bool) -> None:
        """Go on with what an earlier start has done, or begin; InferenceError where that may not be."""
        before, now = None if overwrite else self._begun(), json.loads(json.dumps(asked))
        if before is None:
            if self.out.exists() and not overwrite:
                raise InferenceError(f"{self.out} is there already: give --overwrite to replace it, or another --out")
            self._clear()
        elif before != now and any(self.folder.glob(f"{PART}.jsonl")):
            differing = ", ".join(name.replace("_", " ") for name in now if before.get(name) != now[name])
            raise InferenceError(
                f"{self.folder} was begun with another {differing}: give the same command again to go on with it, "
                "or --overwrite to start anew"
            )
        if before != now:  # an earlier command without a finished chunk came to nothing
            with atomic(self._manifest) as aside:
                aside.write_text(json.dumps(asked, indent=2), encoding="utf-8")
        self.done = {int(path.stem) for path in self.folder.glob(f"{PART}.jsonl") if path.stem.isdecimal()}

    def _begun(self) -> dict[str, Any] | None:
        """The manifest of an earlier start."""
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
        with writing(self.out, InferenceError, FIX), atomic(self.folder / f"{number:08d}.jsonl") as aside:
            aside.write_bytes(b"".join(map(json_line, records)))
        self.done.add(number)

    def records(self) -> Iterator[Record]:
        """All records, in the order of the source."""
        for number in sorted(self.done):
            with (self.folder / f"{number:08d}.jsonl").open("rb") as part:
                yield from map(json.loads, part)

    def finish(self, records: Iterator[Record], schema: pa.Schema, raw: bool = False) -> None:
        """Write the whole file, and leave nothing else; `raw` leaves a CSV's cells as they are."""
        aside = self.folder / f"whole{self.out.suffix}"
        with writing(self.out, InferenceError, FIX):
            write_records(aside, records, schema, raw)
            sync(aside)
            aside.replace(self.out)
            sync(self.out.parent)
            self._clear()

    def _clear(self) -> None:
        """Remove all that was done; the manifest first, because parts without one count for nothing."""
        self._manifest.unlink(missing_ok=True)
        for ours in (f"{PART}.jsonl", f".{PART}.jsonl.partial", ".manifest.json.partial", "whole.*"):
            for path in self.folder.glob(ours):
                path.unlink()


@contextmanager
def open_output(out: Path, asked: Mapping[str, Any], overwrite: bool) -> Iterator[OutputWriter]:
    """Open the output `out`, locked until the block ends.

    Raises RecipeError where `out` is no .jsonl, .csv or .parquet, and InferenceError where it is finished, was begun
    with other settings than `asked`, is another process's, or cannot be written.
    """
    if out.suffix not in FORMATS:
        raise RecipeError(f"--out {out}: give a file that ends in {', '.join(FORMATS)}")
    if out.is_dir():
        raise InferenceError(f"{out} is a folder: choose another --out")
    output = OutputWriter(out)
    with ExitStack() as held:
        with writing(out, InferenceError, FIX):
            if not held.enter_context(locked(output.folder)):
                raise InferenceError(
                    f"{out} is being written by another process: wait for it or choose another --out"
                )
            output.start(asked, overwrite)
        yield output
