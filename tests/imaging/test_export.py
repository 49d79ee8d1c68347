"""Output: valid DICOM, visibly marked, whole or not there."""

import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from pydicom import dcmread

from limner.imaging import (
    Grid,
    ImageError,
    Importance,
    ModelReference,
    decode,
    heat_map_dicom,
    simulated_dicom,
    write_png,
)
from limner.imaging.files import replace_file
from tests.imaging.builders import TRANSVERSE, mr_instance
from tests.imaging.conformance import assert_consistent_entities, assert_valid_dicom

MODEL = ModelReference("plane", "3", "ab" * 32)
IMPORTANCE = Importance(MODEL, "recurrent", "layer3", "cam", 8)
RAMP = np.tile(np.linspace(-2, 4, 96, dtype=np.float32), (96, 1))
pytestmark = pytest.mark.filterwarnings("ignore:The string:UserWarning")


def test_a_png_shows_the_window(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", np.array([[-1, 0], [1, 2], [3, 9]]), window=(0, 2))
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    assert picture.dtype == np.uint8
    assert picture.tolist() == [[0, 0], [128, 255], [255, 255]]


def test_a_window_by_default_spans_the_values(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", RAMP)
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    assert (picture.min(), picture.max()) == (0, 255)
    write_png(tmp_path / "flat.png", np.full((4, 4), 3))
    assert not np.asarray(Image.open(tmp_path / "flat.png")).any()


def test_a_caption_is_burned_into_the_lower_edge_alone(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", np.zeros((96, 96)), caption="SIMULATED")
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    assert picture.shape == (384, 384)
    assert picture[330:].max() == 255
    assert not picture[:330].any()
    assert not picture[:, -4:].any()


def test_a_long_caption_fits(tmp_path: Path) -> None:
    write_png(tmp_path / "a.png", np.zeros((400, 400)), caption="word " * 60)
    picture = np.asarray(Image.open(tmp_path / "a.png"))
    assert picture[300:320].any()
    assert not picture[:, -4:].any()


@pytest.mark.parametrize(
    ("pixels", "window", "field"),
    [
        (np.zeros((2, 2, 3)), None, "pixels.shape"),
        (np.zeros((0, 2)), None, "pixels.shape"),
        (np.full((2, 2), np.inf), None, "pixels"),
        (np.zeros((2, 2)), (1.0, 1.0), "window"),
    ],
)
def test_what_cannot_be_shown_is_refused(
    tmp_path: Path, pixels: np.ndarray, window: tuple[float, float] | None, field: str
) -> None:
    with pytest.raises(ImageError) as error:
        write_png(tmp_path / "a.png", pixels, window)
    assert error.value.field == field
    assert not list(tmp_path.iterdir())


def test_a_simulated_image_is_valid_and_marked_everywhere(tmp_path: Path) -> None:
    path = tmp_path / "simulated.dcm"
    simulated_dicom(path, RAMP, "recurrent", MODEL, 160 / 96, note="failed check 2: d 0.3, expected at least 1.0")
    assert_valid_dicom(path)
    image = dcmread(path)
    assert str(image.PatientName) == "SIMULATED^RECURRENT"
    assert list(image.ImageType) == ["DERIVED", "SECONDARY"]
    assert image.BurnedInAnnotation == "YES"
    for word in ("recurrent", "plane", "version 3", "ab" * 32, "failed check 2", "NOT FOR DIAGNOSTIC USE"):
        assert word in image.DerivationDescription
    assert image.SeriesDescription == "No explanation: simulated recurrent, not for diagnosis"
    assert (image.Rows, image.Columns) == (384, 384)
    assert list(image.PixelSpacing) == pytest.approx([160 / 384] * 2)
    plain = np.kron(np.clip((RAMP + 2) / 6 * 255, 0, 255), np.ones((4, 4)))
    differs = np.abs(image.pixel_array - plain) > 16
    assert differs[300:].any()
    assert not differs[:300].any()


def test_the_same_result_has_the_same_uid_and_another_does_not(tmp_path: Path) -> None:
    uids = []
    for index, pixels in enumerate((RAMP, RAMP, RAMP[:, ::-1])):
        simulated_dicom(tmp_path / f"{index}.dcm", pixels, "a", MODEL, 1.0, note="")
        uids.append(dcmread(tmp_path / f"{index}.dcm").SOPInstanceUID)
    assert uids[0] == uids[1] != uids[2]


def test_a_set_of_simulated_images_keeps_to_the_model_of_patients_and_studies(tmp_path: Path) -> None:
    models = MODEL, replace(MODEL, version="4", digest="cd" * 32)
    for model in models:
        for label in ("recurrent", "not recurrent", "récidive", "r_cidive"):
            for note in ("", "unchecked"):
                simulated_dicom(tmp_path / f"{model.version}-{label}-{note}.dcm", RAMP, label, model, 1.0, note=note)
    paths = sorted(tmp_path.iterdir())
    assert_consistent_entities(paths)
    # A patient for each name, with a study for each label and model: its images lie side by side.
    images = [dcmread(path) for path in paths]
    assert {image.PatientID for image in images} == {
        "SIMULATED-RECURRENT",
        "SIMULATED-NOT RECURRENT",
        "SIMULATED-R_CIDIVE",
    }
    assert len({image.StudyInstanceUID for image in images}) == 4 * len(models)


@pytest.mark.parametrize("label", ["a^b=c\\d", "é" * 200, "../x", ""])
def test_any_label_gives_a_valid_name(tmp_path: Path, label: str) -> None:
    simulated_dicom(tmp_path / "a.dcm", RAMP, label, MODEL, 1.0, note="")
    assert_valid_dicom(tmp_path / "a.dcm")


def test_a_heat_map_lies_over_its_real_source_and_refers_to_it(tmp_path: Path) -> None:
    source = dcmread(TRANSVERSE / "10.dcm")
    image, grid, path = decode(source), Grid(160, 96), tmp_path / "heat.dcm"
    hot = np.zeros((96, 96))
    hot[30:34, 60:64] = 1
    heat_map_dicom(path, source, grid.project(hot, image), IMPORTANCE)
    assert_valid_dicom(path)
    overlay = dcmread(path)
    for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "StudyDate"):
        assert overlay[keyword].value == source[keyword].value
    assert overlay.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID
    assert list(overlay.PatientOrientation) == ["L", "PF"]  # tilted by 17°
    assert list(overlay.PixelSpacing) == list(source.PixelSpacing)
    assert overlay.SeriesInstanceUID != source.SeriesInstanceUID
    assert overlay.SpecificCharacterSet == "ISO_IR 192"
    for word in ("recurrent in layer3, 8 channels by cam", "plane version 3", "ab" * 32, "NOT FOR DIAGNOSTIC USE"):
        assert word in overlay.DerivationDescription
    assert overlay.SeriesDescription == "Heat map recurrent, not for diagnosis"
    # What is below the slice is the legend.
    assert overlay.Columns == 384 < overlay.Rows
    assert overlay.pixel_array[384:].any()
    red_less_blue = overlay.pixel_array[:384, :, 0].astype(int) - overlay.pixel_array[:384, :, 2]
    rows, columns = np.nonzero(red_less_blue > 40)
    # 32 grid pixels of 1.667 mm from the corner of a field of 160 mm, in a source of 192 mm at 0.5 mm.
    assert (rows.mean(), columns.mean()) == pytest.approx((138, 238), abs=2)


def test_a_name_in_another_character_set_is_kept(tmp_path: Path) -> None:
    source = dcmread(TRANSVERSE / "10.dcm")
    source.SpecificCharacterSet = "ISO_IR 100"
    source.PatientName = "Mül^Jürg"
    source.save_as(tmp_path / "source.dcm")
    heat_map_dicom(
        tmp_path / "a.dcm", dcmread(tmp_path / "source.dcm"), np.zeros((384, 384)), replace(IMPORTANCE, label="größer")
    )
    written = dcmread(tmp_path / "a.dcm")
    assert str(written.PatientName) == "Mül^Jürg"
    assert "größer" in written.DerivationDescription


def test_slices_of_a_source_series_share_a_series(tmp_path: Path) -> None:
    for name in ("07", "10"):
        source = dcmread(TRANSVERSE / f"{name}.dcm")
        heat_map_dicom(tmp_path / f"{name}.dcm", source, np.zeros((384, 384)), IMPORTANCE)
    first, second = (dcmread(tmp_path / f"{name}.dcm") for name in ("07", "10"))
    assert first.SeriesInstanceUID == second.SeriesInstanceUID
    assert first.SOPInstanceUID != second.SOPInstanceUID


@pytest.mark.parametrize(
    ("cosines", "said"),
    [
        ([0, 1, 0, 0, 0, -1], ["P", "F"]),
        ([0.8, 0.36, 0.48, -0.6, 0.48, 0.64], ["LHP", "HRP"]),
        ([0.999, 0.04, 0, -0.04, 0.999, 0], ["L", "P"]),
        (None, ""),
    ],
)
def test_a_heat_map_says_where_left_is(tmp_path: Path, cosines: list[float] | None, said: list[str] | str) -> None:
    source = mr_instance(np.zeros((6, 8), np.uint16), ImageOrientationPatient=cosines)
    heat_map_dicom(tmp_path / "a.dcm", source, np.zeros((6, 8)), IMPORTANCE)
    assert_valid_dicom(tmp_path / "a.dcm")
    assert dcmread(tmp_path / "a.dcm").PatientOrientation == said


def test_the_same_heat_map_has_the_same_uid_whatever_its_last_digits(tmp_path: Path) -> None:
    source, values = dcmread(TRANSVERSE / "10.dcm"), np.random.default_rng(0).random((384, 384), np.float32)
    uids = []
    for index, (map_, importance) in enumerate(
        [(values, IMPORTANCE), (values * (1 - 1e-6), IMPORTANCE), (values, replace(IMPORTANCE, layer="stem"))]
    ):
        heat_map_dicom(tmp_path / f"{index}.dcm", source, map_, importance)
        uids.append(dcmread(tmp_path / f"{index}.dcm").SOPInstanceUID)
    assert uids[0] == uids[1] != uids[2]


@pytest.mark.parametrize(
    ("heat_map", "field"),
    [
        (np.zeros((3, 4)), "heat_map.shape"),
        (np.full((384, 384), 1.01), "heat_map"),
        (np.full((384, 384), np.nan), "heat_map"),
    ],
)
def test_a_wrong_heat_map_is_refused(tmp_path: Path, heat_map: np.ndarray, field: str) -> None:
    with pytest.raises(ImageError) as error:
        heat_map_dicom(tmp_path / "a.dcm", dcmread(TRANSVERSE / "10.dcm"), heat_map, IMPORTANCE)
    assert error.value.field == field
    assert not list(tmp_path.iterdir())


def test_a_source_without_what_its_study_needs_is_an_image_error(tmp_path: Path) -> None:
    source = mr_instance(np.zeros((6, 8), np.uint16))
    del source.StudyInstanceUID
    with pytest.raises(ImageError):
        heat_map_dicom(tmp_path / "a.dcm", source, np.zeros((6, 8)), IMPORTANCE)


def test_without_highdicom_the_extra_is_named(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['highdicom'] = None\n"
        "from pathlib import Path; import numpy as np\n"
        "from limner.imaging import ModelReference, simulated_dicom\n"
        "simulated_dicom(Path('a.dcm'), np.eye(4), 'a', ModelReference('m', '1', 'd'), 1.0, note='')"
    )
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path, check=False)
    assert "ModuleNotFoundError: DICOM output needs highdicom: pip install 'limner[gateway]'" in found.stderr
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    path.write_bytes(b"old")

    def write() -> None:
        with replace_file(path) as temporary:
            temporary.write_bytes(b"half")
            # Linux's own full disk.
            Path("/dev/full").write_bytes(b"rest")

    with pytest.raises(OSError, match="No space"):
        write()
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.bin"]
    assert path.read_bytes() == b"old"


def test_importing_the_package_imports_no_imaging_library() -> None:
    script = (
        "import sys, limner.imaging\n"
        "assert not {'PIL', 'highdicom', 'pydicom', 'torch'} & set(sys.modules), 'too early'\n"
        "for name in limner.imaging.__all__: getattr(limner.imaging, name)\n"
        "assert not {'highdicom', 'torch'} & set(sys.modules), 'too much'"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
