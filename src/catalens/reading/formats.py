"""File formats of tables: told from a file's first bytes, whatever it is called, and read row by row.

    b"PAR1..."                         Parquet
    b"PK..." with xl/, b"\\xd0\\xcf..."   a workbook of Excel, old Excel or LibreOffice
    "ustar" after 257 bytes            a webdataset: a row for the files of a name, 0001.jpg, 0001.json
    b"<?xml", b"<rss"                  a feed: one row for each <item>, <entry>, <product> or <offer>
    b"[{", b"{" over several lines     one JSON document, whose longest list of objects is the table
    b"{...}\\n"                         JSON Lines
    anything else                      delimited text

A reader gives `columns` and `rows(names)`; a row that cannot be read is a sentence that says why.
"""

import io
import json
import re
import tarfile
import zipfile
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from typing import IO, Any
from xml.etree.ElementTree import Element

import ijson
from defusedxml.ElementTree import iterparse
from python_calamine import CalamineWorkbook, SheetTypeEnum, SheetVisibleEnum

from catalens.errors import CatalogError, first_line
from catalens.reading.columns import SAMPLE_ROWS, Unreadable
from catalens.reading.nested import with_answer
from catalens.reading.numbers import SHOWN
from catalens.reading.text import open_bytes

Row = Mapping[Any, Any] | str
Read = Callable[[Collection[str] | None], Iterator[Row]]
ROW_TAGS = ("item", "entry", "product", "offer", "record", "row")
"""Elements that are rows in feeds: RSS, Atom, Google Merchant, Yandex Market, exports of shops."""
NO_TABLES = {
    b"%PDF": "a PDF",
    b"\x89PNG": "a picture",
    b"\xff\xd8\xff": "a picture",
    b"SQLite": "a database",
    b"ARROW1": "an Arrow file",
}
"""Names of other files by their first bytes."""
FIRST_MEMBERS = 64
"""Rows of a webdataset from which its columns are known."""
MAX_MEMBER = 2**28
"""Bytes of a file in a webdataset."""
TEXTS = ("txt", "text", "caption", "cls", "cls2", "id", "html")
"""Endings of texts in a webdataset."""
MAX_UNPACKED = 2**31
"""Bytes of a workbook, unpacked; a larger one is no table that a person keeps."""


@dataclass(frozen=True)
class Reader:
    """A file that is a table."""

    columns: Sequence[str]
    rows: Read
    notice: str = ""
    length: int | None = None
    loose: bool = False
    """Later rows may have columns that the first ones lack."""


def kind_of(where: str, head: bytes) -> str:
    """Tell `parquet`, `sheet`, `tar`, `xml`, `json`, `jsonl` or `text` from the first bytes, in UTF-8 as far as text.

    Raises CatalogError of what is no table.
    """
    if head.startswith(b"PAR1"):
        return "parquet"
    if head.startswith((b"\xd0\xcf\x11\xe0", b"PK\x03\x04")):
        return "sheet"
    if head[257:262] == b"ustar":
        return "tar"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n")
    if re.match(rb"<!doctype html|<html", text, flags=re.IGNORECASE):
        raise CatalogError(f"{where}: is a web page, not a table: give the address of the file itself")
    if re.match(rb"<(\?xml|rss|feed|[A-Za-z_][\w.-]*[\s>])", text):
        return "xml"
    if text[:1] in (b"[", b"{"):
        return _json_kind(text)
    if name := next((name for magic, name in NO_TABLES.items() if head.startswith(magic)), None):
        raise CatalogError(f"{where}: is {name}, not a table")
    controls, whole = sum(head.count(sign) for sign in range(9)), len(head.decode(errors="ignore").encode())
    if controls * 5 > len(head) or (controls * 50 > len(head) and whole < len(head) - 4):  # 4: a character cut off
        raise CatalogError(f"{where}: is neither text nor a table in a form that is known")
    return "text"


def _json_kind(text: bytes) -> str:
    first, *others = text.splitlines()
    try:
        line = json.loads(first)
    except ValueError:
        if re.match(rb"\{\s*'", text):  # objects as Python prints them
            return "jsonl"
        return "json" if re.match(rb"\[\s*([\[{]|$)|\{\s*(\"|$)", first) else "text"
    if not isinstance(line, dict):
        return "json"
    alone = not any(map(bytes.strip, others)) and not {"messages", "conversations"} & line.keys()
    keyed = len(line) > 1 and all(isinstance(one, dict) for one in line.values())
    return "json" if alone and (keyed or _holds_objects(line)) else "jsonl"


def _holds_objects(value: Any, depth: int = 4) -> bool:
    """Tell an object with a list of objects in it, at any depth."""
    if isinstance(value, list):
        return bool(value) and isinstance(value[0], dict)
    return isinstance(value, dict) and depth > 0 and any(_holds_objects(one, depth - 1) for one in value.values())


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
    filled_cells = [sum(cell != "" for cell in line) for line in cells[:SAMPLE_ROWS]]
    width = Counter(filled_cells).most_common(1)[0][0]
    above = next((index for index, filled in enumerate(filled_cells) if filled * 2 > width), 0)  # titles, notes
    header = [str(cell).strip() for cell in cells[above]]
    notice = [f"sheet {name!r}, beside {others}"] if others else []
    notice += [f"the header is row {above + 1}, below {str(cells[0][0] or cells[0][-1])[:SHOWN]!r}"] if above else []

    def rows(names: Collection[str] | None) -> Iterator[Row]:
        for line in cells[above + 1 :]:
            if any(cell != "" for cell in line):
                yield {column: _seen(cell) for column, cell in zip(header, line, strict=False) if column}

    return Reader([column for column in header if column], rows, "; ".join(notice))


def _seen(cell: Any) -> Any:
    return int(cell) if isinstance(cell, float) and cell.is_integer() and abs(cell) < 2**53 else cell


# Archives of webdatasets -----------------------------------------------------------------------------------------


def read_tar(where: str) -> Reader:
    """Read a webdataset: files of one name are a row, and what its .json holds are columns, too."""

    def rows(names: Collection[str] | None) -> Iterator[Row]:
        with open_bytes(where) as file, tarfile.open(fileobj=file, mode="r|") as archive:
            row: dict[str, Any] = {}
            for member in archive:
                folder, _, name = member.name.rpartition("/")
                stem, _, ending = name.partition(".")
                if not member.isfile() or not stem or not ending:
                    continue
                key = f"{folder}/{stem}".removeprefix("./").lstrip("/")
                if row and row["__key__"] != key:
                    yield row
                    row = {}
                row = {**_member(archive, member, ending.lower()), **row, "__key__": key}
            if row:
                yield row

    known = (row for row in islice(rows(None), FIRST_MEMBERS) if isinstance(row, Mapping))
    columns = dict.fromkeys(name for row in known for name in row)
    return Reader(sorted(columns, key=lambda name: name == "json"), rows, loose=True)  # its fields come first


def _member(archive: tarfile.TarFile, member: tarfile.TarInfo, ending: str) -> dict[str, Any]:
    """The cells of a file in a webdataset."""
    opened = archive.extractfile(member)
    if opened is None or member.size > MAX_MEMBER:
        return {ending: Unreadable(f"a file of {member.size:,} bytes")}
    data = opened.read()
    if ending == "json":
        try:
            value = json.loads(data)
        except (ValueError, RecursionError) as error:
            return {ending: Unreadable(f"not JSON: {first_line(error)}")}
        return {**value, ending: value} if isinstance(value, dict) else {ending: value}
    return {ending: data.decode(errors="surrogateescape") if ending in TEXTS else data}


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


def read_document(where: str, encoding: str = "utf-8") -> Reader:
    """Read the longest list of objects of a JSON document, objects by their keys, or one document after the other."""
    lists, kinds, documents = _outline(where, encoding)
    if documents > 1:
        return _json_reader(lambda file: ijson.items(file, "", use_float=True, multiple_values=True), where, encoding)
    if lists:
        name = max(lists, key=lambda name: lists[name])
        more = f"rows are those of {name!r}, beside {', '.join(repr(one) for one in lists if one != name)}"
        prefix = f"{name}.item".lstrip(".")
        found = _json_reader(lambda file: ijson.items(file, prefix, use_float=True), where, encoding)
        return replace(found, notice=more) if len(lists) > 1 else found
    if set(kinds) != {"start_map"} or kinds["start_map"] < 2:
        raise CatalogError(f"{where}: holds no list of objects: give one, with an object for each row")
    found = _json_reader(lambda file: map(_keyed, ijson.kvitems(file, "", use_float=True)), where, encoding)
    if all(column.isdigit() for column in found.columns[1:]):
        raise CatalogError(f"{where}: holds columns, as pandas writes them: write it with orient='records'")
    return found


def _outline(where: str, encoding: str) -> tuple[Counter[str], Counter[str], int]:
    """Of a JSON file: the lists in no other list by their objects, kinds of the document's values, documents."""
    lists: Counter[str] = Counter()
    kinds: Counter[str] = Counter()
    arrays: list[str] = []
    maps = documents = 0
    with _recoded(where, encoding) as file:
        for prefix, event, _ in ijson.parse(file, multiple_values=True):
            if event == "start_array":
                arrays.append(prefix)
            elif event == "end_array":
                arrays.pop()
            elif event == "start_map" and len(arrays) == 1 and prefix == f"{arrays[0]}.item".lstrip("."):
                lists[arrays[0]] += 1
            if maps == 1 and not arrays and event not in ("map_key", "end_map", "end_array"):
                kinds[event] += 1
            maps += (event == "start_map") - (event == "end_map")
            documents += event == "end_map" and not maps and not arrays
            if documents > 1 or max(lists.values(), default=0) > SAMPLE_ROWS:
                break
    return lists, kinds, documents


def _keyed(one: tuple[str, Any]) -> Any:
    return {"key": one[0], **one[1]} if isinstance(one[1], dict) else one[1]


def _json_reader(items: Callable[[Any], Iterator[Any]], where: str, encoding: str) -> Reader:
    def rows(names: Collection[str] | None) -> Iterator[Row]:
        with _recoded(where, encoding) as file:
            for row in items(file):
                yield with_answer(row) if isinstance(row, dict) else "not a JSON object"

    known = (row for row in islice(rows(None), SAMPLE_ROWS) if isinstance(row, Mapping))
    return Reader(list(dict.fromkeys(name for row in known for name in row)), rows, loose=True)


class _Recoded:
    """A file in UTF-8 without a mark, as parsers of JSON want it."""

    def __init__(self, file: IO[bytes], encoding: str) -> None:
        self._text = io.TextIOWrapper(file, encoding, newline="")

    def read(self, size: int) -> bytes:
        return self._text.read(size).encode()


@contextmanager
def _recoded(where: str, encoding: str) -> Iterator[Any]:
    with open_bytes(where) as file:
        try:
            yield file if encoding == "utf-8" else _Recoded(file, encoding)
        except ijson.JSONError as error:
            raise CatalogError(
                f"{where}: is no JSON as the standard has it ({first_line(error)}): NaN and comments are not of it; "
                "JSON Lines with the same rows are read line by line"
            ) from error
