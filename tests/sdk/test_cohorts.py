"""Cohorts on their way in: the table of labels, the plan of a folder, an upload that is interrupted."""

import asyncio
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.rpc import code_pb2

from limner import AsyncClient, Client, CohortPlan, CohortSlice, Slice, plan_import
from limner.channel import Patience
from limner.cohort_import import read_labels
from limner.errors import InvalidInputError, UnavailableError
from limner.imaging import SelectionRules
from limner.types import ImportResult
from limner.v1 import cohort_pb2
from limner.v1.cohort_pb2_grpc import add_CohortServiceServicer_to_server as add_cohorts
from tests.sdk.servers import Cohorts, refuse, serving

KEY = bytes(range(32))


def _plan(count: int, *extra: CohortSlice) -> CohortPlan:
    slices = [
        CohortSlice(f"i{n}", f"s{n // 2}", "ab"[n // 2 % 2], Slice(np.full((3, 3), n, np.uint8), 1, 1))
        for n in range(count)
    ]
    return CohortPlan(("a", "b"), [*slices, *extra])


def imported(way: str, address: str, plan: CohortPlan) -> ImportResult:
    """Import a plan with the one client or the other."""

    async def run() -> ImportResult:
        async with AsyncClient(address) as client:
            return await client.import_cohort("c", plan)

    if way == "async":
        return asyncio.run(run())
    with Client(address) as client:
        return client.import_cohort("c", plan)


@pytest.mark.parametrize("way", ["sync", "async"])
def test_an_import_whose_server_is_lost_resumes_by_itself_and_then_adds_nothing(way: str) -> None:
    cohorts = Cohorts(breaks_after=3)
    seen: list[tuple[int, int]] = []
    with serving(add_cohorts, cohorts) as address, Client(address) as client:
        first = imported(way, address, _plan(8))
        second = client.import_cohort("c", _plan(8), progress=lambda done, total: seen.append((done, total)))
    assert (first.added, first.unchanged) == (8, 0)
    assert (second.added, second.unchanged) == (0, 8)
    assert cohorts.received == 8
    assert seen == [(n, 8) for n in range(1, 9)]
    assert second.cohort.labels == ("a", "b")


@pytest.mark.parametrize("way", ["sync", "async"])
def test_an_import_that_was_quiet_for_longer_than_the_patience_resumes(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Quiet(Cohorts):
        """Lost after a while, with nobody there at first."""

        asked = 0

        def GetCohort(self, request: cohort_pb2.GetCohortRequest, context: Any) -> cohort_pb2.Cohort:
            self.asked += 1
            if 2 <= self.asked <= 5:  # one call, as often as gRPC repeats it
                refuse(context, code_pb2.UNAVAILABLE, "starting")
            return super().GetCohort(request, context)

        def ImportCohort(self, request_iterator: Any, context: Any) -> cohort_pb2.ImportCohortResponse:
            if not self.slices:
                time.sleep(1.5 * Patience.LIMIT_S)
            return super().ImportCohort(request_iterator, context)

    monkeypatch.setattr(Patience, "LIMIT_S", 0.2)
    cohorts = Quiet(breaks_after=3)
    with serving(add_cohorts, cohorts) as address:
        assert imported(way, address, _plan(8)).added == 8
    assert cohorts.asked == 6


@pytest.mark.parametrize("way", ["sync", "async"])
def test_an_import_that_is_always_lost_ends(way: str, monkeypatch: pytest.MonkeyPatch) -> None:
    class Lost(Cohorts):
        imports = 0

        def ImportCohort(self, request_iterator: Any, context: Any) -> cohort_pb2.ImportCohortResponse:
            self.imports += 1
            refuse(context, code_pb2.UNAVAILABLE, "the disk is gone")
            raise AssertionError

    monkeypatch.setattr(Patience, "LIMIT_S", 0.3)
    cohorts = Lost()
    with serving(add_cohorts, cohorts) as address, pytest.raises(UnavailableError, match="the disk is gone"):
        imported(way, address, _plan(8))
    assert cohorts.imports > 1


def test_what_is_refused_here_or_there_is_listed_and_stops_nothing(tmp_path: Path) -> None:
    missing = CohortSlice("missing", "s0", "a", tmp_path / "missing.dcm")
    gridded = CohortSlice("gridded", "s0", "a", np.zeros((3, 3), np.uint8))
    plan = _plan(4, missing, gridded)
    for way in ("sync", "async"):
        with serving(add_cohorts, Cohorts(bad=("i2",))) as address:
            result = imported(way, address, plan)
        assert result.added == 3
        assert {rejection.id for rejection in result.rejected} == {"i2", "missing", "gridded"}
        assert all(rejection.error.message for rejection in result.rejected)


def _labels(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "labels.csv"
    path.write_text(text, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "columns of .* are none"),
        ("patient,label\nA,x\n", "columns of .* are patient, label; expected subject and label"),
        ("subject,label\n", "no rows"),
        ("subject,label\nA,x\nB,\n", "line 3 .* empty field"),
        ("subject,label\nA\n", "line 2 .* empty field"),
        ("subject,label\nA,x\nA,y\n", "subject 'A' has two labels"),
        ("subject,label\n\0", "empty field|cannot be read"),
    ],
)
def test_a_bad_table_of_labels_is_named(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(InvalidInputError, match=said) as error:
        read_labels(_labels(tmp_path, text))
    assert error.value.field == "labels"


def test_a_table_may_have_a_byte_order_mark_more_columns_and_repeated_rows(tmp_path: Path) -> None:
    text = "\ufefflabel,age,subject\nx,1,A\ny,2, B \nx,1,A\n"
    assert read_labels(_labels(tmp_path, text)) == {"A": "x", "B": "y"}


def test_the_plan_of_a_phantom_is_pseudonymous_and_stable(phantom: Path) -> None:
    first = plan_import(phantom, phantom / "labels.csv", key=KEY)
    again = plan_import(phantom, phantom / "labels.csv", key=KEY)
    other = plan_import(phantom, phantom / "labels.csv", key=bytes(32))
    assert first.plan.labels == ("non-recurrent", "recurrent")
    assert len(first.plan.slices) == 72
    assert first.skipped == ()
    names = [(one.instance, one.subject, one.series) for one in first.plan.slices]
    assert names == [(one.instance, one.subject, one.series) for one in again.plan.slices]
    assert not {one.subject for one in first.plan.slices} & {one.subject for one in other.plan.slices}
    assert not any("PH-" in name for one in names for name in one)


def test_the_class_of_interest_comes_last(phantom: Path) -> None:
    plan = plan_import(phantom, phantom / "labels.csv", positive="non-recurrent", key=KEY).plan
    assert plan.labels == ("recurrent", "non-recurrent")
    with pytest.raises(InvalidInputError, match="positive is 'ill'; expected one of non-recurrent, recurrent"):
        plan_import(phantom, phantom / "labels.csv", positive="ill", key=KEY)


def test_subjects_without_label_are_named_and_without_images_refused(phantom: Path, tmp_path: Path) -> None:
    rows = (phantom / "labels.csv").read_text().splitlines()
    without = rows[1].partition(",")[0]
    labels = _labels(tmp_path, "\n".join([rows[0], *rows[2:], "NOBODY,recurrent"]))
    with pytest.raises(InvalidInputError, match=r"1 of 6 labelled subjects .* 1 no images at all: NOBODY"):
        plan_import(phantom, labels, key=KEY)
    planned = plan_import(phantom, labels, allow_missing=True, key=KEY)
    assert len(planned.plan.slices) == 60
    reasons = dict(planned.skipped)
    assert reasons[f"subject {without}"] == "no label; 12 slices left out"
    assert reasons["subject NOBODY"] == "no images"
    # A table that is not the one given is a file of the folder like any other.
    assert str(phantom / "labels.csv") in reasons


def test_one_class_and_no_class_are_refused(phantom: Path, tmp_path: Path) -> None:
    names = [f"PH-{n:03d}" for n in range(6)]
    one = _labels(tmp_path, "subject,label\n" + "".join(f"{name},x\n" for name in names))
    with pytest.raises(InvalidInputError, match="only the class 'x'; expected slices of at least two classes"):
        plan_import(phantom, one, key=KEY)
    with pytest.raises(InvalidInputError, match="only the class 'transverse'"):
        plan_import(phantom, key=KEY)
    with pytest.raises(InvalidInputError, match="no usable series"):
        plan_import(phantom, phantom / "labels.csv", rules=SelectionRules(planes=frozenset({"sagittal"})), key=KEY)


def test_an_empty_and_a_missing_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(InvalidInputError, match="no labelled slice"):
        plan_import(tmp_path / "empty", key=KEY)
    with pytest.raises(InvalidInputError, match="nowhere"):
        plan_import(tmp_path / "nowhere", key=KEY)
