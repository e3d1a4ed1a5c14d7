"""A catalogue on disk is whole or absent, and ordinary tools open it."""

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from catalens.catalog import (
    SPLITS,
    Catalog,
    CatalogWriter,
    Pictures,
    RejectedRow,
    Roles,
    picture_facts,
    storage,
    writer,
)
from catalens.catalog.storage import FACTS
from catalens.errors import CatalogError

ROLES = Roles(id="code", fields={"title": "text", "kind": "category", "price": "number", "width": "number"})


def picture(shade: int) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (8, 6), (shade, 100, 200)).save(buffer, "PNG")
    return buffer.getvalue()


def product(number: int) -> dict[str, Any]:
    return {"title": f"Bag, no. {number} “ü”", "kind": "BAGS", "price": 10.5 + number, "width": number}


def fill(folder: Path, splits: str = "ttvtet", leave_out: bool = True) -> CatalogWriter:
    """A catalogue of one row a letter: train, validation, evaluation."""
    names = {"t": "train", "v": "validation", "e": "test"}
    with CatalogWriter(folder, ROLES, {"command": "test"}, ["width"]) as writer:
        for number, split in enumerate(splits):
            writer.add(names[split], picture(number), f"P{number // 2}", product(number))
        if leave_out:
            writer.reject(RejectedRow(row=7, id="P9", reason="picture: not a picture in one of JPEG"))
            writer.reject(RejectedRow(row=8, id="", reason="no value in 'code'"))
    return writer


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_pictures_are_read_by_row_across_groups_and_files(tmp_path: Path, monkeypatch):
    monkeypatch.setattr(writer, "GROUP_ROWS", 2)
    monkeypatch.setattr(writer, "SHARD_BYTES", 1)
    fill(tmp_path / "shop", "t" * 7 + "v")
    catalog = Catalog(tmp_path / "shop")
    assert len(catalog.files("train")) > 1
    pictures = Pictures(catalog, "train")
    assert len(pictures) == 7
    assert [pictures[row] for row in (6, 0, 3, 1, 5, 2, 4)] == [picture(row) for row in (6, 0, 3, 1, 5, 2, 4)]
    for file in catalog.files("train"):
        file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(CatalogError, match=r"cannot be read .*: prepare the table again"):
        Pictures(catalog, "train")[0]


@pytest.fixture
def catalog(tmp_path: Path) -> Path:
    fill(tmp_path / "shop")
    return tmp_path / "shop"


def test_the_files_are_those_of_the_design(catalog: Path):
    assert sorted(contents(catalog)) == [
        "README.md",
        "catalog.json",
        "data/test-00000-of-00001.parquet",
        "data/train-00000-of-00001.parquet",
        "data/validation-00000-of-00001.parquet",
        "rejected.parquet",
    ]
    assert [path.name for path in catalog.parent.iterdir()] == ["shop"]


@pytest.mark.parametrize("splits", ["ttvtet", "ttt", "eeevt" * 4])
def test_datasets_opens_it_as_it_is(tmp_path: Path, splits: str, monkeypatch: pytest.MonkeyPatch):
    from datasets import Image as ImageFeature
    from datasets import Value, load_dataset
    from datasets.utils import logging

    logging.disable_progress_bar()
    monkeypatch.setattr(writer, "GROUP_BYTES", 200)
    monkeypatch.setattr(writer, "SHARD_BYTES", 400)
    fill(tmp_path / "shop", splits)
    opened: Any = load_dataset(str(tmp_path / "shop"), cache_dir=str(tmp_path / "cache"))
    names = {"train": "t", "validation": "v", "test": "e"}
    assert list(opened) == [split for split in SPLITS if names[split] in splits]
    for split in opened:
        numbers = [number for number, letter in enumerate(splits) if letter == names[split]]
        assert opened[split].features == {
            "image": ImageFeature(),
            "code": Value("string"),
            "title": Value("string"),
            "kind": Value("string"),
            "price": Value("float64"),
            "width": Value("int64"),
            FACTS: {name: Value(dtype) for name, dtype in storage.FACT_TYPES.items()},
        }
        rows = list(opened[split])
        assert [row["image"].getpixel((0, 0)) for row in rows] == [(number, 100, 200) for number in numbers]
        assert [{name: row[name] for name in ROLES.fields} for row in rows] == [product(number) for number in numbers]


def test_it_reads_back_in_order(catalog: Path):
    rows = Catalog(catalog).rows("train")
    assert [row["image"] for row in rows] == [picture(number) for number in (0, 1, 3, 5)]
    assert [row["code"] for row in rows] == ["P0", "P0", "P1", "P2"]
    assert rows[1] == {"image": picture(1), "code": "P0", **product(1)}
    assert isinstance(rows[1]["width"], int)
    assert isinstance(rows[1]["price"], float)


def test_facts_of_pictures_are_read_without_the_pictures(catalog: Path, monkeypatch: pytest.MonkeyPatch):
    expected = [picture_facts(picture(number)) for number in (0, 1, 3, 5)]
    read: list[Any] = []
    real = storage.group_batches
    monkeypatch.setattr(storage, "group_batches", lambda *a: read.append(a[2]) or real(*a))
    monkeypatch.setattr(Image, "open", None)
    assert Catalog(catalog).picture_facts("train") == expected
    assert read == [[FACTS]]
    assert Catalog(catalog).rows("train", ["title", FACTS])[0] == {"title": product(0)["title"], FACTS: expected[0]}


def test_a_catalogue_of_format_1_has_the_same_facts():
    catalog = Catalog(Path(__file__).parents[1] / "assets/v0.1/catalog")
    assert catalog.card.format == 1
    for split, count in catalog.card.rows.items():
        rows = catalog.rows(split, ["image", FACTS])
        assert [row[FACTS] for row in rows] == [picture_facts(row["image"]) for row in rows]
        assert len(catalog.picture_facts(split)) == count
        assert "image" not in catalog.rows(split, [FACTS])[0]


def test_facts_of_another_form_are_one_sentence(catalog: Path):
    for name in ("train", "test"):
        path = catalog / f"data/{name}-00000-of-00001.parquet"
        table = pq.read_table(path).drop_columns([FACTS])
        pq.write_table(table if name == "train" else table.append_column(FACTS, [[{"md5": "0"}]]), path)
        with pytest.raises(CatalogError, match=r"cannot be read .*: prepare the table again"):
            Catalog(catalog).picture_facts(name)


def test_wanted_columns_only(catalog: Path):
    assert Catalog(catalog).rows("test", ["title", "code"]) == [{"title": product(4)["title"], "code": "P2"}]


def test_the_card_says_what_there_is(catalog: Path):
    card = json.loads((catalog / "catalog.json").read_text())
    assert card.pop("content_hash").startswith("sha256:")
    assert card == {
        "format": 2,
        "name": "shop",
        "roles": {"id": "code", "fields": dict(ROLES.fields), "image": "image", "pictures": 1, "inputs": []},
        "provenance": {"command": "test"},
        "rows": {"train": 4, "validation": 1, "test": 1},
        "products": {"train": 3, "validation": 1, "test": 1},
        "integer_fields": ["width"],
        "left_out": {"not a picture": 1, "no value in 'code'": 1},
        "figures": {},
    }
    assert Catalog(catalog).card.rows == card["rows"]


def test_rows_that_were_left_out_are_named(catalog: Path):
    assert pq.read_table(catalog / "rejected.parquet").to_pylist() == [
        {"row": 7, "id": "P9", "url": "", "reason": "picture: not a picture in one of JPEG"},
        {"row": 8, "id": "", "url": "", "reason": "no value in 'code'"},
    ]


def test_the_dataset_card_has_front_matter_and_counts(catalog: Path):
    _, front, text = (catalog / "README.md").read_text().split("---\n", 2)
    assert [entry["split"] for entry in yaml.safe_load(front)["configs"][0]["data_files"]] == list(SPLITS)
    assert "| train | 4 | 3 |" in text
    assert "Left out: 1 (not a picture), 1 (no value in 'code')." in text


def test_nothing_left_out_leaves_no_list(tmp_path: Path):
    fill(tmp_path / "shop", leave_out=False)
    assert not (tmp_path / "shop" / "rejected.parquet").exists()
    assert "Left out" not in (tmp_path / "shop" / "README.md").read_text()


def test_large_splits_are_cut_into_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(writer, "GROUP_BYTES", 2 * len(picture(0)))
    monkeypatch.setattr(writer, "SHARD_BYTES", 4 * len(picture(0)))
    fill(tmp_path / "shop", "t" * 11 + "vvvv")
    files = {path.name: pq.ParquetFile(path).metadata for path in (tmp_path / "shop" / "data").iterdir()}
    assert {name: (data.num_rows, data.num_row_groups) for name, data in files.items()} == {
        "train-00000-of-00003.parquet": (4, 2),
        "train-00001-of-00003.parquet": (4, 2),
        "train-00002-of-00003.parquet": (3, 2),
        "validation-00000-of-00001.parquet": (4, 2),
    }
    assert [row["width"] for row in Catalog(tmp_path / "shop").rows("train")] == list(range(11))


def test_the_same_rows_give_the_same_bytes(tmp_path: Path):
    for name in ("one", "two"):
        fill(tmp_path / name / "shop")
    assert contents(tmp_path / "one") == contents(tmp_path / "two")


def test_the_content_hash_is_of_the_rows_not_of_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    whole = fill(tmp_path / "whole").card.content_hash
    monkeypatch.setattr(writer, "GROUP_BYTES", 1)
    monkeypatch.setattr(writer, "SHARD_BYTES", 1)
    assert fill(tmp_path / "shards").card.content_hash == whole
    assert len(list((tmp_path / "shards" / "data").glob("train-*"))) == 4
    assert fill(tmp_path / "other split", "ttvtee").card.content_hash != whole
    assert fill(tmp_path / "one more", "ttvtett").card.content_hash != whole
    assert fill(tmp_path / "none left out", leave_out=False).card.content_hash == whole


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt])
def test_a_block_that_fails_leaves_nothing(tmp_path: Path, error: type[BaseException]):
    def rows():
        with CatalogWriter(tmp_path / "shop", ROLES, {}, ["width"]) as writer:
            writer.add("train", picture(0), "P0", product(0))
            raise error

    with pytest.raises(error):
        rows()
    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_swept_away(tmp_path: Path):
    (tmp_path / ".shop.partial" / "data").mkdir(parents=True)
    (tmp_path / ".shop.partial" / "data" / "train-00007.partial").write_bytes(b"half")
    fill(tmp_path / "shop")
    assert [path.name for path in tmp_path.iterdir()] == ["shop"]
    assert len(list((tmp_path / "shop" / "data").iterdir())) == 3  # one a split


def test_an_existing_folder_is_refused_and_kept(catalog: Path):
    before = contents(catalog)
    with pytest.raises(CatalogError, match=r"shop exists already: choose another --out or remove it first"):
        fill(catalog)
    assert contents(catalog) == before


def test_an_existing_file_is_refused(tmp_path: Path):
    (tmp_path / "shop").write_text("mine")
    with pytest.raises(CatalogError, match="exists already"):
        fill(tmp_path / "shop")


def test_a_place_below_a_file_is_refused(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(CatalogError, match=r"shop cannot be written \(Not a directory\): .* choose another --out"):
        fill(tmp_path / "file" / "shop")


def test_an_empty_folder_is_filled_and_parents_are_made(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    fill(tmp_path / "empty")
    fill(tmp_path / "a" / "b" / "shop")
    assert Catalog(tmp_path / "empty").card.content_hash == Catalog(tmp_path / "a" / "b" / "shop").card.content_hash


@pytest.mark.parametrize(
    "roles",
    [
        Roles(id="image", fields={"title": "text"}),
        Roles(id="code", fields={"image": "text"}),
        Roles(id="code", fields={"code": "text"}),
    ],
)
def test_a_column_has_one_role(tmp_path: Path, roles: Roles):
    with pytest.raises(CatalogError, match=r"column '(image|code)' has two roles"):
        CatalogWriter(tmp_path / "shop", roles, {})


@pytest.mark.parametrize("name", ["full.price", "größe in cm", "a b", 'q"q', "row", "条"])
def test_columns_may_have_any_name(tmp_path: Path, name: str):
    roles = Roles(id="code.x", fields={name: "number"}, image="photo")
    with CatalogWriter(tmp_path / "shop", roles, {}) as writer:
        writer.add("train", picture(1), "P0", {name: 1.5})
    assert Catalog(tmp_path / "shop").rows("train") == [{"photo": picture(1), "code.x": "P0", name: 1.5}]
    assert Catalog(tmp_path / "shop").rows("train", [name]) == [{name: 1.5}]


def test_the_name_of_a_picture_ends_by_its_format(tmp_path: Path):
    heads = {b"\xff\xd8\xff": "jpg", picture(0)[:8]: "png", b"RIFF0000WEBP": "webp", b"GIF89a": "gif", b"II*": "img"}
    with CatalogWriter(tmp_path / "shop", Roles(id="code", fields={}), {}) as writer:
        for number, head in enumerate(heads):
            writer.add("train", head, str(number), {})
    table = pq.read_table(tmp_path / "shop" / "data" / "train-00000-of-00001.parquet")
    expected = [f"train-{number:07d}.{extension}" for number, extension in enumerate(heads.values())]
    assert [image["path"] for image in table["image"].to_pylist()] == expected


def test_missing_splits_and_columns_are_named_with_those_there_are(tmp_path: Path):
    fill(tmp_path / "shop", "ttv")
    opened = Catalog(tmp_path / "shop")
    for split in ("test", "training", ""):
        with pytest.raises(CatalogError, match=f"split '{split}' has no rows; splits with rows: train, validation$"):
            opened.rows(split)
    with pytest.raises(CatalogError, match="no column 'colour'; columns are image, code, title, kind, price, width"):
        opened.rows("train", ["title", "colour"])


def card_with(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        card = json.loads((folder / "catalog.json").read_text())
        change(card)
        (folder / "catalog.json").write_text(json.dumps(card))

    return damage


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-20])


SHARD = "data/train-00000-of-00001.parquet"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / "catalog.json").unlink(), "is not a catalogue .* make one with `catalens prepare`"),
        (lambda folder: (folder / "catalog.json").write_text("{"), "not a catalogue of format 1 or 2"),
        (lambda folder: (folder / "catalog.json").write_bytes(b"\xff\xfe"), "not a catalogue of format 1 or 2"),
        (card_with(lambda card: card.update(format=3)), "not a catalogue of format 1 or 2"),
        (card_with(lambda card: card.pop("roles")), "not a catalogue of format 1 or 2"),
        (card_with(lambda card: card.update(more=1)), "not a catalogue of format 1 or 2"),
        (lambda folder: cut(folder / SHARD), "data: cannot be read"),
        (lambda folder: (folder / SHARD).unlink(), "data: 0 train rows, but 4 in catalog.json"),
        (lambda folder: (folder / SHARD).write_text("<html>"), "data: cannot be read"),
        (
            lambda folder: (folder / SHARD).write_bytes((folder / SHARD.replace("train", "test")).read_bytes()),
            "data: 1 train rows, but 4 in catalog.json: prepare the table again",
        ),
    ],
)
def test_a_damaged_catalogue_is_one_sentence(catalog: Path, damage: Callable[[Path], None], message: str):
    damage(catalog)
    with pytest.raises(CatalogError, match=message) as caught:
        Catalog(catalog).rows("train")
    assert str(catalog) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_no_folder_is_no_catalogue(tmp_path: Path):
    (tmp_path / "file").write_text("mine")
    for name in ("absent", "file"):
        with pytest.raises(CatalogError, match="is not a catalogue"):
            Catalog(tmp_path / name)
