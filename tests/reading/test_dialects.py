"""Random tables in every form, dialect and language of shops: each value is read back, or its row is refused.

`make tables` writes 2,000 of each kind, `make test` a few hundred.
"""

import csv
import gzip
import io
import json
import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st
from openpyxl.cell import WriteOnlyCell

from catalens.errors import CatalensError
from catalens.reading import Columns, Table, TableSpec, open_source

TABLES = int(os.environ.get("CATALENS_TABLES", "0"))
COLUMNS = Columns("photo", "sku", {"title": "text", "category": "category", "price": "number"})
Row = dict[str, Any]


@dataclass(frozen=True)
class Style:
    """How a shop writes its prices."""

    decimal: str
    group: str
    places: int
    mark: str
    before: bool
    indian: bool

    def write(self, cents: int) -> str:
        value = cents / 100 if self.places else cents // 100
        whole, _, fraction = f"{value:.{self.places}f}".partition(".")
        first, last = (whole[:-3], whole[-3:]) if len(whole) > 3 else ("", whole)
        size = 2 if self.indian else 3
        parts = [first[max(0, end - size) : end] for end in range(len(first), 0, -size)][::-1]
        text = self.group.join([*parts, last]) + (self.decimal + fraction if fraction else "")
        return f"{self.mark}{text}" if self.before else f"{text}{self.mark}"

    def value(self, cents: int) -> float | int:
        return cents / 100 if self.places else cents // 100


STYLES = st.builds(
    Style,
    st.sampled_from([".", ","]),
    st.sampled_from(["", "other", " ", "\u00a0", "\u202f", "'", "\u2019"]),
    st.sampled_from([0, 2, 2, 2]),
    st.sampled_from(["", "", " €", "$", " USD", "₹", " kr", "CHF ", " zł", "£", ",-"]),
    st.booleans(),
    st.booleans(),
).map(
    lambda style: Style(
        style.decimal,
        {".": ",", ",": "."}[style.decimal] if style.group == "other" else style.group,
        0 if style.mark == ",-" else style.places,
        style.mark,
        style.before and style.mark != ",-",
        style.indian and style.group not in ("", " "),
    )
)
ANY = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc"]), min_size=1, max_size=12)
ODD = st.sampled_from(
    [
        '24" screen',
        '"Bio" Lamp',
        "a, b; c",
        "one\ntwo",
        "sep=;",
        "#1",
        "=1+1",
        "5",
        "N/A",
        "C:\\x",
        "null",
        "[red]",
        "{a}",
    ]
)
WORD = st.one_of(ANY, ANY, ODD).map(lambda text: text.strip()).filter(bool)


def written_text(rows: list[Row], style: Style) -> list[Row]:
    return [row | {"price": style.write(row["price"])} for row in rows]


def typed(rows: list[Row], style: Style) -> list[Row]:
    return [row | {"price": style.value(row["price"])} for row in rows]


def delimited(rows: list[Row], style: Style, draw: Callable[[Any], Any]) -> bytes:
    buffer = io.StringIO(newline="")
    sign, end = draw(st.sampled_from([",", ";", "\t", "|"])), draw(st.sampled_from(["\n", "\r\n"]))
    quotes = draw(st.sampled_from(["double", "double", "all", "backslash"]))
    how: dict[str, Any] = {"escapechar": "\\", "doublequote": False} if quotes == "backslash" else {}
    how["quoting"] = csv.QUOTE_MINIMAL if quotes == "double" else csv.QUOTE_ALL
    above = draw(st.sampled_from(["", "", "", f"sep={sign}{end}", f"Export of all goods{end}{end}"]))
    buffer.write(above)
    writer = csv.DictWriter(buffer, list(rows[0]), delimiter=sign, lineterminator=end, **how)
    writer.writeheader()
    writer.writerows(written_text(rows, style))
    return buffer.getvalue().encode(draw(st.sampled_from(["utf-8", "utf-8", "utf-8-sig", "utf-16", "utf-16-le"])))


def json_lines(rows: list[Row], style: Style, draw: Callable[[Any], Any]) -> bytes:
    some = draw(st.sampled_from([typed, written_text]))(rows, style)
    if draw(st.booleans()):
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in some).encode(draw(UNICODE))
    inner: Any = draw(st.sampled_from([some, {"items": some}, {"data": {"goods": some}, "tags": [{"a": 1}]}]))
    return json.dumps(inner, indent=draw(st.sampled_from([None, 1])), ensure_ascii=False).encode(draw(UNICODE))


UNICODE = st.sampled_from(["utf-8", "utf-8-sig", "utf-16"])


def sheet(rows: list[Row], style: Style, draw: Callable[[Any], Any]) -> bytes:
    some = draw(st.sampled_from([typed, written_text]))(rows, style)
    book, buffer = openpyxl.Workbook(), io.BytesIO()
    page = book.active
    assert page is not None
    for line in [*draw(st.sampled_from([[], [["Price list"], []]])), [*some[0]], *([*row.values()] for row in some)]:
        cells = [WriteOnlyCell(page, value=None) for _ in line]
        for cell, value in zip(cells, line, strict=True):
            cell.value = value
            cell.data_type = "s" if isinstance(value, str) else cell.data_type  # "=1+1" is no formula here
        page.append(cells)
    book.save(buffer)
    return buffer.getvalue()


def feed(rows: list[Row], style: Style, draw: Callable[[Any], Any]) -> bytes:
    items = (
        "".join(f"<g:{name}>{escape(str(value))}</g:{name}>" for name, value in row.items())
        for row in written_text(rows, style)
    )
    body = "".join(f"<item>{item}</item>" for item in items)
    encoding = draw(st.sampled_from(["utf-8", "utf-16"]))
    head = f'<?xml version="1.0" encoding="{encoding}"?>'
    return f'{head}<rss xmlns:g="http://base.google.com/ns/1.0"><channel>{body}</channel></rss>'.encode(encoding)


def parquet(rows: list[Row], style: Style, draw: Callable[[Any], Any]) -> bytes:
    buffer = io.BytesIO()
    table = pa.Table.from_pylist(typed(rows, style))
    if style.places and draw(st.booleans()) and max(row["price"] for row in rows) < 10**7:
        at = table.schema.get_field_index("price")
        table = table.set_column(at, "price", table.column("price").cast(pa.float32()))
    pq.write_table(table, buffer)
    return buffer.getvalue()


def packed(data: bytes, draw: Callable[[Any], Any]) -> bytes:
    match draw(st.sampled_from(["", "", "", "gz", "zip"])):
        case "gz":
            return gzip.compress(data)
        case "zip":
            buffer = io.BytesIO()
            with zipfile.ZipFile(buffer, "w") as archive:
                archive.writestr("inner/table.csv", data)
            return buffer.getvalue()
        case _:
            return data


def outcome(path: Path, rows: list[Row], style: Style) -> str:
    """`right`, `asked` or `refused`; AssertionError where a value is another than was written."""
    told: list[str] = []
    try:
        table = Table.of(open_source(str(path)), COLUMNS, TableSpec(), told.append)
    except CatalensError as error:
        assert "--" in str(error) or "no column" in str(error), error  # noqa: PT017
        return "asked"
    read = list(table.rows())
    wanted = {row["sku"]: {"title": row["title"], "category": row["category"]} for row in rows}
    prices = {row["sku"]: style.value(row["price"]) for row in rows}
    refused = [row for row in read if row.reason]
    for row in read:
        if not row.reason:
            assert {name: row.fields[name] for name in ("title", "category")} == wanted[row.id]
            assert row.fields["price"] == prices[row.id], (told, row)
    assert len(read) == len(rows) or (refused and len(read) >= len(rows)), told
    if len(refused) > len(read) / 2:
        assert all("--" in str(row.reason) or "longer" in str(row.reason) for row in refused), refused[0]
    for row in refused:
        event(f"refused: {str(row.reason).partition(':')[0]}")
    return "refused" if refused else "right"


@settings(
    max_examples=TABLES or 60,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    deadline=None,
    phases=[Phase.explicit, Phase.reuse, Phase.generate, *([] if TABLES else [Phase.shrink])],
)
@given(st.data())
@pytest.mark.parametrize("write", [delimited, json_lines, sheet, feed, parquet])
def test_a_table_in_any_dialect_is_read_back(
    write: Callable[..., bytes], tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    cents = st.one_of(st.integers(0, 10**5), st.integers(0, 10**9))
    some = data.draw(st.lists(st.tuples(WORD, WORD, cents), min_size=3, max_size=12))
    some[0] = ('x "y" z', *some[0][1:])
    rows = [
        {"sku": f"S{n}", "title": title, "category": kind, "price": price, "photo": f"pix/{n}.jpg"}
        for n, (title, kind, price) in enumerate(some)
    ]
    style = data.draw(STYLES)
    path = tmp_path_factory.getbasetemp() / "table.csv"
    content = write(rows, style, data.draw)
    path.write_bytes(packed(content, data.draw) if write is not sheet else content)
    event(outcome(path, rows, style))
