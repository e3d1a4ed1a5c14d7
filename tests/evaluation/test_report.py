"""The page holds what it should, whatever the table holds; a real browser opens it offline."""

import base64
import io
import math
import random
import re
from pathlib import Path
from typing import Any

import pytest
from browser import needs_chromium, opened
from PIL import Image, ImageDraw

from catalens.catalog.page import THUMBNAIL
from catalens.config import REFERENCE_FIELDS, FieldSpec
from catalens.evaluation.report import GALLERY_ROWS, Judged, write_report
from catalens.evaluation.scatter import VECTOR_POINTS, scatter
from catalens.metrics import majority, score

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
)


def picture(seed: int = 0, side: int = 64, **saved: Any) -> bytes:
    image = Image.new("RGB", (side, side * 3 // 4), (seed * 37 % 256, 120, 180))
    ImageDraw.Draw(image).ellipse((side // 4, 4, side // 2 + seed % 8, side // 2), fill=(250, 200, 40))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", **saved)
    return buffer.getvalue()


PICTURES = [picture(seed) for seed in range(8)]


def judged(count: int, seed: int = 0) -> list[Judged]:
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
        rows.append(Judged(f"row-{i}", truth, said if parsed else None, answer, error, PICTURES[i % 8]))
    return rows


def scored(fields: tuple[FieldSpec, ...], rows: list[Judged], **more: Any) -> dict[str, Any]:
    kinds = {field.column: field.kind for field in fields}
    truths = [row.truth for row in rows]
    model = score(kinds, truths, [row.prediction for row in rows], resamples=50)
    base = score(kinds, truths, majority(kinds, truths, len(rows)), resamples=50)
    baselines = {"majority": base, "nearest_neighbour": base}
    return {"rows": len(rows), "split": "test", "model": model, "baselines": baselines} | more


def written(
    tmp_path: Path,
    rows: list[Judged],
    fields: tuple[FieldSpec, ...] = REFERENCE_FIELDS,
    run: str = "demo",
    **more: Any,
) -> str:
    write_report(tmp_path / "report.html", run, scored(fields, rows, **more), fields, rows)
    return (tmp_path / "report.html").read_text(encoding="utf-8")


def hostile_rows() -> list[Judged]:
    rows = judged(60)
    for i, text in enumerate(HOSTILE):
        truth = {"title": text, "category3_code": text, "full_price": 129.0}
        said = {"title": text[::-1], "category3_code": text + "!", "full_price": 1e99}
        rows[i * 2] = Judged(text, truth, said, text, None, b"no picture")
        rows[i * 2 + 1] = Judged(text, truth, None, text * 20, text, b"")
    return rows


def image_use(rows: list[Judged], matter: bool) -> dict[str, Any]:
    blank = scored(REFERENCE_FIELDS, rows)["baselines"]["majority"]
    return {"blank": blank, "shuffled": blank, "pictures_matter": matter}


def test_page_shows_verdict_scores_and_every_section(tmp_path):
    rows = judged(100)
    metrics = scored(REFERENCE_FIELDS, rows)
    page = written(
        tmp_path,
        rows,
        image_use=image_use(rows, True),
        before=metrics["baselines"]["majority"],
        noise_floor={"mdape": 0.054, "rows": 3000.0},
        seconds={"generation": 12.34},
    )
    assert "Reads Product, Category and Full Price from the picture alone." in page
    assert "The pictures do the work" in page
    for name in ("This model", "Before fine-tuning", "Nearest neighbour", "Majority", "Blanked", "Shuffled"):
        assert f">{name}" in page
    exact = metrics["model"]["fields"]["title"]["exact"]
    assert f"{100 * exact['value']:.1f}\u00a0%<small>{100 * exact['low']:.1f}\u2013" in page
    assert f">{metrics['model']['fields']['full_price']['mae']['value']:.3g}<small>" in page, "no percentage"
    for section in ("scores", "numbers", "categories", "worst", "gallery", "reading"):
        assert f'<section id="{section}">' in page
    assert "Noise floor" in page
    assert "5.4\u00a0%" in page
    assert "generation 12.3" in page
    assert "has no &#39;Category&#39;" in page
    assert 'role="alert"' not in page


def test_banner_and_headline_when_pictures_do_not_matter(tmp_path):
    rows = judged(50)
    page = written(tmp_path, rows, image_use=image_use(rows, False))
    assert 'role="alert"' in page
    assert "The pictures do not matter to this model." in page
    assert "Does not read the pictures." in page
    assert "from the picture alone" not in page


def test_headline_claims_no_field_that_a_baseline_reaches(tmp_path):
    rows = [
        Judged(r.id, r.truth, {"title": "?", "category3_code": "KIND 0", "full_price": 200.0}, "", None, b"")
        for r in judged(60)
    ]
    assert "Does no better than the baselines." in written(tmp_path, rows)
    some = [Judged(r.id, r.truth, dict(r.truth) | {"full_price": 200.0}, "", None, b"") for r in judged(60)]
    page = written(tmp_path, some)
    assert "Reads Product and Category." in page
    assert "Not clearly better than the best baseline: Full Price." in page
    assert "Whether the pictures matter was not checked" in page


def test_absent_parts_leave_no_trace(tmp_path):
    page = written(tmp_path, judged(30), baselines={})
    for name in ("Before fine-tuning", "Nearest neighbour", "Blanked pictures", "Noise floor", "Seconds"):
        assert f">{name}" not in page
    assert "was not checked" in page


@pytest.mark.parametrize("kinds", [("text",), ("category",), ("number",), ("number", "text", "number", "category")])
def test_any_fields_in_any_order(tmp_path, kinds):
    fields = tuple(FieldSpec(column=f"c{i}", label=f"Label {i}", kind=kind) for i, kind in enumerate(kinds))
    values = {"text": "walnut", "category": "DESK", "number": -3.5}
    truth = {field.column: values[field.kind] for field in fields}
    page = written(tmp_path, [Judged("a", truth, truth, "", None, PICTURES[0])] * 3, fields)
    assert page.count('<figure class="plot">') == kinds.count("number")
    assert page.count('class="confusion"') == kinds.count("category")
    assert ("<code>exact</code>" in page) == ("text" in kinds)
    assert page.count("Largest errors") == kinds.count("number")


def test_a_run_where_nothing_parsed(tmp_path):
    rows = [Judged(r.id, r.truth, None, "", "is empty", r.picture) for r in judged(20)]
    page = written(tmp_path, rows)
    assert "<svg" not in page
    assert "20 of 20" in page
    assert "(nothing)" in page


def test_everything_from_data_is_escaped(tmp_path):
    fields = tuple(field.model_copy(update={"label": f"<b>{field.label}</b>" * 9}) for field in REFERENCE_FIELDS)
    page = written(tmp_path, hostile_rows(), fields, run=HOSTILE[0], seconds={HOSTILE[1]: 1.0})
    assert "<script" not in page
    assert "<img src=x" not in page
    assert "<b>Product" not in page
    assert page.count("</style>") == 1
    assert "&lt;script&gt;" in page
    assert "{{ 7 * 7 }}" in page
    assert not re.search(r"<[^>]*\son\w+=", re.sub(r'"[^"]*"', "", page)), "no inline event handlers"
    assert not set("\x00\x07\u202e") & set(page)
    assert "default-src &#39;none&#39;" in page or "default-src 'none'" in page


def test_nothing_outside_is_named(tmp_path):
    page = written(tmp_path, judged(60))
    assert "http:" not in page
    assert "https:" not in page
    assert "@import" not in page
    assert "url(" not in re.sub(r'clip-path="url\(#\w+\)"', "", page)


def test_gallery_is_bounded_and_says_what_it_shows(tmp_path):
    rows = judged(700)
    page = written(tmp_path, rows)
    gallery = page[page.index('id="gallery"') :]
    assert gallery.count('<li class="card') == GALLERY_ROWS
    assert "200 of the 700 rows, drawn at random" in gallery
    assert len(page) < 2_500_000
    assert "All 30 rows." in written(tmp_path, judged(30))


def test_same_arguments_same_bytes(tmp_path):
    assert written(tmp_path, judged(40)) == written(tmp_path, judged(40))


def test_thumbnails_are_small_and_carry_no_metadata(tmp_path):
    exif = Image.Exif()
    exif[0x010E] = "secret place"
    data = picture(side=900, exif=exif, comment=b"secret remark", icc_profile=b"secret profile")
    assert data.count(b"secret") == 3
    row = judged(1)[0]
    page = written(tmp_path, [Judged(row.id, row.truth, row.prediction, "", None, data)])
    found = re.search(r"data:image/jpeg;base64,([^\"]+)", page)
    assert found
    small = base64.b64decode(found[1])
    assert b"secret" not in small
    with Image.open(io.BytesIO(small)) as image:
        assert max(image.size) == THUMBNAIL
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
    plot = scatter(truths, truths, ["#3f7fd0"] * len(truths))
    assert plot.logarithmic is logarithmic
    assert plot.beyond == 0
    assert plot.svg.startswith("<svg")
    assert "var(--muted)" in plot.svg
    assert "#010101" not in plot.svg


def test_scatter_keeps_wild_predictions_on_its_edge():
    plot = scatter([1.0, 10.0, 100.0, 50.0], [1.0, math.inf, -3.0, 1e300], ["#3f7fd0"] * 4)
    assert plot.beyond == 3


def test_scatter_of_many_rows_stays_small():
    truths = [float(i + 1) for i in range(VECTOR_POINTS + 1)]
    plot = scatter(truths, truths, ["#3f7fd0"] * len(truths))
    assert "data:image/png;base64," in plot.svg
    assert len(plot.svg) < 400_000


@pytest.mark.browser
@needs_chromium
@pytest.mark.parametrize("width", [1280, 390])
def test_chromium_opens_it_offline(tmp_path, width):
    rows = hostile_rows()
    written(tmp_path, rows, run="evening & day", image_use=image_use(rows, True))
    with opened((tmp_path / "report.html").as_uri(), width=width, dark=width == 390) as (page, problems):
        assert page.title() == "evening & day \u00b7 evaluation \u00b7 catalens"
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        assert page.locator("script, iframe, [onload], [onerror]").count() == 0
        assert page.get_by_text(HOSTILE[0]).first.is_visible()
        background = page.evaluate("getComputedStyle(document.body).backgroundColor")
        assert background == ("rgb(18, 19, 22)" if width == 390 else "rgb(247, 247, 245)")
        wrong = page.locator("#gallery .card.wrong").count()
        assert wrong < page.locator("#gallery .card:visible").count()
        page.get_by_label("Only rows with a mistake").check()
        assert page.locator("#gallery .card:visible").count() == wrong
        page.locator("footer").scroll_into_view_if_needed()
        page.screenshot(path=tmp_path / "page.png", full_page=True)
    assert problems == []
