"""Sources of rows: a table, a folder of pictures, a dataset; read row by row, never as a whole.

    open_source("burberry.csv")
    open_source("s3://shop/products.parquet")
    open_source("photos/")                                         pictures with a metadata.csv beside them
    open_source("DBQ/Burberry.Product.prices.United.States")       a Hugging Face dataset

give a `Source` whose `rows()` yields `{"imageurl": "https://...", "product_code": "8043", "full_price": 390.0, ...}`.
Values are as the file has them: text where the format knows no types, so that no code loses its leading zeros; the
shortest decimal of a narrow number, 20.99 and not 20.989999771118164. A row that cannot be read is a sentence that
says why; a cell that cannot be (a timestamp in the year 300000, half a character, a damaged page) is `Unreadable`.
"""

import codecs
import hashlib
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, repeat
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catalens.catalog.storage import group_batches, open_parquet
from catalens.errors import CatalensError, CatalogError, first_line
from catalens.files import file_hash
from catalens.preparing.columns import SAMPLE_ROWS, SHOWN, Unreadable, names_of
from catalens.preparing.text import csv_records, csv_rows, detect_delimiter, detect_encoding, json_rows, open_bytes

FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
SAMPLE_BYTES = 2**18
"""Beginning of a text table that tells its encoding and delimiter."""
FIRST_BYTES = 2**26
"""Most bytes of pictures that are held to guess columns."""
DATASET_ROWS = 64
"""Rows of a dataset read at a time."""
MAX_REASON = 200
"""Characters that are kept of what Arrow says of damage."""
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_NAME = "file_name"
"""Column of a metadata file that names the picture, by the imagefolder convention of Hugging Face datasets."""
IDENTITIES = ("ETag", "etag", "Content-MD5", "md5Hash", "blob_id")
"""Names of a mark of a file's content, in the file systems of fsspec."""

Row = Mapping[Any, Any] | str
"""A row by column, or why it cannot be read."""
Read = Callable[[Collection[str] | None], Iterator[Row]]
"""Reads rows from the first on: all columns, or at least those named."""


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
    """How the file was read, where that was guessed."""
    length: int | None = None
    """Rows in all, where the file tells it."""

    def rows(self, columns: Collection[str] | None = None) -> Iterator[Row]:
        """Rows from the first on; what is wrong in a column that is not among `columns` does no harm.

        Raises CatalogError where the table breaks off.
        """
        number = 0
        try:
            for row in self.read(columns):
                number += 1
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
        return any(_state(path) != state for path, state in self.files)

    def first(self, *named: str | None) -> list[Mapping[Any, Any]]:
        """Some first rows; CatalogError where there are none, or where a column that is `named` is not there."""
        for name in named:
            if name and name not in self.columns:
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


def open_source(where: str, encoding: str | None = None, delimiter: str | None = None) -> Source:
    """Open a table by path or URL, a folder, or a dataset by its id on the Hugging Face hub.

    `encoding` and `delimiter` replace what is detected in a CSV. Raises CatalogError where nothing can be read there.
    """
    try:
        if Path(where).is_dir():
            return _folder(Path(where), encoding, delimiter)
        if is_table(where) or Path(where).is_file():
            return _table(where, encoding, delimiter)
        if "://" not in where and where.count("/") <= 1:
            return _dataset(where)
    except CatalogError:
        raise
    except Exception as error:  # whatever a file system, a server or a parser raises
        raise CatalogError(f"{where}: cannot be read ({first_line(error)})") from error
    raise CatalogError(f"{where}: give a {', '.join(FORMATS)} file, a folder of pictures or a Hugging Face dataset")


def is_table(where: str) -> bool:
    """Tell a path or URL that is named as a table is."""
    return _suffix(where) in FORMATS


def _suffix(where: str) -> str:
    """`.csv` of `shop.csv`, `shop.csv.gz` and `https://shop.example/shop.csv?v=2`."""
    path = urlsplit(where).path if "://" in where else where
    suffixes = [suffix.lower() for suffix in PurePosixPath(path).suffixes]
    return next((suffix for suffix in reversed(suffixes) if suffix not in (".gz", ".bz2", ".xz", ".zst")), "")


# Tables ----------------------------------------------------------------------------------------------------------


def _table(where: str, encoding: str | None, delimiter: str | None) -> Source:
    local = "://" not in where
    if local and not Path(where).is_file():
        raise CatalogError(f"{where}: " + ("is no file" if Path(where).exists() else "there is no such file"))
    kind = FORMATS.get(_suffix(where))
    if kind is None:
        raise CatalogError(f"{where}: give a {', '.join(FORMATS)} file")
    files = _states([Path(where)] if local else [])
    columns, read, notice, length = _reader(kind, where, encoding, delimiter)
    if twice := next((name for name in columns if name and columns.count(name) > 1), None):
        raise CatalogError(f"{where}: column {twice!r} stands twice: rename one")
    base, name = (str(Path(where).parent), Path(where).name) if local else where.rsplit("/", 1)
    name = PurePosixPath(name).name.split(".")[0]
    version = file_hash(where) if local else _remote_version(where)
    return Source(where, name, base, tuple(columns), read, files, version, notice, length)


def _reader(
    kind: str, where: str, encoding: str | None, delimiter: str | None
) -> tuple[Sequence[str], Read, str, int | None]:
    """Column names of a file, what reads its rows, what was guessed, and how many rows there are."""
    if kind == "parquet":
        with open_bytes(where) as file, pq.ParquetFile(file) as parquet:
            return (
                parquet.schema_arrow.names,
                lambda names: _parquet_rows(where, names),
                "",
                parquet.metadata.num_rows,
            )
    with open_bytes(where) as file:
        sample = file.read(SAMPLE_BYTES)
    if len(sample) == SAMPLE_BYTES:  # up to a whole line, where there is one
        sample = sample[: sample.rfind(b"\n") + 1] or sample
    try:
        found = codecs.lookup(encoding).name if encoding else detect_encoding(where, sample)
    except LookupError as error:
        raise CatalogError(f"{where}: --encoding {encoding} is none that Python knows: say another") from error
    text = sample.decode(found, errors="catalens.damaged").removeprefix("\ufeff")
    word = next((word for word in re.findall(r"\w+", text) if not word.isascii()), "")[:SHOWN]
    notice = f"read as {found}{f', as in {word!r}' if word else ''}" if not encoding and found != "utf-8" else ""
    if kind == "jsonl":
        known = (row for row in islice(json_rows(where, found), SAMPLE_ROWS) if isinstance(row, Mapping))
        names = list(dict.fromkeys(name for row in known for name in row))
        return names, lambda _: json_rows(where, found), notice, None
    sign = delimiter or ("\t" if _suffix(where) == ".tsv" else detect_delimiter(text))
    sign = "\t" if sign == "\\t" else sign
    if len(sign) != 1:
        raise CatalogError(f"{where}: --delimiter {sign!r} is no delimiter: give one sign")
    header = next(csv_records(where, found, sign), None)
    if not isinstance(header, list):
        raise CatalogError(f"{where}: {f'its header cannot be read: {header}' if header else 'the file is empty'}")
    if not delimiter and (notice or sign not in (",", "\t")):
        notice = f"{notice or f'read as {found}'}, divided by {sign!r}"
    return header, lambda _: csv_rows(where, found, sign), notice, None


# Arrow and Parquet -----------------------------------------------------------------------------------------------


def batch_rows(batch: pa.RecordBatch | pa.Table) -> Iterator[Mapping[Any, Any]]:
    """Yield the rows of a batch as dicts of Python values."""
    columns = [_cells(column) for column in batch.itercolumns()]
    return (dict(zip(batch.schema.names, cells, strict=True)) for cells in zip(*columns, strict=True))


def _parquet_rows(where: str, columns: Collection[str] | None) -> Iterator[Row]:
    """Rows with all columns, or those named; only these are read, so that damage elsewhere does not matter."""
    with open_bytes(where) as file, open_parquet(file) as parquet:
        names = [name for name in parquet.schema_arrow.names if columns is None or name in columns]
        for group in range(parquet.num_row_groups):
            cells = [_column(parquet, group, name) for name in names]
            yield from (dict(zip(names, row, strict=True)) for row in zip(*cells, strict=True))


def _column(parquet: pq.ParquetFile, group: int, name: str) -> Iterator[Any]:
    """Cells of one column of a row group; those that damage makes unreadable are `Unreadable`."""
    read = 0
    try:
        for batch in group_batches(parquet, [group], [name]):
            yield from _cells(batch.column(batch.schema.get_field_index(name)))
            read += len(batch)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
            raise  # a disk or a network that failed
        reason = f"row group {group + 1} of the file, {first_line(error)[:MAX_REASON]}"
        yield from repeat(Unreadable(reason), parquet.metadata.row_group(group).num_rows - read)


def _cells(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    try:
        values = column.to_pylist()
    except Exception:  # a value that Python has no type for, or text that is none
        values = [_cell(scalar) for scalar in column]
    kind = column.type.value_type if isinstance(column.type, pa.DictionaryType) else column.type
    if not (pa.types.is_float16(kind) or pa.types.is_float32(kind)):
        return values
    narrow = np.float16 if pa.types.is_float16(kind) else np.float32
    return [float(str(narrow(value))) if isinstance(value, float) else value for value in values]


def _cell(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except Exception as error:
        return Unreadable(first_line(error)[:MAX_REASON])


# Folders and datasets --------------------------------------------------------------------------------------------


def _folder(folder: Path, encoding: str | None, delimiter: str | None) -> Source:
    """Pictures with metadata files (one in each subfolder perhaps), or any folder that `load_dataset` opens."""
    tables = sorted(path for name in METADATA for path in folder.rglob(name))
    if not tables:
        return _dataset(str(folder))
    files = _states(tables)
    parts = []
    for path in tables:
        columns, read, *_ = _reader(FORMATS[path.suffix], str(path), encoding, delimiter)
        if FILE_NAME not in columns:
            raise CatalogError(f"{path}: has no column {FILE_NAME!r} that names the pictures")
        parts.append((path.parent.relative_to(folder).as_posix(), columns, read))

    def rows(columns: Collection[str] | None) -> Iterator[Row]:
        for inner, _, read in parts:
            for row in read(columns):
                if inner != "." and isinstance(row, Mapping):
                    name = row.get(FILE_NAME)
                    row = {**row, FILE_NAME: f"{inner}/{name}"} if name and isinstance(name, str) else row
                yield row

    columns = dict.fromkeys(name for _, names, _ in parts for name in names)
    version = _version_of(tables, folder)
    return Source(str(folder), folder.resolve().name, str(folder), tuple(columns), rows, files, version)


def _dataset(where: str) -> Source:
    """A dataset of the Hugging Face hub, or a folder of files in a form that `datasets` knows."""
    from datasets import Image, load_dataset_builder

    here = Path(where).is_dir()
    name = PurePosixPath(Path(where).resolve().name if Path(where).exists() else where).name
    try:
        builder = load_dataset_builder(str(Path(where).absolute()) if here else where)  # "." has no name
        data_files = (builder.config.data_files or {}).values()
        paths = [str(path) for some in data_files for path in some]
        local = here and all(Path(path).is_file() for path in paths)
        files = _states(map(Path, paths) if local else [])
        if local:
            version = _version_of(map(Path, paths), Path(where))
        else:
            marks = [getattr(some, "origin_metadata", "") for some in data_files]
            version = _digest([str(builder.hash), *paths, *map(str, marks)])
        if local and paths and builder.name == "parquet":  # read as single files are
            readers = [_reader("parquet", path, None, None) for path in paths]
            columns = dict.fromkeys(name for names, *_ in readers for name in names)
            length = sum(length or 0 for *_, length in readers)

            def file_rows(columns: Collection[str] | None) -> Iterator[Row]:
                for _, read, *_ in readers:
                    yield from read(columns)

            return Source(where, name, where, tuple(columns), file_rows, files, version, length=length)
        splits: Mapping[Any, Any] = builder.as_streaming_dataset()  # type: ignore[assignment]
        parts = []
        for part in splits.values():
            for column, feature in (part.features or {}).items():
                if isinstance(feature, Image):
                    part = part.cast_column(column, Image(decode=False))
            parts.append((part, list(part.column_names or next(iter(part)))))
    except Exception as error:
        raise CatalogError(
            f"{where}: neither a file or folder here nor a Hugging Face dataset that can be read "
            f"({first_line(error)})"
        ) from error

    def rows(columns: Collection[str] | None) -> Iterator[Row]:
        for part, names in parts:
            wanted = part if columns is None else part.select_columns([name for name in names if name in columns])
            for table in wanted.with_format("arrow").iter(DATASET_ROWS):
                yield from batch_rows(table)

    names = dict.fromkeys(column for _, columns in parts for column in columns)
    return Source(where, name, where, tuple(names), rows, files, version)


# Versions --------------------------------------------------------------------------------------------------------


def _states(files: Iterable[Path]) -> tuple[tuple[Path, object], ...]:
    return tuple((path, _state(path)) for path in files)


def _state(path: Path) -> object:
    """Size, time and inode, which differ when a file is written anew; None where it is gone."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns, found.st_ino


def _remote_version(where: str) -> str:
    """Mark that a server gives a file's content, or else its SHA-256."""
    system, path = fsspec.core.url_to_fs(where)
    info = system.info(path)
    marks = [str(info[name]) for name in IDENTITIES if info.get(name)]
    if marks and not any(mark.startswith("W/") for mark in marks):  # a weak ETag may outlive a change
        return _digest(marks)
    with system.open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _version_of(files: Iterable[Path], folder: Path) -> str:
    """SHA-256 over names below a folder and contents of local files."""

    def below(path: Path) -> str:
        resolved, root = path.resolve(), folder.resolve()
        return (resolved.relative_to(root) if resolved.is_relative_to(root) else path).as_posix()

    return _digest(f"{below(path)} {path.stat().st_size} {file_hash(path)}" for path in files)


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()
