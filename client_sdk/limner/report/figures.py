"""The plots of what a model is worth: ROC, scores, calibration, permutation test, learning curve, distance from home.

Each function draws one figure in the colours it is given (`drawing.Colours`). Not for layout, captions or alternative
texts: those are the templates' and `plots`'.
"""

from collections.abc import Sequence
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from numpy.typing import NDArray

from limner.report.card import Bin, LearningPoint
from limner.report.drawing import DASHED, ONE_COLUMN, TWO_COLUMNS, Colours, canvas, panels, unit_axis
from limner.report.flow import Step
from limner.report.scores import SubjectScore, roc_band, roc_curve

# Percentiles that a distribution is redrawn from, and the bars it is drawn with.
REDRAWN, BARS = 4000, 40


def roc(colours: Colours, scores: Sequence[SubjectScore], label: str) -> Figure:
    """Draw the ROC curve of `label` against all others, in its 95 % band.

    `scores` need at least one subject with `label` and one without.
    """
    figure, axes = canvas(ONE_COLUMN, ONE_COLUMN)
    positive = np.array([score.label == label for score in scores])
    at = np.linspace(0, 1, 501)
    low, high = roc_band(scores, label, at)
    axes.fill_between(at, low, high, color=colours.interest, alpha=0.16, linewidth=0, label="95 % band")
    axes.plot([0, 1], [0, 1], color=colours.muted, linewidth=0.8, linestyle=DASHED, label="chance")
    curve = roc_curve(positive, np.array([score.probability for score in scores]))
    axes.plot(*curve, color=colours.interest, linewidth=1.8, label="out of fold")
    axes.set(xlabel="1 − specificity", ylabel="sensitivity", aspect="equal")
    unit_axis(axes.xaxis)
    unit_axis(axes.yaxis)
    axes.legend(loc="lower right")
    return figure


def scores(colours: Colours, scores: Sequence[SubjectScore], labels: Sequence[str], threshold: float | None) -> Figure:
    """Draw each subject's out-of-fold probability of the last label, in one row for each true label."""
    figure, axes = canvas(ONE_COLUMN, 0.8 + 0.65 * len(labels))
    for row, label in enumerate(labels):
        values = np.sort([score.probability for score in scores if score.label == label])
        colour = colours.interest if row == len(labels) - 1 else colours.reference
        axes.plot(values, row + _spread(values), "o", markersize=4.5, color=colour, alpha=0.75, markeredgewidth=0)
    if threshold is not None:
        axes.axvline(threshold, color=colours.muted, linewidth=0.8, linestyle=DASHED)
    axes.set(ylim=(len(labels) - 0.5, -0.5), xlabel=f"out-of-fold probability of “{labels[-1]}”")
    unit_axis(axes.xaxis)
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return figure


def calibration(colours: Colours, curves: Sequence[tuple[str, Sequence[Bin]]], label: str) -> Figure:
    """Draw calibration curves side by side: the share of `label` observed in each bin, in its 95 % band.

    Parameters
    ----------
    curves
        Title and bins of each.
    """
    figure, pairs = panels(ONE_COLUMN if len(curves) == 1 else TWO_COLUMNS, ONE_COLUMN, len(curves))
    for axes, (title, bins) in zip(pairs, curves, strict=True):
        predicted = [one.predicted for one in bins]
        axes.plot([0, 1], [0, 1], color=colours.muted, linewidth=0.8, linestyle=DASHED)
        band = [one.low for one in bins], [one.high for one in bins]
        axes.fill_between(predicted, *band, color=colours.interest, alpha=0.16, linewidth=0)
        axes.vlines(predicted, *band, color=colours.interest, linewidth=0.8, alpha=0.5)
        axes.plot(predicted, [one.observed for one in bins], color=colours.interest, linewidth=1.4)
        sizes = 8 + 60 * np.array([one.count for one in bins]) / max(one.count for one in bins)
        axes.scatter(predicted, [one.observed for one in bins], s=sizes, color=colours.interest, linewidth=0, zorder=3)
        axes.set(xlabel=f"probability of “{label}”", aspect="equal", title=title)
        unit_axis(axes.xaxis)
        unit_axis(axes.yaxis)
    pairs[0].set_ylabel("share observed")
    return figure


def null_distribution(colours: Colours, null: Sequence[float], found: float, xlabel: str, *, good: bool) -> Figure:
    """Draw a distribution under chance, given by its percentiles 0 to 100, and the figure that was found."""
    figure, axes = canvas(ONE_COLUMN, 1.5)
    distribution(axes, null, colours.muted)
    axes.axvline(found, color=colours.passed if good else colours.failed, linewidth=1.8)
    axes.annotate(
        "found",
        (found, 1),
        xycoords=("data", "axes fraction"),
        xytext=(-4 if found > np.mean(axes.get_xlim()) else 4, -2),
        textcoords="offset points",
        ha="right" if found > np.mean(axes.get_xlim()) else "left",
        va="top",
        color=colours.passed if good else colours.failed,
    )
    axes.set(xlabel=xlabel)
    return figure


def distribution(axes: Axes, percentiles: Sequence[float], colour: str) -> None:
    """Draw the density that percentiles 0 to 100 stand for, as bars without a scale."""
    redrawn = np.interp(np.linspace(0, 100, REDRAWN), np.linspace(0, 100, len(percentiles)), percentiles)
    axes.hist(redrawn, bins=BARS, color=colour, alpha=0.45, linewidth=0)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)


def repeats(colours: Colours, values: Sequence[float], overall: float) -> Figure:
    """Draw the AUC of each repeat of the cross-validation as a dot, and that of the mean over repeats as a bar."""
    figure, axes = canvas(ONE_COLUMN, 0.9)
    ordered = np.sort(values)
    axes.plot(ordered, _spread(ordered, within=0.002), "o", color=colours.muted, alpha=0.7, markeredgewidth=0)
    axes.axvline(overall, color=colours.interest, linewidth=1.8)
    axes.set(ylim=(-0.5, 0.5), xlabel="AUC by subject, each repeat; bar: all together")
    axes.locator_params(axis="x", nbins=4)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    return figure


def confusion(colours: Colours, counts: Sequence[Sequence[int]], labels: Sequence[str]) -> Figure:
    """Draw the number of subjects by true label (rows) and chosen label (columns), what is right in another colour."""
    figure, axes = canvas(ONE_COLUMN, 1.0 + 0.5 * len(labels))
    shares = np.array(counts) / np.maximum(np.sum(counts, axis=1, keepdims=True), 1)
    for row, column in np.ndindex(shares.shape):
        colour = colours.passed if row == column else colours.failed
        place = (column - 0.5, row - 0.5)
        axes.add_patch(Rectangle(place, 1, 1, facecolor=colour, alpha=0.08 + 0.4 * shares[row, column], linewidth=0))
        axes.text(column, row, f"{counts[row][column]}", ha="center", va="center", fontsize=10)
    axes.set(xlim=(-0.5, len(labels) - 0.5), ylim=(len(labels) - 0.5, -0.5), xlabel="taken for", ylabel="true label")
    axes.set_xticks(range(len(labels)), labels)
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return figure


def flow(colours: Colours, steps: Sequence[Step]) -> Figure:
    """Draw the steps of a cohort as boxes, one under the other, with whom each left out beside it."""
    figure, axes = canvas(TWO_COLUMNS, 0.95 * len(steps))
    axes.axis("off")
    axes.set(xlim=(0, 1), ylim=(len(steps) - 0.5, -0.5))
    for row, step in enumerate(steps):
        text = f"{step.count} {step.what}" + (f"\n{fill(step.note, 56)}" if step.note else "")
        box = {"boxstyle": "round,pad=0.5", "facecolor": "none", "edgecolor": colours.muted, "linewidth": 0.6}
        axes.text(0.02, row, text, va="center", bbox=box, linespacing=1.4)
        if row:
            arrow = {"arrowstyle": "->", "color": colours.muted, "linewidth": 0.8}
            axes.annotate("", (0.06, row - 0.33), (0.06, row - 0.67), arrowprops=arrow)
        left_out = "\n".join(fill(f"{count} left out: {reason}", 46) for count, reason in step.left_out)
        axes.text(0.6, row, left_out, va="center", color=colours.failed, fontsize=7, linespacing=1.4)
    return figure


def learning_curve(colours: Colours, points: Sequence[LearningPoint]) -> Figure:
    """Draw the AUC over the number of training subjects, in its 95 % band."""
    figure, axes = canvas(ONE_COLUMN, 2.4)
    subjects = [point.subjects for point in points]
    low, high = [point.auc.low for point in points], [point.auc.high for point in points]
    axes.fill_between(subjects, low, high, color=colours.interest, alpha=0.16, linewidth=0)
    axes.plot(
        subjects, [point.auc.value for point in points], "o-", color=colours.interest, linewidth=1.6, markersize=4
    )
    axes.axhline(0.5, color=colours.muted, linewidth=0.8, linestyle=DASHED)
    axes.set(xlabel="training subjects", ylabel="AUC by subject, out of fold", xlim=(0, None))
    axes.set_ylim(min(0.45, *low) - 0.02, 1.02)
    axes.set_xticks(subjects)
    return figure


def distance(
    colours: Colours, percentiles: Sequence[float], limit: float, shown: Sequence[tuple[float, bool]]
) -> Figure:
    """Draw the distances of held-out training slices, the limit, and slices of the report with whether each is far."""
    figure, axes = canvas(ONE_COLUMN, 1.7)
    distribution(axes, percentiles, colours.muted)
    axes.axvline(limit, color=colours.ink, linewidth=1)
    top = axes.get_ylim()[1]
    for value, far in shown:
        colour = colours.failed if far else colours.passed
        axes.plot([value], [-0.12 * top], "D" if far else "o", markersize=4.5, color=colour, markeredgewidth=0)
    axes.set(ylim=(-0.25 * top, top), xlabel="distance from the training cohort")
    return figure


def _spread(values: NDArray[np.float64], within: float = 0.02) -> NDArray[np.float64]:
    # Neighbours closer than a dot's width are set off from the row in turn, so that none hides another.
    turns = (0.0, -0.14, 0.14, -0.28, 0.28)
    offsets, run = np.zeros(len(values)), 0
    for index, gap in enumerate(np.diff(values), start=1):
        run = run + 1 if gap < within else 0
        offsets[index] = turns[run % len(turns)]
    return offsets
