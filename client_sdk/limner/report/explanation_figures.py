"""The plots of what a model looks at: simulated images, checks, lineage, faithfulness, heat maps.

Each function draws one figure in the colours it is given (`drawing.Colours`). Not for what may be called an
explanation: the server's checks decide that, and what failed them is marked here.
"""

from collections.abc import Sequence
from math import isfinite
from textwrap import fill

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from limner.imaging.pictures import grey, overlay
from limner.report.data import HeatMapExample
from limner.report.drawing import ONE_COLUMN, TWO_COLUMNS, Colours, canvas, panels
from limner.report.figures import distribution
from limner.report.pictures import NORMALISED_WINDOW, difference_colours
from limner.report.words import capital, contrasts, expected, number, words
from limner.types import Check, FaithfulnessCurve, ImportanceMethod, LayerLineage, SimulationResult

# Side of a panel of an image in print, in inches, where its row is no wider than two columns.
IMAGE = 1.7


def check_strip(colours: Colours, check: Check) -> Figure:
    """Draw a check that ran as a line: what passes shaded, its threshold, the values behind it, the figure itself."""
    figure, axes = canvas(2.4, 0.42)
    _strip(axes, colours, check)
    return figure


def checks(colours: Colours, ran: Sequence[Check]) -> Figure:
    """Draw the strips of all checks that ran, with their names and figures, and beside them null distributions."""
    figure, rows = panels(TWO_COLUMNS, 0.2 + 0.55 * len(ran), 2 * len(ran), rows=len(ran), share_y=False)
    for check, strip, null in zip(ran, rows[::2], rows[1::2], strict=True):
        _strip(strip, colours, check)
        outcome = "passed" if check.passed else "failed"
        figure_words = f"{number(check.value)} ({expected(check)}), {outcome}"
        strip.set_title(f"{check.number} {capital(words(check.name))}: {figure_words}", fontsize=7)
        null.axis("off")
        if check.null:
            _null(null, colours, check)
    return figure


def check_null(colours: Colours, check: Check) -> Figure:
    """Draw the null distribution of a check, and what was found."""
    figure, axes = canvas(2.4, 0.7)
    axes.axis("off")
    _null(axes, colours, check)
    return figure


def lineage(colours: Colours, layers: Sequence[LayerLineage]) -> Figure:
    """Draw the weights of each layer's selected channels, the most important first; one panel for each layer."""
    width = TWO_COLUMNS if len(layers) > 1 else TWO_COLUMNS / 4
    figure, pairs = panels(width, 1.5, len(layers))
    for axes, layer in zip(pairs, layers, strict=True):
        axes.bar(range(len(layer.weights)), layer.weights, color=colours.reference, width=0.9)
        axes.set_title(f"{layer.layer}: {len(layer.selected)} of {layer.channels}")
        axes.set_xticks([])
        axes.yaxis.set_major_formatter("{x:.0%}")
    return figure


def faithfulness(colours: Colours, curves: Sequence[FaithfulnessCurve]) -> Figure:
    """Draw deletion and insertion of one layer side by side: by importance in colour, by chance in grey, with bands."""
    figure, pairs = panels(ONE_COLUMN, 1.9, 2)
    for axes, kind in zip(pairs, ("deletion", "insertion"), strict=True):
        for curve in curves:
            chance = curve.method is ImportanceMethod.RANDOM
            colour = colours.muted if chance else colours.interest
            low, high = getattr(curve, f"{kind}_low"), getattr(curve, f"{kind}_high")
            axes.fill_between(curve.fractions, low, high, color=colour, alpha=0.16, linewidth=0)
            name = "at random" if chance else "by importance"
            style = (0, (4, 2)) if chance else "solid"
            axes.plot(curve.fractions, getattr(curve, kind), color=colour, linewidth=1.6, linestyle=style, label=name)
        axes.set(title=f"{curves[0].layer}, {kind}", xlim=(0, 1), xlabel="share of channels")
        axes.set_xticks([0, 0.5, 1], ["0", "½", "1"])
    pairs[0].set_ylabel("drop of the margin, logits")
    pairs[0].legend(loc="best")
    return figure


def simulated(colours: Colours, simulation: SimulationResult, mark: str) -> Figure:
    """Draw the simulated images over their nearest real slices, and each class's difference from the first.

    `mark` is burned into every image, in the colour of failure; empty for an explanation.
    """
    images, differences = simulation.images, list(contrasts(simulation))
    columns = len(images) + len(differences)
    side = min(IMAGE, TWO_COLUMNS / columns)
    figure, pairs = panels(side * columns, 2 * side + 0.7, 2 * columns, rows=2)
    for axes in pairs:
        axes.axis("off")
    for top, bottom, image in zip(pairs, pairs[columns:], images, strict=False):
        _show(top, grey(image.image, NORMALISED_WINDOW), f"simulated: {image.label}")
        _show(bottom, grey(image.nearest, NORMALISED_WINDOW), f"nearest real: {image.label}")
        _mark(top, mark, colours)
    for axes, (other, reference, difference, limit) in zip(pairs[len(images) :], differences, strict=False):
        _show(axes, difference_colours(difference, limit), f"{other} − {reference}, red: +{limit:.2g} SD")
        _mark(axes, mark, colours)
    figure.supxlabel("Simulated images show no patient. Research use only, not for diagnostic use.", fontsize=6)
    return figure


def heat_maps(_colours: Colours, examples: Sequence[HeatMapExample]) -> Figure:
    """Draw each slice beside itself under its heat maps, one row for each."""
    columns = 1 + len(examples[0].heat_maps)
    side = min(IMAGE, TWO_COLUMNS / columns)
    height = 0.3 + (side + 0.2) * len(examples)
    figure, pairs = panels(side * columns, height, columns * len(examples), rows=len(examples))
    for row, example in enumerate(examples):
        first, *others = pairs[row * columns : (row + 1) * columns]
        aspect = example.source.image.row_spacing_mm / example.source.image.column_spacing_mm
        shown = grey(example.source.image.pixels)
        _show(first, shown, f"{example.source.label}, model: {example.prediction.label}", aspect)
        for axes, (layer, heat_map) in zip(others, example.heat_maps.items(), strict=True):
            _show(axes, overlay(shown, heat_map), f"{layer}, for {example.target}", aspect)
    return figure


def _strip(axes: Axes, colours: Colours, check: Check) -> None:
    # A share of nothing is infinite: it lies off the line, and the page says so. The values of a check with a null
    # distribution are on another scale than its figure, and drawn with that distribution.
    values = [] if check.null else [value for value in check.values if isfinite(value)]
    figures = [check.value] if isfinite(check.value) else []
    marks = np.array([check.threshold, 0.0, *figures, *values])
    margin = 0.08 * (np.ptp(marks) or 1)
    left, right = marks.min() - margin, marks.max() + margin
    passing = (left, check.threshold) if check.at_most else (check.threshold, right)
    axes.axvspan(*passing, color=colours.passed, alpha=0.14, lw=0)
    axes.axhline(0, color=colours.rule, linewidth=0.8)
    axes.axvline(check.threshold, color=colours.ink, linewidth=1)
    axes.plot(values, np.zeros(len(values)), "o", markersize=4, color=colours.muted, alpha=0.6, markeredgewidth=0)
    colour = colours.passed if check.passed else colours.failed
    axes.plot(figures, np.zeros(len(figures)), "D", markersize=6, color=colour, markeredgewidth=0)
    axes.set(xlim=(left, right), ylim=(-1, 1))
    axes.axis("off")


def _null(axes: Axes, colours: Colours, check: Check) -> None:
    distribution(axes, check.null, colours.muted)
    for value in check.values:
        axes.axvline(value, color=colours.passed if check.passed else colours.failed, linewidth=1.6)
    axes.set_title("null, and what was found", fontsize=7, fontweight="normal")


def _show(axes: Axes, pixels: NDArray[np.uint8], title: str, aspect: float = 1.0) -> None:
    axes.imshow(pixels, cmap="gray", vmin=0, vmax=255, aspect=aspect, interpolation="nearest")
    axes.set_title(fill(title, 30), fontsize=6.5, fontweight="normal")
    axes.axis("off")


def _mark(axes: Axes, mark: str, colours: Colours) -> None:
    if mark:
        box = {"facecolor": "white", "edgecolor": colours.failed, "linewidth": 0.8, "pad": 2}
        text = fill(mark, 24)
        axes.text(
            0.5,
            0.03,
            text,
            transform=axes.transAxes,
            ha="center",
            va="bottom",
            fontsize=6,
            bbox=box,
            color=colours.failed,
        )
