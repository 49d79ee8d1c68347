"""Only an explanation is exported as one; what failed says so wherever it appears. JSON is strict."""

import json
from math import inf, nan
from pathlib import Path

import numpy as np
import pydicom
import pytest
from PIL import Image

from limner.errors import WrongStateError
from limner.imaging.grid import Grid
from limner.types import (
    Check,
    ModelIdentity,
    Prediction,
    SimulatedImage,
    SimulationMethod,
    SimulationResult,
    Verdict,
)

pytestmark = pytest.mark.filterwarnings("ignore:The string:UserWarning")


def check(number: int, name: str, value: float, *, passed: bool, ran: bool = True) -> Check:
    return Check(
        number=number,
        name=name,
        value=value,
        threshold=1.0,
        at_most=False,
        passed=passed,
        gate=True,
        ran=ran,
        detail="why",
        values=(value, nan),
    )


def result(verdict: Verdict, *checks: Check) -> SimulationResult:
    plane = np.linspace(-2, 3, 32 * 32, dtype=np.float32).reshape(32, 32)
    return SimulationResult(
        model=ModelIdentity(name="m", version="1", digest="ab" * 32),
        cohort="c",
        cohort_digest="cd" * 32,
        method=SimulationMethod.INVERSION,
        steps=10,
        seed=0,
        images=tuple(
            SimulatedImage(
                label=label,
                image=plane,
                prediction=Prediction(label=label, probabilities=(1.0, 0.0), logits=(1.0, 0.0)),
                nearest_instance="i",
                nearest_subject="s",
                nearest=plane,
            )
            for label in ("no", "yes/maybe")
        ),
        checks=checks,
        verdict=verdict,
        layers=(),
        subjects=(),
        grid=Grid(fov_mm=64, size=32),
    )


PASSED = check(1, "own_verdict", 2.0, passed=True)
FAILED = check(2, "independent_judge", 0.25, passed=False)
NOT_RUN = check(5, "stability", 0.0, passed=False, ran=False)


def test_an_explanation_is_exported(tmp_path: Path) -> None:
    written = result(Verdict.EXPLANATION, PASSED).export(tmp_path / "new")
    assert [path.name for path in written] == ["no.png", "no.dcm", "yes_maybe.png", "yes_maybe.dcm"]
    assert all(path.is_file() for path in written)
    assert "failed" not in pydicom.dcmread(written[1]).DerivationDescription


@pytest.mark.parametrize(
    ("verdict", "checks", "reason"),
    [
        (Verdict.FAILED_CHECK, (PASSED, FAILED), "failed check 2 independent_judge 0.25, expected at least 1"),
        (Verdict.UNCHECKED, (PASSED, NOT_RUN), "unchecked 5 stability not run"),
        (Verdict.UNCHECKED, (), "unchecked"),
    ],
)
def test_what_is_no_explanation_is_refused_with_the_reason(
    tmp_path: Path, verdict: Verdict, checks: tuple[Check, ...], reason: str
) -> None:
    with pytest.raises(WrongStateError, match="no explanation") as refused:
        result(verdict, *checks).export(tmp_path / "new")
    assert reason in str(refused.value)
    assert not (tmp_path / "new").exists()


def test_what_failed_says_so_in_name_picture_and_dicom(tmp_path: Path) -> None:
    failed = result(Verdict.FAILED_CHECK, PASSED, FAILED, NOT_RUN).export(tmp_path / "failed", allow_failed=True)
    passed = result(Verdict.EXPLANATION, PASSED).export(tmp_path / "passed")
    assert [path.name for path in failed][:2] == [
        "failed-check-2-independent_judge-5-stability-no.png",
        "failed-check-2-independent_judge-5-stability-no.dcm",
    ]
    picture, clean = (np.asarray(Image.open(files[0])) for files in (failed, passed))
    assert (picture != clean).any()
    instance = pydicom.dcmread(failed[1])
    assert "failed check 2 independent_judge 0.25, expected at least 1" in instance.DerivationDescription
    assert (instance.pixel_array != pydicom.dcmread(passed[1]).pixel_array).any()


def test_pictures_alone_need_no_dicom(tmp_path: Path) -> None:
    written = result(Verdict.EXPLANATION, PASSED).export(tmp_path, dicom=False)
    assert [path.suffix for path in written] == [".png", ".png"]


def test_json_has_null_where_a_figure_is_infinite() -> None:
    fields = result(Verdict.FAILED_CHECK, check(3, "weight_randomisation", inf, passed=False)).to_dict()
    text = json.dumps(fields, allow_nan=False)
    assert json.loads(text)["checks"][0]["value"] is None
    assert fields["checks"][0]["values"] == [None, None]
