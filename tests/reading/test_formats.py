"""Files are read as what they are, whatever they are called."""

import gzip
import io
import json
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import openpyxl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from datasets import Dataset, DatasetDict
from hostile import encoded, pixels

from catalens import prepare
from catalens.catalog import Catalog
from catalens.errors import CatalogError
from catalens.preparing import PrepareSpec
from catalens.reading import Columns, ReadSpec, expand, guess_columns, open_source

ROWS = [{"sku": f"S{n}", "title": f"Lamp {n}", "price": 10 + n} for n in range(3)]


def rows_of(path: Path, **options: str) -> list[dict[str, Any]]:
    return [dict(row) for row in open_source(str(path), ReadSpec(**options)).rows() if not isinstance(row, str)]


def workbook(*sheets: list[list[Any]]) -> bytes:
    book, buffer = openpyxl.Workbook(), io.BytesIO()
    for number, lines in enumerate(sheets):
        sheet = book.active if number == 0 else book.create_sheet(f"sheet {number}")
        assert sheet is not None
        for line in lines:
            sheet.append(line)
    book.save(buffer)
    return buffer.getvalue()


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    return buffer.getvalue()


LINES = [list(ROWS[0]), *([*row.values()] for row in ROWS)]
CSV = "".join(",".join(map(str, line)) + "\n" for line in LINES).encode()
FEED = (
    '<?xml version="1.0"?><rss xmlns:g="http://base.google.com/ns/1.0"><channel><title>Shop</title>'
    + "".join(
        f"<item><g:sku>{row['sku']}</g:sku><title>{row['title']}</title><g:price>{row['price']}</g:price></item>"
        for row in ROWS
    )
    + "</channel></rss>"
).encode()
TEXT = [{name: str(value) for name, value in row.items()} for row in ROWS]


@pytest.mark.parametrize(
    ("name", "data", "expected"),
    [
        ("table.xlsx", workbook(LINES), ROWS),
        ("table.csv", workbook(LINES), ROWS),
        ("empty-first.xlsx", workbook([], LINES), ROWS),
        ("export.php", CSV, TEXT),
        ("table.csv.gz", gzip.compress(CSV), TEXT),
        ("table.csv", gzip.compress(CSV), TEXT),
        ("table.zip", zipped({"inner/table.csv": CSV, "readme.md": b"x"}), TEXT),
        ("table.zip", zipped({"table.xlsx": workbook(LINES)}), ROWS),
        ("feed.xml", FEED, TEXT),
        ("feed.txt", FEED, TEXT),
        ("table.json", json.dumps(ROWS, indent=2).encode(), ROWS),
        ("table.jsonl", json.dumps(ROWS).encode(), ROWS),
        ("table.json", json.dumps({"shop": {"name": "x"}, "items": ROWS}).encode(), ROWS),
        ("table.json", b"".join(json.dumps(row).encode() + b"\n" for row in ROWS), ROWS),
        ("table.csv", b"\xef\xbb\xbf" + CSV, TEXT),
        ("table.csv", b"sep=;\r\n" + CSV.replace(b",", b";"), TEXT),
    ],
)
def test_a_table_is_told_by_its_content(name: str, data: bytes, expected: list[dict[str, Any]], tmp_path: Path):
    (tmp_path / name).write_bytes(data)
    source = open_source(str(tmp_path / name))
    assert source.columns == ("sku", "title", "price")
    assert list(source.rows()) == expected
    first = next(iter(source.rows(["sku"])))
    assert not isinstance(first, str)
    assert first["sku"] == "S0"


@pytest.mark.parametrize(
    ("name", "data", "reason"),
    [
        ("page.csv", b"<!DOCTYPE html><html>", "is a web page, not a table"),
        ("table.xlsx", b"%PDF-1.7 ...", "is a PDF, not a table"),
        ("photo.csv", encoded(pixels(1, 40, 40), "PNG"), "is a picture, not a table"),
        ("two.zip", zipped({"a.csv": CSV, "b.csv": CSV}), "it holds 'a.csv', 'b.csv': unpack it"),
        ("none.zip", zipped({"a.jpg": b"x"}), "it holds none: unpack it"),
        ("broken.zip", b"PK\x03\x04 nothing", "a damaged zip archive"),
        ("feed.xml", b"<rss><channel><title>x</title></channel></rss>", "no feed of products"),
        (
            "bomb.xml",
            b'<?xml version="1.0"?><!DOCTYPE a [<!ENTITY b "c">]><rss><item>&b;</item></rss>',
            "Entit",
        ),
        ("words.json", b'{"a": [1, 2, 3],\n "b": 1}', "holds no list of objects"),
        ("empty.xlsx", workbook([]), "its sheets are empty"),
    ],
)
def test_what_is_no_table_says_what_it_is(name: str, data: bytes, reason: str, tmp_path: Path):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(CatalogError, match=reason):
        list(open_source(str(tmp_path / name)).rows())


def test_a_sheet_is_named(tmp_path: Path):
    (tmp_path / "t.xlsx").write_bytes(workbook([["a"], [1]], LINES))
    assert "beside 'sheet 1'" in open_source(str(tmp_path / "t.xlsx")).notice
    assert rows_of(tmp_path / "t.xlsx", sheet="sheet 1") == ROWS
    with pytest.raises(CatalogError, match="no sheet 'other'; its sheets are 'Sheet', 'sheet 1'"):
        rows_of(tmp_path / "t.xlsx", sheet="other")


def test_elements_of_a_feed_that_stand_twice_are_a_list_and_nested_ones_an_object(tmp_path: Path):
    inside = '<link href="http://s/1"/><image>a.jpg</image><image>b.jpg</image><ship><price>5</price></ship>'
    (tmp_path / "feed.xml").write_text(f'<shop><offer id="7">{inside}</offer></shop>')
    row = {"id": "7", "link": "http://s/1", "image": ["a.jpg", "b.jpg"], "ship": {"price": "5"}}
    assert rows_of(tmp_path / "feed.xml") == [row]


def test_labels_are_names_in_parquet_and_saved_datasets(tmp_path: Path):
    from datasets import ClassLabel, Features, Value

    kinds = ClassLabel(names=["dress", "shoe"])
    features = Features({"sku": Value("string"), "kind": kinds, "price": Value("float32")})
    table = Dataset.from_dict({"sku": ["a", "b"], "kind": [1, 0], "price": [20.99, 5.0]}, features=features)
    table.to_parquet(tmp_path / "t.parquet")
    table.save_to_disk(str(tmp_path / "saved"))
    expected = [{"sku": "a", "kind": "shoe", "price": 20.99}, {"sku": "b", "kind": "dress", "price": 5.0}]
    assert rows_of(tmp_path / "t.parquet") == expected
    assert rows_of(tmp_path / "saved") == expected


ANSWER = "Product: Vintage Check Scarf, red, Category: ACCESSORIES, Full Price: 390.0"
FIELDS = {"Product": "Vintage Check Scarf, red", "Category": "ACCESSORIES", "Full Price": "390.0"}


@pytest.mark.parametrize(
    "row",
    [
        {  # LLaVA
            "id": "1",
            "image": "a.jpg",
            "conversations": [{"from": "human", "value": "<image>What?"}, {"from": "gpt", "value": ANSWER}],
        },
        {  # OpenAI
            "id": "1",
            "messages": [
                {
                    "role": "user",
                    "content": [
                        {"type": "text", "text": "What: is it?"},
                        {"type": "image_url", "image_url": {"url": "a.jpg"}},
                    ],
                },
                {"role": "assistant", "content": ANSWER},
            ],
        },
    ],
    ids=["llava", "openai"],
)
@pytest.mark.parametrize("whole", [False, True])
def test_the_fields_of_a_chats_answer_are_columns(row: dict[str, Any], whole: bool, tmp_path: Path):
    (tmp_path / "chat.jsonl").write_text(json.dumps([row, row]) if whole else f"{json.dumps(row)}\n" * 2)
    source = open_source(str(tmp_path / "chat.jsonl"))
    (read, *_) = rows_of(tmp_path / "chat.jsonl")
    assert {name: read[name] for name in FIELDS} == FIELDS
    columns = guess_columns(expand(source.columns, source.first()), Columns())
    assert (str(columns.image).startswith("image"), columns.id) == (True, "id")
    assert columns.fields == {"Product": "text", "Category": "category", "Full Price": "number"}


def picture_table(numbers: range) -> pa.Table:
    rows = [
        {"sku": f"S{n}", "title": f"Lamp {n}", "photo": {"bytes": encoded(pixels(n, 80, 80), "PNG"), "path": None}}
        for n in numbers
    ]
    return pa.Table.from_pylist(rows)


def write_parquet(folder: Path) -> None:
    for split, numbers in (("train", range(20)), ("test", range(20, 26))):
        pq.write_table(picture_table(numbers), folder / f"{split}-00000-of-00001.parquet")


def write_saved(folder: Path) -> None:
    splits = {"train": range(20), "test": range(20, 26)}
    DatasetDict({name: Dataset(picture_table(numbers)) for name, numbers in splits.items()}).save_to_disk(str(folder))


def write_imagefolder(folder: Path) -> None:
    for split, numbers in (("train", range(20)), ("test", range(20, 26))):
        (folder / split).mkdir()
        lines = []
        for n in numbers:
            (folder / split / f"{n}.png").write_bytes(encoded(pixels(n, 80, 80), "PNG"))
            lines.append(json.dumps({"file_name": f"{n}.png", "title": f"Lamp {n}"}))
        (folder / split / "metadata.jsonl").write_text("\n".join(lines))


@pytest.mark.parametrize("write", [write_parquet, write_saved, write_imagefolder])
def test_splits_of_the_source_are_kept(write: Callable[[Path], None], tmp_path: Path):
    (tmp_path / "shop").mkdir()
    write(tmp_path / "shop")
    told: list[str] = []
    folder, card = prepare(str(tmp_path / "shop"), tmp_path / "out", notice=told.append)
    titles = {split: {row["title"] for row in Catalog(folder).rows(split)} for split in card.rows if card.rows[split]}
    assert titles["test"] == {f"Lamp {n}" for n in range(20, 26)}
    assert titles["train"] | titles["validation"] == {f"Lamp {n}" for n in range(20)}
    assert any("splits are those of" in text for text in told)
    assert prepare(str(tmp_path / "shop"), tmp_path / "out")[1].content_hash == card.content_hash
    spec = PrepareSpec(fractions={"train": 0.5, "validation": 0.25, "test": 0.25})
    told.clear()
    _, card = prepare(str(tmp_path / "shop"), tmp_path / "out", spec=spec, notice=told.append)
    assert any("are pooled" in text for text in told)
    assert card.rows["test"] != 6 or card.rows["validation"] > 2


def test_each_picture_of_a_cell_may_be_a_row(tmp_path: Path):
    for n in range(6):
        (tmp_path / f"{n}.png").write_bytes(encoded(pixels(n, 80, 80), "PNG"))
    (tmp_path / "t.csv").write_text('sku,title,photos\nA,Bag,"0.png, 1.png"\nB,Hat,2.png\nC,Cap,3.png|4.png|5.png\n')
    columns = Columns("photos", "sku", {"title": "text"})
    spec = PrepareSpec.model_validate({"table": {"pictures": "each"}, "fractions": {"train": 1.0}})
    assert prepare(str(tmp_path / "t.csv"), tmp_path / "each", columns, spec)[1].rows["train"] == 6
    spec = PrepareSpec(fractions={"train": 1.0})
    assert prepare(str(tmp_path / "t.csv"), tmp_path / "first", columns, spec)[1].rows["train"] == 3
