"""A table becomes a catalogue; what cannot be used is named, and nothing else is lost."""

import csv
import io
import random
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

import catalens
from catalens import prepare as prepare_source
from catalens.catalog import SPLITS, Catalog, CatalogCard, Roles, kind_of_reason
from catalens.errors import CatalogError, TooManyBadRowsError
from catalens.preparing import PrepareSpec
from catalens.reading import NO_PICTURE, PARENT, Columns, TableSpec

ROLES = Roles(id="code", fields={"title": "text", "kind": "category", "price": "number"})
HEADER = ["code", "title", "kind", "price", "photo"]
GOOD = {"code": "0042", "title": "Red Bag", "kind": "BAGS", "price": "129.5", "photo": "a.png"}


def picture(shade: int = 0, kind: str = "PNG", mode: str = "RGB") -> bytes:
    """A picture of its own for every shade; one that is half transparent is of one colour."""
    if mode == "RGBA":
        image = Image.new(mode, (6, 4), (0, 0, 9, 40))
    else:
        image = Image.frombytes("RGB", (16, 16), random.Random(shade).randbytes(3 * 16 * 16)).convert(mode)
    buffer = io.BytesIO()
    image.save(buffer, kind)
    return buffer.getvalue()


noisy = io.BytesIO()
Image.effect_noise((64, 64), 50).save(noisy, "PNG")
BROKEN = noisy.getvalue()[:2000]


def table(folder: Path, *rows: dict[str, Any], name: str = "table.csv", **options: Any) -> Path:
    """A table of good rows with changes, beside its pictures a.png, b.png, broken.png and page.html."""
    folder.mkdir(exist_ok=True)
    for file, data in {
        "a.png": picture(1),
        "b.png": picture(2),
        "broken.png": BROKEN,
        "page.html": b"<html>",
        "empty.png": b"",
    }.items():
        (folder / file).write_bytes(data)
    path = folder / name
    whole = [GOOD | row for row in rows]
    if path.suffix == ".parquet":
        pq.write_table(pa.Table.from_pylist(whole), path)
    else:
        with path.open("w", newline="", encoding=options.pop("encoding", "utf-8")) as file:
            writer = csv.DictWriter(file, HEADER, delimiter="\t" if path.suffix == ".tsv" else ",", **options)
            writer.writeheader()
            writer.writerows(whole)
    return path


def prepare_table(path: Path, out: Path, **options: Any) -> CatalogCard:
    return prepare_source(str(path), out, Columns("photo", ROLES.id, ROLES.fields), PrepareSpec(**options))[1]


def prepare(path: Path, **options: Any) -> CatalogCard:
    return prepare_table(path, path.parent.parent / "out", **options)


def stored(path: Path, **options: Any) -> list[dict[str, Any]]:
    prepare(path, **options)
    catalog = Catalog(path.parent.parent / "out")
    return [row for split in SPLITS if catalog.card.rows[split] for row in catalog.rows(split)]


def rejected(path: Path) -> dict[int, str]:
    return {
        row["row"]: row["reason"] for row in pq.read_table(path.parent.parent / "out/rejected.parquet").to_pylist()
    }


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return tmp_path / "source"


@pytest.mark.parametrize("name", ["table.csv", "table.tsv", "TABLE.CSV", "table.parquet"])
def test_a_table_becomes_a_catalogue(source: Path, name: str):
    path = table(source, {}, {"code": "7", "photo": "b.png"}, name=name)
    rows = sorted(stored(path), key=lambda row: row["code"])
    assert rows == [
        {"image": picture(1), "code": "0042", "title": "Red Bag", "kind": "BAGS", "price": 129.5},
        {"image": picture(2), "code": "7", "title": "Red Bag", "kind": "BAGS", "price": 129.5},
    ]


def test_the_card_says_where_the_rows_come_from(source: Path):
    card = prepare(table(source, {}))
    assert card.provenance["command"] == "prepare"
    assert card.provenance["table"] == "table.csv"
    assert len(card.provenance["version"]) == 64
    assert card.provenance["image_column"] == "photo"


@pytest.mark.parametrize(
    "title",
    [
        "Bag, red",
        'the "Kensington"',
        "two\nlines",
        "two\r\nlines",
        "Größe 羊 👗",
        "'",
        " spaces ",
        "NULL",
        "nan",
        "=1+1",
    ],
)
@pytest.mark.parametrize("name", ["table.csv", "table.tsv", "table.parquet"])
def test_text_is_kept_as_it_stands(source: Path, title: str, name: str):
    assert stored(table(source, {"title": title}, name=name))[0]["title"] == title


@pytest.mark.parametrize("options", [{"encoding": "utf-8-sig"}, {"quoting": csv.QUOTE_ALL}, {"lineterminator": "\n"}])
def test_csv_dialects(source: Path, options: dict[str, Any]):
    assert stored(table(source, {"title": "Größe, 8"}, **options))[0]["title"] == "Größe, 8"


def test_the_columns_that_nobody_wants_may_hold_anything(source: Path):
    path = table(source, *({"code": str(n)} for n in range(3)))
    lines = path.read_text().splitlines()
    extra = ["stock", "1", "2", "many"]
    path.write_text("\n".join(f"{line},{more}" for line, more in zip(lines, extra, strict=True)))
    assert len(stored(path)) == 3


@pytest.mark.parametrize(
    ("prices", "kept"),
    [
        (["129", "0", "-7"], [129, 0, -7]),
        (["129", "1.5", " 7 "], [129.0, 1.5, 7.0]),
        (["129.0", "3.0"], [129.0, 3.0]),
        (["1e3", "+5", ".5", "5."], [1000.0, 5.0, 0.5, 5.0]),
    ],
)
def test_whole_numbers_stay_whole_where_all_are(source: Path, prices: list[str], kept: list[float]):
    path = table(source, *({"code": str(n), "price": price} for n, price in enumerate(prices)))
    got = [row["price"] for row in sorted(stored(path), key=lambda row: row["code"])]
    assert got == kept
    assert [type(price) for price in got] == [type(price) for price in kept]


@pytest.mark.parametrize("price", ["129", "129.0", "1.29e2"])
def test_one_number_has_one_hash_however_it_is_written(source: Path, price: str, tmp_path: Path):
    hashes = set()
    for n, written in enumerate((price, "129.0")):
        path = table(source, {"price": written}, {"price": "0.5"})
        hashes.add(prepare_table(path, tmp_path / f"out{n}").content_hash)
    assert len(hashes) == 1


@pytest.mark.parametrize(
    ("price", "kept"),
    [(129, 129), (129.0, 129.0), (2**40, 2**40), (pa.scalar("12.50").cast(pa.decimal128(9, 2)).as_py(), 12.5)],
)
def test_numbers_of_parquet_keep_their_kind(source: Path, price: Any, kept: float):
    (row,) = stored(table(source, {"price": price}, name="table.parquet"))
    assert (row["price"], type(row["price"])) == (kept, type(kept))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"code": ""}, "no value in 'code'"),
        ({"code": "  "}, "no value in 'code'"),
        ({"title": "", "kind": " \n ", "price": ""}, "no field has a value"),
        ({"price": "cheap"}, "not a number in 'price': 'cheap'"),
        ({"price": "12 to 14"}, "not a number in 'price': '12 to 14'"),
        ({"price": "1_000"}, "not a number in 'price': '1_000'"),
        ({"price": "$"}, "not a number in 'price': '$'"),
        ({"price": "5 or 6"}, "not a number in 'price': '5 or 6'"),
        ({"title": "x" * 100_000}, "too long: 100,000 characters in 'title', more than 2,000"),
        ({"code": "x" * 2001}, "too long: 2,001 characters in 'code'"),
        ({"price": "nan"}, "not a number in 'price': 'nan'"),
        ({"price": "inf"}, "not a number in 'price': 'inf'"),
        ({"price": "1e999"}, "not a number in 'price': '1e999'"),
        ({"price": "٣"}, "not a number in 'price': '٣'"),
        ({"price": "9" * 999}, f"not a number in 'price': '{'9' * 40}'"),
        ({"photo": ""}, "no value in 'photo'"),
        ({"photo": "absent.png"}, "picture cannot be read: No such file or directory"),
        ({"photo": "."}, "picture cannot be read: Is a directory"),
        ({"photo": "x" * 5000}, "picture cannot be read: File name too long"),
        ({"photo": "a.png\x00.jpg"}, "picture path is none"),
        ({"photo": "../secret.png"}, "picture path leaves the folder of the table"),
        ({"photo": "inner/../../secret.png"}, "picture path leaves the folder of the table"),
        ({"photo": "/etc/passwd"}, "picture path leaves the folder of the table"),
        ({"photo": "link.png"}, "picture path leaves the folder of the table"),
        ({"photo": "broken.png"}, "picture: cannot be decoded"),
        ({"photo": "empty.png"}, "picture: no bytes"),
        ({"photo": "page.html"}, "picture: not a picture in one of JPEG"),
        ({"photo": "https://shop.example/a.png"}, "host not found: shop.example"),
    ],
    ids=lambda value: repr(value)[:50],
)
def test_a_bad_row_is_named_and_left_out(source: Path, change: dict[str, str], reason: str):
    path = table(source, {}, {"code": "8"} | change, {"code": "7"})  # a row of a product of its own
    (source.parent / "secret.png").write_bytes(picture())
    (source / "link.png").symlink_to(source.parent / "secret.png")
    card = prepare(path, max_bad=0.5)
    assert sum(card.rows.values()) == 2
    assert list(rejected(path)) == [2]
    assert rejected(path)[2].startswith(reason)
    assert card.left_out == {kind_of_reason(rejected(path)[2]): 1}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"title": None}, "no value in 'title'"),
        ({"price": float("nan")}, "no value in 'price'"),
        ({"price": float("inf")}, "an infinite number in 'price', not a number"),
        ({"price": None}, "no value in 'price'"),
        ({"photo": None}, "no value in 'photo'"),
        ({"code": None}, "no value in 'code'"),
    ],
    ids=str,
)
def test_nulls_of_parquet(source: Path, change: dict[str, Any], reason: str):
    path = table(source, {"price": 1.5}, {"price": 1.5, "code": "8"} | change, name="table.parquet")
    prepare(path, max_bad=0.5, table=TableSpec(missing="refuse"))
    assert rejected(path) == {2: reason}


def test_a_circle_of_links_is_a_bad_row(source: Path):
    path = table(source, {}, {"photo": "one.png"})
    (source / "one.png").symlink_to(source / "two.png")
    (source / "two.png").symlink_to(source / "one.png")
    prepare(path, max_bad=0.5)
    assert list(rejected(path)) == [2]


def test_a_row_of_the_wrong_length_is_a_bad_row(source: Path):
    path = table(source, {})
    with path.open("a") as file:
        file.write("8,Scarf\n9,Scarf,BAGS,5,a.png,more\n\n10,Scarf,BAGS,5,a.png\n")
    card = prepare(path, max_bad=0.9)
    assert sum(card.rows.values()) == 2
    assert rejected(path) == {2: "no value in 'photo'", 3: "more values than the table has columns"}


def test_too_many_bad_rows_stop_with_the_reasons_and_leave_nothing(source: Path):
    rows: list[dict[str, str]] = [{"code": str(n)} for n in range(16)]
    path = table(source, *rows, *({"code": f"bad{n}", "photo": "absent.png"} for n in range(4)))
    with pytest.raises(TooManyBadRowsError) as caught:
        prepare(path, max_bad=0.125)
    assert str(caught.value).startswith(
        f"4 of 20 rows of {path} cannot be used, more than --max-bad 12.5%: "
        "4 No such file or directory; such as row 17 (bad0)"
    )
    assert sorted(found.name for found in source.parent.iterdir()) == ["out.work", "source"]
    assert sum(prepare(path, max_bad=0.2).rows.values()) == 16


def test_no_good_row_is_too_many_bad_rows_whatever_is_allowed(source: Path):
    with pytest.raises(
        TooManyBadRowsError,
        match=r"1 of 1 rows of .* cannot be used, no row is left: 1 no value in .photo.; such as row 1 ",
    ):
        prepare(table(source, {"photo": ""}), max_bad=1.0)


def write(text: str | bytes) -> Any:
    return lambda path: path.write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("table.csv", lambda path: None, "there is no such file"),
        ("table.csv", lambda path: path.mkdir(), "neither a file or folder here nor a Hugging Face dataset"),
        ("table.xlsx", write("PK\x03\x04"), "a damaged zip archive"),
        ("table", write("<html>"), "is a web page, not a table"),
        ("table.csv", write("%PDF-1.7"), "is a PDF, not a table"),
        ("table.csv", write(""), "the file is empty"),
        ("table.csv", write("\n\r\n"), "the file is empty"),
        ("table.csv", write("a,b\n1,2\n"), "no column 'photo'; its columns are 'a', 'b'"),
        ("table.csv", write(",".join(HEADER)), "the table has no rows"),
        ("table.csv", write(",".join(HEADER) + "\n\n\n"), "the table has no rows"),
        ("table.csv", write(",".join([*HEADER, "title"]) + "\n1,2,3,4,5,6\n"), "column 'title' stands twice"),
        (
            "table.csv",
            write(",".join(HEADER) + '\n1,"a"b,3,4,5\n'),
            "none of its first rows can be read: a stray quote: ',' expected after",
        ),
        ("table.csv", write('"code"x,photo\n1,2\n'), "its header cannot be read: a stray quote"),
        (
            "table.csv",
            write("code,título\n".encode("latin-1")),
            "no column 'photo'; its columns are 'code', 'título'",
        ),
        ("table.parquet", write("PAR1 nothing"), "cannot be read"),
        ("table.parquet", write(""), "the file is empty"),
        (
            "table.parquet",
            lambda path: pq.write_table(pa.table({"a": [1]}), path),
            "no column 'photo'; its columns are 'a'",
        ),
        (
            "table.parquet",
            lambda path: pq.write_table(pa.table([[1]] * 6, names=[*HEADER, "title"]), path),
            "cannot be read|column 'title' stands twice",
        ),
        (
            "table.parquet",
            lambda path: pq.write_table(pa.table({name: pa.array([], "string") for name in HEADER}), path),
            "the table has no rows",
        ),
    ],
)
def test_a_table_that_cannot_be_read_is_one_sentence(tmp_path: Path, name: str, make: Any, message: str):
    path = tmp_path / name
    make(path)
    with pytest.raises(CatalogError, match=message) as caught:
        prepare_table(path, tmp_path / "out")
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_an_existing_folder_is_refused_before_the_pictures_are_read(source: Path):
    path = table(source, {"photo": "absent.png"})
    (source.parent / "out").mkdir()
    (source.parent / "out" / "mine").write_text("")
    with pytest.raises(CatalogError, match="exists already"):
        prepare(path)
    assert not (source.parent / "out.work").exists()


@pytest.mark.parametrize(
    "code", ["../../x", "/etc/passwd", "a/b", "CON", "x" * 300, "'; DROP TABLE", "\x1b[31m", "..", "商品"]
)
def test_an_id_is_text_and_nothing_more(source: Path, code: str):
    assert [row["code"] for row in stored(table(source, {"code": code}))] == [code]
    assert sorted(path.name for path in source.parent.iterdir()) == ["out", "out.work", "source"]


def test_what_is_transparent_is_stored_on_white(source: Path):
    path = table(source, {"photo": "clear.png"})
    (source / "clear.png").write_bytes(picture(mode="RGBA"))
    (row,) = stored(path)
    image = Image.open(io.BytesIO(row["image"]))
    assert (image.mode, image.getpixel((0, 0))) == ("RGB", (215, 215, 216))


def test_progress_counts_every_row_in_every_stage(source: Path):
    seen: list[tuple[str, int, int | None, str]] = []
    path = table(source, {}, {"photo": "absent.png"}, {})
    columns = Columns("photo", ROLES.id, ROLES.fields)

    def progress(stage: str, done: int, total: int | None = None, note: str = "") -> None:
        seen.append((stage, done, total, note))

    prepare_source(str(path), source.parent / "out", columns, PrepareSpec(max_bad=0.5), progress=progress)
    assert seen[:2] == [("reading", 3, 3, ""), ("pictures", 0, 2, "")]  # two rows share a picture
    assert [told[:3] for told in seen[2:4]] == [("pictures", n, 2) for n in (1, 2)]
    assert seen[3][3] == "1 No such file or directory"
    assert seen[4:] == [("storing", n, 3, "") for n in (1, 2, 3)]


def test_the_same_table_gives_the_same_bytes(source: Path, tmp_path: Path):
    path = table(source, *({"code": str(n)} for n in range(9)), {"photo": "absent.png"})
    for name in ("one", "two"):
        prepare_table(path, tmp_path / name / "out", max_bad=0.2)
    one, two = (
        {file.relative_to(folder): file.read_bytes() for file in folder.rglob("*") if file.is_file()}
        for folder in (tmp_path / "one/out", tmp_path / "two/out")
    )
    assert one == two


def test_a_picture_is_decoded_once_and_known_for_good(source: Path, monkeypatch: pytest.MonkeyPatch):
    path = table(source, *({"code": str(n), "photo": f"{n}.png"} for n in range(40)))
    for n in range(40):
        (source / f"{n}.png").write_bytes(picture(n, mode="P" if n % 2 else "RGB"))  # half are encoded again
    opened: list[Any] = []
    real = Image.open
    monkeypatch.setattr(Image, "open", lambda *a, **k: opened.append(a) or real(*a, **k))
    prepare(path)
    assert len(opened) == 40
    out = source.parent / "out"
    facts = [facts for split in SPLITS for facts in Catalog(out).picture_facts(split)]
    assert {fact.size for fact in facts} == {(16, 16)}
    page = catalens.check(out).page.read_text(encoding="utf-8")
    assert len(opened) == 40 + page.count('src="data:image/')  # small copies of those that a finding names


@given(st.lists(st.tuples(st.integers(0, 25), st.integers(0, 25)), min_size=1, max_size=60))
def test_variants_and_shared_pictures_never_straddle_splits(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, int]]
):
    folder = tmp_path_factory.mktemp("straddle") / "source"
    folder.mkdir()
    kinds = ("PNG", "BMP", "TIFF")  # one picture under three names
    for shade in {shade for _, shade in rows}:
        for kind in kinds:
            (folder / f"{shade}.{kind}").write_bytes(picture(shade, kind))
    path = folder / "table.csv"
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(HEADER)
        writer.writerows(
            [f"P{id}", "Bag", "BAGS", 5, f"{shade}.{kinds[n % 3]}"] for n, (id, shade) in enumerate(rows)
        )
    shares = {"train": 0.4, "validation": 0.3, "test": 0.3}
    prepare_table(path, folder.parent / "out", fractions=shares, max_bad=1.0)
    catalog = Catalog(folder.parent / "out")
    splits_of: dict[object, set[str]] = defaultdict(set)
    for split in SPLITS:
        for row in catalog.rows(split) if catalog.card.rows[split] else []:
            splits_of[row["code"]].add(split)
            splits_of[Image.open(io.BytesIO(row["image"])).getpixel((0, 0))].add(split)
    assert {len(splits) for splits in splits_of.values()} == {1}
    assert sum(catalog.card.rows.values()) + sum(catalog.card.left_out.values()) == len(rows)
    assert set(catalog.card.left_out) <= {"tied to products of two splits"}


def test_a_table_that_grows_keeps_every_row_where_it_was(source: Path, tmp_path: Path):
    def splits(count: int) -> dict[str, str]:
        path = table(source, *({"code": str(n), "photo": f"{n}.png"} for n in range(count)))
        for n in range(count):
            (source / f"{n}.png").write_bytes(picture(n))
        prepare_table(path, tmp_path / f"out{count}")
        catalog = Catalog(tmp_path / f"out{count}")
        return {row["code"]: split for split in SPLITS for row in catalog.rows(split, ["code"])}

    before, after = splits(60), splits(90)
    assert before.items() <= after.items()


def test_what_is_said_once_for_a_product_is_said_for_its_rows(source: Path):
    rows = [{}, {"title": "", "kind": ""}, {"photo": ""}, {"code": "8", "photo": ""}]
    path = table(source, *rows, {"photo": "b.png", "title": ""})
    told: list[str] = []
    columns = Columns("photo", ROLES.id, ROLES.fields)
    _, card = prepare_source(str(path), source.parent / "out", columns, PrepareSpec(max_bad=0.34), notice=told.append)
    assert card.left_out == {NO_PICTURE: 1, "no value in 'photo'": 1}
    stored = [row for split in SPLITS if card.rows[split] for row in Catalog(source.parent / "out").rows(split)]
    assert [(row["title"], row["kind"]) for row in stored] == [(GOOD["title"], GOOD["kind"])] * 3
    assert "rows with texts or categories of an earlier row of their product: 2" in told
    assert "rows left out, and not counted as bad, whose product has a picture in another row: 1" in told


@pytest.mark.parametrize(
    ("reason", "kind"),
    [
        ("picture: cannot be decoded (broken PNG file)", "cannot be decoded"),
        ("picture: not a picture in one of JPEG, PNG", "not a picture"),
        ("picture cannot be read: No such file or directory", "No such file or directory"),
        ("HTTP 404", "HTTP 404"),
        ("host not found: shop.example", "host not found"),
    ],
)
def test_reasons_are_counted_by_what_is_wrong(reason: str, kind: str):
    assert kind_of_reason(reason) == kind


def exported(
    source: Path, lines: list[str], missing: Any = "keep"
) -> tuple[list[tuple[Any, ...]], CatalogCard, list[str]]:
    """Rows without pictures, the card and all notices of a catalogue of a shop's export, its columns guessed."""
    table(source)
    (source / "export.csv").write_text("\n".join(lines))
    told: list[str] = []
    spec = PrepareSpec(max_bad=0, fractions={"train": 1.0}, table=TableSpec(missing=missing))
    folder, card = prepare_source(str(source / "export.csv"), source.parent / missing, spec=spec, notice=told.append)
    return [tuple(row.values())[1:] for row in Catalog(folder).rows("train")], card, told


def test_a_parent_says_what_its_variants_lack(source: Path):
    """As WooCommerce exports products with variations: the parent has no price."""
    lines = [
        "ID,Type,SKU,Name,Regular price,Categories,Images,Parent",
        "1,variable,X,Mug,,Home > Mugs,a.png,",
        "2,variation,X-1,Mug - blue,5.50,,b.png,X",
        "3,variation,X-2,Mug - red,6.50,,,X",
        "4,simple,Y,Hat,7.50,Hats,a.png,",
    ]
    (parent, *others), card, told = exported(source, lines)
    assert "--id 'Parent|SKU'" in told[0]
    assert parent == ("X", "Mug", "Home > Mugs", None)
    assert others == [("X", "Mug - blue", "Home > Mugs", 5.5), ("Y", "Hat", "Hats", 7.5)]
    assert card.left_out == {NO_PICTURE: 1}
    rows, card, _ = exported(source, lines, missing="refuse")
    assert rows == others
    assert card.left_out == {PARENT: 1, NO_PICTURE: 1}


def test_further_pictures_of_a_product_teach_title_and_category(source: Path):
    """As Shopify exports them: title and type stand on the first row, a price on the rows of variants."""
    lines = [
        "Handle,Title,Type,Variant Price,Image Src",
        "mug,Blue Mug,Mugs,5.50,a.png",
        "mug,,,,b.png",
        "mug,,,6.50,",
        "hat,Red Hat,Hats,7.50,a.png",
    ]
    rows, card, told = exported(source, lines)
    assert rows == [
        ("mug", "Blue Mug", "Mugs", 5.5),
        ("mug", "Blue Mug", "Mugs", None),
        ("hat", "Red Hat", "Hats", 7.5),
    ]
    assert card.left_out == {NO_PICTURE: 1}
    assert "rows without a value: Variant Price 1, of 3" in told


@pytest.mark.parametrize("name", ["table.csv", "table.parquet"])
@pytest.mark.parametrize(("price", "kind"), [("129", int), ("129.5", float)])
def test_what_a_row_lacks_is_a_null(source: Path, name: str, price: str, kind: type):
    nothing = "" if name == "table.csv" else None
    rows = [{"price": price}, *({"code": f"8{column}", column: nothing} for column in ("title", "kind", "price"))]
    path = table(source, *({"price": price} | row for row in rows), name=name)
    told: list[str] = []
    columns, out = Columns("photo", ROLES.id, ROLES.fields), source.parent / "out"
    _, card = prepare_source(str(path), out, columns, PrepareSpec(fractions={"train": 1.0}), notice=told.append)
    stored = Catalog(out).rows("train")
    assert [[name for name in ROLES.fields if row[name] is None] for row in stored] == [
        [],
        ["title"],
        ["kind"],
        ["price"],
    ]
    assert {type(row["price"]) for row in stored} == {kind, type(None)}
    assert "rows without a value: title 1, kind 1, price 1, of 4" in told
    assert "Rows without a value: `title` in 1, `kind` in 1, `price` in 1." in (out / "README.md").read_text()
    assert Catalog(out).rows("train", ["title"])[1] == {"title": None}
    assert datasets.load_dataset(str(out), split="train", cache_dir=str(source / "cache"))["price"][3] is None
    refused = prepare_table(path, source.parent / "refused", max_bad=0.8, table=TableSpec(missing="refuse"))
    assert refused.left_out == {f"no value in {column!r}": 1 for column in ("title", "kind", "price")}
    assert card.content_hash != refused.content_hash


def test_another_rule_for_missing_values_reads_the_rows_anew_and_keeps_the_pictures(source: Path):
    path = table(source, {}, {"code": "8", "title": ""})
    assert sum(prepare(path).rows.values()) == 2
    told: list[str] = []
    columns, spec = (
        Columns("photo", ROLES.id, ROLES.fields),
        PrepareSpec(max_bad=0.5, table=TableSpec(missing="refuse")),
    )
    _, card = prepare_source(str(path), source.parent / "out", columns, spec, notice=told.append)
    assert sum(card.rows.values()) == 1
    assert "read anew, for another missing; pictures that are there are kept" in told


def test_no_field_that_all_rows_have_is_told_to_be_missing(source: Path):
    told: list[str] = []
    columns = Columns("photo", ROLES.id, ROLES.fields)
    prepare_source(str(table(source, {}, {"code": "8"})), source.parent / "out", columns, notice=told.append)
    assert not any("without a value" in text for text in told)
    assert "Rows without" not in (source.parent / "out" / "README.md").read_text()


def test_rows_without_a_category_are_a_group_of_their_own(source: Path):
    rows = [{"code": str(n), "photo": f"{n}.png", "kind": ("BAGS", "")[n % 2]} for n in range(200)]
    path = table(source, *rows)
    for n in range(200):
        (source / f"{n}.png").write_bytes(picture(n))
    told: list[str] = []
    columns = Columns("photo", ROLES.id, ROLES.fields)
    prepare_source(str(path), source.parent / "out", columns, notice=told.append)
    catalog = Catalog(source.parent / "out")
    for split, share in (("train", 80), ("validation", 10), ("test", 10)):
        kinds = Counter(row["kind"] for row in catalog.rows(split))
        assert kinds["BAGS"] == pytest.approx(share, abs=1.5)
        assert kinds[None] == pytest.approx(share, abs=1.5)
    few = table(source, *({**row, "kind": "BAGS"} for row in rows[:30]), {"code": "x", "kind": ""})
    prepare_source(str(few), source.parent / "few", columns, notice=told.append)
    assert "categories too rare to be in every split: no category (1)" in told
