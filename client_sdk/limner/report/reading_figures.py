"""The plots of a reading: figures of agreement with their intervals, and what was said of each kind of image.

Each function draws one figure in the colours it is given. Not for the figures themselves: the server computes them.
"""

from collections.abc import Sequence

from matplotlib.figure import Figure

from limner.report.drawing import DASHED, TWO_COLUMNS, Colours, canvas
from limner.report.words import agreement_name, words
from limner.types import Agreement, AgreementFigure

PANELS = {"reading-agreement": ("kappa_", "icc_"), "reading-auc": ("auc_",)}
"""Forest plots by their names, and which figures each shows."""

MODEL = "model"
_LINE_IN = 0.19


def forest(colours: Colours, figures: Sequence[AgreementFigure]) -> Figure:
    """Draw figures as dots in their 95 % intervals, one below the other, under the name of what they measure."""
    rows: list[AgreementFigure | str] = []
    for figure in figures:
        title = agreement_name(figure)
        if title not in rows:
            rows.append(title)
        rows.append(figure)
    plot, axes = canvas(TWO_COLUMNS, 0.6 + _LINE_IN * len(rows))
    chance = 0.5 if figures[0].name.startswith("auc_") else 0.0
    axes.axvline(chance, color=colours.muted, linewidth=0.8, linestyle=DASHED)
    for place, row in enumerate(rows):
        if isinstance(row, AgreementFigure):
            colour = colours.interest if row.second == MODEL or row.first == MODEL else colours.reference
            together = not row.first
            axes.plot([row.low, row.high], [place, place], color=colour, linewidth=2.4 if together else 1.2, alpha=0.6)
            axes.plot(row.value, place, "D" if together else "o", color=colour, markersize=5 if together else 4)
    axes.set_yticks(range(len(rows)), [row if isinstance(row, str) else row.raters for row in rows])
    for row, label in zip(rows, axes.get_yticklabels(), strict=True):
        label.set_fontweight("bold" if isinstance(row, str) else "normal")
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    axes.set(ylim=(len(rows) - 0.4, -0.6), xlim=(min(-0.05, *(one.low for one in figures)), 1.05))
    axes.set_xlabel("chance: dashed; diamonds: all readers together")
    return plot


def likelihoods(colours: Colours, agreement: Agreement) -> Figure:
    """Draw each rater's mean likelihood of each kind and label of image; the model is a bar."""
    kinds = list(dict.fromkeys((group.kind, group.label) for group in agreement.groups))
    plot, axes = canvas(TWO_COLUMNS, 0.7 + 1.3 * _LINE_IN * len(kinds))
    readers = list(dict.fromkeys(group.reader for group in agreement.groups if group.reader != MODEL))
    for group in agreement.groups:
        place = kinds.index((group.kind, group.label))
        if group.reader == MODEL:
            axes.plot([group.likelihood] * 2, [place - 0.3, place + 0.3], color=colours.interest, linewidth=2)
        else:
            shift = 0.5 * (readers.index(group.reader) + 1) / (len(readers) + 1) - 0.25
            axes.plot(group.likelihood, place + shift, "o", color=colours.reference, markersize=4)
    axes.set_yticks(range(len(kinds)), [f"{words(kind)}, {label}" for kind, label in kinds])
    axes.tick_params(axis="y", length=0)
    axes.set(ylim=(len(kinds) - 0.5, -0.5), xlim=(-2, 102))
    axes.set_xlabel(f"mean likelihood of “{agreement.reading.label}”; bar: model, dots: readers")
    return plot
