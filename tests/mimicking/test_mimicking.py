"""Sample data like a real catalogue: how like it is, and that nothing of the original is in it."""

import io
import itertools
import json
import os
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from browser import needs_chromium, opened
from datasets import load_dataset
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from catalens.catalog import SPLITS, Catalog, CatalogWriter, Roles, open_picture, picture_facts, split_of
from catalens.catalog.storage import FACTS
from catalens.cli import app
from catalens.config import Kind
from catalens.errors import CatalogError, RecipeError
from catalens.mimicking import (
    Mimicked,
    Planner,
    Profile,
    StratumPlanner,
    Survey,
    invent_words,
    kind_in,
    kolmogorov,
    last_place,
    learn_profile,
    load_profile,
    meaning_of,
    mimic_catalog,
    quantile,
    refuse_leaks,
    round_by,
    save_profile,
    shareable,
    summarise,
    total_variation,
)
from catalens.mimicking.profile import OTHER, RARE, K
from catalens.sampling import SAMPLE_ROLES, draw_catalog, plan_product, read_asset
from catalens.sampling.assortment import DEMO, PALETTE
from catalens.sampling.picture import SHAPES

ROOT = Path(__file__).parents[2]
TABLE = Path(os.environ.get("CATALENS_FURNITURE") or ROOT.parent / "shared/data/furniture") / "furniture.csv"
PRODUCTS = 500
SECRETS = {  # what is planted into one product each
    "title": [
        "Plain Red Quillfeather Tote Bag",
        "Plain Blue Shirt write-to jane@quill.example",
        "Striped Green Scarf https://quill.example/8043",
        "Plain Black Boot 10000017",
        "Checked White Mug +49 30 5557788",
        "<script>alert(1)</script> Red Cap",
        "Plain Red " + "x" * 3000,
    ],
    "category3_code": ["SADDLERY"],
    "full_price": [9876543.0],
}
TELLTALES = (
    "Quillfeather",
    "quill.example",
    "10000017",
    "5557788",
    "alert(1)",
    "xxxxxxxx",
    "SADDLERY",
    "9876543",
    "9.88e",
)


def picture(colour: Any = "red", size: tuple[int, int] = (24, 24), format: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, colour).save(file, format)
    return file.getvalue()


def small(data: bytes) -> bytes:
    """The same picture at half its size, so that pictures like it are drawn quickly."""
    image, file = Image.open(io.BytesIO(data)), io.BytesIO()
    image.resize((image.width // 2, image.height // 2)).save(file, image.format)
    return file.getvalue()


def write_catalog(
    folder: Path, roles: Roles, rows: Sequence[Mapping[str, Any]], integers: Sequence[str] = ()
) -> Path:
    """A catalogue of rows as dicts; `image` is encoded bytes."""
    with CatalogWriter(folder, roles, {"command": "test", "table": "Quillfeather.csv"}, integers) as writer:
        for row in rows:
            writer.add(
                split_of(row[roles.id]), row["image"], row[roles.id], {name: row[name] for name in roles.fields}
            )
    return folder


def survey_of(*rows: Mapping[str, Any]) -> Survey:
    survey = Survey(SAMPLE_ROLES, len(rows))
    for row in rows:
        survey.take("train", {**row, FACTS: picture_facts(row["image"])})
    return survey


def rows_of(folder: Path) -> list[dict[str, Any]]:
    catalog = Catalog(folder)
    return [row for split in SPLITS if catalog.card.rows[split] for row in catalog.rows(split)]


def contents(folder: Path) -> dict[Path, bytes]:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A drawn shop, some photographs used often, with a secret planted into each of its last products."""
    images = [small(row.image) for row in draw_catalog(40, seed=11)]
    rows: list[dict[str, Any]] = []
    for number in range(PRODUCTS):
        product = plan_product(11, number, DEMO, 0.08)
        values = {"title": product.title, "category3_code": product.category, "full_price": product.price}
        for _ in range(product.photographs):
            rows.append({"product_code": product.code, "image": images[len(rows) % len(images)], **values})
    ends = itertools.count(1)
    for column, secrets in SECRETS.items():
        for secret in secrets:
            rows[-next(ends) * 3][column] = secret
    return write_catalog(tmp_path_factory.mktemp("original") / "Quillfeather", SAMPLE_ROLES, rows)


@pytest.fixture(scope="module")
def profile(source: Path) -> Profile:
    return learn_profile(Catalog(source))


@pytest.fixture(scope="module")
def mimicked(source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Mimicked]:
    out = tmp_path_factory.mktemp("mimicked") / "shop"
    return out, mimic_catalog(out, source, 300, seed=3, workers=2)


# Nothing of the original


def test_nothing_planted_is_anywhere_in_what_is_written(mimicked: tuple[Path, Mimicked]):
    texts = [data for path, data in contents(mimicked[0]).items() if path.suffix != ".parquet"]
    assert len(texts) == 4
    written = b"\n".join(texts)
    rows = rows_of(mimicked[0])
    shown = json.dumps([{k: v for k, v in row.items() if k != "image"} for row in rows])
    for telltale in TELLTALES:
        assert telltale.encode() not in written
        assert telltale not in shown
    assert max(row["full_price"] for row in rows) < 10_000


def test_no_id_title_pair_or_picture_is_that_of_the_original(source: Path, mimicked: tuple[Path, Mimicked]):
    before, after = rows_of(source), rows_of(mimicked[0])
    for key in (
        lambda row: row["product_code"],
        lambda row: row["title"],
        lambda row: (row["title"], row["full_price"]),
        lambda row: row["image"],
    ):
        assert {key(row) for row in before}.isdisjoint(key(row) for row in after)
    assert not any(row["product_code"] in other["title"] for row in before for other in after[:50])


def test_no_word_of_fewer_than_k_products_survives(source: Path, mimicked: tuple[Path, Mimicked]):
    products = {row["product_code"]: row for row in rows_of(source)}.values()
    uses = Counter(word for row in products for word in {*row["title"].split(), *row["category3_code"].split()})
    for row in rows_of(mimicked[0]):
        words = [*row["title"].split(), *row["category3_code"].split()]
        assert all(uses[word] == 0 or uses[word] >= K for word in words)
        assert any(uses[word] == 0 for word in row["title"].split())


def counts_of(node: Any, path: str = "") -> list[tuple[str, float]]:
    """Every count of products in a profile's JSON, with its place."""
    if isinstance(node, dict):
        return [count for key, value in node.items() for count in counts_of(value, f"{path}.{key}")]
    if isinstance(node, list) and len(node) == 3 and isinstance(node[2], bool):
        return [(path, node[1])]  # a group
    if isinstance(node, list) and len(node) == 3 and all(isinstance(value, int | float) for value in node):
        return [(path, node[2])]  # a picture size
    if isinstance(node, list):
        return [count for value in node for count in counts_of(value, path)]
    counted = (".products", ".words.", ".elsewhere.", ".places.")
    return [(path, node)] if isinstance(node, int) and any(word in path for word in counted) else []


def test_every_count_in_a_profile_is_of_k_products_or_more(profile: Profile):
    counts = counts_of(profile.model_dump(mode="json", exclude={"texts": {"title": {"order", "missing"}}}))
    small = [(path, n) for path, n in counts if n < K and not path.endswith(("rare_products", "missing"))]
    assert len(counts) > 100
    assert small == []


words = st.lists(st.sampled_from(["red", "bag", "oslo", "x1", "mug", "été", "a@b.c", "Jo"]), min_size=1, max_size=5)


@settings(max_examples=8)
@given(texts=st.lists(words.map(" ".join), min_size=K + 2, max_size=60), k=st.sampled_from([2, 5, K]))
def test_whatever_the_texts_none_of_them_and_no_rare_word_is_drawn(
    texts: list[str], k: int, tmp_path_factory: pytest.TempPathFactory
):
    rows = [{"id": f"{n}", "t": text, "image": picture()} for n, text in enumerate(texts)]
    folder = write_catalog(tmp_path_factory.mktemp("any") / "c", Roles(id="id", fields={"t": "text"}), rows)
    profile = learn_profile(Catalog(folder), k)
    uses = Counter(word for text in texts for word in set(text.split()))
    told = {*profile.texts["t"].order, *profile.texts["t"].elsewhere, *profile.words("t")}
    assert all(uses[word] >= k for word in told if word and " " not in word)
    planner = Planner(profile, seed=1)
    for number in range(40):
        text = planner.product(number).values["t"]
        assert isinstance(text, str)
        assert text not in texts
        assert all(uses[word] == 0 or uses[word] >= k for word in text.split())


@pytest.mark.parametrize(
    "word", ["jane@quill.example", "https://q.example", "www.q.example", "q.example/8", "20431", "a\x00b"]
)
def test_addresses_and_long_numbers_do_not_stay_however_frequent(word: str):
    assert not shareable(word)


@given(
    st.lists(st.floats(1, 1e6), min_size=K + 2, max_size=200, unique=True),
    st.floats(1e7, 1e12),
)
def test_the_dearest_product_moves_no_figure(values: list[float], extreme: float):
    extremes = [*values, extreme]
    assert summarise([*values, 2e6], K, logarithmic=True) == summarise(extremes, K, logarithmic=True)
    assert all(group.products >= K + 2 for group in summarise(extremes, K))
    assert sum(group.products for group in summarise(extremes, K)) == len(extremes)


@given(st.lists(st.sampled_from([1.0, 2.0, 5.5, 390.0, 7e5]), max_size=300))
def test_only_values_that_many_products_share_are_told(values: list[float]):
    counts = Counter(values)
    for group in summarise(values, K):
        assert group.products >= K + 2
        if group.shared:
            assert counts[group.value] == group.products


def test_what_holds_something_of_the_original_is_refused(source: Path):
    row = rows_of(source)[0]
    original = survey_of(row)
    drawn = {
        "product_code": "like-1",
        "title": "Zuma Bag",
        "category3_code": "Z",
        "full_price": 1.0,
        "image": b"\xff",
    }
    refuse_leaks(original, survey_of(drawn), K)
    for change, words in (
        ({"product_code": row["product_code"]}, "an id"),
        ({"title": f"Zuma {row['product_code']}"}, "an id"),
        ({"title": row["title"]}, "a text"),
        ({"title": row["title"].split()[0]}, "a word of fewer than 10 products"),
        ({"title": row["title"], "full_price": row["full_price"]}, "a text with its number"),
        ({"image": row["image"]}, "a picture"),
    ):
        with pytest.raises(CatalogError, match=f"drawn row 7 holds .*{words}.* nothing was written"):
            refuse_leaks(original, survey_of(*[drawn] * 6, drawn | change), K)


ROLES = Roles(id="id", fields={"kind": "category", "title": "text"})


def shop(folder: Path, secret: str = "", kind: str = "Bags", frequent: str = "Red Tote") -> Path:
    """120 products whose titles are two frequent words and one of their own; `secret` is in one title."""
    rows = [
        {
            "id": f"Q{n}",
            "kind": kind,
            "title": f"{frequent} Own{chr(97 + n // 26)}{chr(97 + n % 26)}",
            "image": picture(),
        }
        for n in range(120)
    ]
    rows[60]["title"] += f" {secret}"
    return write_catalog(folder, ROLES, rows)


def invented(folder: Path) -> set[str]:
    profile = learn_profile(Catalog(folder))
    return {word.casefold() for stratum in profile.strata for words in stratum.invented.values() for word in words}


def test_a_private_word_is_not_told_by_what_was_never_invented(tmp_path: Path):
    """The attack: make the words up again from all that is public, and see which of them the profile passed over."""
    without = shop(tmp_path / "a/shop")
    public = invented(without)
    for name in ("catalens/invented/title/Bags", "title/Bags", ""):
        for length in (3, 4, 5, 6):
            again = invent_words(200, lambda share, length=length: length, "lower", set(), name)
            assert len(public & set(again)) <= 2  # by chance
    # One private word more, among all else that is the same: other words altogether, so none is seen to be missing.
    private = invented(shop(tmp_path / "b/shop", secret=max(public, key=len)))
    assert len(public) == len(private) >= 4
    assert len(public & private) <= 1
    assert invented(shop(tmp_path / "c/shop")) == public  # the same rows, wherever they lie


@pytest.mark.parametrize("word", ["[NEW]", "[Sale]", "[1,2]", '["a","b"]', "[", "]", '[{"a":1}]', "\\[x]\\", '"[]"'])
def test_brackets_in_words_and_names_stay_as_they_are(word: str, tmp_path: Path):
    source = shop(tmp_path / "in/shop", kind=word, frequent=f"Red {word}")
    mimic_catalog(tmp_path / "out", source, 12)
    profile = load_profile(tmp_path / "out/profile.json")
    assert profile == balanced_profile(source)
    assert [stratum.category for stratum in profile.strata] == [word]
    assert profile.words("title")[word] == 120
    assert {row["kind"] for row in rows_of(tmp_path / "out")} == {word}


def balanced_profile(source: Path) -> Profile:
    """A profile as a file brings it back."""
    return Profile.model_validate_json(learn_profile(Catalog(source)).model_dump_json())


def test_a_page_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As on a full disk: the next try finds its place free."""
    source = shop(tmp_path / "in/shop")

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("catalens.mimicking.mimic.write_fidelity", full)
        with pytest.raises(OSError, match="No space"):
            mimic_catalog(tmp_path / "out", source, 12)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]
    mimic_catalog(tmp_path / "out", source, 12)
    assert (tmp_path / "out/fidelity.html").exists()
    assert (tmp_path / "out/profile.json").exists()


def test_drawn_pictures_hold_nothing_but_pixels(tmp_path: Path):
    exif = Image.Exif()
    exif.get_ifd(0x8825)[1] = "N"  # where it was taken
    exif[0x010E] = "Quillfeather"
    rows = []
    for n in range(40):
        file = io.BytesIO()
        xmp = {"xmp": b"<x:xmpmeta>Quillfeather</x:xmpmeta>"} if n % 2 else {}
        comment = {} if n % 2 else {"comment": b"Quillfeather"}
        Image.new("RGB", (24, 24), (n, 9, 9)).save(file, "WEBP" if n % 2 else "JPEG", exif=exif, **xmp, **comment)
        rows.append({"id": str(n), "title": "red bag", "image": file.getvalue()})
    source = write_catalog(tmp_path / "in", Roles(id="id", fields={"title": "text"}), rows)
    mimic_catalog(tmp_path / "out", source, 40)
    assert not any(b"Quillfeather" in data for path, data in contents(tmp_path / "out").items())
    for row in rows_of(tmp_path / "out"):
        assert b"Quillfeather" not in row["image"]
        drawn = Image.open(io.BytesIO(row["image"]))
        assert not drawn.getexif()
        assert not {"exif", "xmp", "comment", "icc_profile"} & set(drawn.info)


# As like it as can be


def test_every_distance_is_small(mimicked: tuple[Path, Mimicked]):
    found = {distance.name: distance.value for distance in mimicked[1].fidelity.distances}
    bounds = {
        "category3_code": 0.05,
        "format": 0.08,
        "title, frequent words": 0.2,
        "title, words": 0.1,
        "title, characters": 0.2,
        "full_price": 0.1,
        "longer side": 0.15,
        "width / height": 0.15,
        "border brightness": 0.15,
        "bytes a row": 0.15,
        "rows a product": 0.08,
    }
    assert set(found) == set(bounds)
    assert {name: value for name, value in found.items() if value > bounds[name]} == {}
    assert abs(mimicked[1].fidelity.costs[0].change) < 0.1


def test_numbers_come_back_spread():
    rng = random.Random(1)
    prices = [round(rng.lognormvariate(5, 0.8)) - 0.01 for _ in range(900)] + [390.0] * 100
    histogram = summarise(prices, K, logarithmic=True)
    drawn = [quantile(histogram, (n + 0.5) / 1000, logarithmic=True) for n in range(1000)]
    assert kolmogorov(prices, drawn) < 0.05
    assert sum(abs(value - 390.0) < 1e-6 for value in drawn) == pytest.approx(100, abs=3)


@pytest.mark.parametrize(
    ("price", "place"), [(1290.0, 1), (1299.0, 0), (19.99, -2), (59.4, -1), (7.0, 0), (0.0, 0), (0.1 + 0.2, -6)]
)
def test_numbers_have_as_many_digits_as_they_had(price: float, place: int):
    assert last_place(price) == place
    drawn = round_by({place: K}, 123.456789123, 0.5)
    assert drawn == round(123.456789123, -place)
    assert round_by({2: K}, 7.4, 0.5) == 7, "rounded to hundreds it would be nothing"
    assert round_by({}, 7.123456789, 0.5) == 7.12346


def test_numbers_of_a_category_are_its_own(mimicked: tuple[Path, Mimicked]):
    rows = rows_of(mimicked[0])
    middle = {
        name: np.median([row["full_price"] for row in rows if row["category3_code"] == name])
        for name in ("TOPS", "BAGS", "OUTERWEAR")
    }
    assert middle["TOPS"] * 3 < middle["BAGS"] < middle["OUTERWEAR"]


def test_a_picture_tells_the_category(mimicked: tuple[Path, Mimicked]):
    rows = [row for row in rows_of(mimicked[0]) if row["product_code"][-1] != "7"]
    asked = [row for row in rows_of(mimicked[0]) if row["product_code"][-1] == "7"]
    known, pixels = (
        np.array([np.asarray(open_picture(row["image"]).resize((12, 12)), dtype=float).ravel() for row in some])
        for some in (rows, asked)
    )
    nearest = [int(np.abs(known - picture).sum(axis=1).argmin()) for picture in pixels]
    hits = sum(rows[n]["category3_code"] == row["category3_code"] for n, row in zip(nearest, asked, strict=True))
    frequent = Counter(row["category3_code"] for row in rows).most_common(1)[0][0]
    assert hits > 1.5 * sum(row["category3_code"] == frequent for row in asked)


def test_a_picture_tells_the_number_up_to_the_noise(profile: Profile):
    planner = Planner(profile, seed=5)
    products = [planner.product(number) for number in range(600)]
    same_look: dict[Any, list[float]] = {}
    for product in products:
        key = (product.look, product.values["category3_code"])
        same_look.setdefault(key, []).append(float(product.values["full_price"] or 0))
    within = np.mean([np.std(np.log(prices)) for prices in same_look.values() if len(prices) > 2])
    by_category: dict[Any, list[float]] = {}
    for product in products:
        by_category.setdefault(product.values["category3_code"], []).append(float(product.values["full_price"] or 0))
    among = np.mean([np.std(np.log(prices)) for prices in by_category.values() if len(prices) > 10])
    assert within < 0.6 * among


def test_the_same_seed_gives_the_same_bytes(mimicked: tuple[Path, Mimicked], tmp_path: Path):
    profile = mimicked[0] / "profile.json"
    for folder, workers in (("a/shop", 1), ("b/shop", 2)):
        mimic_catalog(tmp_path / folder, profile, 40, seed=3, workers=workers)
    assert contents(tmp_path / "a/shop") == contents(tmp_path / "b/shop")
    assert mimic_catalog(tmp_path / "c", profile, 4, seed=4).card.content_hash != (
        mimic_catalog(tmp_path / "d", profile, 4, seed=5).card.content_hash
    )


def test_the_profile_alone_draws_the_same_rows(mimicked: tuple[Path, Mimicked], tmp_path: Path):
    made = mimic_catalog(tmp_path / "out", mimicked[0] / "profile.json", 40, seed=3)
    known = {row["product_code"]: [] for row in rows_of(mimicked[0])}
    for row in rows_of(mimicked[0]):
        known[row["product_code"]].append(row)
    assert all(row in known[row["product_code"]] for row in rows_of(tmp_path / "out"))
    assert not made.fidelity.checked
    assert max(distance.value for distance in made.fidelity.distances) < 0.4


def test_datasets_opens_it_and_the_card_says_where_it_is_from(
    mimicked: tuple[Path, Mimicked], source: Path, tmp_path: Path
):
    opened = load_dataset(str(mimicked[0]), cache_dir=str(tmp_path))
    assert sum(split.num_rows for split in opened.values()) == 300
    card = Catalog(mimicked[0]).card
    assert card.provenance["command"] == "sample --like"
    assert card.roles == Catalog(source).card.roles
    assert card.left_out == {}
    assert set(card.figures) == {"mdape", "mae"}
    shares = {split: n / sum(card.products.values()) for split, n in card.products.items()}
    assert shares["train"] == pytest.approx(0.8, abs=0.06)


# Profiles


def test_a_profile_is_read_back_as_it_was(profile: Profile, tmp_path: Path):
    save_profile(profile, tmp_path / "profile.json")
    assert load_profile(tmp_path / "profile.json") == profile
    lines = (tmp_path / "profile.json").read_text().splitlines()
    assert max(map(len, lines)) < 400
    assert json.loads((tmp_path / "profile.json").read_text())["k"] == K


@pytest.mark.parametrize(
    ("text", "words"),
    [("", "not a profile of format 2"), ('{"format": 1}', "not a profile"), ("[]", "not a profile")],
)
def test_what_is_no_profile_is_refused(text: str, words: str, tmp_path: Path):
    (tmp_path / "profile.json").write_text(text)
    with pytest.raises(CatalogError, match=words):
        mimic_catalog(tmp_path / "out", tmp_path / "profile.json")
    with pytest.raises(CatalogError, match="is not a catalogue"):
        mimic_catalog(tmp_path / "out", tmp_path / "nothing")
    assert not (tmp_path / "out").exists()


def test_infinite_numbers_and_broken_pictures_are_passed_over(tmp_path: Path):
    roles = Roles(id="id", fields={"n": "number"})
    rows = [{"id": str(n), "n": float("inf") if n % 3 else 9.5, "image": picture()} for n in range(40)]
    mimic_catalog(tmp_path / "out", write_catalog(tmp_path / "in", roles, rows), 5)
    assert {row["n"] for row in rows_of(tmp_path / "out")} - {None} == {9.5}
    broken = [row | {"image": b"no picture" if n > K else row["image"]} for n, row in enumerate(rows)]
    with pytest.raises(CatalogError, match="has 11 products with a picture that can be read, and 12 are needed"):
        mimic_catalog(tmp_path / "none", write_catalog(tmp_path / "broken", roles, broken), 5)
    assert not (tmp_path / "none").exists()


def test_too_few_products_to_hide_one_among_are_refused(tmp_path: Path):
    rows = [{"id": str(n), "t": "red bag", "image": picture()} for n in range(K + 1)]
    folder = write_catalog(tmp_path / "few", Roles(id="id", fields={"t": "text"}), rows)
    with pytest.raises(CatalogError, match=r"has 11 products: .* needs 12 or more"):
        mimic_catalog(tmp_path / "out", folder)
    with pytest.raises(CatalogError, match="exists already"):
        mimic_catalog(folder, folder)


FIELDS: list[dict[str, Kind]] = [
    {"n": "number"},
    {"c": "category"},
    {"t": "text", "u": "text"},
    {"c": "category", "d": "category", "n": "number", "m": "number"},
]


@pytest.mark.parametrize("fields", FIELDS, ids=lambda fields: "".join(fields))
def test_any_fields_and_missing_values(fields: dict[str, Kind], tmp_path: Path):
    rng = random.Random(2)
    kinds = {
        "text": lambda: rng.choice([None, "red bag", "blue mug", "", "Plain black bag of Oslo"]),
        "category": lambda: rng.choice(["BAGS", "MUGS", None, f"only {rng.random()}"]),
        "number": lambda: rng.choice([-3, 0, 12, None, rng.randrange(-50, 900)]),
    }
    rows = [
        {"id": f"like-{n}", "image": picture(n), **{name: kinds[kind]() for name, kind in fields.items()}}
        for n in range(150)
    ]
    integers = [name for name, kind in fields.items() if kind == "number"]
    folder = write_catalog(tmp_path / "odd", Roles(id="id", fields=fields), rows, integers)
    mimic_catalog(tmp_path / "out", folder, 120)
    drawn = rows_of(tmp_path / "out")
    for name, kind in fields.items():
        shares = [sum(row[name] in (None, "") for row in some) / len(some) for some in (rows, drawn)]
        assert shares[0] == pytest.approx(shares[1], abs=0.15)
        if kind == "number":
            assert all(isinstance(row[name], int | None) for row in drawn)
            assert "c" in fields or any(row[name] == 12 for row in drawn)  # a category has too few of them
        if kind == "category":
            assert {"BAGS", "MUGS"} < {row[name] for row in drawn}
            assert not any(str(row[name]).startswith("only ") for row in drawn)
    assert not {row["id"] for row in rows} & {row["id"] for row in drawn}


def test_a_leading_category_is_missing_as_often_beside_rare_names(tmp_path: Path):
    kinds = ["BAGS"] * 10 + ["MUGS"] * 4 + [None] * 4 + [f"only {n}" for n in range(2)]
    rows = [{"id": f"P{n}", "image": picture(n), "c": kinds[n % 20]} for n in range(300)]
    rows = [
        row | ({"c": f"{row['c']} {n}"} if str(row["c"]).startswith("only") else {}) for n, row in enumerate(rows)
    ]
    folder = write_catalog(tmp_path / "odd", Roles(id="id", fields={"c": "category"}), rows)
    mimic_catalog(tmp_path / "out", folder, 300)
    drawn = Counter(
        str(row["c"]) if row["c"] in ("BAGS", "MUGS", None) else "rare" for row in rows_of(tmp_path / "out")
    )
    wanted = {"BAGS": 150, "MUGS": 60, "None": 60, "rare": 30}
    assert {name: drawn[name] for name in wanted} == pytest.approx(wanted, abs=15)


# What is drawn


@pytest.mark.parametrize(
    ("word", "meaning"),
    [
        ("Red", ("colour", "Red")),
        ("schwarze", ("colour", "Black")),
        ("Écharpe", ("kind", "Scarf")),
        ("Borse", ("kind", "Tote Bag")),
        ("Zapatos", ("kind", "Sneaker")),
        ("RAYÉ,", ("pattern", "Striped")),
        ("gold-tone", ("trim", "Gold-Trim")),
        ("denim", ("material", "Blue")),
        ("Oslo", None),
        ("", None),
    ],
)
def test_words_have_meanings_in_some_languages(word: str, meaning: tuple[str, str] | None):
    assert meaning_of(word) == meaning


def test_every_kind_of_the_vocabulary_can_be_drawn():
    assert set(read_asset("vocabulary.yaml")["kind"]) == set(SHAPES)
    assert kind_in("Coffee table") == "Table"
    assert kind_in("LEATHER-GOODS") == "Wallet"
    assert kind_in("Miscellaneous") is None


def test_what_a_title_says_is_seen(profile: Profile):
    index = next(n for n, stratum in enumerate(profile.strata) if stratum.category == "BAGS")
    bags = StratumPlanner(profile, index)
    assert bags.look(["Gold-Trim", "Checked", "Navy", "Tote", "Bag"]) == ("Tote Bag", "Navy", "Checked", "Gold-Trim")
    assert bags.look(["Dotted", "Denim", "Backpack"]) == ("Backpack", "Blue", "Dotted", "")
    invented = profile.strata[index].invented["title"]
    seen = {bags.look([word, "Backpack"]) for word in invented}
    assert len(seen) == len(invented)
    assert bags.look([]).kind == "Tote Bag"
    assert bags.look([]).colour in PALETTE


@pytest.mark.parametrize(
    ("size", "format"), [((300, 40), "JPEG"), ((1, 700), "PNG"), ((30, 30), "WEBP"), ((200, 260), "GIF")]
)
def test_pictures_come_in_sizes_and_formats_of_the_original(size: tuple[int, int], format: str, tmp_path: Path):
    rows = [{"id": str(n), "t": "red bag", "image": picture((n, 90, 200), size, format)} for n in range(20)]
    for row in rows[:3]:  # too few to be told, and no reason for the others to be any larger
        row["image"] = picture("red", (size[0] + 1, size[1] + 1), format)
    folder = write_catalog(tmp_path / "few", Roles(id="id", fields={"t": "text"}), rows)
    mimic_catalog(tmp_path / "out", folder, 8)
    seen = [picture_facts(row["image"]) for row in rows_of(tmp_path / "out")]
    assert {one.format for one in seen} == {format}
    assert [one.size for one in seen].count(size) >= 5


# The page and the command


@pytest.mark.browser
@needs_chromium
def test_the_page_opens_and_runs_nothing(tmp_path: Path):
    nasty = "<img src=x onerror=alert(1)>"
    rows = [{"id": str(n), nasty: "red <b>bag</b> {{7*7}}", "c": nasty, "image": picture(n)} for n in range(30)]
    folder = write_catalog(tmp_path / "in", Roles(id="id", fields={nasty: "text", "c": "category"}), rows)
    mimic_catalog(tmp_path / "out", folder, 30)
    with opened((tmp_path / "out/fidelity.html").as_uri(), width=390, dark=True) as (page, problems):
        assert page.locator("section").count() == 3
        assert page.locator(".card").count() == 24
        assert page.locator("figure").count() >= 5
        assert nasty in page.locator("#distances").inner_text()
        assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
        assert page.locator("script, b >> text=bag").count() == 0
    assert problems == []


@pytest.mark.integration
def test_the_command_prints_what_tuning_needs_side_by_side(source: Path, tmp_path: Path):
    command = [
        sys.executable,
        "-m",
        "catalens",
        "sample",
        "out",
        "--like",
        str(source),
        "--rows",
        "60",
        "--workers",
        "1",
    ]
    result = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, timeout=300)
    assert result.returncode == 0, result.stderr
    for line in ("bytes a row", "tokens a row", "crops a row", "exact matches: 0 of 60 rows"):
        assert line in result.stdout
    needs = load_profile(tmp_path / "out/profile.json").needs
    assert needs
    assert (tmp_path / "out/fidelity.html").read_text().count("within 10 %") >= 2


def test_noise_is_the_profiles_own():
    result = CliRunner().invoke(app, ["sample", "out", "--like", "in", "--noise", "1"])
    assert isinstance(result.exception, RecipeError)
    assert "--noise: leave it out" in str(result.exception)


@pytest.mark.skipif(not TABLE.is_file(), reason=f"no furniture table at {TABLE}")
def test_a_real_catalogue_is_mimicked_and_kept_to_itself(tmp_path: Path):
    from catalens import prepare
    from catalens.reading import Columns

    fields: dict[str, Kind] = {"title": "text", "category3_code": "category", "width_cm": "number"}
    folder, _ = prepare(str(TABLE), tmp_path / "furniture", Columns(fields=fields))
    made = mimic_catalog(tmp_path / "out", folder, 200, workers=2)
    found = {distance.name: distance.value for distance in made.fidelity.distances}
    assert found["category3_code"] < 0.03
    assert found["width_cm"] < 0.12
    assert found["title, words"] < 0.1
    assert found["title, frequent words"] < 0.3
    assert found["border brightness"] < 0.15
    titles = {row["title"] for row in rows_of(folder)}
    assert titles.isdisjoint(row["title"] for row in rows_of(tmp_path / "out"))


def test_distances_of_names():
    assert total_variation({"a": 1, "b": 1}, {"a": 2, "b": 2}) == 0
    assert total_variation({"a": 1}, {"b": 9}) == 1
    assert total_variation({}, {}) == 0
    assert RARE != OTHER


@pytest.mark.slow
@pytest.mark.integration
def test_the_tiny_model_learns_a_mimicked_catalogue(tmp_path: Path):
    """On its own held-out rows it beats the most frequent answer and the nearest picture in every field."""
    from catalens.config import make_recipe
    from catalens.evaluation.evaluate import evaluate
    from catalens.sampling import sample_catalog
    from catalens.training.train import train

    sample_catalog(tmp_path / "shop", 1200, seed=2, workers=2)
    fractions = {"train": 0.82, "validation": 0.03, "test": 0.15}
    mimic_catalog(tmp_path / "like", tmp_path / "shop", 800, seed=1, fractions=fractions, workers=2)
    rates = {"method": "full", "optimizer": "muon", "learning_rate": 3e-3, "adamw_learning_rate": 3e-3}
    training = rates | {"epochs": 14, "batch_size": 16, "num_evals": 1, "validation_rows": 0}
    scoring = {"batch_size": 64, "before": False, "image_use": True, "resamples": 100}
    recipe = make_recipe(
        {"catalog": str(tmp_path / "like"), "training": training, "evaluation": scoring, "tracking": {"to": "none"}}
    )
    train(recipe, tmp_path / "run")
    metrics = evaluate(tmp_path / "run").metrics

    def figure(scores: Any, column: str, metric: str) -> float:
        return scores["fields"][column][metric]["value"]

    for baseline in metrics["baselines"].values():
        assert figure(metrics["model"], "title", "exact") > figure(baseline, "title", "exact") + 0.1
        assert figure(metrics["model"], "title", "similarity") > figure(baseline, "title", "similarity") + 0.1
        assert figure(metrics["model"], "category3_code", "accuracy") > figure(baseline, "category3_code", "accuracy")
        assert figure(metrics["model"], "full_price", "mdape") < figure(baseline, "full_price", "mdape")
    assert metrics["image_use"]
