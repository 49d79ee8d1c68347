"""How both clients behave when the server or the network does not: errors, retries, deadlines, streams that break."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import code_pb2

from limner import AsyncClient, Client, errors, types
from limner.channel import Patience
from limner.v1 import training_pb2
from limner.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server as add_inference
from limner.v1.model_pb2_grpc import add_ModelServiceServicer_to_server as add_models
from limner.v1.training_pb2_grpc import add_TrainingServiceServicer_to_server as add_trainings
from tests.sdk.servers import Inference, Models, Silent, Trainings, serving

QUEUED, RUNNING, SUCCEEDED = (
    training_pb2.JOB_STATE_QUEUED,
    training_pb2.JOB_STATE_RUNNING,
    training_pb2.JOB_STATE_SUCCEEDED,
)


def test_a_read_is_retried_until_the_server_is_back() -> None:
    models = Models(failures=2)
    with serving(add_models, models) as address, Client(address) as client:
        model = client.model("m")
    assert models.calls == 3
    assert str(model.identity) == "m:3"
    assert model.state is types.ModelState.LOADED
    assert model.card == {"a": 1}


def test_a_deletion_is_not_retried() -> None:
    models = Models(failures=1)
    with serving(add_models, models) as address, Client(address) as client, pytest.raises(errors.UnavailableError):
        client.delete_model("m:3")
    assert models.calls == 1


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (code_pb2.INVALID_ARGUMENT, errors.InvalidInputError),
        (code_pb2.NOT_FOUND, errors.NotFoundError),
        (code_pb2.FAILED_PRECONDITION, errors.WrongStateError),
        (code_pb2.RESOURCE_EXHAUSTED, errors.OverloadedError),
        (code_pb2.DEADLINE_EXCEEDED, errors.DeadlineError),
        (code_pb2.UNAVAILABLE, errors.UnavailableError),
        (code_pb2.INTERNAL, errors.InternalError),
        (code_pb2.DATA_LOSS, errors.LimnerError),
    ],
)
def test_both_clients_raise_the_error_of_the_status(code: int, kind: type[errors.LimnerError]) -> None:
    async def delete(address: str) -> None:
        async with AsyncClient(address) as client:
            await client.delete_model("m:3")

    with serving(add_models, Models(code, failures=2, field="model.version", expected="a number")) as address:
        with Client(address) as client, pytest.raises(errors.LimnerError, match="not now") as first:
            client.delete_model("m:3")
        with pytest.raises(errors.LimnerError, match="not now") as second:
            asyncio.run(delete(address))
    for error in (first.value, second.value):
        assert type(error) is kind
        assert error.request_id == "r-1"
        if isinstance(error, errors.InvalidInputError):
            assert (error.field, error.expected) == ("model.version", "a number")


def test_a_wrong_address_is_named() -> None:
    with (
        Client("localhost:1") as client,
        pytest.raises(errors.UnavailableError, match=r"no Limner server .* localhost:1") as error,
    ):
        client.models()
    assert error.value.code is grpc.StatusCode.UNAVAILABLE
    assert error.value.request_id == ""


def test_waiting_for_a_server_that_is_not_there_ends() -> None:
    with Client("localhost:1") as client, pytest.raises(errors.UnavailableError, match="localhost:1 after"):
        client.wait_ready(timeout=0.3)


def test_a_server_without_health_is_not_waited_for() -> None:
    with serving(add_models, Models()) as address, Client(address) as client, pytest.raises(errors.UnsupportedError):
        client.wait_ready(timeout=20)


def test_another_service_says_so() -> None:
    with (
        serving(add_models, Models()) as address,
        Client(address) as client,
        pytest.raises(errors.UnsupportedError) as error,
    ):
        client.cohorts()
    assert "does not know this call" in str(error.value)


def test_a_call_ends_at_its_timeout() -> None:
    with (
        serving(add_inference, Silent()) as address,
        Client(address, timeout=0.2) as client,
        pytest.raises(errors.DeadlineError) as error,
    ):
        client.predict("m", np.zeros((4, 4), np.uint8))
    assert f"no answer from {address}" in str(error.value)


def test_a_training_is_followed_through_the_loss_of_its_server() -> None:
    trainings = Trainings([QUEUED, RUNNING, SUCCEEDED], lost_after=2)
    seen: list[types.JobState] = []
    with serving(add_trainings, trainings) as address, Client(address) as client:
        config = types.TrainingConfig(epochs=2, halves=False, grid=types.Grid(fov_mm=200, size=64))
        last = client.train("c", "m", config, progress=lambda training: seen.append(training.state))
    assert trainings.watched == 2
    assert seen == ["queued", "running", "queued", "running", "succeeded"]
    assert last.state is types.JobState.SUCCEEDED
    sent = trainings.requests[0].config
    assert (sent.epochs, sent.halves, sent.grid.size) == (2, False, 64)
    assert not sent.HasField("folds")


def test_the_asynchronous_client_follows_it_too() -> None:
    async def train(address: str) -> types.Training:
        async with AsyncClient(address) as client:
            return await client.train("c", "m")

    trainings = Trainings([RUNNING, SUCCEEDED], lost_after=1)
    with serving(add_trainings, trainings) as address:
        assert asyncio.run(train(address)).state is types.JobState.SUCCEEDED
    assert trainings.watched == 2


def test_patience_counts_from_the_loss_and_what_never_began_has_none(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [1000.0]
    monkeypatch.setattr("limner.channel.time", SimpleNamespace(monotonic=lambda: now[0]))
    patience = Patience()
    assert patience.exhausted(), "nothing has come yet"
    patience.renew()
    now[0] += 10 * Patience.LIMIT_S
    assert not patience.exhausted(), "it was quiet, and is lost only now"
    now[0] += Patience.LIMIT_S
    assert not patience.exhausted()
    now[0] += 1
    assert patience.exhausted()


@pytest.mark.parametrize("way", ["sync", "async"])
def test_a_training_that_was_quiet_for_longer_than_the_patience_is_followed_on(
    way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def train(address: str) -> types.Training:
        async with AsyncClient(address) as client:
            return await client.train("c", "m")

    monkeypatch.setattr(Patience, "LIMIT_S", 0.2)
    trainings = Trainings([RUNNING, SUCCEEDED], lost_after=1, quiet_s=0.5)
    with serving(add_trainings, trainings) as address, Client(address) as client:
        last = client.train("c", "m") if way == "sync" else asyncio.run(train(address))
    assert last.state is types.JobState.SUCCEEDED
    assert trainings.watched == 2


@pytest.mark.parametrize(
    ("make", "parcels"),
    [
        (lambda: [np.zeros((4, 4), np.uint8)] * 40, [16, 16, 8]),
        (lambda: np.zeros((17, 4, 4), np.uint8), [16, 1]),
        (lambda: [np.zeros((1024, 1024), np.uint8)] * 3, [2, 1]),
        (lambda: iter([np.zeros((4, 4), np.uint8)] * 3), [1, 1, 1]),
    ],
    ids=["a list", "an array", "large images", "an iterator"],
)
def test_images_at_hand_travel_together(make: Callable[[], Any], parcels: list[int]) -> None:
    async def score(address: str) -> list[types.ImageResult]:
        async with AsyncClient(address) as client:
            return [result async for result in client.predict_stream("m", make())]

    inference = Inference()
    with serving(add_inference, inference) as address:
        with Client(address) as client:
            results = list(client.predict_stream("m", make()))
        assert asyncio.run(score(address)) == results
    assert inference.parcels == [*parcels, *parcels]
    assert [result.id for result in results] == [str(index) for index in range(sum(parcels))]


def test_a_stream_that_is_left_early_is_cancelled() -> None:
    def endless() -> object:
        while True:
            yield np.zeros((4, 4), np.uint8)

    inference = Inference()
    with serving(add_inference, inference) as address, Client(address) as client:
        stream = client.predict_stream("m", endless())  # type: ignore[arg-type]
        assert next(iter(stream)).ok
        stream.close()
        assert inference.ended.wait(30)


def test_what_the_callers_own_iterable_raises_comes_through_after_the_answers(tmp_path: Path) -> None:
    def broken() -> object:
        yield np.full((4, 4), 255, np.uint8)
        raise RuntimeError("the caller's disk is gone")

    with serving(add_inference, Inference()) as address, Client(address) as client:
        stream = client.predict_stream("m", broken())  # type: ignore[arg-type]
        results = iter(stream)
        assert next(results).ok
        with pytest.raises(RuntimeError, match="disk is gone"):
            next(results)
