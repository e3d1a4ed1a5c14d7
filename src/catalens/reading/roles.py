"""Columns by what they are for, given by the user or guessed from their names and cells.

    imageurl,product_code,title,category3_code,full_price
      -> picture `imageurl`, product `product_code`, text `title`, category `category3_code`, number `full_price`
    Handle,Title,Type,Variant Price,Image Src,Cost per item
      -> picture `Image Src`, product `Handle`, text `Title`, category `Type`, number `Variant Price`

A name counts by its words, in any case and with any signs between them. A cell counts by what it holds: a picture's
address is known by its ending, and one without an ending only in a column that is called like pictures.
"""

import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from catalens.catalog.values import is_missing
from catalens.config import Kind
from catalens.errors import RecipeError
from catalens.reading.addresses import filled, is_named_picture, pictures_of
from catalens.reading.columns import Unreadable, names_of, storable
from catalens.reading.nested import paths_of
from catalens.reading.numbers import Numbers

# Names as shops write them, the best first; each word of one stands in the column's name, one after the other.
PICTURES = (
    *("local image path", "main image url", "main image", "image src", "image url", "image link", "image", "images"),
    *("img", "picture", "photo", "photos", "pictures", "bild", "bilder", "foto", "fotos", "imagen", "immagine"),
    *("afbeelding", "zdjecie", "obraz", "kep", "file name", "filename", "imageurl", "imagelink", "thumbnail"),
    *("imagem", "imagenes", "bilde", "billede", "kuva", "obrazek", "gorsel", "resim", "фото", "изображение"),
    "εικονα",
)
PRODUCTS = (
    *("product code", "item group id", "handle", "parent sku", "product id", "productid", "sku", "asin", "uniq id"),
    *("article id", "item id", "code", "article", "style", "model number", "artikelnummer", "referenz", "reference"),
    *("gtin", "ean", "upc", "barcode", "id", "key", "file name", "artikelnr", "artnr", "ref", "referencia", "codigo"),
    *("codice", "referentie", "kod", "artikl", "varenummer", "cikkszam", "артикул", "код", "κωδικος"),
)
GROUPS = (
    *("parent", "parent sku", "item group id", "group id", "variant group", "master id", "master sku"),
    *("master product", "variant of", "group sku", "configurable sku"),
)
"""Names of columns that only the variants of a product have."""
NO_GROUPS = {"category", "categories", "type", "name", "title", "department"}
TITLES = (
    *("title", "titel", "titulo", "titre", "titolo", "product title", "product name", "product display name"),
    *("item name", "prod name", "name", "nombre", "nom", "nome", "bezeichnung", "product", "label", "description"),
    *("designation", "denominazione", "naam", "nazwa", "nazev", "navn", "namn", "benamning", "nev", "megnevezes"),
    *("urun adi", "isim", "название", "наименование", "ονομα", "τιτλος", "text", "caption"),
)
CATEGORIES = (
    *("category", "kategorie", "categorie", "categoria", "categories", "category name", "product type"),
    *("article type", "product category", "google product category", "taxonomy", "item type", "type", "department"),
    *("class", "label", "warengruppe", "kategoria", "kategori", "kategoriat", "категория", "раздел", "κατηγορια"),
)
NUMBERS = (
    *("full price", "price", "sale price", "regular price", "list price", "preis", "prix", "precio", "prezzo"),
    *("prijs", "cena", "pris", "hind", "ar", "amount", "msrp", "rrp", "cost", "preco", "hinta", "fiyat", "цена"),
    "τιμη",
)
SPECIAL_NAMES = {
    *("additional", "compare", "cost", "shipping", "tax", "unit", "old", "before", "discount", "min", "max"),
    *("alt", "meta", "seo", "logo", "icon", "avatar", "swatch", "badge"),
}
"""Words by which a column is another than the one of its name: `Cost per item`, `additional_image_link`."""
ROW_NUMBERS = ("row", "row_number", "number_of_row", "catalens_row")
"""Names of the numbers of rows, which stand for products where no column does."""
FOLDERS = ("", "images", "image", "img", "photos", "pictures", "pics")
Probe = Callable[[str, Sequence[str]], bool]
"""Asks for some addresses of a column, and tells whether they are pictures."""
FEWEST_IDS = 0.02
"""Products for each row, below which a column names something else."""
PROBED = 3
"""Columns, and addresses of each, that are asked for."""
ENDINGS = ("jpg", "jpeg", "png", "webp", "JPG", "JPEG", "PNG")


@dataclass(frozen=True)
class Columns:
    """Columns of a table by what they are for; what is left out is guessed.

    Each is a column's name, or a path into its nested cells (`item_name[0].value`); `image` may be a template of
    paths, `images/{id}.jpg`.
    """

    image: str | None = None
    id: str | None = None
    fields: Mapping[str, Kind] = field(default_factory=dict)
    inputs: Sequence[str] = ()
    """Texts that a question may give to the model; never guessed."""


@dataclass(frozen=True)
class Sample:
    """Some first rows of a table, with the values inside nested cells as columns of their own."""

    columns: Sequence[str]
    rows: Sequence[Mapping[Any, Any]]
    base: str = ""
    """Local folder that paths are relative to."""

    def values(self, name: str) -> list[Any]:
        """Cells of a column that hold something."""
        found = (row.get(name) for row in self.rows)
        return [value for value in found if not is_missing(value) and not isinstance(value, Unreadable)]


def words_of(name: str) -> list[str]:
    """Words of a column's name: `Variant Price`, `variant_price` and `variantPrice` have the same."""
    name = re.sub(r"^json\.|\[[^\]]*\]|\.value\b", " ", name)  # json: of a webdataset
    name = "".join(
        sign for sign in unicodedata.normalize("NFKD", name.replace("\u0131", "i")) if not unicodedata.combining(sign)
    )
    split = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[^\W\d])(?=\d)|(?<=\d)(?=[^\W\d])", " ", name)
    return re.findall(r"[^\W_]+", split.lower())


def ranked(columns: Sequence[str], names: Sequence[str], last: bool = False) -> list[str]:
    """Columns that bear one of the names, the best first; of numbered ones the first, or the `last`."""
    found: dict[str, tuple[int, ...]] = {}
    for column in columns:
        words = words_of(column)
        plain = [word for word in words if not word.isdigit()]
        numbers = [int(word[:9]) for word in words if word.isdigit()]
        special = len(SPECIAL_NAMES & set(plain))
        for index, name in enumerate(names):
            wanted = name.split()
            if plain == wanted or "".join(plain) == "".join(wanted):
                rank = (special, 0, index)
            elif any(plain[at : at + len(wanted)] == wanted for at in range(len(plain) - len(wanted) + 1)):
                rank = (special, 1 + len(plain) - len(wanted), index)
            else:
                continue
            number = numbers[0] if numbers else 0
            rank = (*rank, -number if last else number)
            found[column] = min(found.get(column, rank), rank)
    return sorted(found, key=lambda column: found[column])


def guess_columns(sample: Sample, given: Columns, probe: Probe | None = None) -> Columns:
    """Complete what is given by what names and values tell, and by what servers answer to `probe`.

    Fields are guessed only where none is given: a title, a category and a number, as many as there are. Raises
    RecipeError where a column for the picture, the product or any field cannot be told.
    """
    taken = {given.image, given.id, *given.fields, *given.inputs}
    free = [name for name in sample.columns if storable(name) == name and name not in taken]
    named = [name for name in (given.id,) if name and _share(sample, name, _is_picture) >= 0.5]  # by its picture
    picture = given.image or guess_image(sample, [*free, *named], probe)
    free = [name for name in free if name != picture]
    product = given.id or guess_id(sample, free) or _file_name(sample, picture)
    product = product or next(name for name in ROW_NUMBERS if name not in sample.columns)
    if given.fields:
        return Columns(picture, product, given.fields, given.inputs)
    free = [name for name in free if name != product]
    fields: dict[str, Kind] = {}
    if title := _pick(sample, ranked(free, TITLES), _are_titles):
        fields[title] = "text"
    free = [name for name in free if name not in fields]
    if category := _pick(sample, ranked(free, CATEGORIES, last=True), _are_categories):
        fields[category] = "category"
    free = [name for name in free if name not in fields]
    if number := _pick(sample, ranked(free, NUMBERS), _are_numbers):
        fields[number] = "number"
    if not fields:
        raise RecipeError(
            "no column to learn is known by its name: say which with --text, --category and --number; "
            f"columns are {names_of(sample.columns)}"
        )
    return Columns(picture, product, fields, given.inputs)


def guess_image(sample: Sample, free: Sequence[str], probe: Probe | None = None) -> str:
    """The column of the pictures; RecipeError where it cannot be told.

    Where no name and no ending tells, servers are asked for a few addresses of the columns that hold such.
    """
    called = ranked(free, PICTURES)
    sure = {name: _share(sample, name, _is_picture) for name in free}
    addresses = {name: _share(sample, name, _is_address) for name in called}
    best = [name for name in called if sure[name] >= 0.5] or [name for name in called if addresses[name] >= 0.5]
    best = best or sorted(
        (name for name in free if sure[name] >= 0.5),
        key=lambda name: (len(SPECIAL_NAMES & set(words_of(name))), -sure[name]),
    )
    if best:
        filled_ones = [name for name in best if len(sample.values(name)) * 2 >= len(sample.rows)]
        return (filled_ones or best)[0]
    if template := _template(sample, free):
        return template
    maybe = [name for name in free if _share(sample, name, _is_address) >= 0.5]
    for name in maybe[:PROBED] if probe else ():
        addresses = (address for cell in sample.values(name) for address in pictures_of(cell)[:1])
        if probe and probe(name, list(dict.fromkeys(str(one) for one in addresses))[:PROBED]):
            return name
    hint = f"; {names_of(maybe)} holds addresses that do not end as pictures do" if maybe else ""
    raise RecipeError(
        f"no column holds pictures: say which with --image{hint}; columns are {names_of(sample.columns)}; "
        "where files are called by a column, say --image 'images/{id}.jpg'"
    )


def further_images(columns: Sequence[str], image: str) -> list[str]:
    """Columns with more pictures of a row, in their order: numbered like the first, or called additional ones."""
    words = [word for word in words_of(image) if not word.isdigit()]
    numbered: list[tuple[int, str]] = []
    for name in columns:
        own = words_of(name)
        numbers = [int(word[:9]) for word in own if word.isdigit()]
        if name != image and numbers and [word for word in own if not word.isdigit()] == words:
            numbered.append((numbers[0], name))
    more = [name for name in columns if "additional" in words_of(name) and ranked([name], PICTURES)]
    return [*(name for _, name in sorted(numbered)), *(name for name in more if name != image)]


def _template(sample: Sample, free: Sequence[str]) -> str | None:
    """`images/{id}.jpg` where the cells of a column name the files beside the table."""
    if not sample.base or "://" in sample.base:
        return None
    for name in ranked(free, PRODUCTS):
        for folder in FOLDERS:
            for ending in ENDINGS:
                for cell in (f"{{{name}}}", f"{{{name}[:3]}}/{{{name}}}"):
                    template = f"{folder}/{cell}.{ending}".lstrip("/")
                    paths = [path for row in sample.rows[:20] if (path := filled(template, row))]
                    if paths and sum((Path(sample.base) / path).is_file() for path in paths) * 2 > len(paths):
                        return template
    return None


def guess_id(sample: Sample, free: Sequence[str]) -> str | None:
    """The column that names the product, or several where the first is not of all rows; None where there is none."""
    called = [name for name in ranked(free, PRODUCTS) if _are_ids(sample.values(name))]
    best = next((name for name in called if len(sample.values(name)) * 5 >= len(sample.rows)), None)
    if best is None:
        return None
    groups = [name for name in ranked(free, GROUPS) if name != best and not NO_GROUPS & set(words_of(name))]
    parts = [*[name for name in groups if sample.values(name) and _are_ids(sample.values(name))][:1], best]
    whole = [name for name in called if len(sample.values(name)) == len(sample.rows)]
    if len(sample.values(best)) < len(sample.rows):
        parts += whole[:1]
    number = next((name for name in free if words_of(name) == ["id"]), None)
    if number and any(str(value).startswith("id:") for value in sample.values(parts[0])):  # as WooCommerce
        parts = [*(name for name in parts if name != number), f"id:{{{number}}}"]
    return "|".join(parts)


def _file_name(sample: Sample, picture: str) -> str | None:
    """The pictures' own column, where it names files: by the imagefolder convention nothing else names a row."""
    return picture if _share(sample, picture, lambda value: isinstance(value, str)) == 1 else None


def expand(columns: Sequence[str], rows: Sequence[Mapping[Any, Any]], base: str = "") -> Sample:
    """A sample in which the plain values of nested cells are columns."""
    from catalens.reading.nested import value_at

    names: list[str] = []
    more = [dict(row) for row in rows]
    for column in columns:
        names.append(column)
        for path in paths_of(column, (row.get(column) for row in rows)):
            names += [path] if path != column else []
            for row in more if path != column else ():
                row[path] = value_at(row.get(column), path[len(column) :])
    return Sample(names, more, base)


def _pick(sample: Sample, names: Sequence[str], fits: Callable[[list[Any]], bool]) -> str | None:
    for name in names:
        found = sample.values(name)
        if len(found) * 5 >= len(sample.rows) and fits(found):
            return name
    return None


def _share(sample: Sample, name: str, fits: Callable[[Any], bool]) -> float:
    found = sample.values(name)
    return sum(map(fits, found)) / len(found) if found else 0.0


def _mostly(fits: Iterable[bool]) -> bool:
    """Require four of five: a few bad cells are no reason against a column."""
    counted = list(fits)
    return sum(counted) >= 0.8 * len(counted)


def _are_titles(found: list[Any]) -> bool:
    return _mostly(isinstance(value, str) and any(map(str.isalpha, value)) for value in found)


def _are_categories(found: list[Any]) -> bool:
    plain = [value for value in found if isinstance(value, str | int)]
    return _mostly(isinstance(value, str | int) for value in found) and len(set(plain)) <= max(2, 0.7 * len(found))


def _are_numbers(found: list[Any]) -> bool:
    """Numbers by at least one way of writing; which one is told from all cells later."""
    return _mostly(any(way.read(value) is not None for way in (Numbers(), Numbers(decimal=","))) for value in found)


def _are_ids(found: list[Any]) -> bool:
    """Codes of many products, not of a colour or a currency."""
    plain = {str(value) for value in found if isinstance(value, str | int | float)}
    return _mostly(map(_is_id, found)) and (len(found) < 20 or len(plain) > max(1, len(found) * FEWEST_IDS))


def _is_id(value: Any) -> bool:
    return isinstance(value, str | int) or (isinstance(value, float) and value.is_integer())


def _is_picture(value: Any) -> bool:
    """Bytes, or an address or path that ends as pictures do."""
    first = next(iter(pictures_of(value)), None)
    return first is not None and is_named_picture(first)


def _is_address(value: Any) -> bool:
    first = next(iter(pictures_of(value)), None)
    return isinstance(first, str) and (first.startswith("//") or "://" in first)
