"""The page in a real browser: it fits a phone and a desktop, in both schemes, and asks nothing of the network."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Browser, sync_playwright

from tests.report.sample import report_html

CHROMIUM = shutil.which("chromium")
PHONE, DESKTOP = 390, 1440

pytestmark = pytest.mark.skipif(
    CHROMIUM is None and os.environ.get("CI") != "true", reason="chromium is not installed: apt-get install chromium"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        # No sandbox: tests may run as root, and the page is our own.
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM or "chromium", args=["--no-sandbox", "--disable-gpu", "--disable-quic"]
        )
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("pages")
    kinds = {"whole": report_html(), "failed": report_html(failed=True), "old": report_html(old=True)}
    paths = {name: folder / f"{name}.html" for name in kinds}
    for name, html in kinds.items():
        paths[name].write_text(html, encoding="utf-8")
    return paths


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("kind", ["whole", "failed", "old"])
def test_nothing_is_wider_than_the_window(browser: Browser, pages: dict[str, Path], kind: str, width: int) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900})
    page.goto(pages[kind].as_uri())
    assert page.evaluate("document.documentElement.scrollWidth") == width
    # Tables may scroll in their own frame; nothing else sticks out.
    outside = page.evaluate(
        "width => [...document.querySelectorAll('main *, header *')]"
        ".filter(one => !one.closest('.scroll, svg') && one.getBoundingClientRect().right > width + 1)"
        ".map(one => one.tagName + '.' + one.className)",
        width,
    )
    assert outside == []
    page.close()


def test_page_asks_nothing_and_breaks_no_rule(browser: Browser, pages: dict[str, Path]) -> None:
    page = browser.new_page()
    asked: list[str] = []
    said: list[str] = []
    page.on("request", lambda request: asked.append(request.url))
    page.on("console", lambda message: said.append(message.text))
    page.goto(pages["whole"].as_uri())
    page.wait_for_load_state("networkidle")
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}
    assert [url for url in asked if url.startswith("file")] == [pages["whole"].as_uri()]
    assert said == []
    broken = page.evaluate("[...document.images].filter(image => !image.complete || image.naturalWidth === 0).length")
    assert broken == 0
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_schemes(browser: Browser, pages: dict[str, Path], scheme: str) -> None:
    page = browser.new_page(color_scheme=scheme)
    page.goto(pages["failed"].as_uri())
    paper = _luminance(page.evaluate("getComputedStyle(document.body).backgroundColor"))
    assert (paper > 0.5) == (scheme == "light")
    for what in ("h1", ".lead", ".note", ".fail", ".pass", ".interest", ".reference", "svg text"):
        style = page.evaluate(
            "selector => { const s = getComputedStyle(document.querySelector(selector)); "
            "return s.fill !== 'rgb(0, 0, 0)' ? s.fill : s.color }",
            what,
        )
        ink = _luminance(style)
        # WCAG 2.2, 1.4.3: 4.5 to 1 for text.
        assert (max(ink, paper) + 0.05) / (min(ink, paper) + 0.05) >= 4.5, what
    page.close()


def test_print_is_dark_on_white_and_leaves_nothing_folded(browser: Browser, pages: dict[str, Path]) -> None:
    page = browser.new_page(color_scheme="dark")
    page.goto(pages["whole"].as_uri())
    page.emulate_media(media="print")
    assert _luminance(page.evaluate("getComputedStyle(document.body).backgroundColor")) == 1
    assert _luminance(page.evaluate("getComputedStyle(document.body).color")) < 0.1
    folded = page.evaluate(
        "[...document.querySelectorAll('details:not([open]) > :last-child')].map(one => one.offsetHeight)"
    )
    assert folded != []
    assert min(folded) > 0
    page.close()


def _luminance(colour: str) -> float:
    """Return the relative luminance of `rgb(r, g, b)`, 0 to 1, after WCAG 2.2."""
    channels = [int(part) / 255 for part in colour.removeprefix("rgb(").removesuffix(")").split(", ")]
    linear = [channel / 12.92 if channel <= 0.04045 else ((channel + 0.055) / 1.055) ** 2.4 for channel in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
