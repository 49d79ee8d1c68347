"""overload: ten times what a server can do. What it admits is answered nearly as soon as at its capacity.

The capacity is what as many callers get as keep the queue filled. Then come as many calls a second as that, then ten
times as many, then the callers of before. Calls come when they come, whether or not others are answered, and nothing
is sent again. Generator and server share the machine, so the model is one whose images take long enough for ten times
as many calls to be made and refused beside it.
"""

import statistics
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import psutil

from benchmarks.harness import PAIRS, Result
from benchmarks.load import OK, OTHER, REFUSED, REFUSED_WITHOUT_PUSHBACK, Phase, closed, found, load, opened
from benchmarks.models import publish_untrained
from tests.live import LiveServer

NAME = "overload"
SUMMARY = "p99 of what is admitted at 10x the capacity / at the capacity (ResNet-50, 96x96, one image a call)"

_CALLERS = 32
_SAMPLE_S = 0.25
_BACK_WITHIN_S = 2.0
_MIB = 2**20


@dataclass(frozen=True)
class Plan:
    """How long, and how much.

    Attributes
    ----------
    seconds
        Of the overload; the load at capacity takes half of it, finding the capacity and the time after it a sixth.
    times
        What is asked for over the capacity.
    max_queue_ms
        The server's setting of that name; 0 for its default.
    """

    seconds: float = 60.0
    times: float = 10.0
    max_queue_ms: float = 0.0


PLAN = Plan()


@dataclass(frozen=True)
class Outcome:
    """What a run found: the phases, images/s at capacity, and resident MiB in the course of the overload."""

    capacity: float
    at_capacity: Phase
    over: Phase
    after: Phase
    resident: tuple[float, ...]
    plan: Plan

    @property
    def settled_s(self) -> float:
        """From when on of a phase its calls count: the queue has filled."""
        return self.plan.seconds / 12

    @property
    def back_within_s(self) -> float:
        """From when on of the time after the overload its calls count; of a short plan, after half of that time."""
        return min(_BACK_WITHIN_S, self.plan.seconds / 12)

    @property
    def p99_ratio(self) -> float:
        """Of what is admitted, over its p99 at capacity."""
        return self.over.p99(OK, self.settled_s) / self.at_capacity.p99(OK, self.settled_s)

    @property
    def memory_ratio(self) -> float:
        """Resident memory at the end of the overload over that after its first quarter."""
        return self.resident[-1] / self.resident[len(self.resident) // 4]

    @property
    def speed_after(self) -> float:
        """Answers a second once the overload is over for `back_within_s`, over the capacity."""
        return self.after.answered_per_s(self.back_within_s, self.plan.seconds / 6) / self.capacity


def run(pairs: int = PAIRS, plan: Plan = PLAN) -> Result:
    """Make one run, whatever `pairs`."""
    with TemporaryDirectory() as folder:
        return result(overload(Path(folder), plan))


def result(outcome: Outcome) -> Result:
    """Ratios and figures of a run. ValueError where it was so short that none of its calls was answered."""
    plan, over, settled = outcome.plan, outcome.over, outcome.settled_s
    figures = {
        "capacity_images_per_s": outcome.capacity,
        "p99_at_capacity_ms": 1e3 * outcome.at_capacity.p99(OK, settled),
        "refused_at_capacity": len(outcome.at_capacity.of(REFUSED)),
        "p99_over_ms": 1e3 * over.p99(OK, settled),
        "calls_over_per_s": len(over.calls) / plan.seconds,
        "answered_over_per_s": over.answered_per_s(settled, plan.seconds),
        "refused": len(over.of(REFUSED)),
        "refused_without_pushback": len(over.of(REFUSED_WITHOUT_PUSHBACK)),
        "ended_otherwise": len(over.of(OTHER)),
        "resident_mib": outcome.resident[-1],
    }
    if refused := over.of(REFUSED):
        figures |= {"refused_p50_ms": 1e3 * statistics.median(refused), "refused_p99_ms": 1e3 * over.p99(REFUSED)}
    back = f"images/s from {outcome.back_within_s:g} s after it on / capacity"
    also = (
        Result(f"{NAME}-memory", "resident at the end / after a quarter", 1.05, True, (outcome.memory_ratio,)),
        Result(f"{NAME}-after", back, 0.9, False, (outcome.speed_after,)),
    )
    unit = f"p99 at {plan.times:g}x the capacity / at the capacity"
    return Result(NAME, unit, 2.0, True, (outcome.p99_ratio,), figures, also)


def overload(folder: Path, plan: Plan, architecture: str = "resnet50", size: int = 96) -> Outcome:
    """Find the capacity of a server below `folder`, and load it as planned."""
    publish_untrained(folder / "model_repository", NAME, architecture, size)
    settings = {"max_queue_ms": plan.max_queue_ms} if plan.max_queue_ms else {}
    with LiveServer(folder, threads=0, load=NAME, **settings) as server:
        arguments = (server.address, NAME, size)
        short = plan.seconds / 6
        (full,) = found(load(*arguments, closed(_CALLERS, short)))
        capacity = full.answered_per_s(short / 4, short)
        (at_capacity,) = found(load(*arguments, opened(capacity, plan.seconds / 2)))
        loading = load(*arguments, opened(plan.times * capacity, plan.seconds), closed(_CALLERS, short))
        with _resident(server.pid) as resident:
            over, after = found(loading)
    share = plan.seconds / (plan.seconds + short)
    return Outcome(capacity, at_capacity, over, after, tuple(resident[: int(share * len(resident))]), plan)


@contextmanager
def _resident(pid: int) -> Iterator[list[float]]:
    """Take a process's resident MiB every so often."""
    process, ended, seen = psutil.Process(pid), threading.Event(), [psutil.Process(pid).memory_info().rss / _MIB]

    def look() -> None:
        while not ended.wait(_SAMPLE_S):
            seen.append(process.memory_info().rss / _MIB)

    looking = threading.Thread(target=look)
    looking.start()
    try:
        yield seen
    finally:
        ended.set()
        looking.join()
