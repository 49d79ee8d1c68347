"""The figures of the report, one function each: images as PNG, plots as SVG in the colours of the page.

Plots name their colours by custom properties of CSS (`var(--ink)`): one drawing serves the light and the dark page.
Not for layout, captions or alternative texts: those are the template's.
"""

import re
from collections.abc import Sequence
from io import BytesIO
from math import isfinite

import matplotlib
import numpy as np
from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from limner.imaging.pictures import Window, grey, overlay
from limner.report.scores import SubjectScore, roc_band, roc_curve
from limner.types import Check, LayerLineage

# matplotlib wants real colours: each of these stands for a custom property of the page until the SVG is written.
INK, MUTED, RULE, ACCENT, REFERENCE, PASS, FAIL = (f"#0000{number:02x}" for number in range(1, 8))
_PROPERTIES = {
    INK: "var(--ink)",
    MUTED: "var(--muted)",
    RULE: "var(--rule)",
    ACCENT: "var(--interest)",
    REFERENCE: "var(--reference)",
    PASS: "var(--pass)",
    FAIL: "var(--fail)",
}
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "limner",
    # A label is text, even one with dollar signs.
    "text.parse_math": False,
    "font.size": 9,
    "font.family": "sans-serif",
    "text.color": INK,
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "xtick.labelcolor": INK,
    "ytick.labelcolor": INK,
    "xtick.major.width": 0.6,
    "ytick.major.width": 0.6,
}

# Display window in standard deviations of a normalised slice; the same for all, or they could not be compared.
NORMALISED_WINDOW = (-1.5, 3.0)

# Larger images are shrunk to this edge: what the page shows, at the pixels of a dense display.
MAX_EDGE = 400


def slice_png(pixels: NDArray[np.generic], window: Window | None = None) -> bytes:
    """Draw a slice `(rows, columns)` in grey, black to white over `window`; see `limner.imaging.pictures.grey`."""
    return _png(grey(pixels, window))


def overlay_png(pixels: NDArray[np.generic], heat_map: NDArray[np.floating]) -> bytes:
    """Draw a slice in grey under a heat map of the same shape, 0 to 1; see `limner.imaging.pictures.overlay`."""
    return _png(overlay(grey(pixels), heat_map))


def difference_png(difference: NDArray[np.floating], limit: float) -> bytes:
    """Draw a difference `(rows, columns)`: blue at `-limit`, white at 0, red at `limit`."""
    colours = matplotlib.colormaps["RdBu_r"]((np.clip(difference / limit, -1, 1) + 1) / 2)[..., :3]
    return _png(np.rint(colours * 255).astype(np.uint8))


def roc_svg(scores: Sequence[SubjectScore], label: str) -> bytes:
    """Draw the ROC curve of `label` against all others, in its 95 % bootstrap band over subjects.

    `scores` need at least one subject with `label` and one without.
    """
    figure, axes = _plot(4.2, 4.0)
    positive = np.array([score.label == label for score in scores])
    at = np.linspace(0, 1, 101)
    low, high = roc_band(scores, label, at)
    axes.fill_between(at, low, high, color=ACCENT, alpha=0.16, linewidth=0)
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
    axes.plot(*roc_curve(positive, np.array([score.probability for score in scores])), color=ACCENT, linewidth=1.8)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), xlabel="1 − specificity", ylabel="sensitivity", aspect="equal")
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
    return _svg(figure, "roc")


def scores_svg(scores: Sequence[SubjectScore], labels: Sequence[str], threshold: float | None) -> bytes:
    """Draw each subject's out-of-fold probability of the last label, in one row for each true label."""
    figure, axes = _plot(4.2, 0.7 + 0.75 * len(labels))
    for row, label in enumerate(labels):
        values = np.sort([score.probability for score in scores if score.label == label])
        colour = ACCENT if row == len(labels) - 1 else REFERENCE
        axes.plot(values, row + _spread(values), "o", markersize=5, color=colour, alpha=0.75, markeredgewidth=0)
    if threshold is not None:
        axes.axvline(threshold, color=MUTED, linewidth=0.8, linestyle=(0, (2, 3)))
    axes.set(xlim=(-0.03, 1.03), ylim=(len(labels) - 0.5, -0.5), xlabel=f"out-of-fold probability of “{labels[-1]}”")
    axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
    axes.set_yticks(range(len(labels)), labels)
    axes.tick_params(axis="y", length=0)
    axes.spines["left"].set_visible(False)
    return _svg(figure, "scores")


def check_svg(check: Check) -> bytes:
    """Draw a check that ran as a line: what passes shaded, its threshold, the values behind it, the figure itself."""
    figure, axes = _plot(2.1, 0.34)
    # A share of nothing is infinite: it lies off the line, and the table says so.
    values = [value for value in check.values if isfinite(value)]
    figures = [check.value] if isfinite(check.value) else []
    marks = np.array([check.threshold, 0.0, *figures, *values])
    margin = 0.08 * (np.ptp(marks) or 1)
    left, right = marks.min() - margin, marks.max() + margin
    axes.axvspan(
        *((left, check.threshold) if check.at_most else (check.threshold, right)), color=PASS, alpha=0.14, lw=0
    )
    axes.axhline(0, color=RULE, linewidth=0.8)
    axes.axvline(check.threshold, color=INK, linewidth=1)
    axes.plot(values, np.zeros(len(values)), "o", markersize=3.5, color=MUTED, alpha=0.6, markeredgewidth=0)
    axes.plot(
        figures, np.zeros(len(figures)), "D", markersize=5.5, color=PASS if check.passed else FAIL, markeredgewidth=0
    )
    axes.set(xlim=(left, right), ylim=(-1, 1))
    axes.axis("off")
    return _svg(figure, f"check-{check.number}")


def lineage_svg(layers: Sequence[LayerLineage]) -> bytes:
    """Draw the weights of each layer's selected channels, the most important first; one panel for each layer."""
    with style.context(_STYLE):
        figure = Figure(figsize=(7.6, 1.7), layout="constrained")
        panels = np.atleast_1d(np.asarray(figure.subplots(1, len(layers), sharey=True)))
    for axes, layer in zip(panels, layers, strict=True):
        axes.bar(range(len(layer.weights)), layer.weights, color=REFERENCE, width=0.9)
        axes.set_title(f"{layer.layer}: {len(layer.selected)} of {layer.channels}", fontsize=9, color=INK)
        axes.set_xticks([])
        axes.yaxis.set_major_formatter("{x:.0%}")
    return _svg(figure, "lineage")


def _png(pixels: NDArray[np.uint8]) -> bytes:
    image = Image.fromarray(pixels)
    image.thumbnail((MAX_EDGE, MAX_EDGE))
    buffer = BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _plot(width: float, height: float) -> tuple[Figure, Axes]:
    with style.context(_STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots()


def _spread(values: NDArray[np.float64]) -> NDArray[np.float64]:
    # Neighbours closer than a dot's width are set off from the row in turn, so that none hides another.
    turns = (0.0, -0.14, 0.14, -0.28, 0.28)
    offsets, run = np.zeros(len(values)), 0
    for index, gap in enumerate(np.diff(values), start=1):
        run = run + 1 if gap < 0.02 else 0
        offsets[index] = turns[run % len(turns)]
    return offsets


def _svg(figure: Figure, name: str) -> bytes:
    buffer = BytesIO()
    with style.context(_STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    text = buffer.getvalue().decode()
    text = text[text.index("<svg") :]
    for colour, css in _PROPERTIES.items():
        text = text.replace(colour, css)
    # Ids are unique in one drawing only, and the page holds several.
    text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{name}-", text)
    return re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL).encode()
