"""sdk: `client.score` over what perf_analyzer's streams get from the same server; the client's memory and CPU."""

import json
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from benchmarks import perf_analyzer
from benchmarks.harness import PAIRS, Result, interleaved
from benchmarks.models import publish_untrained, random_slices
from limner import Client
from limner_server.networks.triton import INPUT
from tests.live import LiveServer

NAME = "sdk"
SUMMARY = "client.score of 64x64 slices / perf_analyzer's streams, on one server (ResNet-18); its memory and CPU"

_BAR, _CPU_BAR, _MEMORY_BAR = 0.95, 0.15, 1.05
_SIZE = 64
_SLICES = 4_096
_FIRST, _ALL = 10_000, 100_000
_WINDOW_S = 4


@dataclass(frozen=True)
class _Run:
    """What a client found of itself, and the CPU time of the server meanwhile."""

    images_per_s: float
    cpu_s: float
    server_cpu_s: float
    resident_mib: tuple[float, ...]


def run(pairs: int = PAIRS) -> Result:
    """Score and put load in turns; then score 100,000 slices once, for the client's memory and CPU."""
    versions = {"perf_analyzer": perf_analyzer.version()}
    with TemporaryDirectory() as name:
        folder = Path(name)
        data = folder / "data"
        data.mkdir()
        (data / INPUT).write_bytes(random_slices(1, _SIZE).astype("<f4").tobytes())
        model = publish_untrained(folder / "model_repository", NAME, size=_SIZE)
        with LiveServer(folder, threads=0) as server:
            with Client(server.address) as client:
                client.wait_ready()
                client.load_model(model.name)

            def streams() -> float:
                load = perf_analyzer.measure(server.address, model.name, data, _WINDOW_S, streaming=True)
                return load.throughput

            found = interleaved(lambda: _score(server, model.name, _SLICES).images_per_s, streams, pairs)
            long = _score(server, model.name, _ALL, _FIRST, _ALL)
    first, last = long.resident_mib
    figures = {
        "ours_images_per_s": statistics.median(found.ours),
        "perf_analyzer_images_per_s": statistics.median(found.reference),
        "images_per_s_of_100000": long.images_per_s,
        "client_cpu_ms_per_image": 1e3 * long.cpu_s / _ALL,
        "server_cpu_ms_per_image": 1e3 * long.server_cpu_s / _ALL,
        f"client_mib_after_{_FIRST}": first,
        f"client_mib_after_{_ALL}": last,
    }
    also = (
        Result("sdk CPU", "CPU time of client / of server", _CPU_BAR, True, (long.cpu_s / long.server_cpu_s,)),
        Result("sdk memory", "client's memory after 100,000 slices / after 10,000", _MEMORY_BAR, True, (last / first,)),
    )
    unit = "images/s of client.score / of perf_analyzer --streaming"
    return Result(NAME, unit, _BAR, False, found.ratios, figures, also, versions)


def _score(server: LiveServer, model: str, count: int, *marks: int) -> _Run:
    process = psutil.Process(server.pid)
    before = sum(process.cpu_times()[:2])
    arguments = map(str, (server.address, model, count, _SIZE, *marks))
    command = [sys.executable, "-m", "benchmarks.sdk_client", *arguments]
    ended = subprocess.run(command, capture_output=True, text=True, check=True)
    fields = json.loads(ended.stdout)
    server_cpu_s = sum(process.cpu_times()[:2]) - before
    return _Run(fields["images_per_s"], fields["cpu_s"], server_cpu_s, tuple(fields["resident_mib"]))
