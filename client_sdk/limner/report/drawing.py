"""From a plot to the page and to files: one drawing, in the colours of the page or in real ones for a journal.

On the page plots name their colours by custom properties of CSS (`var(--ink)`), so that one drawing serves the light
and the dark page. In files colours are real, and text is drawn as curves (SVG) or at 300 dpi (PNG), so that they look
the same wherever they are opened. Not for what is plotted: that is in `figures` and `explanation_figures`.
"""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import astuple, dataclass
from io import BytesIO
from pathlib import Path

from matplotlib import style
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from limner.imaging.files import replace_file

# Widths of one and of two columns of a journal page: 89 and 183 mm, in inches.
ONE_COLUMN, TWO_COLUMNS = 3.5, 7.2
DPI = 300
DASHED = (0, (2, 3))


@dataclass(frozen=True)
class Colours:
    """What each colour of a plot stands for."""

    ink: str
    muted: str
    rule: str
    interest: str
    reference: str
    passed: str
    failed: str


# matplotlib wants real colours: each of these stands for a custom property of the page until the SVG is written.
PAGE = Colours(*(f"#0000{number:02x}" for number in range(1, 8)))
PRINT = Colours("#182026", "#5b6770", "#d9dfe2", "#b4501c", "#2f6690", "#2a6e4b", "#a8281e")
_PROPERTIES = Colours(*(f"var(--{name})" for name in ("ink", "muted", "rule", "interest", "reference", "pass", "fail")))


@dataclass(frozen=True)
class Plot:
    """One figure of the report.

    Attributes
    ----------
    name
        Of its files; unique in a report, and the prefix of its ids on the page.
    alt
        What it shows, in a sentence for those who do not see it.
    draw
        Draws it in the colours given, at the size it has in print.
    """

    name: str
    alt: str
    draw: Callable[[Colours], Figure]

    def svg(self) -> str:
        """Return it as an SVG element for the page, in the page's colours and font."""
        with _styled(PAGE, "none"):
            text = _save(self.draw(PAGE), "svg").decode()
        text = text[text.index("<svg") :]
        for colour, css in zip(astuple(PAGE), astuple(_PROPERTIES), strict=True):
            text = text.replace(colour, css)
        # Ids are unique in one drawing only, and the page holds several.
        text = re.sub(r'(\bid="|href="#|url\(#)', rf"\g<1>{self.name}-", text)
        return re.sub(r"<metadata>.*?</metadata>\s*", "", text, flags=re.DOTALL)

    def write(self, folder: Path) -> tuple[Path, Path]:
        """Write it as SVG and as PNG of 300 dpi, with a white ground; return the two files."""
        paths = folder / f"{self.name}.svg", folder / f"{self.name}.png"
        figure = self.figure()
        with _styled(PRINT, "path"):
            for path in paths:
                with replace_file(path) as temporary:
                    temporary.write_bytes(_save(figure, path.suffix[1:], transparent=False))
        return paths

    def figure(self) -> Figure:
        """Return it as a figure of matplotlib, in the colours of print."""
        with _styled(PRINT, "path"):
            return self.draw(PRINT)


def canvas(width: float, height: float) -> tuple[Figure, Axes]:
    """Return an empty figure of a size in inches, and its one pair of axes."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots()


def panels(
    width: float, height: float, count: int, *, rows: int = 1, share_y: bool = True
) -> tuple[Figure, list[Axes]]:
    """Return an empty figure of a size in inches with `count` pairs of axes in `rows` rows."""
    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.subplots(rows, -(-count // rows), sharey=share_y, squeeze=False).ravel().tolist()
    for unused in axes[count:]:
        unused.set_visible(False)
    return figure, axes[:count]


def unit_axis(axis: Axis) -> None:
    """Mark an axis of shares at 0, 0.5 and 1, with a little room for what lies at its ends."""
    axis.set_view_interval(-0.02, 1.02, ignore=True)
    axis.set_ticks([0, 0.5, 1], ["0", "0.5", "1"])


@contextmanager
def _styled(colours: Colours, svg_text: str) -> Iterator[None]:
    settings = {
        "svg.fonttype": svg_text,
        "svg.hashsalt": "limner",
        # A label is text, even one with dollar signs.
        "text.parse_math": False,
        "font.size": 8,
        "axes.titlesize": 8,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.titlecolor": colours.ink,
        "font.family": "sans-serif",
        "font.sans-serif": ["DejaVu Sans"],
        "text.color": colours.ink,
        "axes.edgecolor": colours.muted,
        "axes.labelcolor": colours.ink,
        "axes.linewidth": 0.6,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "xtick.color": colours.muted,
        "ytick.color": colours.muted,
        "xtick.labelcolor": colours.ink,
        "ytick.labelcolor": colours.ink,
        "xtick.major.width": 0.6,
        "ytick.major.width": 0.6,
        "legend.frameon": False,
        "legend.fontsize": 7,
        "savefig.facecolor": "white",
        "savefig.dpi": DPI,
    }
    with style.context(settings):
        yield


def _save(figure: Figure, kind: str, *, transparent: bool = True) -> bytes:
    buffer = BytesIO()
    # Nothing of the day or the machine: the same plot is the same file.
    metadata = {"Date": None, "Creator": None} if kind == "svg" else {"Software": None}
    figure.savefig(buffer, format=kind, transparent=transparent, metadata=metadata)
    return buffer.getvalue()
