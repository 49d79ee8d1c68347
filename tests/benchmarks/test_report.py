"""The page of results, from runs whose figures are known."""

import re
from pathlib import Path
from xml.etree import ElementTree

import pytest

from benchmarks import report
from benchmarks.harness import Result
from benchmarks.report import BEGIN, END, draw, record, recorded, write_page

P99 = Result("W1 p99", "p99 / p99", 1.0, True, (1.5, 1.25, 1.0))
W1 = Result(
    "W1", "ours / theirs", 1.05, False, (1.1, 1.3, 1.2), {"slices": 20000, "ours_ms": 1.234}, (P99,), {"Triton": "2.51"}
)
LATENCY = Result("latency", "p50 / p50", 1.15, True, (1.0, 1.1, 1.2))


@pytest.fixture
def results(tmp_path: Path) -> Path:
    """Three recorded runs, of which the first was made again."""
    file = tmp_path / "results.jsonl"
    for result in (Result("W1", "ours / theirs", 1.05, False, (9.9,)), LATENCY, W1):
        record(result, file)
    return file


@pytest.fixture
def page(tmp_path: Path) -> Path:
    """A page whose results are old."""
    file = tmp_path / "docs" / "performance.md"
    file.parent.mkdir()
    file.write_text(f"# Text\n{BEGIN}\nold\n{END}\nMore text\n")
    return file


def test_the_last_record_of_each_benchmark_is_kept(results: Path) -> None:
    assert [each.result for each in recorded(results)] == [W1, LATENCY]


def test_a_row_tells_the_machine_that_it_was_measured_on(
    results: Path, page: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = recorded(results)[0].machine
    monkeypatch.setattr(report, "_machine", lambda: "Another, 64 cores")
    record(LATENCY, results)
    write_page(recorded(results), page, page.with_name("plot.svg"))
    text = page.read_text()
    assert f"- A: {here}; torch " in text
    assert ", Triton 2.51\n" in text
    assert re.search(r"^- B: Another, 64 cores; torch [^,\n]+$", text, re.MULTILINE)
    assert re.search(r"^\| W1 .* \| 3 \| A \| ", text, re.MULTILINE)
    assert re.search(r"^\| latency .* \| 3 \| B \| ", text, re.MULTILINE)


def test_the_page_holds_every_ratio_and_keeps_its_text(results: Path, page: Path) -> None:
    plot = page.parent / "images" / "plot.svg"
    write_page(recorded(results), page, plot)
    first = page.read_text()
    assert first.startswith(f"# Text\n{BEGIN}\n")
    assert first.endswith(f"\n{END}\nMore text\n")
    assert "old" not in first
    date = recorded(results)[0].date
    assert f"| W1 | ours / theirs | **1.200** (1.100 to 1.300) | at least 1.05 | met | 3 | A | {date} |" in first
    assert f"| W1 p99 | p99 / p99 | **1.250** (1.000 to 1.500) | at most 1 | missed | 3 | A | {date} |" in first
    assert f"| latency | p50 / p50 | **1.100** (1.000 to 1.200) | at most 1.15 | met | 3 | A | {date} |" in first
    assert "| W1 | slices 20,000, ours ms 1.23 |" in first
    assert "Triton 2.51" in first
    assert "torch " in first
    assert " cores" in first
    assert "](images/plot.svg)" in first

    drawn = plot.read_text()
    write_page(recorded(results), page, plot)
    assert (page.read_text(), plot.read_text()) == (first, drawn), "written again from the same, it is the same"


def test_the_plot_has_a_row_for_each_ratio() -> None:
    drawn = ElementTree.fromstring(draw([W1, P99, LATENCY]))  # noqa: S314
    texts = ["".join(element.itertext()) for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    for expected in ("W1", "W1 p99", "latency", "1.200 (at least 1.05)", "1.250 (at most 1)", "1.100 (at most 1.15)"):
        assert texts.count(expected) == 1


@pytest.mark.parametrize("text", ["", BEGIN, END, f"{END}\n{BEGIN}", f"{BEGIN}{BEGIN}{END}", f"{BEGIN}{END}{END}"])
def test_a_page_without_its_markers_is_left_alone(text: str, results: Path, page: Path) -> None:
    page.write_text(text)
    with pytest.raises(ValueError, match=r"performance\.md has not one pair of markers"):
        write_page(recorded(results), page, page.with_name("plot.svg"))
    assert page.read_text() == text
    assert not page.with_name("plot.svg").exists()
