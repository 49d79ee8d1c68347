"""Images on their way: read ahead, sent several together, answered in any order, and asked for again where that helps.

To predict twice is as good as once, so what passes by itself is waited for and tried again: a server that is restarted,
lost or full. What may be one image's fault is found by sending the images of its request one by one. Unary calls rather
than a stream: each has a deadline, fails by itself, and may go to another server than the last. At 16 images a call
they cost no more (docs/score.md).
"""

import time
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from queue import Empty, SimpleQueue
from typing import NamedTuple

import grpc

from limner.channel import MAX_MESSAGE_BYTES
from limner.errors import (
    CancelledError,
    DeadlineError,
    ForbiddenError,
    InternalError,
    InvalidInputError,
    LimnerError,
    NotFoundError,
    OverloadedError,
    UnauthenticatedError,
    UnavailableError,
    UnsupportedError,
    WrongStateError,
    from_rpc,
    local_failure,
)
from limner.images import PARCEL_BYTES, PARCEL_IMAGES, fill_message
from limner.imaging.errors import ImageError
from limner.scoring.calls import Kind, Reply, Scored, results_of
from limner.scoring.fleet import Call, Fleet, Lane
from limner.scoring.sources import Item
from limner.types import Failure, ImageResult, ModelIdentity
from limner.v1 import common_pb2

Answer = tuple[Item, Scored]

# How often an image that is sent by itself may fail before that is held against it.
_ATTEMPTS = 2
# Statuses of single images that say nothing of the image.
_PASSING = frozenset({"UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED"})


class Parcel(NamedTuple):
    """Images that were read: serialised requests, each with the indices of its images; and which could not be read."""

    requests: list[tuple[bytes, list[int]]]
    failures: list[tuple[int, Failure]]


def read_parcel(items: list[Item], *, model: str, kind: Kind) -> Parcel:
    """Read images into requests, in whatever thread or process. An image that cannot be read stops no other."""
    parcel = Parcel([], [])
    messages: list[common_pb2.Image] = []
    indices: list[int] = []
    size = 0
    for index, item in enumerate(items):
        message = common_pb2.Image(id=str(item.position))
        try:
            fill_message(message, item.image)
            _check_size(message)
        except (ImageError, InvalidInputError, OSError) as error:
            parcel.failures.append((index, local_failure(error)))
            continue
        if messages and size + message.ByteSize() > PARCEL_BYTES:
            parcel.requests.append((kind.build(model, messages).SerializeToString(), indices))
            messages, indices, size = [], [], 0
        messages.append(message)
        indices.append(index)
        size += message.ByteSize()
    if messages:
        parcel.requests.append((kind.build(model, messages).SerializeToString(), indices))
    return parcel


def _check_size(message: common_pb2.Image) -> None:
    if message.ByteSize() > MAX_MESSAGE_BYTES - 1024:
        raise ImageError("pixels", f"{message.ByteSize():,} bytes", f"less than {MAX_MESSAGE_BYTES:,}")


@dataclass(slots=True)
class _Request:
    """Images that travel together, as a serialised request, and how often they have failed."""

    payload: bytes
    items: list[Item]
    failures: int = 0

    def alone(self, items: Iterable[Item], kind: Kind) -> "Iterator[_Request]":
        """Give some of its items, each in a request of its own."""
        whole = kind.parse(self.payload)
        by_position = {image.id: image for image in whole.images}
        del whole.images[:]
        for item in items:
            whole.images.append(by_position[str(item.position)])
            yield _Request(whole.SerializeToString(), [item])
            del whole.images[:]


class Flow:
    """Scores images by one model.

    All that is decided is decided in the thread that asks for answers; readers and calls only leave notes for it.

    Parameters
    ----------
    model
        That every answer must come from.
    fleet
        The servers.
    readers, ahead
        What reads images, and how many parcels it is ahead of what is sent.
    patience_s
        As `ScoreOptions` has it.
    """

    def __init__(
        self,
        model: ModelIdentity,
        fleet: Fleet,
        readers: Executor,
        ahead: int,
        *,
        patience_s: float,
    ) -> None:
        self._model = model
        self._fleet = fleet
        self._readers = readers
        self._ahead = ahead
        version = f"{model.name}:{model.version}"
        self._read = partial(read_parcel, model=version, kind=fleet.kind)
        self._patience_s = patience_s
        self._events: SimpleQueue[Callable[[], list[Answer]]] = SimpleQueue()
        self._together = 1  # images read in a parcel: 16, or fewer where they are large
        self._reading = 0
        self._ready: deque[_Request] = deque()
        self._under_way = 0  # requests that are sent and not answered
        self._calls: set[Call] = set()
        self._troubled_since: float | None = None  # when the first call failed after the last answer
        self._source_error: Exception | None = None

    def answers(self, items: Iterator[Item]) -> Generator[list[Answer], None, None]:
        """Give answers as they come; each image has one in the end.

        Raises
        ------
        LimnerError
            The model is gone or is another, the caller is not let in, or for `patience_s` calls failed and none was
            answered; CancelledError where the fleet was closed.
        Exception
            What the items raise, once those that came before are answered.
        """
        # Ctrl-C does not reach the thread where calls begin: gRPC's close waits for ever for one interrupted there.
        with ThreadPoolExecutor(1, thread_name_prefix="sender") as sender:
            try:
                while self._read_ahead(items) or self._reading or self._ready or self._under_way:
                    self._send(sender)
                    if answers := self._next_event():
                        yield answers
                if self._source_error is not None:
                    raise self._source_error
            finally:
                for call in self._calls:
                    call.cancel()

    def _read_ahead(self, items: Iterator[Item]) -> bool:
        """Have images read; return False once there are no more."""
        while self._reading + len(self._ready) < self._ahead:
            parcel = self._next_parcel(items)
            if not parcel:
                return False
            self._reading += 1
            future = self._readers.submit(self._read, parcel)
            future.add_done_callback(partial(self._tell, self._was_read, parcel))
        return True

    def _next_parcel(self, items: Iterator[Item]) -> list[Item]:
        parcel: list[Item] = []
        try:
            for item in islice(items, self._together):
                parcel.append(item)  # noqa: PERF402  what came before an error is kept
        except Exception as error:
            self._source_error = error
        return parcel

    def _was_read(self, items: list[Item], future: "Future[Parcel]") -> list[Answer]:
        self._reading -= 1
        parcel = future.result()
        self._ready.extend(
            _Request(payload, [items[index] for index in indices]) for payload, indices in parcel.requests
        )
        if size := sum(len(payload) for payload, _ in parcel.requests):
            images = len(items) - len(parcel.failures)
            self._together = max(1, min(PARCEL_IMAGES, PARCEL_BYTES * images // size))
        return [(items[index], _failed(items[index], failure)) for index, failure in parcel.failures]

    def _send(self, sender: Executor) -> None:
        """Begin calls as far as the credit goes."""
        self._fleet.check()
        while self._ready:
            request = self._ready[0]
            lane = self._fleet.lane_for(len(request.items), len(request.payload))
            if lane is None:
                return
            self._ready.popleft()
            self._under_way += 1
            lane.sent(len(request.items), len(request.payload))
            begun = sender.submit(lane.begin, request.payload)
            begun.add_done_callback(partial(self._tell, self._was_sent, request, lane))

    def _was_sent(self, request: _Request, lane: Lane, begun: "Future[Call]") -> list[Answer]:
        self._fleet.check()
        call = begun.result()
        self._calls.add(call)
        call.add_done_callback(partial(self._tell, self._ended, request, lane))
        return []

    def _tell(self, what: Callable[..., list[Answer]], *arguments: object) -> None:
        self._events.put(partial(what, *arguments))

    def _next_event(self) -> list[Answer]:
        """Wait for what happens next, or for the end of a pause."""
        to_come = self._reading or self._under_way
        timeout = self._fleet.pause_s if self._ready else None if to_come else 0
        try:
            return self._events.get(timeout=timeout)()
        except Empty:
            return []

    def _ended(self, request: _Request, lane: Lane, call: Call) -> list[Answer]:
        self._calls.discard(call)
        self._under_way -= 1
        lane.sent(-len(request.items), -len(request.payload))
        try:
            reply = call.result()
        except grpc.RpcError as error:
            return self._refused(request, lane, from_rpc(error, lane.address, self._fleet.kind.name))
        return self._answered(request, lane, reply)

    def _answered(self, request: _Request, lane: Lane, reply: Reply) -> list[Answer]:
        if reply.model.digest != self._model.digest:
            raise WrongStateError(
                f"model {self._model} was replaced: its digest at {lane.address} is now {reply.model.digest}"
            )
        results = results_of(reply)
        if [result.id for result in results] != [str(item.position) for item in request.items]:
            raise InternalError(f"the server at {lane.address} did not answer the images that it was sent")
        pairs = list(zip(request.items, results, strict=True))
        answers = [(item, result) for item, result in pairs if not _passing(result)]
        if answers:
            self._troubled_since = None
            lane.answered()
        if again := [item for item, result in pairs if _passing(result)]:
            self._note_trouble(UnavailableError(f"the server at {lane.address} answers no image"))
            self._ready.extendleft(request.alone(again, self._fleet.kind))
            self._pause(lane)
        return answers

    def _refused(self, request: _Request, lane: Lane, error: LimnerError) -> list[Answer]:
        """Decide what becomes of a request that failed as a whole."""
        self._note_trouble(error)
        match error:
            case (
                InvalidInputError()
                | NotFoundError()
                | WrongStateError()
                | UnsupportedError()
                | UnauthenticatedError()
                | ForbiddenError()
            ):
                if len(self._fleet.lanes) > 1:
                    error.args = (f"{lane.address}: {error}",)
                raise error
            case UnavailableError() | CancelledError():
                return self._later(request, lane)
            case OverloadedError() if error.passing:
                return self._later(request, lane)
            case InternalError() if not error.request_id:  # the transport's, not the server's
                return self._later(request, lane)
            case DeadlineError():
                lane.slower()
                if len(self._fleet.lanes) > 1:  # it may hang, and another would answer
                    self._pause(lane)
        if len(request.items) > 1:
            self._ready.extendleft(request.alone(request.items, self._fleet.kind))
            return []
        request.failures += 1
        if request.failures < _ATTEMPTS and not isinstance(error, OverloadedError):
            return self._later(request, lane)
        failure = Failure(code=error.code.name, message=str(error))
        return [(item, _failed(item, failure)) for item in request.items]

    def _note_trouble(self, error: LimnerError) -> None:
        """Raise the error where nothing else has come for too long."""
        now = time.monotonic()
        self._troubled_since = self._troubled_since or now
        if now - self._troubled_since > self._patience_s:
            raise error

    def _later(self, request: _Request, lane: Lane) -> list[Answer]:
        self._ready.appendleft(request)
        self._pause(lane)
        return []

    def _pause(self, lane: Lane) -> None:
        lane.pause(at_once=len(self._fleet.lanes) == 1)


def _passing(result: Scored) -> bool:
    return result.error is not None and result.error.code in _PASSING


def _failed(item: Item, failure: Failure) -> ImageResult:
    return ImageResult(id=item.image.id, subject=item.image.subject, error=failure)
