"""Hostile rows: each is in the catalogue as a person sees it, or rejected with a reason; none is lost."""

import csv
import json
import math
import os
import re
import tempfile
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal, InvalidOperation
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hostile_cells import HEADERS, JSON, LINES, PLACES, TEXTS, TYPES
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis import strategies as st
from processes import Report, Run, remove_case
from shop import ROLES, picture

from catalens.catalog import is_missing

HOSTILE = {"csv": 10, "jsonl": 10, "parquet": 4}
"""Hostile rows of a table by its format, between two good ones; those of a Parquet file are all of one type."""
PICTURES = 2 + max(HOSTILE.values())
GOOD = {"sku": "P{}", "title": "Bag {}", "mark": "row {}", "kind": "BAGS", "price": "{}.5", "photo": "photos/{}.png"}
"""`mark` is never hostile: it tells rows apart."""


@dataclass(frozen=True)
class Batch:
    """Rows of one table."""

    format: str
    rows: Sequence[Mapping[str, Any] | str]
    """Cells by column, or a line that is no row."""
    title: str
    """The header of the titles."""
    column: str = ""
    type: str = "string"
    """Of that column of a Parquet file."""

    def good(self, row: Mapping[str, Any] | str) -> bool:
        """Whether nothing is wrong with a row."""
        return not isinstance(row, str) and row == _good(int(row["mark"].split()[1]), self.format)


@st.composite
def batches(draw: st.DrawFn, format: str) -> Batch:
    """A table whose rows have one hostile cell each; in a Parquet file all in one column, of one type."""
    hostile = st.sampled_from([name for name in GOOD if name != "mark"])
    count = HOSTILE[format]
    rows: list[Mapping[str, Any] | str] = [_good(n, format) for n in range(count + 2)]
    batch = Batch(format, rows, draw(st.sampled_from(HEADERS)))
    if format == "parquet":
        batch = replace(batch, column=draw(hostile), type=draw(st.sampled_from(sorted(TYPES))))
    # a column of strings leaves room for the good rows, one of another type may not
    for n in range(1, count + 1) if batch.type == "string" else range(count + 2):
        column = batch.column or draw(hostile)
        cells = TYPES[batch.type][1] if format == "parquet" else TEXTS if format == "csv" else JSON
        if column == "photo" and batch.type == "string":
            cells = st.sampled_from(PLACES) | cells
        broken = format in LINES and draw(st.integers(0, 9)) == 9
        rows[n] = draw(st.sampled_from(LINES[format])) if broken else {**_good(n, format), column: draw(cells)}
    return batch


def try_rows(report: Report, folder: Path, wanted: int, random: Random) -> None:
    """Prepare tables with so many hostile rows in all, a third in each format."""
    base = folder / "base"
    (base / "photos").mkdir(parents=True)
    for n in range(PICTURES):
        (base / "photos" / f"{n}.png").write_bytes(picture(n))
    (folder / "secret.png").write_bytes(picture(99))
    (base / "photos" / "link.png").symlink_to(folder / "secret.png")
    (base / "photos" / "loop.png").symlink_to("loop.png")
    os.mkfifo(base / "photos" / "pipe.png")
    for format, count in HOSTILE.items():
        _try_format(report, folder, format, math.ceil(wanted / 3 / count), random.randrange(2**32))


def _try_format(report: Report, folder: Path, format: str, tables: int, number: int) -> None:
    simplest = True

    @seed(number)
    @settings(
        max_examples=tables + 1,
        phases=[Phase.generate],
        database=None,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.large_base_example],
    )
    @given(batches(format))
    def attempt(batch: Batch) -> None:
        nonlocal simplest
        if simplest:  # hypothesis begins with the least of all tables
            simplest = False
            return
        report.counts["hostile rows"] += HOSTILE[format]
        if fault := _tried(batch, folder, report):
            lone = [replace(batch, rows=[batch.rows[0], row, batch.rows[-1]]) for row in batch.rows[1:-1]]
            faults = ((fault, one.rows[1]) for one in lone if (fault := _tried(one, folder, Report(""))))
            fault, culprit = next(faults, (fault, batch.rows))
            where = f"{batch.type} in {batch.column!r}, " if batch.column else ""
            report.failures.append(f"{format}, {where}title {batch.title!r}, {_short(culprit)}: {fault}")
        report.advance(HOSTILE[format])

    attempt()


def _tried(batch: Batch, folder: Path, report: Report) -> str | None:
    """Prepare a table, at first with no bad row allowed, so that reasons are printed; what is wrong."""
    case = Path(tempfile.mkdtemp(prefix="case-", dir=folder))
    table = folder / "base" / f"{case.name}.{batch.format}"
    _write(batch, table)
    roles = [role if role != "--text=title" else f"--text={batch.title}" for role in ROLES]
    arguments = [str(table), *roles, "--text=mark", "--splits=1,0,0"]
    ends = [Run(case, [*arguments, f"--max-bad={share}"]).end() for share in ("0%", "100%")]
    fault = next((end.fault for end in ends if end.fault), None)
    if not fault and ends[1].code:
        report.counts["refused tables"] += 1
        fault = f"refused: {ends[1].output}" if any(map(batch.good, batch.rows)) else None
    elif not fault:
        fault = _misread(batch, case / "shop", table.parent, report)
    if not fault:
        remove_case(case)
        table.unlink()
    return fault


# Tables ---------------------------------------------------------------------------------------------------------


def _good(n: int, format: str) -> dict[str, Any]:
    cells: dict[str, Any] = {name: cell.format(n) for name, cell in GOOD.items()}
    return cells if format == "csv" else cells | {"price": float(cells["price"])}


def _short(row: object) -> str:
    if not isinstance(row, Mapping):
        return repr(row)[:200]
    return ", ".join(f"{name}={repr(cell)[:80]}" for name, cell in row.items() if name != "kind" or cell != "BAGS")


def _placed(cell: Any, base: Path) -> Any:
    """A cell with the table's folder filled in."""
    if isinstance(cell, str):
        return cell.replace("{base}", str(base))
    return cell | {"path": _placed(cell["path"], base)} if isinstance(cell, dict) and "path" in cell else cell


def _write(batch: Batch, path: Path) -> None:
    headers = {name: batch.title if name == "title" else name for name in GOOD}
    rows = [
        row if isinstance(row, str) else {headers[name]: _placed(cell, path.parent) for name, cell in row.items()}
        for row in batch.rows
    ]
    if batch.format == "parquet":
        _write_parquet(batch, path, headers, [row for row in rows if not isinstance(row, str)])
        return
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(headers.values()))
        if batch.format == "csv":
            writer.writeheader()
        for row in rows:
            if isinstance(row, str) or batch.format == "jsonl":
                file.write(f"{row if isinstance(row, str) else json.dumps(row)}\r\n")
            else:
                writer.writerow(row)


def _write_parquet(batch: Batch, path: Path, headers: Mapping[str, str], rows: Sequence[Mapping[str, Any]]) -> None:
    arrays: dict[str, pa.Array] = {}
    for name, header in headers.items():
        cells = [row[header] for row in rows]
        if name == batch.column and batch.type == "string":  # as files have text that is none
            cells = [None if cell is None else str(cell).encode(errors="surrogatepass") for cell in cells]
            arrays[header] = pa.array(cells, pa.binary()).view(pa.string())
        else:
            arrays[header] = pa.array(cells, TYPES[batch.type][0] if name == batch.column else None)
    never_asked_for = pa.array([2**62] * len(rows), pa.timestamp("us"))
    pq.write_table(pa.table({**arrays, "seen": never_asked_for}), path)


# What a person sees ---------------------------------------------------------------------------------------------


def _misread(batch: Batch, catalog: Path, base: Path, report: Report) -> str | None:
    """The first row that is neither in the catalogue as it was nor rejected with a reason."""
    files = [*(catalog / "data").glob("*.parquet")]
    stored = {row["mark"]: row for file in files for row in pq.read_table(file).to_pylist()}
    left_out = catalog / "rejected.parquet"
    rejected = pq.read_table(left_out).to_pylist() if left_out.exists() else []
    if len(rejected) + len(stored) != len(batch.rows):
        return f"{len(batch.rows)} rows, but {len(stored)} in the catalogue and {len(rejected)} rejected"
    reasons = {row["row"]: row["reason"] for row in rejected}
    for number, row in enumerate(batch.rows, start=1):
        got = None if isinstance(row, str) else stored.get(row["mark"])
        report.counts["rejected" if got is None else "in the catalogue"] += 1
        if got is None and (batch.good(row) or not reasons.get(number)):
            return f"row {number} is rejected: {reasons.get(number)}"
        if got is not None and isinstance(row, Mapping) and (name := _other_value(row, got, batch.title, base)):
            stored_as = got[batch.title if name == "title" else name]
            return f"row {number}: {name} {repr(row[name])[:80]} is stored as {repr(stored_as)[:80]}"
    return None


def _other_value(row: Mapping[str, Any], got: Mapping[str, Any], title: str, base: Path) -> str | None:
    """The first column that is stored as something else."""
    if _picture_of(row["photo"], base) != got["image"]["bytes"]:
        return "image" if "image" in row else "photo"
    names = (name for name in GOOD if name != "photo")
    return next((n for n in names if not _same(row[n], got[title if n == "title" else n], n == "price")), None)


def _picture_of(cell: Any, base: Path) -> bytes | None:
    """The picture that a cell means: its bytes, or a file below the table's folder."""
    if isinstance(cell, Mapping):
        cell = cell.get("path") if cell.get("bytes") is None else cell["bytes"]
    if not isinstance(cell, str):
        return cell if isinstance(cell, bytes) else None
    known = {str(base / "photos" / f"{n}.png"): picture(n) for n in range(PICTURES)}
    place = _placed(cell.strip(), base)
    return None if place.endswith("/") else known.get(os.path.normpath(base / place))


def _same(cell: Any, got: Any, number: bool) -> bool:
    """Whether a stored value is what a person sees in a cell."""
    if got is None:  # an empty cell
        return is_missing(float(cell) if isinstance(cell, np.floating) else cell)
    if cell is None or isinstance(cell, bytes | list | dict) or (number and isinstance(cell, bool)):
        return False
    if number:
        return _same_number(cell, got)
    if isinstance(cell, str):
        return got.strip() == cell.strip()
    if isinstance(cell, bool):
        return got.lower() == str(cell).lower()
    if isinstance(cell, int | float | np.floating | Decimal):
        return re.fullmatch(r"[-+.\de]+", got) is not None and _same_number(cell, Decimal(got))
    return got.replace(" ", "T")[:19] == str(cell).replace(" ", "T")[:19]  # dates and times


def _same_number(cell: Any, got: float | Decimal) -> bool:
    """Whether it is the same number: where it is whole to the last digit, else to that of a double."""
    text = str(cell).strip()
    if isinstance(cell, str):
        text = re.sub(r"^[A-Za-z]{3}\s*(?=[\d.+-])|(?<=[\d.])\s*[A-Za-z]{3}$", "", text)
        text = "".join(char for char in text if unicodedata.category(char) != "Sc").strip()
    try:
        wanted = Decimal(text)
    except InvalidOperation:
        return False
    whole = re.fullmatch(r"[-+]?\d+", text) is not None
    return wanted.is_finite() and (Decimal(got) == wanted if whole else float(wanted) == float(got))
