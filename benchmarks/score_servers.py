"""score-servers: three servers, one of them restarted every ten seconds, over two that nothing disturbs.

Every other restart is a kill without a word. `client.score` has to answer each image once, and none with a failure.
"""

import os
import statistics
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from itertools import count, cycle
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray

from benchmarks.harness import PAIRS, Result, interleaved
from benchmarks.models import publish_identity, random_slices
from benchmarks.paced_server import IMAGE_MS
from limner import Client
from tests.gateway.orthanc import free_port
from tests.live import LiveServer

NAME = "score-servers"
SUMMARY = "client.score over three servers, one restarted every 10 s / over two undisturbed ones; nothing lost or twice"

_BAR = 0.9
_SIZE = 64
_IMAGE_MS = 8.0
_DISTURBED_S, _UNDISTURBED_S = 120.0, 60.0
_EVERY_S = 10.0
_DRAIN_S = 3


class _PacedServer(LiveServer):
    """A server that computes nothing, and takes its time for it."""

    module = "benchmarks.paced_server"


@dataclass(frozen=True)
class _Run:
    """What came of scoring for some time."""

    images: int
    wrong: int
    """Images that failed, are missing, or have more than one row."""
    seconds: float
    restarts: int

    @property
    def images_per_s(self) -> float:
        return self.images / self.seconds


def run(pairs: int = PAIRS) -> Result:
    """Score with and without restarts in turns."""
    os.environ[IMAGE_MS] = str(_IMAGE_MS)
    with TemporaryDirectory() as name, ExitStack() as stack:
        folder = Path(name)
        model = publish_identity(folder / "model_repository", NAME, _SIZE).name
        servers = [_PacedServer(folder / str(n), port=free_port(), threads=1, drain_s=_DRAIN_S) for n in range(3)]
        for server in servers:
            server.folder.mkdir()
            server.model_repository.symlink_to(folder / "model_repository")
        with ThreadPoolExecutor(len(servers)) as pool:
            list(pool.map(stack.enter_context, servers))
        for server in servers:
            with Client(server.address) as client:
                client.load_model(model)

        def disturbed() -> _Run:
            with _restarts(servers[0]) as restarts:
                return _score(servers, model, folder, _DISTURBED_S, restarts)

        found = interleaved(disturbed, lambda: _score(servers[1:], model, folder, _UNDISTURBED_S, []), pairs)
    rates = found.of(lambda one: one.images_per_s)
    wrong = tuple(one.wrong / one.images for one in found.ours)
    figures = {
        "disturbed_images_per_s": statistics.median(rates.ours),
        "undisturbed_images_per_s": statistics.median(rates.reference),
        "images": sum(one.images for one in found.ours),
        "wrong_images": sum(one.wrong for one in found.ours),
        "restarts": sum(one.restarts for one in found.ours),
    }
    also = (Result(f"{NAME} wrong", "images failed, missing or twice / all", 0.0, True, wrong),)
    unit = "images/s of three servers with restarts / of two without"
    return Result(NAME, unit, _BAR, False, rates.ratios, figures, also)


@contextmanager
def _restarts(server: LiveServer) -> Iterator[list[float]]:
    """Restart a server every ten seconds, by SIGTERM and by SIGKILL in turns; gives the moments."""
    moments: list[float] = []
    ended = threading.Event()

    def restart() -> None:
        begun = time.monotonic()
        for number, end in zip(count(1), cycle((server.stop, server.kill)), strict=False):
            if ended.wait(max(begun + number * _EVERY_S - time.monotonic(), 0)):
                return
            end()
            server.start()
            moments.append(time.monotonic() - begun)

    with ThreadPoolExecutor(1) as pool:
        restarting = pool.submit(restart)
        try:
            yield moments
        finally:
            ended.set()
            restarting.result()


def _score(servers: Sequence[LiveServer], model: str, folder: Path, seconds: float, restarts: Sequence[float]) -> _Run:
    with TemporaryDirectory(dir=folder) as out, Client([server.address for server in servers]) as client:
        client.wait_ready()
        started = time.perf_counter()
        scores = client.score(model, _slices(seconds), Path(out) / "scores")
        elapsed = time.perf_counter() - started
        rows = (Path(out) / "scores" / "rows.jsonl").read_bytes().count(b"\n")
    return _Run(scores.images, scores.failed + abs(rows - scores.images), elapsed, len(restarts))


def _slices(seconds: float) -> Iterator[NDArray[np.float32]]:
    end = time.perf_counter() + seconds
    for image in cycle(random_slices(64, _SIZE)):
        if time.perf_counter() > end:
            return
        yield image
