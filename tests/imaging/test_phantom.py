"""The phantom: the same for the same seed, of the classes it says, and valid DICOM."""

import csv
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from limner.imaging import ImageError, decode, find_series, phantom_severity, phantom_subject, select, write_phantom
from limner.imaging.phantom import phantom_recurrent
from tests.imaging.conformance import assert_valid_dicom


@pytest.fixture(scope="module")
def cohort(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(folder, subjects=3, seed=5)
    return folder


def test_the_same_arguments_give_the_same_pixels_and_others_give_others() -> None:
    first = phantom_subject(1, 2, True)
    assert first.shape == (12, 128, 128)
    assert first.dtype == np.float32
    assert np.array_equal(first, phantom_subject(1, 2, True))
    assert not np.array_equal(first, phantom_subject(2, 2, True))
    assert not np.array_equal(first, phantom_subject(1, 3, True))


def test_anatomy_away_from_the_tumour_does_not_know_the_class() -> None:
    well, ill = phantom_subject(0, 4, False), phantom_subject(0, 4, True)
    differs = np.abs(well - ill).max(axis=0) > 1e-3
    assert differs[48:88, 44:84].any()
    # The tumour and its tongues end within 72 mm of the middle; what lies further out is the same.
    row, column = np.mgrid[:128, :128] - 63.5
    assert not differs[np.hypot(row, column) * 1.875 > 72].any()


def test_every_slice_shows_the_tumour() -> None:
    well, ill = phantom_subject(0, 4, False), phantom_subject(0, 4, True)
    assert (np.abs(well - ill).max(axis=(1, 2)) > 0.1).all()


@pytest.mark.parametrize(("subjects", "recurrent"), [(27, 11), (6, 2), (2, 1), (1, 0)])
def test_eleven_of_27_are_recurrent_in_an_order_of_the_seed(subjects: int, recurrent: int) -> None:
    drawn = phantom_recurrent(subjects, 0)
    assert drawn.sum() == recurrent
    assert np.array_equal(drawn, phantom_recurrent(subjects, 0))


def test_orders_of_two_seeds_differ() -> None:
    assert not np.array_equal(phantom_recurrent(27, 0), phantom_recurrent(27, 1))


def test_severities_of_the_classes_stand_a_separation_apart() -> None:
    severities = np.array([[phantom_severity(0, index, ill) for index in range(400)] for ill in (False, True)])
    assert severities[1] - severities[0] == pytest.approx(3.5)
    assert severities.mean() == pytest.approx(0, abs=0.15)
    assert severities[0].std() == pytest.approx(1, abs=0.1)


def test_files_are_valid_dicom(cohort: Path) -> None:
    assert_valid_dicom(cohort / "PH-000" / "0001.dcm")
    assert_valid_dicom(cohort / "PH-002" / "0012.dcm")


def test_labels_name_the_patients_that_the_files_hold(cohort: Path) -> None:
    with (cohort / "labels.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["subject"] for row in rows] == ["PH-000", "PH-001", "PH-002"]
    assert sorted(row["label"] for row in rows) == ["non-recurrent", "non-recurrent", "recurrent"]
    assert {dcmread(path).PatientID for path in cohort.glob("*/*.dcm")} == {row["subject"] for row in rows}


def test_a_selection_takes_every_series_whole_and_in_order(cohort: Path) -> None:
    decisions = select(find_series(cohort).series)
    assert [decision.reasons for decision in decisions] == [()] * 3
    assert [slice_.path.name for slice_ in decisions[0].series.slices] == [f"{n:04d}.dcm" for n in range(1, 13)]


def test_stored_pixels_are_the_subject_s(cohort: Path) -> None:
    recurrent = bool(phantom_recurrent(3, 5)[1])
    decoded = decode(cohort / "PH-001" / "0007.dcm")
    assert decoded.pixels.max() < 4096
    assert np.allclose(decoded.pixels.astype(float) / 1500, phantom_subject(5, 1, recurrent)[6], atol=0.5 / 1500 + 1e-6)


def test_writing_again_gives_the_same_files(cohort: Path, tmp_path: Path) -> None:
    write_phantom(tmp_path, subjects=3, seed=5)
    for path in cohort.rglob("*.*"):
        assert path.read_bytes() == (tmp_path / path.relative_to(cohort)).read_bytes()


def test_other_pixels_have_other_uids(cohort: Path, tmp_path: Path) -> None:
    write_phantom(tmp_path, subjects=3, seed=5, separation=1.0)
    first, second = (dcmread(folder / "PH-000" / "0001.dcm") for folder in (cohort, tmp_path))
    assert first.SOPInstanceUID != second.SOPInstanceUID
    assert first.SeriesInstanceUID != second.SeriesInstanceUID


def test_progress_is_told_once_a_subject(tmp_path: Path) -> None:
    calls: list[int] = []
    write_phantom(tmp_path, subjects=2, progress=lambda: calls.append(len(list(tmp_path.iterdir()))))
    assert calls == [1, 2]


@pytest.mark.parametrize(
    ("field", "value"), [("subjects", 0), ("seed", -1), ("separation", -1.0), ("correlation", 1.5)]
)
def test_numbers_out_of_range_are_named(tmp_path: Path, field: str, value: float) -> None:
    with pytest.raises(ImageError) as error:
        write_phantom(tmp_path / "new", **{field: value})  # type: ignore[arg-type]
    assert error.value.field == field
    assert not (tmp_path / "new").exists()
