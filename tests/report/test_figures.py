"""The figures: what the pixels of images are, and that plots carry no colour of their own."""

import re
from functools import cache
from io import BytesIO
from math import inf

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from limner.report import figures
from limner.report.scores import SubjectScore, subject_scores
from limner.types import Check
from tests.report.sample import report_data


def test_slice_is_black_and_white_at_its_window() -> None:
    image = _read(figures.slice_png(np.array([[-5, 0], [1, 9]], dtype=np.int16), window=(0, 2)))
    np.testing.assert_array_equal(image, [[0, 0], [128, 255]])


def test_large_slice_is_shrunk_and_keeps_its_shape() -> None:
    assert _read(figures.slice_png(np.zeros((1200, 600), dtype=np.uint16))).shape == (400, 200)


def test_overlay_leaves_the_slice_where_the_heat_map_is_zero() -> None:
    pixels = np.arange(16, dtype=np.float32).reshape(4, 4)
    heat_map = np.zeros((4, 4), dtype=np.float32)
    heat_map[0, 0] = 1
    overlay, plain = _read(figures.overlay_png(pixels, heat_map)), _read(figures.slice_png(pixels))
    assert overlay.shape == (4, 4, 3)
    np.testing.assert_array_equal(overlay[1:], np.repeat(plain[1:, :, None], 3, axis=2))
    assert overlay[0, 0].max() > plain[0, 0]


def test_difference_is_red_above_and_blue_below_and_pale_at_zero() -> None:
    red, blue, zero = _read(figures.difference_png(np.array([[2.0, -2.0, 0.0]]), limit=1.0))[0].astype(int)
    assert red[0] > red[2] + 50
    assert blue[2] > blue[0] + 50
    assert zero.min() > 240


@pytest.mark.parametrize("name", ["roc", "scores", "check-5", "lineage"])
def test_plots_take_every_colour_from_the_page(name: str) -> None:
    drawing = _plots()[name]
    assert "var(--ink)" in drawing
    assert re.findall(r"#[0-9a-fA-F]{6}", drawing) == []


def test_ids_of_different_plots_differ() -> None:
    ids = [set(re.findall(r'\bid="([^"]+)"', drawing)) for drawing in _plots().values()]
    assert len(set.union(*ids)) == sum(map(len, ids))
    for drawing in _plots().values():
        references = set(re.findall(r'(?:xlink:href="#|url\(#)([^")]+)', drawing))
        assert references <= set(re.findall(r'\bid="([^"]+)"', drawing))


def test_plots_are_the_same_twice() -> None:
    assert _plots() == _plots.__wrapped__()


def test_labels_are_text_whatever_is_in_them() -> None:
    labels = ("<b>&", "$x$")
    scores = [SubjectScore(subject=label, label=label, fold=0, probability=0.5, predicted=label) for label in labels]
    drawing = figures.scores_svg(scores, labels, None).decode()
    assert "&lt;b&gt;&amp;" in drawing
    assert "$x$" in drawing


@pytest.mark.parametrize("at_most", [True, False])
@pytest.mark.parametrize(("value", "values"), [(0.0, ()), (inf, (inf, inf)), (inf, (0.5, inf))])
def test_check_is_drawn_whatever_its_figure(value: float, values: tuple[float, ...], at_most: bool) -> None:
    facts = {"number": 3, "name": "x", "threshold": 0.0, "passed": True, "gate": True, "ran": True, "detail": ""}
    drawing = figures.check_svg(Check(**facts, value=value, values=values, at_most=at_most)).decode()
    assert "<path" in drawing
    assert "nan" not in drawing


@cache
def _plots() -> dict[str, str]:
    data = report_data()
    scores = subject_scores(data.model)
    drawings = {
        "roc": figures.roc_svg(scores, "recurrent"),
        "scores": figures.scores_svg(scores, data.model.labels, data.model.threshold),
        "check-5": figures.check_svg(data.simulation.checks[4]),
        "lineage": figures.lineage_svg(data.simulation.layers),
    }
    return {name: drawing.decode() for name, drawing in drawings.items()}


def _read(png: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(BytesIO(png)))
