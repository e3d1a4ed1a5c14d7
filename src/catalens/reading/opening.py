"""Opening of tables, folders of pictures and datasets as sources of rows, read one by one, never as a whole.

open_source("burberry.csv")
open_source("s3://shop/products.parquet")
open_source("photos/")                                         pictures with a metadata.csv beside them
open_source("DBQ/Burberry.Product.prices.United.States")       a Hugging Face dataset
"""

import codecs
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import urlsplit

from catalens.errors import CatalogError, first_line
from catalens.files import file_hash
from catalens.reading.arrow import batch_rows, named, read_parquet
from catalens.reading.columns import SAMPLE_ROWS
from catalens.reading.formats import Reader, Row, kind_of, read_document, read_feed, read_sheet, read_tar
from catalens.reading.numbers import SHOWN
from catalens.reading.source import (
    FIRST_BYTES,
    ReadSpec,
    Source,
    digest,
    own_split,
    remote_version,
    split_named,
    splits_in,
    states_of,
    version_of,
)
from catalens.reading.text import (
    DELIMITERS,
    csv_records,
    csv_rows,
    detect_delimiter,
    detect_encoding,
    detect_quotes,
    json_rows,
    lines_above,
    open_bytes,
    wide_encoding,
)

TABLES = (
    *(".csv", ".tsv", ".txt", ".parquet", ".pq", ".jsonl", ".ndjson", ".json", ".xml"),
    *(".xlsx", ".xlsm", ".xlsb", ".xls", ".ods", ".tar", ".tgz"),
)
"""Endings of the names of tables, before `.gz`, `.zip` and the like; a file is read as what it is."""
FLAGS = {
    "text": ("encoding", "delimiter", "quote"),
    "sheet": ("sheet",),
    **dict.fromkeys(("json", "jsonl"), ("encoding",)),
}
KINDS = {
    "text": "delimited text",
    "sheet": "a workbook",
    "json": "JSON",
    "jsonl": "JSON Lines",
    "parquet": "Parquet",
    "xml": "a feed",
    "tar": "a webdataset",
}
"""Flags, and names, of the kinds of tables."""
SAMPLE_BYTES = 2**18
"""Beginning of a text table that tells its encoding and delimiter."""
DATASET_ROWS = 64
"""Rows of a dataset read at a time."""
PACKED = (".gz", ".bz2", ".xz", ".zst", ".zip")
SAVED = ("dataset_dict.json", "state.json")
"""Files of a folder that `save_to_disk` of `datasets` made."""
METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
FILE_NAME = "file_name"
"""Column of a metadata file that names the picture, by the imagefolder convention of Hugging Face datasets."""


def open_source(where: str, spec: ReadSpec | None = None) -> Source:
    """Open a table by path or URL, a folder, or a dataset by its id on the Hugging Face hub.

    Raises CatalogError where nothing can be read there.
    """
    spec = spec or ReadSpec()
    try:
        if Path(where).is_dir():
            return _folder(Path(where), spec)
        if "://" in where or is_table(where) or Path(where).is_file():
            return _table(where, spec)
        if where.count("/") <= 1:
            return _dataset(where, spec)
    except CatalogError:
        raise
    except Exception as error:  # whatever a file system, a server or a parser raises
        raise CatalogError(f"{where}: cannot be read ({first_line(error)})") from error
    raise CatalogError(f"{where}: there is no such file: give a table, a folder or the id of a Hugging Face dataset")


def is_table(where: str) -> bool:
    """Tell a path or URL that is named as a table is."""
    return _suffix(where) in TABLES


def _suffix(where: str) -> str:
    """`.csv` of `shop.csv`, `shop.csv.gz` and `https://shop.example/shop.csv?v=2`."""
    path = urlsplit(where).path if "://" in where else where
    suffixes = [suffix.lower() for suffix in PurePosixPath(path).suffixes]
    return next((suffix for suffix in reversed(suffixes) if suffix not in PACKED), "")


# Tables ----------------------------------------------------------------------------------------------------------


def _table(where: str, spec: ReadSpec) -> Source:
    local = "://" not in where
    if local and not Path(where).is_file():
        raise CatalogError(f"{where}: " + ("is no file" if Path(where).exists() else "there is no such file"))
    files = states_of([Path(where)] if local else [])
    table = read_table(where, spec)
    columns = list(table.columns)
    if twice := next((name for name in columns if name and columns.count(name) > 1), None):
        raise CatalogError(f"{where}: column {twice!r} stands twice: rename one")
    base, name = (str(Path(where).parent), Path(where).name) if local else where.rsplit("/", 1)
    name = PurePosixPath(name).name.split(".")[0]
    version = file_hash(where) if local else remote_version(where)
    source = Source(where, name, base, tuple(columns), table.rows, files, version, table.notice, table.length)
    return replace(source, loose=table.loose)


def read_table(where: str, spec: ReadSpec) -> Reader:
    """Read a file as what its first bytes say it is."""
    with open_bytes(where) as file:
        sample = file.read(SAMPLE_BYTES)
        if sample[:1] == b"{" and b"\n" not in sample:  # a row with a picture in it, perhaps
            sample += file.readline(FIRST_BYTES) + file.read(SAMPLE_BYTES)
    if not sample:
        raise CatalogError(f"{where}: the file is empty")
    wide = wide_encoding(sample)
    kind = kind_of(where, sample.decode(wide, errors="ignore").encode(errors="ignore") if wide else sample)
    for flag in ("encoding", "delimiter", "quote", "sheet", "config"):
        if getattr(spec, flag) is not None and flag not in FLAGS.get(kind, ()):
            raise CatalogError(f"{where}: --{flag} is not for {KINDS[kind]}: leave it out")
    match kind:
        case "parquet":
            return read_parquet(where)
        case "sheet":
            return read_sheet(where, spec.sheet)
        case "tar":
            return read_tar(where)
        case "xml":
            return read_feed(where)
        case "json":
            marked = "utf-8-sig" if sample.startswith(codecs.BOM_UTF8) else "utf-8"
            return read_document(where, spec.encoding or wide or marked)
        case _:
            return _text(where, sample, spec, lines=kind == "jsonl")


def _text(where: str, sample: bytes, spec: ReadSpec, lines: bool) -> Reader:
    """Delimited text, or JSON Lines."""
    if len(sample) >= SAMPLE_BYTES:  # up to a whole line, where there is one
        sample = sample[: sample.rfind(b"\n") + 1] or sample
    try:
        found = codecs.lookup(spec.encoding).name if spec.encoding else detect_encoding(where, sample)
    except LookupError as error:
        raise CatalogError(f"{where}: --encoding {spec.encoding} is none that Python knows: say another") from error
    text = sample.decode(found, errors="catalens.damaged").removeprefix("\ufeff")
    word = next((word for word in re.findall(r"\w+", text) if not word.isascii()), "")[:SHOWN]
    notice = f"read as {found}{f', as in {word!r}' if word else ''}" if not spec.encoding and found != "utf-8" else ""
    if lines:
        known = (row for row in islice(json_rows(where, found), SAMPLE_ROWS) if isinstance(row, Mapping))
        names = list(dict.fromkeys(name for row in known for name in row))
        return Reader(names, lambda _: json_rows(where, found), notice, loose=True)
    said = "\t" if spec.delimiter == "\\t" or (not spec.delimiter and _suffix(where) == ".tsv") else spec.delimiter
    above, told = lines_above(text, said or DELIMITERS)
    sign = said or told or detect_delimiter(text)
    if len(sign) != 1:
        raise CatalogError(f"{where}: --delimiter {sign!r} is no delimiter: give one sign")
    quotes = spec.quote or detect_quotes(text)
    header = next(csv_records(where, found, sign, quotes, above), None)
    if not isinstance(header, list):
        raise CatalogError(f"{where}: {f'its header cannot be read: {header}' if header else 'the file is empty'}")
    if not spec.delimiter and (notice or sign not in (",", "\t")):
        notice = f"{notice or f'read as {found}'}, divided by {sign!r}"
    if above:
        notice += f"{', ' if notice else ''}the header being line {above + 1}"
    return Reader(header, lambda _: csv_rows(where, found, sign, quotes, above), notice)


# Folders and datasets --------------------------------------------------------------------------------------------


def _folder(folder: Path, spec: ReadSpec) -> Source:
    """Pictures with metadata files (one in each subfolder perhaps), or any folder that `datasets` opens."""
    found = sorted(path for name in METADATA for path in folder.rglob(name))
    if not found and (shards := sorted(path for path in folder.rglob("*") if _suffix(path.name) in (".tar", ".tgz"))):
        tars: dict[str, list[Reader]] = {}
        for path in shards:
            words = re.split(r"[^a-z]+", path.relative_to(folder).as_posix().lower())
            split = next((word for word in words if split_named(word)), "train")
            tars.setdefault(split, []).append(read_tar(str(path)))
        name, version = folder.resolve().name, version_of(shards, folder)
        return replace(_pooled(str(folder), name, tars, states_of(shards), version), loose=True)
    if not found:
        return _dataset(str(folder), spec)
    files, tables = states_of(found), {}
    for path in found:
        table = read_table(str(path), spec)
        if FILE_NAME not in table.columns:
            raise CatalogError(f"{path}: has no column {FILE_NAME!r} that names the pictures")
        tables[path.parent.relative_to(folder)] = table

    def rows(columns: Collection[str] | None) -> Iterator[Row]:
        for inner, table in tables.items():
            split = split_named(inner.parts[0] if inner.parts else "")
            for row in table.rows(columns):
                if isinstance(row, Mapping):
                    name = row.get(FILE_NAME)
                    path = {FILE_NAME: (inner / name).as_posix()} if name and isinstance(name, str) else {}
                    row = {**row, **path, **own_split(split, columns)}
                yield row

    columns = dict.fromkeys(name for table in tables.values() for name in table.columns)
    name, version = folder.resolve().name, version_of(found, folder)
    splits, notice = splits_in([inner.parts[0] for inner in tables if inner.parts])
    return Source(str(folder), name, str(folder), tuple(columns), rows, files, version, notice, splits=splits)


def _dataset(where: str, spec: ReadSpec) -> Source:
    """A dataset of the Hugging Face hub, or a folder of files in a form that `datasets` knows."""
    from datasets import Dataset, load_dataset_builder, load_from_disk

    here = Path(where).is_dir()
    name = PurePosixPath(Path(where).resolve().name if Path(where).exists() else where).name
    files: tuple[tuple[Path, object], ...] = ()
    try:
        if here and any((Path(where) / mark).is_file() for mark in SAVED):
            paths = sorted(Path(where).rglob("*.arrow"))
            files, version = states_of(paths), version_of(paths, Path(where))
            saved = load_from_disk(where)
            splits: Any = {"": saved} if isinstance(saved, Dataset) else saved
        else:
            # "." has no name
            builder = load_dataset_builder(str(Path(where).absolute()) if here else where, spec.config)
            data_files = (builder.config.data_files or {}).values()
            paths = [Path(path) for some in data_files for path in some]
            if here and all(path.is_file() for path in paths):
                files, version = states_of(paths), version_of(paths, Path(where))
            else:
                marks = [getattr(some, "origin_metadata", "") for some in data_files]
                version = digest([str(builder.hash), *map(str, paths), *map(str, marks)])
            if files and builder.name == "parquet":  # read as single files are
                tables = {
                    str(split): [read_parquet(path) for path in some]
                    for split, some in (builder.config.data_files or {}).items()
                }
                return _pooled(where, name, tables, files, version)
            splits = builder.as_streaming_dataset()
        tables = {str(split): [_dataset_table(part)] for split, part in splits.items()}
    except Exception as error:
        names = _configs(where) if "onfig" in str(error) else []
        raise CatalogError(
            f"{where}: has several configurations: say which with --config: {', '.join(names)}"
            if len(names) > 1
            else f"{where}: neither a file or folder here nor a Hugging Face dataset that can be read "
            f"({first_line(error)})"
        ) from error
    return _pooled(where, name, tables, files, version)


def _configs(where: str) -> list[str]:
    from datasets import get_dataset_config_names

    try:
        return get_dataset_config_names(where)
    except Exception:  # whatever the hub raises: there is an error to be shown already
        return []


def _dataset_table(part: Any) -> Reader:
    """The rows of a split, its pictures not decoded."""
    from datasets import Image

    for column, feature in (part.features or {}).items():
        if isinstance(feature, Image):
            part = part.cast_column(column, Image(decode=False))
    columns = list(part.column_names or next(iter(part)))
    features = part.features or {}

    def rows(names: Collection[str] | None) -> Iterator[Row]:
        wanted = part if names is None else part.select_columns([name for name in columns if name in names])
        for table in wanted.with_format("arrow").iter(DATASET_ROWS):
            yield from named(batch_rows(table), features)

    return Reader(columns, rows, length=part.num_rows if hasattr(part, "num_rows") else None)


def _pooled(
    where: str,
    name: str,
    tables: Mapping[str, Sequence[Reader]],
    files: tuple[tuple[Path, object], ...],
    version: str,
) -> Source:
    """One table of the files of all splits."""

    def rows(columns: Collection[str] | None) -> Iterator[Row]:
        for split, some in tables.items():
            for table in some:
                for row in table.rows(columns):
                    yield row if isinstance(row, str) else {**row, **own_split(split_named(split), columns)}

    every = [table for some in tables.values() for table in some]
    columns = dict.fromkeys(column for table in every for column in table.columns)
    length = None if any(table.length is None for table in every) else sum(table.length or 0 for table in every)
    splits, notice = splits_in([split for split, some in tables.items() if some])
    return Source(where, name, where, tuple(columns), rows, files, version, notice, length, splits)
