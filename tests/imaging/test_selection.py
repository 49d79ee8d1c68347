"""Choosing among real and made series, and the verdict of each rule."""

from pathlib import Path

import numpy as np
import pytest

from limner.imaging import Range, SelectionRules, Verdict, default_rules, find_series, select
from limner.imaging.rules import Patterns, Words
from limner.imaging.series import named_series
from tests.imaging.builders import DATA, SMALL, enhanced_mr, write_series

THREE = default_rules().model_copy(update={"slices": Range(min=3)})


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
    assert "(diffusion, echo-planar); expected no localizer or diffusion or echo-planar" in adc
    localizer = " ".join(decisions["ProstateX-0218", "localizer"].reasons)
    assert "description is 'localizer' (localizer); expected no localizer" in localizer
    assert "echo time is 3.69 ms; expected at least 60 ms" in localizer
    assert "pixel spacing is 3.125 mm; expected at most 2 mm" in localizer


@pytest.mark.parametrize(("plane", "count"), [("transverse", 2), ("sagittal", 2), ("coronal", 0)])
def test_real_series_are_chosen_by_plane(plane: str, count: int) -> None:
    decisions = select(find_series(DATA).series, THREE.model_copy(update={"planes": frozenset({plane})}))
    assert {d.series.plane for d in decisions if d.accepted} <= {plane}
    assert sum(decision.accepted for decision in decisions) == count


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"Modality": "CT"}, "modality is CT; expected MR"),
        (
            {"ImageType": ["DERIVED", "PRIMARY"]},
            "image type is DERIVED\\PRIMARY; expected ORIGINAL and PRIMARY, no ADC or DIFFUSION",
        ),
        ({"ImageType": None}, "image type is missing; expected ORIGINAL and PRIMARY, no ADC or DIFFUSION"),
        (
            {"SeriesDescription": "T2 Localiser"},
            "description is 'T2 Localiser' (localizer); expected no localizer or diffusion or echo-planar",
        ),
        (
            {"SeriesDescription": "3-plane"},
            "description is '3-plane' (localizer); expected no localizer or diffusion or echo-planar",
        ),
        ({"ScanningSequence": ["SE", "EP"]}, "scanning sequence is SE\\EP; expected no EP"),
        ({"EchoTime": 12}, "echo time is 12 ms; expected at least 60 ms"),
        ({"EchoTime": None}, "echo time is missing; expected at least 60 ms"),
        ({"RepetitionTime": 600}, "repetition time is 600 ms; expected at least 1500 ms"),
        ({"PixelSpacing": [2.5, 1]}, "pixel spacing is 2.5 x 1 mm; expected at most 2 mm"),
        ({"PixelSpacing": None}, "pixel spacing is missing; expected at most 2 mm"),
    ],
)
def test_each_rule_names_what_it_found_and_expected(tmp_path: Path, attributes: dict[str, object], reason: str) -> None:
    write_series(tmp_path, 5, **attributes)
    assert reasons(tmp_path) == (reason,)


@pytest.mark.parametrize("description", ["DWI b800", "ADC map", "ep2d_tra", "trace"])
def test_diffusion_is_rejected(tmp_path: Path, description: str) -> None:
    write_series(tmp_path, SeriesDescription=description)
    (reason,) = reasons(tmp_path)
    assert reason.startswith(f"description is {description!r} (")


@pytest.mark.parametrize("description", ["t2_tse_tra", "Sag T2 FRFSE", "AX T2 PELVIS", "t2_spc_cor", "T2W_TSE_deep"])
def test_common_names_of_t2_series_are_taken(tmp_path: Path, description: str) -> None:
    write_series(tmp_path, SeriesDescription=description)
    assert reasons(tmp_path) == ()


def test_few_slices_and_the_wrong_plane_are_both_told(tmp_path: Path) -> None:
    write_series(tmp_path, count=4)
    assert reasons(tmp_path, default_rules().model_copy(update={"planes": frozenset({"sagittal", "coronal"})})) == (
        "number of slices is 4; expected at least 5",
        "plane is transverse; expected sagittal or coronal",
    )


def test_enhanced_mr_is_judged_by_its_frames(tmp_path: Path) -> None:
    enhanced_mr(np.stack([SMALL] * 5)).save_as(tmp_path / "all.dcm", enforce_file_format=True)
    assert reasons(tmp_path) == ()


def test_every_rule_gives_its_verdict_and_those_that_are_not_there_give_none(tmp_path: Path) -> None:
    write_series(tmp_path, SliceThickness=3.5)
    rules = SelectionRules(
        description=Patterns(take={"t2": "t2", "sagittal": "sag"}, leave={"fat": "fs"}),
        image_type=Words(take=("ORIGINAL",), leave=("OTHER",)),
        echo_time_ms=Range(min=80, max=90),
        slice_thickness_mm=Range(max=4),
    )
    (decision,) = select(find_series(tmp_path).series, rules)
    assert decision.verdicts == (
        Verdict("description", True, "'t2_tse' (t2)", "t2 or sagittal, no fat"),
        Verdict("image type", False, "ORIGINAL\\PRIMARY\\OTHER", "ORIGINAL, no OTHER"),
        Verdict("echo time", False, "100 ms", "80 to 90 ms"),
        Verdict("slice thickness", True, "3.5 mm", "at most 4 mm"),
    )
    assert not decision.accepted


def test_what_is_not_known_speaks_against_nothing_that_is_still_to_be_learnt() -> None:
    named = [named_series("1.2", "MR", "t2_tse"), named_series("1.3", "CT", "scout"), named_series("1.4", "", "")]
    whole, half, nothing = select(named)
    assert (whole.accepted, whole.known_reasons) == (False, ())
    assert "echo time is missing; expected at least 60 ms" in whole.reasons
    assert [reason.partition(" is ")[0] for reason in half.known_reasons] == ["modality", "description"]
    assert nothing.known_reasons == ()


@pytest.mark.parametrize(("description", "taken"), [("T2 FatSat", True), ("T1", False), ("", False)])
def test_of_the_patterns_to_take_one_has_to_match(tmp_path: Path, description: str, taken: bool) -> None:
    write_series(tmp_path, SeriesDescription=description)
    rules = SelectionRules(description=Patterns(take={"t2": "t2", "stir": "stir"}))
    (decision,) = select(find_series(tmp_path).series, rules)
    assert decision.accepted is taken
