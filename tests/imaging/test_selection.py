"""Finding series in real and made folders, and the reason for each that is not taken."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from limner.imaging import ImageError, SelectionRules, find_series, select
from tests.imaging.builders import AXES, DATA, enhanced_mr, mr_instance

PIXELS = np.arange(48, dtype=np.uint16).reshape(6, 8)
THREE = SelectionRules(min_slices=3)


def write_series(folder: Path, count: int = 5, **attributes: object) -> None:
    """Write slices 4 mm apart, the last first."""
    for number in range(count):
        attributes["ImagePositionPatient"] = [0, 0, 4 * number]
        instance = mr_instance(PIXELS, InstanceNumber=number + 1, **attributes)
        instance.save_as(folder / f"{count - number}.dcm", enforce_file_format=True)


def reasons(folder: Path, rules: SelectionRules | None = None) -> tuple[str, ...]:
    (decision,) = select(find_series(folder).series, rules)
    assert decision.accepted == (not decision.reasons)
    return decision.reasons


def test_real_t2_series_are_taken_and_others_rejected_with_reasons() -> None:
    found = find_series(DATA)
    decisions = {(d.series.patient_id, d.series.description): d for d in select(found.series, THREE)}
    assert not found.unreadable
    assert {key for key, decision in decisions.items() if decision.accepted} == {
        ("ProstateX-0000", "t2_tse_sag"),
        ("ProstateX-0000", "t2_tse_tra"),
        ("ProstateX-0218", "t2_tse_sag_320_p2"),
        ("ProstateX-0218", "t2_tse_tra_320_p2"),
    }
    adc = " ".join(decisions["ProstateX-0000", "ep2d_diff_tra_DYNDIST_ADC"].reasons)
    assert "DERIVED\\PRIMARY\\DIFFUSION\\ADC" in adc
    assert "expected no diffusion" in adc
    localizer = " ".join(decisions["ProstateX-0218", "localizer"].reasons)
    assert "expected no localizer" in localizer
    assert "echo time is 3.69 ms; expected at least 60 ms" in localizer
    assert "pixel spacing is 3.125 mm; expected at most 2 mm" in localizer


@pytest.mark.parametrize(("plane", "count"), [("transverse", 2), ("sagittal", 2), ("coronal", 0)])
def test_real_series_are_chosen_by_plane(plane: str, count: int) -> None:
    rules = SelectionRules(min_slices=3, planes=frozenset({plane}))  # type: ignore[arg-type]
    decisions = select(find_series(DATA).series, rules)
    assert {d.series.plane for d in decisions if d.accepted} <= {plane}
    assert sum(decision.accepted for decision in decisions) == count


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
        instance = mr_instance(PIXELS, InstanceNumber=9 - int(path.stem))
        del instance.ImagePositionPatient
        instance.save_as(path, enforce_file_format=True)
    (series,) = find_series(tmp_path).series
    assert [one.path.stem for one in series.slices] == ["5", "4", "3", "2", "1"]


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"Modality": "CT"}, "modality is CT; expected MR"),
        ({"ImageType": ["DERIVED", "PRIMARY"]}, "image type is DERIVED\\PRIMARY; expected ORIGINAL\\PRIMARY"),
        ({"ImageType": None}, "image type is missing; expected ORIGINAL\\PRIMARY"),
        (
            {"SeriesDescription": "T2 Localiser"},
            "description is 'T2 Localiser'; expected no localizer, scout or survey",
        ),
        ({"SeriesDescription": "3-plane"}, "description is '3-plane'; expected no localizer, scout or survey"),
        ({"EchoTime": 12}, "echo time is 12 ms; expected at least 60 ms"),
        ({"EchoTime": None}, "echo time is missing; expected at least 60 ms"),
        ({"RepetitionTime": 600}, "repetition time is 600 ms; expected at least 1500 ms"),
        ({"PixelSpacing": [2.5, 1]}, "pixel spacing is 2.5 mm; expected at most 2 mm"),
        ({"PixelSpacing": None}, "pixel spacing is missing; expected at most 2 mm"),
    ],
)
def test_each_rule_names_what_it_found_and_expected(tmp_path: Path, attributes: dict[str, object], reason: str) -> None:
    write_series(tmp_path, 5, **attributes)
    assert reasons(tmp_path) == (reason,)


@pytest.mark.parametrize(
    "attributes",
    [{"SeriesDescription": "DWI b800"}, {"SeriesDescription": "ADC map"}, {"ScanningSequence": ["SE", "EP"]}],
)
def test_diffusion_is_rejected(tmp_path: Path, attributes: dict[str, object]) -> None:
    write_series(tmp_path, 5, **attributes)
    (reason,) = reasons(tmp_path)
    assert "expected no diffusion, ADC or echo-planar images" in reason


@pytest.mark.parametrize("description", ["t2_tse_tra", "Sag T2 FRFSE", "AX T2 PELVIS", "t2_spc_cor", "T2W_TSE_deep"])
def test_common_names_of_t2_series_are_taken(tmp_path: Path, description: str) -> None:
    write_series(tmp_path, SeriesDescription=description)
    assert reasons(tmp_path) == ()


def test_few_slices_and_the_wrong_plane_are_both_told(tmp_path: Path) -> None:
    write_series(tmp_path, count=4)
    assert reasons(tmp_path, SelectionRules(planes=frozenset({"sagittal", "coronal"}))) == (
        "number of slices is 4; expected at least 5",
        "plane is transverse; expected sagittal or coronal",
    )


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
    enhanced_mr(np.stack([PIXELS] * 5)).save_as(tmp_path / "all.dcm", enforce_file_format=True)
    (series,) = find_series(tmp_path).series
    assert reasons(tmp_path) == ()
    assert (series.plane, series.echo_time_ms, series.repetition_time_ms) == ("sagittal", 90, 3000)
    # The normal of these sagittal planes points to the right, so the first frame lies last.
    assert [one.frame for one in series.slices] == [4, 3, 2, 1, 0]


def test_what_cannot_be_read_is_named_and_takes_nothing_down(tmp_path: Path) -> None:
    shutil.copy(DATA / "ProstateX-0000" / "adc" / "10.dcm", tmp_path / "good")
    (tmp_path / "labels.csv").write_text("subject,label\n")
    (tmp_path / "cut.dcm").write_bytes((tmp_path / "good").read_bytes()[:200])
    (tmp_path / "gone").symlink_to(tmp_path / "nowhere")
    headless = mr_instance(PIXELS)
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
