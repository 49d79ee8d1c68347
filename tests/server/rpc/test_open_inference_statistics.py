"""Statistics: exact figures from made-up outputs."""

import asyncio

import numpy as np
import pytest

from limner.imaging.errors import ImageError
from limner_server.errors import (
    DeadlineError,
    EngineError,
    InvalidInputError,
    NotFoundError,
    QueueFullError,
    UnavailableError,
)
from limner_server.executor.engine import Output
from limner_server.statistics import BOUNDS_S, Spread, Statistics


def output(queue_s: float, compute_s: float, batch_size: int) -> Output:
    return Output({"logits": np.zeros(2, np.float32)}, queue_s, compute_s, batch_size)


def test_a_request_counts_once_and_each_of_its_images_as_an_inference() -> None:
    statistics = Statistics()
    outputs = [output(0.001, 0.004, 2), output(0.001, 0.004, 2), output(0.005, 0.002, 1)]
    statistics.succeeded(outputs, input_ns=30, output_ns=60, total_ns=9_000_000)
    counts = [statistics.success, statistics.queue]
    counts += [statistics.compute_input, statistics.compute_infer, statistics.compute_output]
    assert [duration.count for duration in counts] == [1] * 5
    assert [duration.ns for duration in counts] == [9_000_000, 5_000_000, 30, 2_000_000, 60]
    assert statistics.inferences == 3
    assert statistics.last_inference_ms > 0
    two, one = statistics.batches[2], statistics.batches[1]
    assert (two.images, one.images) == (2, 1)
    assert two.infer_ns == pytest.approx(4_000_000), "one batch of 4 ms"
    assert one.infer_ns == pytest.approx(2_000_000)
    assert two.input_ns + one.input_ns == pytest.approx(30)
    assert two.output_ns + one.output_ns == pytest.approx(60)


def test_the_parts_of_a_request_are_no_longer_than_the_whole() -> None:
    statistics = Statistics()

    async def answer() -> None:
        with statistics.request() as request:
            request.read()
            await asyncio.sleep(0.01)
            request.answered(output(0.001, 0.009, 4))

    asyncio.run(answer())
    parts = [statistics.queue, statistics.compute_input, statistics.compute_infer, statistics.compute_output]
    assert [part.count for part in parts] == [1] * 4
    assert sum(part.ns for part in parts) <= statistics.success.ns


def test_failures_and_cancellations_are_told_apart() -> None:
    statistics = Statistics()

    async def forever() -> None:
        with statistics.request():
            await asyncio.Event().wait()

    async def leave() -> None:
        task = asyncio.create_task(forever())
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with pytest.raises(QueueFullError), statistics.request():
        raise QueueFullError(1, 1.0)
    asyncio.run(leave())
    assert (statistics.success.count, statistics.fail.count, statistics.cancel.count) == (0, 1, 1)
    assert statistics.inferences == 0
    assert statistics.queue.count == 0


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (QueueFullError(1, 1.0), "queue_full"),
        (DeadlineError("late"), "deadline"),
        (UnavailableError("going"), "unavailable"),
        (EngineError("broken"), "engine"),
        (InvalidInputError("id", "", "some"), "invalid"),
        (ImageError("Rows", 0, "over 0"), "invalid"),
        (NotFoundError("region", "r"), "invalid"),
        (asyncio.CancelledError(), "cancelled"),
        (ZeroDivisionError(), "internal"),
    ],
)
def test_a_request_that_is_not_answered_has_one_reason(error: BaseException, reason: str) -> None:
    statistics = Statistics()
    with pytest.raises(type(error)), statistics.request():
        raise error
    assert {name: duration.count for name, duration in statistics.failures.items() if duration.count} == {reason: 1}


def test_a_spread_has_each_time_in_the_class_that_it_is_at_most() -> None:
    spread = Spread()
    for seconds in (0, BOUNDS_S[0], BOUNDS_S[0] + 1e-9, BOUNDS_S[-1], BOUNDS_S[-1] + 1):
        spread.add(round(seconds * 1e9))
    assert spread.classes == [2, 1, *[0] * (len(BOUNDS_S) - 3), 1, 1]
    assert spread.count == 5
