"""Exports as shops make them, prepared as wholes: which rows count, where pictures are, which split a row has."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hostile import Hostile, encoded, hostile_server, pixels  # noqa: F401

from catalens import prepare
from catalens.catalog import Catalog
from catalens.config import from_flags
from catalens.errors import CatalogError, TooManyBadRowsError
from catalens.preparing import PrepareSpec
from catalens.reading import Columns, ReadSpec, TableSpec, open_source

PICTURE = Columns("photo", "sku", {"title": "text"})


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.parent.mkdir(exist_ok=True, parents=True)
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, list(dict.fromkeys(name for row in rows for name in row)), restval="")
    writer.writeheader()
    writer.writerows(rows)
    path.write_text(buffer.getvalue())
    return path


def pictures(folder: Path, count: int, ending: str = "png") -> None:
    folder.mkdir(exist_ok=True, parents=True)
    for number in range(count):
        data = encoded(pixels(number, 80, 80), {"png": "PNG", "jpg": "JPEG"}[ending])
        (folder / f"{number}.{ending}").write_bytes(data)


REFUSE = PrepareSpec(table=TableSpec(missing="refuse"))


def rejected(out: Path) -> list[str]:
    path = out / "rejected.parquet"
    return [row["reason"] for row in pq.read_table(path).to_pylist()] if path.exists() else []


# WooCommerce ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sku", [True, False], ids=["parents with SKU", "parents without"])
@pytest.mark.parametrize("lacks", ["Regular price", "Images", "both"])
def test_parents_whose_variants_have_the_price_or_picture_do_not_count_as_bad(sku: bool, lacks: str, tmp_path: Path):
    pictures(tmp_path, 24)
    rows = []
    for n in range(8):
        id, name = str(3 * n + 10), f"P{n}" if sku else ""
        whole = {"Regular price": "10.00", "Images": f"{3 * n}.png"}
        own = {key: value for key, value in whole.items() if lacks not in (key, "both")}
        parent = {"ID": id, "Type": "variable", "SKU": name, "Name": f"Mug {n}", "Categories": "Mugs", **own}
        rows.append(parent | {"Parent": ""})
        for v in (1, 2):
            variant = {"Name": f"Mug {n}, {v}", "Regular price": f"{10 + v}.00", "Images": f"{3 * n + v}.png"}
            rows.append(
                {"ID": f"{id}{v}", "Type": "variation", "SKU": f"V{n}{v}", "Parent": name or f"id:{id}", **variant}
            )
    told: list[str] = []
    where = str(written(tmp_path / "wc.csv", rows))
    out, card = prepare(where, tmp_path / "out", spec=REFUSE, notice=told.append)
    assert sum(card.rows.values()) == 16
    assert card.left_out == {"a product whose variants have rows of their own": 8}
    assert any("whose variants have rows of their own: 8" in text for text in told)
    read = [row for split in card.rows if card.rows[split] for row in Catalog(out).rows(split)]
    assert {row["Categories"] for row in read} == {"Mugs"}  # said on the parent's row only
    assert sum(card.products.values()) == 8


def test_a_product_without_price_and_without_variants_is_a_bad_row(tmp_path: Path):
    pictures(tmp_path, 6)
    rows = [{"ID": n, "SKU": f"S{n}", "Name": f"Mug {n}", "Images": f"{n}.png", "Regular price": n} for n in range(6)]
    rows = [row | {"Parent": "S0" if n == 1 else ""} for n, row in enumerate(rows)]
    rows[3]["Regular price"] = ""
    with pytest.raises(TooManyBadRowsError, match=r"1 of 6 rows .* 1 no value in 'Regular price'"):
        prepare(str(written(tmp_path / "wc.csv", rows)), tmp_path / "out", spec=REFUSE)


# Where pictures are ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("form", "root"),
    [
        ("../pix/{n}.png", "."),
        ("../pix/{n}.png", "pix"),
        ("{n}.png", "pix"),
        ("pix/{n}.png", "."),
        ("/pix/{n}.png", "."),
        ("/{n}.png", "pix"),
        ("{here}/pix/{n}.png", "."),
        ("file://{here}/pix/{n}.png", "pix"),
        ("..\\pix\\{n}.png", "."),
    ],
)
def test_pictures_outside_the_folder_of_the_table(form: str, root: str, tmp_path: Path):
    pictures(tmp_path / "pix", 5)
    rows = [{"sku": n, "title": "Bag", "photo": form.format(n=n, here=tmp_path)} for n in range(5)]
    table = str(written(tmp_path / "tables" / "t.csv", rows))
    spec = PrepareSpec(image_root=str(tmp_path / root))
    _, card = prepare(table, tmp_path / "out", PICTURE, spec)
    assert sum(card.rows.values()) == 5
    again = prepare(table, tmp_path / "out", PICTURE, spec)[1]
    assert again.content_hash == card.content_hash
    if not form.startswith(("{n}", "pix")):
        with pytest.raises(TooManyBadRowsError, match=r"picture path leaves the folder of the table|No such file"):
            prepare(table, tmp_path / "none", PICTURE)


def test_no_root_lets_a_path_out_of_it(tmp_path: Path):
    pictures(tmp_path / "pix", 1)
    (tmp_path / "inner").mkdir()
    rows = [{"sku": 0, "title": "Bag", "photo": "../pix/0.png"}]
    table = str(written(tmp_path / "tables" / "t.csv", rows))
    with pytest.raises(TooManyBadRowsError, match="picture path leaves the folder"):
        prepare(table, tmp_path / "out", PICTURE, PrepareSpec(image_root=str(tmp_path / "inner")))


@pytest.mark.parametrize("folder", [False, True], ids=["files", "folder"])
def test_links_out_of_the_folder_are_told_and_taken_from_a_root(folder: bool, tmp_path: Path):
    pictures(tmp_path / "store", 4)
    shop = tmp_path / "shop"
    shop.mkdir()
    if folder:
        (shop / "pix").symlink_to(tmp_path / "store")
    else:
        (shop / "pix").mkdir()
        for n in range(4):
            (shop / "pix" / f"{n}.png").symlink_to(tmp_path / "store" / f"{n}.png")
    table = str(written(shop / "t.csv", [{"sku": n, "title": "Bag", "photo": f"pix/{n}.png"} for n in range(4)]))
    with pytest.raises(TooManyBadRowsError, match=r"leaves the folder of the table: it is a link, .* --image-root"):
        prepare(table, tmp_path / "out", PICTURE)
    _, card = prepare(table, tmp_path / "out", PICTURE, PrepareSpec(image_root=str(tmp_path)))
    assert sum(card.rows.values()) == 4


# Columns that are asked for, ids that are not there --------------------------------------------------------------


def test_a_few_addresses_are_asked_for_where_no_name_and_no_ending_tells(hostile: Hostile, tmp_path: Path):
    rows = [
        {"sku": n, "title": f"Bag {n}", "page": hostile.url("missing", n), "front": hostile.url("jpeg", n)}
        for n in range(12)
    ]
    spec = from_flags(PrepareSpec, {"download": {"allow_private_hosts": True}})
    told: list[str] = []
    _, card = prepare(str(written(tmp_path / "t.csv", rows)), tmp_path / "out", spec=spec, notice=told.append)
    assert told[:2] == [
        "page: 0 of 3 addresses that were asked for are pictures",
        "front: 3 of 3 addresses that were asked for are pictures",
    ]
    assert sum(card.rows.values()) == 12
    assert sum(hostile.counts[f"/missing/{n}"] for n in range(12)) == 3
    assert sum(hostile.counts[f"/jpeg/{n}"] for n in range(12)) == 15


def test_rows_without_any_id_are_numbered_and_that_is_said(tmp_path: Path):
    pictures(tmp_path, 5)
    rows = [{"title": f"Bag {n}", "picture_bytes": (tmp_path / f"{n}.png").read_bytes()} for n in range(5)]

    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    told: list[str] = []
    _, card = prepare(str(tmp_path / "t.parquet"), tmp_path / "out", notice=told.append)
    assert "no column names the product: 'row' is the number of the row; --id names a column" in told
    ids = [row["row"] for split in card.rows if card.rows[split] for row in Catalog(tmp_path / "out").rows(split)]
    assert sorted(ids) == ["1", "2", "3", "4", "5"]


# Splits ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("column", ["split", "Subset", "partition"])
@pytest.mark.parametrize("names", [("train", "test"), ("TRAIN", "valid", "test"), ("training", "dev", "Test")])
def test_the_splits_of_a_column_are_kept(column: str, names: tuple[str, ...], tmp_path: Path):
    pictures(tmp_path, 30)
    rows = [
        {"sku": n, "title": f"Bag {n}", "photo": f"{n}.png", column: names[min(n // 10, len(names) - 1)]}
        for n in range(30)
    ]
    told: list[str] = []
    table = str(written(tmp_path / "t.csv", rows))
    out, card = prepare(table, tmp_path / "out", PICTURE, notice=told.append)
    assert any("splits are those of" in text for text in told)
    assert {row["title"] for row in Catalog(out).rows("test")} == {
        f"Bag {n}" for n in range(10 * (len(names) - 1), 30)
    }
    assert card.rows["train"] == 10 or len(names) == 2
    spec = PrepareSpec(fractions={"train": 0.5, "validation": 0.25, "test": 0.25})
    prepare(table, tmp_path / "drawn", PICTURE, spec, notice=told.append)
    assert any("are pooled" in text for text in told)


@pytest.mark.parametrize("values", [("A", "B"), ("train", "other"), ("train", "train")])
def test_a_column_that_names_other_things_is_no_split(values: tuple[str, str], tmp_path: Path):
    pictures(tmp_path, 20)
    rows = [{"sku": n, "title": "Bag", "photo": f"{n}.png", "split": values[n % 2]} for n in range(20)]
    told: list[str] = []
    prepare(str(written(tmp_path / "t.csv", rows)), tmp_path / "out", PICTURE, notice=told.append)
    assert not any("splits are those" in text for text in told)


def test_parts_that_are_no_splits_are_pooled_and_that_is_said(tmp_path: Path):
    for part in ("train", "extra"):
        pictures(tmp_path / "shop" / part, 8)
        lines = [json.dumps({"file_name": f"{n}.png", "title": f"{part} {n}"}) for n in range(8)]
        (tmp_path / "shop" / part / "metadata.jsonl").write_text("\n".join(lines))
    told: list[str] = []
    prepare(str(tmp_path / "shop"), tmp_path / "out", notice=told.append)
    assert "extra, train are pooled: own splits are kept where all are called train, validation or test" in told


# Pictures -------------------------------------------------------------------------------------------------------


def test_pictures_with_something_odd_are_taken_with_a_note(tmp_path: Path):
    pictures(tmp_path, 12, "jpg")
    for n in range(3):
        path = tmp_path / f"{n}.jpg"
        path.write_bytes(path.read_bytes()[:-2])
    whole = (tmp_path / "3.jpg").read_bytes()
    (tmp_path / "4.jpg").write_bytes(whole[: len(whole) * 3 // 4])
    rows = [{"sku": n, "title": "Bag", "photo": f"{n}.jpg"} for n in range(12)]
    told: list[str] = []
    spec = PrepareSpec(max_bad=0.5)
    out, card = prepare(str(written(tmp_path / "t.csv", rows)), tmp_path / "out", PICTURE, spec, notice=told.append)
    assert "taken all the same: 3 JPEG pictures without an end mark" in told
    assert rejected(out) == ["picture: cannot be decoded (image file is truncated)"]
    stored = [row["image"] for split in card.rows if card.rows[split] for row in Catalog(out).rows(split)]
    assert len(stored) == 11
    assert all(data.endswith(b"\xff\xd9") for data in stored)


@pytest.mark.parametrize("flag", ["us", "xx"])
def test_a_configuration_that_is_not_there_is_refused_with_the_names(flag: str, tmp_path: Path):
    configs = "".join(f"- config_name: {name}\n  data_files: {name}.parquet\n" for name in ("us", "eu"))
    (tmp_path / "README.md").write_text(f"---\nconfigs:\n{configs}---\n")
    for name in ("us", "eu"):
        pq.write_table(pa.table({"sku": [name], "title": ["Bag"]}), tmp_path / f"{name}.parquet")

    if flag == "us":
        assert [
            row["sku"] for row in open_source(str(tmp_path), ReadSpec(config=flag)).rows() if isinstance(row, dict)
        ] == ["us"]
    else:
        with pytest.raises(CatalogError, match="us, eu"):
            open_source(str(tmp_path), ReadSpec(config=flag))


def test_a_server_that_refuses_the_client_says_which_flag_names_another(hostile: Hostile, tmp_path: Path):
    rows = [{"sku": n, "title": "Bag", "photo": hostile.url("forbidden", n)} for n in range(4)]
    spec = from_flags(PrepareSpec, {"download": {"allow_private_hosts": True}})
    with pytest.raises(TooManyBadRowsError, match=r"4 HTTP 403.*want another client's name: --user-agent"):
        prepare(str(written(tmp_path / "t.csv", rows)), tmp_path / "out", PICTURE, spec)
