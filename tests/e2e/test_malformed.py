"""Malformed files to live programs, a few of what `python -m benchmarks.malformed` sends by the thousand.

Healthy slices go with them and have to be served; whatever is refused names its cause; nothing ends, hangs or grows.
"""

import sys
from collections import Counter
from collections.abc import Iterator

import pytest

from benchmarks.malformed import decoding, serving
from benchmarks.malformed.__main__ import TARGETS
from benchmarks.malformed.outcome import LIMIT_MIB, Outcome, Report, Verdict, refused
from limner_server.errors import InvalidInputError
from limner_server.names import check_name
from tests.e2e.malformed_slices import malformed_slice
from tests.imaging.malformed import KINDS
from tests.live import LiveServer

EVERY_KIND = range(2 * len(KINDS))


@pytest.fixture(scope="module")
def idle_server() -> Iterator[LiveServer]:
    """A server of its own, whose memory nobody else takes."""
    with serving.live_server() as server:
        yield server


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("target", TARGETS)
def test_nothing_malformed_does_harm(target: str, idle_server: LiveServer) -> None:
    report = TARGETS[target](EVERY_KIND, True, idle_server)
    assert report.violations == []
    assert report.count(Verdict.TAKEN) > 0
    assert report.count(Verdict.REFUSED) > len(EVERY_KIND) / 3
    assert len(report.causes) > 5


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import os; os._exit(3)", "ended the process: 3"),
        ("import os; os.kill(os.getpid(), 11)", "ended the process: -11"),
        ("import time; time.sleep(60)", "hangs"),
    ],
)
def test_a_case_that_ends_or_holds_its_process_is_told(
    monkeypatch: pytest.MonkeyPatch, program: str, words: str
) -> None:
    monkeypatch.setattr(decoding, "LIMIT_S", 0.5)
    report = decoding.drive(range(2), True, (sys.executable, "-c", program))
    assert [violation.partition(": ")[2] for violation in report.violations] == [words] * 2


def test_no_two_malformed_messages_share_an_id_that_a_server_takes() -> None:
    ids = Counter(malformed_slice(number).instance for number in range(10_000))
    for instance, count in ids.items():
        if count > 1:
            with pytest.raises(InvalidInputError):
                check_name("instance", instance, 128)


def test_what_may_not_be_is_a_violation() -> None:
    assert refused("case", "Rows", "Rows is 0").verdict is Verdict.REFUSED
    assert refused("case", "", "wrong").verdict is refused("case", "Rows", "").verdict is Verdict.VIOLATION
    outcomes = (Outcome("1", Verdict.TAKEN), refused("2", "Rows", "Rows is 0"), Outcome("3", Verdict.VIOLATION, "died"))
    report = Report("target", outcomes, LIMIT_MIB + 1, ("it logged an error",))
    assert report.violations == ["3: died", "took 1025 MiB", "it logged an error"]
    assert [report.count(verdict) for verdict in Verdict] == [1, 1, 1]
    assert Report("target", outcomes[:2], LIMIT_MIB).violations == []
