"""memory: what server and client have taken after many slices, over what they had after the first thousand."""

from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
from numpy.typing import NDArray

from benchmarks.harness import PAIRS, Result
from benchmarks.models import publish_untrained, random_slices
from limner import Client
from tests.live import LiveServer

NAME = "memory"
SUMMARY = "resident memory after 20,000 slices / after 1,000, of server and client (ResNet-18, 64x64)"

_BAR = 1.05
_SIZE = 64
_FIRST, _ALL = 1_000, 20_000
_MIB = 2**20


def run(pairs: int = PAIRS) -> Result:
    """Score slices by one stream; one run, whatever `pairs`, whose two ratios are the server's and the client's."""
    with TemporaryDirectory() as folder:
        model = publish_untrained(Path(folder) / "model_repository", NAME, size=_SIZE)
        with LiveServer(Path(folder), threads=0) as server, Client(server.address) as client:
            client.wait_ready()
            processes = {"server": psutil.Process(server.pid), "client": psutil.Process()}
            before: dict[str, float] = {}
            scored = 0
            for result in client.predict_stream(model.name, _slices()):
                assert result.ok
                scored += 1
                if scored == _FIRST:
                    before = _resident(processes)
            assert scored == _ALL
            after = _resident(processes)
    ratios = tuple(after[name] / before[name] for name in processes)
    figures = {f"{name}_mib_after_{_FIRST}": size for name, size in before.items()}
    figures |= {f"{name}_mib_after_{_ALL}": size for name, size in after.items()}
    return Result(NAME, "memory after 20,000 / after 1,000: server, client", _BAR, True, ratios, figures)


def _slices() -> Iterator[NDArray[np.float32]]:
    some = random_slices(64, _SIZE)
    for number in range(_ALL):
        yield some[number % len(some)]


def _resident(processes: dict[str, psutil.Process]) -> dict[str, float]:
    return {name: process.memory_info().rss / _MIB for name, process in processes.items()}
