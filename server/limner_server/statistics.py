"""What one loaded version has answered so far, by the definitions of Triton's statistics extension.

Fed by every front, read by `rpc.open_inference`. A request is one call of ModelInfer, however many images it holds, or
one image of `limner.v1`; it counts from when the executor has been asked. Belongs to the event loop's thread.
(https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_statistics.md)
"""

import asyncio
import time
from collections import defaultdict
from collections.abc import Awaitable, Sequence
from dataclasses import dataclass, field
from types import TracebackType

from limner_server.executor.engine import Output

_NS = 1_000_000_000


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
    success, fail, cancel
        Requests by their end, and how long each took in all.
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
    """

    success: Duration = field(default_factory=Duration)
    fail: Duration = field(default_factory=Duration)
    cancel: Duration = field(default_factory=Duration)
    queue: Duration = field(default_factory=Duration)
    compute_input: Duration = field(default_factory=Duration)
    compute_infer: Duration = field(default_factory=Duration)
    compute_output: Duration = field(default_factory=Duration)
    inferences: int = 0
    batches: defaultdict[int, BatchStatistics] = field(default_factory=lambda: defaultdict(BatchStatistics))
    last_inference_ms: int = 0

    def request(self, arrived_ns: int | None = None) -> "Request":
        """Count what the `with` block of the result does as a request that arrived then, by `time.perf_counter_ns`."""
        return Request(self, arrived_ns)

    async def image(self, answer: Awaitable[Output]) -> Output:
        """Await the answer to one image, and count it as a request."""
        with self.request() as request:
            output = await answer
            request.answered((output,))
        return output

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
    """One request on its way: its tensors read before the block, `answered` by the executor, its reply built after."""

    __slots__ = ("_answered_ns", "_arrived_ns", "_began_ns", "_outputs", "_statistics")

    def __init__(self, statistics: Statistics, arrived_ns: int | None) -> None:
        self._statistics = statistics
        self._began_ns = time.perf_counter_ns()
        self._arrived_ns = self._began_ns if arrived_ns is None else arrived_ns
        self._outputs: Sequence[Output] = ()
        self._answered_ns = 0

    def answered(self, outputs: Sequence[Output]) -> None:
        """Note the outputs, one or more; what is left of the block writes the reply."""
        self._outputs = outputs
        self._answered_ns = time.perf_counter_ns()

    def __enter__(self) -> "Request":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        ended_ns = time.perf_counter_ns()
        total_ns = ended_ns - self._arrived_ns
        if kind is None:
            input_ns, output_ns = self._began_ns - self._arrived_ns, ended_ns - self._answered_ns
            self._statistics.succeeded(self._outputs, input_ns, output_ns, total_ns)
        elif issubclass(kind, asyncio.CancelledError):
            self._statistics.cancel.add(total_ns)
        else:
            self._statistics.fail.add(total_ns)
