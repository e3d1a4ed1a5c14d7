"""Where rows come from: a table, a folder of pictures, a dataset; read row by row, never as a whole.

    open_source("burberry.csv")
    open_source("s3://shop/products.parquet")
    open_source("photos/")                                         pictures with a metadata.csv beside them
    open_source("DBQ/Burberry.Product.prices.United.States")       a Hugging Face dataset

give a `Source` whose `rows()` yields `{"imageurl": "https://...", "product_code": "8043", "full_price": 390.0, ...}`.
Values are as the file has them: text where the format knows no types, so that no code loses its leading zeros. A row
that cannot be read is a sentence that says why.
"""

import codecs
import errno
import hashlib
import io
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

import fsspec
import pyarrow.parquet as pq

from catalens.errors import CatalensError, CatalogError, first_line
from catalens.preparing.arrow import batch_rows, parquet_rows
from catalens.preparing.delimited import detect_delimiter, records
from catalens.preparing.encodings import detect_encoding
from catalens.preparing.roles import SAMPLE_ROWS, names_of
from catalens.preparing.values import SHOWN

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
"""How much of a text table is looked at to tell its encoding and delimiter."""
FIRST_BYTES = 2**26
"""Most bytes of pictures that are held to guess columns."""
DATASET_ROWS = 64
"""Rows of a dataset read at a time."""
LONG_INTEGER = 100
"""Digits from which a whole number in JSON is read as a double: nothing of use is as large."""
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_NAME = "file_name"
"""Column of a metadata file that names the picture, by the imagefolder convention of Hugging Face datasets."""
IDENTITIES = ("ETag", "etag", "Content-MD5", "md5Hash", "blob_id")
"""What file systems call a mark of a file's content."""

Row = Mapping[Any, Any] | str
"""A row by column, or why it cannot be read."""

Read = Callable[[Collection[str] | None], Iterator[Row]]
"""Reads rows from the first on: all columns, or at least those named."""


@dataclass(frozen=True)
class Source:
    """Rows that can be read again and again, in the same order."""

    where: str
    """What the user gave."""
    name: str
    """What a catalogue made of it is called by default."""
    base: str
    """Folder or URL that picture paths are relative to."""
    columns: tuple[str, ...]
    version: str
    """Changes when the rows may have changed."""
    read: Read
    told: str = ""
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
            held += sum(map(_held, row.values()))
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
    """Whether a path or URL is named as a table is."""
    return _suffix(where) in FORMATS


def open_bytes(path: str) -> IO[bytes]:
    """Open a local path or URL for reading, decompressed where its name says so."""
    if "://" not in path and Path(path).exists() and not Path(path).is_file():  # a pipe would be waited for
        raise OSError(errno.EISDIR, "Is a folder, a pipe or a device")
    return fsspec.open(path, "rb", compression="infer").open()  # type: ignore[return-value]


# Tables


def _table(where: str, encoding: str | None, delimiter: str | None) -> Source:
    if "://" not in where and not Path(where).is_file():
        raise CatalogError(f"{where}: " + ("is no file" if Path(where).exists() else "there is no such file"))
    kind = FORMATS.get(_suffix(where))
    if kind is None:
        raise CatalogError(f"{where}: give a {', '.join(FORMATS)} file")
    columns, read, told = _reader(kind, where, encoding, delimiter)
    if twice := next((name for name in columns if name and columns.count(name) > 1), None):
        raise CatalogError(f"{where}: column {twice!r} stands twice: rename one")
    length = _parquet_length(where) if kind == "parquet" else None
    base, _, name = where.rpartition("/") if "://" in where else (str(Path(where).parent), "", Path(where).name)
    name = PurePosixPath(name).name.split(".")[0]
    return Source(where, name, base, tuple(columns), _version(where), read, told, length)


def _reader(kind: str, where: str, encoding: str | None, delimiter: str | None) -> tuple[list[str], Read, str]:
    """Column names of a file, what reads its rows, and what was guessed."""
    if kind == "parquet":
        with open_bytes(where) as file, pq.ParquetFile(file) as parquet:
            names = list(parquet.schema_arrow.names)
        return names, lambda columns: _parquet_rows(where, columns), ""
    sample = _sample(where)
    try:
        found = codecs.lookup(encoding).name if encoding else detect_encoding(where, sample)
    except LookupError as error:
        raise CatalogError(f"{where}: --encoding {encoding} is none that Python knows: say another") from error
    text = sample.decode(found, errors="catalens.damaged").removeprefix("\ufeff")
    word = next((word for word in re.findall(r"\w+", text) if not word.isascii()), "")[:SHOWN]
    told = f"read as {found}{f', as in {word!r}' if word else ''}" if not encoding and found != "utf-8" else ""
    if kind == "jsonl":
        known = (row for row in islice(_json_rows(where, found), SAMPLE_ROWS) if isinstance(row, Mapping))
        return list(dict.fromkeys(name for row in known for name in row)), lambda _: _json_rows(where, found), told
    sign = delimiter or ("\t" if _suffix(where) == ".tsv" else detect_delimiter(text))
    sign = "\t" if sign == "\\t" else sign
    if len(sign) != 1:
        raise CatalogError(f"{where}: --delimiter {sign!r} is no delimiter: give one sign")
    with open_bytes(where) as file:
        header = next(records(_lines(file, found), sign), None)
    if not isinstance(header, list):
        raise CatalogError(f"{where}: {f'its header cannot be read: {header}' if header else 'the file is empty'}")
    if not delimiter and (told or sign not in (",", "\t")):
        told = f"{told or f'read as {found}'}, divided by {sign!r}"
    return header, lambda _: _csv_rows(where, found, sign), told


def _sample(where: str) -> bytes:
    """The beginning of a text table, up to a whole line where there is one."""
    with open_bytes(where) as file:
        sample = file.read(SAMPLE_BYTES)
    return sample[: sample.rfind(b"\n") + 1] or sample if len(sample) == SAMPLE_BYTES else sample


def _csv_rows(where: str, encoding: str, delimiter: str) -> Iterator[Row]:
    with open_bytes(where) as file:
        found = records(_lines(file, encoding), delimiter)
        header = next(found)
        for cells in found:
            if isinstance(cells, list):
                fits = len(cells) <= len(header)
                yield dict(zip(header, cells, strict=False)) if fits else "more values than the table has columns"
            else:
                yield cells


def _lines(file: IO[bytes], encoding: str) -> Iterator[str]:
    """Lines with their ends, as csv wants them; what is not of the encoding is marked in them."""
    with io.TextIOWrapper(file, encoding=encoding, errors="catalens.damaged", newline="") as text:
        yield next(text, "").removeprefix("\ufeff")
        yield from text


def _json_rows(where: str, encoding: str) -> Iterator[Row]:
    with open_bytes(where) as file:
        for line in _lines(file, encoding):
            if not line.strip():
                continue
            try:
                row = json.loads(line, parse_int=_integer)
            except (ValueError, RecursionError) as error:
                yield f"not JSON: {first_line(error)}"
            else:
                yield row if isinstance(row, dict) else "not a JSON object"


def _integer(digits: str) -> int | float:
    return int(digits) if len(digits) <= LONG_INTEGER else float(digits)


def _parquet_rows(where: str, columns: Collection[str] | None) -> Iterator[Row]:
    with open_bytes(where) as file:
        yield from parquet_rows(file, columns)


def _parquet_length(where: str) -> int:
    with open_bytes(where) as file, pq.ParquetFile(file) as parquet:
        return parquet.metadata.num_rows


def _held(value: object) -> int:
    """Bytes of a picture's cell."""
    data = value.get("bytes") if isinstance(value, Mapping) else value
    return len(data) if isinstance(data, bytes) else 0


# Folders and datasets


def _folder(folder: Path, encoding: str | None, delimiter: str | None) -> Source:
    """Pictures with metadata files (one in each subfolder perhaps), or any folder that `load_dataset` opens."""
    tables = sorted(path for name in METADATA for path in folder.rglob(name))
    if not tables:
        return _dataset(str(folder))
    parts = []
    for path in tables:
        columns, read, _ = _reader(FORMATS[path.suffix], str(path), encoding, delimiter)
        if FILE_NAME not in columns:
            raise CatalogError(f"{path}: has no column {FILE_NAME!r} that names the pictures")
        parts.append((path.parent.relative_to(folder).as_posix(), columns, read))

    def rows(columns: Collection[str] | None) -> Iterator[Row]:
        for inner, _, read in parts:
            for row in read(columns):
                name = row.get(FILE_NAME) if isinstance(row, Mapping) and inner != "." else None
                named = isinstance(row, Mapping) and isinstance(name, str) and name
                yield {**row, FILE_NAME: f"{inner}/{name}"} if named and isinstance(row, Mapping) else row

    columns = dict.fromkeys(name for _, names, _ in parts for name in names)
    return Source(str(folder), folder.resolve().name, str(folder), tuple(columns), _versions(tables, folder), rows)


def _dataset(where: str) -> Source:
    """A dataset of the Hugging Face hub, or a folder of files in a form that `datasets` knows."""
    from datasets import Image, load_dataset_builder

    name = PurePosixPath(Path(where).resolve().name if Path(where).exists() else where).name
    try:
        place = str(Path(where).absolute()) if Path(where).is_dir() else where  # "." has no name
        builder = load_dataset_builder(place)
        files = [str(path) for paths in (builder.config.data_files or {}).values() for path in paths]
        local = Path(where).is_dir() and all(Path(path).is_file() for path in files)
        if local:
            version = _versions([Path(path) for path in files], Path(where).resolve())
        else:
            marks = [getattr(paths, "origin_metadata", "") for paths in (builder.config.data_files or {}).values()]
            version = _digest([str(builder.hash), *files, *map(str, marks)])
        if local and files and builder.name == "parquet":
            return _parquet_folder(where, name, files, version)
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
    return Source(where, name, where, tuple(names), version, rows)


def _parquet_folder(where: str, name: str, files: list[str], version: str) -> Source:
    """A folder of Parquet files, which are read as single ones are."""
    columns = dict.fromkeys(column for path in files for column in _reader("parquet", path, None, None)[0])
    length = sum(map(_parquet_length, files))

    def rows(columns: Collection[str] | None) -> Iterator[Row]:
        for path in files:
            yield from _parquet_rows(path, columns)

    return Source(where, name, where, tuple(columns), version, rows, length=length)


# Names and versions


def _suffix(where: str) -> str:
    """`.csv` of `shop.csv`, `shop.csv.gz` and `https://shop.example/shop.csv?v=2`."""
    path = urlsplit(where).path if "://" in where else where
    suffixes = [suffix.lower() for suffix in PurePosixPath(path).suffixes]
    return next((suffix for suffix in reversed(suffixes) if suffix not in (".gz", ".bz2", ".xz", ".zst")), "")


def _version(where: str) -> str:
    """SHA-256 of a local file; of a remote one what its server says of the content, or else the same."""
    if "://" not in where:
        with Path(where).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    system, path = fsspec.core.url_to_fs(where)
    info = system.info(path)
    marks = [str(info[name]) for name in IDENTITIES if info.get(name)]
    if marks and not any(mark.startswith("W/") for mark in marks):  # a weak ETag may outlive a change
        return _digest(marks)
    with system.open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()  # type: ignore[arg-type]


def _versions(files: Iterable[Path], folder: Path) -> str:
    """SHA-256 over names below a folder and contents of local files."""
    return _digest(f"{_below(path, folder)} {path.stat().st_size} {_version(str(path))}" for path in files)


def _below(path: Path, folder: Path) -> str:
    resolved = path.resolve()
    return (resolved.relative_to(folder.resolve()) if resolved.is_relative_to(folder.resolve()) else path).as_posix()


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode(errors="surrogateescape")).hexdigest()
