"""Columns by what they are for, and cells as tables write them."""

import base64
import math
import re
from collections.abc import Sequence
from decimal import Decimal

import pytest
from hostile import encoded, pixels

from catalens.catalog import Roles, is_missing
from catalens.config import Kind
from catalens.errors import RecipeError
from catalens.reading import (
    Columns,
    Numbers,
    Sample,
    Unreadable,
    expand,
    filled,
    guess_columns,
    paths_in,
    paths_of,
    picture_reason,
    pictures_of,
    read_id,
    read_values,
    value_of,
)

JPEG = encoded(pixels(1, 40, 40), "JPEG")


def test_missing_is_nothing_blank_or_nan():
    assert all(map(is_missing, (None, math.nan, "", " \t")))
    assert not any(map(is_missing, (0, "0", False, "nan", b"x")))


def test_the_first_field_that_fails_is_named():
    roles = Roles(id="sku", fields={"title": "text", "price": "number"})
    assert read_values({"sku": 7, "title": "Bag", "price": 5}, roles, {}) == ("7", {"title": "Bag", "price": 5}, None)
    assert read_values({"sku": 7, "title": "Bag"}, roles, {}, "refuse") == ("7", {}, "no value in 'price'")
    german = {"price": Numbers(decimal=",")}
    assert read_values({"sku": 7, "title": "Bag", "price": "1.290,50"}, roles, german)[1]["price"] == 1290.5


@pytest.mark.parametrize("nothing", [None, math.nan, "", " \t", Decimal("NaN")], ids=repr)
@pytest.mark.parametrize(
    "lacking", [("title",), ("price",), ("kind",), ("title", "kind"), ("title", "price")], ids=str
)
def test_a_row_keeps_the_fields_that_it_has(lacking: tuple[str, ...], nothing: object):
    roles = Roles(id="sku", fields={"title": "text", "kind": "category", "price": "number"})
    row = {"title": "Bag", "kind": "BAGS", "price": 5}
    empty = {"sku": 7} | row | dict.fromkeys(lacking, nothing)
    assert read_values(empty, roles, {}) == ("7", row | dict.fromkeys(lacking), None)
    assert read_values(empty, roles, {}, "refuse") == ("7", {}, f"no value in {lacking[0]!r}")
    bad = next(name for name in ("title", "kind", "price") if name not in lacking)
    assert str(read_values(empty | {bad: [1]}, roles, {})[2]).startswith(f"a list in {bad!r}")


@pytest.mark.parametrize("nothing", [None, math.nan, "", " \t", Decimal("NaN")], ids=repr)
@pytest.mark.parametrize("fields", [{"title": "text"}, {"title": "text", "price": "number"}], ids=len)
def test_a_row_without_any_field_is_refused(fields: dict[str, Kind], nothing: object):
    row = {"sku": 7} | dict.fromkeys(fields, nothing)
    assert read_values(row, Roles(id="sku", fields=fields), {}) == ("7", {}, "no field has a value")
    assert read_values(row, Roles(id="sku", fields=fields), {}, "refuse") == ("7", {}, "no value in 'title'")


@pytest.mark.parametrize(
    ("cell", "id"),
    [(123.0, "123"), (800000000001.0, "800000000001"), (1.5, "1.5"), ("0123.0", "0123.0"), (" 7 ", "7"), (-0.0, "0")],
)
def test_an_id_that_came_as_a_double_has_no_point(cell: object, id: str):
    assert read_id(cell) == id
    assert read_values({"sku": cell, "title": "Bag"}, Roles(id="sku", fields={"title": "text"}), {})[0] == id


# Pictures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("cell", "pictures"),
    [
        ("a.jpg", ["a.jpg"]),
        (JPEG, [JPEG]),
        ({"bytes": JPEG, "path": "a.jpg"}, [JPEG]),
        ({"bytes": None, "path": "a.jpg"}, ["a.jpg"]),
        ({"bytes": None, "path": None}, []),
        (["a.jpg", "b.jpg"], ["a.jpg", "b.jpg"]),
        ([{"bytes": JPEG, "path": None}], [JPEG]),
        (
            [{"large": "http://s/1.jpg", "variant": "MAIN"}, {"url": "http://s/2.jpg"}],
            ["http://s/1.jpg", "http://s/2.jpg"],
        ),
        ({"image_url": {"url": "http://shop/1.jpg"}}, ["http://shop/1.jpg"]),
        ({"colour": "red"}, []),
        ('["http://shop/1.jpg", "http://shop/2.jpg"]', ["http://shop/1.jpg", "http://shop/2.jpg"]),
        ("['http://shop/1.jpg']", ["http://shop/1.jpg"]),
        ("http://shop/1.jpg, http://shop/2.jpg", ["http://shop/1.jpg", "http://shop/2.jpg"]),
        ("http://shop/1.jpg|https://shop/2.jpg", ["http://shop/1.jpg", "https://shop/2.jpg"]),
        ("http://shop/1.jpg\nhttp://shop/2.jpg", ["http://shop/1.jpg", "http://shop/2.jpg"]),
        ("http://shop/a,b.jpg", ["http://shop/a,b.jpg"]),
        ("pix/1.jpg; pix/2.png", ["pix/1.jpg", "pix/2.png"]),
        ("photos/IMG, 2024.jpg", ["photos/IMG, 2024.jpg"]),
        ("//cdn.shop/x.jpg?v=1", ["https://cdn.shop/x.jpg?v=1"]),
        ("pix\\p014.jpg", ["pix/p014.jpg"]),
        ("s3://bucket/x.jpg", ["s3://bucket/x.jpg"]),
        (base64.b64encode(JPEG).decode(), [JPEG]),
        (f"data:image/jpeg;base64,{base64.b64encode(JPEG).decode()}", [JPEG]),
        ("data:image/jpeg;base64,@@", ["data:image/jpeg;base64,@@"]),
        ("A" * 100, ["A" * 100]),
        (None, []),
        (" ", []),
        (5, ["5"]),
        ("http://s/1.jpg||http://s/2.jpg", ["http://s/1.jpg", "http://s/2.jpg"]),
        ("http://s/1.jpg#http://s/2.jpg", ["http://s/1.jpg", "http://s/2.jpg"]),
        ("http://s/1.jpg#top", ["http://s/1.jpg#top"]),
        ("a.jpg b.jpg", ["a.jpg", "b.jpg"]),
        ("red bag.jpg", ["red bag.jpg"]),
        ('"http://s/1.jpg"', ["http://s/1.jpg"]),
        ("{http://s/1.jpg,http://s/2.jpg}", ["http://s/1.jpg", "http://s/2.jpg"]),
        ("[http://s/1.jpg, http://s/2.jpg]", ["http://s/1.jpg", "http://s/2.jpg"]),
        ('<p><img class="x" src="http://s/1.jpg"/></p>', ["http://s/1.jpg"]),
        ("<img src='a.jpg'><img src='b.jpg'>", ["a.jpg", "b.jpg"]),
        ('=IMAGE("http://s/1.jpg")', ["http://s/1.jpg"]),
        ('=HYPERLINK("http://s/1.jpg";"photo")', ["http://s/1.jpg"]),
        ("![front](http://s/1.jpg)", ["http://s/1.jpg"]),
        ("a.jpg (http://dl.s/x/a.jpg),b.jpg (http://dl.s/b)", ["http://dl.s/x/a.jpg", "http://dl.s/b"]),
        ("photo (1).jpg", ["photo (1).jpg"]),
        ("http://s/a_(1).jpg", ["http://s/a_(1).jpg"]),
        ("http://s/1.jpg?w=1&amp;h=2", ["http://s/1.jpg?w=1&h=2"]),
        ("http:/s/1.jpg", ["http://s/1.jpg"]),
        ("https:\\\\s\\1.jpg", ["https://s/1.jpg"]),
        ({"main": "http://s/1.jpg", "gallery": ["http://s/2.jpg"]}, ["http://s/1.jpg", "http://s/2.jpg"]),
        ({"@type": "ImageObject", "contentUrl": "http://s/1.jpg"}, ["http://s/1.jpg"]),
        ({"0": {"url": "http://s/1.jpg"}}, ["http://s/1.jpg"]),
        ({"id": "1", "brand": {"logo": "logo.png"}}, []),
        (repr(JPEG), [JPEG]),
        (repr({"bytes": JPEG, "path": None}), [JPEG]),
        ("\\x" + JPEG.hex(), [JPEG]),
        ("0x" + JPEG.hex().upper(), [JPEG]),
        ("ab" * 100, ["ab" * 100]),
    ],
    ids=lambda value: repr(value)[:40],
)
def test_a_cell_names_pictures_in_many_forms(cell: object, pictures: list[str | bytes]):
    assert pictures_of(cell) == pictures


@pytest.mark.parametrize(
    ("cell", "reason"),
    [
        ({"large": ""}, "an object in 'photo' that names no picture"),
        ([None], "a list in 'photo' that names no picture"),
        (None, "no value in 'photo'"),
        ("", "no value in 'photo'"),
        (Unreadable("broken"), "cannot be read in 'photo': broken"),
    ],
    ids=repr,
)
def test_a_cell_that_is_no_picture_says_what_it_is(cell: object, reason: str):
    assert pictures_of(cell) == []
    assert picture_reason(cell, "photo") == reason


@pytest.mark.parametrize(
    ("template", "row", "path"),
    [
        ("images/{id}.jpg", {"id": "15000"}, "images/15000.jpg"),
        ("images/{id}.jpg", {"id": 15000.0}, "images/15000.jpg"),
        ("{id[:3]}/{id}.jpg", {"id": "0108775015"}, "010/0108775015.jpg"),
        ("{a}/{b}.png", {"a": "x", "b": None}, None),
        ("{a}.png", {}, None),
    ],
)
def test_a_path_is_made_of_cells(template: str, row: dict, path: str | None):
    assert filled(template, row) == path


# Nested cells ----------------------------------------------------------------------------------------------------

SOFA = {
    "item_id": "B0",
    "item_name": [{"language_tag": "en_US", "value": "Sofa"}, {"language_tag": "de_DE", "value": "Couch"}],
    "product_type": [{"value": "CHAIR"}],
    "size": {"width": {"value": 12.5, "unit": "cm"}},
    "tags": ["a", "b"],
    "a.b": "plain",
    "printed": "[{'a': 1}]",
    "dumped": '{"a": [1, 2]}',
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("item_id", "B0"),
        ("item_name[0].value", "Sofa"),
        ("item_name[language_tag=de_DE].value", "Couch"),
        ("item_name[language_tag=fr_FR].value", None),
        ("size.width.value", 12.5),
        ("tags[1]", "b"),
        ("tags[7]", None),
        ("a.b", "plain"),
        ("size.depth.value|item_id", "B0"),
        ("size.depth.value|id:{item_id}", "id:B0"),
        ("printed[0].a", 1),
        ("dumped.a[1]", 2),
    ],
)
def test_a_path_leads_into_a_cell(name: str, value: object):
    assert value_of(SOFA, paths_in(name, list(SOFA))) == value


def test_a_path_from_no_column_is_none():
    assert paths_in("nothing[0]", list(SOFA)) == []
    assert paths_in("item_name[", list(SOFA)) == []


def test_paths_of_nested_cells_are_found():
    assert paths_of("item_name", [SOFA["item_name"]] * 3)[1] == "item_name[language_tag=en_US].value"
    assert paths_of("product_type", [SOFA["product_type"], None]) == ["product_type[0].value"]
    assert paths_of("size", [SOFA["size"]]) == ["size.width.value", "size.width.unit"]
    assert paths_of("item_id", ["B0", "B1"]) == ["item_id"]


# Roles -----------------------------------------------------------------------------------------------------------


def guess(row: dict, given: Columns | None = None, base: str = "") -> Columns:
    return guess_columns(expand(list(row), [row] * 4, base), given or Columns())


def named(image: str, id: str, **fields: str) -> Columns:
    kinds = {"text": "text", "category": "category", "number": "number"}
    return Columns(image, id, {fields[kind]: kind for kind in kinds if kind in fields})


FASHION = {
    "sku": "8",
    "name": "Scarf",
    "product_type": "SCARVES",
    "price": "1,290.00",
    "img_src": "https://x.test/8.jpg",
}


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        (FASHION, named("img_src", "sku", text="name", category="product_type", number="price")),
        (  # Shopify
            {
                "Handle": "item-0",
                "Title": "Item 0",
                "Body (HTML)": "<p>",
                "Vendor": "V",
                "Type": "Shirts",
                "Variant SKU": "S-0",
                "Variant Price": "10.00",
                "Variant Compare At Price": "12.00",
                "Image Src": "https://cdn.test/p.jpg",
                "Image Position": "1",
                "Cost per item": "4.00",
            },
            named("Image Src", "Handle", text="Title", category="Type", number="Variant Price"),
        ),
        (  # WooCommerce
            {
                "ID": "1",
                "Type": "simple",
                "SKU": "S1",
                "Name": "Mug",
                "Regular price": "10.00",
                "Sale price": "",
                "Categories": "Home > Mugs",
                "Images": "https://s.test/1.jpg, https://s.test/2.jpg",
                "Parent": "",
            },
            named("Images", "SKU", text="Name", category="Categories", number="Regular price"),
        ),
        (  # Google Merchant
            {
                "id": "S1",
                "title": "Mug",
                "link": "https://s.test/page",
                "image_link": "https://s.test/1.jpg",
                "additional_image_link": "https://s.test/2.jpg",
                "price": "15.00 USD",
                "product_type": "Mugs",
                "google_product_category": "672",
                "item_group_id": "G1",
            },
            named("image_link", "item_group_id", text="title", category="product_type", number="price"),
        ),
        (  # Etsy
            {
                "TITLE": "Bowl",
                "PRICE": "20.5",
                "IMAGE1": "pix/0.jpg",
                "IMAGE2": "pix/1.jpg",
                "IMAGE10": "",
                "SKU": "B",
            },
            named("IMAGE1", "SKU", text="TITLE", number="PRICE"),
        ),
        (  # a scrape of Amazon
            {
                "sku": "S0",
                "product_url": "https://s.test/p/0",
                "product_title": "Lamp",
                "category": "A",
                "price": "10.5",
                "main_image_url": "https://s.test/p.jpg",
            },
            named("main_image_url", "sku", text="product_title", category="category", number="price"),
        ),
        (  # the cookbook's
            {
                "imageurl": "https://s.test/1",
                "product_code": "8043",
                "title": "Scarf",
                "category1_code": "A",
                "category2_code": "B",
                "category3_code": "C",
                "full_price": "390.0",
            },
            named("imageurl", "product_code", text="title", category="category3_code", number="full_price"),
        ),
        (
            {"sku": "S0", "bild": "pix/p.jpg", "titel": "Schrank", "kategorie": "Tische", "preis": "129,00"},
            named("bild", "sku", text="titel", category="kategorie", number="preis"),
        ),
        (
            SOFA | {"path": "pix/0.jpg"},
            named(
                "path",
                "item_id",
                text="item_name[language_tag=en_US].value",
                category="product_type[0].value",
            ),
        ),
        (
            {"file_name": "p0.jpg", "title": "Lamp", "category": "A", "price": 10.5},
            named("file_name", "file_name", text="title", category="category", number="price"),
        ),
    ],
    ids=["plain", "shopify", "woocommerce", "merchant", "etsy", "amazon", "cookbook", "german", "berkeley", "folder"],
)
def test_columns_of_known_exports_are_told(row: dict, columns: Columns):
    assert guess(row) == columns


@pytest.mark.parametrize(
    "names",
    [
        ("réf", "désignation", "photo", "catégorie", "prix TTC"),
        ("referencia", "título", "imagen", "categoría", "precio"),
        ("codice", "Titolo", "Immagine", "Categoria", "Prezzo"),
        ("código", "Título", "Imagem", "Categoria", "Preço"),
        ("Artikelnr", "Bezeichnung", "Bild", "Warengruppe", "VK-Preis"),
        ("kod", "nazwa", "zdjęcie", "kategoria", "cena"),
        ("kód", "název", "obrázek", "kategorie", "cena"),
        ("cikkszám", "megnevezés", "kép", "kategória", "ár"),
        ("varenummer", "navn", "billede", "kategori", "pris"),
        ("artnr", "benämning", "bild", "kategori", "pris"),
        ("referentie", "naam", "afbeelding", "categorie", "prijs"),
        ("kod", "ürün ad\u0131", "görsel", "kategori", "fiyat"),
        ("артикул", "название", "фото", "категория", "цена"),
        ("κωδικός", "τίτλος", "εικόνα", "κατηγορία", "τιμή"),
    ],
)
def test_columns_are_known_in_the_languages_of_shops(names: tuple[str, ...]):
    id, title, image, category, price = names
    row = {id: "A7", "farbe": "rot", title: "Scarf", image: "7.jpg", category: "SCARVES", price: "12,50"}
    assert guess(row) == named(image, id, text=title, category=category, number=price)


@pytest.mark.parametrize("name", ["CURRENCY_CODE", "color_code", "country code", "postal_code"])
def test_a_code_that_many_rows_share_names_no_product(name: str):
    rows = [{name: "USD", "photo": f"{n}.jpg", "title": "Scarf"} for n in range(40)]
    assert guess_columns(Sample(list(rows[0]), rows), Columns()).id == "photo"


@pytest.mark.parametrize("id", ["id:7", "7", "P-1"])
def test_the_parents_of_woocommerce_are_named_by_sku_or_number(id: str):
    rows = [
        {
            "ID": str(n),
            "Type": "variation",
            "SKU": f"S{n}",
            "Name": "Mug",
            "Images": "a.jpg",
            "Parent": id if n % 2 else "",
        }
        for n in range(10)
    ]
    wanted = "Parent|SKU|id:{ID}" if id == "id:7" else "Parent|SKU"
    assert guess_columns(Sample(list(rows[0]), rows), Columns()).id == wanted


@pytest.mark.parametrize(
    "name", ["master_id", "parentSku", "Parent ASIN", "variant_group_id", "Variant of", "parent id"]
)
@pytest.mark.parametrize("count", [8, 60])
def test_variants_are_one_product_whatever_their_group_is_called(name: str, count: int):
    rows = [{"sku": f"S{n}", "title": "Hat", "image": f"{n}.jpg", name: f"G{n // 3}"} for n in range(count)]
    assert guess_columns(Sample(list(rows[0]), rows), Columns()).id in (f"{name}|sku", name)
    same = [row | {name: "one for all"} for row in rows]
    assert count < 20 or guess_columns(Sample(list(rows[0]), same), Columns()).id == "sku"


@pytest.mark.parametrize("name", ["parent_category", "Parent Name", "parentType", "group department"])
def test_what_many_products_share_is_no_group(name: str):
    assert guess(FASHION | {name: "Shoes"}).id == "sku"


@pytest.mark.parametrize("row", [{"photo": JPEG, "title": "Scarf"}, {"photo": JPEG, "title": "Scarf", "row": "x"}])
def test_rows_are_numbered_where_no_column_names_the_product(row: dict):
    assert guess(row).id == ("row_number" if "row" in row else "row")


@pytest.mark.parametrize("name", ["file_name", "image", "photo"])
def test_a_picture_s_column_may_name_the_product_too(name: str):
    row = {name: "a.jpg", "title": "Scarf"}
    assert guess(row, Columns(id=name)).image == name
    assert guess(row).id == name


def test_a_picture_deep_in_an_object_is_named_by_its_path():
    row = {"goods": {"id": "1", "name": "Scarf", "brand": {"logo": "logo.png"}, "media": [{"url": "a.jpg", "w": 3}]}}
    assert guess(row).image == "goods.media[0].url"


def test_a_list_of_pictures_is_one_column():
    assert guess({"id": "1", "title": "Scarf", "images": ["a.jpg", "b.jpg"]}).image == "images"


@pytest.mark.parametrize(("answers", "image"), [({"front"}, "front"), ({"page", "front"}, "page"), (set(), None)])
def test_servers_are_asked_where_no_name_and_no_ending_tells(answers: set[str], image: str | None):
    rows = [
        {"id": f"{n}", "title": "Scarf", "page": f"https://s.test/p/{n}", "front": f"https://s.test/a/{n}"}
        for n in range(8)
    ]
    asked: dict[str, list[str]] = {}

    def probe(name: str, addresses: Sequence[str]) -> bool:
        asked[name] = list(addresses)
        return name in answers

    sample = Sample(list(rows[0]), rows)
    if image is None:
        with pytest.raises(RecipeError, match="no column holds pictures"):
            guess_columns(sample, Columns(), probe)
    else:
        assert guess_columns(sample, Columns(), probe).image == image
    assert all(len(addresses) == 3 for addresses in asked.values())
    asked.clear()
    guess_columns(
        Sample([*rows[0], "photo"], [row | {"photo": "https://s.test/x"} for row in rows]), Columns(), probe
    )
    assert not asked


def test_what_is_given_is_kept_and_fields_are_then_not_guessed():
    given = Columns(None, "name", {"price": "number"})
    assert guess(FASHION, given) == Columns("img_src", "name", {"price": "number"})


def test_a_path_on_disk_is_taken_before_a_url():
    row = {"imageurl": "https://x.test/8.jpg", "local_image_path": "photos/8.jpg", "id": "8", "title": "Scarf"}
    assert guess(row).image == "local_image_path"


def test_bytes_are_pictures_whatever_the_name():
    assert guess({"id": "1", "title": "Scarf", "front": JPEG}).image == "front"


def test_an_address_without_an_ending_is_a_picture_where_the_column_is_called_so():
    row = {"id": "1", "title": "Scarf", "link": "https://x.test/page/1"}
    assert guess(row | {"photo": "https://x.test/asset/1"}).image == "photo"
    with pytest.raises(RecipeError, match=r"with --image; 'link' holds addresses that do not end as pictures do"):
        guess(row)


@pytest.mark.parametrize("path", ["images/15.jpg", "15.png", "photos/15.jpeg", "images/15/15.webp"])
def test_files_that_are_called_as_the_products_are_found(path: str, tmp_path):
    (tmp_path / path).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / path).write_bytes(JPEG)
    row = {"id": "15", "productDisplayName": "Shirt"}
    if path == "images/15/15.webp":
        assert guess(row, base=str(tmp_path)).image == "images/{id[:3]}/{id}.webp"
    else:
        assert guess(row, base=str(tmp_path)).image == path.replace("15", "{id}")


def test_variants_are_one_product_by_their_group():
    rows = [
        {"id": f"{n}", "title": "Hat", "image": f"{n}.jpg", "item_group_id": "G" if n % 2 else ""} for n in range(8)
    ]
    assert guess_columns(Sample(list(rows[0]), rows), Columns()).id == "item_group_id|id"


@pytest.mark.parametrize("bad", [["a"], b"x", Unreadable("broken"), None, float("nan")], ids=repr)
def test_a_few_bad_cells_are_no_reason_against_a_column(bad: object):
    rows = [FASHION] * 9 + [dict.fromkeys(FASHION, bad)]
    assert guess_columns(Sample(list(FASHION), rows), Columns()) == guess(FASHION) or bad is None


def test_ids_of_doubles_are_guessed():
    assert guess(FASHION | {"sku": 8.0}).id == "sku"


def test_a_number_column_that_holds_words_is_none():
    assert guess(FASHION | {"price": "ask us"}).fields == {"name": "text", "product_type": "category"}


@pytest.mark.parametrize(
    ("row", "words"),
    [
        (
            {"id": "1", "title": "Scarf"},
            "no column holds pictures: say which with --image; columns are 'id', 'title'",
        ),
        ({"photo": "a.jpg", "id": "1", "x": "y"}, "say which with --text, --category and --number"),
    ],
)
def test_what_cannot_be_told_is_asked_for(row: dict, words: str):
    with pytest.raises(RecipeError, match=re.escape(words)):
        guess(row)
