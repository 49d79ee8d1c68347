"""The limits of a principal: what is over them is refused with the time to come back, or told never to."""

import asyncio
from collections.abc import Iterator

import grpc
import numpy as np
import pytest
from tritonclient.grpc import service_pb2

from limner import Client
from limner.errors import OverloadedError
from limner.v1 import cohort_pb2, common_pb2, feature_pb2, inference_pb2, model_pb2
from limner.v1.cohort_pb2_grpc import CohortServiceStub
from limner.v1.inference_pb2_grpc import InferenceServiceStub
from limner.v1.model_pb2_grpc import ModelServiceStub
from limner_server.access.config import Limits
from limner_server.access.limits import KEPT, MAX_IMAGES, Bucket, Meters, images_in
from limner_server.access.matrix import Role
from limner_server.access.principal import Principal
from limner_server.errors import RateLimitError
from limner_server.state.audit import AuditLog
from limner_server.state.database import open_database
from tests.issuer import Issuer
from tests.live import LiveServer

PUSHBACK = "grpc-retry-pushback-ms"


@pytest.fixture
def channel(plain_server: LiveServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(plain_server.address) as channel:
        yield channel


def bearer(issuer: Issuer, name: str, role: str = "score") -> list[tuple[str, str]]:
    return [("authorization", f"Bearer {issuer.token(name, role)}")]


def request(images: int, edge: int = 2) -> inference_pb2.PredictRequest:
    data = np.zeros((edge, edge), np.float32).tobytes()
    grid = common_pb2.GridArray(data=data, data_type=common_pb2.DATA_TYPE_FLOAT32, size=edge)
    found = [common_pb2.Image(id=str(number), grid=grid) for number in range(images)]
    return inference_pb2.PredictRequest(model=common_pb2.ModelSpec(name="nobody"), images=found)


def refusal(call: grpc.RpcError) -> tuple[grpc.StatusCode, str, int]:
    assert isinstance(call, grpc.Call)
    return call.code(), call.details() or "", int(dict(call.trailing_metadata())[PUSHBACK])


def test_a_call_too_many_is_refused_with_the_time_to_come_back(
    plain_server: LiveServer, channel: grpc.Channel, issuer: Issuer
) -> None:
    stub, who = ModelServiceStub(channel), bearer(issuer, "few-calls")
    stub.ListModels(model_pb2.ListModelsRequest(), metadata=who)
    with pytest.raises(grpc.RpcError) as caught:
        stub.ListModels(model_pb2.ListModelsRequest(), metadata=who)
    code, details, pushback = refusal(caught.value)
    assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "0.01 calls a second" in details
    assert 50_000 < pushback <= 100_000
    with pytest.raises(grpc.RpcError) as caught:  # whatever the method and its role: refusals would be free otherwise
        stub.DeleteModel(model_pb2.DeleteModelRequest(), metadata=who)
    assert refusal(caught.value)[0] is grpc.StatusCode.RESOURCE_EXHAUSTED
    assert (
        AuditLog(open_database(f"sqlite:///{plain_server.data_dir}/limner.sqlite")).entries(principal="token:few-calls")
        == []
    )
    stub.ListModels(model_pb2.ListModelsRequest(), metadata=bearer(issuer, "somebody-else"))


def test_images_too_many_are_refused_and_a_large_call_is_paid_for_afterwards(
    channel: grpc.Channel, issuer: Issuer
) -> None:
    stub, who = InferenceServiceStub(channel), bearer(issuer, "few-images")
    for expected in (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.RESOURCE_EXHAUSTED):
        with pytest.raises(grpc.RpcError) as caught:
            stub.Predict(request(images=3), metadata=who)
        assert isinstance(caught.value, grpc.Call)
        assert caught.value.code() is expected
    assert refusal(caught.value)[2] > 200_000, "the first call's three images, and one more"


def test_a_message_too_large_is_not_to_be_sent_again(channel: grpc.Channel, issuer: Issuer) -> None:
    stub, who = InferenceServiceStub(channel), bearer(issuer, "small-messages")
    with pytest.raises(grpc.RpcError) as caught:
        stub.Predict(request(images=1, edge=64), metadata=who)
    code, details, pushback = refusal(caught.value)
    assert (code, pushback) == (grpc.StatusCode.RESOURCE_EXHAUSTED, -1)
    assert "yours may have 0.01 MiB" in details


def test_of_a_stream_each_message_counts(channel: grpc.Channel, issuer: Issuer) -> None:
    header = cohort_pb2.ImportHeader(cohort="small", labels=["a", "b"])
    pixels = common_pb2.Pixels(data=bytes(64 * 64 * 4))
    messages = [
        cohort_pb2.ImportCohortRequest(header=header),
        cohort_pb2.ImportCohortRequest(slice=cohort_pb2.CohortSlice(instance="1", pixels=pixels)),
    ]
    who = bearer(issuer, "small-messages", "train")
    with pytest.raises(grpc.RpcError) as caught:
        CohortServiceStub(channel).ImportCohort(iter(messages), metadata=who)
    code, details, pushback = refusal(caught.value)
    assert (code, pushback) == (grpc.StatusCode.RESOURCE_EXHAUSTED, -1)
    assert "yours may have 0.01 MiB" in details


def test_the_sdk_says_overloaded(plain_server: LiveServer, issuer: Issuer) -> None:
    with (
        Client(plain_server.address, token=issuer.token("small-messages", "score")) as client,
        pytest.raises(OverloadedError, match=r"yours may have 0\.01 MiB") as caught,
    ):
        client.predict("nobody", [np.zeros((64, 64), np.float32)])
    assert not caught.value.passing


def test_a_bucket_gives_what_comes_in_and_no_more() -> None:
    now = 0.0
    bucket = Bucket(2, clock=lambda: now)
    assert [bucket.wait_s(1) for _ in range(3)] == [0, 0, 0.5]
    now = 0.5
    assert (bucket.wait_s(1), bucket.wait_s(1)) == (0, 0.5)
    now = 100.0
    assert [bucket.wait_s(1) for _ in range(3)] == [0, 0, 0.5], "what is not used is not saved up"


def test_what_is_larger_than_the_bucket_passes_when_it_is_full() -> None:
    now = 0.0
    bucket = Bucket(2, clock=lambda: now)
    assert bucket.wait_s(10) == 0
    assert bucket.wait_s(1) == 4.5
    now = 4.5
    assert bucket.wait_s(1) == 0


def test_a_stream_waits_for_its_images() -> None:
    now = 0.0
    meter = Meters(lambda: now).of(Principal("token:a", Role.SCORE, Limits(images_per_s=50)))

    async def take() -> None:
        nonlocal now
        await meter.pace(request(images=50))
        await meter.pace(model_pb2.ListModelsRequest())
        with pytest.raises(RateLimitError):
            meter.check(request(images=1))
        waiting = asyncio.create_task(meter.pace(request(images=1)))
        await asyncio.sleep(0)
        assert not waiting.done()
        now = 1.0
        await waiting

    asyncio.run(take())


def test_meters_are_kept_for_so_many_and_renewed_with_their_limits() -> None:
    meters = Meters()
    first = meters.of(Principal("token:0", Role.READ))
    assert meters.of(Principal("token:0", Role.READ)) is first
    assert meters.of(Principal("token:0", Role.READ, Limits(calls_per_s=1))) is not first
    for number in range(1, KEPT + 1):
        meters.of(Principal(f"token:{number}", Role.READ))
    assert len(meters._meters) == KEPT


def test_a_shape_that_is_not_true_costs_no_more_than_a_request_may_hold() -> None:
    now = 0.0
    meter = Meters(lambda: now).of(Principal("token:a", Role.SCORE, Limits(images_per_s=50)))
    tensor = service_pb2.ModelInferRequest.InferInputTensor(name="images", shape=[10**12, 4, 4])
    meter.check(service_pb2.ModelInferRequest(inputs=[tensor]))
    with pytest.raises(RateLimitError) as caught:
        meter.check(request(images=1))
    assert caught.value.retry_after_s < MAX_IMAGES / 50


def test_images_are_counted_whatever_the_message() -> None:
    image = common_pb2.Image(id="1")
    tensor = service_pb2.ModelInferRequest.InferInputTensor(name="images", shape=[7, 4, 4])
    assert images_in(request(images=5)) == 5
    assert images_in(inference_pb2.PredictStreamRequest(images=[image, image])) == 2
    assert images_in(feature_pb2.ExtractFeaturesRequest(images=[image])) == 1
    assert images_in(feature_pb2.ExtractFeaturesStreamRequest(image=image)) == 1
    assert images_in(feature_pb2.ExtractFeaturesStreamRequest(header={})) == 0
    assert images_in(service_pb2.ModelInferRequest(inputs=[tensor])) == 7
    assert images_in(model_pb2.ListModelsRequest()) == 0
