"""What `benchmarks.sdk` runs as a process of its own: `client.score` of synthetic slices, with no torch in memory."""

import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import psutil
from numpy.typing import NDArray

from limner import Client

_DIFFERENT = 64


def main(address: str, model: str, count: int, size: int, marks: list[int]) -> None:
    """Score so many slices and print images/s, CPU time in seconds, and the resident MiB after each of `marks`."""
    process = psutil.Process()
    resident: dict[int, float] = {}

    def watch(what: str, done: int, _all: int | None) -> None:
        if what == "scoring" and len(resident) < len(marks) and done >= marks[len(resident)]:
            resident[marks[len(resident)]] = process.memory_info().rss / 2**20

    with TemporaryDirectory() as folder, Client(address) as client:
        before, started = process.cpu_times(), time.perf_counter()
        scores = client.score(model, _slices(count, size), Path(folder) / "scores", progress=watch)
        elapsed, after = time.perf_counter() - started, process.cpu_times()
    if (scores.images, scores.failed) != (count, 0):
        raise RuntimeError(f"{scores.failed} of {scores.images} slices failed; expected {count} and none")
    cpu_s = after.user + after.system - before.user - before.system
    print(json.dumps({"images_per_s": count / elapsed, "cpu_s": cpu_s, "resident_mib": list(resident.values())}))


def _slices(count: int, size: int) -> Iterator[NDArray[np.float32]]:
    some = np.random.default_rng(0).gamma(2.0, 100.0, (_DIFFERENT, size, size)).astype(np.float32)
    for number in range(count):
        yield some[number % _DIFFERENT]


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), list(map(int, sys.argv[5:])))
