"""Tables and datasets as people have them, read without flags."""

import csv
import gzip
import io
import json
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile import Hostile, encoded, hostile_server, jpeg, pixels  # noqa: F401

from catalens.catalog.preparing import PrepareSpec, prepare
from catalens.catalog.sources import open_source
from catalens.catalog.storage import SPLITS, Catalog
from catalens.errors import CatalogError

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
    assert source.told == "read as cp1251, as in 'Красная', divided by ';'"
    (tmp_path / "said.csv").write_bytes(text(rows).encode("koi8-r"))
    assert list(open_source(str(tmp_path / "said.csv"), encoding="koi8-r").rows()) == rows


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
    assert (sum(card.rows.values()), card.left_out) == (2, {"picture path leaves the table's folder": 1})


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
        BURBERRY, spec=PrepareSpec.model_validate({"download": {"allow_private_hosts": True}}), tell=told.append
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
        ("shop/of/mine", "give a .csv"),
        ("s3", "neither a file or folder here"),
        ("nothing://x/y.csv", "cannot be read"),
    ],
)
def test_what_is_not_there_is_one_sentence(where: str, words: str):
    with pytest.raises(CatalogError, match=words) as caught:
        open_source(where)
    assert "\n" not in str(caught.value)
