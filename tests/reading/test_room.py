"""The reading room in a real browser: by keyboard and by mouse, through restarts, and blind to what an image is."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page, Response, Route, expect

from limner import Client
from limner.reading.app import TYPES
from limner.types import ItemKind
from tests.live import LiveServer
from tests.reading import study
from tests.reading.room import (
    NEEDS_CHROMIUM,
    chromium,
    enter,
    judge_by_keys,
    serving,
    wait_case,
    wait_sent,
)

pytestmark = NEEDS_CHROMIUM
STATIC = Path(__file__).parents[2] / "client_sdk" / "limner" / "reading" / "static"
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
BUDGET_BYTES = 150_000
SIZES = {"phone": (390, 844), "laptop": (1366, 768), "4k": (3840, 2160)}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with chromium() as browser:
        yield browser


@pytest.fixture(scope="module")
def address(study_server: LiveServer) -> Iterator[str]:
    with serving(study_server.address) as address:
        yield address


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    context = browser.new_context(viewport={"width": 1280, "height": 800})
    page = context.new_page()
    broken: list[str] = []
    page.on("pageerror", lambda error: broken.append(str(error)))
    yield page
    context.close()
    assert broken == []


def likelihoods(client: Client, reading: str) -> dict[int, float]:
    """Close a reading, and return the likelihood that counts of each place of its first reader."""
    client.readings.close(reading)
    content = client.readings.export(reading)
    return {one.position: one.verdict.likelihood for one in content.verdicts if one.counts}


def test_a_whole_reading_by_keyboard(page: Page, address: str, study_client: Client) -> None:
    made = study.create(study_client)
    total = made.reading.total
    enter(page, address, made.tokens[0].token)
    for position in range(1, total + 1):
        wait_case(page, position)
        if position == 1:
            page.keyboard.press("Enter")
            expect(page.locator("#sheet-error")).to_contain_text("Not answered yet: How likely is yes?")
            page.keyboard.press("t")
            page.keyboard.type("12 seen 345")
            page.keyboard.press("Escape")
            page.keyboard.press("f")
            page.keyboard.press("ArrowRight")
            page.keyboard.press("l")
            for _ in range(3):
                page.keyboard.press("ArrowRight")
            page.locator("#viewer").focus()
            page.keyboard.press("2")
            page.keyboard.press("3")
            page.keyboard.press("Enter")
        else:
            judge_by_keys(page, likelihood=1 + position % 5)
    expect(page.locator("#done-title")).to_be_focused()
    wait_sent(page)
    study_client.readings.close(made.reading.id)
    verdicts = study_client.readings.export(made.reading.id).verdicts
    assert [one.position for one in verdicts] == list(range(1, total + 1))
    first = verdicts[0].verdict
    assert (first.likelihood, first.realism, first.confidence, first.comment) == (53, 2, 3, "12 seen 345")
    assert first.features == {"size": "no lesion"}
    assert [one.step for one in verdicts[1:]] == [1 + position % 5 for position in range(2, total + 1)]
    assert all(0 < one.verdict.seconds < 300 for one in verdicts)


def test_a_whole_reading_by_mouse(page: Page, address: str, study_client: Client) -> None:
    made = study.create(study_client)
    total = made.reading.total
    page.goto(address)
    page.locator("#token").fill(made.tokens[0].token)
    page.get_by_role("button", name="Open the reading").click()
    for position in range(1, total + 1):
        wait_case(page, position)
        before = page.locator("#readout").inner_text()
        box = page.locator("#viewer").bounding_box()
        assert box
        page.mouse.move(box["x"] + 200, box["y"] + 200)
        page.mouse.down()
        page.mouse.move(box["x"] + 150, box["y"] + 230, steps=3)
        page.mouse.up()
        expect(page.locator("#readout")).not_to_have_text(before)
        page.mouse.wheel(0, -300)
        expect(page.locator("#readout")).not_to_contain_text("1.0×")
        page.locator("input[name=likelihood][value='5']").click()
        page.locator("input[name=realism][value='4']").click()
        page.locator("input[name=confidence][value='5']").click()
        page.locator(".feature").nth(1).get_by_label("ill defined").click()
        page.locator("#submit").click()
    wait_sent(page)
    expect(page.locator("#done-text")).to_contain_text(f"You have judged {total} of {total} cases")
    page.get_by_role("button", name="Go through them again").click()
    wait_case(page, 1)
    expect(page.locator("input[name=likelihood][value='5']")).to_be_checked()
    page.locator("input[name=likelihood][value='1']").click()
    page.get_by_role("button", name="Save changed verdict").click()
    wait_sent(page)
    progress = study_client.readings.get(made.reading.id).readers[0]
    assert (progress.done, progress.verdicts) == (total, total + 1)
    assert likelihoods(study_client, made.reading.id) == {1: 10, **dict.fromkeys(range(2, total + 1), 90)}


def test_a_wrong_token_opens_nothing(page: Page, address: str) -> None:
    enter(page, address, "x" * 43)
    expect(page.locator("#login-error")).to_contain_text("No reading has this token")
    expect(page.locator("#room")).to_be_hidden()
    expect(page.locator("#token")).to_be_focused()


def test_two_readers_in_one_browser_at_once(browser: Browser, address: str, study_client: Client) -> None:
    made = study.create(study_client, ("ann", "bo"))
    context = browser.new_context()
    pages = [context.new_page() for _ in made.tokens]
    for page, token in zip(pages, made.tokens, strict=True):
        enter(page, address, token.token)
    for position in range(1, made.reading.total + 1):
        for page, likelihood in zip(pages, (1, 5), strict=True):
            wait_case(page, position)
            judge_by_keys(page, likelihood=likelihood)
    for page in pages:
        wait_sent(page)
    context.close()
    study_client.readings.close(made.reading.id)
    verdicts = study_client.readings.export(made.reading.id).verdicts
    assert {(one.reader, one.step) for one in verdicts} == {("ann", 1), ("bo", 5)}
    assert len(verdicts) == 2 * made.reading.total


def test_a_server_that_is_killed_loses_and_doubles_nothing(
    page: Page, address: str, study_server: LiveServer, study_client: Client
) -> None:
    """Killed in the middle of a reading, and started again; the page is loaded anew while it is away."""
    made = study.create(study_client)
    total = made.reading.total
    enter(page, address, made.tokens[0].token)
    wait_case(page, 1)
    judge_by_keys(page)
    wait_case(page, 2)
    wait_sent(page)
    page.wait_for_load_state("networkidle")  # the next cases are here
    study_server.kill()
    for position in (2, 3):
        wait_case(page, position)
        judge_by_keys(page)
    expect(page.locator("#saved")).to_contain_text("2 verdicts are saved here, not yet at the server")
    page.on("dialog", lambda dialog: dialog.accept())
    page.reload()
    expect(page.locator("#login-error")).to_have_text("The Limner server cannot be reached. Trying again.")
    expect(page.locator("#waiting")).to_contain_text("2 verdicts wait in this browser")
    study_server.start(study_server.address.rpartition(":")[2])
    for position in range(4, total + 1):
        wait_case(page, position)
        judge_by_keys(page)
    wait_sent(page)
    progress = study_client.readings.get(made.reading.id).readers[0]
    assert (progress.done, progress.verdicts) == (total, total)


def test_a_reader_who_has_left_is_gone(
    page: Page, address: str, study_server: LiveServer, study_client: Client
) -> None:
    """Two readers one after the other in one tab; the first leaves with a verdict under way and an image to come."""
    made = study.create(study_client, ("ann", "bo"), real=8)
    ann, bo = (token.token for token in made.tokens)
    on_its_way: list[Route] = []
    page.route("**/api/verdicts", lambda route: on_its_way.append(route))
    enter(page, address, ann)
    wait_case(page, 1)
    judge_by_keys(page)
    wait_case(page, 2)
    page.keyboard.press("t")
    page.keyboard.type("of ann")
    page.keyboard.press("Escape")
    study_server.kill()
    for _ in range(2, made.reading.total):  # to the last, whose image was not fetched ahead
        page.keyboard.press("PageDown")
    expect(page.locator("#sheet-error")).to_contain_text("The Limner server cannot be reached. Trying again.")
    page.locator("#leave").click()
    page.locator("#token").fill(bo)
    # The second refusal is later than what the first reader's room waits for.
    for _ in range(2):
        with page.expect_response("**/api/reading"):
            page.keyboard.press("Enter")
    expect(page.locator("#login")).to_be_visible()
    expect(page.locator("#room")).to_be_hidden()

    study_server.start(study_server.address.rpartition(":")[2])
    wait_case(page, 1)
    page.keyboard.press("t")
    page.keyboard.type("of bo")
    on_its_way.pop(0).continue_()
    while page.evaluate("Object.keys(localStorage).some(key => key.startsWith('limner-reading-outbox:'))"):
        page.wait_for_timeout(20)
    expect(page.locator("#progress-text")).to_have_text(f"0 of {made.reading.total}")
    expect(page.locator("#saved")).to_have_text("")
    drafts = page.evaluate("Object.values({...sessionStorage}).filter(text => text.includes('comment'))")
    assert [json.loads(draft)["comment"] for draft in sorted(drafts)] == ["of ann", "of bo"]
    readers = {one.reader: one.done for one in study_client.readings.get(made.reading.id).readers}
    assert readers == {"ann": 1, "bo": 0}


def test_a_refused_verdict_says_why(page: Page, address: str, study_client: Client) -> None:
    made = study.create(study_client)
    enter(page, address, made.tokens[0].token)
    wait_case(page, 1)
    study_client.readings.close(made.reading.id)
    judge_by_keys(page)
    expect(page.locator("#saved")).to_contain_text("1 verdict was not taken: ")
    expect(page.locator("#saved")).to_contain_text("was closed at")


def test_nothing_tells_what_an_image_is(browser: Browser, address: str, study_client: Client) -> None:
    """Read all that reaches the browser, compare it between real images and others, and look for what would tell."""
    made = study.create(study_client, class_means=True, label="yes", question="How likely is it?")
    context = browser.new_context()
    page = context.new_page()
    heard: list[Response] = []
    page.on("response", lambda response: heard.append(response))
    enter(page, address, made.tokens[0].token)
    for position in range(1, made.reading.total + 1):
        wait_case(page, position)
        judge_by_keys(page)
    wait_sent(page)
    stored = page.evaluate("JSON.stringify([{...localStorage}, {...sessionStorage}])")
    html = page.content()
    bodies = {response.url: response.body() for response in heard}
    headers = {response.url: response.all_headers() for response in heard}
    asked = [response.request for response in heard]
    context.close()
    assert {request.url.startswith(address) for request in asked} == {True}

    study_client.readings.close(made.reading.id)
    content = study_client.readings.export(made.reading.id, images=True)
    kind_at = {one.position: content.items[one.item].kind for one in content.verdicts}
    images = {place: f"{address}api/cases/{place}" for place in kind_at}
    # One size, one set of headers, the place in the address, whatever the image is.
    shapes = {
        place: (len(bodies[url]), {name: value for name, value in headers[url].items() if name != "date"})
        for place, url in images.items()
    }
    assert set(kind_at.values()) == {ItemKind.REAL, ItemKind.SIMULATED, ItemKind.CLASS_MEAN}
    assert len({json.dumps(shape, sort_keys=True) for shape in shapes.values()}) == 1
    # No word of kind, label, subject, instance or model in anything but the page's own fixed text.
    fixed = {f"{address}{'' if path.name == 'index.html' else path.name}" for path in STATIC.iterdir()}
    dynamic = [body for url, body in bodies.items() if url not in fixed and url not in images.values()]
    dynamic += [json.dumps(headers).encode(), *(request.url.encode() for request in asked), stored.encode()]
    telling = {item.subject for item in content.items} | {item.instance for item in content.items}
    telling |= {kind.value for kind in ItemKind} | {"class mean", "lineage", study.MODEL, study.COHORT, "probabilit"}
    assert len(dynamic) > made.reading.total
    for text in filter(None, telling):
        assert [body for body in dynamic if text.encode() in body.lower()] == [], text
    for text in filter(None, {item.subject for item in content.items} | {study.MODEL, study.COHORT}):
        assert f'"{text}"' not in html


def test_one_image_takes_the_same_calls_and_reads_as_another(study_client: Client, study_server: LiveServer) -> None:
    """Timing: every image lies in one file, made at creation; the same statements fetch each."""
    made = study.create(study_client, class_means=True)
    folder = study_server.data_dir / "readings" / made.reading.id
    assert [path.name for path in folder.iterdir()] == ["images.npy"]
    assert folder.joinpath("images.npy").stat().st_size == 128 + made.reading.total * 2 * study.SIZE**2


def test_the_page_is_small_and_strict(browser: Browser, address: str) -> None:
    context = browser.new_context()
    page = context.new_page()
    said: list[str] = []
    heard: list[Response] = []
    page.on("console", lambda message: said.append(message.text))
    page.on("response", lambda response: heard.append(response))
    page.goto(address)
    page.wait_for_load_state("networkidle")
    assert sum(len(response.body()) for response in heard) < BUDGET_BYTES
    assert len(heard) == len([path for path in STATIC.iterdir() if path.suffix in TYPES])
    policy = heard[0].all_headers()["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "unsafe" not in policy
    assert "http" not in policy
    assert said == []
    expect(page.get_by_text("Research use only, not for diagnostic use")).to_be_visible()
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_no_violation(browser: Browser, address: str, study_client: Client, scheme: str) -> None:
    """WCAG 2.2 AA as far as axe-core can see it: login, case, comparison, help, end."""
    made = study.create(study_client, real=1)
    context = browser.new_context(color_scheme="dark" if scheme == "dark" else "light", bypass_csp=True)
    page = context.new_page()
    page.goto(address)
    page.locator("#token").wait_for()
    options = {"runOnly": {"type": "tag", "values": WCAG}}
    found = {"login": Axe().run(page, options=options)}
    enter(page, address, made.tokens[0].token)
    wait_case(page, 1)
    found["case"] = Axe().run(page, options=options)
    judge_by_keys(page)
    wait_case(page, 2)
    page.keyboard.press("c")
    expect(page.locator("#pane-other")).to_be_visible()
    found["compare"] = Axe().run(page, options=options)
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()
    found["help"] = Axe().run(page, options=options)
    page.keyboard.press("Escape")
    for position in range(2, made.reading.total + 1):
        wait_case(page, position)
        judge_by_keys(page)
    expect(page.locator("#done")).to_be_visible()
    found["end"] = Axe().run(page, options=options)
    context.close()
    assert [results.generate_report() for results in found.values() if results.violations_count] == []


@pytest.mark.parametrize("size", SIZES)
def test_nothing_is_wider_than_the_window(browser: Browser, address: str, study_client: Client, size: str) -> None:
    made = study.create(study_client)
    width, height = SIZES[size]
    context = browser.new_context(viewport={"width": width, "height": height})
    page = context.new_page()
    enter(page, address, made.tokens[0].token)
    wait_case(page, 1)
    assert page.evaluate("document.documentElement.scrollWidth") == width
    viewer = page.locator("#viewer").bounding_box()
    assert viewer
    assert viewer["width"] >= min(0.6 * width, 3000)
    # WCAG 2.2, 2.5.8: targets of 24 pixels at least.
    small = page.evaluate(
        "[...document.querySelectorAll('button, .choice, .chip')].filter(one => one.offsetParent)"
        ".map(one => one.getBoundingClientRect()).filter(box => Math.min(box.width, box.height) < 24).length"
    )
    assert small == 0
    context.close()


def test_single_keys_can_be_turned_off(page: Page, address: str, study_client: Client) -> None:
    made = study.create(study_client)
    enter(page, address, made.tokens[0].token)
    wait_case(page, 1)
    page.keyboard.press("?")
    page.get_by_label("Single-key shortcuts").uncheck()
    page.keyboard.press("Escape")
    page.locator("#leave").focus()
    page.keyboard.press("4")
    expect(page.locator("input[name=likelihood]:checked")).to_have_count(0)
    page.reload()
    wait_case(page, 1)
    page.locator("#viewer").focus()
    page.keyboard.press("4")
    expect(page.locator("input[name=likelihood]:checked")).to_have_count(1)
