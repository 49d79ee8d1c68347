"""Results in a notebook: tables with a row for each thing, HTML that is safe to show, figures of the right panels."""

import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from limner import Client, FeatureOptions, Grid, Image
from limner.errors import InvalidInputError
from limner.imaging import decode
from limner.types import ImageFeatures, PredictResult
from tests.report.sample import report_data


class Reader(HTMLParser):
    """Reads tables and pictures, and checks that what is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.pictures = 0
        self._open: list[str] = []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag == "img":
            self.pictures += 1
            return
        self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        elif tag in ("td", "th"):
            self.rows[-1].append("")

    def handle_endtag(self, tag: str) -> None:
        assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self._open and self._open[-1] in ("td", "th"):
            self.rows[-1][-1] += data


@pytest.fixture(scope="module")
def paths(phantom: Path) -> list[Path]:
    return sorted((phantom / "PH-000").glob("*.dcm"))[:3]


@pytest.fixture(scope="module")
def predicted(client: Client, model: str, paths: list[Path]) -> PredictResult:
    images = [Image(path, id=path.name, subject="<b>PH & 000</b>") for path in paths]
    return client.predict(model, [*images, Image(np.zeros((3, 3), np.float32), id="small")])


def test_a_prediction_is_a_row_and_so_is_a_subject(predicted: PredictResult) -> None:
    table = predicted.to_pandas()
    assert list(table["image"]) == [one.id for one in predicted.results]
    first = predicted.results[0].prediction
    assert first is not None
    assert tuple(table.loc[0, [f"p_{label}" for label in predicted.labels]]) == first.probabilities
    assert table["label"].isna().tolist() == [False, False, False, True]
    assert "grid.size" in table.loc[3, "error"]
    (subject,) = predicted.to_pandas(subjects=True).to_dict("records")
    assert (subject["subject"], subject["images"], subject["failed"]) == ("<b>PH & 000</b>", 3, 0)


def test_html_shows_every_row_as_text(predicted: PredictResult) -> None:
    head, *rows = Reader(predicted._repr_html_()).rows
    assert [row[head.index("image")] for row in rows] == [one.id for one in predicted.results]
    assert rows[0][head.index("subject")] == "<b>PH & 000</b>"
    assert rows[3][head.index("label")] == ""


def test_whatever_lists_nothing_shows_its_fields(predicted: PredictResult) -> None:
    rows = Reader(predicted.results[0]._repr_html_()).rows
    assert ["id", predicted.results[0].id] in rows


def test_long_tables_are_cut_in_html_only(predicted: PredictResult) -> None:
    many = predicted.model_copy(update={"results": predicted.results[:1] * 100})
    text = many._repr_html_()
    assert len(Reader(text).rows) == 1 + 60
    assert "and 40 more" in text
    assert len(many.to_pandas()) == 100


def test_cohorts_models_and_trainings_have_tables(client: Client, cohort: str, model: str) -> None:
    subjects = client.cohort(cohort).to_pandas()
    assert subjects["slices"].sum() == 72
    found = client.model(model)
    assert list(found.to_pandas()["name"]) == [metric.name for metric in found.metrics]
    training = next(one for one in client.trainings() if one.model == model)
    assert training.to_pandas().equals(found.to_pandas())
    for result in (client.cohort(cohort), found, training):
        assert len(Reader(result._repr_html_()).rows) > 2


@pytest.fixture(scope="module")
def features(client: Client, model: str, paths: list[Path]) -> ImageFeatures:
    options = FeatureOptions(layers=("layer2", "layer3"), heat_maps=True)
    result = client.extract_features(model, [Image(paths[0], id="slice")], options)
    table = result.to_pandas()
    assert set(table["layer"]) == {"layer2", "layer3"}
    assert table.groupby("layer")["weight"].sum().tolist() == pytest.approx([1, 1])
    return result.results[0]


def test_heat_maps_are_drawn_alone_over_the_slice_and_over_the_grid(features: ImageFeatures, paths: list[Path]) -> None:
    source = decode(paths[0])
    grid = Grid(fov_mm=160, size=32).resample(source)
    for image, shape in ((None, (32, 32)), (source, (*source.pixels.shape, 3)), (grid, (32, 32, 3))):
        figure = features.plot(image)
        shown = [axes.images[0].get_array() for axes in figure.axes]
        assert [array.shape for array in shown if array is not None] == [shape] * 2
        assert "layer2" in figure.axes[0].get_title(loc="left")


def test_what_cannot_be_drawn_says_why(client: Client, model: str, features: ImageFeatures, paths: list[Path]) -> None:
    with pytest.raises(InvalidInputError, match=r"image is \(5, 5\); expected .*\(32, 32\)"):
        features.plot(np.zeros((5, 5)))
    without = client.extract_features(model, [paths[0]]).results[0]
    with pytest.raises(InvalidInputError, match="heat_maps=True"):
        without.plot()
    failed = client.extract_features(model, [np.zeros((3, 3), np.float32)], FeatureOptions(heat_maps=True)).results[0]
    with pytest.raises(InvalidInputError, match=r"failed: .*grid"):
        failed.plot()


def test_a_simulation_shows_its_images_with_the_verdict_in_them() -> None:
    result = report_data(failed=True).simulation
    assert result is not None
    reader = Reader(result._repr_html_())
    assert reader.pictures == len(result.images)
    assert [row[1] for row in reader.rows[1:]] == [check.name for check in result.checks]
    assert result.to_pandas()["value"].tolist() == [check.value for check in result.checks]
    assert len(result.plot().axes) >= 2 * len(result.images)


_WITHOUT_EXTRA = """
import sys

import numpy as np

import limner.notebook
from limner.types import FeaturesResult, ImageFeatures, LayerFeatures, ModelIdentity

layer = LayerFeatures(layer="layer4", channels=1, height=1, width=1, top=(), grid_heat_map=np.zeros((4, 4)))
image = ImageFeatures(id="i", subject="", target="a", layers=(layer,))
model = ModelIdentity(name="m", version="1", digest="")
result = FeaturesResult(model=model, labels=(), method="cam", results=(image,))
sys.path = [folder for folder in sys.path if not folder.endswith("site-packages")]
try:
    CALL
except ModuleNotFoundError as error:
    print(error)
"""


@pytest.mark.parametrize("call", ["result.to_pandas()", "image.plot()"])
def test_without_the_extra_it_says_what_to_install(call: str) -> None:
    code = _WITHOUT_EXTRA.replace("CALL", call)
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'limner[notebook]'" in ended.stdout
