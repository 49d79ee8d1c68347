"""The real perf_analyzer on a server that speaks Open Inference: requests of one image, 32 at a time.

Its windows are of a fixed length and their spread decides nothing: how often to measure is the harness's business.
What it found is read from its CSV, never from what it prints.
"""

import csv
import os
import re
import subprocess
import sysconfig
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

CONCURRENCY = 32

_TOOL = Path(__file__).parents[1] / "tools/perf_analyzer"
# Its first use installs it, by the pip of this environment: a bare Debian has none.
_ENVIRONMENT = {**os.environ, "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"}
_WINDOWS = 3  # it reports the last three together, and fails when it may not make as many
_THROUGHPUT, _P99 = "Inferences/Second", "p99 latency"


@dataclass(frozen=True)
class Load:
    """What the clients saw of one run.

    Attributes
    ----------
    throughput
        Images/s.
    p99_ms
        Latency within which 99 of 100 requests were answered, in ms.
    cpu_s
        CPU time that perf_analyzer itself took, in seconds.
    """

    throughput: float
    p99_ms: float
    cpu_s: float


def measure(url: str, model: str, data: Path, window_s: float, *, streaming: bool = False) -> Load:
    """Put load on a server for three windows.

    Parameters
    ----------
    url
        HOST:PORT of its gRPC service.
    model
        Which it is to run.
    data
        Folder with one file, named as the input: one image, raw.
    window_s
        Length of a window, in seconds.
    streaming
        True for requests on streams (`--streaming --async`), False for unary ones.

    Raises
    ------
    RuntimeError
        A request failed, or perf_analyzer did.
    """
    with TemporaryDirectory() as folder:
        report = Path(folder) / "report.csv"
        cpu_s = _children_cpu_s()
        ended = _run(
            *("-m", model, "-i", "grpc", "-u", url, "--input-data", str(data)),
            *(("--streaming", "--async") if streaming else ()),
            *("--concurrency-range", str(CONCURRENCY), "--measurement-mode", "time_windows"),
            *("--measurement-interval", f"{1e3 * window_s:.0f}"),
            *("--stability-percentage", "100000", "--max-trials", str(_WINDOWS), "-f", str(report)),
        )
        cpu_s = _children_cpu_s() - cpu_s
        printed = ended.stdout + ended.stderr
        if ended.returncode or "Failed" in printed:
            raise RuntimeError(f"perf_analyzer on {url} ended with status {ended.returncode}: {printed}")
        throughput, p99_ms = parse(report.read_text())
    return Load(throughput, p99_ms, cpu_s)


def parse(report: str) -> tuple[float, float]:
    """Throughput in images/s and p99 latency in ms of perf_analyzer's CSV.

    Raises
    ------
    ValueError
        It is not the report of one measurement at `CONCURRENCY`.
    """
    rows = list(csv.DictReader(report.splitlines()))
    if [row.get("Concurrency") for row in rows] != [str(CONCURRENCY)] or not {_THROUGHPUT, _P99} <= rows[0].keys():
        raise ValueError(
            f"perf_analyzer's report is {report!r}; "
            f"expected one row of concurrency {CONCURRENCY} with {_THROUGHPUT!r} and {_P99!r}"
        )
    return float(rows[0][_THROUGHPUT]), float(rows[0][_P99]) / 1e3


def version() -> str:
    """Version of perf_analyzer."""
    ended = _run("--version")
    printed = ended.stdout + ended.stderr
    found = re.search(r"Version (\S+)", printed)
    if not found:
        raise RuntimeError(f"perf_analyzer --version printed {printed!r}; expected a version")
    return found[1]


def _run(*arguments: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([_TOOL, *arguments], env=_ENVIRONMENT, capture_output=True, text=True, check=False)


def _children_cpu_s() -> float:
    """CPU time of the processes that this one has started and seen end."""
    times = os.times()
    return times.children_user + times.children_system
