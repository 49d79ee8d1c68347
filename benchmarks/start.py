"""start: how soon a server that is started says that it lives, and then that it is ready."""

import statistics
import time
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from benchmarks.harness import PAIRS, Result
from benchmarks.models import publish_untrained
from limner_server.rpc.health import LIVE
from tests.gateway.orthanc import free_port
from tests.live import LiveServer

NAME = "start"
SUMMARY = "seconds from the start of the process until it is live; figures: until it is ready, a model loaded and warm"

_LOOK_S = 0.02
_LONGEST_S = 120.0
_BAR_S = 5.0


@dataclass(frozen=True)
class Start:
    """Seconds from the start to live and to ready, and the longest that an answer of the live server took meanwhile."""

    live_s: float
    ready_s: float
    slowest_s: float


def run(pairs: int = PAIRS) -> Result:
    """Start a server so many times, each on folders of its own."""
    starts = []
    for _ in range(pairs):
        with TemporaryDirectory() as folder:
            starts.append(measured_start(Path(folder)))
    figures = {
        "ready_s": statistics.median(start.ready_s for start in starts),
        "slowest_live_check_s": max(start.slowest_s for start in starts),
    }
    live = tuple(start.live_s for start in starts)
    return Result(NAME, "s until live", _BAR_S, True, live, figures)


def measured_start(folder: Path) -> Start:
    """Start a server with a model to load, and ask for its health all the while.

    Raises
    ------
    AssertionError
        It ended, or was not ready in time; with its log.
    """
    publish_untrained(folder / "model_repository", NAME, size=64)
    server = LiveServer(folder, port=free_port(), load=NAME)
    with ThreadPoolExecutor(1) as pool:
        began = time.monotonic()
        starting = pool.submit(server.start)
        try:
            return _watch(server, starting, began)
        finally:
            server.stop()


def _watch(server: LiveServer, starting: "Future[None]", began: float) -> Start:
    live_s, slowest = 0.0, 0.0
    while True:
        asked = time.monotonic()
        if _serves(server.port, LIVE):
            slowest = max(slowest, time.monotonic() - asked)
            live_s = live_s or time.monotonic() - began
            if _serves(server.port, ""):
                ready_s = time.monotonic() - began
                starting.result()
                return Start(live_s, ready_s, slowest)
        if starting.done():
            starting.result()
        assert asked - began < _LONGEST_S, server.log()
        time.sleep(_LOOK_S)


def _serves(port: int, service: str) -> bool:
    # A connection of its own each time: a probe has one, and one that was refused waits before it tries again.
    with grpc.insecure_channel(f"127.0.0.1:{port}", [("grpc.use_local_subchannel_pool", 1)]) as channel:
        stub: Any = health_pb2_grpc.HealthStub(channel)  # its methods are not in its types
        try:
            reply = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=10)
        except grpc.RpcError:
            return False
    return bool(reply.status == health_pb2.HealthCheckResponse.SERVING)
