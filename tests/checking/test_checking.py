"""A check finds what is planted, says nothing of a clean catalogue, and shows hostile content without running it."""

import io
import random
import re
from collections.abc import Iterable
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
from browser import needs_chromium, opened
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageDraw
from pydantic import ValidationError
from rich.console import Console
from typer.testing import CliRunner

from catalens.catalog.pictures import GPS
from catalens.catalog.scan import LARGEST
from catalens.catalog.storage import CatalogWriter, RejectedRow, Roles
from catalens.checking.check import Check, check_catalog
from catalens.checking.costs import crop_costs
from catalens.checking.distributions import FAR, modified_z, spelling_twins
from catalens.checking.evidence import Finding
from catalens.checking.rules import RULES
from catalens.checking.scanning import Cost, Description
from catalens.checking.terminal import _costs
from catalens.cli import app, main
from catalens.config import PARTS, PartSpec, TrainingSpec, make_recipe
from catalens.costing import plan_check
from catalens.errors import CatalogError, RecipeError
from catalens.estimates import PHI3_VISION
from catalens.pages.histograms import Scale, histogram

ROLES = Roles(id="sku", fields={"title": "text", "kind": "category", "price": "number"})
PROMPT = {
    "fields": [
        {"column": "title", "label": "Product", "kind": "text"},
        {"column": "kind", "label": "Category", "kind": "category"},
        {"column": "price", "label": "Price", "kind": "number"},
    ]
}
KINDS = ("BAGS", "SHOES", "SCARVES")
HOSTILE = (
    "<script>document.title='owned';alert(1)</script>",
    "<img src=http://127.0.0.1:9/x onerror=alert(1)>",
    "</style><style>body{display:none}</style>",
    '"><svg onload=alert(1)>',
    '=HYPERLINK("http://127.0.0.1:9",1)',
    "{{ 7 * 7 }} [bold red]${7*7}[/]",
    "bell\x07 turned\u202e round",
    "A title without an end " * 4_500,
)

Row = dict[str, Any]


def picture(seed: int, size: tuple[int, int] = (160, 128), form: str = "PNG") -> bytes:
    """Shapes that differ from seed to seed, so that no two pictures look alike."""
    draw, (width, height) = random.Random(seed), size
    image = Image.new("RGB", size, tuple(draw.randrange(256) for _ in range(3)))
    pen = ImageDraw.Draw(image)
    for _ in range(14):
        x, y = draw.randrange(width), draw.randrange(height)
        corner = (x + draw.randrange(4, width // 2), y + draw.randrange(4, height // 2))
        shape = pen.ellipse if draw.random() < 0.5 else pen.rectangle
        shape((x, y, *corner), fill=tuple(draw.randrange(256) for _ in range(3)))
    buffer = io.BytesIO()
    image.save(buffer, form)
    return buffer.getvalue()


PICTURES = [picture(seed) for seed in range(150)]


def clean_rows() -> list[Row]:
    """150 rows in three splits, with nothing to say against them."""
    draw = random.Random(3)
    rows = []
    for i in range(150):
        kind = KINDS[i % 3]
        price = round(np.exp(4 + i % 3 + draw.gauss(0, 0.3)), 2)
        split = "train" if i < 90 else "validation" if i < 120 else "test"
        image = PICTURES[i]
        rows.append(
            {"split": split, "sku": f"P{i}", "title": f"Item {i}", "kind": kind, "price": price, "image": image}
        )
    return rows


def stored(folder: Path, rows: Iterable[Row], left_out: Iterable[RejectedRow] = ()) -> Path:
    with CatalogWriter(folder, ROLES, {"command": "test"}) as writer:
        for row in rows:
            writer.add(row["split"], row["image"], row["sku"], {name: row[name] for name in ROLES.fields})
        for row in left_out:
            writer.reject(row)
    return folder


def checked(tmp_path: Path, rows: Iterable[Row], recipe: dict[str, Any] | None = None, **more: Any) -> Check:
    folder = stored(tmp_path / "shop", rows, **more)
    made = make_recipe({"catalog": str(folder), "model": "tiny", "prompt": PROMPT} | (recipe or {}))
    return check_catalog(folder, plan=plan_check(folder, made))


def only(check: Check, words: str) -> Finding:
    """The one finding whose title holds these words."""
    (found,) = [finding for finding in check.findings if words in finding.title]
    return found


def page_of(check: Check) -> str:
    return check.page.read_text(encoding="utf-8")


def test_a_clean_catalogue_has_no_finding(tmp_path):
    check = checked(tmp_path, clean_rows())
    assert check.findings == ()
    assert check.page == tmp_path / "shop/check.html"
    page = page_of(check)
    assert "Ready to train." in page
    assert "None found." in page
    for section in ("problems", "fields", "numbers", "categories", "texts", "pictures", "cost", "reading"):
        assert f'<section id="{section}">' in page
    assert "150 PNG; all can be decoded." in page


def test_a_catalogue_with_its_page_still_opens(tmp_path):
    from datasets import load_dataset

    check = checked(tmp_path, clean_rows())
    opened = load_dataset(str(check.page.parent), cache_dir=str(tmp_path / "cache"))
    assert {split: rows.num_rows for split, rows in opened.items()} == check.card.rows


def test_leaks_are_errors_and_name_their_rows(tmp_path):
    rows = clean_rows()
    rows[100]["sku"] = rows[7]["sku"]
    rows[130]["image"] = rows[8]["image"]
    seen = Image.open(io.BytesIO(rows[9]["image"]))
    buffer = io.BytesIO()
    seen.resize((120, 96)).save(buffer, "JPEG", quality=70)
    rows[131]["image"] = buffer.getvalue()
    check = checked(tmp_path, rows)
    torn = only(check, "product in more than one split")
    assert torn.severity == "error"
    assert [named.row for named in torn.rows] == ["train row 8 (P7)", "validation row 11 (P7)"]
    shared = only(check, "picture in more than one split")
    assert shared.severity == "error"
    assert [named.row for named in shared.rows] == ["train row 9 (P8)", "test row 11 (P130)"]
    alike = only(check, "look alike straddle two splits")
    assert alike.severity == "warning"
    assert alike.rows[0].row == "train row 10 (P9)"
    assert alike.rows[0].detail == "like test row 12 (P131)"
    assert [finding.severity for finding in check.findings[:2]] == ["error", "error"]
    page = page_of(check)
    assert "Mend 2 errors before training." in page
    assert page.count('<li class="card"><div>') == 1, "the pair is shown"


def test_placeholders_are_named_once_whatever_the_number_of_rows(tmp_path):
    rows = clean_rows()
    blank = io.BytesIO()
    Image.new("RGB", (200, 200), "#eeeeee").save(blank, "PNG")
    for row in rows[20:30]:
        row["image"] = blank.getvalue()
    found = only(checked(tmp_path, rows), "shared by 3 or more products")
    assert found.title.startswith("1 picture ")
    assert found.count == len(found.rows) == 10


def test_pictures_that_do_not_decode_are_errors_where_training_would_stop(tmp_path):
    rows = clean_rows()
    rows[3]["image"] = rows[3]["image"][:200]
    few = checked(tmp_path / "few", rows)
    assert only(few, "1 picture cannot be decoded").severity == "warning"
    assert "cannot be decoded" in only(few, "1 picture").rows[0].detail
    for row in rows[120:125]:
        row["image"] = b"<html>not found</html>"
    many = only(checked(tmp_path / "many", rows), "6 pictures cannot be decoded")
    assert many.severity == "error"


def test_small_and_thin_pictures(tmp_path):
    rows = clean_rows()
    rows[0]["image"] = picture(500, (60, 60))
    rows[1]["image"] = picture(501, (900, 150), "JPEG")
    check = checked(tmp_path, rows)
    assert only(check, "1 picture smaller than 112 pixels").rows[0].detail == "60 \u00d7 60"
    assert only(check, "times as long as wide").rows[0].row == "train row 2 (P1)"


def test_positions_are_named(tmp_path):
    exif = Image.Exif()
    exif.get_ifd(GPS).update({1: "N", 2: (52.0, 31.0, 12.0)})
    rows = clean_rows()
    for row in rows[:2]:
        buffer = io.BytesIO()
        Image.open(io.BytesIO(row["image"])).convert("RGB").save(buffer, "JPEG", exif=exif, quality=95)
        row["image"] = buffer.getvalue()
    found = only(checked(tmp_path, rows), "2 pictures with the positions where they were taken")
    assert (found.severity, found.rows[0].row) == ("warning", "train row 1 (P0)")
    assert "--strip-metadata" in found.fix


def test_numbers_that_stand_out(tmp_path):
    rows = clean_rows()
    rows[3]["price"] *= 100  # a slipped decimal point
    rows[4]["price"] = 0.0
    check = checked(tmp_path, rows)
    far = only(check, "price stands far from its category")
    assert [named.row for named in far.rows][:1] == ["train row 4 (P3)"]
    assert "in BAGS, median" in far.rows[0].detail
    assert only(check, "zero or negative").count == 1
    assert "Furthest from their category" in page_of(check)


def test_numbers_with_more_decimals_than_a_picture_tells(tmp_path):
    rows = clean_rows()
    rows[3]["price"] = 84.37999725341797
    rows[4]["price"] = 84.3799
    rows[5]["price"] = 1e-7
    found = only(checked(tmp_path, rows), "price has more than 4 decimals in 2 rows")
    assert found.severity == "warning"
    assert [named.detail for named in found.rows] == ["price 84.37999725341797", "price 1e-07"]


def test_texts_that_do_not_read_back_or_hold_markup(tmp_path):
    rows = clean_rows()
    rows[0]["title"] = "Scarf, Category: SHOES"
    rows[1]["title"] = "Bag <b>new</b> &amp; old"
    rows[2]["title"] = "=SUM(A1)"
    rows[3]["title"] = "W" * 100_000
    rows[4]["title"] = "  "
    check = checked(tmp_path, rows)
    lost = only(check, "does not read back")
    assert [named.row for named in lost.rows] == ["train row 1 (P0)", "train row 5 (P4)"]
    assert "does not read back from" in lost.rows[0].detail
    assert not lost.rows[0].detail.startswith("train row")
    assert only(check, "title holds HTML").rows[0].row == "train row 2 (P1)"
    assert only(check, "spreadsheet formula").rows[0].row == "train row 3 (P2)"
    assert only(check, "longer than 300 characters").rows[0].detail == "100,000 characters"
    assert only(check, "Field title is missing in 1 row").severity == "warning"


def test_a_number_format_that_loses_digits(tmp_path):
    rows = clean_rows()
    for row in rows:
        row["price"] = float(round(row["price"]))
    rows[5]["price"] = 12.5
    recipe = {"prompt": PROMPT | {"numbers": {"decimals": 0}}}
    found = only(checked(tmp_path, rows, recipe), "loses digits in 1 row")
    assert found.rows[0].detail == "price 12.5 is written '12'"


def test_categories_twins_tail_and_words_that_training_never_shows(tmp_path):
    rows = clean_rows()
    for row in rows[0:24:3]:
        row["kind"] = "Bags "
    rows[91]["kind"] = "GLOVES"
    rows[10]["kind"] = "BELTS"
    check = checked(tmp_path, rows)
    twins = only(check, "spells 1 category in more than one way")
    assert twins.rows[0].detail == "'BAGS', 'Bags '"
    assert twins.count == 8
    unseen = only(check, "without any training row")
    assert [(named.row, named.detail) for named in unseen.rows] == [("validation row 2 (P91)", "GLOVES")]
    rare = only(check, "fewer than 5 training rows")
    assert [named.row for named in rare.rows] == ["train row 11 (P10)"]


def test_every_rejected_form_is_shown(tmp_path):
    reasons = ["not a number in 'price': '1.299,00 \u20ac'"] * 3 + [
        "not a number in 'price': 'on request'",
        "HTTP 404",
    ]
    left_out = [RejectedRow(row=i, id=f"R{i}", reason=reason) for i, reason in enumerate(reasons, start=1)]
    check = checked(tmp_path, clean_rows(), left_out=left_out)
    found = only(check, "did not make it into the catalogue")
    assert found.severity == "note"
    assert found.count == 5
    assert found.rows[0].row == "row 1 (R1)"
    page = page_of(check)
    for form in ("&#39;1.299,00 \u20ac&#39;", "&#39;on request&#39;", "HTTP 404"):
        assert form in page


def test_an_empty_split_and_an_empty_catalogue(tmp_path):
    check = checked(tmp_path / "some", [row for row in clean_rows() if row["split"] != "validation"])
    assert only(check, "Split validation has no rows").severity == "error"
    empty = stored(tmp_path / "none", [])
    found = check_catalog(empty).findings
    assert [finding.severity for finding in found] == ["error", "error", "warning"]


@pytest.mark.parametrize("method", get_args(TrainingSpec.model_fields["method"].annotation))
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("train", get_args(PartSpec.model_fields["train"].annotation))
def test_every_way_to_train_is_among_the_costs(method: str, part: str, train: str):
    try:
        training = TrainingSpec.model_validate({"method": method, "parts": {part: train}})
    except ValidationError:
        return  # no recipe has it
    described = [Description(costs={4: Cost(800, 5)})] * 2
    check = SimpleNamespace(costs=crop_costs(["train"] * 2, described, PHI3_VISION, training))
    assert [sum(way.chosen for way in cost.methods) for cost in check.costs] == [1]
    (name,) = [way.name for cost in check.costs for way in cost.methods if way.chosen]
    assert name.startswith({"full": "Full", "lora": "LoRA", "qlora": "QLoRA"}[method])
    assert ("frozen" in name) == (training.resolved_parts["vision"].train == "frozen")
    console = Console(file=io.StringIO(), width=200)
    console.print(_costs(check))
    assert name.lower() in console.file.getvalue()


def test_costs_follow_the_recipe_and_its_tokenizer(tmp_path):
    training = {"batch_size": 4, "gradient_accumulation": 2, "method": "full"}
    check = checked(tmp_path, clean_rows(), {"training": training})
    one, four, sixteen = check.costs
    assert [cost.num_crops for cost in check.costs] == [1, 4, 16]
    assert one.steps == 12, "90 rows, 8 a step"
    assert one.crops == 2
    assert (one.tokens, four.tokens) < (four.tokens, sixteen.tokens)
    assert [method.name for method in one.methods if method.chosen] == ["Full"]
    assert "with its own tokenizer" in page_of(check)


def test_tokens_are_those_that_training_makes(tmp_path):
    from catalens.catalog.storage import Catalog
    from catalens.checkpoint import load_processor
    from catalens.collation import Encoder

    folder = stored(tmp_path / "shop", clean_rows())
    recipe = make_recipe({"catalog": str(folder), "prompt": PROMPT})
    describe = plan_check(folder, recipe).describe
    for num_crops in (1, 4, 16):
        encoder = Encoder(load_processor("tiny", num_crops), recipe.prompt)
        for row in Catalog(folder).rows("test")[:3]:
            example = encoder.example(row, encoder.picture(row["image"]))
            cost = describe(row, "row", (160, 128)).costs[num_crops]
            assert cost.tokens == len(example["input_ids"])
            assert cost.crops == len(example["pixel_values"])


def test_without_the_model_on_disk_it_says_so_and_estimates(tmp_path):
    check = checked(tmp_path, clean_rows(), {"model": "microsoft/no-such-model-here"})
    assert "microsoft/no-such-model-here, cannot be loaded from disk" in page_of(check)
    assert check.costs[0].crops == 2
    assert 313 < check.costs[0].tokens < 373, "313 for the picture, some 50 for the text"


def test_a_recipe_that_does_not_fit_the_catalogue(tmp_path):
    folder = stored(tmp_path / "shop", clean_rows())
    with pytest.raises(RecipeError, match="no column 'category3_code'; its columns are title, kind, price"):
        plan_check(
            folder,
            make_recipe(
                {
                    "catalog": str(folder),
                    "prompt": {"fields": [{"column": "category3_code", "label": "Category", "kind": "category"}]},
                }
            ),
        )


def test_errors_of_the_command(tmp_path, capsys, monkeypatch):
    with pytest.raises(CatalogError, match="not a catalogue"):
        check_catalog(tmp_path)
    folder = stored(tmp_path / "shop", clean_rows())
    (tmp_path / "file").write_text("")
    with pytest.raises(CatalogError, match="cannot be written"):
        check_catalog(folder, tmp_path / "file" / "check.html")
    (folder / "rejected.parquet").write_bytes(b"nonsense")
    with pytest.raises(CatalogError, match=r"rejected\.parquet: cannot be read"):
        check_catalog(folder)


def test_exit_codes_by_severity(tmp_path, monkeypatch, capsys):
    """0 without errors, 9 with; warnings count under --strict."""
    rows = clean_rows()
    rows[0]["image"] = picture(500, (60, 60))  # a warning
    warned = stored(tmp_path / "warned", rows)
    rows[100]["sku"] = rows[7]["sku"]  # an error
    torn = stored(tmp_path / "torn", rows)
    for folder, flags, code in ((warned, [], 0), (warned, ["--strict"], 9), (torn, [], 9)):
        monkeypatch.setattr("sys.argv", ["catalens", "check", str(folder), *flags])
        with pytest.raises(SystemExit) as exited:
            main()
        assert (exited.value.code or 0) == code
        said = capsys.readouterr()
        assert f"page: {folder / 'check.html'}" in said.out
        assert "smaller than 112 pixels" in said.out
    assert "torn is not ready to train on" in " ".join(said.err.split())


def test_out_names_the_page_and_the_catalogue_stays_as_it_is(tmp_path):
    folder = stored(tmp_path / "shop", clean_rows())
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    result = CliRunner().invoke(app, ["check", str(folder), "--out", str(tmp_path / "pages/shop.html")])
    assert result.exit_code == 0, result.output
    assert (tmp_path / "pages/shop.html").is_file()
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_same_catalogue_same_page(tmp_path):
    folder = stored(tmp_path / "shop", clean_rows())
    pages = [check_catalog(folder, tmp_path / name).page.read_bytes() for name in ("a.html", "b.html")]
    assert pages[0] == pages[1]


def hostile_rows() -> list[Row]:
    rows = clean_rows()
    ids = ("../../x", "<script>alert(2)</script>", "\x00", "%2e%2e/etc/passwd")
    for i, text in enumerate(HOSTILE * 4):
        rows[i] |= {
            "title": text,
            "kind": text[:200],
            "sku": ids[i % 4],
            "price": (-1.0, 1.7e308, 5e-324, 0.0, float("nan"), -1.7e308)[i % 6],
        }
        rows[i]["image"] = b"<svg onload=alert(3)>" if i % 5 == 0 else rows[i]["image"]
    for row in rows[40:50]:
        row["image"] = rows[39]["image"]
    return rows


def hostile_check(tmp_path: Path) -> Check:
    reasons = [
        RejectedRow(row=i, id=text[:80], reason=f"{text[:30]}: {text[:300]}") for i, text in enumerate(HOSTILE)
    ]
    return checked(tmp_path, hostile_rows(), left_out=reasons)


def test_hostile_tables_are_escaped_in_page_and_terminal(tmp_path):
    check = hostile_check(tmp_path)
    page = page_of(check)
    assert len(page) < 1_000_000
    assert "<script" not in page
    assert "<img src=http" not in page
    assert page.count("</style>") == 1
    assert not re.search(r"<[^>]*\son\w+=", re.sub(r'"[^"]*"', "", page)), "no inline event handlers"
    assert not set("\x00\x07\u202e") & set(page)
    assert "{{ 7 * 7 }}" in page
    assert not {path.name for path in tmp_path.iterdir()} - {"shop"}
    result = CliRunner().invoke(app, ["check", str(tmp_path / "shop")])
    assert "\x07" not in result.stdout
    assert "\u202e" not in result.stdout


@pytest.mark.browser
@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_chromium_opens_it_offline_and_runs_nothing(tmp_path, width):
    check = hostile_check(tmp_path)
    with opened(check.page.as_uri(), width=width, dark=width == 390) as (page, problems):
        assert page.title() == "shop \u00b7 check \u00b7 catalens"
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("script, iframe, object, [onload], [onerror], a[href]").count() == 0
        assert page.get_by_role("heading", name="Problems").is_visible()
        first = page.locator("details").first
        assert not first.locator("li").first.is_visible()
        first.locator("summary").click()
        assert first.locator("li").first.is_visible()
        overlapping = page.evaluate(
            "[...document.querySelectorAll('.finding')].some((one, i, all) => i && "
            "one.getBoundingClientRect().top < all[i - 1].getBoundingClientRect().bottom)"
        )
        assert not overlapping
        page.locator("footer").scroll_into_view_if_needed()
        page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert problems == []


# How values are spread


def test_outliers_are_gross_and_none_of_a_normal_spread():
    prices = np.exp(np.random.default_rng(0).normal(5, 0.5, 5000))
    assert not (modified_z(prices) > FAR).any()
    assert modified_z([*prices, 50 * np.median(prices)])[-1] > FAR
    assert modified_z([*([10.0] * 30), 11.0, 4000.0])[-1] > FAR, "more than half are equal"
    assert not (modified_z([1.0] * 8 + [1e9]) > FAR).any(), "too few to tell"
    assert not modified_z([7.0] * 40).any()


NUMBERS = st.floats(-LARGEST, LARGEST) | st.integers(-20, 20).map(float)


@given(st.lists(NUMBERS, min_size=1, max_size=50))
def test_a_histogram_counts_every_value_once(values: list[float]):
    drawn = histogram(values)
    assert drawn.counts.sum() == len(values)
    assert all(0 <= drawn.scale.at(value) <= 1 for value in values)
    assert len(drawn.scale.ticks()) <= 7
    assert all(-1e-9 <= drawn.scale.at(tick) <= 1 + 1e-9 for tick in drawn.scale.ticks())


@pytest.mark.parametrize(
    ("scale", "ticks"),
    [
        (Scale(0, 10, False), [0, 2, 4, 6, 8, 10]),
        (Scale(30, 3000, True), [50, 100, 200, 500, 1000, 2000]),
        (Scale(1e-300, 1e300, True), None),
        (Scale(5, 5, False), [5]),
    ],
)
def test_ticks_are_round(scale: Scale, ticks: list[float] | None):
    found = scale.ticks()
    assert ticks is None or found == pytest.approx(ticks)
    assert 1 <= len(found) <= 7


def test_spelling_twins():
    words = [
        "BAGS",
        "Bags ",
        "bags",
        "Accessories",
        "Accesories",
        "Size 10",
        "Size 11",
        "Hats",
        "Cats",
        "\u00e9t\u00e9",
        "e\u0301te\u0301",
    ]
    assert spelling_twins(words) == [
        ["Accesories", "Accessories"],
        ["BAGS", "Bags ", "bags"],
        ["e\u0301te\u0301", "\u00e9t\u00e9"],
    ]
    assert spelling_twins([]) == []


def test_every_rule_is_exercised():
    assert len(RULES) == len(set(RULES)) == 15
