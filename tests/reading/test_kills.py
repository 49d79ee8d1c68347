"""Two kills of the server during a reading; `python -m benchmarks.reading_kills` does twenty."""

from benchmarks.reading_kills import read_through_kills
from tests.live import LiveServer


def test_no_verdict_is_lost_or_doubled_through_kills(study_server: LiveServer) -> None:
    given, _ = read_through_kills(study_server, kills=2, seed=1)
    assert given == 2 * 8
