"""What a reader waits for in the reading room, in Chromium on this machine, over what it may be.

A run is a reading of its own: the first image after the token, then the next image after each verdict, by the page's
own marks. The bars are times, so a machine that is busy with other things may miss them.
"""

import statistics
from pathlib import Path
from tempfile import TemporaryDirectory

from playwright.sync_api import Browser, Page

from benchmarks.harness import PAIRS, Result
from limner import Client
from tests.reading import study
from tests.reading.room import chromium, enter, judge_by_keys, serving, wait_case

NAME = "reading-room"
SUMMARY = "The reading room in Chromium: time to the first image and to the next, over 300 and 50 ms."
FIRST_MS, NEXT_MS, BUDGET_BYTES = 300.0, 50.0, 150_000


def run(pairs: int = PAIRS) -> Result:
    """Read so many times, 1 or more."""
    first: list[float] = []
    following: list[float] = []
    sizes: list[int] = []
    with TemporaryDirectory() as folder:
        server = study.start(Path(folder))
        try:
            with Client(server.address) as client, serving(server.address) as address, chromium() as browser:
                for _ in range(pairs + 1):  # the first warms up
                    began, after, size = _read(client, address, browser)
                    first.append(began)
                    following.append(statistics.median(after))
                    sizes.append(size)
        finally:
            server.stop()
    following_result = Result(
        f"{NAME} next image",
        f"median time from a verdict to the next image, over {NEXT_MS:g} ms",
        1,
        True,
        tuple(ms / NEXT_MS for ms in following[1:]),
    )
    return Result(
        NAME,
        f"time from the token to the first image, over {FIRST_MS:g} ms",
        1,
        True,
        tuple(ms / FIRST_MS for ms in first[1:]),
        {
            "first_image_ms": statistics.median(first[1:]),
            "next_image_ms": statistics.median(following[1:]),
            "page_bytes": max(sizes),
            "page_budget_bytes": BUDGET_BYTES,
        },
        (following_result,),
        {"chromium": browser.version},
    )


def _read(client: Client, address: str, browser: Browser) -> tuple[float, list[float], int]:
    """Return the time to the first image, those to each next, in ms, and the size of the page without images."""
    made = study.create(client)
    context = browser.new_context()
    page = context.new_page()
    sizes: list[int] = []
    page.on("response", lambda response: sizes.append(len(response.body())))
    page.goto(address)
    page.wait_for_load_state("networkidle")
    size = sum(sizes)
    enter(page, address, made.tokens[0].token)
    for position in range(1, made.reading.total):
        wait_case(page, position)
        page.wait_for_load_state("networkidle")  # a reader looks at an image for longer than fetching the next takes
        judge_by_keys(page)
    wait_case(page, made.reading.total)
    first, following = _marks(page)
    context.close()
    return first, following, size


def _marks(page: Page) -> tuple[float, list[float]]:
    marks = page.evaluate("performance.getEntriesByType('mark').map(mark => [mark.name, mark.startTime])")
    times = [(name, float(at)) for name, at in marks]
    login = next(at for name, at in times if name == "login")
    cases = [at for name, at in times if name.startswith("case-")]
    submits = [at for name, at in times if name == "submit"]
    return cases[0] - login, [case - submit for submit, case in zip(submits, cases[1:], strict=True)]
