"""The figures of the overload, of runs whose calls are known."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.load import OK, REFUSED, Called, Phase
from benchmarks.overload import Outcome, Plan, result
from benchmarks.report import record, recorded


def outcome(seconds: float, *over: Called) -> Outcome:
    """A run of a server that answers each call after a tenth of a second, ten of them a second."""
    calls = Phase(tuple(Called(number / 10, 0.1, OK) for number in range(round(10 * seconds))))
    return Outcome(10.0, calls, replace(calls, calls=(*calls.calls, *over)), calls, (100.0,) * 8, Plan(seconds))


def test_a_run_in_which_nothing_is_refused_has_no_times_of_refusals(tmp_path: Path) -> None:
    found = result(outcome(60))
    assert json.loads(json.dumps(found.to_dict(), allow_nan=False))["refused"] == 0
    assert not {"refused_p50_ms", "refused_p99_ms"} & found.figures.keys()
    record(found, tmp_path / "results.jsonl")
    record(found, tmp_path / "results.jsonl")
    assert [each.result for each in recorded(tmp_path / "results.jsonl")] == [found]


def test_the_times_of_refusals_are_told() -> None:
    found = result(outcome(60, Called(30, 0.002, REFUSED), Called(30, 0.002, REFUSED)))
    assert found.figures["refused"] == 2
    assert found.figures["refused_p50_ms"] == found.figures["refused_p99_ms"] == pytest.approx(2)


@pytest.mark.parametrize(("seconds", "back"), [(3, "0.25 s"), (12, "1 s"), (60, "2 s")])
def test_a_short_plan_has_a_time_after_the_overload_too(seconds: float, back: str) -> None:
    _, after = result(outcome(seconds)).also
    assert after.unit == f"images/s from {back} after it on / capacity"
    assert after.ratio == pytest.approx(1, rel=0.5)


def test_a_run_without_an_answer_is_none() -> None:
    nothing = replace(outcome(60), at_capacity=Phase(()))
    with pytest.raises(ValueError, match=r"no call that began after 5 s ended 'ok'"):
        result(nothing)
