"""The page of results, `docs/performance.md`, from what recorded runs have left: `python -m benchmarks.report`.

`results.jsonl` has one line for each benchmark, its last run, so that one can be measured again by itself, on another
machine too: the page tells which row is of which. Only what stands between the page's two markers is written here; the
text is people's.
"""

import datetime
import os
import platform
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from io import StringIO
from pathlib import Path
from string import ascii_uppercase

from matplotlib import style
from matplotlib.figure import Figure
from pydantic import TypeAdapter

from benchmarks.harness import Result

BEGIN, END = "<!-- results: begin (python -m benchmarks.report) -->", "<!-- results: end -->"

_ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).with_name("results.jsonl")
PAGE = _ROOT / "docs/performance.md"
PLOT = _ROOT / "docs/images/performance.svg"

# Blue and vermilion of Okabe and Ito: told apart by every kind of eye; a missed bar has a shape of its own as well.
_DOT, _MET, _MISSED, _INK, _RULE = "#56b4e9", "#0072b2", "#d55e00", "#333333", "#999999"
_STYLE = {"svg.fonttype": "none", "svg.hashsalt": "limner", "font.size": 9, "font.family": "sans-serif"}


@dataclass(frozen=True)
class Record:
    """A result, and when and on what it was measured."""

    result: Result
    date: datetime.date
    machine: str
    torch: str


_RECORD = TypeAdapter(Record)


def record(result: Result, file: Path = RESULTS) -> None:
    """Put a result of now and of this machine in the place of the last one of its benchmark."""
    now = datetime.datetime.now(datetime.UTC).date()
    new = Record(result, now, _machine(), metadata.version("torch"))
    others = [each for each in recorded(file) if each.result.name != result.name]
    lines = [_RECORD.dump_json(each) + b"\n" for each in sorted([*others, new], key=lambda each: each.result.name)]
    file.write_bytes(b"".join(lines))


def recorded(file: Path = RESULTS) -> list[Record]:
    """The record of each benchmark, by name; none where there is no file yet."""
    return [_RECORD.validate_json(line) for line in file.read_bytes().splitlines()] if file.exists() else []


def write_page(records: Sequence[Record], page: Path = PAGE, plot: Path = PLOT) -> None:
    """Write the plot, and the results between the markers of the page.

    Raises
    ------
    ValueError
        The page has not one pair of markers.
    """
    before, begin, rest = page.read_text().partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in after:
        raise ValueError(f"{page.name} has not one pair of markers; expected {BEGIN!r} and {END!r}")
    plot.parent.mkdir(parents=True, exist_ok=True)
    plot.write_text(draw([ratio for each in records for ratio in (each.result, *each.result.also)]))
    picture = f"![Each benchmark's ratios against its bar]({plot.relative_to(page.parent).as_posix()})"
    page.write_text(f"{before}{BEGIN}\n{tables(records)}\n{picture}\n{END}{after}")


def tables(records: Sequence[Record]) -> str:
    """Markdown of all ratios, the figures behind them, the machines and their versions."""
    machines: dict[str, list[Record]] = {}
    for each in records:
        machines.setdefault(each.machine, []).append(each)
    letters = dict(zip(machines, ascii_uppercase, strict=False))
    rows = [_row(ratio, each, letters[each.machine]) for each in records for ratio in (each.result, *each.result.also)]
    behind = [f"| {each.result.name} | {_listed(figure_texts(each.result))} |" for each in records]
    return "\n".join(
        [
            "Measured on",
            "",
            *(f"- {letters[name]}: {name}; {_versions(of_machine)}" for name, of_machine in machines.items()),
            "",
            "| | ratio | median (least to most) | bar | | pairs | on | date |",
            "|---|---|---|---|---|---|---|---|",
            *rows,
            "",
            "| | figures |",
            "|---|---|",
            *behind,
            "",
        ]
    )


def figure_texts(result: Result) -> Iterable[tuple[str, str]]:
    """Name and value of each figure of a result, for a person."""
    for name, value in result.figures.items():
        yield name.replace("_", " "), f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.3g}"


def draw(results: Sequence[Result]) -> str:
    """SVG of each result in a row: a dot for each pair, and their median, as multiples of the bar.

    Where the ratio must not be over the bar, the bar is divided by the ratio: the good side is always right.
    """
    with style.context(_STYLE):
        figure = Figure(figsize=(7.6, 0.9 + 0.36 * len(results)), layout="constrained", facecolor="white")
        axes = figure.subplots()
        axes.axvline(1, color=_INK, linewidth=1.2)
        for row, result in enumerate(results):
            margins = [_margin(result, pair) for pair in result.pairs]
            axes.plot(margins, [row] * len(margins), "o", color=_DOT, markersize=5, alpha=0.7, markeredgewidth=0)
            marker, colour, size = ("D", _MET, 7) if result.met else ("X", _MISSED, 10)
            axes.plot(
                _margin(result, result.ratio), row, marker, color=colour, markersize=size, markeredgecolor="white"
            )
        axes.set_ylim(len(results) - 0.5, -0.5)
        axes.set_yticks(range(len(results)), [result.name for result in results])
        right = axes.secondary_yaxis("right")
        right.set_yticks(range(len(results)), [f"{result.ratio:.3f} ({result.bound})" for result in results])
        for side in (axes, right):
            side.tick_params(axis="y", length=0)
            side.spines[:].set_visible(False)
        axes.grid(axis="y", color=_RULE, linewidth=0.4)
        axes.set_axisbelow(True)
        axes.spines["bottom"].set_visible(True)
        axes.set_xlabel("multiple of the bar; right of the line it is reached (◆), left of it missed (✖)")
        drawn = StringIO()
        figure.savefig(drawn, format="svg", metadata={"Date": None, "Creator": None})
    return "\n".join(line.rstrip() for line in drawn.getvalue().splitlines()) + "\n"


def _margin(result: Result, ratio: float) -> float:
    return result.bar / ratio if result.at_most else ratio / result.bar


def _versions(records: Sequence[Record]) -> str:
    """Of all programs that took part in some results."""
    versions = {
        f"{name} {version}"
        for each in records
        for name, version in {"torch": each.torch, **each.result.versions}.items()
    }
    return ", ".join(sorted(versions, key=str.lower))


def _row(result: Result, record: Record, machine: str) -> str:
    cells = (
        result.name,
        result.unit,
        f"**{result.ratio:.3f}** ({min(result.pairs):.3f} to {max(result.pairs):.3f})",
        result.bound,
        "met" if result.met else "missed",
        str(len(result.pairs)),
        machine,
        record.date.isoformat(),
    )
    return f"| {' | '.join(cells)} |"


def _listed(figures: Iterable[tuple[str, str]]) -> str:
    return ", ".join(f"{name} {value}" for name, value in figures)


def _machine() -> str:
    """Processor and number of cores."""
    found = re.search(r"^model name\s*: (.+)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return f"{found[1] if found else platform.machine()}, {os.cpu_count()} cores"


if __name__ == "__main__":
    write_page(recorded())
