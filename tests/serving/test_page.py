"""The page at `/`, driven in a real Chromium."""

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from browser import needs_chromium, opened
from hostile import HTML, jpeg
from playwright.sync_api import Page
from served import CARD, FakePredictor, Served, expected, serving

from catalens.config import PromptSpec
from catalens.predictions import Prediction
from catalens.serving import ModelCard, read_card

pytestmark = [pytest.mark.browser, needs_chromium]
NASTY = '=HYPERLINK("http://evil.example/"),<img src=x onerror=alert(1)>'


class Reader(FakePredictor):
    """Asks for a review of the price of photo 2, and reads something nasty in photo 3."""

    def _read(self, picture: bytes) -> Prediction:
        found = super()._read(picture)
        if found.values is None:
            return found
        values = {
            "title": NASTY if picture == jpeg(3) else "Red Tote Bag",
            "category3_code": "BAGS",
            "full_price": -5,
        }
        return Prediction(
            values, {"title": 0.97, "category3_code": 0.991, "full_price": 0.64}, {"full_price": (112.4321, 148.1)},
            ("full_price",) if picture == jpeg(2) else (), "Product: ...",
        )  # fmt: skip


def files(*named: tuple[str, bytes]) -> list[dict]:
    return [{"name": name, "mimeType": "image/jpeg", "buffer": picture} for name, picture in named]


PHOTOS = files(("one.jpg", jpeg(1)), ("two.jpg", jpeg(2)), ("=three,.jpg", jpeg(3)), ("login.html", HTML))


@contextmanager
def shown(server: Served, width: int = 1280, dark: bool = False) -> Iterator[tuple[Page, list[str]]]:
    """The page; what goes wrong on it but for refusals that the test provokes."""
    with opened(server.address + "/", width=width, dark=dark) as (page, problems):
        yield page, problems
        assert [one for one in problems if "the server responded with a status of" not in one] == []


def read(page: Page, photos: int) -> None:
    page.get_by_role("status").filter(has_text=f"{photos} of {photos} photos done").wait_for()


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with serving(Reader()) as served:
        yield served


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (390, True)])
def test_photos_are_read_corrected_and_downloaded(server, width: int, dark: bool, tmp_path: Path):
    with shown(server, width, dark) as (page, problems):
        page.get_by_label("Choose photos").set_input_files(PHOTOS)
        read(page, 4)
        assert page.get_by_role("status").text_content() == "4 of 4 photos done, 1 failed, 1 to check."
        cards = page.locator("#results .card")
        assert "not a picture" in (cards.nth(3).text_content() or "")
        assert cards.nth(0).get_by_label("Product").input_value() == "Red Tote Bag"
        assert "64 % sure · 112.4 to 148.1" in (cards.nth(0).text_content() or "")
        assert cards.nth(2).get_by_label("Product").input_value() == NASTY
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.screenshot(path=tmp_path / "page.png", full_page=True)

        cards.nth(1).get_by_label("Full Price").fill("129")
        assert page.get_by_role("status").text_content() == "4 of 4 photos done, 1 failed."
        with page.expect_download() as download:
            page.get_by_role("button", name="Download CSV").click()
        text = Path(download.value.path()).read_text(encoding="utf-8-sig")
        assert problems == []
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["file"] for row in rows] == ["one.jpg", "two.jpg", "'=three,.jpg", "login.html"]
    assert [row["title"] for row in rows] == ["Red Tote Bag", "Red Tote Bag", "'" + NASTY, ""]
    assert [row["full_price"] for row in rows] == ["-5", "129", "-5", ""]
    assert [row["edited_fields"] for row in rows] == ["", "full_price", "", ""]
    assert [row["needs_review"] for row in rows] == ["false", "false", "false", "true"]
    assert (rows[0]["full_price_low"], rows[0]["full_price_confidence"]) == ("112.4321", "0.64")
    assert "not a picture" in rows[3]["error"]


def test_a_flag_goes_when_a_person_has_looked_and_comes_back(server):
    with shown(server) as (page, _):
        page.get_by_label("Choose photos").set_input_files(PHOTOS[1:2])
        read(page, 1)
        page.get_by_role("button", name="check").focus()
        page.keyboard.press("Enter")
        assert page.get_by_role("button", name="✓ checked").get_attribute("aria-pressed") == "true"
        assert page.locator(".card.review").count() == 0
        page.keyboard.press("Space")
        assert page.locator(".card.review").count() == 1


@pytest.mark.parametrize("way", ["drop", "paste"])
def test_photos_may_be_dropped_and_pasted(server, way: str):
    with shown(server) as (page, problems):
        give = """([way, bytes]) => {
            const all = new DataTransfer();
            all.items.add(new File([new Uint8Array(bytes)], "given.jpg", {type: "image/jpeg"}));
            const event = way === "drop" ? new DragEvent("drop", {dataTransfer: all, bubbles: true, cancelable: true})
                                         : new ClipboardEvent("paste", {clipboardData: all, bubbles: true});
            document.body.dispatchEvent(event);
        }"""
        page.evaluate(give, [way, list(jpeg(1))])
        read(page, 1)
        assert page.locator(".file").text_content() == "given.jpg"
        assert problems == []


def test_the_keyboard_reaches_everything(server):
    with shown(server) as (page, _):
        reached = []
        for _step in range(3):
            page.keyboard.press("Tab")
            reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
        assert reached[0] == "choose"
        assert "SUMMARY" in reached


def test_many_photos_go_in_groups_and_wait_when_the_queue_is_full():
    predictor = FakePredictor(seconds=0.05)
    with serving(predictor, queue=2, batch_size=1) as server:
        photos = files(*((f"{number}.jpg", jpeg(number, 80, 80)) for number in range(30)))
        other = [server.service.batcher.submit([(jpeg(1), 320 * 240)]) for _ in range(2)]
        with shown(server) as (page, _):
            page.get_by_label("Choose photos").set_input_files(photos)
            read(page, 30)
            titles = [field.input_value() for field in page.get_by_label("Product").all()]
        assert titles == [expected(jpeg(number, 80, 80))["title"] for number in range(30)]
        assert all(future.result(30) for one in other for future in one)
        assert server.metric('catalens_requests_total{status="200"}') == 15


class Told(FakePredictor):
    """Says how many pictures and which text it was given."""

    prompt = PromptSpec(question="What is it? {description}")

    def query(self, pictures: Sequence[bytes], texts: Mapping[str, str]) -> tuple[int, str]:
        return len(pictures), texts["description"]

    def _read(self, picture: tuple[int, str]) -> Prediction:
        title = f"{picture[0]} of {picture[1] or 'nothing'}"
        return Prediction({"title": title, "category3_code": "BAGS", "full_price": 5.0})


@pytest.mark.parametrize("width", [1280, 390])
def test_photos_of_one_item_and_a_text_go_together(width: int, tmp_path: Path):
    with serving(Told()) as server, shown(server, width) as (page, _):
        page.get_by_label("Choose photos").set_input_files(PHOTOS[:1])
        page.get_by_label("description").fill("a large bag")
        page.get_by_label("Photos that are chosen together").check()
        page.get_by_label("Choose photos").set_input_files(PHOTOS[:2])
        page.get_by_label("Photos that are chosen together").uncheck()
        page.get_by_label("Choose photos").set_input_files(PHOTOS[:2])
        read(page, 4)
        titles = [field.input_value() for field in page.get_by_label("Product").all()]
        assert titles == ["1 of nothing", "2 of a large bag", "1 of a large bag", "1 of a large bag"]
        assert page.locator("#results .card").nth(1).locator("img").count() == 2
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        page.screenshot(path=tmp_path / "page.png", full_page=True)


def test_the_token_is_asked_for():
    with serving(token="sesame-sesame") as server, shown(server) as (page, _):
        assert not page.get_by_label("Token").is_visible()
        page.get_by_label("Choose photos").set_input_files(PHOTOS[:2])
        for given in ("wrong", "sesame-sesame"):
            page.get_by_label("Token").wait_for()
            page.get_by_label("Token").fill(given)
            page.keyboard.press("Enter")
        read(page, 2)
        assert not page.get_by_label("Token").is_visible()


def test_a_photo_that_is_too_large_never_leaves():
    with serving(max_bytes=100_000) as server, shown(server) as (page, _):
        page.get_by_label("Choose photos").set_input_files(files(("large.jpg", jpeg(1) * 10), ("one.jpg", jpeg(1))))
        read(page, 2)
        assert "larger than" in (page.locator(".card.failed").text_content() or "")
        assert server.metric("catalens_request_seconds_count") == 1


def test_the_model_card_and_scores_are_shown_as_text(tmp_path: Path):
    figure = {"value": 0.968, "low": 0.948, "high": 0.986}
    scores = {"fields": {"title": {"exact": figure}, "category3_code": {"accuracy": figure}}}
    run = tmp_path / "runs" / "<b>demo"
    (run / "evaluation").mkdir(parents=True)
    (run / "README.md").write_text("---\ntags: [x]\n---\n\n# demo\n\n<script>alert(1)</script>\n")
    (run / "evaluation" / "metrics.json").write_text(json.dumps({"rows": 347, "split": "test", "model": scores}))
    with serving(card=read_card(run)) as server, shown(server) as (page, problems):
        assert "On 347 rows of the test split" in (page.locator("#model").text_content() or "")
        assert "96.8\u00a0%" in (page.locator(".tiles").text_content() or "")
        page.get_by_text("Model card").click()
        assert page.locator("#model pre").text_content() == "# demo\n\n<script>alert(1)</script>"
        assert problems == []


def test_a_run_without_scores_or_with_strange_ones_has_a_page(tmp_path: Path):
    (tmp_path / "evaluation").mkdir()
    for metrics in ("", "[]", '{"model": 7}', '{"model": {"fields": {"title": {"exact": 1}}}}'):
        (tmp_path / "evaluation" / "metrics.json").write_text(metrics)
        with serving(card=read_card(tmp_path)) as server:
            assert "No scores" in server.request("GET", "/").text
    assert read_card(None).name == "tiny"
    assert read_card(None).text.startswith("# catalens tiny")
    assert read_card(tmp_path / "none") == ModelCard("none", "")
    assert CARD.metrics is None
