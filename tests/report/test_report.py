"""The page: whole, on its own, accessible, and honest about what failed."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import pytest

from limner.report import ReportData, write_report
from limner.report.report import format_number, render_report, verdict_words
from limner.types import Prediction, Verdict
from tests.report.sample import report_data

VOID = {"meta", "img", "br", "link", "input", "hr"}


class Page(HTMLParser):
    """What the tests ask of a page: its elements, with an error where they are not nested rightly."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.text: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag, f"</{tag}> at {self.getpos()}"

    def handle_data(self, data: str) -> None:
        if "style" not in self.open:
            self.text.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())


@pytest.fixture(scope="module")
def data() -> ReportData:
    return report_data()


@pytest.fixture(scope="module")
def page(data: ReportData) -> Page:
    return Page(render_report(data))


def test_page_asks_nothing_of_the_network(data: ReportData, page: Page) -> None:
    html = render_report(data)
    assert [tag for tag, _ in page.elements if tag in {"script", "link", "iframe", "object"}] == []
    assert all((image["src"] or "").startswith("data:image/png;base64,") for image in page.all("img"))
    assert re.findall(r"url\((?!#)", html) == []
    assert "@import" not in html


def test_page_is_accessible(page: Page) -> None:
    assert all(image["alt"] for image in page.all("img"))
    assert len(page.all("table")) == len(page.all("caption"))
    assert len(page.all("h1")) == 1
    headings = [int(tag[1]) for tag, _ in page.elements if re.fullmatch(r"h[1-6]", tag)]
    assert all(after - before <= 1 for before, after in pairwise(headings))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    assert {section["aria-labelledby"] for section in page.all("section")} <= set(ids)


def test_page_shows_what_it_was_given(data: ReportData, page: Page) -> None:
    assert "Research use only, not for diagnostic use" in page.words
    assert "27 16 non-recurrent, 11 recurrent" in page.words
    assert "0.96 95 % interval 0.88 to 1.00" in page.words
    assert data.command in page.words
    assert data.model.identity.digest in page.words
    for check in data.simulation.checks:
        assert check.detail in page.words
    for subject in data.cohort.subjects:
        assert subject.subject in page.words
    images = len(data.slices) + sum(1 + len(example.heat_maps) for example in data.examples)
    assert len(page.all("img")) == images + 2 * len(data.simulation.images) + 1


def test_failed_gates_are_named_with_their_figures() -> None:
    page = Page(render_report(report_data(failed=True)))
    assert "not to be shown as an explanation. Independent judge not run: no half-cohort models. " in page.words
    assert "Stability 0.41 (at least 0.60)." in page.words
    assert "may be shown as an explanation" not in page.words


def test_verdict_words(data: ReportData) -> None:
    assert verdict_words(data.simulation).startswith("Every gate was passed")
    unchecked = data.simulation.model_copy(update={"verdict": Verdict.UNCHECKED, "checks": ()})
    assert verdict_words(unchecked).endswith("were not put to every check and are not to be shown as an explanation.")


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0.00"), (0.0002, "0.0002"), (-0.004, "-0.004"), (0.965, "0.96"), (12.0, "12.00")]
)
def test_small_figures_keep_a_digit(value: float, text: str) -> None:
    assert format_number(value) == text


def test_text_from_outside_is_escaped(data: ReportData) -> None:
    html = render_report(replace(data, command="demo.py --labels '<script>alert(1)</script>'"))
    assert "<script>" not in html
    assert "&lt;script&gt;" in html


def test_three_labels_are_each_set_against_the_first(data: ReportData) -> None:
    labels = (*data.model.labels, "third")
    images = data.simulation.images
    prediction = Prediction(label="third", probabilities=(0.1, 0.1, 0.8), logits=(0.0, 0.0, 2.0))
    third = images[1].model_copy(update={"label": "third", "prediction": prediction})
    simulation = data.simulation.model_copy(
        update={"images": (*(image.model_copy(update={"prediction": prediction}) for image in images), third)}
    )
    card = {**data.model.card, "out_of_fold": [_three_logits(entry) for entry in data.model.card["out_of_fold"]]}  # type: ignore[union-attr]
    model = data.model.model_copy(update={"labels": labels, "card": card})
    page = Page(render_report(replace(data, model=model, simulation=simulation, examples=())))
    assert "Recurrent minus non-recurrent" in page.words
    assert "Third minus non-recurrent" in page.words
    assert "ROC of" not in page.words


def test_report_is_written_whole_or_not_at_all(data: ReportData, tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    write_report(path, data)
    before = path.read_bytes()
    assert before.endswith(b"</html>")
    broken = replace(data, model=data.model.model_copy(update={"card": {}}))
    with pytest.raises(ValueError, match="validation error"):
        write_report(path, broken)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def _three_logits(entry: object) -> dict[str, object]:
    assert isinstance(entry, dict)
    return {**entry, "logits": [*entry["logits"], 0.0]}
