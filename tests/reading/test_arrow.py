"""Parquet and Arrow as they come: odd types, damaged pages, narrow floats."""

import datetime
import decimal
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from catalens import prepare
from catalens.catalog import SPLITS, Catalog, Roles
from catalens.preparing import PrepareSpec
from catalens.reading import Columns, Unreadable, batch_rows, open_source, picture_reason, read_values

ROLES = Roles(id="sku", fields={"title": "text", "kind": "category", "price": "number"})
LATE = pa.array([2**60], pa.timestamp("ms"))


def parquet(path: Path, table: pa.Table, **options: Any) -> Path:
    pq.write_table(table, path, **options)
    return path


def shop(rows: int, **more: pa.Array) -> pa.Table:
    columns: dict[str, Any] = {
        "sku": [f"S{n}" for n in range(rows)],
        "title": [f"Lamp number {n}" for n in range(rows)],
        "kind": ["LAMPS"] * rows,
        "price": [20.5 + n for n in range(rows)],
        "photo": [f"{n}.png" for n in range(rows)],
    }
    return pa.table(columns | more)


def damage(path: Path, column: int, group: int = 0) -> Path:
    """Overwrite the middle of the pages of a column in a row group."""
    chunk = pq.read_metadata(path).row_group(group).column(column)
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data = bytearray(path.read_bytes())
    data[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(data)
    return path


@pytest.mark.parametrize(
    ("kind", "values"),
    [(pa.float32(), [20.99, 84.38, 5.0, None, 1e10]), (pa.float16(), [20.984375, 84.375, 5.0, None, 0.1])],
)
def test_a_narrow_float_is_its_shortest_decimal(kind: pa.DataType, values: list[float | None]):
    narrow = np.float32 if kind == pa.float32() else np.float16
    column = pa.array([None if value is None else narrow(value) for value in values], kind)
    read = [row["price"] for row in batch_rows(pa.record_batch({"price": column}))]
    assert read == [None if value is None else float(str(narrow(value))) for value in values]
    coded = column.dictionary_encode()
    assert [row["p"] for row in batch_rows(pa.record_batch({"p": coded}))] == read


@pytest.mark.parametrize("folder", [False, True])
def test_a_float32_price_is_learnt_as_it_was_written(tmp_path: Path, folder: bool):
    prices = [20.99, 84.38, 129.95]
    where = tmp_path / "shop" / "train.parquet" if folder else tmp_path / "shop.parquet"
    where.parent.mkdir(exist_ok=True)
    parquet(where, shop(3).set_column(3, "price", pa.array(prices, pa.float32())))
    source = open_source(str(where.parent if folder else where))
    assert [row["price"] for row in source.rows(["price"]) if isinstance(row, dict)] == prices


def test_a_dataset_that_is_no_parquet_gives_narrow_floats_likewise(tmp_path: Path):
    (tmp_path / "shop").mkdir()
    table = pa.table({"sku": ["1"], "price": pa.array([20.99], pa.float32())})
    with pa.ipc.new_stream(str(tmp_path / "shop" / "train.arrow"), table.schema) as writer:
        writer.write_table(table)
    assert list(open_source(str(tmp_path / "shop")).rows()) == [{"sku": "1", "price": 20.99}]


@pytest.mark.parametrize("of_a_dataset", [False, True])
def test_a_column_that_nobody_asked_for_may_hold_anything(tmp_path: Path, of_a_dataset: bool):
    where = tmp_path / "shop" / "train.parquet"
    where.parent.mkdir()
    odd = {
        "seen": pa.concat_arrays([LATE, LATE, LATE]),
        "took": pa.array([1, 2, 3], pa.duration("ns")),
        "zone": pa.array([1, 2, 3], pa.timestamp("s", tz="Mars/Olympus")),
        "half": pa.Array.from_buffers(pa.string(), 3, pa.array([b"\xff"] * 3, pa.binary()).buffers()),
    }
    parquet(where, shop(3, **odd))
    source = open_source(str(where.parent if of_a_dataset else where))
    assert len(source.first("title")) == 3
    assert isinstance(source.first()[0]["seen"], Unreadable)
    wanted = [ROLES.id, *ROLES.fields]
    assert [read_values(row, ROLES, {})[2] for row in source.rows(wanted) if isinstance(row, dict)] == [None] * 3
    assert all("seen" not in row for row in source.rows(wanted))


def test_a_bad_cell_of_a_used_column_is_its_row_s_reason(tmp_path: Path):
    names = [b"Lamp", b"Half \xf0\x9f", b"Hat"]
    half = pa.Array.from_buffers(pa.string(), 3, pa.array(names, pa.binary()).buffers())
    path = parquet(tmp_path / "shop.parquet", shop(3).set_column(1, "title", half))
    reasons = [read_values(row, ROLES, {})[2] for row in open_source(str(path)).rows() if isinstance(row, dict)]
    assert reasons[0] is reasons[2] is None
    assert str(reasons[1]).startswith("cannot be read in 'title': ")


@pytest.mark.parametrize("compression", ["none", "snappy", "zstd"])
def test_a_damaged_row_group_costs_its_rows_only(tmp_path: Path, compression: str):
    options = {"row_group_size": 10, "compression": compression, "write_page_checksum": True}
    path = damage(parquet(tmp_path / "shop.parquet", shop(30), **options), 1, group=1)
    rows = list(open_source(str(path)).rows(["sku", "title"]))
    assert [row["sku"] for row in rows if isinstance(row, dict)] == [f"S{n}" for n in range(30)]
    bad = [n for n, row in enumerate(rows) if isinstance(row, dict) and isinstance(row["title"], Unreadable)]
    assert bad == list(range(10, 20))
    unread = rows[10]["title"] if isinstance(rows[10], dict) else None
    assert isinstance(unread, Unreadable)
    assert unread.reason.startswith("row group 2 of the file, ")
    assert list(open_source(str(path)).rows(["sku"])) == [{"sku": f"S{n}"} for n in range(30)]


def test_a_damaged_page_of_a_table_is_reported_row_by_row(tmp_path: Path):
    from PIL import Image

    for n in range(30):
        Image.fromarray(np.random.default_rng(n).integers(0, 256, (16, 16, 3), np.uint8)).save(tmp_path / f"{n}.png")
    path = damage(parquet(tmp_path / "shop.parquet", shop(30), row_group_size=10), 3, group=2)
    spec = PrepareSpec(max_bad=0.5)
    _, card = prepare(str(path), tmp_path / "out", Columns("photo", "sku", ROLES.fields), spec)
    assert sum(card.rows.values()) == 20
    assert card.left_out == {"cannot be read in 'price'": 10}
    having = {row["sku"] for split in SPLITS if card.rows[split] for row in Catalog(tmp_path / "out").rows(split)}
    assert having == {f"S{n}" for n in range(20)}


def test_a_dataset_s_images_and_codes_are_read_from_parquet_as_they_stand(tmp_path: Path):
    features = datasets.Features({"image": datasets.Image(), "sku": datasets.Value("string")})
    made = datasets.Dataset.from_dict({"image": [{"bytes": b"PNG", "path": None}], "sku": ["1"]}, features=features)
    (tmp_path / "shop").mkdir()
    pq.write_table(made.data.table, tmp_path / "shop" / "train.parquet")
    assert list(open_source(str(tmp_path / "shop")).rows()) == [
        {"image": {"bytes": b"PNG", "path": None}, "sku": "1"}
    ]


CELLS = (
    st.none(),
    st.integers(-(2**63), 2**64 - 1),
    st.floats(),
    st.text(max_size=8),
    st.binary(max_size=8),
    st.decimals(allow_nan=False, allow_infinity=False, places=3, min_value=-(10**20), max_value=10**20),
    st.dates(),
    st.datetimes(),
    st.timedeltas(),
    st.booleans(),
    st.lists(st.integers(0, 9), max_size=2),
    st.dictionaries(st.sampled_from("ab"), st.text(max_size=2), min_size=1, max_size=2),
)


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_whatever_parquet_holds_a_row_is_values_or_a_reason(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
):
    path = tmp_path_factory.mktemp("any") / "shop.parquet"
    columns = {}
    for name in ("sku", "title", "kind", "price", "photo"):
        cell = data.draw(st.sampled_from(CELLS))
        try:
            columns[name] = pa.array([data.draw(cell) for _ in range(3)])
        except (pa.ArrowException, OverflowError):
            columns[name] = pa.array([None] * 3)
    pq.write_table(pa.table(columns), path)
    rows = list(open_source(str(path)).rows())
    assert len(rows) == 3
    for row in rows:
        assert isinstance(row, dict)
        id, values, reason = read_values(row, ROLES, {})
        assert (reason is None) == bool(values)
        id.encode()
        assert picture_reason(row["photo"], "photo") is None or "photo" in str(picture_reason(row["photo"], "photo"))


@pytest.mark.parametrize(
    "value", [datetime.date(2026, 1, 2), datetime.timedelta(1), decimal.Decimal("1.50"), True], ids=repr
)
def test_other_scalars_are_text(value: object):
    assert read_values({"sku": value, "title": value, "kind": value, "price": 1}, ROLES, {})[1] == {
        "title": str(value),
        "kind": str(value),
        "price": 1,
    }
