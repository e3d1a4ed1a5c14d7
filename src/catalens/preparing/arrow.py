"""Rows out of Arrow and Parquet: what cannot be read costs the rows it is in.

    price float32 20.99       ->   20.99, the shortest decimal of a narrow number, and not 20.989999771118164
    a timestamp in the year 300000, half a character, a damaged page   ->   `Unreadable`, in the cells it concerns

Only the columns that are asked for are read, so that damage elsewhere does not matter.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from itertools import repeat
from pathlib import Path
from typing import IO, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from catalens.catalog.storage import BATCH_ROWS, BUFFER_BYTES
from catalens.errors import first_line
from catalens.preparing.values import Unreadable

BATCH_BYTES = 16 * 2**20
"""Of a row group as it is stored, read at a time."""
LONGEST_REASON = 200
"""Characters that are kept of what Arrow says of damage."""


def batch_rows(batch: pa.RecordBatch | pa.Table) -> Iterator[Mapping[Any, Any]]:
    """Yield the rows of a batch as dicts of Python values."""
    columns = [_cells(batch.column(place)) for place in range(batch.num_columns)]
    return (dict(zip(batch.schema.names, cells, strict=True)) for cells in zip(*columns, strict=True))


def parquet_rows(file: Path | IO[bytes], columns: Collection[str] | None) -> Iterator[Mapping[Any, Any]]:
    """Yield the rows of a Parquet file, holding few, however large its row groups are; all columns, or those named.

    Where a row group is damaged, each of its columns is read as far as it can be.
    """
    # by default Arrow reads a whole row group at once, and keeps all that it has read
    with pq.ParquetFile(file, pre_buffer=False, buffer_size=BUFFER_BYTES, page_checksum_verification=True) as parquet:
        names = [name for name in parquet.schema_arrow.names if columns is None or name in columns]
        for group in range(parquet.num_row_groups):
            yield from _group_rows(parquet, group, names)


def _group_rows(parquet: pq.ParquetFile, group: int, names: list[str]) -> Iterator[Mapping[Any, Any]]:
    stored = parquet.metadata.row_group(group)
    at_a_time = BATCH_BYTES * stored.num_rows // max(stored.total_byte_size, 1)
    at_a_time = max(1, min(BATCH_ROWS, at_a_time))
    read = 0
    try:
        for batch in parquet.iter_batches(at_a_time, row_groups=[group], columns=names):
            yield from batch_rows(batch)
            read += len(batch)
    except Exception as error:
        if not is_damage(error):
            raise
        alone = [_column(parquet, group, name, at_a_time, stored.num_rows) for name in names]
        for number, cells in enumerate(zip(*alone, strict=True)):
            if number >= read:
                yield dict(zip(names, cells, strict=True))


def is_damage(error: Exception) -> bool:
    """Tell content that Arrow cannot read from a disk or a network that failed."""
    return isinstance(error, pa.ArrowException) or (type(error) is OSError and error.errno is None)


def _column(parquet: pq.ParquetFile, group: int, name: str, at_a_time: int, rows: int) -> Iterator[Any]:
    """Cells of one column of a damaged row group."""
    read = 0
    try:
        for batch in parquet.iter_batches(at_a_time, row_groups=[group], columns=[name]):
            yield from _cells(batch.column(batch.schema.get_field_index(name)))
            read += len(batch)
    except Exception as error:
        if not is_damage(error):
            raise
        reason = f"row group {group + 1} of the file, {first_line(error)[:LONGEST_REASON]}"
        yield from repeat(Unreadable(reason), rows - read)


def _cells(column: pa.Array | pa.ChunkedArray) -> list[Any]:
    try:
        values = column.to_pylist()
    except Exception:  # a value that Python has no type for, or text that is none
        values = [_cell(scalar) for scalar in column]
    exact = _exact(column.type)
    return values if exact is None else [exact(value) for value in values]


def _cell(scalar: pa.Scalar) -> Any:
    try:
        return scalar.as_py()
    except Exception as error:
        return Unreadable(first_line(error)[:LONGEST_REASON])


def _exact(kind: pa.DataType) -> Callable[[Any], Any] | None:
    """What gives narrow floats inside values of a type their shortest decimals; None where there are none."""
    if isinstance(kind, pa.DictionaryType):
        return _exact(kind.value_type)
    if pa.types.is_float16(kind) or pa.types.is_float32(kind):
        narrow = np.float16 if pa.types.is_float16(kind) else np.float32
        return lambda value: float(str(narrow(value))) if isinstance(value, float) else value
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        if (inner := _exact(kind.value_type)) is None:
            return None
        return lambda values: [inner(value) for value in values] if isinstance(values, list) else values
    if pa.types.is_struct(kind):
        parts = {field.name: exact for field in kind if (exact := _exact(field.type)) is not None}
        if not parts:
            return None
        return lambda value: (
            {name: parts[name](inner) if name in parts else inner for name, inner in value.items()}
            if isinstance(value, dict)
            else value
        )
    return None
