"""perf_analyzer's CSV, as version 2.41.1 has written it for a real Triton."""

import pytest

from benchmarks.perf_analyzer import parse

HEADER = (
    "Concurrency,Inferences/Second,Client Send,Network+Server Send/Recv,Server Queue,Server Compute Input,"
    "Server Compute Infer,Server Compute Output,Client Recv,p50 latency,p90 latency,p95 latency,p99 latency\n"
)
ROW = "32,170.047,7,1448,26489,618,148943,4620,2,172396,253849,264253,307061\n"


def test_throughput_and_p99_in_milliseconds() -> None:
    assert parse(HEADER + ROW) == (170.047, 307.061)


@pytest.mark.parametrize("report", ["", HEADER, HEADER + ROW + ROW, HEADER + ROW.replace("32,", "16,", 1), ROW + ROW])
def test_another_report_is_refused(report: str) -> None:
    with pytest.raises(ValueError, match="expected one row of concurrency 32"):
        parse(report)


def test_a_report_without_p99_is_refused() -> None:
    with pytest.raises(ValueError, match="'p99 latency'"):
        parse(HEADER.replace(",p99 latency", "") + ROW)
