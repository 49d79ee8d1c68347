"""How often, how many and how large: token buckets for each principal, counted in each serving process by itself."""

import asyncio
import time
from collections import OrderedDict
from collections.abc import Callable

from google.protobuf.message import Message

from limner_server.access.config import Limits
from limner_server.access.principal import Principal
from limner_server.errors import MessageTooLargeError, RateLimitError

MAX_IMAGES = 1024
"""Images that one request may bring, whoever makes it."""
KEPT = 10_000
"""Principals whose buckets are kept, at most; the one that called longest ago goes first, with full buckets."""


class Bucket:
    """A token bucket that holds what comes in a second, and at least one.

    What is larger than that is let through when the bucket is full, and paid for afterwards: the average is kept.
    """

    def __init__(self, per_s: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._per_s = per_s
        self._size = max(per_s, 1.0)
        self._clock = clock
        self._level = self._size
        self._seen = clock()

    def wait_s(self, count: int) -> float:
        """Take `count` and return 0, or take nothing and return the seconds after which that many can be had."""
        if not count:
            return 0.0
        now = self._clock()
        self._level = min(self._size, self._level + (now - self._seen) * self._per_s)
        self._seen = now
        missing = min(count, self._size) - self._level
        if missing > 1e-9:
            return missing / self._per_s
        self._level -= count
        return 0.0


class Meter:
    """The buckets of one principal."""

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self.limits = limits
        self._calls = Bucket(limits.calls_per_s, clock) if limits.calls_per_s else None
        self._images = Bucket(limits.images_per_s, clock) if limits.images_per_s else None

    def check_call(self) -> None:
        """Count a call. RateLimitError where it is one too many."""
        if self._calls and (wait := self._calls.wait_s(1)):
            raise RateLimitError(f"{self.limits.calls_per_s:g} calls a second", wait)

    def check(self, message: Message) -> None:
        """Count the message of a call. MessageTooLargeError, or RateLimitError where its images are too many."""
        self._check_size(message)
        if wait := self._images_wait_s(message):
            raise RateLimitError(f"{self.limits.images_per_s:g} images a second", wait)

    async def pace(self, message: Message) -> None:
        """Count a message of a stream once its images may come, however long that is. MessageTooLargeError."""
        self._check_size(message)
        while wait := self._images_wait_s(message):  # noqa: ASYNC110 - it is time that is waited for
            await asyncio.sleep(wait)

    def _images_wait_s(self, message: Message) -> float:
        return self._images.wait_s(images_in(message)) if self._images else 0.0

    def _check_size(self, message: Message) -> None:
        if self.limits.message_mb and message.ByteSize() > self.limits.message_mb * 1024 * 1024:
            raise MessageTooLargeError(message.ByteSize(), self.limits.message_mb)


class Meters:
    """The meters of all principals that called lately."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._meters: OrderedDict[str, Meter] = OrderedDict()

    def of(self, principal: Principal) -> Meter:
        """Return a principal's meter; a new one where its limits are new."""
        meter = self._meters.get(principal.name)
        if meter is None or meter.limits != principal.limits:
            meter = self._meters[principal.name] = Meter(principal.limits, self._clock)
        self._meters.move_to_end(principal.name)
        if len(self._meters) > KEPT:
            self._meters.popitem(last=False)
        return meter


def images_in(message: Message) -> int:
    """Return how many images a request brings: of its fields `images`, `image`, `slice`, or of its first tensor.

    A tensor is counted by the shape that it claims, before anybody has looked whether it is true; so by that no more
    than a request may bring.
    """
    fields = message.DESCRIPTOR.fields_by_name
    if "images" in fields:
        return len(message.images)  # type: ignore[attr-defined]
    for name in ("image", "slice"):
        if name in fields:
            return int(message.HasField(name))
    if "inputs" in fields:  # of Open Inference, (n, size, size)
        shape = message.inputs[0].shape if message.inputs else ()  # type: ignore[attr-defined]
        return min(max(int(shape[0]), 1), MAX_IMAGES) if shape else 0
    return 0
