"""A table's cells -> values to learn, or the reason against the row.

{"product_code": "8043", "title": "Check Scarf", "full_price": "390.00"}
  -> {"title": "Check Scarf", "full_price": 390.0}
"""

import math
import re
import unicodedata
from collections.abc import Mapping
from typing import Any, Literal

from catalens.catalog.storage import Roles
from catalens.config import Frozen

MAX_TEXT = 2000
"""Characters of a text or category; a longer one is no title."""


class Numbers(Frozen):
    """How the table writes its numbers."""

    decimal: Literal[".", ","] = "."
    """Sign before the digits after the point."""
    thousands: str = ""
    """Sign between groups of digits, such as `,`; empty: a number that has one is no number."""

    def read(self, value: object) -> float | int | None:
        """A number, whole where it is written whole (so that its text has no point), or None where it is none.

        A currency sign before or after it is left out.
        """
        if isinstance(value, bool):
            return None
        if isinstance(value, int | float):
            return value if math.isfinite(value) else None
        text = str(value).strip()
        if isinstance(value, str):
            if text and unicodedata.category(text[0]) == "Sc":
                text = text[1:].lstrip()
            elif text and unicodedata.category(text[-1]) == "Sc":
                text = text[:-1].rstrip()
            if self.thousands:
                text = _ungrouped(text, self.thousands)
            if self.decimal == ",":
                text = "" if "." in text else text.replace(",", ".")
        if re.fullmatch(r"-?\d{1,18}", text, flags=re.ASCII):
            return int(text)
        if not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", text, flags=re.ASCII | re.IGNORECASE):
            return None
        number = float(text)
        return number if math.isfinite(number) else None


def read_values(row: Mapping[Any, Any], roles: Roles, numbers: Numbers) -> tuple[str, dict[str, Any], str | None]:
    """Product id, fields, and why the row cannot be used (None where it can)."""
    id = "" if is_missing(row.get(roles.id)) else str(row[roles.id]).strip()
    if not id:
        return "", {}, f"no value in {roles.id!r}"
    if len(id) > MAX_TEXT:
        return id[:40], {}, f"too long: {len(id):,} characters in {roles.id!r}, more than {MAX_TEXT:,}"
    values: dict[str, Any] = {}
    for name, kind in roles.fields.items():
        value = row.get(name)
        if is_missing(value):
            return id, {}, f"no value in {name!r}"
        values[name] = numbers.read(value) if kind == "number" else str(value)
        if values[name] is None:
            return id, {}, f"not a number in {name!r}: {str(value)[:40]!r}"
        if kind != "number" and len(values[name]) > MAX_TEXT:
            return id, {}, f"too long: {len(values[name]):,} characters in {name!r}, more than {MAX_TEXT:,}"
    return id, values, None


def read_picture(cell: object) -> tuple[str, bytes | None]:
    """URL or path, and bytes, of a picture's cell."""
    if isinstance(cell, Mapping):
        data = cell.get("bytes")
        return str(cell.get("path") or ""), data if isinstance(data, bytes) else None
    if isinstance(cell, bytes):
        return "", cell
    return ("" if is_missing(cell) else str(cell).strip()), None


def is_missing(value: object) -> bool:
    """Whether a cell holds nothing: None, NaN, or blanks."""
    return value is None or value != value or (isinstance(value, str) and not value.strip())


def _ungrouped(text: str, sign: str) -> str:
    """Digits without the signs between their groups; empty where the groups are not of three."""
    whole = re.match(r"[-+]?[\d" + re.escape(sign) + r"]*", text, flags=re.ASCII)
    grouped = whole.group() if whole else ""
    if sign in grouped and not re.fullmatch(rf"[-+]?\d{{1,3}}({re.escape(sign)}\d{{3}})+", grouped, flags=re.ASCII):
        return ""
    return grouped.replace(sign, "") + text[len(grouped) :]
