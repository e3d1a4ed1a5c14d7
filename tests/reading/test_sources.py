"""Tables and datasets as people have them, read without flags."""

import csv
import gzip
import http.server
import io
import json
import os
import shutil
import tarfile
import threading
import types
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path

import datasets
import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile import Hostile, encoded, hostile_server, jpeg, pixels  # noqa: F401
from hypothesis import given, settings
from hypothesis import strategies as st

from catalens import prepare
from catalens.catalog import SPLITS, Catalog, Roles
from catalens.errors import CatalogError
from catalens.preparing import PrepareSpec
from catalens.reading import Columns, ReadSpec, Unreadable, open_source, picture_reason, pictures_of, read_values

BURBERRY = "DBQ/Burberry.Product.prices.United.States"
ROWS = [
    {"sku": "007", "title": "Größe 8, rot", "price": "1.290,50", "photo": "a.jpg"},
    {"sku": "008", "title": 'der "Neue"', "price": "5,00", "photo": "b.jpg"},
]


def text(rows: list[dict[str, str]], delimiter: str = ",") -> str:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, rows[0], delimiter=delimiter)
    writer.writeheader()
    writer.writerows(rows)
    return buffer.getvalue()


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "cp1252", "latin-1"])
def test_a_csv_of_any_encoding_and_delimiter(tmp_path: Path, encoding: str, delimiter: str):
    path = tmp_path / "shop.csv"
    path.write_bytes(text(ROWS, delimiter).encode(encoding))
    source = open_source(str(path))
    assert list(source.rows()) == list(source.rows()) == ROWS
    assert source.name == "shop"


def test_longer_texts_tell_their_encoding(tmp_path: Path):
    rows = [{"sku": str(n), "title": "Красная сумка из мягкой кожи", "photo": "a.jpg"} for n in range(20)]
    (tmp_path / "shop.csv").write_bytes(text(rows, ";").encode("cp1251"))
    source = open_source(str(tmp_path / "shop.csv"))
    assert list(source.rows()) == rows
    assert source.notice == "read as cp1251, as in 'Красная', divided by ';'"
    (tmp_path / "said.csv").write_bytes(text(rows).encode("koi8-r"))
    assert list(open_source(str(tmp_path / "said.csv"), ReadSpec(encoding="koi8-r")).rows()) == rows


def test_jsonl_with_broken_lines(tmp_path: Path):
    lines = [json.dumps({"sku": "1", "price": 5}), "{", "", "[1]", json.dumps({"sku": "2"})]
    (tmp_path / "shop.jsonl").write_text("\n".join(lines))
    rows = list(open_source(str(tmp_path / "shop.jsonl")).rows())
    assert rows[0] == {"sku": "1", "price": 5}
    assert str(rows[1]).startswith("not JSON: ")
    assert rows[2:] == ["not a JSON object", {"sku": "2"}]


@pytest.mark.parametrize("name", ["shop.csv", "shop.csv.gz", "shop.parquet"])
def test_any_url_of_fsspec(name: str):
    data = text(ROWS).encode()
    if name.endswith(".gz"):
        data = gzip.compress(data)
    elif name.endswith(".parquet"):
        buffer = io.BytesIO()
        pq.write_table(pa.Table.from_pylist(ROWS), buffer)
        data = buffer.getvalue()
    fsspec.filesystem("memory").pipe(f"/tables/{name}", data)
    source = open_source(f"memory://tables/{name}")
    assert list(source.rows()) == ROWS
    assert source.base == "memory://tables"


def test_pictures_beside_a_table_elsewhere(tmp_path: Path):
    memory = fsspec.filesystem("memory")
    for n in range(2):
        memory.pipe(f"/shop/photos/{n}.jpg", jpeg(n))
    rows = [{"sku": str(n), "title": "Bag", "price": "5", "photo": f"photos/{n}.jpg"} for n in range(2)]
    rows.append(rows[0] | {"sku": "evil", "photo": "../../etc/passwd"})
    memory.pipe("/shop/table.csv", text(rows).encode())
    _, card = prepare("memory://shop/table.csv", tmp_path / "out", spec=PrepareSpec(max_bad=0.5))
    assert (sum(card.rows.values()), card.left_out) == (2, {"picture path leaves the folder of the table": 1})


def stored(out: Path) -> dict[str, dict]:
    catalog = Catalog(out)
    id = catalog.card.roles.id
    return {row[id]: row for split in SPLITS if catalog.card.rows[split] for row in catalog.rows(split)}


@pytest.mark.parametrize("name", ["metadata.csv", "metadata.jsonl", "metadata.parquet"])
def test_a_folder_of_pictures_with_a_metadata_file(tmp_path: Path, name: str):
    for part in ("train", "test"):
        folder = tmp_path / "photos" / part
        folder.mkdir(parents=True)
        rows = [
            {"file_name": f"{n}.png", "sku": f"{part}{n}", "title": f"Bag {n}", "category": "BAGS"} for n in range(3)
        ]
        for n in range(3):
            (folder / f"{n}.png").write_bytes(encoded(pixels(n + 10 * (part == "test"), 80, 80), "PNG"))
        if name.endswith(".csv"):
            (folder / name).write_text(text(rows))
        elif name.endswith(".jsonl"):
            (folder / name).write_text("\n".join(map(json.dumps, rows)))
        else:
            pq.write_table(pa.Table.from_pylist(rows), folder / name)
    _, card = prepare(str(tmp_path / "photos"), tmp_path / "out")
    assert card.roles.fields == {"title": "text", "category": "category"}
    assert sorted(stored(tmp_path / "out")) == ["test0", "test1", "test2", "train0", "train1", "train2"]


def test_the_reference_case_needs_no_flags(tmp_path: Path, hostile: Hostile, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / BURBERRY
    folder.mkdir(parents=True)
    table = [
        {
            "website_name": "Burberry",
            "imageurl": hostile.url("jpeg", n),
            "product_code": f"80{n:06d}",
            "title": f"Check Scarf {n}",
            "category1_code": "WOMEN",
            "category2_code": "ACCESSORIES",
            "category3_code": ("SCARVES", "HATS")[n % 2],
            "price": 100.0 + n,
            "full_price": 390.0 + n,
            "full_price_eur": 350.0 + n,
        }
        for n in range(20)
    ]
    pq.write_table(pa.Table.from_pylist(table), folder / "data.parquet")
    told: list[str] = []
    out, card = prepare(
        BURBERRY, spec=PrepareSpec.model_validate({"download": {"allow_private_hosts": True}}), notice=told.append
    )
    assert out == Path("catalogs/Burberry.Product.prices.United.States")
    assert card.roles.id == "product_code"
    assert card.roles.fields == {"title": "text", "category3_code": "category", "full_price": "number"}
    assert told[0] == (
        "guessed from names and values: --image imageurl --id product_code --text title "
        "--category category3_code --number full_price"
    )
    rows = stored(tmp_path / out)
    assert len(rows) == 20
    assert rows["80000003"]["full_price"] == 393.0
    assert rows["80000003"]["image"] == jpeg(3)


def test_a_dataset_with_an_image_column(tmp_path: Path, drawn: Path):
    out, card = prepare(str(drawn), tmp_path / "out")
    assert sum(card.rows.values()) + sum(card.left_out.values()) == 80
    assert card.roles.fields == {"title": "text", "category3_code": "category", "full_price": "number"}
    first = Catalog(drawn).rows("train")[0]
    catalog = Catalog(out)
    assert first["image"] in [row["image"] for split in SPLITS for row in catalog.rows(split)]


@pytest.mark.parametrize(
    ("where", "words"),
    [
        ("nobody/no-such-dataset", "neither a file or folder here nor a Hugging Face dataset"),
        ("shop.csv", "there is no such file"),
        ("http://127.0.0.1:9/shop.csv", "cannot be read"),
        ("shop/of/mine", "there is no such file: give a table"),
        ("s3", "neither a file or folder here"),
        ("nothing://x/y.csv", "cannot be read"),
    ],
)
def test_what_is_not_there_is_one_sentence(where: str, words: str):
    with pytest.raises(CatalogError, match=words) as caught:
        open_source(where)
    assert "\n" not in str(caught.value)


# What has changed is noticed


def version(where: object) -> str:
    """The version of a source, the same when it is opened again."""
    one, again = open_source(str(where)).version, open_source(str(where)).version
    assert one == again
    return one


def test_a_folder_of_parquet_that_is_replaced_has_another_version(tmp_path: Path):
    folder = tmp_path / "shop"
    folder.mkdir()
    file = folder / "train.parquet"
    pq.write_table(pa.table({"sku": ["old"] * 10}), file)
    old = version(folder)
    assert version(folder) == old
    kept = file.stat()
    pq.write_table(pa.table({"sku": ["new"] * 10}), file)
    os.utime(file, ns=(kept.st_atime_ns, kept.st_mtime_ns))
    assert version(folder) != old
    assert list(open_source(str(folder)).rows()) == [{"sku": "new"}] * 10
    pq.write_table(pa.table({"sku": ["old"] * 10}), file)
    assert version(folder) == old
    copy = tmp_path / "elsewhere"
    shutil.copytree(folder, copy)
    assert version(copy) == old
    pq.write_table(pa.table({"sku": ["more"]}), folder / "train-2.parquet")
    assert version(folder) != old


def tar_of(path: Path, text: str) -> None:
    with tarfile.open(path, "w") as tar:
        for name, data in (("000.png", encoded(pixels(1, 80, 80), "PNG")), ("000.txt", text.encode())):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))


def test_a_changed_webdataset_has_another_version(tmp_path: Path):
    folder = tmp_path / "shop"
    folder.mkdir()
    tar_of(folder / "shard-000.tar", "old")
    old = version(folder)
    tar_of(folder / "shard-000.tar", "new")
    assert version(folder) != old
    assert [row["txt"] for row in open_source(str(folder)).rows(["txt"]) if isinstance(row, dict)] == ["new"]


@pytest.mark.parametrize("change", ["a value", "another folder"])
def test_changed_metadata_of_pictures_has_another_version(tmp_path: Path, change: str):
    folder = tmp_path / "photos"
    (folder / "a").mkdir(parents=True)
    (folder / "a" / "metadata.csv").write_text("file_name,sku\n1.png,old\n")
    old = version(folder)
    if change == "a value":
        (folder / "a" / "metadata.csv").write_text("file_name,sku\n1.png,new\n")
    else:
        (folder / "a").rename(folder / "b")
    assert version(folder) != old


class Dull(http.server.BaseHTTPRequestHandler):
    """A server that says nothing of a file's content but, where it has one, a mark."""

    body, mark = b"", ""

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.body)))
        if self.mark:
            self.send_header("ETag", self.mark)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(self.body)

    do_HEAD = do_GET  # noqa: N815

    def log_message(self, *_: object) -> None:
        """Write nothing."""


@pytest.fixture
def dull() -> Iterator[tuple[type[Dull], str]]:
    handler = type("Handler", (Dull,), {})
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield handler, f"http://127.0.0.1:{server.server_port}/shop.csv"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize("mark", ["", 'W/"weak"'])
def test_a_changed_table_of_a_server_that_gives_no_mark(dull: tuple[type[Dull], str], mark: str):
    handler, url = dull
    handler.mark = mark
    handler.body = b"sku,title\n1,Bag\n"
    old = version(url)
    handler.body = b"sku,title\n1,Hat\n"
    assert version(url) != old


def test_a_server_s_mark_is_believed(dull: tuple[type[Dull], str]):
    handler, url = dull
    handler.body, handler.mark = b"sku,title\n1,Bag\n", '"one"'
    old = version(url)
    handler.mark = '"two"'
    assert version(url) != old


def test_a_table_in_memory_that_is_replaced_has_another_version():
    memory = fsspec.filesystem("memory")
    memory.pipe("/tables/changing.csv", b"sku,title\n1,Bag\n")
    old = version("memory://tables/changing.csv")
    memory.pipe("/tables/changing.csv", b"sku,title\n1,Hat\n")
    assert version("memory://tables/changing.csv") != old


def test_a_revision_of_the_hub_is_the_version(monkeypatch: pytest.MonkeyPatch):
    """Without a network: what `datasets` resolves an id to, its files and their revision."""
    revision = "1"

    class Files(list[str]):
        @property
        def origin_metadata(self) -> list[tuple[str, str]]:
            return [("nobody/shop", revision)]

    class Builder:
        name, hash = "parquet", "module"

        @property
        def config(self) -> object:
            files = Files([f"hf://datasets/nobody/shop@{revision}/train.parquet"])
            return types.SimpleNamespace(data_files={"train": files})

        def as_streaming_dataset(self) -> dict[str, datasets.IterableDataset]:
            return {"train": datasets.Dataset.from_dict({"sku": [revision]}).to_iterable_dataset()}

    monkeypatch.setattr(datasets, "load_dataset_builder", lambda where, config: Builder())
    old = version("nobody/shop")
    revision = "2"
    assert version("nobody/shop") != old
    assert list(open_source("nobody/shop").rows()) == [{"sku": "2"}]


@pytest.mark.parametrize("moment", ["in the middle", "at the end"])
def test_a_table_that_is_replaced_is_never_mixed_with_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, moment: str
):
    folder = tmp_path / "shop"
    folder.mkdir()
    for n in range(8):
        (folder / f"{n}.png").write_bytes(encoded(pixels(n, 80, 80), "PNG"))

    def write(age: str) -> None:
        rows = [{"sku": f"{age}{n}", "title": f"{age} bag {n}", "photo": f"{n}.png"} for n in range(8)]
        pq.write_table(pa.Table.from_pylist(rows), folder / "train.parquet")

    columns = Columns("photo", "sku", {"title": "text"})
    write("old")
    if moment == "at the end":
        prepare(str(folder), tmp_path / "out", columns)
    else:
        with monkeypatch.context() as patch:
            patch.setattr("catalens.preparing.prepare.assign_splits", lambda *_, **__: 1 / 0)
            with pytest.raises(ZeroDivisionError):
                prepare(str(folder), tmp_path / "out", columns)
    write("new")
    try:
        prepare(str(folder), tmp_path / "out", columns)
        age = "new"
    except CatalogError:  # refused: what is there stays as it is
        age = "old"
    if age == "new" or moment == "at the end":
        assert sorted(stored(tmp_path / "out")) == [f"{age}{n}" for n in range(8)]
    else:
        assert not (tmp_path / "out").exists()


# One bad row costs a row

HOSTILE = [
    "\ud83d",
    "half \udcff",
    10**400,
    2**63,
    -(2**64),
    1e999,
    float("nan"),
    ["a", "b"],
    {"a": {"b": [1]}},
    "\x00",
    "x" * 3000,
    True,
    None,
]
ROLES = Roles(id="sku", fields={"title": "text", "kind": "category", "price": "number"})


@pytest.mark.parametrize("column", ["sku", "title", "kind", "price", "photo", "unused"])
def test_no_cell_of_json_ends_a_table(tmp_path: Path, column: str):
    picture = encoded(pixels(1, 80, 80), "PNG")
    (tmp_path / "a.png").write_bytes(picture)
    good = {"sku": "1", "title": "Bag", "kind": "BAGS", "price": 5, "photo": "a.png", "unused": 1}
    rows = [good, *(good | {column: cell} for cell in HOSTILE)]
    path = tmp_path / "shop.jsonl"
    deep = f'{{"sku": "2", "unused": {"[" * 5000}{"]" * 5000}}}'
    path.write_text("\n".join([*map(json.dumps, rows), deep, '{"sku": "3", "price": 1' + "0" * 5000 + "}"]))
    columns = Columns("photo", "sku", ROLES.fields)
    _, card = prepare(str(path), tmp_path / "out", columns, PrepareSpec(max_bad=1.0))
    assert sum(card.rows.values()) + sum(card.left_out.values()) == len(rows) + 2
    if column == "unused":
        assert sum(card.rows.values()) == len(rows)
    rejected = pq.read_table(tmp_path / "out" / "rejected.parquet").to_pylist()
    assert rejected[-2]["reason"].startswith("not JSON: maximum recursion depth")
    assert all(row["reason"] for row in rejected)


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ("\ud83d bag", "not text in 'title': '\\ud83d bag' holds bytes of another encoding, or half a character"),
        (["a", "b"], "a list in 'title', not a text: name the value inside, --text 'title[0]'"),
        ('["a", "b"]', "a list in 'title', not a text: name the value inside, --text 'title[0]'"),
        ("['a']", "a list in 'title', not a text: name the value inside, --text 'title[0]'"),
        ({"a": 1}, "an object in 'title', not a text: name the value inside, --text title.a"),
        ('{"a": {"b": 1}}', "an object in 'title', not a text: name the value inside, --text title.a.b"),
        ({}, "an object in 'title', not a text"),
        (b"2", "bytes in 'title', not a text"),
        (float("inf"), "an infinite number in 'title', not a text"),
        (Unreadable("row group 2 of the file, broken"), "cannot be read in 'title': row group 2 of the file, broken"),
        (float("nan"), "no value in 'title'"),
        (Decimal("sNaN"), "no value in 'title'"),
        (10**5000, "a number of more digits than anyone reads in 'title', not a text"),
    ],
    ids=lambda value: repr(value)[:30] if not isinstance(value, int) else "huge",
)
def test_what_is_no_text_is_named(cell: object, reason: str):
    row = {"sku": "1", "title": cell, "kind": "BAGS", "price": 5}
    assert read_values(row, ROLES, {}, "refuse") == ("1", {}, reason)
    id = read_values(row | {"sku": cell, "title": "Bag"}, ROLES, {})
    said = reason.replace("'title'", "'sku'").replace("a text", "an id")
    assert id[2] == said.replace("--text title", "--id sku").replace("--text 'title", "--id 'sku")
    id[0].encode()


CELLS = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(-(10**30), 10**30),
        st.floats(),
        st.text(st.characters(exclude_categories=[]), max_size=6),
        st.binary(max_size=4),
        st.decimals(),
        st.dates(),
        st.timedeltas(),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=2), st.dictionaries(st.sampled_from("ab"), inner, max_size=2)),
    max_leaves=3,
)


@given(st.fixed_dictionaries({}, optional=dict.fromkeys(("sku", "title", "kind", "price", "photo"), CELLS)))
def test_whatever_a_row_holds_it_is_values_or_a_reason_that_can_be_stored(row: dict[str, object]):
    id, values, reason = read_values(row, ROLES, {})
    assert (reason is None) == bool(values)
    json.dumps([id, values, reason], ensure_ascii=False).encode()
    if reason is None:
        assert values["price"] is None or isinstance(values["price"], float) or abs(values["price"]) <= 2**53
    pictures = pictures_of(row.get("photo"))
    why = "" if pictures else picture_reason(row.get("photo"), "photo")
    assert bool(why) != bool(pictures)
    json.dumps([*map(repr, pictures), why]).encode()


@settings(max_examples=60)
@given(st.binary(max_size=300), st.sampled_from([".csv", ".tsv", ".jsonl", ".csv.gz", ".parquet"]))
def test_whatever_the_bytes_of_a_table_its_rows_end_or_it_is_refused(
    tmp_path_factory: pytest.TempPathFactory, data: bytes, suffix: str
):
    path = tmp_path_factory.mktemp("bytes") / f"shop{suffix}"
    path.write_bytes(b"sku,title,photo\n" + data)
    try:
        rows = list(open_source(str(path)).rows())
    except CatalogError as error:
        assert "\n" not in str(error)  # noqa: PT017
        return
    assert all(isinstance(row, str | dict) for row in rows)


def test_a_table_that_breaks_off_is_refused_with_its_last_row(tmp_path: Path):
    path = tmp_path / "shop.csv.gz"
    data = gzip.compress(text([{"sku": str(n), "title": str(n * 7919)} for n in range(60_000)]).encode())
    path.write_bytes(data[: len(data) // 2])
    with pytest.raises(CatalogError, match=r"cannot be read beyond row [1-9]\d+ \(Compressed file ended"):
        list(open_source(str(path)).rows())


def test_columns_of_jsonl_are_those_of_all_first_rows(tmp_path: Path):
    path = tmp_path / "shop.jsonl"
    path.write_text('{"sku": "1"}\n{"sku": "2", "price": 5}\n')
    assert open_source(str(path)).columns == ("sku", "price")


def test_an_encoding_that_nobody_knows_is_named(tmp_path: Path):
    (tmp_path / "shop.csv").write_text("sku,title\n1,Bag\n")
    with pytest.raises(CatalogError, match="--encoding klingon is none that Python knows"):
        open_source(str(tmp_path / "shop.csv"), ReadSpec(encoding="klingon"))


def test_guessed_flags_can_be_pasted(tmp_path: Path):
    rows = [{"Image Src": "a.png", "Handle": "1", "Title": "it's a bag"}]
    (tmp_path / "shop.csv").write_text(text(rows))
    (tmp_path / "a.png").write_bytes(encoded(pixels(1, 80, 80), "PNG"))
    told: list[str] = []
    prepare(str(tmp_path / "shop.csv"), tmp_path / "out", notice=told.append)
    assert told[0] == "guessed from names and values: --image 'Image Src' --id Handle --text Title"


def test_the_folder_where_one_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    pq.write_table(pa.table({"sku": ["P1", "P2"]}), tmp_path / "shop.parquet")
    monkeypatch.chdir(tmp_path)
    source = open_source(".")
    assert [row["sku"] for row in source.rows() if isinstance(row, dict)] == ["P1", "P2"]
    assert source.name == tmp_path.name
