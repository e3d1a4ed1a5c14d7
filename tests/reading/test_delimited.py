"""CSV that others write: what cannot be read costs its own row."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from catalens.reading import ReadSpec, detect_delimiter, open_source, records
from catalens.reading.text import MAX_RECORD, NOT_CLOSED

HEADER = ["sku", "title", "price"]


def read(text: str, delimiter: str = ",") -> list[list[str] | str]:
    return list(records(text.splitlines(keepends=True), delimiter))


def rows(path: Path, text: str, **options: str) -> list[object]:
    path.write_text(text)
    return list(open_source(str(path), ReadSpec(**options)).rows())


def test_a_cell_that_csv_cannot_read_costs_its_row():
    found = read('sku,title,price\n1,"Bio" Lamp,5\n2,Bag,6\n')
    reason = "a stray quote: ',' expected after '\"'; --quote none reads quotes as text"
    assert found == [HEADER, reason, ["2", "Bag", "6"]]


def test_quotes_are_text_where_it_is_said(tmp_path: Path):
    found = rows(tmp_path / "t.csv", 'sku,title,price\n1,"Bio" Lamp,5\n2,"open,6\n', quote="none")
    assert [row["title"] for row in found] == ['"Bio" Lamp', '"open']


@pytest.mark.parametrize("line", ['1,"open,5', '1,24",5'])
def test_a_quote_that_is_never_closed_costs_no_more_than_its_row(line: str):
    found = read(f"sku,title,price\n{line}\n2,Bag,6\n3,Hat,7\n")
    assert found[0] == HEADER
    assert found[1] in (NOT_CLOSED, ["1", '24"', "5"])
    assert found[2:] == [["2", "Bag", "6"], ["3", "Hat", "7"]]


def test_quotes_of_two_rows_do_not_swallow_the_rows_between():
    lines = [f"S{n}\tLamp {n}\t{n}.50\tpix/{n}.jpg" for n in range(24)]
    lines[7] = 'S7\t"Sunny lamp 7\t7.50\tpix/7.jpg'
    lines[15] = 'S15\tMoony lamp 15"\t15.50\tpix/15.jpg'
    found = read("\n".join(["sku\ttitle\tprice\tphoto", *lines]), "\t")
    assert len(found) == 25
    assert found[8] == NOT_CLOSED
    assert found[16] == ["S15", 'Moony lamp 15"', "15.50", "pix/15.jpg"]
    assert [row[0] for row in found[1:] if isinstance(row, list)] == [f"S{n}" for n in range(24) if n != 7]


def test_line_breaks_and_delimiters_inside_quotes_stay():
    text = 'sku,title,price\n1,"two\nlines, ""quoted""\r\nand, more",5\n2,Bag,6\n'
    assert read(text)[1:] == [["1", 'two\nlines, "quoted"\r\nand, more', "5"], ["2", "Bag", "6"]]


def test_an_open_quote_is_given_up_after_a_bounded_read():
    line = "2,Bag,6\n"
    found = read('sku,title,price\n1,"open,5,x\n' + line * (2 * MAX_RECORD // len(line)) + '3,"closed",7\n')
    assert found[1] == NOT_CLOSED
    assert len(found) == 3 + 2 * MAX_RECORD // len(line)


@given(st.lists(st.lists(st.text(st.sampled_from('a",;\n\r\t \x00é'), max_size=6), max_size=4), max_size=8))
def test_whatever_the_lines_records_end_and_say_no_more_than_a_reason(cells: list[list[str]]):
    lines = "\n".join(",".join(row) for row in cells).splitlines(keepends=True)
    found = list(records(lines, ","))
    assert all(isinstance(row, str | list) for row in found)
    assert len(found) <= len(lines)


@pytest.mark.parametrize(
    ("header", "delimiter"),
    [
        ("sku;title;price", ";"),
        ('"a,b,c";"d,e";price', ";"),
        ('"a ""x"", b, c, d";title', ";"),
        ('"two\nlines, a, b, c";title;price', ";"),
        ('5", 6", 7";title', ","),
        ("sku\ttitle, of it\tprice", "\t"),
        ("\n\nsku|title", "|"),
        ("sep=;\nsku;a,b,c,d", ";"),
        ("sep=|\r\nsku|a", "|"),
        ("sku", ","),
    ],
)
def test_the_delimiter_is_counted_outside_of_quotes(header: str, delimiter: str):
    assert detect_delimiter(header) == delimiter


@pytest.mark.parametrize("line", ["sep=;", '"sep=;"', "SEP=;"])
@pytest.mark.parametrize("mark", ["", "\ufeff"])
def test_excel_says_its_delimiter_above_the_header(tmp_path: Path, line: str, mark: str):
    found = rows(tmp_path / "shop.csv", f"{mark}{line}\nsku;title, long\n1;sep=;\n")
    assert found[0] == "more values than the table has columns"
    assert rows(tmp_path / "shop.csv", f"{mark}{line}\nsku;title, long\n1;Bag\n") == [
        {"sku": "1", "title, long": "Bag"}
    ]


def test_a_tab_may_be_said_as_it_is_typed(tmp_path: Path):
    assert rows(tmp_path / "shop.csv", "sku\ttitle\n1\tBag\n", delimiter="\\t") == [{"sku": "1", "title": "Bag"}]


@pytest.mark.parametrize("quote", ["", '"'])
def test_a_cell_of_any_length_that_nobody_uses(tmp_path: Path, quote: str):
    found = rows(tmp_path / "shop.csv", f"sku,html,title\n1,{quote}{'x' * 140_000}{quote},Bag\n2,,Hat\n")
    assert [row["title"] for row in found if isinstance(row, dict)] == ["Bag", "Hat"]


@pytest.mark.parametrize(
    ("text", "titles"),
    [
        ('sku,title\n1,"24\\" screen"\n2,\\N\n3,"C:\\\\x, y"\n', ['24" screen', "", "C:\\x, y"]),  # MySQL
        ('sku,title\n1,"24"" screen"\n2,C:\\x\n3,\\N\n', ['24" screen', "C:\\x", ""]),  # Excel; \\N of PostgreSQL
        ("sku\ttitle\n1\t\\N\n2\tBag\n", ["", "Bag"]),
    ],
)
def test_quotes_and_nothing_are_read_as_databases_write_them(text: str, titles: list[str], tmp_path: Path):
    assert [row["title"] for row in rows(tmp_path / "t.csv", text)] == titles
