"""The reading room for tests: `limner read` as a process of its own, and a reader who uses it in Chromium."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from playwright.sync_api import Browser, Page, expect, sync_playwright

CHROMIUM = shutil.which("chromium")
NEEDS_CHROMIUM = pytest.mark.skipif(
    CHROMIUM is None and os.environ.get("CI") != "true", reason="chromium is not installed: apt-get install chromium"
)
PATIENCE_MS = 20_000


@contextmanager
def serving(server: str, *options: str) -> Iterator[str]:
    """Serve the page on a free port; gives its address."""
    command = [sys.executable, "-m", "limner.cli.main", "read", "--port", "0", "--server", server, *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        found = re.search(r"reading room on (\S+);", process.stdout.readline())
        assert found
        try:
            yield found[1]
        finally:
            process.terminate()
            process.wait(timeout=30)


@contextmanager
def chromium() -> Iterator[Browser]:
    """Start the browser."""
    expect.set_options(timeout=PATIENCE_MS)
    with sync_playwright() as playwright:
        # No sandbox: tests may run as root, and the page is our own.
        browser = playwright.chromium.launch(
            executable_path=CHROMIUM or "chromium", args=["--no-sandbox", "--disable-gpu", "--disable-quic"]
        )
        yield browser
        browser.close()


def enter(page: Page, address: str, token: str) -> None:
    """Log in by keyboard."""
    page.goto(address)
    page.locator("#token").press_sequentially(token)
    page.keyboard.press("Enter")


def wait_case(page: Page, position: int) -> None:
    """Wait until a case is on the screen."""
    page.locator(f"#viewer[data-case='{position}']").wait_for(timeout=PATIENCE_MS)


def judge_by_keys(page: Page, likelihood: int = 4, realism: int = 2, confidence: int = 3) -> None:
    """Answer the three questions and save."""
    for digit in (likelihood, realism, confidence):
        page.keyboard.press(str(digit))
    page.keyboard.press("Enter")


def wait_sent(page: Page) -> None:
    """Wait until every verdict is at the server."""
    expect(page.locator("#saved")).to_have_attribute("data-state", "saved")
