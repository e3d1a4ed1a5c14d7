"""JSON, webdatasets and typed columns in the forms that shops and datasets have them."""

import io
import json
import tarfile
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from hostile import encoded, pixels

from catalens.errors import CatalogError
from catalens.reading import Columns, ReadSpec, Unreadable, expand, guess_columns, open_source

ROWS = [{"id": f"S{n}", "title": f"Lamp {n}", "image": f"{n}.jpg", "price": 10 + n} for n in range(5)]
TABLE_TEXT = "id,title\n1,Lamp\n"
LINES = "".join(json.dumps(row) + "\n" for row in ROWS)


def rows_of(path: Path, data: str | bytes, **options: str) -> list[Any]:
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return list(open_source(str(path), ReadSpec(**options)).rows())


# JSON -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("indent", [None, 1])
@pytest.mark.parametrize(
    "document",
    [
        {"products": ROWS},
        {"data": {"items": ROWS}},
        {"data": {"tags": [{"a": 1}], "items": ROWS}},
        {"meta": {"filters": [{"a": 1}, {"a": 2}]}, "items": ROWS, "count": 5},
        {"schema": {"fields": [{"name": "id", "type": "string"}]}, "data": ROWS},
        [*ROWS],
    ],
    ids=["one", "nested", "two lists", "values beside", "pandas table", "list"],
)
def test_the_longest_list_of_objects_is_the_table(document: object, indent: int | None, tmp_path: Path):
    assert rows_of(tmp_path / "t.json", json.dumps(document, indent=indent)) == ROWS


@pytest.mark.parametrize("indent", [None, 2])
def test_objects_by_their_keys_are_rows(indent: int | None, tmp_path: Path):
    document = {row["id"]: {name: row[name] for name in row if name != "id"} for row in ROWS}
    read = rows_of(tmp_path / "t.json", json.dumps(document, indent=indent))
    assert [row["key"] for row in read] == [row["id"] for row in ROWS]
    assert [row["title"] for row in read] == [row["title"] for row in ROWS]


def test_where_several_lists_are_it_is_said_which_one_is_read(tmp_path: Path):
    rows_of(tmp_path / "t.json", json.dumps({"tags": [{"a": 1}], "items": ROWS}))
    assert open_source(str(tmp_path / "t.json")).notice == "rows are those of 'items', beside 'tags'"


@pytest.mark.parametrize(
    "text",
    [
        "\n".join(json.dumps(row, indent=2) for row in ROWS),
        "".join(f"{row!r}\n" for row in ROWS),
        "[\n" + ",\n".join(map(json.dumps, ROWS)) + "\n]",
    ],
    ids=["one document after the other", "as Python prints them", "a row a line"],
)
def test_rows_of_json_stand_in_many_ways(text: str, tmp_path: Path):
    assert rows_of(tmp_path / "t.json", text) == ROWS


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-32"])
@pytest.mark.parametrize("text", [LINES, json.dumps(ROWS), json.dumps({"items": ROWS}, indent=1)])
def test_json_is_known_in_any_unicode(encoding: str, text: str, tmp_path: Path):
    assert rows_of(tmp_path / "t.json", text.encode(encoding)) == ROWS


@pytest.mark.parametrize("size", [10, 300_000, 3_000_000])
def test_a_first_line_may_be_of_any_length(size: int, tmp_path: Path):
    turns = [{"from": "human", "value": "A" * size}, {"from": "gpt", "value": "Product: Scarf"}]
    first, second = {"id": "1", "conversations": turns}, {"id": "2", "conversations": turns[1:]}
    read = rows_of(tmp_path / "t.jsonl", f"{json.dumps(first)}\n{json.dumps(second)}\n")
    assert [(row["id"], row["Product"]) for row in read] == [("1", "Scarf"), ("2", "Scarf")]


@pytest.mark.parametrize("text", [LINES, json.dumps(ROWS)])
def test_a_column_may_first_stand_in_a_late_row(text: str, tmp_path: Path):
    rows = [*ROWS] * 150 + [ROWS[0] | {"late": 1}]
    whole = "".join(json.dumps(row) + "\n" for row in rows) if text is LINES else json.dumps(rows)
    rows_of(tmp_path / "t.json", whole)
    source = open_source(str(tmp_path / "t.json"))
    assert "late" not in source.columns
    assert source.first("late")
    assert sum("late" in row for row in source.rows(["late"]) if isinstance(row, dict)) == 1
    with pytest.raises(CatalogError, match="no column 'never'"):
        source.first("never")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (json.dumps([["id", "title"], ["1", "x"]]), "no list of objects: give one, with an object for each row"),
        (json.dumps({"title": {"0": "x", "1": "y"}, "price": {"0": 5, "1": 6}}), "write it with orient='records'"),
        (json.dumps([ROWS[0] | {"price": float("nan")}]), "NaN and comments are not of it"),
        ("[\n// a comment\n" + json.dumps(ROWS[0]) + "]", "NaN and comments are not of it"),
        ("\x00\x01\x02\x03" * 40, "neither text nor a table"),
    ],
)
def test_what_is_no_table_of_json_says_why(text: str, reason: str, tmp_path: Path):
    with pytest.raises(CatalogError, match=reason):
        rows_of(tmp_path / "t.json", text)


@pytest.mark.parametrize(
    ("text", "options", "kind"),
    [
        (TABLE_TEXT, {"sheet": "a"}, "--sheet is not for delimited text"),
        (TABLE_TEXT, {"config": "us"}, "--config is not for delimited text"),
        (LINES, {"delimiter": ";"}, "--delimiter is not for JSON Lines"),
        (json.dumps(ROWS), {"quote": "none"}, "--quote is not for JSON"),
        ("<rss><item><id>1</id></item></rss>", {"encoding": "cp1252"}, "--encoding is not for a feed"),
    ],
)
def test_a_flag_that_would_do_nothing_is_refused(text: str, options: dict[str, str], kind: str, tmp_path: Path):
    with pytest.raises(CatalogError, match=f"{kind}: leave it out"):
        rows_of(tmp_path / "t.csv", text, **options)


# What stands above the header --------------------------------------------------------------------------------


TABLE = "id;title;image;price\n" + "".join(f"{n};Lamp, {n};{n}.jpg;{n},5\n" for n in range(6))


@pytest.mark.parametrize(
    ("above", "line"),
    [
        ("Shop export 27.11.2026\n", 2),
        ("Shop export\n\n", 3),
        ("Shop export;;;\n;;;\n", 3),
        ("# made by x, for y\n# all products\n", 3),
        ("Date: 1, 2, 3\r\nUser: me\r\n\r\n", 4),
    ],
)
@pytest.mark.parametrize("name", ["t.csv", "t.tsv"])
def test_lines_above_the_header_are_left_out_and_said(above: str, line: int, name: str, tmp_path: Path):
    sign = "\t" if name == "t.tsv" else ";"
    read = rows_of(tmp_path / name, (above + TABLE).replace(";", sign))
    assert len(read) == 6
    assert read[0] == {"id": "0", "title": "Lamp, 0", "image": "0.jpg", "price": "0,5"}
    assert f"the header being line {line}" in open_source(str(tmp_path / name)).notice


@pytest.mark.parametrize(
    "text",
    [
        TABLE,
        'a,b,c\n1,"x, y, z, w",2\n2,"x, y, z, w",3\n',
        "a,b\n1,2,3,4\n1,2,3,4\n",
        '"two\nlines",b,c\n1,2,3\n4,5,6\n',
        "a,,c\n1,2,3\n4,5,6\n",
        "sep=;\n" + TABLE,
    ],
)
def test_a_header_is_not_taken_for_what_stands_above_it(text: str, tmp_path: Path):
    rows_of(tmp_path / "t.csv", text)
    assert "header" not in open_source(str(tmp_path / "t.csv")).notice


def test_titles_above_the_header_of_a_sheet_are_left_out(tmp_path: Path):
    book = openpyxl.Workbook()
    for line in [["Price list"], [], ["made by", "x"], [*ROWS[0]], *([*row.values()] for row in ROWS)]:
        book.active.append(line)  # type: ignore[union-attr]
    book.save(tmp_path / "t.xlsx")
    source = open_source(str(tmp_path / "t.xlsx"))
    assert list(source.rows()) == ROWS
    assert source.notice == "the header is row 4, below 'Price list'"


# Webdatasets ----------------------------------------------------------------------------------------------------


def shard(path: Path, rows: list[dict[str, Any]], first: int = 0, folder: str = "") -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as archive:
        for number, row in enumerate(rows, start=first):
            files = {"png": encoded(pixels(number, 80, 80), "PNG"), "json": json.dumps(row).encode(), "txt": b"text"}
            for ending, data in files.items():
                member = tarfile.TarInfo(f"{folder}{number:04}.{ending}")
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))


SPARSE = [
    {"sku": f"S{n}", "title": f"Lamp {n}"} | ({"price": n + 0.5} if n % 3 else {"old": None}) for n in range(12)
]


@pytest.mark.parametrize("name", ["shop.tar", "shop.tar.gz", "folder/shard-0.tar"])
@pytest.mark.parametrize("folder", ["", "./", "part/"])
def test_fields_in_the_json_beside_a_picture_are_columns(name: str, folder: str, tmp_path: Path):
    shard(tmp_path / name, SPARSE, folder=folder)
    where = tmp_path / name if "/" not in name else tmp_path / "folder"
    source = open_source(str(where))
    read = [row for row in source.rows() if isinstance(row, dict)]
    assert [{name: row[name] for name in want} for row, want in zip(read, SPARSE, strict=True)] == SPARSE
    assert read[3]["__key__"] == f"{folder.removeprefix('./')}0003"
    assert (read[3]["txt"], read[3]["json"]) == ("text", SPARSE[3])
    assert read[3]["png"] == encoded(pixels(3, 80, 80), "PNG")
    told = guess_columns(expand(source.columns, source.first()), Columns())
    assert (told.image, told.id, told.fields) == ("png", "sku", {"title": "text", "price": "number"})


def test_shards_are_splits_by_their_names(tmp_path: Path):
    shard(tmp_path / "w" / "train-0.tar", SPARSE[:4])
    shard(tmp_path / "w" / "train-1.tar", SPARSE[4:8])
    shard(tmp_path / "w" / "test-0.tar", SPARSE[8:])
    assert set(open_source(str(tmp_path / "w")).splits) == {"train", "test"}


# Typed columns ----------------------------------------------------------------------------------------------


NARROW = pa.float32()


@pytest.mark.parametrize(
    ("array", "value"),
    [
        (pa.array([20.99], NARROW), 20.99),
        (pa.array([0.1], pa.float16()), 0.1),
        (pa.array([{"value": 20.99, "unit": "EUR"}], pa.struct([("value", NARROW), ("unit", pa.string())])), None),
        (pa.array([[20.99, 5.1]], pa.list_(NARROW)), [20.99, 5.1]),
        (pa.array([[{"p": 1.1}]], pa.large_list(pa.struct([("p", NARROW)]))), [{"p": 1.1}]),
        (pa.array([20.99, 20.99], NARROW).dictionary_encode(), 20.99),
        (pa.array([None], NARROW), None),
    ],
    ids=str,
)
def test_narrow_numbers_are_the_decimals_they_were_written_as(array: Any, value: object, tmp_path: Path):
    pq.write_table(pa.table({"price": array}), tmp_path / "t.parquet")
    (row, *_) = open_source(str(tmp_path / "t.parquet")).rows()
    assert isinstance(row, dict)
    assert row["price"] == ({"value": 20.99, "unit": "EUR"} if isinstance(row["price"], dict) else value)


KINDS = ClassLabel(names=["dress", "shoe"])


@pytest.mark.parametrize("saved", [False, True])
def test_labels_are_names_wherever_they_stand(saved: bool, tmp_path: Path):
    features = Features({"kind": KINDS, "all": List(KINDS), "inner": {"kind": KINDS, "n": Value("int64")}})
    rows = {"kind": [1, -1], "all": [[0, 1], []], "inner": [{"kind": 0, "n": 1}, {"kind": 1, "n": 0}]}
    table = Dataset.from_dict(rows, features=features)
    where = tmp_path / ("saved" if saved else "t.parquet")
    table.save_to_disk(str(where)) if saved else table.to_parquet(where)
    assert list(open_source(str(where)).rows()) == [
        {"kind": "shoe", "all": ["dress", "shoe"], "inner": {"kind": "dress", "n": 1}},
        {"kind": None, "all": [], "inner": {"kind": "shoe", "n": 0}},
    ]


def test_a_number_that_is_no_class_is_unreadable(tmp_path: Path):
    info = {"info": {"features": {"kind": {"names": ["a", "b"], "_type": "ClassLabel"}}}}
    table = pa.table({"kind": [1, 7]}).replace_schema_metadata({"huggingface": json.dumps(info)})
    pq.write_table(table, tmp_path / "t.parquet")
    rows = [row["kind"] for row in open_source(str(tmp_path / "t.parquet")).rows() if isinstance(row, dict)]
    assert rows == ["b", Unreadable("class 7 of 2")]
