"""How the measurement of a start ends where there is nothing to measure."""

from pathlib import Path

import pytest

from benchmarks import start
from tests.live import LiveServer


def test_a_server_that_ends_is_given_up_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(LiveServer, "module", "limner_server.nothing")
    with pytest.raises(AssertionError, match=r"No module named limner_server\.nothing"):
        start.measured_start(tmp_path)


def test_a_server_that_does_not_become_ready_is_given_up_with_its_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(start, "_LONGEST_S", 0.5)
    monkeypatch.setattr(start, "_serves", lambda port, service: False)
    with pytest.raises(AssertionError):
        start.measured_start(tmp_path)
