"""Decides which images run together, and when. Pure logic: no threads, no torch, and its clock is the caller's.

`executor` owns the thread, the futures and the engine; this module only says what to do next.

Invariants, whatever the arrivals, cancellations, deadlines and failures (tests/server/executor/test_batcher.py):

1. Every admitted ticket leaves exactly once: in a batch, as expired, by `cancel` or by `drain`.
2. At most `max_queue_images` tickets wait; one more is refused, and nothing else changes.
3. A batch holds 1 to `max_batch_size` tickets, all with one key.
4. Tickets of equal key and priority leave in the order of arrival.
5. A batch is led by the ticket of the lowest rank: its arrival, `HEAD_START_S` earlier for each step of priority. No
   batch led by what arrived more than `MAX_PRIORITY * HEAD_START_S` later goes before a ticket, so nothing starves.
6. A ticket whose deadline has passed is never put in a batch.
7. While something waits, a free engine stands still for `max_queue_delay_s` at most; for a lone caller, or after
   that long a pause, not at all.
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
    """A bounded queue that forms batches: at once when the engine is idle, gathering while it is busy.

    After a batch, those who got their answers are likely to ask again: the next batch waits, `max_queue_delay_s` at
    most, until as many tickets are there as took part or were waiting when the last one ended. So a lone caller is
    never kept waiting, and n callers in a loop end up in batches of n. A wrong guess costs a single wait.

    Times given to the methods must not run backwards.

    Parameters
    ----------
    max_batch_size
        Tickets in a batch, at most; 1 or more.
    max_queue_delay_s
        Longest wait for a batch to fill, in seconds; 0 or more.
    max_queue_images
        Tickets that may wait; 1 or more.
    """

    def __init__(self, max_batch_size: int, max_queue_delay_s: float, max_queue_images: int) -> None:
        self._max_batch_size = max_batch_size
        self._max_queue_delay_s = max_queue_delay_s
        self._max_queue_images = max_queue_images
        # One lane for each key and priority, in order of arrival; an empty lane is removed.
        self._lanes: dict[tuple[Hashable, int], OrderedDict[int, Ticket[T]]] = {}
        self._waiting = 0
        self._sequence = itertools.count()
        self._next_deadline = math.inf
        self._last_key: Hashable = None
        self._demand = 0
        self._free_since = -math.inf
        self._seconds_per_image: float | None = None

    def __len__(self) -> int:
        """Number of tickets that wait."""
        return self._waiting

    def add(self, payload: T, key: Hashable, now: float, priority: int = 0, deadline: float = math.inf) -> Ticket[T]:
        """Admit one image.

        Raises
        ------
        InvalidInputError
            The priority is out of range.
        QueueFullError
            As many images wait as may; says when half of them should be done.
        """
        if not 0 <= priority <= MAX_PRIORITY:
            raise InvalidInputError("priority", priority, f"0 to {MAX_PRIORITY}")
        if self._waiting >= self._max_queue_images:
            raise QueueFullError(self._max_queue_images, self._retry_after_s())
        ticket = Ticket(payload, key, priority, deadline, now, next(self._sequence))
        self._lanes.setdefault((key, priority), OrderedDict())[ticket.sequence] = ticket
        self._waiting += 1
        self._next_deadline = min(self._next_deadline, deadline)
        return ticket

    def cancel(self, ticket: Ticket[T]) -> bool:
        """Drop a ticket whose caller is gone; False where it no longer waits."""
        lane = self._lanes.get((ticket.key, ticket.priority))
        if lane is None or ticket.sequence not in lane:
            return False
        self._remove(ticket)
        return True

    def poll(self, now: float) -> Decision[T]:
        """Say what a free engine should do at `now`."""
        expired = self._expire(now)
        lead = min((next(iter(lane.values())) for lane in self._lanes.values()), key=_rank, default=None)
        if lead is None:
            return Decision(None, expired, None)
        gather_until = self._free_since + self._max_queue_delay_s
        if now < gather_until and self._expects_more(lead.key):
            return Decision(None, expired, gather_until)
        return Decision(Batch(lead.key, self._take(lead.key), now), expired, None)

    def finished(self, batch: Batch[T], now: float) -> None:
        """Note that a batch has ended, well or not."""
        images = len(batch.tickets)
        seconds = (now - batch.started) / images
        known = seconds if self._seconds_per_image is None else self._seconds_per_image
        self._seconds_per_image = known + _SMOOTHING * (seconds - known)
        self._last_key = batch.key
        self._demand = images + self._waiting_for(batch.key)
        self._free_since = now

    def drain(self) -> tuple[Ticket[T], ...]:
        """Take out everything that waits, in order of rank."""
        tickets = tuple(sorted(self._all(), key=_rank))
        self._lanes.clear()
        self._waiting = 0
        return tickets

    def _all(self) -> Iterator[Ticket[T]]:
        return (ticket for lane in self._lanes.values() for ticket in lane.values())

    def _expects_more(self, key: Hashable) -> bool:
        return key == self._last_key and self._waiting_for(key) < min(self._demand, self._max_batch_size)

    def _lanes_of(self, key: Hashable) -> list[OrderedDict[int, Ticket[T]]]:
        return [lane for (other, _), lane in self._lanes.items() if other == key]

    def _waiting_for(self, key: Hashable) -> int:
        return sum(len(lane) for lane in self._lanes_of(key))

    def _take(self, key: Hashable) -> tuple[Ticket[T], ...]:
        in_order = heapq.merge(*(lane.values() for lane in self._lanes_of(key)), key=_rank)
        tickets = tuple(itertools.islice(in_order, self._max_batch_size))
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
        lane = self._lanes[ticket.key, ticket.priority]
        del lane[ticket.sequence]
        if not lane:
            del self._lanes[ticket.key, ticket.priority]
        self._waiting -= 1

    def _retry_after_s(self) -> float:
        if self._seconds_per_image is None:
            return _UNMEASURED_RETRY_S
        return self._seconds_per_image * self._waiting / 2


def _rank(ticket: Ticket[T]) -> tuple[float, int]:
    return ticket.rank
