"""What one loaded version has answered so far, by the definitions of Triton's statistics extension.

Fed by every front, read by `rpc.open_inference` and `telemetry`. A request is one call of ModelInfer, however many
images it holds, or one image of `limner.v1`; it counts from when its model has been found. Counted on the event loop's
thread, read from any.
(https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_statistics.md)
"""

import asyncio
import time
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from types import TracebackType

from limner.imaging.errors import ImageError
from limner_server.errors import DeadlineError, EngineError, LimnerError, QueueFullError, UnavailableError
from limner_server.executor.engine import Output

_NS = 1_000_000_000

BOUNDS_S = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of the classes that times are counted in, in seconds; one more class has what took longer."""

Trace = Callable[[Sequence[Output], int, int, int, int], None]

_BOUNDS_NS = tuple(int(bound * _NS) for bound in BOUNDS_S)


class Reason(StrEnum):
    """Why a request was not answered."""

    INVALID = "invalid"
    QUEUE_FULL = "queue_full"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    UNAVAILABLE = "unavailable"
    ENGINE = "engine"
    INTERNAL = "internal"

    @classmethod
    def of(cls, error: BaseException) -> "Reason":
        """Reason of what was raised; what else of the family of errors a caller is told is about his input."""
        return next((reason for kinds, reason in _REASONS if isinstance(error, kinds)), cls.INTERNAL)


_REASONS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], Reason], ...] = (
    (QueueFullError, Reason.QUEUE_FULL),
    (DeadlineError, Reason.DEADLINE),
    (UnavailableError, Reason.UNAVAILABLE),
    (EngineError, Reason.ENGINE),
    ((LimnerError, ImageError), Reason.INVALID),
    (asyncio.CancelledError, Reason.CANCELLED),
)


@dataclass(slots=True)
class Duration:
    """How often something happened, and how long it took in all, in nanoseconds."""

    count: int = 0
    ns: int = 0

    def add(self, ns: int) -> None:
        """Count it once more."""
        self.count += 1
        self.ns += ns


@dataclass(slots=True)
class Spread:
    """A duration of which is known, too, how often it took how long.

    Attributes
    ----------
    classes
        How often it took at most the bound of `BOUNDS_S` of the same place, and more than the one before.
    ns
        How long it took in all, in nanoseconds.
    """

    classes: list[int] = field(default_factory=lambda: [0] * (len(_BOUNDS_NS) + 1))
    ns: int = 0

    def add(self, ns: int) -> None:
        """Count it once more."""
        self.classes[bisect_left(_BOUNDS_NS, ns)] += 1
        self.ns += ns

    @property
    def count(self) -> int:
        """How often it happened."""
        return sum(self.classes)


@dataclass(slots=True)
class BatchStatistics:
    """The images that were answered in batches of one size, with their shares of the time, in nanoseconds."""

    images: int = 0
    input_ns: float = 0
    infer_ns: float = 0
    output_ns: float = 0


@dataclass(slots=True)
class Statistics:
    """Counts and durations of requests; each one that succeeds counts once in `success`, `queue` and `compute_*`.

    Attributes
    ----------
    success
        Requests that were answered, and how long each took in all.
    failures
        The others, by reason.
    queue
        How long they waited for their batch; of a request of several images, as its slowest one.
    compute_input, compute_infer, compute_output
        How long their tensors were read, run, and written; what was run, as the slowest image of each.
    inferences
        Images of the requests that succeeded.
    batches
        Those images by the size of the batch that each was in.
    last_inference_ms
        When the last of them succeeded, in ms since the epoch; 0: never.
    trace
        Called with the outputs of each request that is answered, and when, by `time.perf_counter_ns`, it began, was
        read, was answered and ended.
    """

    success: Duration = field(default_factory=Duration)
    failures: dict[Reason, Duration] = field(default_factory=lambda: {reason: Duration() for reason in Reason})
    queue: Spread = field(default_factory=Spread)
    compute_input: Spread = field(default_factory=Spread)
    compute_infer: Spread = field(default_factory=Spread)
    compute_output: Spread = field(default_factory=Spread)
    inferences: int = 0
    batches: defaultdict[int, BatchStatistics] = field(default_factory=lambda: defaultdict(BatchStatistics))
    last_inference_ms: int = 0
    trace: Trace | None = None

    @property
    def fail(self) -> Duration:
        """Requests that were neither answered nor cancelled."""
        failed = [duration for reason, duration in self.failures.items() if reason is not Reason.CANCELLED]
        return Duration(sum(each.count for each in failed), sum(each.ns for each in failed))

    @property
    def cancel(self) -> Duration:
        """Requests whose caller has left."""
        return self.failures[Reason.CANCELLED]

    def request(self) -> "Request":
        """Count what the `with` block of the result does as a request."""
        return Request(self)

    def succeeded(self, outputs: Sequence[Output], input_ns: int, output_ns: int, total_ns: int) -> None:
        """Count a request that was answered."""
        slowest = max(outputs, key=lambda output: output.queue_s + output.compute_s)
        self.success.add(total_ns)
        self.queue.add(int(slowest.queue_s * _NS))
        self.compute_input.add(input_ns)
        self.compute_infer.add(int(slowest.compute_s * _NS))
        self.compute_output.add(output_ns)
        images = len(outputs)
        self.inferences += images
        for output in outputs:
            batch = self.batches[output.batch_size]
            batch.images += 1
            batch.input_ns += input_ns / images
            batch.infer_ns += output.compute_s * _NS / output.batch_size
            batch.output_ns += output_ns / images
        self.last_inference_ms = time.time_ns() // 1_000_000


class Request:
    """One request: the block reads its tensors, notes that with `read`, then `answered`, and writes the reply."""

    __slots__ = ("_answered_ns", "_began_ns", "_outputs", "_read_ns", "_statistics")

    def __init__(self, statistics: Statistics) -> None:
        self._statistics = statistics
        self._began_ns = self._read_ns = self._answered_ns = time.perf_counter_ns()
        self._outputs: Sequence[Output] = ()

    def read(self) -> None:
        """Note that the tensors have been read; next the executor is asked."""
        self._read_ns = time.perf_counter_ns()

    def answered(self, *outputs: Output) -> None:
        """Note the outputs, one or more; what is left of the block writes the reply."""
        self._outputs = outputs
        self._answered_ns = time.perf_counter_ns()

    def __enter__(self) -> "Request":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        ended_ns = time.perf_counter_ns()
        total_ns = ended_ns - self._began_ns
        if error is not None:
            self._statistics.failures[Reason.of(error)].add(total_ns)
            return
        input_ns, output_ns = self._read_ns - self._began_ns, ended_ns - self._answered_ns
        self._statistics.succeeded(self._outputs, input_ns, output_ns, total_ns)
        if self._statistics.trace is not None:
            self._statistics.trace(self._outputs, self._began_ns, self._read_ns, self._answered_ns, ended_ns)
