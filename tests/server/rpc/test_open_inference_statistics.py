"""Statistics: exact figures from made-up outputs."""

import asyncio

import numpy as np
import pytest

from limner_server.errors import QueueFullError
from limner_server.executor.engine import Output
from limner_server.statistics import Statistics


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

    async def answer() -> Output:
        await asyncio.sleep(0.01)
        return output(0.001, 0.009, 4)

    assert asyncio.run(statistics.image(answer())).batch_size == 4
    parts = [statistics.queue, statistics.compute_input, statistics.compute_infer, statistics.compute_output]
    assert [part.count for part in parts] == [1] * 4
    assert sum(part.ns for part in parts) <= statistics.success.ns


def test_failures_and_cancellations_are_told_apart() -> None:
    statistics = Statistics()

    async def fail() -> Output:
        raise QueueFullError("full", 1.0)

    async def forever() -> Output:
        await asyncio.Event().wait()
        raise AssertionError

    async def leave() -> None:
        task = asyncio.create_task(statistics.image(forever()))
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with pytest.raises(QueueFullError):
        asyncio.run(statistics.image(fail()))
    asyncio.run(leave())
    assert (statistics.success.count, statistics.fail.count, statistics.cancel.count) == (0, 1, 1)
    assert statistics.inferences == 0
    assert statistics.queue.count == 0
