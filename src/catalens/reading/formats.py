"""File formats of tables: told from a file's first bytes, whatever it is called, and read row by row.

    b"PAR1..."                         Parquet
    b"PK..." with xl/, b"\\xd0\\xcf..."   a workbook of Excel, old Excel or LibreOffice
    b"<?xml", b"<rss"                  a feed: one row for each <item>, <entry>, <product> or <offer>
    b"[{", b"{" over several lines     one JSON document, whose first list of objects is the table
    b"{...}\\n"                         JSON Lines
    anything else                      delimited text

A reader gives `columns` and `rows(names)`; a row that cannot be read is a sentence that says why.
"""

import io
import json
import re
import zipfile
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, repeat
from typing import Any
from xml.etree.ElementTree import Element

import ijson
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from defusedxml.ElementTree import iterparse
from python_calamine import CalamineWorkbook, SheetTypeEnum, SheetVisibleEnum

from catalens.catalog.storage import group_batches, open_parquet
from catalens.errors import CatalogError, first_line
from catalens.reading.columns import SAMPLE_ROWS, Unreadable
from catalens.reading.nested import with_answer
from catalens.reading.text import open_bytes

Row = Mapping[Any, Any] | str
Read = Callable[[Collection[str] | None], Iterator[Row]]
MAX_REASON = 200
"""Characters that are kept of what Arrow says of damage."""
ROW_TAGS = ("item", "entry", "product", "offer", "record", "row")
"""Elements that are rows in feeds: RSS, Atom, Google Merchant, Yandex Market, exports of shops."""
MAX_UNPACKED = 2**31
"""Bytes of a workbook, unpacked; a larger one is no table that a person keeps."""


@dataclass(frozen=True)
class Reader:
    """A file that is a table."""

    columns: Sequence[str]
    rows: Read
    notice: str = ""
    length: int | None = None


def kind_of(where: str, head: bytes) -> str:
    """Tell `parquet`, `sheet`, `xml`, `json`, `jsonl` or `text` from the first bytes; CatalogError of no table."""
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith((b"\xd0\xcf\x11\xe0", b"PK\x03\x04")):
        return "sheet"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if re.match(rb"<!doctype html|<html", text, flags=re.IGNORECASE):
        raise CatalogError(f"{where}: is a web page, not a table: give the address of the file itself")
    if re.match(rb"<(\?xml|rss|feed|[A-Za-z_][\w.-]*[\s>])", text):
        return "xml"
    if text[:1] in (b"[", b"{"):
        first, *others = text.splitlines()
        try:
            line = json.loads(first)
        except ValueError:
            return "json" if re.match(rb"\[\s*[\[{]|\{\s*\"", text) else "text"
        values = line.values() if isinstance(line, dict) else ()
        lists = sum(isinstance(one, list) and bool(one) and isinstance(one[0], dict) for one in values) == 1
        return "json" if not isinstance(line, dict) or (lists and not others) else "jsonl"
    for magic, name in (
        (b"%PDF", "a PDF"),
        (b"\x89PNG", "a picture"),
        (b"\xff\xd8\xff", "a picture"),
        (b"SQLite", "a database"),
    ):
        if head.startswith(magic):
            raise CatalogError(f"{where}: is {name}, not a table")
    return "text"


# Workbooks -------------------------------------------------------------------------------------------------------


def read_sheet(where: str, sheet: str | None = None) -> Reader:
    """Read a sheet of a workbook: the first visible one with cells, or the one that is named.

    The first row with cells is the header. Values are those that a person sees: 129 and not 129.0.
    """
    with open_bytes(where) as file:
        data = file.read()
    if (
        data.startswith(b"PK")
        and sum(part.file_size for part in zipfile.ZipFile(io.BytesIO(data)).infolist()) > MAX_UNPACKED
    ):
        raise CatalogError(f"{where}: unpacks to more than {MAX_UNPACKED >> 20} MB: save it as CSV")
    book = CalamineWorkbook.from_filelike(io.BytesIO(data))
    shown = [
        one.name
        for one in book.sheets_metadata
        if one.typ == SheetTypeEnum.WorkSheet and one.visible == SheetVisibleEnum.Visible
    ]
    if sheet is not None and sheet not in book.sheet_names:
        raise CatalogError(f"{where}: no sheet {sheet!r}; its sheets are {', '.join(map(repr, book.sheet_names))}")
    filled = {
        name: cells for name in ([sheet] if sheet else shown) if (cells := book.get_sheet_by_name(name).to_python())
    }
    if not filled:
        raise CatalogError(f"{where}: its sheets are empty")
    name, cells = next(iter(filled.items()))
    others = ", ".join(map(repr, [other for other in shown if other != name and other in filled]))
    header = [str(cell).strip() for cell in cells[0]]

    def rows(names: Collection[str] | None) -> Iterator[Row]:
        for line in cells[1:]:
            if any(cell != "" for cell in line):
                yield {column: _seen(cell) for column, cell in zip(header, line, strict=False) if column}

    return Reader([column for column in header if column], rows, f"sheet {name!r}, beside {others}" if others else "")


def _seen(cell: Any) -> Any:
    return int(cell) if isinstance(cell, float) and cell.is_integer() and abs(cell) < 2**53 else cell


# Feeds -----------------------------------------------------------------------------------------------------------


def read_feed(where: str) -> Reader:
    """Read a feed; columns are the elements of a row, without their namespaces."""

    def rows(names: Collection[str] | None) -> Iterator[Row]:
        with open_bytes(where) as file:
            path: list[Element] = []
            row_tag = ""
            for event, element in iterparse(file, events=("start", "end")):
                if event == "start":
                    path.append(element)
                    continue
                path.pop()
                if (tag := _tag(element)) in ROW_TAGS and (row_tag or tag) == tag and tag not in map(_tag, path):
                    row_tag = tag
                    yield {**element.attrib, **_children(element)}
                    path[-1].remove(element)

    known = list(islice(rows(None), SAMPLE_ROWS))
    if not known:
        raise CatalogError(f"{where}: has no {', '.join(f'<{tag}>' for tag in ROW_TAGS[:4])}: no feed of products")
    return Reader(list(dict.fromkeys(name for row in known for name in row)), rows)


def _tag(element: Element) -> str:
    return str(element.tag).rpartition("}")[2]


def _children(element: Element) -> dict[str, Any]:
    """Values of an element's children by name: text, an address in an attribute, an object, or a list of these."""
    found: dict[str, Any] = {}
    for child in element:
        name, value = _tag(child), (child.text or "").strip()
        if len(child):
            value = _children(child)
        elif not value:
            value = next((child.get(key) for key in ("href", "url", "src") if child.get(key)), None)
        if name in found:
            earlier = found[name]
            found[name] = [*(earlier if isinstance(earlier, list) else [earlier]), value]
        else:
            found[name] = value
    return found


# JSON documents --------------------------------------------------------------------------------------------------


def read_document(where: str) -> Reader:
    """Read the first list of objects of a JSON document."""
    with open_bytes(where) as file:
        opened, was_list = "", False
        for prefix, event, _ in ijson.parse(file):
            if event == "start_map" and prefix == (f"{opened}.item" if opened else "item") and was_list:
                break
            if event == "start_array":
                opened, was_list = prefix, True
            elif event in ("start_map", "end_array"):
                was_list = False
        else:
            raise CatalogError(f"{where}: holds no list of objects")

    def rows(names: Collection[str] | None) -> Iterator[Row]:
        with open_bytes(where) as file:
            for row in ijson.items(file, prefix, use_float=True):
                yield with_answer(row) if isinstance(row, dict) else "not a JSON object"

    known = (row for row in islice(rows(None), SAMPLE_ROWS) if isinstance(row, Mapping))
    return Reader(list(dict.fromkeys(name for row in known for name in row)), rows)


# Arrow and Parquet -----------------------------------------------------------------------------------------------


def read_parquet(where: str) -> Reader:
    """Read a Parquet file; labels that `datasets` stored as numbers are the names that they stand for."""
    with open_bytes(where) as file, pq.ParquetFile(file) as parquet:
        schema, length = parquet.schema_arrow, parquet.metadata.num_rows
    labels = labels_of(
        json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    )
    return Reader(schema.names, lambda names: named(_parquet_rows(where, names), labels), length=length)


def labels_of(features: Mapping[str, Any]) -> dict[str, list[str]]:
    """Names of the classes of columns that hold their numbers, by the features of a Hugging Face dataset."""
    kinds = {name: one if isinstance(one, Mapping) else vars(one) for name, one in features.items()}
    return {name: list(one["names"]) for name, one in kinds.items() if one.get("names") is not None}


def named(rows: Iterable[Row], labels: Mapping[str, Sequence[str]]) -> Iterator[Row]:
    """Rows with the names of their classes in the place of numbers."""
    for row in rows:
        if labels and isinstance(row, Mapping):
            numbers = {name: row.get(name) for name in labels}
            row = {
                **row,
                **{n: labels[n][i] for n, i in numbers.items() if isinstance(i, int) and 0 <= i < len(labels[n])},
            }
        yield row


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
