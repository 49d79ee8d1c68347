"""gateway: what it takes from eight senders over what Orthanc takes from them, and what it adds to the model's time.

Orthanc runs with its default settings, which flush each file; the gateway flushes file, folder and journal. Neither
scores or forwards anything while it receives.
"""

import shutil
import statistics
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory

from benchmarks.harness import PAIRS, Result, interleaved
from benchmarks.modality import write_study
from benchmarks.models import publish_untrained
from limner import Client
from tests.gateway.orthanc import Orthanc
from tests.gateway.processes import Gateway, send
from tests.gateway.waiting import wait_for
from tests.live import LiveServer

NAME = "gateway"
SUMMARY = "instances/s from 8 storescu / what Orthanc takes, in turns; overhead of storescu to report (384x384)"

_INBOUND_BAR, _OVERHEAD_BAR_S = 0.5, 2.0
_SENDERS, _INSTANCES = 8, 60
_SLICES, _QUIET_S = 19, 1.0
_NEVER_S = 1e6


def run(pairs: int = PAIRS) -> Result:
    """Send to both in turns, and then one series after the other through the gateway to Orthanc."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        live = LiveServer(folder / "server")
        publish_untrained(live.model_repository, "model", size=64)
        with live as server, Orthanc(folder / "orthanc") as pacs:
            flags = (f"--server={server.address}", f"--pacs=ORTHANC@127.0.0.1:{pacs.dicom_port}")
            with Gateway(folder / "receiving", *flags, quiet_s=_NEVER_S) as node:
                found = interleaved(
                    lambda: _throughput(folder / "sent", node.port, "LIMNER"),
                    lambda: _throughput(folder / "sent", pacs.dicom_port, "ORTHANC"),
                    pairs,
                )
            with Gateway(folder / "working", *flags, quiet_s=_QUIET_S) as node, Client(server.address) as client:
                _overhead_s(folder / "first", node, pacs, client)  # the model is loaded, and modules are
                trips = [_overhead_s(folder / f"trip-{number}", node, pacs, client) for number in range(pairs)]
                version = pacs.version
    overheads, models = zip(*trips, strict=True)
    round_trip = Result(
        f"{NAME} round trip",
        f"seconds from the quiet period's end to the report in Orthanc, less the model's own ({_SLICES} slices)",
        _OVERHEAD_BAR_S,
        True,
        overheads,
    )
    figures = {
        "ours_instances_per_s": statistics.median(found.ours),
        "orthanc_instances_per_s": statistics.median(found.reference),
        "model_s": statistics.median(models),
    }
    unit = "instances/s of the gateway / of Orthanc"
    return Result(NAME, unit, _INBOUND_BAR, False, found.ratios, figures, (round_trip,), {"Orthanc": version})


def _throughput(folder: Path, port: int, called: str) -> float:
    """Instances/s that are acknowledged to as many senders, each with a study of its own."""
    studies = [write_study(folder / str(number), _INSTANCES) for number in range(_SENDERS)]
    with ThreadPoolExecutor(_SENDERS) as pool:
        started = time.perf_counter()
        ended = list(pool.map(lambda paths: send(port, paths, called=called), studies))
        elapsed = time.perf_counter() - started
    assert not any(ended), f"storescu ended with {ended}"
    shutil.rmtree(folder)
    return _SENDERS * _INSTANCES / elapsed


def _overhead_s(folder: Path, node: Gateway, pacs: Orthanc, client: Client) -> tuple[float, float]:
    """Seconds that the gateway takes of its own for a series, and those of the model."""
    paths = write_study(folder, _SLICES)
    before = pacs.count()
    assert send(node.port, paths) == 0
    quiet_ends = time.perf_counter() + _QUIET_S
    wait_for(lambda: pacs.count() > before, pause_s=0.01)
    elapsed = time.perf_counter() - quiet_ends
    results = list(client.predict_stream("model", paths))
    model_s = sum(result.timing.compute_ms / result.timing.batch_size for result in results if result.timing) / 1e3
    return elapsed - model_s, model_s
