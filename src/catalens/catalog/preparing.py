"""A table with picture paths -> a catalogue.

    product_code,title,category3_code,width_cm,local_image_path
    blendswap-cc-0-001,Armchair,Office,59.4,images/blendswap-cc-0-001.png

Two passes: the first reads and decodes every picture and keeps only a short record of each row, so that the groups
that may not straddle a split are known; the second stores. A row that cannot be used is named and left out.
"""

import csv
import hashlib
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from catalens.catalog.pictures import picture_key, storable_picture
from catalens.catalog.splits import DEFAULT_FRACTIONS, group_rows, split_of
from catalens.catalog.storage import CatalogCard, CatalogWriter, LeftOut, Roles, refuse_existing
from catalens.errors import CatalogError, PictureError, TooManyBadRowsError

Progress = Callable[[str, int, int], None]
"""Called with a stage's name, rows done and rows in all."""


@dataclass(frozen=True)
class _Checked:
    """A usable row after the first pass."""

    number: int
    id: str
    values: Mapping[str, Any]
    picture: Path
    key: str


def prepare_table(
    table: Path | str,
    out: Path | str,
    roles: Roles,
    image_column: str,
    fractions: Mapping[str, float] = DEFAULT_FRACTIONS,
    max_bad: float = 0.05,
    progress: Progress = lambda stage, done, total: None,
) -> CatalogCard:
    """Make the catalogue `out` from a CSV, TSV or Parquet file whose `image_column` holds paths relative to it.

    `max_bad` is the largest share of rows that may be left out. Raises CatalogError where the table cannot be read,
    lacks a column or has no rows, or where `out` exists, TooManyBadRowsError above `max_bad` or where no row is left;
    nothing is written then.
    """
    table = Path(table)
    refuse_existing(out)
    rows = _read_table(table, [roles.id, image_column, *roles.fields])
    good: list[_Checked] = []
    bad: list[LeftOut] = []
    for number, row in enumerate(rows, start=1):
        checked = _check(number, row, roles, image_column, table.parent)
        if isinstance(checked, LeftOut):
            bad.append(checked)
        else:
            good.append(checked)
        progress("checking pictures", number, len(rows))
    if len(bad) > max_bad * len(rows) or not good:
        reasons = "; ".join(f"row {row.row} ({row.id}): {row.reason}" for row in bad[:5])
        allowed = f"more than --max-bad {max_bad * 100:g}%" if good else "no row is left"
        raise TooManyBadRowsError(f"{len(bad)} of {len(rows)} rows of {table} cannot be used, {allowed}: {reasons}")
    numbers = [name for name, kind in roles.fields.items() if kind == "number"]
    integers = [name for name in numbers if all(isinstance(row.values[name], int) for row in good)]
    floats = [name for name in numbers if name not in integers]
    provenance = {
        "command": "prepare",
        "table": table.name,
        "sha256": hashlib.sha256(table.read_bytes()).hexdigest(),
        "image_column": image_column,
        "fractions": dict(fractions),
    }
    groups = group_rows([("id", row.id), ("picture", row.key)] for row in good)
    with CatalogWriter(out, roles, provenance, integers) as writer:
        for position, (row, group) in enumerate(zip(good, groups, strict=True), start=1):
            image = storable_picture(row.picture.read_bytes())
            values = {**row.values, **{name: float(row.values[name]) for name in floats}}
            writer.add(split_of(good[group].id, fractions), image, row.id, values)
            progress("storing", position, len(good))
        for row in bad:
            writer.leave_out(row)
    return writer.card


def _read_table(path: Path, columns: list[str]) -> list[dict[str, Any]]:
    """All rows with at least the wanted columns; CSV values as text, so that no code loses its leading zeros."""
    readers = {".csv": _read_csv, ".tsv": _read_csv, ".parquet": _read_parquet, ".pq": _read_parquet}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise CatalogError(f"{path}: give a .csv, .tsv or .parquet file")
    try:
        names, rows = reader(path, columns)
    except (OSError, ValueError, pa.ArrowException) as error:
        raise CatalogError(f"{path}: cannot be read ({str(error).splitlines()[0]})") from error
    for name in columns:
        if name not in names:
            raise CatalogError(f"{path}: no column {name!r}; its columns are {', '.join(names)}")
        if names.count(name) > 1:
            raise CatalogError(f"{path}: column {name!r} stands twice: rename one")
    if not rows:
        raise CatalogError(f"{path}: the table has no rows")
    return rows


def _read_parquet(path: Path, columns: list[str]) -> tuple[list[str], list[dict[str, Any]]]:
    with pq.ParquetFile(path) as file:
        return file.schema_arrow.names, file.read(columns=columns).to_pylist()


def _read_csv(path: Path, columns: list[str]) -> tuple[list[str], list[dict[str, Any]]]:
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",", strict=True)
        try:
            return list(reader.fieldnames or []), list(reader)
        except csv.Error as error:
            raise ValueError(f"line {reader.reader.line_num}: {error}") from error


def _check(number: int, row: Mapping[Any, Any], roles: Roles, image_column: str, base: Path) -> _Checked | LeftOut:
    id = "" if _missing(row[roles.id]) else str(row[roles.id]).strip()

    def bad(reason: str) -> LeftOut:
        return LeftOut(row=number, id=id, reason=reason)

    if None in row:  # where csv puts what no column holds
        return bad("more values than the table has columns")
    if not id:
        return bad(f"no value in {roles.id!r}")
    values: dict[str, object] = {}
    for name, kind in roles.fields.items():
        value = row[name]
        if _missing(value):
            return bad(f"no value in {name!r}")
        values[name] = _number(value) if kind == "number" else str(value)
        if values[name] is None:
            return bad(f"not a number in {name!r}: {str(value)[:40]!r}")
    if _missing(row[image_column]):
        return bad(f"no value in {image_column!r}")
    picture = base / str(row[image_column])
    try:
        if not picture.resolve().is_relative_to(base.resolve()):
            return bad("picture path leaves the table's folder")
        key = picture_key(picture.read_bytes())
    except OSError as error:
        return bad(f"picture cannot be read: {error.strerror}")
    except (ValueError, RuntimeError):  # a null character, a circle of links
        return bad("picture path is none")
    except PictureError as error:
        return bad(f"picture: {error}")
    return _Checked(number, id, values, picture, key)


def _missing(value: object) -> bool:
    return value is None or value != value or not str(value).strip()


def _number(value: object) -> float | int | None:
    """A whole number stays an int, so that its text has no point; None where it is no finite number."""
    text = str(value).strip()
    if re.fullmatch(r"-?\d{1,18}", text, flags=re.ASCII):
        return int(text)
    if not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", text, flags=re.ASCII | re.IGNORECASE):
        return None
    number = float(text)
    return number if math.isfinite(number) else None
