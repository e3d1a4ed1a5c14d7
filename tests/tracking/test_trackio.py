"""A real run of trackio, read back from its SQLite and seen in its dashboard."""

import json
import re
import sqlite3
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from browser import needs_chromium, opened
from PIL import Image
from tracked import CONFIG, HOSTILE, METADATA, WARNING, alone, assert_quiet, track


def query(folder: Path, statement: str) -> list[tuple[Any, ...]]:
    """What trackio's database answers."""
    database = sqlite3.connect(folder / "trackio" / "shop.db")
    try:
        return database.execute(statement).fetchall()
    finally:
        database.close()


def test_trackio_holds_everything_in_the_folder(folder: Path, home: Path):
    assert_quiet(track(folder, home, {"to": "trackio"}))
    ((run, config),) = query(folder, "SELECT run_name, config FROM configs")
    assert run == "demo"
    assert {name: value for name, value in json.loads(config).items() if not name.startswith("_")} == CONFIG
    logged = [(step, json.loads(values)) for step, values in query(folder, "SELECT step, metrics FROM metrics")]
    assert [(step, values) for step, values in logged if "validation/examples" not in values] == [
        (1, {"train/loss": 2.5, "train/learning_rate": 0.001}),
        (2, {"train/loss": 1.5}),
        (2, {"validation/loss": 1.25}),
        (4, {"validation/loss": 0.75}),
        (4, {f"warning/{WARNING[0]}": WARNING[1]}),
        (4, {"best/loss": 0.75, "best/shuffled_hurts": False, "best/by": "loss"}),
    ]
    tables = [(step, values["validation/examples"]) for step, values in logged if "validation/examples" in values]
    assert [(step, len(table["_value"])) for step, table in tables] == [(2, 2), (4, 4)]
    rows = tables[-1][1]["_value"]
    assert [(row["step"], row["id"], row["prediction/price"], row["error"]) for row in rows] == [
        (2, "coat-1", 12.0, None),
        (2, "bag-2", None, "no price"),
        (4, "coat-1", 10.5, None),
        (4, "bag-2", None, "no price"),
    ]
    pictures = {row["picture"]["file_path"] for row in rows}
    assert len(pictures) == 2  # each is stored once
    for picture in pictures:
        with Image.open(folder / "trackio" / "media" / picture) as shown:
            assert shown.size == (512, 384)
    assert query(folder, "SELECT title, text, level, step FROM alerts") == [(WARNING[0], WARNING[1], "warn", 4)]
    assert query(folder, "SELECT name, type FROM artifacts") == [("model-demo", "model")]
    assert {alias for (alias,) in query(folder, "SELECT alias FROM artifact_aliases")} == {"best", "latest", "step-4"}
    ((manifest, metadata),) = query(folder, "SELECT manifest, metadata FROM artifact_versions")
    assert {entry["ref"] for entry in json.loads(manifest)} == {
        (folder / "best" / name).as_uri() for name in ("model.safetensors", "processor/tokenizer.json")
    }
    assert json.loads(metadata) == METADATA
    assert list(home.iterdir()) == []

    assert_quiet(track(folder, home, {"to": "trackio"}))  # goes on
    assert query(folder, "SELECT count(DISTINCT run_id) FROM metrics") == [(1,)]
    assert query(folder, "SELECT DISTINCT run_id FROM metrics") == [
        ((folder / "trackio_id.txt").read_text().strip(),)
    ]


def test_trackio_keeps_runs_where_the_user_says(folder: Path, home: Path):
    place = folder.parent / "tracked"
    assert_quiet(track(folder, home, {"to": "trackio", "examples": 0, "model": False}, TRACKIO_DIR=str(place)))
    assert (place / "shop.db").is_file()
    assert sorted(path.name for path in folder.iterdir()) == ["best", "trackio_id.txt"]


def test_trackio_asks_nobody(folder: Path, home: Path):
    asked: list[str] = []

    class Hub(BaseHTTPRequestHandler):
        def log_message(self, *arguments):  # it knows no method, so each request is an error that it logs
            asked.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), Hub) as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        place = f"http://127.0.0.1:{hub.server_port}"
        there = {"HF_ENDPOINT": place, "HF_TOKEN": "hf_secret", "TRACKIO_SPACE_ID": "somebody/space"}
        assert_quiet(track(folder, home, {"to": "trackio"}, **there))
        hub.shutdown()
    assert asked == []
    assert query(folder, "SELECT count(*) FROM alerts") == [(1,)]


@pytest.mark.browser
@needs_chromium
def test_the_dashboard_of_trackio_shows_the_run(folder: Path, home: Path):
    assert_quiet(track(folder, home, {"to": "trackio"}))
    show = "import trackio; trackio.show(project='shop', open_browser=False)"
    environment = alone(home, TRACKIO_DIR=str(folder / "trackio"), PYTHONUNBUFFERED="1")
    with subprocess.Popen([sys.executable, "-c", show], env=environment, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            url = next(found[0] for line in server.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+/", line)))
            with opened(f"{url}?project=shop") as (page, problems):
                page.get_by_text("train (2)").wait_for()  # its figures under train/
                page.get_by_text("learning_rate").first.wait_for()
                page.locator("canvas").nth(2).wait_for()  # plots
                assert "demo" in page.inner_text("body")
                page.goto(f"{url}media?project=shop")
                page.get_by_text("validation/examples").first.wait_for()
                page.locator("td img").first.wait_for()
                assert HOSTILE in page.inner_text("body")  # as text
                assert "no price" in page.inner_text("body")
                widths = page.locator("td img").evaluate_all("images => images.map(image => image.naturalWidth)")
                assert set(widths) == {512}
            assert problems == []  # a request to anywhere else would be one
        finally:
            server.terminate()
