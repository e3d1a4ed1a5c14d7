"""Cells -> values to learn, or why not.

{"product_code": "8043", "title": "Check Scarf", "full_price": "390.00"}
  -> {"title": "Check Scarf", "full_price": 390.0}
"""

import math
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from catalens.catalog.storage import Roles
from catalens.catalog.values import is_missing
from catalens.reading.nested import parsed, paths_of
from catalens.reading.numbers import SHOWN, Numbers

SAMPLE_ROWS = 500
"""Rows that a guess looks at."""
MAX_TEXT = 2000
"""Characters of a text or category; a longer one is no title."""
Missing = Literal["keep", "refuse"]
"""Treatment of a row that lacks some of its fields."""
NO_VALUES = "no field has a value"
"""Reason against a row that lacks them all."""
PLAIN = Numbers()


@dataclass(frozen=True)
class Unreadable:
    """A cell whose value cannot be had, with the reason."""

    reason: str


def read_values(
    row: Mapping[Any, Any], roles: Roles, numbers: Mapping[str, Numbers], missing: Missing = "keep"
) -> tuple[str, dict[str, Any], str | None]:
    """Product id, values, and why the row cannot be used (None where it can); `numbers` by column.

    Values are the fields, and the inputs as text, cut after `MAX_TEXT` characters and empty where there is none. An
    empty cell is None among the fields where `missing` is `keep`, as long as another one holds something.
    """
    cell = row.get(roles.id)
    id = "" if is_missing(cell) else read_id(cell)
    if roles.fields and (reason := _no_text(cell, roles.id, "an id")):  # to predict, a row needs none
        return id[:SHOWN], {}, reason
    values: dict[str, Any] = {}
    for name, kind in roles.fields.items():
        value = row.get(name)
        if missing == "keep" and is_missing(value):
            values[name] = None
            continue
        if reason := _no_text(value, name, f"a {kind}"):
            return id, {}, reason
        way = numbers.get(name, PLAIN)
        values[name] = way.read(value) if kind == "number" else str(_whole(value))
        if values[name] is None:
            return id, {}, way.refusal(value, name)
    if values and all(value is None for value in values.values()):
        return id, {}, NO_VALUES
    for name in roles.inputs:
        value = row.get(name)
        if reason := None if is_missing(value) else _no_text(value, name, "a text", max_chars=None):
            return id, {}, reason
        values[name] = "" if is_missing(value) else str(value)[:MAX_TEXT]
    return id, values, None


def read_id(cell: object) -> str:
    """Read a product's id as text that can be stored."""
    if isinstance(cell, str):
        return storable(cell.strip())
    return storable("" if _kind(cell) else str(_whole(cell)).strip())


def _whole(cell: object) -> object:
    """A whole number that came as a double, as people write it."""
    return int(cell) if isinstance(cell, float) and cell.is_integer() and abs(cell) < 2**63 else cell


def picture_reason(cell: object, column: str) -> str:
    """Explain why a cell names no picture."""
    if isinstance(cell, Mapping | list | tuple | set) and cell:
        return f"{_kind(cell)} in {column!r} that names no picture"
    return _no_text(cell, column, "a picture", max_chars=None) or f"no value in {column!r}"


def storable(text: str) -> str:
    """Text that can be written down: half a character (JavaScript's slice leaves such) becomes a question mark."""
    return text if text.isascii() else text.encode("utf-8", errors="replace").decode("utf-8")


def _kind(value: object) -> str | None:
    """Name what a cell holds, where that is nothing to write down."""
    if isinstance(value, Unreadable):
        return "damaged data"
    if isinstance(value, bytes | bytearray | memoryview):
        return "bytes"
    if isinstance(value, Mapping):
        return "an object"
    if isinstance(value, int) and value.bit_length() > MAX_TEXT:
        return "a number of more digits than anyone reads"
    if isinstance(value, float) and math.isinf(value):
        return "an infinite number"
    return "a list" if isinstance(value, list | tuple | set) else None


def _hint(value: object, name: str, wanted: str) -> str:
    """The flag that names a value inside a nested cell."""
    paths = [path for path in paths_of(name, [value]) if path != name]
    inner = next((path for path in paths if path.endswith(".value")), paths[0] if paths else name)
    return "" if inner == name else f": name the value inside, --{wanted.split()[-1]} {shlex.quote(inner)}"


def _no_text(value: object, name: str, wanted: str, max_chars: int | None = MAX_TEXT) -> str | None:
    """Explain why a cell cannot be written down; None where it can."""
    nested = not isinstance(value, str) or (max_chars and value.lstrip()[:1] in ("[", "{"))
    if isinstance(value, Unreadable):
        return f"cannot be read in {name!r}: {value.reason}"
    if nested and (kind := _kind(parsed(value))):
        return f"{kind} in {name!r}, not {wanted}{_hint(value, name, wanted)}"
    if is_missing(value):
        return f"no value in {name!r}"
    text = value if isinstance(value, str) else ""
    if max_chars and len(text) > max_chars:
        return f"too long: {len(text):,} characters in {name!r}, more than {max_chars:,}"
    if storable(text) != text:
        return f"not text in {name!r}: {text[:SHOWN]!r} holds bytes of another encoding, or half a character"
    return None


def names_of(columns: Sequence[str]) -> str:
    """List column names for a message, so that blanks and odd characters are seen."""
    return ", ".join(map(repr, columns))
