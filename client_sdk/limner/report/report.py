"""From results of the SDK to one HTML file that asks nothing of the network: what is shown, and in which words.

Plots are inline SVG and images data URIs; a content security policy in the page forbids everything else.
The drawing is in `figures`, the layout in `template.html.jinja`.
"""

from base64 import b64encode
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from importlib.resources import files
from pathlib import Path

import numpy as np
from jinja2 import Environment, StrictUndefined
from markupsafe import Markup
from pydantic import JsonValue

from limner.imaging.files import replace_file
from limner.imaging.slices import Slice
from limner.report import figures
from limner.report.scores import SubjectScore, subject_scores
from limner.types import Check, Cohort, FloatArray, Model, Prediction, SimulationResult, Verdict

# What the card lists one by one is shown as tables and curves, not again among its fields.
_SHOWN_ELSEWHERE = {"out_of_fold", "halves", "metrics", "config", "versions", "notice", "labels"}


@dataclass(frozen=True, eq=False)
class RealSlice:
    """One slice of a subject, under its pseudonym."""

    subject: str
    label: str
    image: Slice

    @property
    def aspect(self) -> float:
        """Width over height in millimetres: pixels need not be square."""
        rows, columns = self.image.pixels.shape
        return float(columns * self.image.column_spacing_mm / (rows * self.image.row_spacing_mm))


@dataclass(frozen=True, eq=False)
class HeatMapExample:
    """One slice under its heat maps.

    Attributes
    ----------
    source
        The slice.
    target
        The label whose margin the heat maps explain.
    prediction
        What the served model says of the slice.
    heat_maps
        By layer: `(rows, columns)` of the source's raster, 0 to 1.
    """

    source: RealSlice
    target: str
    prediction: Prediction
    heat_maps: Mapping[str, FloatArray]


@dataclass(frozen=True, eq=False)
class ReportData:
    """Everything that a report shows.

    Attributes
    ----------
    cohort, model, simulation
        As the SDK returns them; the model's labels are the cohort's, and its card holds the out-of-fold scores.
    slices
        The contact sheet, in the order of showing.
    examples
        Slices under heat maps, all of the same layers.
    command
        What made this report, as it could be typed again.
    created
        When.
    seconds
        Duration of each step, by its name.
    """

    cohort: Cohort
    model: Model
    simulation: SimulationResult
    slices: tuple[RealSlice, ...]
    examples: tuple[HeatMapExample, ...]
    command: str
    created: datetime
    seconds: Mapping[str, float] = field(default_factory=dict)


def write_report(path: Path, data: ReportData) -> None:
    """Write the report to `path`, whole or not at all.

    Raises
    ------
    pydantic.ValidationError
        When the model's card lacks its out-of-fold scores.
    OSError
        When `path` cannot be written.
    """
    page = render_report(data)
    with replace_file(path) as temporary:
        temporary.write_text(page, encoding="utf-8")


def render_report(data: ReportData) -> str:
    """Return the report as HTML."""
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    environment.filters.update(number=format_number, words=lambda name: name.replace("_", " "))
    environment.globals.update(
        png=_png, svg=_svg, figures=figures, contrasts=_contrasts, flatten=_flatten, expected=_expected
    )
    template = environment.from_string(
        files("limner.report").joinpath("template.html.jinja").read_text(encoding="utf-8")
    )
    return template.render(
        data=data,
        labels=data.model.labels,
        scores=subject_scores(data.model),
        slices_of=_slices_by_label(data.cohort),
        subjects_of=Counter(subject.label for subject in data.cohort.subjects),
        card={name: value for name, value in data.model.card.items() if name not in _SHOWN_ELSEWHERE},
        verdict=verdict_words(data.simulation),
        has_roc=_has_both_classes(subject_scores(data.model), data.model.labels[-1]),
    )


def verdict_words(simulation: SimulationResult) -> str:
    """Say in a sentence or two what the simulated images may be called, with the figures that decide it."""
    if simulation.verdict is Verdict.EXPLANATION:
        passed = "; ".join(_outcome(check) for check in simulation.checks if check.gate)
        return f"Every gate was passed, so the simulated images may be shown as an explanation of this model. {passed}."
    why = "failed a check" if simulation.verdict is Verdict.FAILED_CHECK else "were not put to every check"
    outcomes = "".join(f" {_outcome(check)}." for check in simulation.failed_gates)
    return f"The simulated images {why} and are not to be shown as an explanation.{outcomes}"


def format_number(value: float) -> str:
    """Format a figure with two decimals, or with one digit where those would hide it."""
    return f"{value:.2f}" if value == 0 or abs(value) >= 0.01 else f"{value:.1g}"


def _outcome(check: Check) -> str:
    name = check.name.replace("_", " ").capitalize()
    return (
        f"{name} {format_number(check.value)} ({_expected(check)})" if check.ran else f"{name} not run: {check.detail}"
    )


def _expected(check: Check) -> str:
    return f"{'at most' if check.at_most else 'at least'} {format_number(check.threshold)}"


def _contrasts(simulation: SimulationResult) -> Iterator[tuple[str, str, bytes, float]]:
    # Each class against the first: its name, the first's, the difference image, and the range of its colours.
    reference, *others = simulation.images
    for other in others:
        difference = other.image - reference.image
        limit = float(np.percentile(np.abs(difference), 99.5)) or 1.0
        yield other.label, reference.label, figures.difference_png(difference, limit), limit


def _slices_by_label(cohort: Cohort) -> Counter[str]:
    counts: Counter[str] = Counter()
    for subject in cohort.subjects:
        counts[subject.label] += subject.slices
    return counts


def _has_both_classes(scores: tuple[SubjectScore, ...], label: str) -> bool:
    return len({score.label == label for score in scores}) == 2


def _flatten(values: Mapping[str, JsonValue], prefix: str = "") -> Iterator[tuple[str, str]]:
    for name, value in values.items():
        if isinstance(value, dict):
            yield from _flatten(value, f"{prefix}{name} · ")
        elif isinstance(value, list):
            yield prefix + name, ", ".join(str(item) for item in value)
        elif value is not None:
            yield prefix + name, str(value)


def _png(image: bytes) -> Markup:
    return Markup("data:image/png;base64,") + b64encode(image).decode()


def _svg(drawing: bytes) -> Markup:
    # Our own drawing: matplotlib has escaped the labels in it.
    return Markup(drawing.decode())  # noqa: S704
