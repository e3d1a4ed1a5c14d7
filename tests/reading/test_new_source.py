"""A table source from outside: one function that gives a `Source`, and it is prepared as any other."""

import sqlite3
from collections.abc import Collection, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

from hostile import encoded, pixels

from catalens import prepare
from catalens.catalog import SPLITS, Catalog
from catalens.files import file_hash
from catalens.reading import Source


def sqlite_table(path: Path, table: str) -> Source:
    """A table of an SQLite file: rows as dicts of its columns, pictures as bytes or as paths beside it."""

    def query(sql: str) -> Iterator[dict[str, Any]]:
        with closing(sqlite3.connect(path)) as database:
            database.row_factory = sqlite3.Row
            yield from map(dict, database.execute(sql))

    def read(columns: Collection[str] | None) -> Iterator[dict[str, Any]]:
        names = ", ".join(f'"{name}"' for name in columns) if columns else "*"
        return query(f'SELECT {names} FROM "{table}" ORDER BY rowid')

    names = tuple(row["name"] for row in query(f'PRAGMA table_info("{table}")'))
    return Source(f"{path}#{table}", table, str(path.parent), names, read, (), file_hash(path))


def test_a_source_of_one_function_is_prepared(tmp_path: Path):
    path, told = tmp_path / "shop.sqlite", []
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("CREATE TABLE products (sku TEXT, title TEXT, price REAL, photo BLOB)")
        for n in range(20):
            photo = encoded(pixels(n, 80, 80), "PNG") if n != 7 else b"no picture"
            database.execute("INSERT INTO products VALUES (?, ?, ?, ?)", (f"P{n}", f"Bag {n}", n + 0.5, photo))
    folder, card = prepare(sqlite_table(path, "products"), tmp_path / "out", notice=told.append)
    assert told[0] == "guessed from names and values: --image photo --id sku --text title --number price"
    assert card.left_out == {"not a picture": 1}
    rows = {row["sku"]: row for split in SPLITS for row in Catalog(folder).rows(split)}
    assert rows.keys() == {f"P{n}" for n in range(20) if n != 7}
    assert (rows["P3"]["title"], rows["P3"]["price"]) == ("Bag 3", 3.5)
    assert rows["P3"]["image"] == encoded(pixels(3, 80, 80), "PNG")
    assert prepare(sqlite_table(path, "products"), tmp_path / "out", notice=told.append) == (folder, card)
    assert "is complete" in told[-1]
