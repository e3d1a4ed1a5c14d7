"""Where rows come from: a table, a folder of pictures, a dataset; read row by row, never as a whole.

    open_source("burberry.csv")
    open_source("s3://shop/products.parquet")
    open_source("photos/")                                         pictures with a metadata.csv beside them
    open_source("DBQ/Burberry.Product.prices.United.States")       a Hugging Face dataset

give a `Source` whose `rows()` yields `{"imageurl": "https://...", "product_code": "8043", "full_price": 390.0, ...}`.
Values are as the file has them: text where the format knows no types, so that no code loses its leading zeros.
"""

import csv
import hashlib
import io
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit

import fsspec
import pyarrow.parquet as pq
from charset_normalizer import from_bytes

from catalens.catalog.roles import SAMPLE_ROWS
from catalens.catalog.storage import parquet_rows
from catalens.errors import CatalogError

FORMATS = {
    ".csv": "csv",
    ".tsv": "csv",
    ".txt": "csv",
    ".parquet": "parquet",
    ".pq": "parquet",
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
}
DELIMITERS = ",;\t|"
SAMPLE_BYTES = 2**18
"""How much of a table is looked at to tell its encoding and delimiter."""
ENOUGH_TO_TELL = 16
"""Bytes beyond ASCII from which an encoding is guessed; with fewer, and no UTF-8, it is Windows' western one."""
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_NAME = "file_name"
"""Column of a metadata file that names the picture, by the imagefolder convention of Hugging Face datasets."""

Row = Mapping[Any, Any] | str
"""A row by column, or why it cannot be read."""


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
    rows: Callable[[], Iterator[Row]]
    told: str = ""
    """How the file was read, where that was guessed."""
    length: int | None = None
    """Rows in all, where the file tells it."""

    def count(self) -> int:
        """Rows in all; reads through a table that does not tell."""
        return sum(1 for _ in self.rows()) if self.length is None else self.length

    def first(self, *named: str | None) -> list[Mapping[Any, Any]]:
        """Some first rows; CatalogError where there are none, or where a column that is `named` is not there."""
        for name in named:
            if name and name not in self.columns:
                raise CatalogError(f"{self.where}: no column {name!r}; its columns are {', '.join(self.columns)}")
        rows = [row for row in islice(self.rows(), SAMPLE_ROWS) if isinstance(row, Mapping)]
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
        raise CatalogError(f"{where}: cannot be read ({_first_line(error)})") from error
    raise CatalogError(f"{where}: give a {', '.join(FORMATS)} file, a folder of pictures or a Hugging Face dataset")


def is_table(where: str) -> bool:
    """Whether a path or URL is named as a table is."""
    return _suffix(where) in FORMATS


def open_bytes(path: str) -> IO[bytes]:
    """Open a local path or URL for reading, decompressed where its name says so."""
    return fsspec.open(path, "rb", compression="infer").open()  # type: ignore[return-value]


# Tables


def _table(where: str, encoding: str | None, delimiter: str | None) -> Source:
    if "://" not in where and not Path(where).is_file():
        raise CatalogError(f"{where}: there is no such file")
    kind = FORMATS.get(_suffix(where))
    if kind is None:
        raise CatalogError(f"{where}: give a {', '.join(FORMATS)} file")
    columns, read, told = _reader(kind, where, encoding, delimiter)
    rows = _parquet_length(where) if kind == "parquet" else None
    if twice := next((name for name in columns if columns.count(name) > 1), None):
        raise CatalogError(f"{where}: column {twice!r} stands twice: rename one")
    base, _, name = where.rpartition("/") if "://" in where else (str(Path(where).parent), "", Path(where).name)
    return Source(
        where, PurePosixPath(name).name.split(".")[0], base, tuple(columns), _version(where), read, told, rows
    )


def _reader(
    kind: str, where: str, encoding: str | None, delimiter: str | None
) -> tuple[list[str], Callable[[], Iterator[Row]], str]:
    """Column names of a file, what reads its rows, and what was guessed."""
    if kind == "parquet":
        with open_bytes(where) as file, pq.ParquetFile(file) as parquet:
            names = list(parquet.schema_arrow.names)
        return names, lambda: _parquet_rows(where), ""
    if kind == "jsonl":
        first = next((row for row in _json_rows(where, encoding) if isinstance(row, Mapping)), {})
        return list(first), lambda: _json_rows(where, encoding), ""
    with open_bytes(where) as file:
        sample = file.read(SAMPLE_BYTES)
    found = encoding or _encoding(where, sample)
    sign = delimiter or ("\t" if _suffix(where) == ".tsv" else _delimiter(sample.decode(found, errors="replace")))
    with open_bytes(where) as file:
        names = next(csv.reader(_lines(where, file, found), delimiter=sign), [])
    usual = found.startswith("utf-8") and sign in (",", "\t")
    return names, lambda: _csv_rows(where, found, sign), "" if usual else f"read as {found}, divided by {sign!r}"


def _csv_rows(where: str, encoding: str, delimiter: str) -> Iterator[Row]:
    with open_bytes(where) as file:
        reader = csv.DictReader(_lines(where, file, encoding), delimiter=delimiter, strict=True)
        try:
            for row in reader:
                # None: where csv puts what no column holds
                yield "more values than the table has columns" if None in row else row
        except csv.Error as error:
            raise CatalogError(f"{where}: cannot be read (line {reader.reader.line_num}: {error})") from error


def _lines(where: str, file: IO[bytes], encoding: str) -> Iterator[str]:
    """Lines with their ends, as csv wants them."""
    try:
        with io.TextIOWrapper(file, encoding=encoding, newline="") as text:
            yield from text
    except (UnicodeError, LookupError) as error:
        raise CatalogError(f"{where}: is not {encoding} throughout: say which with --encoding") from error


def _encoding(where: str, sample: bytes) -> str:
    if sample.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "utf-16"
    try:
        # a character may be cut at the end of the sample
        sample[: max(0, len(sample) - 4) if len(sample) == SAMPLE_BYTES else None].decode("utf-8")
        return "utf-8-sig"
    except UnicodeDecodeError:
        if sum(byte >= 0x80 for byte in sample) < ENOUGH_TO_TELL:
            return "cp1252"
        best = from_bytes(sample).best()
        if best is None:
            raise CatalogError(f"{where}: its encoding cannot be told: say which with --encoding") from None
        return best.encoding


def _delimiter(sample: str) -> str:
    """The sign that stands most often in the header line."""
    header = next(iter(sample.splitlines()), "")
    return max(DELIMITERS, key=lambda sign: (header.count(sign), -DELIMITERS.index(sign)))


def _json_rows(where: str, encoding: str | None) -> Iterator[Row]:
    with open_bytes(where) as file:
        for line in _lines(where, file, encoding or "utf-8-sig"):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                yield f"not JSON: {_first_line(error)}"
            else:
                yield row if isinstance(row, dict) else "not a JSON object"


def _parquet_rows(where: str) -> Iterator[Row]:
    with open_bytes(where) as file:
        for rows in parquet_rows(file):
            yield from rows


def _parquet_length(where: str) -> int:
    with open_bytes(where) as file, pq.ParquetFile(file) as parquet:
        return parquet.metadata.num_rows


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

    def rows() -> Iterator[Row]:
        for inner, _, read in parts:
            for row in read():
                named = isinstance(row, Mapping) and inner != "." and row.get(FILE_NAME)
                yield {**row, FILE_NAME: f"{inner}/{row[FILE_NAME]}"} if named and isinstance(row, Mapping) else row

    columns = dict.fromkeys(name for _, names, _ in parts for name in names)
    version = _digest([_version(str(path)) for path in tables])
    return Source(str(folder), folder.resolve().name, str(folder), tuple(columns), version, rows)


def _dataset(where: str) -> Source:
    """A dataset of the Hugging Face hub, or a folder of files in a form that `datasets` knows."""
    from datasets import Image, IterableDataset, load_dataset

    try:
        splits: Mapping[Any, IterableDataset] = load_dataset(where, streaming=True)  # type: ignore[assignment]
    except Exception as error:
        raise CatalogError(
            f"{where}: neither a file or folder here nor a Hugging Face dataset that can be read "
            f"({_first_line(error)})"
        ) from error
    parts = []
    for part in splits.values():
        for name, feature in (part.features or {}).items():
            if isinstance(feature, Image):
                part = part.cast_column(name, Image(decode=False))
        parts.append(part)
    names = dict.fromkeys(name for part in parts for name in part.column_names or next(iter(part)))
    name = PurePosixPath(Path(where).resolve().name if Path(where).exists() else where).name
    version = _digest([str(getattr(part.info, "download_checksums", None) or part.info.version) for part in parts])
    return Source(where, name, where, tuple(names), version, lambda: (row for part in parts for row in part))


# Names and versions


def _suffix(where: str) -> str:
    """`.csv` of `shop.csv`, `shop.csv.gz` and `https://shop.example/shop.csv?v=2`."""
    path = urlsplit(where).path if "://" in where else where
    suffixes = [suffix.lower() for suffix in PurePosixPath(path).suffixes]
    return next((suffix for suffix in reversed(suffixes) if suffix not in (".gz", ".bz2", ".xz", ".zst")), "")


def _version(where: str) -> str:
    """SHA-256 of a local file; what its server says of a remote one."""
    if "://" not in where:
        with Path(where).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    system, path = fsspec.core.url_to_fs(where)
    return str(system.ukey(path))


def _digest(parts: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
