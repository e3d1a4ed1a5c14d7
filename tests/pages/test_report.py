"""The page holds what it should, whatever the table holds; a real browser opens it offline and finds rows."""

import base64
import hashlib
import html
import io
import json
import math
import random
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from browser import needs_chromium, opened
from PIL import Image, ImageDraw
from playwright.sync_api import Page

from catalens.config import REFERENCE_FIELDS, FieldSpec
from catalens.evaluation import majority
from catalens.metrics import metrics_of, primary, score
from catalens.pages import charts, confidence, groups, is_right, review, rows_of, scores, write_report
from catalens.pages.gallery import MOST_ROWS, SIDE, gallery
from catalens.predictions import ScoredRow

HOSTILE = (
    "<script>document.title='owned'</script>",
    "<img src=x onerror=alert(1)>",
    "</style><style>body{display:none}</style>",
    '"><svg onload=alert(1)>',
    "=HYPERLINK(1,2)",
    "{{ 7 * 7 }} ${7*7} $\\frac{1}{2}$",
    "A very long title " * 80,
    "W" * 900,
    "\u0645\u0639\u0637\u0641 \u0635\u0648\u0641 \u0623\u0633\u0648\u062f",
    "\U0001f9e5\U0001f457 coat \U0001f1ec\U0001f1e7",
    "bell\x07 nul\x00 half\ud83d turned\u202e round",
    "</script><script>document.title='owned'</script><!--",
    "line\u2028separator\u2029 and \\u003c/script>",
)


def picture(seed: int = 0, side: int = 64, **saved: Any) -> bytes:
    image = Image.new("RGB", (side, side * 3 // 4), (seed * 37 % 256, 120, 180))
    ImageDraw.Draw(image).ellipse((side // 4, 4, side // 2 + seed % 8, side // 2), fill=(250, 200, 40))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **saved)
    return buffer.getvalue()


FIGURE = {"value": 0.031, "low": 0.02, "high": 0.05}
PICTURES = [picture(seed) for seed in range(8)]


def evaluated(count: int, seed: int = 0) -> list[ScoredRow]:
    """Rows as a fair model would leave them: most right, some wrong, some answers that do not parse."""
    draw = random.Random(seed)
    rows = []
    for i in range(count):
        price = round(math.exp(draw.gauss(5.5, 1)) + 10)
        truth = {
            "title": f"Bag {i}",
            "category3_code": f"KIND {draw.randrange(4)}",
            "full_price": float(price),
        }
        said = truth | {"full_price": round(price * math.exp(draw.gauss(0, 0.08)), 1)}
        if i % 9 == 3:
            said |= {"title": f"Shoe {i}", "category3_code": "KIND 0"}
        parsed = i % 25 != 7
        answer = f"Product: {said['title']}, ..." if parsed else f"Product: {said['title']}, Cat"
        error = None if parsed else "has no 'Category'"
        confidence = {"title": 0.9 - i % 10 / 20, "category3_code": 0.95, "full_price": i % 50 / 50} if parsed else {}
        interval = {"full_price": (price * 0.9, price * 1.1)} if parsed else {}
        review = ("title",) if i % 10 == 3 else ()
        rows.append(
            ScoredRow(
                id=f"row-{i}",
                truth=truth,
                values=said if parsed else None,
                answer=answer,
                error=error,
                picture=PICTURES[i % 8],
                confidence=confidence,
                intervals=interval,
                needs_review=review,
            )
        )
    return rows


def measured(rows: list[ScoredRow]) -> dict[str, Any]:
    """The parts of `metrics.json` about confidence and cost, in their form; the figures are made up."""
    figure = FIGURE
    bins = [
        {"low": n / 10, "high": (n + 1) / 10, "rows": n, "confidence": n / 10 + 0.05, "right": figure}
        for n in range(10)
    ]
    curve = [{"coverage": (n + 1) / 20, "error": n / 100} for n in range(20)]
    interval = {"nominal": 0.9, "coverage": figure | {"value": 0.887}, "width": 0.21}
    fields = {
        field.column: {
            "ece": figure,
            "bins": bins,
            "risk_coverage": curve,
            "interval": interval if field.kind == "number" else None,
        }
        for field in REFERENCE_FIELDS
    }
    rule = {"target": 0.05, "threshold": 0.83, "accepted": figure | {"value": 0.77}, "error": figure}
    refused = {"target": 0.05, "threshold": None, "accepted": figure | {"value": 0.0}, "error": None}
    return {
        "constrained": scored(REFERENCE_FIELDS, rows)["model"],
        "confidence": {"calibrated_on": 158, "fields": fields},
        "review": {"confidence": 0.95, "fields": {"title": rule, "full_price": refused}},
        "cost": {"tokens_in": 39.0, "steps": 24.5, "ms_per_picture": 9.21, "pictures_per_second": None},
    }


def scored(fields: tuple[FieldSpec, ...], rows: list[ScoredRow], **more: Any) -> dict[str, Any]:
    kinds = {field.column: field.kind for field in fields}
    truths = [row.truth for row in rows]
    model = score(kinds, truths, [row.values for row in rows], resamples=50)
    base = score(kinds, truths, majority(kinds, truths, len(rows)), resamples=50)
    baselines = {"majority": base, "nearest_neighbour": base}
    counts = {"rows": len(rows), "products": len({row.id for row in rows})}
    return {"split": "test", "model": model, "baselines": baselines} | counts | more


def written(
    tmp_path: Path,
    rows: list[ScoredRow],
    fields: tuple[FieldSpec, ...] = REFERENCE_FIELDS,
    run: str = "demo",
    **more: Any,
) -> str:
    write_report(tmp_path / "report.html", run, scored(fields, rows, **more), fields, rows)
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def hostile_rows() -> list[ScoredRow]:
    rows = evaluated(60)
    for i, text in enumerate(HOSTILE):
        truth = {"title": text, "category3_code": text, "full_price": 129.0}
        said = {"title": text[::-1], "category3_code": text + "!", "full_price": 1e99}
        rows[i * 2] = ScoredRow(id=text, truth=truth, values=said, answer=text, picture=b"no picture")
        rows[i * 2 + 1] = ScoredRow(id=text, truth=truth, values=None, answer=text * 20, error=text)
    return rows


def image_use(rows: list[ScoredRow], verdict: str, telling: bool = True) -> dict[str, Any]:
    blank = scored(REFERENCE_FIELDS, rows)["baselines"]["majority"]
    uses = verdict == "uses_image"
    loss = {"value": 0.6, "low": 0.5, "high": 0.7, "p": 0.002} if uses else {"value": 0, "low": -0.01, "high": 0.031}
    fields = {
        field.column: {"metric": primary(field.kind), "loss": loss, "shown": uses, "telling": telling}
        for field in REFERENCE_FIELDS
    }
    return {"verdict": verdict, "margin": 0.05, "fields": fields, "blank": blank, "shuffled": blank}


def says(rows: list[ScoredRow], **more: Any) -> dict[str, Any]:
    return scores.verdict(scored(REFERENCE_FIELDS, rows, **more), REFERENCE_FIELDS)


def test_verdict_and_scores_are_those_of_the_metrics():
    rows = evaluated(100)
    metrics = scored(REFERENCE_FIELDS, rows, image_use=image_use(rows, "uses_image"))
    metrics |= {"before": metrics["baselines"]["majority"], "noise_floor": {"mdape": 0.054, "rows": 3000.0}}
    found = scores.verdict(metrics, REFERENCE_FIELDS)
    assert found["headline"] == "Reads Product, Category and Full Price from the picture alone."
    assert found["remarks"].startswith("The pictures do the work")
    table = scores.score_table(metrics, REFERENCE_FIELDS)
    names = ["This model", "Before fine-tuning", "Nearest neighbour", "Majority"]
    assert [row["name"] for row in table] == [*names, "Blanked pictures", "Shuffled pictures"]
    exact, mae = metrics["model"]["fields"]["title"]["exact"], metrics["model"]["fields"]["full_price"]["mae"]
    columns = [*metrics_of("answer")]
    columns += [
        f"{f.column}.{name}" for f in REFERENCE_FIELDS for name, one in metrics_of(f.kind).items() if not one.detail
    ]
    cells = dict(zip(columns, table[0]["cells"], strict=True))
    assert cells["title.exact"]["value"] == f"{100 * exact['value']:.1f}\u00a0%"
    assert cells["title.exact"]["interval"] == f"{100 * exact['low']:.1f}\u2013{100 * exact['high']:.1f}"
    assert cells["title.exact"]["best"]
    assert cells["full_price.mae"]["value"] == f"{mae['value']:.3g}", "no percentage"
    assert table[2]["cells"][0] == {"value": "\u2013", "interval": "", "best": False}, "it writes no answers"
    floor = dict(zip(columns, scores.noise_floor(metrics, REFERENCE_FIELDS), strict=True))
    assert {name: text for name, text in floor.items() if text} == {"full_price.mdape": "5.4\u00a0%"}


def test_a_model_that_is_given_texts_is_not_said_to_read_from_the_picture_alone():
    rows = evaluated(100)
    metrics = scored(REFERENCE_FIELDS, rows, image_use=image_use(rows, "uses_image"))
    metrics["baselines"]["text_alone"] = metrics["baselines"]["majority"]
    found = scores.verdict(metrics, REFERENCE_FIELDS)
    assert found["headline"] == "Reads Product, Category and Full Price from picture and text."
    assert "Text alone" in [row["name"] for row in scores.score_table(metrics, REFERENCE_FIELDS)]
    metrics["baselines"]["text_alone"] = metrics["model"]  # the text says it all
    assert scores.verdict(metrics, REFERENCE_FIELDS)["headline"].startswith("Is not shown to do better")


def test_a_page_has_every_section(tmp_path):
    rows = evaluated(100)
    page = written(tmp_path, rows, seconds={"generation": 12.34}, **measured(rows))
    sections = ["scores", "numbers", "groups", "categories", "confidence", "gallery", "cost", "reading"]
    assert re.findall(r'<section id="(\w+)">', page) == sections
    assert "generation 12.3" in page
    assert "has no &#39;Category&#39;" in page
    assert 'role="alert"' not in page


def test_banner_and_headline_where_the_pictures_are_ignored(tmp_path):
    rows = evaluated(50)
    use = image_use(rows, "ignores_image")
    assert 'role="alert"' in written(tmp_path, rows, image_use=use)
    found = says(rows, image_use=use)
    assert found["headline"] == "Ignores the pictures."
    assert "With other products\u2019 pictures it loses at most 3.1 points." in found["remarks"]


def test_too_few_rows_are_no_alarm(tmp_path):
    rows = evaluated(50)
    use = image_use(rows, "undecided")
    assert 'role="alert"' not in written(tmp_path, rows, image_use=use)
    found = says(rows, image_use=use)
    assert found["remarks"].endswith("These rows are too few to tell whether it uses the pictures.")
    assert "from the picture alone" not in found["headline"]
    nothing_right = says(rows, image_use=image_use(rows, "undecided", telling=False))
    assert "cannot be told: no field has more than 5 points to lose." in nothing_right["remarks"]
    assert "too few to tell" in says(rows, image_use=use | {"fields": {}})["remarks"]


def test_rows_and_products_are_both_counted():
    assert rows_of(1234, 10, "test") == "1,234 test rows of 10 products"
    assert rows_of(1, 1) == "1 row of 1 product"


def test_headline_claims_no_field_that_a_baseline_reaches():
    wrong: Any = {"title": "?", "category3_code": "KIND 0", "full_price": 200.0}
    rows = [replace(row, values=wrong) for row in evaluated(60)]
    assert says(rows)["headline"] == "Is not shown to do better than the baselines."
    found = says([replace(row, values=dict(row.truth) | {"full_price": 200.0}) for row in evaluated(60)])
    assert found["headline"] == "Reads Product and Category."
    assert found["remarks"].startswith("Not clearly better than the best baseline: Full Price.")
    assert "Whether it uses the pictures was not checked" in found["remarks"]


def test_the_headline_says_where_training_made_it_worse():
    rows = evaluated(60)
    before = score(
        {field.column: field.kind for field in REFERENCE_FIELDS},
        [row.truth for row in rows],
        [dict(row.truth) | {"full_price": 500.0} for row in rows],
        resamples=50,
    )
    worse = says(rows, before=before)["headline"]
    assert worse == "Reads Product, Category and Full Price. Training made Product and Category worse than before."
    assert "worse" not in says(rows, before=scored(REFERENCE_FIELDS, rows)["model"])["headline"]


def test_absent_parts_leave_no_trace(tmp_path):
    rows = evaluated(30)
    metrics = scored(REFERENCE_FIELDS, rows, baselines={})
    assert [row["name"] for row in scores.score_table(metrics, REFERENCE_FIELDS)] == ["This model"]
    assert (
        scores.noise_floor(metrics, REFERENCE_FIELDS)
        == review(metrics, REFERENCE_FIELDS)
        == scores.costs(metrics)
        == []
    )
    assert confidence(metrics, REFERENCE_FIELDS) is None
    page = written(tmp_path, rows, baselines={})
    assert not {"confidence", "cost"} & set(re.findall(r'<section id="(\w+)">', page))
    assert "Seconds" not in page


@pytest.mark.parametrize("kinds", [("text",), ("category",), ("number",), ("number", "text", "number", "category")])
def test_any_fields_in_any_order(tmp_path, kinds):
    fields = tuple(FieldSpec(column=f"c{i}", label=f"Label {i}", kind=kind) for i, kind in enumerate(kinds))
    values = {"text": "walnut", "category": "DESK", "number": -3.5}
    truth = {field.column: values[field.kind] for field in fields}
    page = written(tmp_path, [ScoredRow(id="a", truth=truth, values=truth, picture=PICTURES[0])] * 3, fields)
    assert page.count("one point a row") == kinds.count("number")
    assert page.count('class="confusion"') == kinds.count("category")
    assert ("<code>exact</code>" in page) == ("text" in kinds)
    assert page.count(": largest error<") == kinds.count("number")


def test_a_run_where_nothing_parsed(tmp_path):
    rows = [replace(row, values=None, answer="", error="is empty") for row in evaluated(20)]
    page = written(tmp_path, rows)
    assert "<svg" not in page
    assert "20 answers did not parse" in page
    assert "median error" in page
    assert "(nothing)" in page


def test_everything_from_data_is_escaped(tmp_path):
    fields = tuple(field.model_copy(update={"label": f"<b>{field.label}</b>" * 9}) for field in REFERENCE_FIELDS)
    page = written(tmp_path, hostile_rows(), fields, run=HOSTILE[0], seconds={HOSTILE[1]: 1.0})
    assert page.count("<script") == page.count("</script>") == 1
    assert "<img src=x" not in page
    assert "<b>Product" not in page
    assert page.count("</style>") == 1
    assert "&lt;script&gt;" in page
    assert "{{ 7 * 7 }}" in page
    markup = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"<[^>]*\son\w+=", re.sub(r'"[^"]*"', "", markup)), "no inline event handlers"
    assert not set("\x00\x07\u202e") & set(page)
    assert "default-src 'none'" in page


def test_only_our_script_may_run(tmp_path):
    page = written(tmp_path, evaluated(3))
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)
    code = re.search(r"<script>(.*?)</script>", page, flags=re.DOTALL)
    assert policy
    assert code
    digest = base64.b64encode(hashlib.sha256(code[1].encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}';" in policy[1]
    assert "unsafe-inline" not in policy[1].replace("style-src 'unsafe-inline'", "")
    assert "innerHTML" not in code[1]


def test_nothing_outside_is_named(tmp_path):
    page = written(tmp_path, evaluated(60))
    assert "http:" not in page
    assert "https:" not in page
    assert "@import" not in page
    assert "url(" not in re.sub(r'clip-path="url\(#\w+\)"', "", page)


def test_gallery_is_bounded_and_says_what_it_shows(tmp_path):
    rows = [replace(row, picture=b"") for row in evaluated(MOST_ROWS + 100)]
    assert len(gallery(REFERENCE_FIELDS, [(row,) for row in rows]).cards) == MOST_ROWS
    assert "All 30 rows." in written(tmp_path, evaluated(30))


@pytest.mark.parametrize("count", [300, pytest.param(3000, marks=pytest.mark.slow)])
def test_thousands_of_rows_make_a_few_megabytes(tmp_path, count):
    noise = random.Random(0)
    pictures = []
    for _ in range(8):  # far more to encode than a photo has
        buffer = io.BytesIO()
        Image.frombytes("RGB", (24, 24), noise.randbytes(24 * 24 * 3)).resize((240, 240)).save(buffer, "JPEG")
        pictures.append(buffer.getvalue())
    rows = [replace(row, picture=pictures[i % 8]) for i, row in enumerate(evaluated(count))]
    assert len(written(tmp_path, rows)) < 12_000_000


def test_rows_are_found_by_what_they_are():
    rows = evaluated(100)
    found = gallery(REFERENCE_FIELDS, [(row,) for row in rows])
    show, category = found.choices
    assert show == (
        "Show",
        [
            "all rows",
            "with a mistake",
            "Product wrong",
            "Category wrong",
            "Full Price wrong",
            "marked for review",
            "did not parse",
        ],
    )
    assert category == ("Category", ["all", "KIND 0", "KIND 1", "KIND 2", "KIND 3"])
    assert found.orders == [
        "worst first",
        "order of the split",
        "Full Price: largest error",
        "least confident",
        "most to review",
    ]
    price = REFERENCE_FIELDS[2]
    by_id = {row.id: row for row in rows}
    firsts = [by_id[entry.id] for entry in found.cards]
    assert [row.values for row in firsts[:4]] == [None] * 4
    assert all(row.values and row.values["title"] != row.truth["title"] for row in firsts[4:14])
    assert [json.loads(entry.keys)[0] for entry in found.cards] == sorted(
        json.loads(entry.keys)[0] for entry in found.cards
    )
    for row, entry in zip(firsts, found.cards, strict=True):
        tags, keys = entry.tags.split(), json.loads(entry.keys)
        assert rows[int(keys[1])] is row
        assert ("0.4" in tags) is not is_right(price, row)
        assert ("0.5" in tags) is bool(row.needs_review)
        assert ("0.6" in tags) is (row.error is not None)
        assert f"1.{category[1].index(row.truth['category3_code'])}" in tags
        assert (keys[2] is None) is (row.values is None)
        assert keys[3] == (pytest.approx(min(row.confidence.values())) if row.values else None)


def gaps(rows: list[ScoredRow], column: str, every: int = 3) -> list[ScoredRow]:
    return [replace(row, truth={**row.truth, column: None}) if n % every == 0 else row for n, row in enumerate(rows)]


@pytest.mark.parametrize("field", REFERENCE_FIELDS, ids=lambda field: field.kind)
def test_a_figure_of_fewer_rows_says_so_everywhere(tmp_path, field):
    rows = gaps(evaluated(60), field.column)
    counts = {other.column: 40 if other is field else 60 for other in REFERENCE_FIELDS}
    page = written(tmp_path, rows, n=counts, image_use=image_use(rows, "uses_image"), **measured(rows))
    sections = re.split(r"<section id=", page)
    named = {re.match(r'"(\w+)"', one)[1] for one in sections[1:] if "n = 40 of 60" in one}  # type: ignore[index]
    wanted = {"scores", "confidence", "groups"}
    wanted |= {"number": {"numbers"}, "category": {"categories"}}.get(field.kind, set())
    assert named == wanted
    assert page.split("<section")[0].count("n = 40 of 60") == 2  # in words, and in its tile
    assert "nan" not in re.sub(r"base64,[^\"]*|<script.*?</script>", "", page, flags=re.S).lower()
    (tile,) = [tile for tile in scores.tiles(scored(REFERENCE_FIELDS, rows, n=counts), REFERENCE_FIELDS) if tile["n"]]
    assert (tile["field"], tile["n"]) == (field, "n = 40 of 60")


@pytest.mark.parametrize("field", REFERENCE_FIELDS, ids=lambda field: field.kind)
def test_a_field_without_truths_is_said_to_have_none(tmp_path, field):
    rows = gaps(evaluated(60), field.column, 1)
    metrics = measured(rows)
    for block in ("confidence", "review"):
        metrics[block]["fields"].pop(field.column, None)
    use = image_use(rows, "uses_image")
    del use["fields"][field.column]
    counts = {other.column: 0 if other is field else 60 for other in REFERENCE_FIELDS}
    page = written(tmp_path, rows, n=counts, image_use=use, **metrics)
    assert f"<b><bdi>{field.label}</bdi></b> has no truths in these rows" in page
    assert not re.search(r"n = \d", page)


@pytest.mark.parametrize("field", REFERENCE_FIELDS, ids=lambda field: field.kind)
def test_a_row_without_a_truth_is_neither_right_nor_wrong_in_that_field(field):
    rows = gaps(evaluated(60), field.column)
    found = gallery(REFERENCE_FIELDS, [(row,) for row in rows])
    place, by_id = REFERENCE_FIELDS.index(field), {row.id: row for row in rows}
    for card in found.cards:
        row, pair = by_id[card.id], card.pairs[place]
        known = row.truth[field.column] is not None
        assert (pair.predicted[0].right is None) is not known
        assert (pair.truth == "\u2013") is not known
        assert (f"0.{place + 2}" in card.tags.split()) is (known and not is_right(field, row))
        others = [other for other in REFERENCE_FIELDS if row.truth[other.column] is not None]
        assert card.right is all(is_right(other, row) for other in others)


@pytest.mark.parametrize("word", ["not visible", HOSTILE[0]])
def test_how_well_absent_values_are_told_stands_below_the_tables(tmp_path, word):
    told = {"word": word, "rows": 12, "model": FIGURE, "constrained": FIGURE | {"value": 0.04}}
    nothing = {"word": "unknown", "rows": 0}
    page = written(tmp_path, evaluated(60), absent={"category3_code": told, "title": nothing})
    lines = [line.strip() for line in page.splitlines() if "F1 of “" in line]
    lines = [html.unescape(re.sub(r"<[^>]+>", "", line)) for line in lines]
    figures = "3.1\u00a0% (2.0\u20135.0\u00a0%) written freely, 4.0\u00a0% (2.0\u20135.0\u00a0%) constrained"
    assert lines == [
        "Product is absent in 0 of 60 rows of 60 products. F1 of “unknown”: none, as no answer says it either.",
        f"Category is absent in 12 of 60 rows of 60 products. F1 of “{word}”: {figures}.",
    ]
    assert "F1 of “" not in written(tmp_path, evaluated(60))


def test_rows_without_a_category_are_in_no_group_and_in_the_others_of_a_plot():
    rows = gaps(evaluated(60), "category3_code")
    by = {one["field"].kind: one for one in groups(REFERENCE_FIELDS, rows)}
    assert sum(line[1] for line in by["category"]["lines"][1:]) == 40
    assert by["category"]["lines"][0][:2] == ("all rows", 60)
    cells = by["number"]["lines"][0][2]
    assert [("n = 40 of 60" in interval) for _, interval, _ in cells] == [False, True, False]


def test_errors_by_group_are_those_of_its_rows():
    rows = evaluated(200)
    by_category, by_price = groups(REFERENCE_FIELDS, rows)
    assert [label for label, _ in by_category["columns"]] == ["Product", "Category", "Full Price"]
    name, count, cells = by_category["lines"][1]
    members = [row for row in rows if row.truth["category3_code"] == name]
    wrong = sum(not is_right(REFERENCE_FIELDS[0], row) for row in members) / len(members)
    assert count == len(members)
    assert cells[0][0] == f"{100 * wrong:.1f}\u00a0%"
    for _, _, line in by_category["lines"]:
        assert all(0 <= low <= at <= high <= 1 for _, _, (low, at, high) in line)
    assert sum(count for _, count, _ in by_price["lines"][1:]) == 200
    assert by_price["lines"][1][0].startswith("under ")


def test_a_median_over_few_products_has_no_interval():
    rows = evaluated(200)
    some = [n for n, row in enumerate(rows) if row.truth["category3_code"] == rows[0].truth["category3_code"]]
    for products, claimed in ((5, False), (6, True)):
        few = [rows[n] if n not in some else replace(rows[n], id=f"P{n % products}") for n in range(200)]
        name, _, cells = next(
            line for line in groups(REFERENCE_FIELDS, few)[0]["lines"] if line[0] == rows[0].truth["category3_code"]
        )
        assert [bool(interval) for _, interval, _ in cells] == [True, True, claimed], name


def test_confidence_review_and_cost_as_text():
    rows = evaluated(60)
    metrics = measured(rows)
    found: Any = confidence(metrics, REFERENCE_FIELDS)
    assert found["calibrated_on"] == 158
    assert [ece for _, ece, _ in found["panels"]] == [("3.1\u00a0%", "2.0\u20135.0\u00a0%")] * 3
    ((field, *interval),) = found["intervals"]
    assert field.kind == "number"
    assert interval == ["90.0\u00a0%", ("88.7\u00a0%", "2.0\u20135.0\u00a0%"), "21.0\u00a0%"]
    kept, refused = review(metrics, REFERENCE_FIELDS)
    assert (kept["error"][0], kept["verdict"]) == ("3.1\u00a0%", "kept")
    assert (refused["threshold"], refused["error"], refused["verdict"]) == (None, None, "")
    assert ("a picture, written freely", ["9.21\u00a0ms"]) in scores.costs(metrics)
    assert "pictures a second" not in dict(scores.costs(metrics))


def test_errors_by_group_count_products():
    rows = evaluated(200)
    for n, row in enumerate(rows):  # all photos of a product are right, or none
        rows[n] = replace(row, values=dict(row.truth) | ({"title": "Shoe"} if n // 8 % 3 == 0 else {}))
    several = [replace(row, id=f"P{n // 8}") for n, row in enumerate(rows)]
    widths = []
    for given in (several, rows):
        for table in groups(REFERENCE_FIELDS, given):
            name, _, cells = table["lines"][0]
            assert (name, cells[0][0]) == ("all rows", "36.0\u00a0%")
            low, high = cells[0][1].removesuffix("\u00a0%").split("\u2013")
            widths.append(float(high) - float(low))
    assert widths[0] == widths[1] > 2.5 * widths[2] == 2.5 * widths[3]  # the root of 8 photos is 2.8


def test_intervals_without_a_width_are_shown(tmp_path):
    rows = evaluated(60)
    block = measured(rows)
    block["confidence"]["fields"]["full_price"]["interval"]["width"] = None
    assert "are narrower than" not in written(tmp_path, rows, **block)


def test_plots_of_confidence_stand_odd_input():
    assert [marks.paths for marks in charts.reliability([])[1].marks] == [[]]
    _, below = charts.reliability([{"low": 0.5, "high": 0.5, "rows": 1, "confidence": 0.5, "right": FIGURE}])
    assert below.marks[0].paths == ["M250.0 100.0L250.0 0.0L255.0 0.0L255.0 100.0"]
    curve = charts.risk_coverage([("#3f7fd0", [{"coverage": 1.0, "error": 0.0}])])
    assert curve.marks == [charts.Marks("curve", ["M500.0 340.0h0"], "#3f7fd0")]


def test_same_arguments_same_bytes(tmp_path):
    rows = evaluated(40)
    assert written(tmp_path, rows, **measured(rows)) == written(tmp_path, evaluated(40), **measured(evaluated(40)))


def test_thumbnails_are_small_and_carry_no_metadata(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "secret place"
    data = picture(side=900, exif=exif, comment=b"secret remark", icc_profile=b"secret profile")
    assert data.count(b"secret") == 3
    row = evaluated(1)[0]
    page = written(tmp_path, [replace(row, picture=data)])
    found = re.search(r"data:image/webp;base64,([^\"]+)", page)
    assert found
    small = base64.b64decode(found[1])
    assert b"secret" not in small
    with Image.open(io.BytesIO(small)) as image:
        assert max(image.size) == SIDE
        assert not image.getexif()
        assert "comment" not in image.info


@pytest.mark.parametrize(
    ("truths", "logarithmic"),
    [
        ([10.0, 20.0, 30.0], False),
        ([1.0, 1e4], True),
        ([0.0, 1e4], False),
        ([-5.0, 5.0], False),
        ([7.0], False),
    ],
)
def test_scatter_chooses_its_scale(truths, logarithmic):
    plot = charts.scatter(truths, truths, ["#3f7fd0"] * len(truths))
    assert plot.x.logarithmic is logarithmic
    assert plot.beyond == 0
    (dots,) = (marks.paths for marks in plot.marks if marks.style == "dots")
    assert len(dots) == len(truths)


def test_scatter_keeps_wild_predictions_on_its_edge():
    plot = charts.scatter([1.0, 10.0, 100.0, 50.0], [1.0, math.inf, -3.0, 1e300], ["#3f7fd0"] * 4)
    assert plot.beyond == 3
    (edge,) = (marks.paths for marks in plot.marks if marks.style == "dots edge")
    assert [path.split()[1] for path in edge] == ["0.0h0", "500.0h0", "0.0h0"]


@pytest.mark.browser
@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_chromium_opens_it_offline(tmp_path, width):
    rows = hostile_rows()
    written(tmp_path, rows, run="evening & day", image_use=image_use(rows, "uses_image"), **measured(rows))
    with opened((tmp_path / "report.html").as_uri(), width=width, dark=width == 390) as (page, problems):
        assert page.title() == "evening & day \u00b7 evaluation \u00b7 catalens"
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("iframe, [onload], [onerror]").count() == 0
        assert page.get_by_text(HOSTILE[0]).first.is_visible()
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(18, 19, 22)" if width == 390 else "rgb(247, 247, 245)")
        for _ in range(2):
            page.get_by_role("button", name="Show more").click()
        assert page.locator("#cards .card").count() == 60
        assert page.get_by_role("button", name="Show more").is_hidden()
        page.locator("#cards summary").last.click()
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.locator("footer").scroll_into_view_if_needed()
    assert problems == []


def ids(page: Page) -> list[str | None]:
    return page.locator("#cards .id").all_text_contents()


@pytest.mark.browser
@needs_chromium
def test_rows_are_sorted_filtered_and_searched(tmp_path):
    rows = evaluated(100)
    written(tmp_path, rows)
    errors = {
        row.id: abs(row.values["full_price"] - row.truth["full_price"]) / row.truth["full_price"]
        for row in rows
        if row.values
    }
    with opened((tmp_path / "report.html").as_uri()) as (page, problems):
        assert set(ids(page)) >= {row.id for row in rows if row.values is None}
        order, show = page.get_by_label("Order"), page.get_by_label("Show")
        order.select_option("Full Price: largest error")
        found = ids(page)
        assert found[0] == max(errors, key=lambda id: errors[id])
        assert [errors[id] for id in found] == sorted((errors[id] for id in found), reverse=True)
        order.select_option("order of the split")
        show.select_option("marked for review")
        assert ids(page) == [row.id for row in rows if row.needs_review]
        assert page.get_by_role("status").text_content() == "10 of 100 rows"
        page.get_by_label("Category", exact=True).select_option("KIND 0")
        assert ids(page) == [r.id for r in rows if r.needs_review and r.truth["category3_code"] == "KIND 0"]
        page.get_by_label("Category", exact=True).select_option("all")
        show.select_option("did not parse")
        assert page.get_by_role("status").text_content() == "4 of 100 rows"
        assert page.locator("#cards .value").first.text_content() == "no answer"
        show.select_option("all rows")
        page.get_by_label("Search").fill("bag 9")
        assert ids(page) == ["row-9", *(f"row-{n}" for n in range(90, 100))]
        page.get_by_label("Search").fill("nothing like it")
        assert page.get_by_role("status").text_content() == "0 of 100 rows"
        assert ids(page) == []
    assert problems == []


@pytest.mark.browser
@needs_chromium
def test_the_gallery_by_keyboard_alone(tmp_path):
    written(tmp_path, evaluated(60))
    with opened((tmp_path / "report.html").as_uri(), width=390) as (page, problems):
        focused = "document.activeElement"
        page.get_by_label("Search").focus()
        for _ in range(4):
            page.keyboard.press("Tab")
        first = page.locator("#cards .card").first
        assert page.evaluate(f"{focused}.textContent") == "What it wrote of row-7"
        assert not first.locator("pre").is_visible()
        page.keyboard.press("Enter")
        assert first.locator("pre").is_visible()
        assert "has no 'Category'" in (first.locator(".reason").text_content() or "")
        page.get_by_label("Order").select_option("order of the split")
        assert not first.locator(".between").last.is_visible()
        first.locator("summary").click()
        assert first.locator(".between").last.is_visible()
        assert first.locator(".sure").first.text_content() == "90.0\u00a0% sure"
        page.get_by_role("button", name="Show more").focus()
        page.keyboard.press("Enter")
        assert page.evaluate(f"{focused}.textContent") == "What it wrote of row-24"
    assert problems == []


@pytest.mark.browser
@needs_chromium
def test_all_rows_are_there_without_javascript(tmp_path):
    page = written(tmp_path, evaluated(60))
    (tmp_path / "report.html").write_text(re.sub(r"<script>.*?</script>", "", page, flags=re.DOTALL))
    with opened((tmp_path / "report.html").as_uri()) as (page, problems):
        assert page.locator("#cards .card").count() == 60
        assert not page.get_by_label("Search").is_visible()
    assert problems == []
