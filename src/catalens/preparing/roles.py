"""What each column is for, guessed from names and values where nobody says.

imageurl,product_code,title,category3_code,full_price
  -> picture `imageurl`, product `product_code`, text `title`, category `category3_code`, number `full_price`
"""

import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from catalens.catalog.storage import is_missing
from catalens.config import Kind
from catalens.errors import RecipeError
from catalens.preparing.values import SHOWN, Numbers, Unreadable, is_storable, number_flags

SAMPLE_ROWS = 500
"""Rows that a guess looks at."""

# Names as shops write them, the best first; a name counts without its case and signs.
PICTURES = ("local_image_path", "image", "image_url", "picture", "photo", "img", "file_name", "thumbnail")
PRODUCTS = ("product_code", "product_id", "sku", "asin", "gtin", "ean", "code", "item_id", "article", "id", "handle")
TITLES = ("title", "product_title", "product_name", "name", "product", "label", "description")
CATEGORIES = ("category", "kategorie", "categorie", "product_type", "type", "department", "class")
NUMBERS = ("full_price", "price", "list_price", "amount", "cost", "msrp", "preis", "prix")
PICTURE_NAME = re.compile(r"\.(jpe?g|png|webp|gif|bmp|tiff?|avif)(\?|#|$)", re.IGNORECASE)


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
    """What is given, and for the rest what names and values of some first `rows` tell.

    Fields are guessed only where none is given: a title, a category and a number, as many as there are. Raises
    RecipeError where a column for the picture, the product or any field cannot be told.
    """
    free = [name for name in columns if is_storable(name) and name not in {given.image, given.id, *given.fields}]
    picture = given.image or guess_image(free, rows)
    free = [name for name in free if name != picture]
    product = given.id or guess_id(free, rows)
    if product is None:
        raise RecipeError(f"no column names the product: say which with --id; columns are {names_of(columns)}")
    free = [name for name in free if name != product]

    def pick(names: Sequence[str], fits: Callable[[list[Any]], bool]) -> str | None:
        return _pick(free, rows, names, fits)

    if given.fields:
        return Columns(picture, product, given.fields)
    fields: dict[str, Kind] = {}
    if title := pick(TITLES, lambda found: _mostly(isinstance(value, str) for value in found)):
        fields[title] = "text"
    if category := pick(CATEGORIES, lambda found: len({str(value) for value in found}) <= max(2, len(found) // 2)):
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
    """The column that names the product, told likewise; None where there is none."""
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
    columns: Sequence[str],
    rows: Sequence[Mapping[Any, Any]],
    names: Sequence[str],
    fits: Callable[[list[Any]], bool],
) -> str | None:
    ranked = _ranked(columns, names)
    return next((name for name in ranked if (found := _values(rows, name)) and fits(found)), None)


def _values(rows: Sequence[Mapping[Any, Any]], name: str) -> list[Any]:
    found = (row.get(name) for row in rows)
    return [value for value in found if not is_missing(value) and not isinstance(value, Unreadable)]


def _ranked(columns: Sequence[str], names: Sequence[str]) -> list[str]:
    """Columns that bear one of the names, then those that begin with one; of numbered ones the last, the finest."""

    def rank(column: str) -> tuple[int, int, int] | None:
        plain = _plain(column)
        for place, name in enumerate(map(_plain, names)):
            if plain == name:
                return 0, place, 0
        for place, name in enumerate(map(_plain, names)):
            if plain.startswith(name):
                return 1, place, -int(re.sub(r"\D", "", plain)[:9] or 0)
        return None

    ranks = {column: place for column in columns if (place := rank(column))}
    return sorted(ranks, key=lambda column: ranks[column])


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _mostly(fits: Iterable[bool]) -> bool:
    """Require four of five: a few bad cells are no reason against a column."""
    counted = Counter(fits)
    return counted[True] >= 0.8 * counted.total()


def _is_id(value: Any) -> bool:
    return isinstance(value, str | int) or (isinstance(value, float) and value.is_integer())


def _are_pictures(found: Sequence[Any]) -> bool:
    """Whether at least half of the values are bytes, Image structs, names of pictures, or URLs."""
    return bool(found) and sum(_is_picture(value) for value in found) >= 0.5 * len(found)


def _is_picture(value: Any) -> bool:
    if isinstance(value, bytes):
        return True
    if isinstance(value, Mapping):
        return bool({"bytes", "path"} & set(value))
    text = str(value)
    return bool(PICTURE_NAME.search(text)) or text.startswith(("http://", "https://"))
