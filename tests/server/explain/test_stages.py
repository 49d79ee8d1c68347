"""Stages are done once, counted, and survive a run that was cut short."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from limner_server.explain.stages import Arrays, Stage, load_arrays, run_stages


class Work:
    """Stages that count how often they are done."""

    def __init__(self) -> None:
        self.done: list[str] = []

    def stage(self, name: str, cost: float = 1.0, *, fails: bool = False) -> Stage:
        def compute(tell: Callable[[float], None]) -> Arrays:
            if fails:
                raise ZeroDivisionError(name)
            tell(0.5)
            self.done.append(name)
            return {"value": np.array([len(name)])}

        return Stage(name, cost, compute)


def quiet(phase: str, fraction: float, remaining_s: float) -> None:
    """Say nothing."""


@pytest.mark.parametrize("workers", [1, 3])
def test_every_stage_is_done_and_returned(tmp_path: Path, workers: int) -> None:
    work = Work()
    found = run_stages([work.stage("a"), work.stage("bb")], tmp_path, workers, quiet)
    assert sorted(work.done) == ["a", "bb"]
    assert {name: arrays["value"].tolist() for name, arrays in found.items()} == {"a": [1], "bb": [2]}


def test_a_failed_stage_loses_nothing_that_was_done(tmp_path: Path) -> None:
    work = Work()
    with pytest.raises(ZeroDivisionError):
        run_stages([work.stage("a"), work.stage("bb", fails=True), work.stage("ccc")], tmp_path, 1, quiet)
    assert load_arrays(tmp_path / "a.npz")["value"].tolist() == [1]
    found = run_stages([work.stage("a"), work.stage("bb"), work.stage("ccc")], tmp_path, 1, quiet)
    assert work.done.count("a") == 1
    assert found["a"]["value"].tolist() == [1]


def test_progress_counts_costs_and_ends_at_one(tmp_path: Path) -> None:
    told: list[tuple[str, float, float]] = []
    work = Work()
    stages = [work.stage("a", 3.0), work.stage("bb", 1.0)]
    run_stages(stages, tmp_path, 1, lambda *event: told.append(event))
    assert [fraction for _, fraction, _ in told] == sorted(fraction for _, fraction, _ in told)
    assert ("a", 0.75) in [event[:2] for event in told]
    assert told[-1] == ("bb", 1.0, 0.0)
