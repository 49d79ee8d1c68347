"""A server that goes while it is at work: streams move on, trainings keep where they are, and nothing holds it up.

The grace is ten minutes: whatever would sit it out ends the test, not the server.
"""

import asyncio
import queue
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import grpc
import numpy as np
import psutil
import pytest
import torch
from grpc_health.v1 import health_pb2, health_pb2_grpc
from numpy.typing import NDArray

from benchmarks.cohorts import noise_plan
from benchmarks.models import publish_untrained, random_slices
from limner import AsyncClient, Client, Image
from limner.types import FeatureOptions, Grid, ImageResult, JobState, SubjectResult, TrainingConfig
from limner.v1 import inference_pb2
from limner.v1.inference_pb2_grpc import InferenceServiceStub
from tests.e2e.phantoms import import_phantom
from tests.e2e.test_standard import Watch
from tests.gateway.orthanc import free_port
from tests.live import LiveServer

SIZE = 32
COUNT, SUBJECTS = 300, 7
HEALTH = health_pb2.HealthCheckResponse
SHORT = TrainingConfig(grid=Grid(fov_mm=160, size=SIZE), folds=2, epochs=1, batch_size=4, halves=False)


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    server = LiveServer(tmp_path_factory.mktemp("drained"), port=free_port(), drain_s=600, load="m")
    publish_untrained(server.model_repository, "m", size=SIZE)
    with server:
        yield server


@pytest.fixture
def client(live: LiveServer) -> Iterator[Client]:
    with Client(live.address) as client:
        client.wait_ready()
        yield client


@pytest.fixture(scope="module")
def slices() -> NDArray[np.float32]:
    return random_slices(COUNT, SIZE)


def restart(server: LiveServer) -> threading.Thread:
    """Stop as Kubernetes does and start again, meanwhile."""

    def run() -> None:
        assert server.stop() == 0
        server.start()

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def images(slices: NDArray[np.float32]) -> list[Image]:
    return [Image(values, id=f"image {n}", subject=f"s{n % SUBJECTS}") for n, values in enumerate(slices)]


def assert_each_once(results: list[ImageResult], before: list[ImageResult]) -> None:
    assert [result.id for result in results] == [f"image {n}" for n in range(COUNT)]
    assert {result.error for result in results} == {None}
    for result, other in zip(results, before, strict=True):
        assert result.prediction is not None
        assert other.prediction is not None
        np.testing.assert_allclose(result.prediction.logits, other.prediction.logits, atol=1e-4)


def assert_same_subjects(found: tuple[SubjectResult, ...], before: tuple[SubjectResult, ...]) -> None:
    assert [(s.subject, s.images, s.failed, s.far) for s in found] == [
        (s.subject, s.images, s.failed, s.far) for s in before
    ]
    for one, other in zip(found, before, strict=True):
        assert one.prediction is not None
        assert other.prediction is not None
        assert one.prediction.label == other.prediction.label
        np.testing.assert_allclose(one.prediction.probabilities, other.prediction.probabilities, atol=1e-4)


@pytest.mark.parametrize("at_hand", [True, False], ids=["a list", "an iterator"])
def test_a_stream_goes_on_where_the_server_left_it(
    live: LiveServer, client: Client, slices: NDArray[np.float32], at_hand: bool
) -> None:
    before = client.predict_stream("m", images(slices))
    undisturbed = list(before)
    stream = client.predict_stream("m", images(slices) if at_hand else iter(images(slices)))
    going = iter(stream)
    results = [next(going) for _ in range(20)]
    restarting = restart(live)
    results += going
    restarting.join()
    assert_each_once(results, undisturbed)
    assert_same_subjects(stream.subjects, before.subjects)
    assert stream.model == before.model


def test_a_killed_server_is_no_end_of_a_stream(live: LiveServer, client: Client, slices: NDArray[np.float32]) -> None:
    undisturbed = list(client.predict_stream("m", images(slices)))
    stream = iter(client.predict_stream("m", images(slices)))
    results = [next(stream) for _ in range(20)]
    live.kill()
    starting = threading.Thread(target=live.start)
    starting.start()
    results += stream
    starting.join()
    assert_each_once(results, undisturbed)


def test_a_caller_who_waits_for_each_answer_gets_it_from_the_next_server(
    live: LiveServer, client: Client, slices: NDArray[np.float32]
) -> None:
    answered: queue.SimpleQueue[ImageResult] = queue.SimpleQueue()
    waiting: list[threading.Thread] = []

    def one_by_one() -> Iterator[Image]:
        for n, image in enumerate(images(slices[:12])):
            if n:
                answered.get(timeout=60)
            if n == 6:
                waiting.append(restart(live))
            yield image

    results = []
    for result in client.predict_stream("m", one_by_one()):
        results.append(result.id)
        answered.put(result)
    waiting[0].join()
    assert results == [f"image {n}" for n in range(12)]


def test_an_asynchronous_stream_goes_on_too(live: LiveServer, slices: NDArray[np.float32]) -> None:
    async def several() -> AsyncIterator[Image]:
        for image in images(slices):
            yield image

    async def score() -> tuple[list[ImageResult], tuple[SubjectResult, ...], tuple[SubjectResult, ...]]:
        async with AsyncClient(live.address) as client:
            await client.wait_ready()
            before = client.predict_stream("m", images(slices))
            undisturbed = [result async for result in before]
            stream, results = client.predict_stream("m", several()), []
            async for result in stream:
                results.append(result)
                if len(results) == 20:
                    restarting = restart(live)
            await asyncio.to_thread(restarting.join)
            assert_each_once(results, undisturbed)
            return results, stream.subjects, before.subjects

    _, subjects, before = asyncio.run(score())
    assert_same_subjects(subjects, before)


def test_features_go_on_too(live: LiveServer, client: Client, slices: NDArray[np.float32]) -> None:
    stream = iter(client.extract_features_stream("m", images(slices[:60]), FeatureOptions(top_k=1)))
    results = [next(stream) for _ in range(5)]
    restarting = restart(live)
    results += stream
    restarting.join()
    assert [result.id for result in results] == [f"image {n}" for n in range(60)]
    assert {result.error for result in results} == {None}


def test_an_import_goes_on_too(live: LiveServer, client: Client) -> None:
    restarting: list[threading.Thread] = []

    def advance(done: int, _all: int) -> None:
        if done == 150 and not restarting:
            restarting.append(restart(live))

    result = client.import_cohort("moved", noise_plan(COUNT, SIZE, seed=0), progress=advance)
    restarting[0].join()
    assert (result.added, result.unchanged, result.rejected) == (COUNT, 0, ())
    assert set(client.cohort("moved", instances=True).instances) == {f"i{n}" for n in range(COUNT)}


def test_a_training_goes_on_from_the_step_at_which_the_server_went(
    live: LiveServer, client: Client, phantom: Path, key: bytes
) -> None:
    import_phantom(client, phantom, "pelvis", key)
    training = client.start_training("pelvis", "moved", SHORT)
    next(state for state in client.watch_training(training.id) if state.progress and state.progress.epoch)
    live.stop()
    (checkpoint,) = (live.data_dir / "jobs" / training.id / "networks").iterdir()
    left = torch.load(checkpoint, weights_only=True)
    assert (left["epochs_done"], left["finished"]) == (0, False)
    assert left["within"]["steps"] >= 1
    live.start()
    client.wait_ready()
    *_, last = client.watch_training(training.id)
    assert (last.state, last.resumed) == (JobState.SUCCEEDED, 1)


def test_who_watches_is_told_and_holds_nothing_up(live: LiveServer, client: Client) -> None:
    training = client.start_training("pelvis", "watched", SHORT)
    next(iter(client.watch_training(training.id)))
    with grpc.insecure_channel(live.address) as channel:
        watch = Watch(health_pb2_grpc.HealthStub(channel).Watch(health_pb2.HealthCheckRequest(service="")))
        open_stream = InferenceServiceStub(channel).PredictStream(iter(queue.SimpleQueue().get, None))
        watch.first.wait(30)
        assert live.stop() == 0
        assert watch.to_its_end() == [HEALTH.SERVING, HEALTH.NOT_SERVING]
        with pytest.raises(grpc.RpcError) as ended:
            next(open_stream)
        assert ended.value.code() is grpc.StatusCode.UNAVAILABLE
    live.start()
    client.wait_ready()
    client.cancel_training(training.id)


def test_a_second_signal_ends_it_at_once(live: LiveServer, client: Client, slices: NDArray[np.float32]) -> None:
    process = psutil.Process(live.pid)
    many = inference_pb2.PredictRequest()
    with grpc.insecure_channel(live.address) as channel:
        many.model.name = "m"
        for n in range(1024):
            image = many.images.add(id=str(n))
            image.grid.data, image.grid.size, image.grid.data_type = slices[0].tobytes(), SIZE, 4
        calls = [InferenceServiceStub(channel).Predict.future(many) for _ in range(20)]
        client.predict("m", slices[:1], priority=10)  # behind the calls on their way
        process.send_signal(signal.SIGTERM)
        until_closed(live)
        assert process.is_running(), "it finishes what is in flight"
        process.send_signal(signal.SIGTERM)
        assert live.wait() == 128 + signal.SIGTERM
        for call in calls:
            call.cancel()
    live.start()


def until_closed(live: LiveServer) -> None:
    """Wait until nobody listens any more."""
    port = int(live.address.rpartition(":")[2])
    while any(
        one.laddr.port == port and one.status == psutil.CONN_LISTEN
        for one in psutil.Process(live.pid).net_connections("tcp")
    ):
        pass
