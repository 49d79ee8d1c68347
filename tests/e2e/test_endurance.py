"""Small runs of the benchmarks that an SRE asks for: overload, rolling restarts, kills, and a mixed load.

What is timed there is not judged here; what must hold whatever the machine, is.
"""

import os
from pathlib import Path

import pytest

from benchmarks import overload, rolling, server_kills, soak
from benchmarks.load import OK, OTHER, REFUSED, REFUSED_WITHOUT_PUSHBACK


def test_more_than_it_can_do_is_refused_with_pushback_and_the_rest_is_answered(tmp_path: Path) -> None:
    plan = overload.Plan(seconds=3, max_queue_ms=50)
    # Ten times what a smaller one can do would be more calls a second than gRPC can refuse (docs/performance.md).
    outcome = overload.overload(tmp_path, plan, architecture="resnet18", size=224)
    over = outcome.over
    assert len(over.of(OK)) + len(over.of(REFUSED)) == len(over.calls)
    assert over.of(OK)
    assert over.of(REFUSED)
    assert not over.of(REFUSED_WITHOUT_PUSHBACK)
    assert not over.of(OTHER)
    assert outcome.after.of(OK)


def test_two_servers_restarted_in_turns_fail_no_call(tmp_path: Path) -> None:
    outcome = rolling.roll(tmp_path, rolling.Plan(restarts=1, pause_s=1))
    assert outcome.failed == []
    assert outcome.succeeded["predictions"]
    assert outcome.succeeded["streams"]
    assert outcome.succeeded["imports"]


def test_a_kill_loses_nothing_that_was_acknowledged(tmp_path: Path) -> None:
    outcome = server_kills.kill_run(tmp_path, server_kills.Plan(kills=2, longest_s=3, seed=1))
    assert outcome.faults == []
    assert outcome.acknowledged.calls["promotions"]
    assert outcome.acknowledged.calls["scorings"]


@pytest.mark.timeout(600)
def test_a_mixed_load_goes_without_a_fault_and_leaves_nothing_behind(tmp_path: Path) -> None:
    """Eight seconds of it, or SOAK_S, five minutes in CI: then memory, threads, descriptors and files stay, too."""
    seconds = float(os.environ.get("SOAK_S", "8"))
    outcome = soak.soak(tmp_path, soak.Plan(seconds=seconds, sample_s=0.5))
    assert outcome.faults == []
    assert set(outcome.done) >= {"scorings", "streams", "streams left", "explanations", "imports", "errors"}
    if seconds >= 60:
        assert outcome.growth(lambda sample: sample.resident) < 1.1
        assert outcome.growth(lambda sample: sample.threads) < 1.1
        assert outcome.growth(lambda sample: sample.descriptors) < 1.1
        assert outcome.growth(lambda sample: sample.strays) <= 1
