"""Journal of a table's rows and of their pictures, durable at every moment: one SQLite file.

    rows      3, "8043", {"title": "Check Scarf", ...}, "https://shop.example/8043.jpg", picture 2
    pictures  2, "https://shop.example/8043.jpg", 200, 1 attempt, sha256, {"width": 300, "height": 375, ...}
    received  2, the picture as it came
    stored    2, the picture as the catalogue holds it, where that is another
    splits    "8043", sha256, train

Pictures belong to their address, not to a row: rows are read anew when the table or a flag changes, and what is there
of their pictures is kept. A record is written in one transaction, so that `kill -9` finds each picture either done or
not begun.
"""

import hashlib
import json
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict
from typing import Any, ClassVar, NamedTuple

from catalens.catalog.pictures import PictureFacts
from catalens.config import Kind
from catalens.journal import Journal, read_object
from catalens.preparing.download import Fetched
from catalens.reading.table import TableRow

ROWS = (
    "(number INTEGER PRIMARY KEY, id TEXT, fields TEXT, source TEXT, picture INTEGER, reason TEXT, split TEXT, "
    "together INTEGER)"
)
SCHEMA = f"""
CREATE TABLE catalogues (manifest TEXT PRIMARY KEY);
CREATE TABLE rows {ROWS};
CREATE TABLE pictures (
    picture INTEGER PRIMARY KEY, key TEXT UNIQUE, source TEXT, made TEXT, reason TEXT, status INTEGER, final_url TEXT,
    attempts INTEGER, bytes INTEGER, sha256 BLOB, facts TEXT
);
CREATE TABLE received (picture INTEGER PRIMARY KEY, data BLOB);
CREATE TABLE stored (picture INTEGER PRIMARY KEY, data BLOB);
CREATE TABLE splits (id TEXT, sha256 BLOB, split TEXT, PRIMARY KEY (id, sha256)) WITHOUT ROWID;
"""
SPLIT_ADDED = "ALTER TABLE rows ADD COLUMN split TEXT;"
TOGETHER_ADDED = "ALTER TABLE rows ADD COLUMN together INTEGER;"
FACTS_ADDED = """
ALTER TABLE pictures ADD COLUMN facts TEXT;
UPDATE pictures SET made = NULL WHERE reason IS NULL;
"""
"""From format 1, which has no facts: pictures are decoded again, and none is fetched again."""
EMBEDDED = "sha256:"
"""Beginning of the key of a picture that came with its row."""


class Wanted(NamedTuple):
    """A picture without a record."""

    number: int
    """By which the journal knows it."""
    source: str
    """URL or path, as the table has it."""
    kept: bool
    """Its bytes are there and have only to be decoded."""


class Record(NamedTuple):
    """Outcome of fetching and decoding a picture."""

    got: Fetched
    """Bytes that came; its reason says why there is no picture."""
    facts: PictureFacts | None = None
    """Of the picture as the catalogue will hold it."""
    stored: bytes | None = None
    """The picture as the catalogue will hold it; None also where that is as it was received."""
    received: bytes | None = None
    """As it came from the web, to be kept with it."""
    oddities: tuple[str, ...] = ()
    """Defects that were mended in it, to be counted."""


class TableJournal(Journal):
    """The rows and pictures of one table, and the catalogues that were made of them."""

    schema, format = SCHEMA, 4
    upgrades: ClassVar = {
        1: FACTS_ADDED + SPLIT_ADDED + TOGETHER_ADDED,
        2: SPLIT_ADDED + TOGETHER_ADDED,
        3: TOGETHER_ADDED,
    }

    def __contains__(self, manifest: object) -> bool:
        return self.one("SELECT 1 FROM catalogues WHERE manifest = ?", manifest) is not None

    def add(self, manifest: str) -> None:
        """Remember a catalogue that is written from here; durable when this returns."""
        self.database.execute("INSERT OR IGNORE INTO catalogues VALUES (?)", (manifest,))

    # Rows

    def read(self, batches: Iterable[list[tuple[TableRow, str | None]]], asked: Mapping[str, Any]) -> None:
        """Take in all rows of a table, each with the key of its picture, in the place of those that are there.

        `asked` is noted with them when they are complete; until then the earlier ones count.
        """
        self.database.executescript(f"DROP TABLE IF EXISTS fresh; CREATE TABLE fresh {ROWS};")
        for batch in batches:
            with self.transaction():
                for row, key in batch:
                    picture = None if key is None else self._picture(key, row)
                    values = (row.number, row.id, json.dumps(row.fields), row.picture, picture, row.reason)
                    values += (row.split, row.together)
                    self.database.execute("INSERT INTO fresh VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
        with self.transaction():
            self.database.execute("DROP TABLE rows")
            self.database.execute("ALTER TABLE fresh RENAME TO rows")
            self.database.execute("CREATE INDEX pictures_of_rows ON rows (picture)")
            self.note("asked", asked)

    def _picture(self, key: str, row: TableRow) -> int:
        self.database.execute("INSERT OR IGNORE INTO pictures (key, source) VALUES (?, ?)", (key, row.picture))
        (picture,) = self.one("SELECT picture FROM pictures WHERE key = ?", key)
        if row.embedded is not None:
            self.database.execute("INSERT OR IGNORE INTO received VALUES (?, ?)", (picture, row.embedded))
        return picture

    def readdress(self, key_of: Callable[[str], str]) -> None:
        """Give rows the pictures that are at their addresses now: a file may be another than before."""
        addressed = (
            "SELECT number, rows.source, key FROM rows JOIN pictures USING (picture) "
            "WHERE number > ? AND key NOT LIKE ? ORDER BY number"
        )
        for page in self.pages(addressed, f"{EMBEDDED}%"):
            changed = [(number, source, now) for number, source, key in page if (now := key_of(source)) != key]
            with self.transaction():
                for number, source, key in changed:
                    picture = self._picture(key, TableRow(number, "", {}, source))
                    self.database.execute("UPDATE rows SET picture = ? WHERE number = ?", (picture, number))

    def total(self) -> int:
        """Rows of the table."""
        return self.one("SELECT count(*) FROM rows")[0]

    def most_together(self) -> int:
        """Most pictures of rows that belong together."""
        usable = "FROM rows JOIN pictures USING (picture) WHERE rows.reason IS NULL AND pictures.reason IS NULL"
        counts = f"SELECT count(DISTINCT sha256) AS n {usable} AND together IS NOT NULL GROUP BY together"
        return self.one(f"SELECT coalesce(max(n), 1) FROM ({counts})")[0]

    def spare(self, reason: str) -> int:
        """Rows that are left out for a reason that is no fault."""
        return self.one("SELECT count(*) FROM rows WHERE reason = ?", reason)[0]

    # Pictures

    def pictures(self, made: str) -> tuple[int, int]:
        """Pictures of the rows in all, and those that have a record, `made` as is wanted now."""
        total, waiting = self.one(
            "SELECT count(*), coalesce(sum(reason IS NULL AND made IS NOT ?), 0) FROM pictures "
            "WHERE picture IN (SELECT picture FROM rows)",
            made,
        )
        return total, total - waiting

    def pending(self, made: str) -> Iterator[Wanted]:
        """Pictures of the rows without a record, without their bytes."""
        waiting = (
            "SELECT picture, source, picture IN (SELECT picture FROM received) FROM pictures "
            "WHERE picture > ? AND reason IS NULL AND made IS NOT ? AND picture IN (SELECT picture FROM rows) "
            "ORDER BY picture"
        )
        for page in self.pages(waiting, made):
            yield from (Wanted(picture, source, bool(kept)) for picture, source, kept in page)

    def received(self, number: int) -> bytes | None:
        """Bytes of a picture as it came, where they are kept."""
        found = self.one("SELECT data FROM received WHERE picture = ?", number)
        return found[0] if found else None

    def record(self, number: int, record: Record, made: str) -> None:
        """Write down what came of a picture; durable when this returns."""
        with self.transaction():
            r, facts = record.got, record.facts
            known = (bytes.fromhex(facts.sha256), json.dumps(asdict(facts))) if facts else (None, None)
            self.database.execute(
                "UPDATE pictures SET made = ?, reason = ?, status = coalesce(?, status), "
                "final_url = coalesce(?, final_url), attempts = ?, bytes = ?, sha256 = ?, facts = ? "
                "WHERE picture = ?",
                (made, r.reason, r.status, r.final_url, r.attempts, len(r.body or b""), *known, number),
            )
            self.database.execute("DELETE FROM stored WHERE picture = ?", (number,))
            if record.received is not None:
                self.database.execute("INSERT OR REPLACE INTO received VALUES (?, ?)", (number, record.received))
            if record.stored is not None:
                self.database.execute("INSERT INTO stored VALUES (?, ?)", (number, record.stored))

    def forget_failed(self) -> int:
        """Forget the records without a picture, so that they are asked for again; how many rows have one."""
        (total,) = self.one(
            "SELECT count(*) FROM rows JOIN pictures USING (picture) WHERE pictures.reason IS NOT NULL"
        )
        self.database.execute("UPDATE pictures SET reason = NULL, made = NULL WHERE reason IS NOT NULL")
        return total

    def keys_of_pictures(
        self, kinds: Mapping[str, Kind]
    ) -> Iterator[tuple[str, Mapping[str, Any], PictureFacts, str | None, str | None]]:
        """Id, fields, facts of the picture, own and earlier split of every row with a picture, in order.

        `kinds` are of the fields and inputs; a row that no preparation has assigned yet has no split.
        """
        found = self.database.execute(
            "SELECT number, id, fields, sha256, facts, rows.split, splits.split "
            "FROM rows LEFT JOIN pictures USING (picture) "
            "LEFT JOIN splits USING (id, sha256) "
            "WHERE rows.reason IS NULL AND pictures.reason IS NULL ORDER BY number"
        )
        types = {name: int | float | None if kind == "number" else str | None for name, kind in kinds.items()}
        for number, id, text, sha256, known, own, earlier in found:
            fields, facts = read_object(text), _facts(known)
            whole = fields.keys() == types.keys() and all(isinstance(fields[name], types[name]) for name in types)
            if not (whole and isinstance(id, str) and sha256 == bytes.fromhex(facts.sha256)):
                raise sqlite3.DatabaseError(f"row {number} is broken")
            yield id, fields, facts, own, earlier

    def assign(self, splits: Iterable[str | None], shares: Mapping[str, Any]) -> None:
        """Note the split of every row with a picture, in order, and the shares asked for; earlier ones go."""
        rows = self.database.execute(
            "SELECT id, sha256 FROM rows JOIN pictures USING (picture) "
            "WHERE rows.reason IS NULL AND pictures.reason IS NULL ORDER BY number"
        )
        with self.transaction():
            self.database.execute("DELETE FROM splits")
            self.database.executemany(
                "INSERT OR REPLACE INTO splits VALUES (?, ?, ?)",
                ((*row, split) for row, split in zip(rows, splits, strict=True) if split),
            )
            self.note("shares", shares)

    def results(self, failed: bool = False) -> Iterator[tuple[TableRow, bytes | None, PictureFacts | None]]:
        """Rows in order, all or the `failed`, each with its picture; one without says why in its `reason`."""
        found = self.database.execute(
            "SELECT number, id, fields, rows.source, coalesce(rows.reason, pictures.reason) AS why, together, facts, "
            "CASE WHEN coalesce(rows.reason, pictures.reason) IS NULL THEN coalesce(stored.data, received.data) END "
            "FROM rows LEFT JOIN pictures USING (picture) LEFT JOIN stored USING (picture) "
            "LEFT JOIN received USING (picture) WHERE why IS NOT NULL OR NOT ? ORDER BY number",
            (failed,),
        )
        for number, id, fields, source, reason, together, text, data in found:
            facts = None if reason else _facts(text)
            if facts and hashlib.sha256(data or b"").hexdigest() != facts.sha256:
                raise sqlite3.DatabaseError(f"the picture of row {number} is not what was stored")
            yield TableRow(number, id, read_object(fields), source, reason=reason, together=together), data, facts


def _facts(text: object) -> PictureFacts:
    """The facts of a picture; what else stands in their place is damage."""
    try:
        facts = PictureFacts(**read_object(text))
        if len(bytes.fromhex(facts.sha256)) == len(bytes.fromhex(facts.fingerprint)) == 32:
            return facts
    except (TypeError, ValueError):
        pass
    raise sqlite3.DatabaseError("the facts of a picture are broken")
