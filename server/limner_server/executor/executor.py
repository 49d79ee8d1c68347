"""The way into a model: submit an item, get a future. One thread gathers items into batches and owns the engine.

Stands between `rpc` and an engine on the request path (wire → rpc → executor → engine → reply). What runs together is
decided by `batcher`; what a forward pass is, by the engine. Knows nothing of gRPC, models' names or files.
"""

import logging
import math
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import dataclass, replace

import numpy as np

from limner_server.errors import DeadlineError, EngineError, InvalidInputError, LimnerError, UnavailableError
from limner_server.executor.batcher import Batcher, Decision, Ticket
from limner_server.executor.engine import Arrays, Engine, Item, Operation, OutOfMemory, Output

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Counts:
    """What an executor has done since it began.

    Attributes
    ----------
    batches
        Forward passes that succeeded.
    images
        Images answered by them.
    failed
        Images answered with `EngineError`.
    out_of_memory
        Forward passes for which the device had no memory.
    """

    batches: int = 0
    images: int = 0
    failed: int = 0
    out_of_memory: int = 0


@dataclass(frozen=True, eq=False, slots=True)
class _Call:
    item: Item
    future: Future[Output]
    submitted: float

    def fail(self, error: LimnerError) -> None:
        self.future.set_exception(error)


class Executor:
    """Runs items on an engine in batches. Ready once constructed: the engine is warm.

    Every item that `submit` admits is answered exactly once: with its output, with an error of its own, or by its
    caller who cancels it. A forward pass that fails fails the items that made it fail, and no other.

    Parameters
    ----------
    engine
        The loaded model; closed with the executor.
    grid_size
        Edge s of every image, in pixels.
    max_batch_size
        Images in one forward pass, at most.
    max_queue_delay_s
        Longest wait for a batch to fill while the engine is busy, in seconds.
    max_queue_images
        Images that may wait.

    Raises
    ------
    Exception
        Whatever the engine raised when it was warmed.
    """

    def __init__(
        self, engine: Engine, grid_size: int, max_batch_size: int, max_queue_delay_s: float, max_queue_images: int
    ) -> None:
        self._engine = engine
        self._grid_size = grid_size
        self._images = np.empty((max_batch_size, grid_size, grid_size), np.float32)
        self._targets = np.empty(max_batch_size, np.int64)
        self._batcher: Batcher[_Call] = Batcher(max_batch_size, max_queue_delay_s, max_queue_images)
        self._changed = threading.Condition()
        self._closing = False
        self._in_flight: Sequence[_Call] = ()
        self._counts = Counts()
        ready: Future[None] = Future()
        self._thread = threading.Thread(target=self._work, args=(ready,), name="limner-executor", daemon=True)
        self._thread.start()
        ready.result()

    @property
    def healthy(self) -> bool:
        """Whether an item submitted now would be worked on."""
        return self._thread.is_alive() and not self._closing

    @property
    def waiting(self) -> int:
        """Number of images that wait."""
        with self._changed:
            return len(self._batcher)

    @property
    def counts(self) -> Counts:
        """What was done so far."""
        return self._counts

    def submit(self, item: Item, priority: int = 0, deadline: float | None = None) -> Future[Output]:
        """Queue one item. Returns at once; may be called from any thread.

        Parameters
        ----------
        item
            The image, and what is wanted of it.
        priority
            0 to 10; what waits with a higher one is run first.
        deadline
            Time of `time.monotonic` from which the work must not start any more. Default: none.

        Returns
        -------
        Future of Output
            Cancelling it drops the item if it still waits. Fails with `DeadlineError`, `EngineError` or
            `UnavailableError`.

        Raises
        ------
        InvalidInputError
            Shape, dtype, values, target, layers or priority are wrong.
        QueueFullError
            Too many images wait.
        UnavailableError
            The executor is closed, or its thread has died.
        """
        self._check(item)
        with self._changed:
            if not self.healthy:
                raise UnavailableError("the model's executor is closed")
            now = time.monotonic()
            call = _Call(item, Future(), now)
            key = (item.operation, item.layers)
            ticket = self._batcher.add(call, key, now, priority, math.inf if deadline is None else deadline)
            self._changed.notify()
        call.future.add_done_callback(lambda future: self._forget(ticket) if future.cancelled() else None)
        return call.future

    def close(self, *, drain: bool = False) -> None:
        """Refuse new items, let the running batch end, free the engine. May be called again.

        Parameters
        ----------
        drain
            True to work off what waits first; False to answer it with `UnavailableError`.
        """
        with self._changed:
            self._closing = True
            left = () if drain else self._batcher.drain()
            self._changed.notify()
        self._turn_away(left)
        self._thread.join()

    def _check(self, item: Item) -> None:
        edge = self._grid_size
        if item.image.shape != (edge, edge):
            raise InvalidInputError("image.shape", item.image.shape, f"({edge}, {edge}), the model's grid")
        if item.image.dtype != np.float32:
            raise InvalidInputError("image.dtype", item.image.dtype, "float32")
        if not np.isfinite(item.image).all():
            raise InvalidInputError("image", "an array with NaN or infinite values", "finite values")
        if not -1 <= item.target < self._engine.labels:
            raise InvalidInputError("target", item.target, f"-1 to {self._engine.labels - 1}")
        known = () if item.operation is Operation.PREDICT else self._engine.layers
        unknown = [layer for layer in item.layers if layer not in known]
        if unknown:
            raise InvalidInputError(
                "layers", ", ".join(unknown), ", ".join(known) or f"none with {item.operation.name}"
            )

    def _forget(self, ticket: Ticket[_Call]) -> None:
        with self._changed:
            waited = self._batcher.cancel(ticket)
        if waited:
            ticket.payload.future.set_running_or_notify_cancel()

    def _work(self, ready: Future[None]) -> None:
        try:
            self._engine.warm(self._grid_size, len(self._images))
        except BaseException as error:
            ready.set_exception(error)
            self._engine.close()
            return
        ready.set_result(None)
        try:
            while (decision := self._next()) is not None:
                self._serve(decision)
        except BaseException:
            log.critical("the executor's thread has died", exc_info=True)
        finally:
            self._end()

    def _next(self) -> Decision[_Call] | None:
        """Wait for something to do; None once closed and empty."""
        with self._changed:
            while True:
                now = time.monotonic()
                decision = self._batcher.poll(now)
                if decision.batch or decision.expired:
                    return decision
                if self._closing and not len(self._batcher):
                    return None
                self._changed.wait(None if decision.wake_at is None else decision.wake_at - now)

    def _serve(self, decision: Decision[_Call]) -> None:
        for ticket in decision.expired:
            if ticket.payload.future.set_running_or_notify_cancel():
                ticket.payload.fail(DeadlineError("the deadline passed while the image waited in the queue"))
        if decision.batch is None:
            return
        calls = (ticket.payload for ticket in decision.batch.tickets)
        self._in_flight = [call for call in calls if call.future.set_running_or_notify_cancel()]
        if self._in_flight:
            self._run(self._in_flight)
            self._in_flight = ()
        with self._changed:
            self._batcher.finished(decision.batch, time.monotonic())

    def _run(self, calls: Sequence[_Call]) -> None:
        """Answer calls of one key together; where that fails, in smaller parts, to find the ones to blame."""
        started = time.monotonic()
        try:
            arrays = self._forward(calls)
        except OutOfMemory:
            self._counts = replace(self._counts, out_of_memory=self._counts.out_of_memory + 1)
            log.warning("out of memory with a batch of %d", len(calls))
            self._split(calls, (len(calls) + 1) // 2, EngineError("the device has no memory for one image"))
        except Exception:
            log.exception("the forward pass of a batch of %d failed", len(calls))
            self._split(calls, 1, EngineError("the model's forward pass failed on this image"))
        else:
            self._deliver(calls, arrays, started, time.monotonic() - started)

    def _split(self, calls: Sequence[_Call], size: int, error: EngineError) -> None:
        """Run the calls again, `size` at a time; a single one has had its chance and fails."""
        if len(calls) == 1:
            self._counts = replace(self._counts, failed=self._counts.failed + 1)
            calls[0].fail(error)
            return
        for first in range(0, len(calls), size):
            self._run(calls[first : first + size])

    def _forward(self, calls: Sequence[_Call]) -> Arrays:
        n = len(calls)
        for index, call in enumerate(calls):
            self._images[index] = call.item.image
            self._targets[index] = call.item.target
        item = calls[0].item
        arrays = self._engine.run(item.operation, item.layers, self._images[:n], self._targets[:n])
        lengths = {name: len(array) for name, array in arrays.items() if len(array) != n}
        if lengths:
            raise EngineError(f"the engine answered {n} images with arrays of lengths {lengths}")
        return arrays

    def _deliver(self, calls: Sequence[_Call], arrays: Arrays, started: float, compute_s: float) -> None:
        n = len(calls)
        self._counts = replace(self._counts, batches=self._counts.batches + 1, images=self._counts.images + n)
        for index, call in enumerate(calls):
            rows = {name: array[index, ...] for name, array in arrays.items()}
            call.future.set_result(Output(rows, started - call.submitted, compute_s, n))

    def _end(self) -> None:
        """Leave nothing unanswered, however the thread came to its end."""
        with self._changed:
            self._closing = True
            left = self._batcher.drain()
        for call in self._in_flight:
            if not call.future.done():
                call.fail(UnavailableError("the model's executor stopped"))
        self._turn_away(left)
        self._engine.close()

    @staticmethod
    def _turn_away(tickets: Sequence[Ticket[_Call]]) -> None:
        for ticket in tickets:
            if ticket.payload.future.set_running_or_notify_cancel():
                ticket.payload.fail(UnavailableError("the model's executor is closing"))
