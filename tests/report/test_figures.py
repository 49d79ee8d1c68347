"""The figures: the pixels of images, plots that take their colours from the page, files that need nothing else."""

import re
from functools import cache, partial
from io import BytesIO
from math import inf
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from limner.report import explanation_figures, figures, pictures
from limner.report.card import read_card
from limner.report.drawing import PRINT, Plot
from limner.report.plots import make_plots
from limner.report.scores import SubjectScore
from limner.types import Check
from tests.report.sample import report_data


def test_slice_is_black_and_white_at_its_window() -> None:
    image = _read(pictures.slice_png(np.array([[-5, 0], [1, 9]], dtype=np.int16), window=(0, 2)))
    np.testing.assert_array_equal(image, [[0, 0], [128, 255]])


def test_large_slice_is_shrunk_and_keeps_its_shape() -> None:
    assert _read(pictures.slice_png(np.zeros((1200, 600), dtype=np.uint16))).shape == (400, 200)


def test_overlay_leaves_the_slice_where_the_heat_map_is_zero() -> None:
    pixels = np.arange(16, dtype=np.float32).reshape(4, 4)
    heat_map = np.zeros((4, 4), dtype=np.float32)
    heat_map[0, 0] = 1
    overlay, plain = _read(pictures.overlay_png(pixels, heat_map)), _read(pictures.slice_png(pixels))
    assert overlay.shape == (4, 4, 3)
    np.testing.assert_array_equal(overlay[1:], np.repeat(plain[1:, :, None], 3, axis=2))
    assert overlay[0, 0].max() > plain[0, 0]


def test_difference_is_red_above_and_blue_below_and_pale_at_zero() -> None:
    red, blue, zero = _read(pictures.difference_png(np.array([[2.0, -2.0, 0.0]]), limit=1.0))[0].astype(int)
    assert red[0] > red[2] + 50
    assert blue[2] > blue[0] + 50
    assert zero.min() > 240


@pytest.mark.parametrize(
    "name", ["roc", "scores", "calibration-before", "permutation", "distance", "lineage", "checks"]
)
def test_plots_take_every_colour_from_the_page(name: str) -> None:
    drawing = _drawings()[name]
    assert "var(--" in drawing
    assert set(re.findall(r"#[0-9a-fA-F]{6}", drawing)) <= {"#ffffff"}


def test_ids_of_different_plots_differ() -> None:
    ids = [set(re.findall(r'\bid="([^"]+)"', drawing)) for drawing in _drawings().values()]
    assert len(set.union(*ids)) == sum(map(len, ids))
    for drawing in _drawings().values():
        references = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', drawing))
        assert references <= set(re.findall(r'\bid="([^"]+)"', drawing))


def test_plots_are_the_same_twice() -> None:
    for name in ("roc", "check-4", "distance"):
        assert _drawings()[name] == _plots()[name].svg()


def test_labels_are_text_whatever_is_in_them() -> None:
    labels = ("<b>&", "$x$")
    scores = [SubjectScore(subject=label, label=label, fold=0, probability=0.5, predicted=label) for label in labels]
    drawing = Plot("x", "x", partial(figures.scores, scores=scores, labels=labels, threshold=None)).svg()
    assert "&lt;b&gt;&amp;" in drawing
    assert "$x$" in drawing


def test_a_distribution_is_redrawn_from_its_percentiles() -> None:
    """Of the percentiles of 0 to 1, every bar is as high as the next, and they span 0 to 1."""
    axes = Figure().subplots()
    figures.distribution(axes, np.linspace(0, 1, 101), "black")
    heights = np.array([bar.get_height() for bar in axes.patches])
    assert heights.max() - heights.min() <= 0.02 * heights.mean()
    assert axes.patches[0].get_x() == pytest.approx(0, abs=1e-9)
    assert axes.patches[-1].get_x() + axes.patches[-1].get_width() == pytest.approx(1)


def test_faithfulness_draws_what_it_is_given() -> None:
    curves = [curve for curve in report_data().simulation.faithfulness if curve.layer == "layer3"]  # type: ignore[union-attr]
    deletion, insertion = explanation_figures.faithfulness(PRINT, curves).axes
    for axes, kind in ((deletion, "deletion"), (insertion, "insertion")):
        drawn = [line.get_ydata() for line in axes.lines]
        np.testing.assert_array_equal(drawn, [getattr(curve, kind) for curve in curves])


@pytest.mark.parametrize("failed", [False, True])
def test_figure_files_are_for_a_journal(tmp_path: Path, failed: bool) -> None:
    data = report_data(failed=failed)
    for name in ("roc", "failed-check-simulated" if failed else "simulated"):
        vector, raster = _plots(failed=failed)[name].write(tmp_path)
        drawing = vector.read_text()
        ElementTree.fromstring(drawing)  # noqa: S314  our own file
        # No name of a font and no colour of the page: it looks the same wherever it is opened.
        assert "var(--" not in drawing
        assert "<text" not in drawing
        with Image.open(raster) as image:
            assert image.info["dpi"] == pytest.approx((300, 300), abs=0.1)
            assert image.width in {1050, 1530}
    assert data.simulation is not None
    assert {path.suffix for path in tmp_path.iterdir()} == {".svg", ".png"}


def test_figure_files_are_the_same_twice(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
        _plots()["distance"].write(folder)
    for path in first.iterdir():
        assert path.read_bytes() == (second / path.name).read_bytes()


@pytest.mark.parametrize("at_most", [True, False])
@pytest.mark.parametrize(("value", "values"), [(0.0, ()), (inf, (inf, inf)), (inf, (0.5, inf))])
def test_check_is_drawn_whatever_its_figure(value: float, values: tuple[float, ...], at_most: bool) -> None:
    facts = {"number": 3, "name": "x", "threshold": 0.0, "passed": True, "gate": True, "ran": True, "detail": ""}
    drawing = Plot(
        "x",
        "x",
        partial(explanation_figures.check_strip, check=Check(**facts, value=value, values=values, at_most=at_most)),
    ).svg()
    assert "<path" in drawing
    assert "nan" not in drawing


@cache
def _plots(*, failed: bool = False) -> dict[str, Plot]:
    data = report_data(failed=failed)
    return make_plots(data, read_card(data.model))


@cache
def _drawings() -> dict[str, str]:
    return {name: plot.svg() for name, plot in _plots().items()}


def _read(png: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(BytesIO(png)))
