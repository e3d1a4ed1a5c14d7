"""A table's cells -> values to learn, or the reason against the row.

{"product_code": "8043", "title": "Check Scarf", "full_price": "390.00"}
  -> {"title": "Check Scarf", "full_price": 390.0}
"""

import math
import re
import shlex
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, Literal, Self

from pydantic import model_validator

from catalens.catalog.storage import Roles, is_missing
from catalens.config import Frozen

MAX_TEXT = 2000
"""Characters of a text or category; a longer one is no title."""
SHOWN = 40
"""Characters of a cell that a reason shows."""
SPACES = " \u00a0\u2007\u2009\u202f"
APOSTROPHES = "'\u2019"
"""Signs that group digits; of each kind one stands for all."""
ALWAYS_GROUPS = "[" + SPACES[1:] + APOSTROPHES + "]"
"""Signs that stand in no number but between its groups."""
CURRENCIES = frozenset(
    re.findall(
        r"\w+",
        "AED AFN ALL AMD ANG AOA ARS AUD AWG AZN BAM BBD BDT BGN BHD BIF BMD BND BOB BRL BSD BTN BWP BYN BZD CAD "
        "CDF CHF CLP CNY COP CRC CUP CVE CZK DJF DKK DOP DZD EGP ERN ETB EUR FJD FKP GBP GEL GHS GIP GMD GNF GTQ "
        "GYD HKD HNL HTG HUF IDR ILS INR IQD IRR ISK JMD JOD JPY KES KGS KHR KMF KPW KRW KWD KYD KZT LAK LBP LKR "
        "LRD LSL LYD MAD MDL MGA MKD MMK MNT MOP MRU MUR MVR MWK MXN MYR MZN NAD NGN NIO NOK NPR NZD OMR PAB PEN "
        "PGK PHP PKR PLN PYG QAR RON RSD RUB RWF SAR SBD SCR SDG SEK SGD SHP SLE SOS SRD SSP STN SVC SYP SZL THB "
        "TJS TMT TND TOP TRY TTD TWD TZS UAH UGX USD UYU UZS VES VND VUV WST XAF XCD XCG XOF XPF YER ZAR ZMW ZWG ",
    )
)
"""ISO 4217."""


WHOLE = 2**53
"""Up to here every whole number is a double, too, which is what columns with fractions are stored as."""


@dataclass(frozen=True)
class Unreadable:
    """A cell whose value cannot be had, with the reason."""

    reason: str


class Numbers(Frozen):
    """How the table writes its numbers."""

    decimal: Literal[".", ","] = "."
    """Sign before the digits after the point."""
    thousands: str = ""
    """Sign between groups of digits, such as `,`; unset: only apostrophes and spaces that do not break."""

    @model_validator(mode="after")
    def _signs_differ(self) -> Self:
        if self.thousands == self.decimal:
            raise ValueError(f"--thousands and --decimal are both {self.decimal!r}: give two signs")
        if len(self.thousands) > 1 or self.thousands.isalnum() or self.thousands in ("-", "+"):
            raise ValueError(f"--thousands {self.thousands!r}: give one sign, such as , or . or a space")
        return self

    def read(self, value: object) -> float | int | None:
        """A number, whole where it is written whole (so that its text has no point), or None where it is none.

        A currency sign or code before or after it is left out. A whole number has no more digits than a double keeps.
        """
        if isinstance(value, bool):
            return None
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        if isinstance(value, int):
            return value if abs(value) <= WHOLE else None
        if isinstance(value, str):
            text = self._plain(value)
        elif isinstance(value, Decimal):
            text = str(value)
        else:
            return None
        if re.fullmatch(r"-?\d{1,100}", text, flags=re.ASCII):
            return self.read(int(text))
        if not re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", text, flags=re.ASCII | re.IGNORECASE):
            return None
        return self.read(float(text))

    def _plain(self, text: str) -> str:
        """A number's text as Python writes it, without currency and groups; empty where it breaks the rule."""
        text = _without_currency(text.strip())
        used = re.search(ALWAYS_GROUPS, text)
        sign = used.group() if used else self.thousands
        if sign:
            alike = next((signs for signs in (SPACES, APOSTROPHES) if sign in signs), None)
            text = _ungrouped(text, f"[{alike}]" if alike else re.escape(sign))
        if self.decimal == ",":
            text = "" if "." in text else text.replace(",", ".")
        return text


WAYS = (
    *(Numbers(thousands=sign) for sign in (",", " ")),
    *(Numbers(decimal=",", thousands=sign) for sign in ("", ".", " ")),
)
"""How tables write numbers, apart from the plain way."""


def number_flags(cells: Sequence[object]) -> str:
    """Name the flags of `prepare` by which most of the cells would read as numbers; empty where there are none."""
    read = {way: sum(isinstance(cell, str) and way.read(cell) is not None for cell in cells) for way in WAYS}
    most = max(read.values(), default=0)
    flags: list[set[str]] = []
    for way in (way for way, count in read.items() if count == most > 0):
        parts = {"--decimal ,"} if way.decimal == "," else set()
        parts |= {f"--thousands {shlex.quote(way.thousands)}"} if way.thousands else set()
        if not any(parts >= simpler for simpler in flags):
            flags.append(parts)
    return " or ".join(" ".join(sorted(parts)) for parts in flags)


def read_values(row: Mapping[Any, Any], roles: Roles, numbers: Numbers) -> tuple[str, dict[str, Any], str | None]:
    """Product id, fields, and why the row cannot be used (None where it can)."""
    cell = row.get(roles.id)
    id = "" if is_missing(cell) else read_id(cell)
    if reason := _no_text(cell, roles.id, "an id"):
        return id[:SHOWN], {}, reason
    values: dict[str, Any] = {}
    for name, kind in roles.fields.items():
        value = row.get(name)
        if reason := _no_text(value, name, f"a {kind}"):
            return id, {}, reason
        values[name] = numbers.read(value) if kind == "number" else str(value)
        if values[name] is None:
            return id, {}, _no_number(value, name)
    return id, values, None


def read_id(cell: object) -> str:
    """Read a product's id as text that can be stored; a whole number that came as a double has no point."""
    if isinstance(cell, float) and cell.is_integer() and abs(cell) < 2**63:
        cell = int(cell)
    return storable("" if _kind(cell) else str(cell).strip())


def read_picture(cell: object) -> tuple[str, bytes | None]:
    """URL or path, as text that can be stored, and bytes, of a picture's cell; `picture_reason` says why of none."""
    if isinstance(cell, Mapping):
        data = cell.get("bytes")
        return read_picture(cell.get("path"))[0], data if isinstance(data, bytes) else None
    if isinstance(cell, bytes):
        return "", cell
    return ("" if is_missing(cell) or _kind(cell) else storable(str(cell).strip())), None


def picture_reason(cell: object, column: str) -> str | None:
    """Explain why a cell names no picture; None where it names one."""
    picture, embedded = read_picture(cell)
    if embedded is not None:
        return None
    path = cell.get("path") if isinstance(cell, Mapping) else cell
    if isinstance(cell, Mapping) and not {"bytes", "path"} & set(cell):
        return f"an object in {column!r}, not a picture"
    reason = None if is_missing(path) else _no_text(path, column, "a picture", longest=None)
    return reason or (None if picture else f"no value in {column!r}")


def is_storable(text: str) -> bool:
    """Tell text that can be written down: half a character (JavaScript's slice leaves such) cannot."""
    return storable(text) == text


def storable(text: str) -> str:
    """Make text one that can be written down: half a character becomes a question mark."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


def _kind(value: object) -> str | None:
    """What a cell holds, where that is nothing to write down."""
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


def _no_text(value: object, name: str, wanted: str, longest: int | None = MAX_TEXT) -> str | None:
    """Why a cell cannot be written down; None where it can."""
    if isinstance(value, Unreadable):
        return f"cannot be read in {name!r}: {value.reason}"
    if kind := _kind(value):
        return f"{kind} in {name!r}, not {wanted}"
    if is_missing(value):
        return f"no value in {name!r}"
    text = value if isinstance(value, str) else ""
    if longest and len(text) > longest:
        return f"too long: {len(text):,} characters in {name!r}, more than {longest:,}"
    if not is_storable(text):
        return f"not text in {name!r}: {text[:SHOWN]!r} holds bytes of another encoding, or half a character"
    return None


def _no_number(value: object, name: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"not a number in {name!r}: larger than {WHOLE:,}, beyond which digits are lost"
    flags = number_flags([value])
    return f"not a number in {name!r}: {str(value)[:SHOWN]!r}" + (f"; try {flags}" if flags else "")


def _without_currency(text: str) -> str:
    """A number without the sign or the ISO code of a currency beside it."""
    if text and unicodedata.category(text[0]) == "Sc":
        return text[1:].lstrip()
    if text and unicodedata.category(text[-1]) == "Sc":
        return text[:-1].rstrip()
    if text[:3] in CURRENCIES:
        return text[3:].lstrip()
    return text[:-3].rstrip() if text[-3:] in CURRENCIES else text


def _ungrouped(text: str, sign: str) -> str:
    """Digits without the signs (a pattern) between their groups; empty where the groups are not of three.

    India groups by two before the last three: 1,29,999.
    """
    whole = re.match(rf"[-+]?(?:\d|{sign})*", text, flags=re.ASCII)
    grouped = whole.group() if whole else ""
    groups = rf"[-+]?(?:\d{{1,3}}(?:{sign}\d{{3}})+|\d{{1,2}}(?:{sign}\d\d)+{sign}\d{{3}})"
    if re.search(sign, grouped) and not re.fullmatch(groups, grouped, flags=re.ASCII):
        return ""
    return re.sub(sign, "", grouped) + text[len(grouped) :]
