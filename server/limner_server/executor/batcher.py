"""Decides which images run together, and when. Pure logic: no threads, no torch, and its clock is the caller's.

`executor` owns the threads, the futures and the engine; this module only says what a free lane should do next. A lane
is room for one batch under way; an engine has one or more.

Invariants, whatever the arrivals, cancellations, deadlines and failures (tests/server/executor/test_batcher.py):

1. Every admitted ticket leaves exactly once: in a batch, as expired, by `cancel` or by `drain`.
2. At most `max_queue_images` tickets wait or have a place reserved, but for a call that finds none; one more is
   refused, and nothing else changes. What has a place is not refused.
3. A batch holds 1 to `max_batch_size` tickets, or to the key's limit if that is lower, all with one key.
4. Tickets of equal key and priority leave in the order of arrival.
5. A batch is led by the ticket of the lowest rank: its arrival, `HEAD_START_S` earlier for each step of priority. No
   batch led by what arrived more than `MAX_PRIORITY * HEAD_START_S` later goes before a ticket, so nothing starves.
6. A ticket whose deadline has passed is never put in a batch.
7. While something waits, a free lane stands still for `max_queue_delay_s` at most; for a lone caller, or after
   that long a pause, not at all.
8. Where lanes are spread over, a batch takes no more than its share of what waits: the free lanes take equal parts.
"""

import heapq
import itertools
import math
from collections import OrderedDict
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from limner_server.errors import InvalidInputError, QueueFullError

MAX_PRIORITY = 10
HEAD_START_S = 1.0
"""Each step of priority counts as having arrived so many seconds earlier."""

GATHER_SHARE = 0.25
"""Longest wait for a batch to fill, as a share of the time that the last one took."""

_UNMEASURED_RETRY_S = 1.0
_SMOOTHING = 0.2

T = TypeVar("T")


@dataclass(frozen=True, eq=False, slots=True)
class Ticket(Generic[T]):
    """One image that waits.

    Attributes
    ----------
    payload
        What the caller wants back with it.
    key
        Tickets are batched together when their keys are equal.
    priority
        0 to `MAX_PRIORITY`, the highest.
    deadline
        Time from which it must not start any more, in seconds of the caller's clock; infinite where there is none.
    arrived
        When it was admitted, in seconds of the caller's clock.
    sequence
        Number of tickets admitted before it.
    """

    payload: T
    key: Hashable
    priority: int
    deadline: float
    arrived: float
    sequence: int

    @property
    def rank(self) -> tuple[float, int]:
        """What waits is served in ascending order of this."""
        return self.arrived - HEAD_START_S * self.priority, self.sequence


@dataclass(frozen=True, eq=False, slots=True)
class Batch(Generic[T]):
    """Tickets to run together, in order of rank."""

    key: Hashable
    tickets: tuple[Ticket[T], ...]
    started: float


@dataclass(frozen=True, eq=False, slots=True)
class Decision(Generic[T]):
    """What to do now.

    Attributes
    ----------
    batch
        To be run now, and reported to `finished`; None: nothing yet.
    expired
        Tickets whose deadline passed while they waited.
    wake_at
        Without a batch: ask again then, or at the next arrival if that is sooner. None: only at the next arrival.
    """

    batch: Batch[T] | None
    expired: tuple[Ticket[T], ...]
    wake_at: float | None


class Batcher(Generic[T]):
    """A bounded queue that forms batches: at once when a lane is idle, gathering while all are busy.

    After a batch, those who got their answers are likely to ask again: the next batch waits until as many tickets are
    there as took part or were waiting when the last one ended, `max_queue_delay_s` at most and no longer than a quarter
    of what that one took, which is less than a fuller batch saves. So a lone caller is never kept waiting, and n
    callers in a loop end up in batches of n. A wrong guess costs a single wait.

    Times given to the methods must not run backwards. `poll` is for a lane that is free; the batch that it gives takes
    the lane until `finished`.

    Parameters
    ----------
    max_batch_size
        Tickets in a batch, at most; 1 or more.
    max_queue_delay_s
        Longest wait for a batch to fill, in seconds; 0 or more.
    max_queue_images
        Tickets that may wait; 1 or more.
    max_queue_s
        Longest wait that a call is admitted to, in seconds, as far as can be told.
    lanes
        Batches that may be under way at a time; 1 or more.
    spread
        Whether free lanes take equal parts of what waits, or the first as much as it may.
    """

    def __init__(
        self,
        max_batch_size: int,
        max_queue_delay_s: float,
        max_queue_images: int,
        lanes: int = 1,
        spread: bool = False,
        max_queue_s: float = math.inf,
    ) -> None:
        self._max_batch_size = max_batch_size
        self._max_queue_delay_s = max_queue_delay_s
        self._max_queue_images = max_queue_images
        self._max_queue_s = max_queue_s
        self._reserved = 0
        self._lanes = lanes
        self._free_lanes = lanes
        self._spread = spread
        self._limits: dict[Hashable, int] = {}
        # One line for each key and priority, in order of arrival; an empty line is removed.
        self._lines: dict[tuple[Hashable, int], OrderedDict[int, Ticket[T]]] = {}
        self._waiting = 0
        self._sequence = itertools.count()
        self._next_deadline = math.inf
        self._last_key: Hashable = None
        self._demand = 0
        self._gather_until = -math.inf
        self._seconds_per_image: float | None = None

    def __len__(self) -> int:
        """Number of tickets that wait."""
        return self._waiting

    def reserve(self, images: int, now: float, priority: int = 0, deadline: float = math.inf) -> None:
        """Keep places for the images of a call, so that none of it is worked on in vain; each is taken by `add`.

        Whoever finds nothing ahead is admitted, and so is who finds less than one batch for each lane, however slow.

        Raises
        ------
        QueueFullError
            As many images wait as may, or what is ahead takes longer than a call may wait, or than its deadline allows.
        """
        ahead = self._reserved + sum(len(line) for (_, level), line in self._lines.items() if level >= priority)
        wait_s = ahead * (self._seconds_per_image or 0.0) / self._lanes
        if ahead:
            if self._waiting + self._reserved + images > self._max_queue_images:
                raise self._full()
            if wait_s > self._max_queue_s and ahead >= self._max_batch_size * self._lanes:
                reason = f"what waits takes {wait_s:.2g} s, over the limit of {self._max_queue_s:.2g} s"
                raise QueueFullError(reason, self._retry_after_s())
            if now + wait_s >= deadline:
                reason = f"what waits takes {wait_s:.2g} s, and the deadline is before that"
                raise QueueFullError(reason, self._retry_after_s())
        self._reserved += images

    def release(self, images: int) -> None:
        """Give places back that are not needed after all."""
        self._reserved -= images

    def add(
        self,
        payload: T,
        key: Hashable,
        now: float,
        priority: int = 0,
        deadline: float = math.inf,
        *,
        reserved: bool = False,
    ) -> Ticket[T]:
        """Admit one image; to a place that `reserve` has kept, where `reserved`.

        Raises
        ------
        InvalidInputError
            The priority is out of range.
        QueueFullError
            As many images wait as may; says when half of them should be done.
        """
        if not 0 <= priority <= MAX_PRIORITY:
            raise InvalidInputError("priority", priority, f"0 to {MAX_PRIORITY}")
        if reserved:
            self._reserved -= 1
        elif self._waiting + self._reserved >= self._max_queue_images:
            raise self._full()
        ticket = Ticket(payload, key, priority, deadline, now, next(self._sequence))
        self._lines.setdefault((key, priority), OrderedDict())[ticket.sequence] = ticket
        self._waiting += 1
        self._next_deadline = min(self._next_deadline, deadline)
        return ticket

    def cancel(self, ticket: Ticket[T]) -> bool:
        """Drop a ticket whose caller is gone; False where it no longer waits."""
        line = self._lines.get((ticket.key, ticket.priority))
        if line is None or ticket.sequence not in line:
            return False
        self._remove(ticket)
        return True

    def due(self, now: float) -> bool:
        """Whether a free lane that polled at `now` would be given a batch, were there a free lane."""
        lead = self._lead()
        return lead is not None and not self._gathers(lead.key, now)

    def limit(self, key: Hashable, size: int) -> None:
        """Let no further batch of this key hold more than `size` tickets: the device has no memory for more."""
        self._limits[key] = min(size, self._limit_of(key))

    def poll(self, now: float) -> Decision[T]:
        """Say what a free lane should do at `now`."""
        expired = self._expire(now)
        lead = self._lead()
        if lead is None:
            return Decision(None, expired, None)
        if self._gathers(lead.key, now):
            return Decision(None, expired, self._gather_until)
        batch = Batch(lead.key, self._take(lead.key), now)
        self._free_lanes -= 1
        return Decision(batch, expired, None)

    def finished(self, batch: Batch[T], now: float) -> None:
        """Note that a batch has ended, well or not."""
        images = len(batch.tickets)
        seconds = (now - batch.started) / images
        known = seconds if self._seconds_per_image is None else self._seconds_per_image
        self._seconds_per_image = known + _SMOOTHING * (seconds - known)
        self._last_key = batch.key
        self._demand = images + self._waiting_for(batch.key)
        self._free_lanes += 1
        if now >= self._gather_until:  # a lane that gathers already is not kept waiting longer by another one's end
            self._gather_until = now + min(self._max_queue_delay_s, GATHER_SHARE * (now - batch.started))

    def drain(self) -> tuple[Ticket[T], ...]:
        """Take out everything that waits, in order of rank."""
        tickets = tuple(sorted(self._all(), key=_rank))
        self._lines.clear()
        self._waiting = 0
        return tickets

    def _all(self) -> Iterator[Ticket[T]]:
        return (ticket for line in self._lines.values() for ticket in line.values())

    def _lead(self) -> Ticket[T] | None:
        return min((next(iter(line.values())) for line in self._lines.values()), key=_rank, default=None)

    def _gathers(self, key: Hashable, now: float) -> bool:
        """Whether a batch of this key is worth waiting for: those who were answered last are likely to ask again."""
        if now >= self._gather_until or key != self._last_key:
            return False
        return self._waiting_for(key) < min(self._demand, self._limit_of(key))

    def _limit_of(self, key: Hashable) -> int:
        return self._limits.get(key, self._max_batch_size)

    def _lines_of(self, key: Hashable) -> list[OrderedDict[int, Ticket[T]]]:
        return [line for (other, _), line in self._lines.items() if other == key]

    def _waiting_for(self, key: Hashable) -> int:
        return sum(len(line) for line in self._lines_of(key))

    def _take(self, key: Hashable) -> tuple[Ticket[T], ...]:
        in_order = heapq.merge(*(line.values() for line in self._lines_of(key)), key=_rank)
        size = self._limit_of(key)
        if self._spread:
            size = min(size, math.ceil(self._waiting_for(key) / self._free_lanes))
        tickets = tuple(itertools.islice(in_order, size))
        for ticket in tickets:
            self._remove(ticket)
        return tickets

    def _expire(self, now: float) -> tuple[Ticket[T], ...]:
        if now < self._next_deadline:
            return ()
        expired = tuple(ticket for ticket in self._all() if ticket.deadline <= now)
        for ticket in expired:
            self._remove(ticket)
        self._next_deadline = min((ticket.deadline for ticket in self._all()), default=math.inf)
        return expired

    def _remove(self, ticket: Ticket[T]) -> None:
        line = self._lines[ticket.key, ticket.priority]
        del line[ticket.sequence]
        if not line:
            del self._lines[ticket.key, ticket.priority]
        self._waiting -= 1

    def _full(self) -> QueueFullError:
        return QueueFullError(f"the queue holds its limit of {self._max_queue_images} images", self._retry_after_s())

    def _retry_after_s(self) -> float:
        if self._seconds_per_image is None:
            return _UNMEASURED_RETRY_S
        return self._seconds_per_image * (self._waiting + self._reserved) / self._lanes / 2


def _rank(ticket: Ticket[T]) -> tuple[float, int]:
    return ticket.rank
