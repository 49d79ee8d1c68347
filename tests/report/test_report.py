"""The page: whole, on its own, accessible, and honest about what failed."""

import re
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from math import inf
from pathlib import Path

import pytest

from limner.report import ReportData, write_report
from limner.report.card import read_card
from limner.report.flow import steps
from limner.report.report import render_report
from limner.report.words import not_measured, number, verdict_words
from limner.types import Prediction, Verdict
from tests.report.sample import FLOW, report_data, report_html

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
def page() -> Page:
    return Page(report_html())


def test_page_asks_nothing_of_the_network(page: Page) -> None:
    html = report_html()
    # Addresses in it are names of XML's vocabularies, which nothing loads.
    assert set(re.findall(r"https?://[^/\"'<>]+", html)) <= {"http://www.w3.org"}
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
    assert data.simulation is not None
    for check in data.simulation.checks:
        assert check.detail[1:] in page.words
        assert check.source in page.words
    for subject in data.cohort.subjects:
        assert subject.subject in page.words
    images = len(data.slices) + sum(1 + len(example.heat_maps) for example in data.examples)
    assert len(page.all("img")) == images + 2 * len(data.simulation.images) + 1


def test_every_section_is_there(page: Page) -> None:
    """The contents name each section once, in its order, and every link leads to one."""
    (headings,) = [[a["id"] for name, a in page.elements if name == "h2" and "id" in a]]
    linked = [link["href"] for link in page.all("a")]
    assert [f"#{heading}" for heading in headings] == linked[: len(headings)]
    assert set(linked) <= {f"#{heading}" for heading in headings}
    assert headings == [
        *(
            "summary",
            "simulated",
            "checks",
            "reading",
            "performance",
            "calibration",
            "subjects",
            "learning",
            "cohort",
            "leakage",
        ),
        *("heat", "faithfulness", "lineage", "far", "card", "method"),
    ]


def test_figures_are_those_of_the_card(data: ReportData, page: Page) -> None:
    card = read_card(data.model)
    assert card.evaluation is not None
    for metric in data.model.metrics:
        assert f"{number(metric.value)} {number(metric.low)} to {number(metric.high)}" in page.words
    for metric in card.evaluation.slices:
        assert f"{number(metric.value)} {number(metric.low)} to {number(metric.high)}" in page.words
    delong, bootstrap = card.evaluation.delong, card.evaluation.bootstrap
    assert delong is not None
    assert bootstrap is not None
    for name, metric in (("AUC, after DeLong", delong), ("AUC, bootstrap of subjects", bootstrap)):
        assert f"{name} {number(metric.value)} {number(metric.low)} to {number(metric.high)}" in page.words
    assert "Brier score 0.12 0.10 Expected calibration error 0.09 0.04" in page.words
    assert "One network is served, and worth what these are rather than their mean." in page.words
    # The table is of the slices that set the temperature, the curve is not.
    assert "by temperature 1.40, which was fitted on these very slices" in page.words
    assert "each fold's slices by the temperature of the other folds'" in page.words
    assert "non-recurrent 15 1 recurrent 1 10" in page.words
    assert "p 0.0002" in page.words
    for point in card.evaluation.learning_curve:
        assert f"{point.subjects} {number(point.auc.value)} {number(point.auc.low)} to" in page.words
    assert "1 pair found" in page.words
    assert "0.9987" in page.words
    assert "1 of 4 slices shown lie far" in page.words
    for name, version in {**card.versions, **data.versions}.items():
        assert f"{name} {version}" in page.words


def test_the_flow_counts_whom_it_leaves_out_and_names_nobody(page: Page) -> None:
    assert "307 subjects looked at" in page.words
    assert "180 left out: followed for less than 24 months" in page.words
    assert "54 labelled 39 non-recurrent, 15 recurrent" in page.words
    assert "27 left out: without images in the cohort" in page.words
    assert "non-recurrent: none, and followed for 24 months" in page.words
    assert "TCGA-XX" not in page.words


def test_the_reading_says_how_far_readers_agree_and_who_did_not_finish(data: ReportData, page: Page) -> None:
    assert data.reading is not None
    assert "2 readers, 24 images" in page.words
    assert "Not all readers judged every image: bo 20 of 24." in page.words
    assert "Kappa, quadratic weights ann and model 0.40 0.20 to 0.60 24 cases" in page.words
    assert "AUC of the label, real slices model – – to –" in page.words
    assert "AUC, real or simulated all readers 0.55 0.35 to 0.75 24 cases and readers" in page.words
    without = Page(render_report(replace(data, reading=None)))
    assert (
        "Agreement with readers: not measured. To get it: read (limner reading), then give --reading ID."
        in without.words
    )


def test_steps_add_up(data: ReportData) -> None:
    """Who was looked at is who was left out and who is next; the folds hold out every subject once."""
    looked_at, labelled, imported, folds = steps(data, read_card(data.model))
    assert looked_at.count == sum(count for count, _ in looked_at.left_out) + labelled.count
    assert labelled.count == sum(count for count, _ in labelled.left_out) + imported.count
    assert sum(map(int, re.findall(r"(?<!\d)(?<!\d:)\b\d+\b(?!:)", folds.note))) == imported.count
    larger = replace(data, flow=FLOW.model_copy(update={"labels": {"recurrent": 20}}))
    assert "the cohort has 7 more than this flow labels" in steps(larger, read_card(data.model))[1].note
    assert [step.what[:8] for step in steps(replace(data, flow=None), read_card(data.model))] == [
        "imported",
        "folds by",
    ]


def test_what_an_old_card_lacks_is_said_and_not_made_up() -> None:
    data = report_data(old=True)
    page = Page(report_html(old=True))
    assert len(not_measured(data)) == 7
    for gap in not_measured(data):
        assert f"{gap.what}: not measured. To get it: {gap.how}." in page.words
    assert "Learning curve: not measured. To get it: train with --learning-curve." in page.words
    for absent in ("DeLong 0", "By slice 95", "far from what", "pair found", "subjects looked at"):
        assert absent not in page.words
    assert "0.96 0.88 to 1.00" in page.words


def test_checks_that_need_another_training_are_said_to() -> None:
    data = report_data(failed=True)
    assert data.simulation is not None
    lacking = data.model.model_copy(update={"card": {**data.model.card, "halves": []}})
    eighth = data.simulation.checks[-1].model_copy(update={"number": 8, "name": "another_seed", "ran": False})
    simulation = data.simulation.model_copy(update={"checks": (*data.simulation.checks, eighth)})
    gaps = not_measured(replace(data, model=lacking, simulation=simulation))
    assert [(gap.what, gap.how) for gap in gaps if gap.section == "checks"] == [
        ("Independent judge", "train without --no-halves"),
        ("Network of another seed", "train with --sibling"),
    ]
    # Halves that could not judge this cohort are no reason to train again.
    assert [gap for gap in not_measured(data) if gap.section == "checks"] == []


def test_a_report_without_simulation_and_images(data: ReportData) -> None:
    page = Page(render_report(replace(data, simulation=None, slices=(), examples=())))
    assert "Simulated images: not measured. To get it: report without --no-simulate." in page.words
    assert "The server keeps no DICOM" in page.words
    assert page.all("img") == []
    assert "0.96 0.88 to 1.00" in page.words


def test_figures_of_another_cohort_are_said_to_be(data: ReportData, page: Page) -> None:
    other = replace(data, cohort=data.cohort.model_copy(update={"digest": "d1" * 32}))
    assert "The model was trained on another cohort" in Page(render_report(other)).words
    assert "trained on another cohort" not in page.words


def test_the_same_data_give_the_same_page(data: ReportData) -> None:
    assert render_report(data) == report_html()


def test_failed_gates_are_named_with_their_figures() -> None:
    page = Page(report_html(failed=True))
    assert "not to be shown as an explanation. Independent judge not run: no half-cohort models. " in page.words
    assert "Stability 0.41 (at least 0.60)." in page.words
    assert "may be shown as an explanation" not in page.words


def test_a_failed_verdict_cannot_be_missed() -> None:
    """It stands before every figure, in the colour of failure, and on every simulated image."""
    data = report_data(failed=True)
    page = Page(report_html(failed=True))
    assert page.words.index("✗ Failed check") < page.words.index("Subjects 27")
    classes = [(attributes.get("class") or "").split() for _, attributes in page.elements]
    verdict = classes.index(["verdict", "failed_check"])
    assert verdict < classes.index(["facts"])
    marks = [attributes["data-mark"] for _, attributes in page.elements if "data-mark" in attributes]
    assert data.simulation is not None
    assert marks == ["failed check"] * (len(data.simulation.images) + 1)
    assert [name for name in classes if "marked" in name] != []
    assert "marked" not in str([attributes.get("class") for _, attributes in Page(report_html()).elements])


def test_a_gate_that_fails_by_more_than_its_figure_says_by_what(data: ReportData) -> None:
    assert data.simulation is not None
    first = data.simulation.checks[0].model_copy(
        update={"passed": False, "detail": "1 of 2 images taken for their own"}
    )
    failed = data.simulation.model_copy(update={"verdict": Verdict.FAILED_CHECK, "checks": (first,)})
    assert verdict_words(failed).endswith("Own verdict 0.96 (at least 0.50): 1 of 2 images taken for their own.")


def test_verdict_words(data: ReportData) -> None:
    assert data.simulation is not None
    assert verdict_words(data.simulation).startswith("Every gate was passed")
    unchecked = data.simulation.model_copy(update={"verdict": Verdict.UNCHECKED, "checks": ()})
    assert verdict_words(unchecked).endswith("were not put to every check and are not to be shown as an explanation.")


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0.00"), (0.0002, "0.0002"), (-0.004, "−0.004"), (0.965, "0.96"), (12.0, "12.00"), (inf, "∞"), (None, "–")],
)
def test_small_figures_keep_a_digit(value: float | None, text: str) -> None:
    assert number(value) == text


def test_text_from_outside_is_escaped(data: ReportData) -> None:
    """A label that is markup, and dollar signs that matplotlib would set as mathematics, come out as they went in."""
    label = "<script>$a$</script>"
    model = data.model.model_copy(update={"labels": (data.model.labels[0], label)})
    cohort = data.cohort.model_copy(update={"name": label})
    few = replace(data, model=model, cohort=cohort, command=f"demo.py {label}", simulation=None, examples=())
    html = render_report(few)
    assert "<script>" not in html
    assert "&lt;script&gt;$a$" in html
    assert label in Page(html).words


def test_three_labels_are_each_set_against_the_first(data: ReportData) -> None:
    labels = (*data.model.labels, "third")
    assert data.simulation is not None
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
