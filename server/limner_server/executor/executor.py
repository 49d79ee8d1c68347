"""The way into a model: submit an item, get a future. One thread for each of the engine's lanes runs items in batches.

Stands between `rpc` and an engine on the request path (wire → rpc → executor → engine → reply). What runs together is
decided by `batcher`; what a forward pass is, by the engine. Knows nothing of gRPC, models' names or files.
"""

import logging
import math
import os
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from contextvars import Context, copy_context
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from limner_server.errors import DeadlineError, EngineError, InvalidInputError, LimnerError, UnavailableError
from limner_server.executor.batcher import Batcher, Decision, Ticket
from limner_server.executor.engine import LARGEST, Arrays, Engine, Item, Operation, OutOfMemory, Output

_DTYPES = (np.dtype(np.uint8), np.dtype(np.uint16), np.dtype(np.int16), np.dtype(np.float32))

_LANE_NICENESS = 5
"""Lanes yield to the threads that receive, refuse and answer calls: the busier a server is, the more it needs those."""

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
        Images that were run and answered with an error.
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
    context: Context  # of who submitted it, for what is logged of it alone

    def fail(self, error: LimnerError) -> None:
        self.future.set_exception(error)


@dataclass(slots=True)
class Places:
    """Those that are kept in the queue for the images of one call, and not taken yet."""

    left: int


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
        Longest wait for a batch to fill, in seconds.
    max_queue_images
        Images that may wait.
    max_queue_s
        Longest wait that a call is admitted to, in seconds, as far as can be told.

    Raises
    ------
    Exception
        Whatever the engine raised when it was warmed.
    """

    def __init__(
        self,
        engine: Engine,
        grid_size: int,
        max_batch_size: int,
        max_queue_delay_s: float,
        max_queue_images: int,
        max_queue_s: float = math.inf,
    ) -> None:
        self._engine = engine
        self._grid_size = grid_size
        self._max_queue_images = max_queue_images
        self._changed = threading.Condition()
        self._closing = False
        self._batch_sizes: Counter[int] = Counter()
        self._failed = self._out_of_memory = 0
        try:
            self._batch_size = engine.warm(grid_size, max_batch_size)
        except BaseException:
            engine.close()
            raise
        self._batcher: Batcher[_Call] = Batcher(
            self._batch_size, max_queue_delay_s, max_queue_images, engine.lanes, engine.spread, max_queue_s
        )
        self._lanes = [
            threading.Thread(target=self._work, name=f"limner-lane-{lane}", daemon=True) for lane in range(engine.lanes)
        ]
        self._open_lanes = len(self._lanes)
        for thread in self._lanes:
            thread.start()

    @property
    def healthy(self) -> bool:
        """Whether an item submitted now would be worked on."""
        return not self._closing and self._engine.healthy

    @property
    def window(self) -> int:
        """Images of one caller that keep every lane busy: those at work, and as many that wait."""
        return 2 * self._batch_size * len(self._lanes)

    @property
    def waiting(self) -> int:
        """Number of images that wait."""
        with self._changed:
            return len(self._batcher)

    @property
    def max_waiting(self) -> int:
        """Number of images that may wait."""
        return self._max_queue_images

    @property
    def counts(self) -> Counts:
        """What was done so far."""
        with self._changed:
            images = sum(size * batches for size, batches in self._batch_sizes.items())
            return Counts(self._batch_sizes.total(), images, self._failed, self._out_of_memory)

    @property
    def batch_sizes(self) -> Mapping[int, int]:
        """Forward passes that succeeded, by how many images they had."""
        with self._changed:
            return dict(self._batch_sizes)

    @contextmanager
    def admitted(self, images: int, priority: int = 0, deadline: float | None = None) -> Iterator[Places]:
        """Keep places for all images of a call, or refuse it before anything is done for it; may be called anywhere.

        Raises
        ------
        QueueFullError
            It would have to wait too long.
        """
        with self._changed:
            self._batcher.reserve(images, time.monotonic(), priority, math.inf if deadline is None else deadline)
        places = Places(images)
        try:
            yield places
        finally:
            with self._changed:
                self._batcher.release(places.left)

    def submit(
        self, item: Item, priority: int = 0, deadline: float | None = None, places: Places | None = None
    ) -> Future[Output]:
        """Queue one item. Returns at once; may be called from any thread.

        Parameters
        ----------
        item
            The image, and what is wanted of it.
        priority
            0 to 10; what waits with a higher one is run first.
        deadline
            Time of `time.monotonic` from which the work must not start any more. Default: none.
        places
            Of its call, where that was `admitted`: it takes one of them, as long as there are any.

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
            The executor is closed, or one of its threads has died.
        """
        self._check(item)
        with self._changed:
            if self._closing:
                raise UnavailableError("the model's executor is closed")
            now = time.monotonic()
            call = _Call(item, Future(), now, copy_context())
            latest = math.inf if deadline is None else deadline
            reserved = places is not None and places.left > 0
            ticket = self._batcher.add(call, _key(item), now, priority, latest, reserved=reserved)
            if places is not None and reserved:
                places.left -= 1
            # A sleeping lane is woken for a batch that is due, or to wait for what joins the first; not for each image.
            if len(self._batcher) == 1 or self._batcher.due(now):
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
            self._changed.notify_all()
        self._turn_away(left)
        for thread in self._lanes:
            thread.join()

    def _check(self, item: Item) -> None:
        edge = self._grid_size
        if item.image.shape != (edge, edge):
            raise InvalidInputError("image.shape", item.image.shape, f"({edge}, {edge}), the model's grid")
        if item.image.dtype not in _DTYPES:
            raise InvalidInputError("image.dtype", item.image.dtype, ", ".join(map(str, _DTYPES)))
        if item.image.dtype == np.float32:
            low, high = item.image.min(), item.image.max()
            if not -LARGEST <= low <= high <= LARGEST:  # NaN is neither
                raise InvalidInputError("image", f"from {low:g} to {high:g}", f"finite values within ±{LARGEST:g}")
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

    def _work(self) -> None:
        """Serve one lane until the executor is closed."""
        wanted: Sequence[_Call] = ()
        try:
            if sys.platform == "linux":  # where it is this thread's alone
                os.nice(_LANE_NICENESS)
            staging = self._engine.staging(self._batch_size, self._grid_size)
            while (decision := self._next()) is not None:
                for ticket in decision.expired:
                    if ticket.payload.future.set_running_or_notify_cancel():
                        ticket.payload.fail(DeadlineError("the deadline passed while the image waited in the queue"))
                if decision.batch is None:
                    continue
                calls = (ticket.payload for ticket in decision.batch.tickets)
                wanted = [call for call in calls if call.future.set_running_or_notify_cancel()]
                if wanted:
                    self._run(wanted, staging)
                    wanted = ()
                with self._changed:
                    self._batcher.finished(decision.batch, time.monotonic())
        except BaseException:
            log.critical("a thread of the executor has died", exc_info=True)
        finally:
            self._end_lane(wanted)

    def _next(self) -> Decision[_Call] | None:
        """Wait for something to do; None once closed and empty."""
        with self._changed:
            while True:
                now = time.monotonic()
                decision = self._batcher.poll(now)
                if decision.batch or decision.expired:
                    self._changed.notify()  # another free lane may find its share of the rest
                    return decision
                if self._closing and not len(self._batcher):
                    return None
                self._changed.wait(None if decision.wake_at is None else decision.wake_at - now)

    def _run(self, calls: Sequence[_Call], staging: NDArray[np.float32]) -> None:
        """Answer calls of one key together; where that fails, in smaller parts, to find the ones to blame."""
        started = time.monotonic()
        try:
            arrays = self._forward(calls, staging)
        except OutOfMemory:
            half = (len(calls) + 1) // 2
            log.warning("out of memory with a batch of %d; from now on %d at most", len(calls), half)
            with self._changed:
                self._out_of_memory += 1
                self._batcher.limit(_key(calls[0].item), half)
            self._split(calls, half, EngineError("the device has no memory for one image"), staging)
        except LimnerError as error:
            self._fail(calls, error)
        except Exception:
            context = calls[0].context if len(calls) == 1 else copy_context()
            context.run(log.exception, "the forward pass of a batch of %d failed", len(calls))
            self._split(calls, 1, EngineError("the model's forward pass failed on this image"), staging)
        else:
            self._deliver(calls, arrays, started, time.monotonic() - started)

    def _split(self, calls: Sequence[_Call], size: int, error: EngineError, staging: NDArray[np.float32]) -> None:
        """Run the calls again, `size` at a time; a single one has had its chance and fails."""
        if len(calls) == 1:
            self._fail(calls, error)
            return
        for first in range(0, len(calls), size):
            self._run(calls[first : first + size], staging)

    def _forward(self, calls: Sequence[_Call], staging: NDArray[np.float32]) -> Arrays:
        n = len(calls)
        for row, call in zip(staging, calls, strict=False):
            row[...] = call.item.image
        targets = np.array([call.item.target for call in calls], np.int64)
        item = calls[0].item
        arrays = self._engine.run(item.operation, item.layers, staging[:n], targets)
        lengths = {name: len(array) for name, array in arrays.items() if len(array) != n}
        if lengths:
            raise RuntimeError(f"the engine answered {n} images with arrays of lengths {lengths}")
        return arrays

    def _deliver(self, calls: Sequence[_Call], arrays: Arrays, started: float, compute_s: float) -> None:
        n = len(calls)
        with self._changed:
            self._batch_sizes[n] += 1
        for index, call in enumerate(calls):
            rows = {name: array[index, ...] for name, array in arrays.items()}
            call.future.set_result(Output(rows, started - call.submitted, compute_s, n))

    def _fail(self, calls: Sequence[_Call], error: LimnerError) -> None:
        with self._changed:
            self._failed += len(calls)
        for call in calls:
            call.fail(error)

    def _end_lane(self, unanswered: Sequence[_Call]) -> None:
        """Leave nothing unanswered, however the thread came to its end; the last one frees the engine."""
        with self._changed:
            self._closing = True
            left = self._batcher.drain()
            self._open_lanes -= 1
            last = not self._open_lanes
            self._changed.notify_all()
        for call in unanswered:
            if not call.future.done():
                call.fail(UnavailableError("the model's executor stopped"))
        self._turn_away(left)
        if last:
            self._engine.close()

    @staticmethod
    def _turn_away(tickets: Sequence[Ticket[_Call]]) -> None:
        for ticket in tickets:
            if ticket.payload.future.set_running_or_notify_cancel():
                ticket.payload.fail(UnavailableError("the model's executor is closing"))


def _key(item: Item) -> tuple[Operation, tuple[str, ...]]:
    """What items of one batch have in common."""
    return item.operation, item.layers
