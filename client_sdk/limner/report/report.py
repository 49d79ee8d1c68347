"""From a report's data to one HTML file that asks nothing of the network, and to its figures as files.

Plots are inline SVG and images data URIs; a content security policy in the page forbids everything else, and scripts.
What is said is in `words`, what is drawn in `plots`, the layout in `templates/`, one file for each part of the page.
"""

from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from pydantic import JsonValue

from limner.imaging.files import replace_file
from limner.report import pictures
from limner.report.card import read_card
from limner.report.data import ReportData
from limner.report.flow import steps
from limner.report.plots import in_files, make_plots
from limner.report.scores import subject_scores
from limner.report.words import (
    agreement_name,
    capital,
    contrasts,
    expected,
    interval_name,
    metric_name,
    not_measured,
    number,
    verdict_words,
    words,
)
from limner.types import Cohort

# What the card lists one by one is shown as tables and curves, not again among its fields.
_SHOWN_ELSEWHERE = {
    "out_of_fold",
    "halves",
    "metrics",
    "config",
    "versions",
    "notice",
    "labels",
    "evaluation",
    "reference",
}


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


def write_figures(
    folder: Path, data: ReportData, progress: Callable[[int, int], None] | None = None
) -> tuple[Path, ...]:
    """Write every figure to `folder`, made if need be, as SVG and as PNG of 300 dpi; return the files.

    Images that failed a check are marked, in the picture and by the file's name. `progress` is called with the number
    of figures that are done, and of all.

    Raises
    ------
    pydantic.ValidationError
        When the model's card lacks its out-of-fold scores.
    OSError
        When a file cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    plots = [plot for plot in make_plots(data, read_card(data.model)).values() if in_files(plot)]
    paths: list[Path] = []
    for done, plot in enumerate(plots, start=1):
        paths += plot.write(folder)
        if progress is not None:
            progress(done, len(plots))
    return tuple(paths)


def render_report(data: ReportData) -> str:
    """Return the report as HTML."""
    card = read_card(data.model)
    environment = Environment(
        loader=PackageLoader("limner.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(
        number=number, words=words, capital=capital, metric_name=metric_name, interval_name=interval_name
    )
    plots = make_plots(data, card)
    scores = subject_scores(data.model, card)
    return environment.get_template("report.html.jinja").render(
        data=data,
        model=data.model,
        simulation=data.simulation,
        labels=data.model.labels,
        card=card,
        evaluation=card.evaluation,
        metrics={metric.name: metric for metric in data.model.metrics},
        scores=scores,
        steps=steps(data, card),
        gaps=not_measured(data),
        plots=plots,
        pictures=pictures,
        contrasts=contrasts,
        expected=expected,
        agreement_name=agreement_name,
        verdict_words=verdict_words,
        flatten=_flatten,
        png=_png,
        svg=lambda name: Markup(plots[name].svg()),  # noqa: S704  our own drawing: matplotlib has escaped the labels in it
        slices_of=_slices_by_label(data.cohort),
        subjects_of=Counter(subject.label for subject in data.cohort.subjects),
        other_fields={name: value for name, value in data.model.card.items() if name not in _SHOWN_ELSEWHERE},
    )


def _slices_by_label(cohort: Cohort) -> Counter[str]:
    counts: Counter[str] = Counter()
    for subject in cohort.subjects:
        counts[subject.label] += subject.slices
    return counts


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
