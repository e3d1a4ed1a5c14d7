"""A real Chromium for tests: the machine's own, found on the PATH, driven through playwright.

@pytest.mark.browser
@needs_chromium
def test_page(tmp_path):
    with opened(file.as_uri(), width=390, dark=True) as (page, problems):
        assert page.title() == "..."
    assert problems == []
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Page, Request, sync_playwright

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = ("--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update")


def find_chromium() -> str | None:
    """Path of the first browser of `NAMES` that is installed."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


needs_chromium = pytest.mark.skipif(
    find_chromium() is None, reason=f"none of {', '.join(NAMES)} on the PATH (apt-get install chromium)"
)


@contextmanager
def opened(url: str, width: int = 1280, height: int = 900, dark: bool = False) -> Iterator[tuple[Page, list[str]]]:
    """Load a page, and gather what goes wrong: console errors, exceptions, dialogs, requests elsewhere."""
    problems: list[str] = []
    origin = "file://" if url.startswith("file://") else "/".join(url.split("/")[:3]) + "/"

    def check(request: Request) -> None:
        if not request.url.startswith((origin, "data:", "blob:")):
            problems.append(f"request: {request.url}")

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=find_chromium(), args=FLAGS)
        try:
            context = browser.new_context(
                viewport={"width": width, "height": height},
                color_scheme="dark" if dark else "light",
                offline=url.startswith("file://"),
            )
            page = context.new_page()
            page.on("request", check)
            page.on("pageerror", lambda error: problems.append(f"exception: {error}"))
            page.on("console", lambda said: said.type == "error" and problems.append(f"console: {said.text}"))
            page.on("dialog", lambda dialog: (problems.append(f"dialog: {dialog.message}"), dialog.dismiss()))
            page.goto(url)
            yield page, problems
        finally:
            browser.close()
