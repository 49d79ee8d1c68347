"""The servers of a run: how much each has been sent, and whether it is left alone for a while.

A call goes to the server with the fewest images under way, so that a fast one, which answers sooner, gets more of
them. One that fails is given nothing for a while, each time longer, then a single call until it answers again.
"""

import threading
import time
from collections.abc import Callable
from functools import partial
from random import uniform
from typing import Self, TypeAlias

import grpc

from limner.channel import POLL_S
from limner.errors import CancelledError, UnavailableError
from limner.scoring.calls import Kind, Reply
from limner.servers import Servers

Call: TypeAlias = "grpc.Future[Reply]"

LOOK_UP_S = 5.0
"""How often names are looked up: a server that Kubernetes replaces has another address."""

# Pixels that one server is sent and has not answered, at most, but for a single image.
_MOST_BYTES = 64 * 1024 * 1024
_LONGEST_PAUSE_S = 5.0


class Lane:
    """One server.

    Parameters
    ----------
    begin
        Begins a call with a serialised request; each call has a deadline.
    most
        Images that are sent and not answered, at most.
    close
        Ends its connection.

    Attributes
    ----------
    images
        That are sent and not answered.
    paused_until
        When it is to be asked again, by the monotonic clock.
    """

    def __init__(
        self, address: str, begin: Callable[[bytes], Call], most: int, close: Callable[[], None] = lambda: None
    ) -> None:
        self.address = address
        self.begin = begin
        self.close = close
        self._most = most
        self.images = self._bytes = 0
        self._pauses = 0  # since its last answer
        self.paused_until = 0.0

    def has_room(self, images: int, size: int) -> bool:
        """Whether it may be sent so many images of so many bytes now."""
        if time.monotonic() < self.paused_until:
            return False
        if not self.images:
            return True
        return not self._pauses and self.images + images <= self._most and self._bytes + size <= _MOST_BYTES

    def sent(self, images: int, size: int) -> None:
        """Count what it is sent, or with negative numbers what it is sent no longer."""
        self.images += images
        self._bytes += size

    def answered(self) -> None:
        """Note that it answers."""
        self._pauses = 0

    def slower(self) -> None:
        """Have it sent less: more waits there than is answered in time."""
        self._most = max(1, self._most // 2)

    def pause(self, *, at_once: bool) -> None:
        """Send it nothing for a while, each time longer; the first time `at_once` where it is the only one."""
        now = time.monotonic()
        if now < self.paused_until:
            return
        if self._pauses or not at_once:
            longest = min(POLL_S * 2 ** min(self._pauses, 10), _LONGEST_PAUSE_S)
            self.paused_until = now + uniform(0.5, 1.0) * longest  # noqa: S311
        self._pauses += 1


class Fleet:
    """The servers of a run, each with a connection of its own; names are looked up again all the while.

    Parameters
    ----------
    kind
        The call that is made.
    timeout
        Of a call, in seconds.
    in_flight
        Images that one server is sent and has not answered, at most.

    Raises
    ------
    UnavailableError
        A name stands for nothing.
    """

    def __init__(self, servers: Servers, kind: Kind, timeout: float, in_flight: int) -> None:
        self.kind = kind
        self._servers = servers
        self._timeout = timeout
        self._most = in_flight
        self._closed = threading.Event()
        self.lanes: tuple[Lane, ...] = ()
        self._gone: list[Lane] = []
        self.address = servers.address
        self._look_up()
        if servers.changing:
            threading.Thread(target=self._follow, daemon=True, name="look-up").start()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End all connections, from whatever thread; a run that is under way raises CancelledError."""
        self._closed.set()
        for lane in (*self.lanes, *self._gone):
            lane.close()

    def check(self) -> None:
        """CancelledError where it is closed."""
        if self._closed.is_set():
            raise CancelledError("the run was stopped")

    def lane_for(self, images: int, size: int) -> Lane | None:
        """Return the server that is to be sent so many images of so many bytes, None where none has room."""
        return min(
            (lane for lane in self.lanes if lane.has_room(images, size)), key=lambda lane: lane.images, default=None
        )

    @property
    def pause_s(self) -> float:
        """How long until something changes by itself."""
        now = time.monotonic()
        return min((lane.paused_until - now for lane in self.lanes if lane.paused_until > now), default=POLL_S)

    def _follow(self) -> None:
        while not self._closed.wait(LOOK_UP_S):
            try:
                self._look_up()
            except UnavailableError:
                continue  # those that are known may still answer
        self.close()  # what was opened meanwhile

    def _look_up(self) -> None:
        """Take up servers that are new, and leave those that are gone; their calls end by themselves."""
        known = {lane.address: lane for lane in self.lanes}
        lanes = []
        for endpoint in self._servers.each():
            lane = known.pop(endpoint.address, None)
            if lane is None:
                channel = endpoint.open()
                call: grpc.UnaryUnaryMultiCallable[bytes, Reply] = channel.unary_unary(
                    self.kind.path, response_deserializer=self.kind.parse_reply
                )
                begin = partial(call.future, timeout=self._timeout)
                lane = Lane(endpoint.address, begin, self._most, channel.close)
            lanes.append(lane)
        self.lanes = tuple(lanes)
        for gone in self._gone:
            if not gone.images:
                gone.close()
        self._gone = [*(gone for gone in self._gone if gone.images), *known.values()]
