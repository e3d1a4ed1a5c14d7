"""A check finds what is planted, says nothing of a clean catalogue, and shows hostile content without running it."""

import io
import random
import re
from collections.abc import Callable, Iterable
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

from catalens.catalog import CatalogWriter, RejectedRow, Roles
from catalens.catalog.pictures import GPS
from catalens.catalog.scan import LARGEST
from catalens.checking import (
    Check,
    CropCost,
    Finding,
    check_catalog,
    crop_costs,
    method_name,
    modified_z,
    print_check,
    spelling_twins,
)
from catalens.checking.facts import FAR
from catalens.cli import app, main
from catalens.config import PARTS, PartSpec, TrainingSpec, make_recipe
from catalens.errors import CatalogError, RecipeError
from catalens.estimates import GPUS, REFERENCE_SIZES
from catalens.pages import Scale, histogram

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
    splits = ["train"] * 90 + ["validation"] * 30 + ["test"] * 30
    return [
        {
            "split": split,
            "sku": f"P{i}",
            "title": f"Item {i}",
            "kind": KINDS[i % 3],
            "price": round(np.exp(4 + i % 3 + draw.gauss(0, 0.3)), 2),
            "image": PICTURES[i],
        }
        for i, split in enumerate(splits)
    ]


def stored(folder: Path, rows: Iterable[Row], rejected: Iterable[RejectedRow] = (), roles: Roles = ROLES) -> Path:
    with CatalogWriter(folder, roles, {"command": "test"}) as writer:
        for row in rows:
            writer.add(row["split"], row["image"], row["sku"], {name: row[name] for name in roles.fields})
        for row in rejected:
            writer.reject(row)
    return folder


def checked(tmp_path: Path, rows: Iterable[Row], recipe: dict[str, Any] | None = None, **more: Any) -> Check:
    folder = stored(tmp_path / "shop", rows, **more)
    return check_catalog(
        folder, make_recipe({"catalog": str(folder), "model": "tiny", "prompt": PROMPT} | (recipe or {}))
    )


def only(check: Check, words: str) -> Finding:
    """The one finding whose title holds these words."""
    (found,) = [finding for finding in check.findings if words in finding.title]
    return found


def again(data: bytes, size: tuple[int, int] | None = None, form: str = "JPEG", **options: Any) -> bytes:
    """The same picture, resized and encoded anew."""
    image, buffer = Image.open(io.BytesIO(data)).convert("RGB"), io.BytesIO()
    (image.resize(size) if size else image).save(buffer, form, **options)
    return buffer.getvalue()


def located(data: bytes) -> bytes:
    exif = Image.Exif()
    exif.get_ifd(GPS).update({1: "N", 2: (52.0, 31.0, 12.0)})
    return again(data, exif=exif, quality=95)


def test_a_clean_catalogue_has_no_finding(tmp_path):
    check = checked(tmp_path, clean_rows())
    assert check.findings == ()
    assert check.page == tmp_path / "shop/check.html"
    assert check.view["headline"] == "Ready to train."
    assert check.view["pictures"]["summary"] == "150 PNG; all can be decoded."
    price = check.view["fields"][2]
    assert (price["name"], price["kind"], price["filled"], price["missing"]) == ("price", "number", 150, 0)
    (number,), (category,), (text,) = (check.view[section] for section in ("numbers", "categories", "texts"))
    assert [strip["count"] for strip in number["strips"]] == [50, 50, 50]
    assert [counts for _, counts in category["bars"]] == [[30, 10, 10]] * 3
    assert text["summary"] == "6 to 8 characters, median 7"
    assert sum(int(title.rpartition(": ")[2]) for _, title in number["chart"]["bars"]) == 150
    page = check.page.read_text(encoding="utf-8")
    for section in ("problems", "fields", "numbers", "categories", "texts", "pictures", "cost", "reading"):
        assert f'<section id="{section}">' in page


def test_a_catalogue_with_its_page_still_opens(tmp_path):
    from datasets import load_dataset

    check = checked(tmp_path, clean_rows())
    opened = load_dataset(str(check.page.parent), cache_dir=str(tmp_path / "cache"))
    assert {split: rows.num_rows for split, rows in opened.items()} == check.card.rows


Change = Callable[[list[Row]], object]

PLANTED: dict[str, tuple[Change, str, str, str, str]] = {
    # what is changed in the clean rows; then of the finding: severity, title, first row and its detail
    "no id": (lambda rows: rows[0].update(sku=" "), "error", "1 row without a product id", "train row 1 ( )", ""),
    "product in two splits": (
        lambda rows: rows[100].update(sku="P7"),
        "error",
        "1 product in more than one split",
        "train row 8 (P7)",
        "",
    ),
    "picture in two splits": (
        lambda rows: rows[130].update(image=rows[8]["image"]),
        "error",
        "1 picture in more than one split",
        "train row 9 (P8)",
        "",
    ),
    "copy in two splits": (
        lambda rows: rows[131].update(image=again(rows[9]["image"], (120, 96), quality=70)),
        "warning",
        "1 pair of pictures that look alike straddle two splits",
        "train row 10 (P9)",
        "like test row 12 (P131)",
    ),
    "copy in one split": (
        lambda rows: rows[10].update(image=again(rows[9]["image"], (120, 96), quality=70)),
        "note",
        "1 pair of pictures of two products look alike",
        "train row 10 (P9)",
        "like train row 11 (P10)",
    ),
    "placeholder": (
        lambda rows: [row.update(image=PICTURES[20]) for row in rows[20:30]],
        "warning",
        "1 picture shared by 3 or more products",
        "train row 21 (P20)",
        "",
    ),
    "small picture": (
        lambda rows: rows[0].update(image=picture(500, (60, 60))),
        "warning",
        "1 picture smaller than 112 pixels",
        "train row 1 (P0)",
        "60 \u00d7 60",
    ),
    "thin picture": (
        lambda rows: rows[1].update(image=picture(501, (900, 150), "JPEG")),
        "note",
        "1 picture at least 4 times as long as wide",
        "train row 2 (P1)",
        "900 \u00d7 150",
    ),
    "one position": (
        lambda rows: rows[0].update(image=located(rows[0]["image"])),
        "warning",
        "1 picture with the position where it was taken",
        "train row 1 (P0)",
        "",
    ),
    "positions": (
        lambda rows: [row.update(image=located(row["image"])) for row in rows[:2]],
        "warning",
        "2 pictures with the positions where they were taken",
        "train row 1 (P0)",
        "",
    ),
    "zero": (
        lambda rows: rows[4].update(price=0.0),
        "warning",
        "price is zero or negative in 1 row",
        "train row 5 (P4)",
        "price 0",
    ),
    "many decimals": (
        lambda rows: [rows[i].update(price=price) for i, price in ((3, 84.37999725341797), (4, 84.3799))],
        "warning",
        "price has more than 4 decimals in 1 row",
        "train row 4 (P3)",
        "price 84.37999725341797",
    ),
    "a sign of groups as a point": (
        lambda rows: [
            row.update(price=round(1.299 + n / 100, 3) if n < 6 else 90.0 + n) for n, row in enumerate(rows)
        ],
        "warning",
        "price has three decimals in 6 rows",
        "train row 1 (P0)",
        "price 1.299",
    ),
    "text that does not read back": (
        lambda rows: rows[0].update(title="Scarf, Category: SHOES"),
        "warning",
        "The text of 1 row does not read back as it is written",
        "train row 1 (P0)",
        "field 'title' does not read back from 'Product: Scarf, Category: SHOES, Category: BAGS, Price: ",
    ),
    "HTML": (
        lambda rows: rows[1].update(title="Bag <b>new</b> &amp; old"),
        "warning",
        "title holds HTML in 1 row",
        "train row 2 (P1)",
        "Bag <b>new</b> &amp; old",
    ),
    "formula": (
        lambda rows: rows[2].update(title="=SUM(A1)"),
        "note",
        "title begins like a spreadsheet formula in 1 row",
        "train row 3 (P2)",
        "=SUM(A1)",
    ),
    "long text": (
        lambda rows: rows[3].update(title="W" * 100_000),
        "warning",
        "title is longer than 300 characters in 1 row",
        "train row 4 (P3)",
        "100,000 characters",
    ),
    "missing": (
        lambda rows: rows[4].update(title="  "),
        "note",
        "Field title is missing in 1 row (0.7%)",
        "train row 5 (P4)",
        "",
    ),
    "same title": (
        lambda rows: rows[5].update(title="Item 3"),
        "note",
        "1 value of title stand for more than one product",
        "train row 4 (P3)",
        "Item 3 (2 products)",
    ),
    "spellings": (
        lambda rows: [row.update(kind="Bags ") for row in rows[0:24:3]],
        "warning",
        "kind spells 1 category in more than one way",
        "train row 1 (P0)",
        "'BAGS', 'Bags '",
    ),
    "category without training rows": (
        lambda rows: rows[91].update(kind="GLOVES"),
        "warning",
        "1 category of kind without any training row",
        "validation row 2 (P91)",
        "GLOVES",
    ),
    "rare category": (
        lambda rows: rows[10].update(kind="BELTS"),
        "note",
        "1 category of kind with fewer than 5 training rows",
        "train row 11 (P10)",
        "'BELTS'",
    ),
    "undecodable": (
        lambda rows: rows[3].update(image=b"<html>not found</html>"),
        "warning",
        "1 picture cannot be decoded",
        "train row 4 (P3)",
        "not a picture",
    ),
    "more undecodable than training bears": (
        lambda rows: [row.update(image=b"<html>not found</html>") for row in rows[120:125]],
        "error",
        "5 pictures cannot be decoded",
        "test row 1 (P120)",
        "not a picture",
    ),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_what_is_planted_is_found_and_named(tmp_path, fault: str):
    change, severity, title, row, detail = PLANTED[fault]
    rows = clean_rows()
    change(rows)
    found = only(checked(tmp_path, rows), title)
    assert (found.severity, found.title, found.rows[0].row) == (severity, title, row)
    assert detail in found.rows[0].detail
    assert bool(found.rows[0].detail) == bool(detail)


def test_groups_are_counted_once_and_rows_each(tmp_path):
    rows = clean_rows()
    rows[100]["sku"] = rows[7]["sku"]
    for row in rows[20:30]:
        row["image"] = rows[19]["image"]
    rows[131]["image"] = again(rows[9]["image"], (120, 96), quality=70)
    check = checked(tmp_path, rows)
    torn = only(check, "1 product in more than one split")
    assert [tuple(named) for named in torn.rows] == [
        ("train row 8 (P7)", ""),
        ("validation row 11 (P7)", "as train row 8 (P7)"),
    ]
    shared = only(check, "1 picture shared by 3 or more products")
    assert (shared.count, len(shared.rows)) == (11, 10)
    assert check.findings[0] is torn, "errors first"
    assert check.view["headline"] == "Mend 1 error before training."
    (pair,) = check.view["pictures"]["pairs"]
    assert [name for _, name in pair] == ["train row 10 (P9)", "test row 12 (P131)"]
    (card,) = check.view["pictures"]["placeholders"]
    assert (card["note"], card["name"]) == ("11 rows", "P19, P20, P21, \u2026")
    assert card["picture"].startswith("data:image/webp;base64,")


def test_numbers_that_stand_out(tmp_path):
    rows = clean_rows()
    rows[3]["price"] *= 100  # a slipped decimal point
    check = checked(tmp_path, rows)
    far = only(check, "price stands far from its category in 1 row")
    assert far.rows[0].row == "train row 4 (P3)"
    assert "in BAGS, median" in far.rows[0].detail
    (number,) = check.view["numbers"]
    assert [card["name"] for card in number["cards"]] == ["train row 4 (P3)"]
    assert [mark[0] for mark in number["strips"][0]["marks"]] == ["", "box", "median", "far"]
    rows[3]["price"] *= 100
    alone = stored(tmp_path / "alone", rows, roles=Roles(id="sku", fields={"price": "number"}))
    (named,) = only(check_catalog(alone), "price has 1 outlier").rows
    assert named.row == "train row 4 (P3)"
    assert " in " not in named.detail


def test_a_number_format_that_loses_digits(tmp_path):
    rows = clean_rows()
    for row in rows:
        row["price"] = float(round(row["price"]))
    rows[5]["price"] = 12.5
    recipe = {"prompt": PROMPT | {"numbers": {"decimals": 0}}}
    found = only(checked(tmp_path, rows, recipe), "loses digits in 1 row")
    assert found.rows[0].detail == "price 12.5 is written '12'"


def test_rejected_rows_by_reason_with_every_form(tmp_path):
    reasons = ["not a number in 'price': '1.299,00 \u20ac'"] * 3 + [
        "not a number in 'price': 'on request'",
        "HTTP 404",
    ]
    rejected = [RejectedRow(row=i, id=f"R{i}", reason=reason) for i, reason in enumerate(reasons, start=1)]
    check = checked(tmp_path / "few", clean_rows(), rejected=rejected)
    found = only(check, "5 rows of the table (3.2%) did not make it into the catalogue")
    assert (found.severity, found.count, found.rows[0].row) == ("note", 5, "row 1 (R1)")
    number, missing = check.view["rejected"]
    assert (number.reason, number.count) == ("not a number in 'price'", 4)
    assert number.forms == (("'1.299,00 \u20ac'", 3), ("'on request'", 1))
    assert (missing.reason, missing.count, missing.forms) == ("HTTP 404", 1, ())
    many = checked(tmp_path / "many", clean_rows(), rejected=rejected * 2)
    assert only(many, "did not make it into the catalogue").severity == "warning"


def test_an_empty_split_and_an_empty_catalogue(tmp_path):
    check = checked(tmp_path / "some", [row for row in clean_rows() if row["split"] != "validation"])
    assert only(check, "Split validation has no rows").severity == "error"
    empty = check_catalog(stored(tmp_path / "none", []))
    assert [finding.severity for finding in empty.findings] == ["error", "error", "warning"]
    assert empty.costs == ()


class Texts:
    """Facts of two training rows with pictures of one size."""

    splits = ("train", "train", "test")
    text_tokens = (60, 60, 9000)
    pictures = (SimpleNamespace(size=(800, 800)),) * 3
    further = ((),) * 3


def costs_of(training: dict[str, Any]) -> list[CropCost]:
    return crop_costs(Texts(), None, REFERENCE_SIZES, TrainingSpec.model_validate(training))


@pytest.mark.parametrize("method", get_args(TrainingSpec.model_fields["method"].annotation))
@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("train", get_args(PartSpec.model_fields["train"].annotation))
def test_every_way_to_train_has_its_costs(method: str, part: str, train: str):
    try:
        training = TrainingSpec.model_validate({"method": method, "parts": {part: train}})
    except ValidationError:
        return  # no recipe has it
    name = method_name(training)
    assert name.startswith({"full": "Full", "lora": "LoRA", "qlora": "QLoRA"}[method])
    assert ("frozen" in name) == (training.resolved_parts["vision"].train == "frozen")
    assert [cost.num_crops for cost in costs_of({"method": method, "parts": {part: train}})] == [1, 4, 16]


def test_costs_are_of_the_recipes_own_method_and_name_the_gpus_that_hold_it():
    one, four, sixteen = costs_of({"method": "lora", "batch_size": 1})
    assert [round(cost.tflop, 1) for cost in (one, four, sixteen)] == [6.2, 14.0, 46.2]
    assert [cost.crops for cost in (one, four, sixteen)] == [2, 5, 17]
    assert (sixteen.tokens, sixteen.max_tokens, sixteen.epoch_tokens, sixteen.steps) == (2569, 2569, 5138, 2)
    assert sixteen.fits() == "24 GB, 16 GB checkpointed"
    for allowed, fits in ((True, "16 GB checkpointed"), (False, "24 GB")):
        cost = costs_of({"method": "lora", "batch_size": 1, "gradient_checkpointing": allowed})[-1]
        assert cost.fits() == fits
        assert [*cost.memory] == [allowed]
    huge = costs_of({"method": "full", "batch_size": 512})[-1]
    assert huge.fits() == f"none of up to {GPUS[-1]} GB"
    assert costs_of({"batch_size": 2, "gradient_accumulation": 4})[0].step_rows == 8


def test_a_batch_of_tokens_holds_the_rows_that_it_holds():
    one, _, sixteen = costs_of({"batch_tokens": 4000})
    assert (one.batch_rows, sixteen.batch_rows) == (10, 1)


def test_costs_follow_the_recipe_and_its_tokenizer(tmp_path):
    training = {"batch_size": 4, "gradient_accumulation": 2, "method": "full"}
    check = checked(tmp_path, clean_rows(), {"training": training})
    one, four, _ = check.costs
    assert one.steps == 12, "90 rows, 8 a step"
    assert one.crops == 2
    assert one.tokens < four.tokens
    assert check.view["method"] == "Full, tower too"
    assert "with its own tokenizer" in check.view["basis"]
    console = Console(file=io.StringIO(), width=200)
    print_check(check.view, console)
    printed = console.file.getvalue()
    assert "Full, tower too, 8 rows a step" in printed
    assert one.fits() in printed


def test_tokens_are_those_that_training_makes(tmp_path):
    from catalens.catalog import Catalog
    from catalens.checkpoint import load_processor
    from catalens.data import Encoder

    rows = clean_rows()[:3]
    check = checked(tmp_path, rows)
    prompt = make_recipe({"catalog": "", "prompt": PROMPT}).prompt
    for cost in check.costs:
        encoder = Encoder(load_processor("tiny", cost.num_crops), prompt)
        made = [
            encoder.example(encoder.answer_ids(row), encoder.image(row["image"]))
            for row in Catalog(tmp_path / "shop").rows("train")
        ]
        assert cost.epoch_tokens == sum(len(example["input_ids"]) for example in made)
        assert cost.crops == np.mean([len(encoder.family.normalised_pixels(example["images"])) for example in made])


def test_without_the_model_on_disk_it_says_so_and_estimates(tmp_path):
    check = checked(tmp_path, clean_rows(), {"model": "microsoft/no-such-model-here"})
    assert "microsoft/no-such-model-here, cannot be loaded from disk" in check.view["basis"]
    assert check.costs[0].crops == 2
    assert 313 < check.costs[0].tokens < 373, "313 for the picture, some 50 for the text"


def test_a_recipe_that_does_not_fit_the_catalogue(tmp_path):
    fields = [{"column": "category3_code", "label": "Category", "kind": "category"}]
    with pytest.raises(RecipeError, match="no column 'category3_code'; its columns are title, kind, price"):
        checked(tmp_path, clean_rows(), {"prompt": {"fields": fields}})


@pytest.mark.parametrize("columns", [("<|user|>", "a_b", "a b"), ("\u00e9t\u00e9", "{name}", "Category: x")])
def test_any_names_of_columns_make_a_prompt(tmp_path, columns: tuple[str, ...]):
    rows = [row | dict(zip(columns, (row["title"], row["kind"], row["price"]), strict=True)) for row in clean_rows()]
    roles = Roles(id="sku", fields=dict(zip(columns, ("text", "category", "number"), strict=True)))
    check = check_catalog(stored(tmp_path / "shop", rows, roles=roles))
    assert check.findings == ()
    assert "No recipe was given: reckoned for Phi-3-Vision" in check.view["basis"]


def test_errors_of_the_command(tmp_path, capsys, monkeypatch):
    with pytest.raises(CatalogError, match="not a catalogue"):
        check_catalog(tmp_path)
    folder = stored(tmp_path / "shop", clean_rows())
    (tmp_path / "file").write_text("")
    with pytest.raises(CatalogError, match="cannot be written"):
        check_catalog(folder, out=tmp_path / "file" / "check.html")
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
    pages = [check_catalog(folder, out=tmp_path / name).page.read_bytes() for name in ("a.html", "b.html")]
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
    return checked(tmp_path, hostile_rows(), rejected=reasons)


def test_hostile_tables_are_escaped_in_page_and_terminal(tmp_path):
    check = hostile_check(tmp_path)
    page = check.page.read_text(encoding="utf-8")
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
