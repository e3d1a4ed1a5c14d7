"""Journals: what a long command has done, in one SQLite file that is sound at every moment of `kill -9`.

    class Output(Journal):
        schema = "CREATE TABLE records (number INTEGER PRIMARY KEY, record TEXT);"

    with Output.open(Path("predictions.csv.work/journal.sqlite"), fix) as journal:
        journal.note("asked", {"batch_size": 16})       journal.state("asked")   {"batch_size": 16}

Each step is one transaction, found done or not begun. `prepare` keeps rows and pictures so, `predict` records.
"""

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any, ClassVar, Self

from catalens.errors import CatalensError, CatalogError

STATE = "CREATE TABLE state (name TEXT PRIMARY KEY, value TEXT);"
FIX = "mend that and give the same command again, what is done is kept"
PAGE = 500
"""Rows that are looked at together."""
UNWRITABLE = ("FULL", "IOERR", "READONLY", "CANTOPEN", "PERM", "BUSY", "LOCKED", "NOMEM", "TOOBIG", "NOLFS")
"""Errors of SQLite that are not the file's fault."""


class Journal:
    """One SQLite file, opened by one process at a time; a subclass says its tables."""

    schema: ClassVar[str]
    format: ClassVar[int] = 1
    upgrades: ClassVar[Mapping[int, str]] = {}
    """SQL that makes the present format of an earlier one."""
    error: ClassVar[type[CatalensError]] = CatalogError

    def __init__(self, path: Path, database: sqlite3.Connection) -> None:
        self.path, self.database = path, database

    @classmethod
    @contextmanager
    def open(cls, path: Path, fix: str) -> Iterator[Self]:
        """Open a journal, made if absent.

        Raises `error` where the file is none, with the `fix` to start anew, and for what SQLite raises in the block.
        """
        try:
            with closing(sqlite3.connect(path, isolation_level=None)) as database:
                # a transaction survives the death of the process; only that of the machine may lose the last ones
                database.execute("PRAGMA journal_mode = WAL")
                database.execute("PRAGMA synchronous = NORMAL")
                ((version,),) = database.execute("PRAGMA user_version")
                if version != cls.format:
                    sql = f"{STATE} {cls.schema}" if version == 0 else cls.upgrades.get(version)
                    if sql is None:
                        raise cls.error(f"{path} is of another version of catalens: {fix}")
                    database.executescript(f"BEGIN; {sql} PRAGMA user_version = {cls.format}; COMMIT;")
                yield cls(path, database)
        except sqlite3.Error as error:
            if getattr(error, "sqlite_errorname", "").removeprefix("SQLITE_").startswith(UNWRITABLE):
                raise cls.error(f"{path} cannot be written ({error}): {FIX}") from error
            raise cls.error(f"{path} is damaged ({error}): {fix}") from error

    @staticmethod
    def remove(path: Path) -> None:
        """Remove a journal that is not open."""
        for end in ("", "-wal", "-shm"):
            path.with_name(path.name + end).unlink(missing_ok=True)

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Do a block's changes or none; durable when it ends."""
        self.database.execute("BEGIN IMMEDIATE")
        with self.database:  # commits, or rolls back
            yield

    def one(self, sql: str, *values: object) -> Any:
        """The first row of what a query finds; None where it finds nothing."""
        return self.database.execute(sql, values).fetchone()

    def pages(self, sql: str, *values: object) -> Iterator[list[Any]]:
        """Rows of a query, some at a time, so that others may write; its first value is the last number found."""
        last = 0
        while page := self.database.execute(f"{sql} LIMIT {PAGE}", (last, *values)).fetchall():
            yield page
            last = page[-1][0]

    def state(self, name: str) -> dict[str, Any]:
        """Look up what is noted under a name; empty where nothing is."""
        found = self.one("SELECT value FROM state WHERE name = ?", name)
        return read_object(found[0]) if found else {}

    def note(self, name: str, value: Mapping[str, Any]) -> None:
        """Note something; durable when this returns."""
        self.database.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (name, json.dumps(value)))


def read_object(text: object) -> dict[str, Any]:
    """A JSON object; what else stands in its place is damage, an sqlite3.DatabaseError."""
    try:
        found = json.loads(text) if isinstance(text, str) else None
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise sqlite3.DatabaseError("a JSON object is broken")
    return found
