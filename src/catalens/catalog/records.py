"""What has been done about each row, durable at every moment: one SQLite file for each shard of a table.

    rows     3, "8043", {"title": "Check Scarf", ...}, "https://shop.example/8043.jpg"
    records  3, fetched in 1 attempt, 200, sha256, fingerprint, the picture as it will be stored

A record is written in one transaction, so that `kill -9` finds each row either done or not begun.
"""

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any, Self

SCHEMA = """
CREATE TABLE rows (number INTEGER PRIMARY KEY, id TEXT, fields TEXT, picture TEXT, embedded BLOB, reason TEXT);
CREATE TABLE records (
    number INTEGER PRIMARY KEY, reason TEXT, status INTEGER, final_url TEXT, attempts INTEGER, bytes INTEGER,
    sha256 BLOB, fingerprint BLOB, stored BLOB
);
"""


@dataclass(frozen=True)
class TableRow:
    """A row of the table, read and checked."""

    number: int
    """Its place in the table, from 1."""
    id: str
    fields: Mapping[str, Any]
    picture: str
    """URL or path of the picture; empty where the bytes came with the row."""
    embedded: bytes | None = None
    reason: str | None = None
    """Why it cannot be used, whatever its picture is."""


@dataclass(frozen=True)
class Record:
    """What came of a row's picture."""

    reason: str | None
    """Why there is no picture; None where there is one."""
    stored: bytes | None = None
    """The picture as the catalogue will hold it."""
    sha256: bytes | None = None
    """Of `stored`."""
    fingerprint: bytes | None = None
    status: int | None = None
    """Last HTTP status."""
    final_url: str | None = None
    """Where the last redirect led."""
    attempts: int = 1
    received: int = 0
    """Bytes as received."""


class Shard:
    """The rows and records of one shard; use as a context manager."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._database = sqlite3.connect(path, isolation_level=None)
        # a transaction survives the death of the process; only that of the machine may lose the last ones
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = NORMAL")

    @classmethod
    def write(cls, path: Path, rows: Iterable[TableRow]) -> None:
        """Make a shard of rows without records; it is there as a whole or not at all."""
        aside = path.with_suffix(".partial")
        aside.unlink(missing_ok=True)
        with closing(sqlite3.connect(aside, isolation_level=None)) as database:
            database.executescript(SCHEMA)
            database.execute("BEGIN")
            database.executemany(
                "INSERT INTO rows VALUES (?, ?, ?, ?, ?, ?)",
                ((r.number, r.id, json.dumps(r.fields), r.picture, r.embedded, r.reason) for r in rows),
            )
            database.execute("COMMIT")
        aside.rename(path)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file."""
        self._database.close()

    def pending(self) -> Iterator[TableRow]:
        """Usable rows without a record, in order."""
        numbers = self._database.execute(
            "SELECT number FROM rows LEFT JOIN records USING (number) "
            "WHERE rows.reason IS NULL AND records.number IS NULL ORDER BY number"
        ).fetchall()
        for (number,) in numbers:
            (row,) = self._database.execute(
                "SELECT number, id, fields, picture, embedded FROM rows WHERE number = ?", (number,)
            )
            yield TableRow(row[0], row[1], json.loads(row[2]), row[3], row[4])

    def done(self) -> int:
        """Rows that need nothing more."""
        ((total,),) = self._database.execute("SELECT count(*) FROM rows")
        ((waiting,),) = self._database.execute(
            "SELECT count(*) FROM rows LEFT JOIN records USING (number) "
            "WHERE rows.reason IS NULL AND records.number IS NULL"
        )
        return total - waiting

    def record(self, number: int, record: Record) -> None:
        """Write down what came of a row; durable when this returns."""
        self._database.execute(
            "INSERT INTO records (number, reason, stored, sha256, fingerprint, status, final_url, attempts, bytes) "
            "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (number, *astuple(record)),
        )

    def forget_failed(self) -> int:
        """Drop the records without a picture, so that they are asked for again; how many they were."""
        return self._database.execute("DELETE FROM records WHERE reason IS NOT NULL").rowcount

    def keys_of_pictures(self) -> Iterator[tuple[str, Mapping[str, Any], bytes, bytes]]:
        """Id, fields, SHA-256 and fingerprint of every row with a picture, in order."""
        found = self._database.execute(
            "SELECT id, fields, sha256, fingerprint FROM rows JOIN records USING (number) "
            "WHERE records.reason IS NULL ORDER BY number"
        )
        for id, fields, sha256, fingerprint in found:
            yield id, json.loads(fields), sha256, fingerprint

    def results(self) -> Iterator[tuple[TableRow, bytes | None]]:
        """Every row in order with its picture; a row without one says why in its `reason`."""
        found = self._database.execute(
            "SELECT number, id, fields, picture, coalesce(rows.reason, records.reason), stored "
            "FROM rows LEFT JOIN records USING (number) ORDER BY number"
        )
        for number, id, fields, picture, reason, stored in found:
            yield TableRow(number, id, json.loads(fields), picture, reason=reason), stored
