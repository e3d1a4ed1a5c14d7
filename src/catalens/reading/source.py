"""Rows that can be read again and again, whatever they come from: their `Source`, its version, and its own splits.

    source = open_source("burberry.csv")
    next(source.rows())     {"imageurl": "https://...", "product_code": "8043", "full_price": 390.0, ...}

Values are as the file has them: text where the format knows no types, so that no code loses its leading zeros; the
shortest decimal of a narrow number, 20.99 and not 20.989999771118164. A row that cannot be read is a sentence that
says why; a cell that cannot be (a timestamp in the year 300000, half a character, a damaged page) is `Unreadable`.
"""

import hashlib
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import fsspec

from catalens.config import Frozen
from catalens.errors import CatalensError, CatalogError, first_line
from catalens.files import file_hash
from catalens.reading.columns import SAMPLE_ROWS, names_of
from catalens.reading.formats import Read, Row
from catalens.reading.nested import paths_in, value_of
from catalens.reading.text import Quotes

FIRST_BYTES = 2**26
"""Most bytes of pictures that are held to guess columns."""
SPLIT_COLUMNS = ("split", "subset", "partition", "set", "fold", "data_split", "dataset_split")
OWN_SPLIT = "(split)"
"""Name under which a row has the split that its source gives it."""
IDENTITIES = ("ETag", "etag", "Content-MD5", "md5Hash", "blob_id")
"""Names of a mark of a file's content, in the file systems of fsspec."""


@dataclass(frozen=True)
class Source:
    """Rows that can be read again and again, in the same order."""

    where: str
    """Path, URL or id, as the user gave it."""
    name: str
    """Default name of a catalogue made of it."""
    base: str
    """Folder or URL that picture paths are relative to."""
    columns: tuple[str, ...]
    read: Read
    files: tuple[tuple[Path, object], ...]
    """Local files that hold the rows, each as it was before its content was looked at."""
    version: str
    """Changes when the rows may have changed."""
    notice: str = ""
    """Way in which the file was read, where that was guessed."""
    length: int | None = None
    """Rows in all, where the file tells it."""
    splits: tuple[str, ...] = ()
    """Splits of its own, where it has several; each row names its one as `OWN_SPLIT`."""
    loose: bool = False
    """Later rows may have columns that the first ones lack."""

    def rows(self, columns: Collection[str] | None = None) -> Iterator[Row]:
        """Rows from the first on; what is wrong in a column that is not among `columns` does no harm.

        Raises CatalogError where the table breaks off.
        """
        number = 0
        known = set(self.columns)
        paths = {name: paths_in(name, self.columns) for name in columns or () if name not in known}
        wanted = None if columns is None else {*columns, *(root for some in paths.values() for root, _ in some)}
        try:
            for row in self.read(wanted):
                number += 1
                if paths and isinstance(row, Mapping):
                    row = {**{name: value_of(row, some) for name, some in paths.items() if some}, **row}
                yield row
        except CatalensError:
            raise
        except Exception as error:  # whatever a file system, a server or a parser raises
            raise CatalogError(f"{self.where}: cannot be read beyond row {number} ({first_line(error)})") from error

    def count(self) -> int:
        """Rows in all; reads through a table that does not tell."""
        return sum(1 for _ in self.rows(self.columns[:1])) if self.length is None else self.length

    def changed(self) -> bool:
        """Tell whether a local file is another than when the source was opened."""
        return any(state_of(path) != state for path, state in self.files)

    def _later(self, name: str) -> bool:
        """Tell whether a column stands in a row beyond those from which `columns` are known."""
        return self.loose and any(isinstance(row, Mapping) and name in row for row in self.rows([name]))

    def first(self, *named: str | None) -> list[Mapping[Any, Any]]:
        """Some first rows; CatalogError where there are none, or where a column that is `named` is not there."""
        for name in named:
            if name and name not in self.columns and not paths_in(name, self.columns) and not self._later(name):
                raise CatalogError(f"{self.where}: no column {name!r}; its columns are {names_of(self.columns)}")
        rows: list[Mapping[Any, Any]] = []
        reason, held = "", 0
        for row in islice(self.rows(), SAMPLE_ROWS):
            if isinstance(row, str):
                reason = reason or row
                continue
            rows.append(row)
            cells = (value.get("bytes") if isinstance(value, Mapping) else value for value in row.values())
            held += sum(len(data) for data in cells if isinstance(data, bytes))
            if held > FIRST_BYTES:
                break
        if not rows and reason:
            raise CatalogError(f"{self.where}: none of its first rows can be read: {reason}")
        if not rows:
            raise CatalogError(f"{self.where}: the table has no rows")
        return rows


class ReadSpec(Frozen):
    """Settings of reading a table; what is unset is detected."""

    encoding: str | None = None
    """Of delimited text and JSON Lines."""
    delimiter: str | None = None
    """Of delimited text."""
    quote: Quotes | None = None
    """Form of a quote within a quoted cell of delimited text: twice, behind a backslash, or as any other sign."""
    sheet: str | None = None
    """Of a workbook; else the first with cells."""
    config: str | None = None
    """Of a Hugging Face dataset."""


def own_split(split: str | None, columns: Collection[str] | None) -> dict[str, str | None]:
    """The split of a row, where it is asked for."""
    return {OWN_SPLIT: split} if columns and OWN_SPLIT in columns else {}


def split_named(name: str) -> str | None:
    """The split that a dataset calls so; None of another name."""
    known = {"train": "train", "training": "train", "test": "test", "validation": "validation"}
    return (known | dict.fromkeys(("val", "valid", "dev", "eval"), "validation")).get(name.lower())


def splits_in(names: Sequence[str]) -> tuple[tuple[str, ...], str]:
    """Own splits of a source, where each part is one and there is more than one; what is said of other parts."""
    found = dict.fromkeys(map(split_named, names))
    if len(found) < 2:
        return (), ""
    if None not in found:
        return tuple(map(str, found)), ""
    parts = ", ".join(dict.fromkeys(names))
    return (), f"{parts} are pooled: own splits are kept where all are called train, validation or test"


def with_split_column(source: Source, rows: Sequence[Mapping[Any, Any]]) -> Source:
    """A table with the splits that a column of it says, where all of the first `rows` and any others say one."""
    for name in source.columns if not source.splits else ():
        if name.lower() not in SPLIT_COLUMNS or not all(split_named(str(row.get(name)).strip()) for row in rows):
            continue
        every = (str(row.get(name)).strip() for row in source.rows([name]) if isinstance(row, Mapping))
        found = dict.fromkeys(map(split_named, dict.fromkeys(every)))
        if None not in found and len(found) > 1:

            def read(columns: Collection[str] | None, name: str = name) -> Iterator[Row]:
                for row in source.read({*columns, name} if columns is not None else None):
                    own = {} if isinstance(row, str) else own_split(split_named(str(row.get(name)).strip()), columns)
                    yield row if isinstance(row, str) else {**row, **own}

            return replace(source, read=read, splits=tuple(map(str, found)))
    return source


def states_of(files: Iterable[Path]) -> tuple[tuple[Path, object], ...]:
    """Note each local file as it is, before its content is looked at."""
    return tuple((path, state_of(path)) for path in files)


def state_of(path: Path) -> object:
    """Size, time and inode, which differ when a file is written anew; None where it is gone."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino


def remote_version(where: str) -> str:
    """Mark that a server gives a file's content, or else its SHA-256."""
    system, path = fsspec.core.url_to_fs(where)
    info = system.info(path)
    marks = [str(info[name]) for name in IDENTITIES if info.get(name)]
    if marks and not any(mark.startswith("W/") for mark in marks):  # a weak ETag may outlive a change
        return digest(marks)
    opened: Any = system.open(path, "rb")
    with opened as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def version_of(files: Iterable[Path], folder: Path) -> str:
    """SHA-256 over names below a folder and contents of local files."""

    def below(path: Path) -> str:
        resolved, root = path.resolve(), folder.resolve()
        return (resolved.relative_to(root) if resolved.is_relative_to(root) else path).as_posix()

    return digest(f"{below(path)} {path.stat().st_size} {file_hash(path)}" for path in files)


def digest(parts: Iterable[str]) -> str:
    """Hash parts of a version."""
    return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()
