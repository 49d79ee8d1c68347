"""A small run of `python -m benchmarks gateway-kill`: each of the three killed once while it works."""

from pathlib import Path

from benchmarks.gateway_kill import Plan, kill_run
from tests.gateway.real import needs_real


@needs_real
def test_nothing_is_lost_and_nothing_is_there_twice(tmp_path: Path) -> None:
    outcome = kill_run(Plan(studies=8, slices=6, corrupt=2, senders=4, kills=1, quiet_s=3), tmp_path)
    assert outcome.faults == {}
