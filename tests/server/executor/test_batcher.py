"""The batcher against its invariants, by number: random arrivals, cancellations and deadlines on a virtual clock."""

import math
from collections import Counter

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from limner_server.errors import InvalidInputError, QueueFullError
from limner_server.executor.batcher import HEAD_START_S, MAX_PRIORITY, Batch, Batcher, Ticket


class World(RuleBasedStateMachine):
    """Callers and an engine around a batcher, with a plain list as the model of what waits."""

    @initialize(
        max_batch_size=st.integers(1, 5),
        max_queue_delay_s=st.sampled_from([0.0, 0.005, 0.5]),
        max_queue_images=st.integers(1, 12),
        lanes=st.integers(1, 3),
        spread=st.booleans(),
    )
    def begin(
        self, max_batch_size: int, max_queue_delay_s: float, max_queue_images: int, lanes: int, spread: bool
    ) -> None:
        self.delay, self.limit, self.lanes, self.spread = max_queue_delay_s, max_queue_images, lanes, spread
        self.batch_limits = dict.fromkeys("ab", max_batch_size)
        self.batcher: Batcher[int] = Batcher(max_batch_size, max_queue_delay_s, max_queue_images, lanes, spread)
        self.now = 100.0
        self.waiting: list[Ticket[int]] = []
        self.places: list[int] = []
        self.most = max_queue_images
        self.admitted = 0
        self.answers: Counter[int] = Counter()
        self.running: list[Batch[int]] = []
        self.last_end = -math.inf

    @rule(seconds=st.sampled_from([0.0, 0.001, 0.004, 0.3, 1.0, 7.0]))
    def time_passes(self, seconds: float) -> None:
        self.now += seconds

    @rule(
        key=st.sampled_from("ab"),
        priority=st.integers(0, MAX_PRIORITY),
        patience=st.one_of(st.just(math.inf), st.sampled_from([-1.0, 0.0, 0.004, 2.0])),
    )
    def arrive(self, key: str, priority: int, patience: float) -> None:
        if len(self.waiting) + sum(self.places) >= self.limit:
            with pytest.raises(QueueFullError) as refused:
                self.batcher.add(self.admitted, key, self.now, priority, self.now + patience)
            assert refused.value.retry_after_s >= 0
        else:
            ticket = self.batcher.add(self.admitted, key, self.now, priority, self.now + patience)
            self.waiting.append(ticket)
            self.admitted += 1
        assert len(self.batcher) == len(self.waiting)

    @rule(images=st.integers(1, 15))
    def reserve(self, images: int) -> None:
        taken = len(self.waiting) + sum(self.places)
        if taken and taken + images > self.limit:
            with pytest.raises(QueueFullError):
                self.batcher.reserve(images, self.now)
        else:
            self.batcher.reserve(images, self.now)
            self.places.append(images)
            if not taken:  # it may have as many as it likes
                self.most = max(self.most, images)
        assert len(self.waiting) + sum(self.places) <= self.most  # 2

    @precondition(lambda self: self.places)
    @rule(key=st.sampled_from("ab"), priority=st.integers(0, MAX_PRIORITY), data=st.data())
    def take_a_place(self, key: str, priority: int, data: st.DataObject) -> None:
        call = data.draw(st.integers(0, len(self.places) - 1))
        self.waiting.append(self.batcher.add(self.admitted, key, self.now, priority, reserved=True))
        self.admitted += 1
        self.places[call] -= 1
        self.places = [left for left in self.places if left]

    @precondition(lambda self: self.places)
    @rule()
    def give_places_back(self) -> None:
        self.batcher.release(self.places.pop())

    @precondition(lambda self: self.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        ticket = data.draw(st.sampled_from(self.waiting))
        assert self.batcher.cancel(ticket)
        assert not self.batcher.cancel(ticket)
        self.leave(ticket)

    @rule(key=st.sampled_from("ab"), size=st.integers(1, 5))
    def memory_runs_out(self, key: str, size: int) -> None:
        self.batcher.limit(key, size)
        self.batch_limits[key] = min(size, self.batch_limits[key])

    @precondition(lambda self: len(self.running) < self.lanes)
    @rule()
    def poll(self) -> None:
        due = self.batcher.due(self.now)
        decision = self.batcher.poll(self.now)
        late = [ticket for ticket in self.waiting if ticket.deadline <= self.now]
        assert sorted(t.sequence for t in decision.expired) == [t.sequence for t in late]
        for ticket in late:
            self.leave(ticket)
        if not late:
            assert due == (decision.batch is not None)
        if decision.batch is not None:
            self.check_batch(decision.batch)
            self.running.append(decision.batch)
            for ticket in decision.batch.tickets:
                self.leave(ticket)
        elif self.waiting:
            assert decision.wake_at is not None
            assert self.now < decision.wake_at <= self.last_end + self.delay  # 7
            lead = min(self.waiting, key=rank)
            assert [ticket.key for ticket in self.waiting].count(lead.key) < self.batch_limits[lead.key]
        else:
            assert decision.wake_at is None

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        self.end(data.draw(st.sampled_from(self.running)))

    def end(self, batch: Batch[int]) -> None:
        assert not any(self.batcher.cancel(ticket) for ticket in batch.tickets)
        self.batcher.finished(batch, self.now)
        self.running.remove(batch)
        self.last_end = self.now

    def check_batch(self, batch: Batch[int]) -> None:
        mates = [ticket for ticket in self.waiting if ticket.key == batch.key]
        share = math.ceil(len(mates) / (self.lanes - len(self.running))) if self.spread else len(mates)  # 8
        assert len(batch.tickets) == min(share, self.batch_limits[batch.key])  # 3
        assert {ticket.key for ticket in batch.tickets} == {batch.key}
        assert all(ticket.deadline > self.now for ticket in batch.tickets)  # 6
        assert rank(batch.tickets[0]) == min(map(rank, self.waiting))  # 5
        for priority in range(MAX_PRIORITY + 1):  # 4
            taken = [ticket for ticket in batch.tickets if ticket.priority == priority]
            assert taken == [ticket for ticket in mates if ticket.priority == priority][: len(taken)]

    def leave(self, ticket: Ticket[int]) -> None:
        self.waiting.remove(ticket)
        self.answers[ticket.payload] += 1

    def teardown(self) -> None:
        if not hasattr(self, "batcher"):
            return
        for _ in range(3 * self.limit + 3):
            for batch in list(self.running):
                self.end(batch)
            self.now += self.delay
            self.poll()
        assert not self.running
        assert self.answers == Counter(range(self.admitted))  # 1


def rank(ticket: Ticket[int]) -> tuple[float, int]:
    """Invariant 5, written anew."""
    return ticket.arrived - ticket.priority * HEAD_START_S, ticket.sequence


TestWorld = World.TestCase
TestWorld.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def run(batcher: Batcher[str], now: float, seconds: float = 0.02) -> list[str]:
    """Payloads of the batch that is due, which takes `seconds`; empty where none is."""
    batch = batcher.poll(now).batch
    if batch is None:
        return []
    batcher.finished(batch, now + seconds)
    return [ticket.payload for ticket in batch.tickets]


def test_lone_caller_is_never_kept_waiting():
    batcher: Batcher[str] = Batcher(16, 5.0, 100)
    for step in range(5):
        batcher.add("again", "key", now=float(step))
        assert run(batcher, now=float(step)) == ["again"]


def test_callers_in_a_loop_end_up_in_one_batch():
    batcher: Batcher[str] = Batcher(16, 0.005, 100)
    batcher.add("a", "key", now=0.0)
    first = batcher.poll(0.0).batch
    assert first is not None
    batcher.add("b", "key", now=0.001)
    batcher.add("c", "key", now=0.001)
    batcher.finished(first, now=0.020)
    assert batcher.poll(0.020).batch is None, "a is about to come back"
    batcher.add("a", "key", now=0.021)
    assert run(batcher, now=0.021) == ["b", "c", "a"]


def test_wrong_guess_costs_one_wait():
    batcher: Batcher[str] = Batcher(16, 0.005, 100)
    for name in ("a", "b", "c"):
        batcher.add(name, "key", now=0.0)
    assert len(run(batcher, now=0.0, seconds=0.02)) == 3
    batcher.add("a", "key", now=0.021)
    assert batcher.poll(0.021).wake_at == pytest.approx(0.025)
    assert run(batcher, now=0.025) == ["a"]
    batcher.add("a", "key", now=0.046)
    assert run(batcher, now=0.046) == ["a"]


def test_higher_priority_goes_first_and_lower_is_not_starved():
    batcher: Batcher[str] = Batcher(1, 0.0, 100)
    batcher.add("low", "key", now=0.0, priority=0)
    served = []
    for step in range(4 * MAX_PRIORITY):
        batcher.add("high", "key", now=0.5 * step, priority=MAX_PRIORITY)
        served += run(batcher, now=0.5 * step)
    assert served[0] == "high"
    assert served.index("low") * 0.5 == pytest.approx(MAX_PRIORITY * HEAD_START_S, abs=1.0)


def test_deadlines_pass_one_after_the_other():
    batcher: Batcher[str] = Batcher(1, 0.0, 100)
    for name, deadline in [("never", math.inf), ("later", 2.0), ("soon", 1.0)]:
        batcher.add(name, "key", now=0.0, deadline=deadline)
    expired = [[ticket.payload for ticket in batcher.poll(now).expired] for now in (1.0, 2.0)]
    assert expired == [["soon"], ["later"]]


def test_full_queue_says_when_half_of_it_is_done():
    batcher: Batcher[str] = Batcher(2, 0.0, 4)
    for name in "ab":
        batcher.add(name, "key", now=0.0)
    run(batcher, now=0.0, seconds=3.0)
    for name in "cdef":
        batcher.add(name, "key", now=3.0)
    with pytest.raises(QueueFullError) as refused:
        batcher.add("g", "key", now=3.0)
    assert refused.value.retry_after_s == pytest.approx(2 * 1.5)


@pytest.mark.parametrize("priority", [-1, MAX_PRIORITY + 1])
def test_priority_out_of_range_is_refused(priority: int):
    batcher: Batcher[str] = Batcher(2, 0.0, 4)
    with pytest.raises(InvalidInputError, match="priority"):
        batcher.add("a", "key", now=0.0, priority=priority)
    assert len(batcher) == 0


def test_drain_takes_everything_in_order_of_rank():
    batcher: Batcher[str] = Batcher(2, 0.0, 4)
    for name, key, priority in [("third", "x", 0), ("first", "y", 5), ("second", "x", 5)]:
        batcher.add(name, key, now=1.0, priority=priority)
    assert [ticket.payload for ticket in batcher.drain()] == ["first", "second", "third"]
    assert len(batcher) == 0
    assert batcher.poll(1.0).batch is None


def measured(max_queue_s: float, lanes: int = 1) -> Batcher[int]:
    """A batcher of batches of two that knows that an image takes a second."""
    batcher: Batcher[int] = Batcher(2, 0, 100, lanes, max_queue_s=max_queue_s)
    batcher.add(0, "a", 0.0)
    batch = batcher.poll(0.0).batch
    assert batch
    batcher.finished(batch, 1.0)
    return batcher


def test_a_call_is_refused_where_it_would_wait_too_long() -> None:
    batcher = measured(max_queue_s=5)
    batcher.reserve(5, 1.0)
    batcher.reserve(90, 1.0)
    with pytest.raises(QueueFullError, match="what waits takes 95 s, over the limit of 5 s") as refused:
        batcher.reserve(1, 1.0)
    assert refused.value.retry_after_s == pytest.approx(95 / 2)
    batcher.release(90)
    batcher.reserve(1, 1.0)


def test_a_higher_priority_waits_for_its_own_kind_only() -> None:
    batcher = measured(max_queue_s=5)
    for number in range(8):
        batcher.add(number, "a", 1.0)
    with pytest.raises(QueueFullError):
        batcher.reserve(1, 1.0)
    batcher.reserve(1, 1.0, priority=1)


def test_a_batch_for_each_lane_may_wait_however_slow() -> None:
    batcher = measured(max_queue_s=0.1, lanes=2)
    for _ in range(4):
        batcher.reserve(1, 1.0)
    with pytest.raises(QueueFullError):
        batcher.reserve(1, 1.0)


def test_a_deadline_that_would_pass_in_the_queue_is_refused_at_once() -> None:
    batcher = measured(max_queue_s=100)
    batcher.reserve(3, 1.0, deadline=1.5)
    with pytest.raises(QueueFullError, match="the deadline is before that"):
        batcher.reserve(1, 1.0, deadline=3.9)
    batcher.reserve(1, 1.0, deadline=4.1)
