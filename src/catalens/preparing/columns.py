"""Columns by what they are for, guessed where nobody says, and their cells -> values to learn, or why not.

imageurl,product_code,title,category3_code,full_price
  -> picture `imageurl`, product `product_code`, text `title`, category `category3_code`, number `full_price`
{"product_code": "8043", "title": "Check Scarf", "full_price": "390.00"}
  -> {"title": "Check Scarf", "full_price": 390.0}
"""

import math
import re
import shlex
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal
from importlib.resources import files
from typing import Any, Literal, Self

from pydantic import model_validator

from catalens.catalog.storage import Roles, is_missing
from catalens.config import Frozen, Kind
from catalens.errors import RecipeError

SAMPLE_ROWS = 500
"""Rows that a guess looks at."""

# Names as shops write them, the best first; a name counts without its case and signs.
PICTURES = ("local_image_path", "image", "image_url", "picture", "photo", "img", "file_name", "thumbnail")
PRODUCTS = ("product_code", "product_id", "sku", "asin", "gtin", "ean", "code", "item_id", "article", "id", "handle")
TITLES = ("title", "product_title", "product_name", "name", "product", "label", "description")
CATEGORIES = ("category", "kategorie", "categorie", "product_type", "type", "department", "class")
NUMBERS = ("full_price", "price", "list_price", "amount", "cost", "msrp", "preis", "prix")
PICTURE_NAME = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?|avif)(\?|#|$)", re.IGNORECASE)
MAX_TEXT = 2000
"""Characters of a text or category; a longer one is no title."""
SHOWN = 40
"""Characters of a cell that a reason shows."""
SPACES = " \u00a0\u2007\u2009\u202f"
APOSTROPHES = "'\u2019"
"""Signs that group digits; of each kind one stands for all."""
ALWAYS_GROUPS = "[" + SPACES[1:] + APOSTROPHES + "]"
"""Signs that stand in no number but between its groups."""
CURRENCIES = frozenset((files("catalens") / "assets" / "currencies.txt").read_text(encoding="ascii").split())
"""ISO 4217."""
MAX_WHOLE = 2**53
"""Up to here every whole number is a double, too, which is what columns with fractions are stored as."""


# Cells ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unreadable:
    """A cell whose value cannot be had, with the reason."""

    reason: str


class Numbers(Frozen):
    """Signs by which the table writes its numbers."""

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
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        if isinstance(value, int):
            return value if not isinstance(value, bool) and abs(value) <= MAX_WHOLE else None
        if not isinstance(value, str | Decimal):
            return None
        text = self._plain(value) if isinstance(value, str) else str(value)
        if re.fullmatch(r"-?\d{1,100}", text, flags=re.ASCII):
            return self.read(int(text))
        number = re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?", text, flags=re.ASCII | re.IGNORECASE)
        return self.read(float(text)) if number else None

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
    reason = None if is_missing(path) else _no_text(path, column, "a picture", max_chars=None)
    return reason or (None if picture else f"no value in {column!r}")


def storable(text: str) -> str:
    """Text that can be written down: half a character (JavaScript's slice leaves such) becomes a question mark."""
    return text.encode("utf-8", errors="replace").decode("utf-8")


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


def _no_text(value: object, name: str, wanted: str, max_chars: int | None = MAX_TEXT) -> str | None:
    """Explain why a cell cannot be written down; None where it can."""
    if isinstance(value, Unreadable):
        return f"cannot be read in {name!r}: {value.reason}"
    if kind := _kind(value):
        return f"{kind} in {name!r}, not {wanted}"
    if is_missing(value):
        return f"no value in {name!r}"
    text = value if isinstance(value, str) else ""
    if max_chars and len(text) > max_chars:
        return f"too long: {len(text):,} characters in {name!r}, more than {max_chars:,}"
    if storable(text) != text:
        return f"not text in {name!r}: {text[:SHOWN]!r} holds bytes of another encoding, or half a character"
    return None


def _no_number(value: object, name: str) -> str:
    if isinstance(value, int) and not isinstance(value, bool):
        return f"not a number in {name!r}: larger than {MAX_WHOLE:,}, beyond which digits are lost"
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


# Columns --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Columns:
    """Columns of a table by what they are for; what is left out is guessed."""

    image: str | None = None
    id: str | None = None
    fields: Mapping[str, Kind] = field(default_factory=dict)


def guess_columns(
    columns: Sequence[str],
    rows: Sequence[Mapping[Any, Any]],
    given: Columns,
    numbers: Numbers,
) -> Columns:
    """Complete what is given by what names and values of some first `rows` tell.

    Fields are guessed only where none is given: a title, a category and a number, as many as there are. Raises
    RecipeError where a column for the picture, the product or any field cannot be told.
    """
    free = [name for name in columns if storable(name) == name and name not in {given.image, given.id, *given.fields}]
    picture = given.image or guess_image(free, rows)
    free = [name for name in free if name != picture]
    product = given.id or guess_id(free, rows)
    if product is None:
        raise RecipeError(f"no column names the product: say which with --id; columns are {names_of(columns)}")
    if given.fields:
        return Columns(picture, product, given.fields)
    free = [name for name in free if name != product]
    fields: dict[str, Kind] = {}
    if title := _pick(free, rows, TITLES, lambda found: _mostly(isinstance(value, str) for value in found)):
        fields[title] = "text"
    if category := _pick(free, rows, CATEGORIES, lambda found: len(set(map(str, found))) <= max(2, len(found) // 2)):
        fields[category] = "category"
    if number := _number_column(free, rows, numbers):
        fields[number] = "number"
    if not fields:
        raise RecipeError(
            "no column to learn is known by its name: say which with --text, --category and --number; "
            f"columns are {names_of(columns)}"
        )
    return Columns(picture, product, fields)


def guess_image(columns: Sequence[str], rows: Sequence[Mapping[Any, Any]]) -> str:
    """The column of the pictures, by names and values of some first `rows`; RecipeError where it cannot be told."""
    named = _pick(columns, rows, PICTURES, _are_pictures)
    picture = named or next((name for name in columns if _are_pictures(_values(rows, name))), None)
    if picture is None:
        raise RecipeError(f"no column holds pictures: say which with --image; columns are {names_of(columns)}")
    return picture


def guess_id(columns: Sequence[str], rows: Sequence[Mapping[Any, Any]]) -> str | None:
    """The column that names the product, guessed likewise; None where there is none."""
    return _pick(columns, rows, PRODUCTS, lambda found: _mostly(map(_is_id, found)))


def names_of(columns: Sequence[str]) -> str:
    """List column names for a message, so that blanks and odd characters are seen."""
    return ", ".join(map(repr, columns))


def _number_column(columns: Sequence[str], rows: Sequence[Mapping[Any, Any]], numbers: Numbers) -> str | None:
    """The number column by its name, the best first; RecipeError where a better one's values do not read."""
    for name in _ranked(columns, NUMBERS):
        found = _values(rows, name)
        wrong = [value for value in found if numbers.read(value) is None]
        if found and _mostly(numbers.read(value) is not None for value in found):
            return name
        written = [value for value in wrong if isinstance(value, str) and any(char.isdigit() for char in value)]
        if not found or len(written) < 0.5 * len(found):
            continue  # words, in a column that is only called like a number's
        flags = number_flags(written)
        raise RecipeError(
            f"column {name!r} is a number by its name, but {written[0][:SHOWN]!r} does not read as one: name the "
            "columns to learn with --text, --category and --number" + (f", or say {flags}" if flags else "")
        )
    return None


def _pick(
    columns: Sequence[str], rows: Sequence[Mapping[Any, Any]], names: Sequence[str], fits: Callable[[list[Any]], bool]
) -> str | None:
    ranked = _ranked(columns, names)
    return next((name for name in ranked if (found := _values(rows, name)) and fits(found)), None)


def _values(rows: Sequence[Mapping[Any, Any]], name: str) -> list[Any]:
    found = (row.get(name) for row in rows)
    return [value for value in found if not is_missing(value) and not isinstance(value, Unreadable)]


def _ranked(columns: Sequence[str], names: Sequence[str]) -> list[str]:
    """Columns that bear one of the names, then those that begin with one; of numbered ones the last, the finest."""
    plain = {column: _plain(column) for column in columns}
    known = [_plain(name) for name in names]
    ranks: dict[str, tuple[int, int, int]] = {}
    for column, text in plain.items():
        if text in known:
            ranks[column] = 0, known.index(text), 0
        elif (begins := next((i for i, name in enumerate(known) if text.startswith(name)), None)) is not None:
            ranks[column] = 1, begins, -int(re.sub(r"\D", "", text)[:9] or 0)
    return sorted(ranks, key=lambda column: ranks[column])


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _mostly(fits: Iterable[bool]) -> bool:
    """Require four of five: a few bad cells are no reason against a column."""
    counted = list(fits)
    return sum(counted) >= 0.8 * len(counted)


def _is_id(value: Any) -> bool:
    return isinstance(value, str | int) or (isinstance(value, float) and value.is_integer())


def _are_pictures(found: Sequence[Any]) -> bool:
    """Tell whether at least half of the values are bytes, Image structs, names of pictures, or URLs."""
    return bool(found) and sum(map(_is_picture, found)) >= 0.5 * len(found)


def _is_picture(value: Any) -> bool:
    if isinstance(value, bytes | Mapping):
        return isinstance(value, bytes) or bool({"bytes", "path"} & set(value))
    return bool(PICTURE_NAME.search(str(value))) or str(value).startswith(("http://", "https://"))
