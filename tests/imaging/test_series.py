"""Finding series in real and made folders: what belongs together, in which order, and what could not be read."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread

from limner.imaging import ImageError, find_series
from limner.imaging.series import Series, gather_series
from tests.imaging.builders import AXES, DATA, SMALL, enhanced_mr, items, mr_instance, write_series


def test_real_slices_come_in_the_order_of_their_places() -> None:
    series = next(one for one in find_series(DATA).series if one.description == "t2_tse_tra")
    places = [one.position_mm or 0.0 for one in series.slices]
    assert len(places) == 3
    assert places == sorted(places)
    assert len(set(places)) == 3
    assert series.echo_time_ms == 104
    assert series.repetition_time_ms == 5660
    assert series.pixel_spacing_mm == (0.5, 0.5)


def test_order_is_of_position_not_of_names(tmp_path: Path) -> None:
    write_series(tmp_path)
    (series,) = find_series(tmp_path).series
    assert [one.path.name for one in series.slices] == ["5.dcm", "4.dcm", "3.dcm", "2.dcm", "1.dcm"]
    assert [one.position_mm for one in series.slices] == [0, 4, 8, 12, 16]


def test_order_without_positions_is_of_instance_numbers(tmp_path: Path) -> None:
    write_series(tmp_path)
    for path in tmp_path.iterdir():
        instance = mr_instance(SMALL, InstanceNumber=9 - int(path.stem))
        del instance.ImagePositionPatient
        instance.save_as(path, enforce_file_format=True)
    (series,) = find_series(tmp_path).series
    assert [one.path.stem for one in series.slices] == ["5", "4", "3", "2", "1"]


def test_a_header_that_lacks_something_does_not_speak_for_its_neighbours(tmp_path: Path) -> None:
    write_series(tmp_path)
    (whole,) = find_series(tmp_path).series
    first = whole.slices[0].path
    instance = dcmread(first)
    del instance.PixelSpacing, instance.RepetitionTime
    instance.save_as(first, enforce_file_format=True)
    (series,) = find_series(tmp_path).series
    assert series == whole


@pytest.mark.parametrize(
    ("cosines", "plane"),
    [
        *((cosines, plane) for plane, cosines in AXES.items()),
        ([1, 0, 0, 0, 0.95, -0.31], "transverse"),
        ([0.7071, -0.7071, 0, 0.4082, 0.4082, -0.8165], "oblique"),
        (None, "unknown"),
    ],
)
def test_the_plane_is_that_of_the_normal(tmp_path: Path, cosines: list[float] | None, plane: str) -> None:
    write_series(tmp_path, ImageOrientationPatient=cosines)
    (series,) = find_series(tmp_path).series
    assert series.plane == plane


def test_a_series_of_two_orientations_is_two(tmp_path: Path) -> None:
    for index, (plane, cosines) in enumerate(AXES.items()):
        (tmp_path / plane).mkdir()
        write_series(tmp_path / plane, count=index + 1, ImageOrientationPatient=cosines)
    found = {one.plane: len(one.slices) for one in find_series(tmp_path).series}
    assert found == {"transverse": 1, "sagittal": 2, "coronal": 3}


def test_enhanced_mr_is_a_series_of_its_frames(tmp_path: Path) -> None:
    enhanced_mr(np.stack([SMALL] * 5)).save_as(tmp_path / "all.dcm", enforce_file_format=True)
    (series,) = find_series(tmp_path).series
    assert (series.plane, series.echo_time_ms, series.repetition_time_ms) == ("sagittal", 90, 3000)
    # The normal of these sagittal planes points to the right, so the first frame lies last.
    assert [one.frame for one in series.slices] == [4, 3, 2, 1, 0]


@pytest.mark.parametrize(
    "groups",
    [
        [{"MREchoSequence": items(EffectiveEchoTime=20.0)}, {"MREchoSequence": items(EffectiveEchoTime=80.0)}],
        [{"FrameContentSequence": items(StackID="left")}, {"FrameContentSequence": items(StackID="right")}],
        [{"PlaneOrientationSequence": items(ImageOrientationPatient=AXES[plane])} for plane in ("sagittal", "coronal")],
        [
            {"MRImageFrameTypeSequence": items(FrameType=["ORIGINAL", "PRIMARY", "T2", "NONE"])},
            {"MRImageFrameTypeSequence": items(FrameType=["DERIVED", "PRIMARY", "T2_MAP", "NONE"])},
        ],
    ],
    ids=["echoes", "stacks", "orientations", "kinds of image"],
)
def test_what_one_enhanced_instance_holds_together_is_told_apart(
    tmp_path: Path, groups: list[dict[str, object]]
) -> None:
    enhanced = enhanced_mr(np.stack([SMALL] * 6))
    for number, frame in enumerate(enhanced.PerFrameFunctionalGroupsSequence):
        for keyword, value in groups[number % 2].items():
            setattr(frame, keyword, value)
    if "PlaneOrientationSequence" in groups[0]:
        del enhanced.SharedFunctionalGroupsSequence[0].PlaneOrientationSequence
    enhanced.save_as(tmp_path / "all.dcm", enforce_file_format=True)
    found = find_series(tmp_path).series
    frames = sorted(sorted(one.frame for one in series.slices) for series in found)
    assert frames == [[0, 2, 4], [1, 3, 5]]
    assert len({(series.series_uid, series.description) for series in found}) == 1


def test_two_echoes_of_one_series_are_two(tmp_path: Path) -> None:
    for echo_time in (20, 80):
        (tmp_path / str(echo_time)).mkdir()
        write_series(tmp_path / str(echo_time), EchoTime=echo_time)
    assert [(one.echo_time_ms, len(one.slices)) for one in find_series(tmp_path).series] == [(20, 5), (80, 5)]


def test_echo_planar_enhanced_mr_says_so(tmp_path: Path) -> None:
    enhanced = enhanced_mr(np.stack([SMALL] * 2))
    enhanced.EchoPlanarPulseSequence = "YES"
    enhanced.save_as(tmp_path / "all.dcm", enforce_file_format=True)
    (series,) = find_series(tmp_path).series
    assert series.sequence == ("SE", "EP")


def write_parts(folder: Path, offset: float = 1, **second: object) -> None:
    """Write one series as two, the slices of the second between those of the first unless `offset` is 0."""
    common: dict[str, object] = {"SeriesNumber": 4, "FrameOfReferenceUID": "1.9", "SliceThickness": 3}
    for part, attributes in enumerate(({}, second)):
        for number in range(3):
            place = {"ImagePositionPatient": [0, 0, 2 * number + offset * part], "SeriesInstanceUID": f"1.2.{part}"}
            instance = mr_instance(SMALL, **{**common, **place, **attributes})
            instance.save_as(folder / f"{part}{number}.dcm", enforce_file_format=True)


def test_a_series_that_was_split_is_one(tmp_path: Path) -> None:
    write_parts(tmp_path)
    (series,) = find_series(tmp_path).series
    assert (series.series_uid, series.other_series_uids) == ("1.2.0", ("1.2.1",))
    assert [one.path.stem for one in series.slices] == ["00", "10", "01", "11", "02", "12"]


@pytest.mark.parametrize(
    ("offset", "second"),
    [
        (0, {}),
        (1, {"SeriesNumber": 5}),
        (1, {"FrameOfReferenceUID": "1.8"}),
        (1, {"StudyInstanceUID": "1.3"}),
        (1, {"PatientID": "another"}),
        (1, {"SeriesDescription": "t2_tse_2"}),
        (1, {"EchoTime": 101}),
    ],
    ids=str,
)
def test_series_that_differ_or_lie_on_each_other_are_not_joined(
    tmp_path: Path, offset: float, second: dict[str, object]
) -> None:
    write_parts(tmp_path, offset, **second)
    found = find_series(tmp_path).series
    assert [len(one.slices) for one in found] == [3, 3]
    assert not any(one.other_series_uids for one in found)


def test_headers_that_are_not_in_files_are_grouped_as_those_that_are() -> None:
    def told(series: list[Series]) -> set[tuple[str, str, tuple[str, ...]]]:
        return {(one.series_uid, one.plane, tuple(part.instance_uid for part in one.slices)) for one in series}

    headers = [dcmread(path, stop_before_pixels=True) for path in sorted(DATA.rglob("*.dcm"), reverse=True)]
    broken = mr_instance(SMALL, ImageOrientationPatient=[1, 0, 0])
    assert told(gather_series([broken, *headers])) == told(find_series(DATA).series)


def test_what_cannot_be_read_is_named_and_takes_nothing_down(tmp_path: Path) -> None:
    shutil.copy(DATA / "ProstateX-0000" / "adc" / "10.dcm", tmp_path / "good")
    (tmp_path / "labels.csv").write_text("subject,label\n")
    (tmp_path / "cut.dcm").write_bytes((tmp_path / "good").read_bytes()[:200])
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    headless = mr_instance(SMALL)
    del headless.Rows
    headless.save_as(tmp_path / "report.dcm", enforce_file_format=True)
    called: list[None] = []
    found = find_series(tmp_path, progress=lambda: called.append(None))
    assert [one.slices[0].path.name for one in found.series] == ["good"]
    assert {path.name for path, _ in found.unreadable} == {"labels.csv", "cut.dcm", "gone", "report.dcm"}
    assert "not DICOM" in {path.name: reason for path, reason in found.unreadable}["labels.csv"]
    assert len(called) == 5


def test_a_folder_that_is_none_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ImageError) as error:
        find_series(tmp_path / "none")
    assert error.value.field == "folder"


def test_an_empty_folder_holds_nothing(tmp_path: Path) -> None:
    found = find_series(tmp_path)
    assert (found.series, found.unreadable) == ([], [])
