"""Calls of one image each, at a rate that does not wait for answers, from a process of its own.

`python -m benchmarks.load ADDRESS MODEL SIZE PHASE...`, where a phase is `closed:CALLERS:SECONDS` (so many callers,
each asking again when it is answered) or `open:RATE:SECONDS` (so many calls a second, at the times of a Poisson
process). Prints a JSON list for each phase: of each call when it began, in seconds of the phase, how long it took,
and how it ended. Nothing is sent again: what a retry policy would hide is what is counted.
"""

import asyncio
import json
import random
import subprocess
import sys
import time
from dataclasses import dataclass
from typing import NamedTuple

import grpc
import numpy as np
from grpc import aio

from limner.channel import PREDICT
from limner.requests import grid_array, predict
from limner.v1 import common_pb2

_TIMEOUT_S = 60.0
OK, REFUSED, REFUSED_WITHOUT_PUSHBACK, OTHER = "ok", "refused", "refused without pushback", "other"


class Called(NamedTuple):
    """One call."""

    began: float
    seconds: float
    end: str


@dataclass(frozen=True)
class Phase:
    """All calls of a phase, in the order in which they ended; what is asked of them may leave out the first moments."""

    calls: tuple[Called, ...]

    def of(self, end: str, since: float = 0.0) -> list[float]:
        """How long the calls took that ended so and began then or later."""
        return [call.seconds for call in self.calls if call.end == end and call.began >= since]

    def p99(self, end: str, since: float = 0.0) -> float:
        """Of their times. ValueError where there are none."""
        if not (found := self.of(end, since)):
            raise ValueError(f"no call that began after {since:g} s ended {end!r}; a longer phase may have some")
        return float(np.percentile(found, 99))

    def answered_per_s(self, since: float, until: float) -> float:
        """Answers that came between two times of the phase, by the second."""
        ends = [call.began + call.seconds for call in self.calls if call.end == OK]
        return sum(since <= end < until for end in ends) / (until - since)


def closed(callers: int, seconds: float) -> str:
    """A phase of so many callers."""
    return f"closed:{callers}:{seconds}"


def opened(rate: float, seconds: float) -> str:
    """A phase of so many calls a second."""
    return f"open:{rate}:{seconds}"


def load(address: str, model: str, size: int, *phases: str) -> "subprocess.Popen[str]":
    """Begin phases in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.load", address, model, str(size), *phases]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def found(process: "subprocess.Popen[str]") -> list[Phase]:
    """Wait for a process of `load`, and return what each phase found."""
    printed, _ = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the load ended with status {process.returncode}")
    return [Phase(tuple(Called(*call) for call in json.loads(line))) for line in printed.splitlines()]


async def _main(address: str, model: str, size: int, phases: list[str]) -> None:
    image = common_pb2.Image(id="0", grid=grid_array(np.random.default_rng(0).random((size, size), np.float32)))
    request = predict(model, [image], 0, False).SerializeToString()
    async with aio.insecure_channel(address, [("grpc.enable_retries", 0)]) as channel:
        call: aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(PREDICT)
        for phase in phases:
            kind, number, seconds = phase.split(":")
            run = _closed if kind == "closed" else _open
            print(json.dumps(await run(call, request, float(number), float(seconds))), flush=True)


async def _closed(
    call: "aio.UnaryUnaryMultiCallable[bytes, bytes]", request: bytes, callers: float, seconds: float
) -> list[Called]:
    calls: list[Called] = []
    zero = time.perf_counter()

    async def ask() -> None:
        while time.perf_counter() - zero < seconds:
            calls.append(await _called(call, request, zero))

    await asyncio.gather(*(ask() for _ in range(int(callers))))
    return calls


async def _open(
    call: "aio.UnaryUnaryMultiCallable[bytes, bytes]", request: bytes, rate: float, seconds: float
) -> list[Called]:
    chance = random.Random(0)  # noqa: S311 - of the arrivals
    under_way: set[asyncio.Task[Called]] = set()
    calls: list[Called] = []

    def ended(task: "asyncio.Task[Called]") -> None:
        under_way.discard(task)
        calls.append(task.result())

    zero, due = time.perf_counter(), 0.0
    while (due := due + chance.expovariate(rate)) < seconds:
        if (early := due - (time.perf_counter() - zero)) > 0:
            await asyncio.sleep(early)
        task = asyncio.create_task(_called(call, request, zero))
        under_way.add(task)
        task.add_done_callback(ended)
    await asyncio.gather(*under_way)
    return calls


async def _called(call: "aio.UnaryUnaryMultiCallable[bytes, bytes]", request: bytes, zero: float) -> Called:
    began = time.perf_counter()
    end = OK
    try:
        await call(request, timeout=_TIMEOUT_S)
    except aio.AioRpcError as error:
        end = OTHER
        if error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED:
            has_pushback = "grpc-retry-pushback-ms" in {key for key, _ in error.trailing_metadata()}
            end = REFUSED if has_pushback else REFUSED_WITHOUT_PUSHBACK
    return Called(began - zero, time.perf_counter() - began, end)


if __name__ == "__main__":
    asyncio.run(_main(sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4:]))
