"""The output of a batch prediction: chunks of records in a journal while they are made, one file at the end.

    predictions.parquet.work/journal.sqlite   what was asked for: source, run and settings, each by its version
                                              chunk 0, place 3, {"id": "8043", "title": "Check Scarf", ...}
    predictions.parquet                       all records, there as a whole or not at all

A chunk is one transaction: `kill -9` finds it done or not begun. The folder is locked by its process, and goes when
the file is there.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from catalens.errors import InferenceError, RecipeError
from catalens.files import atomic, locked, writing
from catalens.inference.records import FORMATS, Record, json_line, write_records
from catalens.journal import FIX, Journal, read_object

if TYPE_CHECKING:
    import pyarrow as pa


class OutputJournal(Journal):
    """The finished chunks of an output, by their numbers from 0."""

    schema = "CREATE TABLE records (chunk INTEGER, place INTEGER, record TEXT, PRIMARY KEY (chunk, place));"
    error = InferenceError

    def done(self) -> set[int]:
        """Numbers of the chunks that are there."""
        return {number for (number,) in self.database.execute("SELECT DISTINCT chunk FROM records")}

    def start(self, asked: Mapping[str, Any]) -> None:
        """Note what is asked for; InferenceError where chunks of something else are there."""
        before, now = self.state("asked"), json.loads(json.dumps(asked))
        if before != now and self.done():
            differing = ", ".join(name.replace("_", " ") for name in now if before.get(name) != now[name])
            raise InferenceError(
                f"{self.path.parent} was begun with another {differing}: give the same command again to go on with "
                "it, or --overwrite to start anew"
            )
        self.note("asked", now)

    def write(self, chunk: int, records: Sequence[Record]) -> None:
        """Keep the records of a chunk; durable when this returns."""
        rows = [(chunk, place, json_line(record).decode()) for place, record in enumerate(records)]
        with self.transaction():
            self.database.executemany("INSERT INTO records VALUES (?, ?, ?)", rows)

    def records(self) -> Iterator[Record]:
        """All records, in the order of the source."""
        for (text,) in self.database.execute("SELECT record FROM records ORDER BY chunk, place"):
            yield read_object(text)


@contextmanager
def open_output(out: Path, asked: Mapping[str, Any], overwrite: bool) -> Iterator[OutputJournal]:
    """Open the journal of the output `out`, locked until the block ends, and removed where it ends well.

    Raises RecipeError where `out` is no .jsonl, .csv or .parquet, and InferenceError where it is finished, was begun
    with other settings than `asked`, is another process's, or cannot be written.
    """
    if out.suffix not in FORMATS:
        raise RecipeError(f"--out {out}: give a file that ends in {', '.join(FORMATS)}")
    if out.is_dir():
        raise InferenceError(f"{out} is a folder: choose another --out")
    if (former := out.with_name(f"{out.name}.partial") / "manifest.json").exists():
        raise InferenceError(f"{former.parent} was begun by an earlier version: remove it and predict anew")
    path = out.with_name(f"{out.name}.work") / "journal.sqlite"
    with ExitStack() as held:
        with writing(out, InferenceError, FIX):
            if not held.enter_context(locked(path.parent)):
                raise InferenceError(
                    f"{out} is being written by another process: wait for it or choose another --out"
                )
            if overwrite:
                Journal.remove(path)
            elif out.exists() and not path.exists():
                raise InferenceError(f"{out} is there already: give --overwrite to replace it, or another --out")
        with OutputJournal.open(path, "give --overwrite to start anew") as journal:
            journal.start(asked)
            yield journal
        with writing(out, InferenceError, FIX):
            Journal.remove(path)


def finish_output(out: Path, records: Iterator[Record], schema: "pa.Schema", raw: bool = False) -> None:
    """Write the whole file; `raw` leaves a CSV's cells as they are."""
    with writing(out, InferenceError, FIX), atomic(out) as aside:
        write_records(aside, out.suffix, records, schema, raw)
