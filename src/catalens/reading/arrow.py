"""Tables of Arrow and Parquet: their cells as Python values, and what damage leaves of them.

float32 20.99          20.99, and not 20.989999771118164
a damaged page         Unreadable("row group 3 of the file, ...") in each of its cells
a class of `datasets`  its name
"""

import json
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import repeat
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catalens.catalog.storage import group_batches, open_parquet
from catalens.errors import first_line
from catalens.reading.columns import Unreadable
from catalens.reading.formats import Reader, Row
from catalens.reading.text import open_bytes

MAX_REASON = 200
"""Characters that are kept of what Arrow says of damage."""


def read_parquet(where: str) -> Reader:
    """Read a Parquet file; labels that `datasets` stored as numbers are the names that they stand for."""
    with open_bytes(where) as file, pq.ParquetFile(file) as parquet:
        schema, length = parquet.schema_arrow, parquet.metadata.num_rows
    labels = json.loads((schema.metadata or {}).get(b"huggingface", b"{}")).get("info", {}).get("features", {})
    return Reader(schema.names, lambda names: named(_parquet_rows(where, names), labels), length=length)


def named(rows: Iterable[Row], features: Mapping[str, Any]) -> Iterator[Row]:
    """Rows with the names of their classes in the place of numbers, by the features of a Hugging Face dataset."""
    coded = {name: one for name, one in features.items() if "ClassLabel" in repr(one)}
    for row in rows:
        if coded and isinstance(row, Mapping):
            row = {**row, **{name: _labelled(row[name], one) for name, one in coded.items() if name in row}}
        yield row


def _labelled(value: Any, feature: Any) -> Any:
    """A value with the names of its classes; -1 stands for none."""
    if isinstance(feature, list):  # of one
        feature = feature[0]
    kind: Mapping[str, Any] = feature if isinstance(feature, Mapping) else getattr(feature, "__dict__", {})
    if isinstance(value, list):
        return [_labelled(one, kind.get("feature", feature)) for one in value]
    if isinstance(value, Mapping):
        inner = kind.get("feature", kind)
        return {name: _labelled(one, inner.get(name)) for name, one in value.items()}
    names = kind.get("names")
    if names is None or not isinstance(value, int) or value == -1:
        return None if names and value == -1 else value
    return names[value] if 0 <= value < len(names) else Unreadable(f"class {value} of {len(names)}")


def batch_rows(batch: pa.RecordBatch | pa.Table) -> Iterator[Mapping[Any, Any]]:
    """Yield the rows of a batch as dicts of Python values."""
    columns = [_cells(column) for column in batch.itercolumns()]
    return (dict(zip(batch.schema.names, cells, strict=True)) for cells in zip(*columns, strict=True))


def _parquet_rows(where: str, columns: Collection[str] | None) -> Iterator[Row]:
    """Rows with all columns, or those named; only these are read, so that damage elsewhere does not matter."""
    with open_bytes(where) as file, open_parquet(file) as parquet:
        names = [name for name in parquet.schema_arrow.names if columns is None or name in columns]
        for group in range(parquet.num_row_groups):
            cells = [_column(parquet, group, name) for name in names]
            yield from (dict(zip(names, row, strict=True)) for row in zip(*cells, strict=True))


def _column(parquet: pq.ParquetFile, group: int, name: str) -> Iterator[Any]:
    """Cells of one column of a row group; those that damage makes unreadable are `Unreadable`."""
    read = 0
    try:
        for batch in group_batches(parquet, [group], [name]):
            yield from _cells(batch.column(batch.schema.get_field_index(name)))
            read += len(batch)
    except (pa.ArrowException, OSError) as error:
        if isinstance(error, OSError) and (type(error) is not OSError or error.errno is not None):
            raise  # a disk or a network that failed
        reason = f"row group {group + 1} of the file, {first_line(error)[:MAX_REASON]}"
        yield from repeat(Unreadable(reason), parquet.metadata.row_group(group).num_rows - read)


def _cells(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    try:
        values = column.to_pylist()
    except Exception:  # a value that Python has no type for, or text that is none
        values = [_cell(scalar) for scalar in column]
    return [_shortest(value, column.type) for value in values] if "float" in str(column.type) else values


def _shortest(value: Any, kind: pa.DataType) -> Any:
    """A value with the shortest decimals of the narrow numbers in it."""
    kind = kind.value_type if isinstance(kind, pa.DictionaryType) else kind
    if isinstance(value, float) and (pa.types.is_float16(kind) or pa.types.is_float32(kind)):
        return float(str((np.float16 if pa.types.is_float16(kind) else np.float32)(value)))
    if isinstance(value, list) and hasattr(kind, "value_type"):
        return [_shortest(one, kind.value_type) for one in value]
    if isinstance(value, dict) and isinstance(kind, pa.StructType):
        return {name: _shortest(one, kind.field(name).type) for name, one in value.items()}
    return value


def _cell(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except Exception as error:
        return Unreadable(first_line(error)[:MAX_REASON])
