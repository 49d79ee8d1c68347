"""The executor around a small engine: who is answered with what, when things go well and when they do not."""

import asyncio
import concurrent.futures
import os
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from numpy.typing import NDArray

from limner_server.errors import DeadlineError, EngineError, InvalidInputError, QueueFullError, UnavailableError
from limner_server.executor.engine import Item, Operation, Output
from limner_server.executor.executor import Executor
from tests.server.executor.numpy_engine import NumpyEngine

SIZE = 4
PATIENCE_S = 20.0
LEAST_PRIORITY = 19


@pytest.fixture
def engine() -> NumpyEngine:
    return NumpyEngine()


@pytest.fixture
def executor(engine: NumpyEngine) -> Iterator[Executor]:
    executor = Executor(engine, SIZE, max_batch_size=4, max_queue_delay_s=0.002, max_queue_images=8)
    yield executor
    engine.gate.set()
    executor.close()


def image(value: float) -> NDArray[np.float32]:
    """An image whose sum is `value`, exactly."""
    return np.full((SIZE, SIZE), value / SIZE**2, np.float32)


def item(value: float) -> Item:
    return Item(image(value))


def logit(future: "concurrent.futures.Future[Output]") -> float:
    return float(future.result(PATIENCE_S).arrays["logits"][0])


def keep_busy(executor: Executor, engine: NumpyEngine, value: float = 0.0) -> "concurrent.futures.Future[Output]":
    """Start a batch of one image that runs until `engine.gate` is set."""
    engine.gate.clear()
    future = executor.submit(item(value))
    assert engine.entered.acquire(timeout=PATIENCE_S)
    return future


def test_answer_has_the_arrays_of_its_own_item(executor: Executor, engine: NumpyEngine):
    found = executor.submit(item(3.0)).result(PATIENCE_S)
    assert found.arrays["logits"].tolist() == [3.0, -3.0]
    assert (found.arrays["embedding"] == image(3.0)).all()
    assert found.batch_size == 1
    assert found.queue_s >= 0
    assert found.compute_s > 0
    assert engine.warmed == (SIZE, 4)


def test_gathers_while_busy_and_splits_what_is_too_large(executor: Executor, engine: NumpyEngine):
    futures = [keep_busy(executor, engine), *(executor.submit(item(value)) for value in range(1, 8))]
    assert executor.waiting == 7
    engine.gate.set()
    assert [logit(future) for future in futures] == list(range(8))
    assert engine.batches == [[0], [1, 2, 3, 4], [5, 6, 7]]
    assert [future.result().batch_size for future in futures] == [1, 4, 4, 4, 4, 3, 3, 3]
    assert (executor.counts.batches, executor.counts.images) == (3, 8)


def test_batches_are_of_one_operation_and_one_choice_of_layers(executor: Executor, engine: NumpyEngine):
    keep_busy(executor, engine)
    futures = [
        executor.submit(item(1)),
        executor.submit(Item(image(2), Operation.EXPLAIN, target=1, layers=("layer1",))),
        executor.submit(Item(image(3), Operation.EXPLAIN, layers=("stem", "layer1"))),
        executor.submit(item(4)),
        executor.submit(Item(image(5), Operation.EXPLAIN, target=0, layers=("layer1",))),
    ]
    engine.gate.set()
    found = [future.result(PATIENCE_S).arrays for future in futures]
    assert engine.batches[1:] == [[1, 4], [2, 5], [3]]
    assert [set(arrays) - {"logits", "embedding"} for arrays in found] == [
        set(),
        {"target", "maps.layer1"},
        {"target", "maps.stem", "maps.layer1"},
        set(),
        {"target", "maps.layer1"},
    ]
    assert [int(found[index]["target"]) for index in (1, 2, 4)] == [1, -1, 0]


def test_poisonous_item_fails_alone(executor: Executor, engine: NumpyEngine, caplog: pytest.LogCaptureFixture):
    keep_busy(executor, engine)
    engine.poison = 2.0
    futures = [executor.submit(item(value)) for value in (1, 2, 3, 4)]
    engine.gate.set()
    assert [logit(futures[index]) for index in (0, 2, 3)] == [1, 3, 4]
    with pytest.raises(EngineError) as failure:
        futures[1].result(PATIENCE_S)
    assert "poisoned" not in str(failure.value), "what went wrong inside is for the log"
    assert "poisoned" in caplog.text
    assert executor.healthy
    assert executor.counts.failed == 1
    assert logit(executor.submit(item(9))) == 9


def test_out_of_memory_halves_the_batch(executor: Executor, engine: NumpyEngine):
    keep_busy(executor, engine)
    engine.memory = 1
    futures = [executor.submit(item(value)) for value in (1, 2, 3)]
    engine.gate.set()
    assert [logit(future) for future in futures] == [1, 2, 3]
    assert engine.batches == [[0], [1, 2, 3], [1, 2], [1], [2], [3]]
    assert executor.counts.out_of_memory == 2
    engine.memory = 1000
    keep_busy(executor, engine)
    futures = [executor.submit(item(value)) for value in (1, 2)]
    engine.gate.set()
    assert [logit(future) for future in futures] == [1, 2]
    assert engine.batches[-2:] == [[1], [2]], "what did not fit is not tried again"


def test_two_lanes_run_side_by_side_and_share_what_waits():
    engine = NumpyEngine(lanes=2, spread=True)
    executor = Executor(engine, SIZE, max_batch_size=4, max_queue_delay_s=0.0, max_queue_images=8)
    engine.gate.clear()
    futures = [executor.submit(item(value)) for value in (1, 2)]
    for _ in futures:
        assert engine.entered.acquire(timeout=PATIENCE_S), "both lanes are in the engine at a time"
    assert sorted(engine.batches) == [[1], [2]]
    futures += [executor.submit(item(value)) for value in (3, 4, 5)]
    assert executor.waiting == 3
    engine.gate.set()
    assert [logit(future) for future in futures] == [1, 2, 3, 4, 5]
    executor.close()
    assert engine.closed


def test_lanes_yield_to_the_threads_that_answer_calls():
    class Watched(NumpyEngine):
        niceness = 0

        def staging(self, images: int, grid_size: int) -> NDArray[np.float32]:
            self.niceness = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
            return super().staging(images, grid_size)

    engine = Watched()
    Executor(engine, SIZE, max_batch_size=4, max_queue_delay_s=0.0, max_queue_images=8).close()
    own = os.getpriority(os.PRIO_PROCESS, threading.get_native_id())
    assert own < engine.niceness or own == LEAST_PRIORITY


def test_lane_that_dies_closes_the_executor_when_the_others_are_done():
    engine = NumpyEngine(lanes=2, spread=True)
    executor = Executor(engine, SIZE, max_batch_size=4, max_queue_delay_s=0.0, max_queue_images=8)
    engine.crash = SystemExit()
    with pytest.raises(UnavailableError):
        executor.submit(item(1)).result(PATIENCE_S)
    executor.close()
    assert not executor.healthy
    assert engine.closed


def test_error_of_the_family_is_passed_on_without_looking_for_one_to_blame(executor: Executor, engine: NumpyEngine):
    keep_busy(executor, engine)
    engine.crash = UnavailableError("the server behind is down")
    futures = [executor.submit(item(value)) for value in (1, 2, 3)]
    engine.gate.set()
    for future in futures:
        with pytest.raises(UnavailableError, match="behind is down"):
            future.result(PATIENCE_S)
    assert engine.batches == [[0], [1, 2, 3]]
    engine.crash = None
    assert logit(executor.submit(item(4))) == 4


def test_health_is_the_engines(executor: Executor, engine: NumpyEngine):
    engine.healthy = False
    assert not executor.healthy
    engine.healthy = True
    assert executor.healthy


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16"])
def test_integers_are_taken_as_they_come(executor: Executor, dtype: str):
    assert logit(executor.submit(Item(np.full((SIZE, SIZE), 7, dtype)))) == 7 * SIZE**2


def test_out_of_memory_for_a_single_image_fails_it(executor: Executor, engine: NumpyEngine):
    engine.memory = 0
    with pytest.raises(EngineError, match="memory"):
        executor.submit(item(1)).result(PATIENCE_S)
    engine.memory = 1
    assert logit(executor.submit(item(2))) == 2


def test_engine_that_answers_with_too_few_rows_fails_the_batch(executor: Executor, engine: NumpyEngine):
    whole = engine.run
    engine.run = lambda *batch: {name: array[1:] for name, array in whole(*batch).items()}  # type: ignore[method-assign]
    with pytest.raises(EngineError) as failure:
        executor.submit(item(1)).result(PATIENCE_S)
    assert "length" not in str(failure.value), "what went wrong inside is for the log"


def test_cancelled_item_never_runs_and_leaves_its_place(executor: Executor, engine: NumpyEngine):
    keep_busy(executor, engine)
    futures = [executor.submit(item(value)) for value in range(1, 9)]
    with pytest.raises(QueueFullError) as refused:
        executor.submit(item(9))
    assert refused.value.retry_after_s > 0
    assert futures[1].cancel()
    futures[1] = executor.submit(item(10))
    engine.gate.set()
    assert [logit(future) for future in futures] == [1, 10, 3, 4, 5, 6, 7, 8]
    assert not any(2 in batch for batch in engine.batches)


def test_cancelling_an_asyncio_task_drops_its_item(executor: Executor, engine: NumpyEngine):
    async def two_callers() -> float:
        gone = asyncio.ensure_future(asyncio.wrap_future(executor.submit(item(1))))
        stays = asyncio.wrap_future(executor.submit(item(2)))
        gone.cancel()
        await asyncio.wait([gone])
        assert executor.waiting == 1
        engine.gate.set()
        return float((await stays).arrays["logits"][0])

    keep_busy(executor, engine)
    assert asyncio.run(two_callers()) == 2
    assert engine.batches == [[0], [2]]


def test_item_cancelled_while_it_runs_harms_nobody(executor: Executor, engine: NumpyEngine):
    running = keep_busy(executor, engine)
    assert not running.cancel()
    engine.gate.set()
    assert logit(running) == 0
    assert executor.healthy


def test_deadline_that_passed_in_the_queue_fails_its_item_only(executor: Executor, engine: NumpyEngine):
    keep_busy(executor, engine)
    late = executor.submit(item(1), deadline=time.monotonic())
    in_time = executor.submit(item(2), deadline=time.monotonic() + 1000)
    engine.gate.set()
    with pytest.raises(DeadlineError):
        late.result(PATIENCE_S)
    assert logit(in_time) == 2
    assert engine.batches == [[0], [2]]


def test_higher_priority_is_batched_first(executor: Executor, engine: NumpyEngine):
    keep_busy(executor, engine)
    futures = [executor.submit(item(value), priority=value) for value in (1, 2, 3, 4, 5)]
    engine.gate.set()
    assert [logit(future) for future in futures] == [1, 2, 3, 4, 5]
    assert engine.batches == [[0], [5, 4, 3, 2], [1]]


def test_close_while_busy_ends_the_batch_and_turns_the_queue_away(executor: Executor, engine: NumpyEngine):
    running = keep_busy(executor, engine)
    queued = [executor.submit(item(value)) for value in (1, 2)]
    closing = threading.Thread(target=executor.close)
    closing.start()
    for future in queued:
        with pytest.raises(UnavailableError):
            future.result(PATIENCE_S)
    assert not executor.healthy
    assert not engine.closed, "a batch is running"
    with pytest.raises(UnavailableError):
        executor.submit(item(3))
    engine.gate.set()
    closing.join(PATIENCE_S)
    assert logit(running) == 0
    assert engine.closed
    assert engine.batches == [[0]]


def test_close_with_drain_answers_the_queue(executor: Executor, engine: NumpyEngine):
    queued = [keep_busy(executor, engine), *(executor.submit(item(value)) for value in range(1, 7))]
    closing = threading.Thread(target=executor.close, kwargs={"drain": True})
    closing.start()
    engine.gate.set()
    closing.join(PATIENCE_S)
    assert [logit(future) for future in queued] == list(range(7))
    assert engine.closed


def test_thread_that_dies_answers_everything_and_says_so(executor: Executor, engine: NumpyEngine):
    futures = [keep_busy(executor, engine), executor.submit(item(1))]
    engine.crash = SystemExit()
    engine.gate.set()
    for future in futures:
        with pytest.raises(UnavailableError):
            future.result(PATIENCE_S)
    executor.close()
    assert not executor.healthy
    assert engine.closed
    with pytest.raises(UnavailableError):
        executor.submit(item(2))


def test_engine_that_cannot_be_warmed_is_refused_and_closed(engine: NumpyEngine):
    def broken(grid_size: int, max_batch_size: int) -> int:
        raise RuntimeError("no such kernel")

    engine.warm = broken  # type: ignore[method-assign]
    with pytest.raises(RuntimeError, match="no such kernel"):
        Executor(engine, SIZE, 4, 0.0, 8)
    assert engine.closed


def with_value(value: float) -> NDArray[np.float32]:
    pixels = image(1)
    pixels[1, 2] = value
    return pixels


@pytest.mark.parametrize(
    ("bad", "field"),
    [
        (Item(np.zeros((SIZE, SIZE + 1), np.float32)), "image.shape"),
        (Item(np.zeros((1, SIZE, SIZE), np.float32)), "image.shape"),
        (Item(np.zeros((SIZE, SIZE), np.float64)), "image.dtype"),  # type: ignore[arg-type]
        (Item(np.zeros((SIZE, SIZE), ">f4")), "image.dtype"),
        (Item(with_value(np.nan)), "image"),
        (Item(with_value(-np.inf)), "image"),
        (Item(image(1), Operation.EXPLAIN, target=2), "target"),
        (Item(image(1), Operation.EXPLAIN, target=-2), "target"),
        (Item(image(1), Operation.EXPLAIN, layers=("stem", "layer9")), "layers"),
        (Item(image(1), Operation.PREDICT, layers=("stem",)), "layers"),
    ],
)
def test_bad_item_is_refused_at_once(executor: Executor, engine: NumpyEngine, bad: Item, field: str):
    with pytest.raises(InvalidInputError) as refused:
        executor.submit(bad)
    assert refused.value.field == field
    assert executor.waiting == 0


def test_many_threads_each_get_their_own_answers(engine: NumpyEngine):
    executor = Executor(engine, SIZE, max_batch_size=16, max_queue_delay_s=0.001, max_queue_images=10_000)
    engine.poison = 64.0

    def caller(first: int) -> None:
        futures = {value: executor.submit(item(value), priority=value % 11) for value in range(first, first + 200)}
        cancelled = {value for value, future in futures.items() if value % 7 == 0 and future.cancel()}
        for value in futures.keys() - cancelled:
            if value == engine.poison:
                with pytest.raises(EngineError):
                    futures[value].result(PATIENCE_S)
            else:
                found = futures[value].result(PATIENCE_S)
                assert found.arrays["logits"].tolist() == [value, -value]
                assert (found.arrays["embedding"] == image(value)).all()

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        list(pool.map(caller, range(0, 800, 200)))
    executor.close()
    assert max(map(len, engine.batches)) <= 16
