"""The Open Inference front as tritonclient sees it, on the same server, executors and models as limner.v1."""

import asyncio
import json
import queue
import re
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton
import tritonclient.grpc.aio as triton_aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from tritonclient.grpc import service_pb2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub
from tritonclient.utils import InferenceServerException
from tritonclient.utils import shared_memory as shm

from limner import Client
from limner.v1 import common_pb2, inference_pb2
from limner.v1.inference_pb2_grpc import InferenceServiceStub
from tests.e2e.open_inference import IMAGES, NAN, SIZE, raw_request, tensor
from tests.live import LiveServer

LABELS = 2
EMBEDDING = 512
OUTPUTS = {"logits": LABELS, "probabilities": LABELS, "embedding": EMBEDDING, "distance": 1}
SERVICE = "inference.GRPCInferenceService"
GUIDE = (Path(__file__).parents[2] / "docs" / "open-inference.md").read_text()


@pytest.fixture(scope="module")
def triton_client(server: LiveServer, model: str) -> Iterator[triton.InferenceServerClient]:
    """A tritonclient of the shared server."""
    with triton.InferenceServerClient(server.address) as client:
        assert client.is_model_ready(model)
        yield client


@pytest.fixture(scope="module")
def channel(server: LiveServer) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(server.address) as channel:
        yield channel


@pytest.fixture(scope="module")
def stub(channel: grpc.Channel) -> GRPCInferenceServiceStub:
    return GRPCInferenceServiceStub(channel)


@pytest.fixture(scope="module")
def expected(channel: grpc.Channel, model: str) -> dict[str, NDArray[np.float32]]:
    """What limner.v1 answers to `IMAGES`."""
    predictions = predict(channel, model)
    return {
        "logits": np.array([each.logits for each in predictions], np.float32),
        "probabilities": np.array([each.probabilities for each in predictions], np.float32),
        "distance": np.array([[each.distance.value] for each in predictions], np.float32),
    }


@pytest.fixture
def lonely(server: LiveServer, model: str, tmp_path: Path) -> Iterator[LiveServer]:
    """A server of its own with that model, which runs one image at a time."""
    shutil.copytree(server.model_repository / model, tmp_path / "model_repository" / model)
    with LiveServer(tmp_path, max_batch_size=1, threads=1) as live:
        yield live


def predict(channel: grpc.Channel, model: str) -> list[common_pb2.Prediction]:
    """Ask for `IMAGES` by limner.v1."""
    images = [
        common_pb2.Image(
            id=str(index),
            grid=common_pb2.GridArray(data=image.tobytes(), data_type=common_pb2.DATA_TYPE_FLOAT32, size=SIZE),
        )
        for index, image in enumerate(IMAGES)
    ]
    request = inference_pb2.PredictRequest(model=common_pb2.ModelSpec(name=model), images=images)
    return [result.prediction for result in InferenceServiceStub(channel).Predict(request).results]


def assert_same(result: Any, expected: dict[str, NDArray[np.float32]], rows: slice = slice(None)) -> None:
    for name, values in expected.items():
        np.testing.assert_allclose(result.as_numpy(name), values[rows], rtol=0, atol=1e-4)


def test_metadata_is_what_clients_need(triton_client: triton.InferenceServerClient, model: str) -> None:
    assert triton_client.is_server_live()
    assert triton_client.is_server_ready()
    assert triton_client.is_model_ready(model, "1")
    assert not triton_client.is_model_ready(model, "7")
    assert not triton_client.is_model_ready("nothing")
    server = triton_client.get_server_metadata()
    assert server.name == "limner"
    assert set(server.extensions) == {
        *("model_configuration", "model_repository", "parameters"),
        *("schedule_policy", "statistics", "system_shared_memory"),
    }
    metadata = triton_client.get_model_metadata(model)
    assert list(metadata.versions) == ["1"]
    tensors = {each.name: (each.datatype, list(each.shape)) for each in (*metadata.inputs, *metadata.outputs)}
    assert tensors == {
        "images": ("FP32", [-1, SIZE, SIZE]),
        **{name: ("FP32", [-1, width]) for name, width in OUTPUTS.items()},
    }


def test_the_configuration_is_of_this_server(triton_client: triton.InferenceServerClient, model: str) -> None:
    config = triton_client.get_model_config(model).config
    assert (config.name, config.max_batch_size) == (model, 1024)
    assert [(each.name, list(each.dims)) for each in config.input] == [("images", [SIZE, SIZE])]
    assert {each.name: list(each.dims) for each in config.output} == {name: [OUTPUTS[name]] for name in OUTPUTS}
    assert float(config.parameters["fov_mm"].string_value) == 160
    assert len(json.loads(config.parameters["labels"].string_value)) == LABELS
    batching = config.dynamic_batching
    assert list(batching.preferred_batch_size) == [16]
    assert batching.max_queue_delay_microseconds == 20_000
    assert (batching.priority_levels, batching.default_priority_level) == (11, 11)


def test_health_and_reflection_know_the_service(channel: grpc.Channel) -> None:
    health = health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(service=SERVICE))
    assert health.status == health_pb2.HealthCheckResponse.SERVING
    assert SERVICE in ProtoReflectionDescriptorDatabase(channel).get_services()


def test_the_answers_are_those_of_limner_v1(
    triton_client: triton.InferenceServerClient, model: str, expected: dict[str, NDArray[np.float32]]
) -> None:
    result = triton_client.infer(model, [tensor()], request_id="seven")
    reply = result.get_response()
    assert (reply.id, reply.model_name, reply.model_version) == ("seven", model, "1")
    assert [(each.name, list(each.shape)) for each in reply.outputs] == [(n, [3, w]) for n, w in OUTPUTS.items()]
    assert_same(result, expected)
    for index in range(len(IMAGES)):
        alone = triton_client.infer(model, [tensor(IMAGES[index : index + 1])], model_version="1")
        assert_same(alone, expected, slice(index, index + 1))


def test_values_may_come_as_contents(
    stub: GRPCInferenceServiceStub, model: str, expected: dict[str, NDArray[np.float32]]
) -> None:
    request = raw_request(model)
    del request.raw_input_contents[:]
    request.inputs[0].contents.fp32_contents.extend(IMAGES.ravel())
    assert_same(triton.InferResult(stub.ModelInfer(request)), expected)


def test_only_the_outputs_that_are_asked_for_come_in_that_order(
    triton_client: triton.InferenceServerClient, model: str
) -> None:
    wanted = [triton.InferRequestedOutput(name) for name in ("embedding", "logits")]
    result = triton_client.infer(model, [tensor()], outputs=wanted)
    assert [output.name for output in result.get_response().outputs] == ["embedding", "logits"]
    assert result.as_numpy("embedding").shape == (3, EMBEDDING)
    assert result.as_numpy("probabilities") is None


def test_a_request_may_be_larger_than_a_batch(
    triton_client: triton.InferenceServerClient, model: str, expected: dict[str, NDArray[np.float32]]
) -> None:
    many = np.tile(IMAGES, (40, 1, 1))
    logits = triton_client.infer(model, [tensor(many)]).as_numpy("logits")
    np.testing.assert_allclose(logits, np.tile(expected["logits"], (40, 1)), rtol=0, atol=1e-5)


def test_asyncio_clients_share_batches(
    server: LiveServer, model: str, expected: dict[str, NDArray[np.float32]]
) -> None:
    async def ask() -> list[Any]:
        async with triton_aio.InferenceServerClient(server.address) as client:
            return await asyncio.gather(
                *(client.infer(model, [tensor(IMAGES[index % 3 : index % 3 + 1])]) for index in range(30))
            )

    for index, result in enumerate(asyncio.run(ask())):
        assert_same(result, expected, slice(index % 3, index % 3 + 1))


def test_a_stream_answers_every_request(
    triton_client: triton.InferenceServerClient, model: str, expected: dict[str, NDArray[np.float32]]
) -> None:
    answers: queue.Queue[tuple[Any, Any]] = queue.Queue()
    triton_client.start_stream(callback=lambda result, error: answers.put((result, error)))
    for index in range(9):
        image = tensor(IMAGES[index % 3 : index % 3 + 1])
        triton_client.async_stream_infer(
            model, [image], request_id=str(index), enable_empty_final_response=index % 2 == 0
        )
    for index in range(9):
        result, error = answers.get(timeout=30)
        assert error is None
        assert result.get_response().id == str(index)
        assert result.get_response().parameters["triton_final_response"].bool_param
        assert_same(result, expected, slice(index % 3, index % 3 + 1))
    triton_client.stop_stream()
    assert answers.empty()


def test_a_bad_request_does_not_end_its_stream(
    stub: GRPCInferenceServiceStub, model: str, expected: dict[str, NDArray[np.float32]]
) -> None:
    bad = raw_request(model, id="bad")
    bad.inputs[0].datatype = "INT8"
    requests = [
        raw_request(model, id="good 1"),
        bad,
        raw_request("nothing", id="lost"),
        raw_request(model, id="good 2"),
    ]
    first, second, third, fourth = stub.ModelStreamInfer(iter(requests))
    assert [each.infer_response.id for each in (first, second, third, fourth)] == [each.id for each in requests]
    assert second.error_message == "images.datatype is 'INT8'; expected FP32"
    assert "no model 'nothing'; there is: " in third.error_message
    for good in (first, fourth):
        assert not good.error_message
        assert_same(triton.InferResult(good.infer_response), expected)


@pytest.mark.parametrize(("name", "version"), [("nothing", ""), ("small", "7"), ("small", "no such alias")])
def test_an_unknown_model_is_not_found(triton_client: triton.InferenceServerClient, name: str, version: str) -> None:
    for call in (
        triton_client.get_model_metadata,
        triton_client.get_model_config,
        triton_client.get_inference_statistics,
    ):
        with pytest.raises(InferenceServerException, match=r"there is: ") as caught:
            call(name, version)
        assert caught.value.status() == "StatusCode.NOT_FOUND"
    with pytest.raises(InferenceServerException, match=r"there is: ") as caught:
        triton_client.infer(name, [tensor()], model_version=version)
    assert caught.value.status() == "StatusCode.NOT_FOUND"


@pytest.mark.parametrize("name", ["TraceSetting", "LogSettings", "CudaSharedMemoryRegister"])
def test_what_is_not_served_is_unimplemented(stub: GRPCInferenceServiceStub, name: str) -> None:
    with pytest.raises(grpc.RpcError, match=rf"{name}Request is not served; served are: .*statistics") as caught:
        getattr(stub, name)(getattr(service_pb2, f"{name}Request")())
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


def test_no_cuda_region_is_there_to_be_unregistered(triton_client: triton.InferenceServerClient) -> None:
    triton_client.unregister_cuda_shared_memory()
    assert not triton_client.get_cuda_shared_memory_status().regions


def test_a_timeout_that_has_passed_is_told(triton_client: triton.InferenceServerClient, model: str) -> None:
    with pytest.raises(InferenceServerException, match="deadline passed while the image waited") as caught:
        triton_client.infer(model, [tensor()], timeout=1)
    assert caught.value.status() == "StatusCode.DEADLINE_EXCEEDED"
    assert triton_client.infer(model, [tensor()], timeout=60_000_000, client_timeout=60).as_numpy("logits").shape == (
        3,
        2,
    )


def test_parameters_of_others_change_nothing(
    stub: GRPCInferenceServiceStub, model: str, expected: dict[str, NDArray[np.float32]]
) -> None:
    request = raw_request(model)
    request.parameters["sequence_id"].int64_param = 3
    request.parameters["triton_something_new"].bool_param = True
    request.parameters["priority"].uint64_param = 1
    assert_same(triton.InferResult(stub.ModelInfer(request)), expected)


def test_shared_memory_carries_tensors_both_ways(
    triton_client: triton.InferenceServerClient, model: str, expected: dict[str, NDArray[np.float32]]
) -> None:
    key = f"/limner-{uuid.uuid4().hex}"
    embedding_at = IMAGES.nbytes + 100  # unlike the pictures' of the page, on purpose
    region = shm.create_shared_memory_region("tensors", key, embedding_at + 3 * 4 * EMBEDDING)
    try:
        shm.set_shared_memory_region(region, [IMAGES])
        triton_client.register_system_shared_memory("tensors", key, embedding_at + 3 * 4 * EMBEDDING)
        status = triton_client.get_system_shared_memory_status("tensors").regions["tensors"]
        assert (status.name, status.key, status.offset) == ("tensors", key, 0)
        with pytest.raises(InferenceServerException, match="'tensors' is registered already"):
            triton_client.register_system_shared_memory("tensors", key, 1)
        images = triton.InferInput("images", IMAGES.shape, "FP32")
        images.set_shared_memory("tensors", IMAGES.nbytes)
        embedding = triton.InferRequestedOutput("embedding")
        embedding.set_shared_memory("tensors", 3 * 4 * EMBEDDING, offset=embedding_at)
        wanted = [embedding, *(triton.InferRequestedOutput(name) for name in OUTPUTS if name != "embedding")]
        result = triton_client.infer(model, [images], outputs=wanted)
        assert_same(result, expected)
        told = result.get_output("embedding").parameters
        assert told["shared_memory_region"].string_param == "tensors"
        assert told["shared_memory_offset"].int64_param == embedding_at
        assert told["shared_memory_byte_size"].int64_param == 3 * 4 * EMBEDDING
        over_the_wire = triton_client.infer(model, [tensor()]).as_numpy("embedding")
        written = shm.get_contents_as_numpy(region, np.float32, (3, EMBEDDING), embedding_at)
        np.testing.assert_allclose(written, over_the_wire, rtol=0, atol=1e-5)

        images.set_shared_memory("tensors", IMAGES.nbytes, offset=embedding_at)
        with pytest.raises(InferenceServerException, match=r"no more than the .* bytes of region 'tensors'"):
            triton_client.infer(model, [images])
        images = triton.InferInput("images", IMAGES.shape, "FP32")
        images.set_shared_memory("tensors", IMAGES.nbytes - 4)
        with pytest.raises(InferenceServerException, match="expected 12288 bytes of FP32"):
            triton_client.infer(model, [images])
        embedding.set_shared_memory("tensors", 4 * EMBEDDING, offset=embedding_at)
        with pytest.raises(
            InferenceServerException, match=r"embedding.shared_memory_byte_size is '2048'; expected 6144"
        ):
            triton_client.infer(model, [tensor()], outputs=[embedding])
        for name in ("tensors", "tensors", ""):
            triton_client.unregister_system_shared_memory(name)
        assert not triton_client.get_system_shared_memory_status().regions
        with pytest.raises(InferenceServerException, match="no shared memory region 'tensors'"):
            triton_client.infer(model, [images])
    finally:
        shm.destroy_shared_memory_region(region)


def test_workers_advertise_what_they_share_and_leave_clients_segments_alone(tmp_path: Path) -> None:
    segment = Path(f"/dev/shm/limner-{uuid.uuid4().hex}")  # noqa: S108
    segment.write_bytes(bytes(64))
    try:
        with (
            LiveServer(tmp_path, workers=2) as live,
            triton.InferenceServerClient(live.address) as client,
        ):
            extensions = set(client.get_server_metadata().extensions)
            assert extensions == {"model_configuration", "model_repository", "parameters", "schedule_policy"}
            client.register_system_shared_memory("kept", f"/{segment.name}", 64)
        assert segment.read_bytes() == bytes(64)
        assert "resource_tracker" not in live.log()
    finally:
        segment.unlink()


@pytest.mark.parametrize("block", re.findall(r"^```python\n(.*?)^```$", GUIDE, re.MULTILINE | re.DOTALL))
def test_the_guide_does_as_it_says(server: LiveServer, model: str, phantom: Path, block: str) -> None:
    here = {"localhost:8500": server.address, "cervix": model, "study/0001.dcm": str(phantom / "PH-000" / "0001.dcm")}
    for written, real in here.items():
        block = block.replace(written, real)
    exec(compile(block, "docs/open-inference.md", "exec"), {})  # noqa: S102


def test_models_are_loaded_and_unloaded(
    triton_client: triton.InferenceServerClient, stub: GRPCInferenceServiceStub, client: Client, model: str
) -> None:
    def state() -> str:
        (found,) = [each for each in triton_client.get_model_repository_index().models if each.name == model]
        ready = stub.RepositoryIndex(service_pb2.RepositoryIndexRequest(ready=True)).models
        assert (model in {each.name for each in ready}) == (found.state == "READY")
        return f"{found.version} {found.state} {found.reason}".strip()

    triton_client.load_model(model)
    assert (state(), client.model(model).state.name) == ("1 READY", "LOADED")
    triton_client.unload_model(model)
    assert (state(), client.model(model).state.name) == ("1 UNAVAILABLE unloaded", "AVAILABLE")
    assert not triton_client.is_model_ready(model)
    triton_client.unload_model(model)
    triton_client.load_model(model)
    assert (state(), client.model(model).state.name) == ("1 READY", "LOADED")
    triton_client.unload_model(model)
    assert triton_client.infer(model, [tensor()]).as_numpy("logits").shape == (3, LABELS), "a request loads it as well"
    assert triton_client.is_model_ready(model)
    with pytest.raises(InferenceServerException, match="parameters is 'config'"):
        triton_client.load_model(model, config="{}")
    with pytest.raises(InferenceServerException, match="no model 'nothing'"):
        triton_client.unload_model("nothing")


def test_statistics_grow_with_the_requests_of_both_fronts(
    triton_client: triton.InferenceServerClient, channel: grpc.Channel, model: str
) -> None:
    triton_client.unload_model(model)
    (unused,) = triton_client.get_inference_statistics(model).model_stats
    assert (unused.version, unused.inference_count) == ("1", 0)
    triton_client.infer(model, [tensor()])
    triton_client.infer(model, [tensor(IMAGES[:1])])
    with pytest.raises(InferenceServerException):
        triton_client.infer(model, [tensor()], timeout=1)
    assert len(predict(channel, model)) == 3
    (found,) = triton_client.get_inference_statistics(model, "1").model_stats
    assert (found.name, found.version, found.inference_count) == (model, "1", 7)
    assert 3 <= found.execution_count <= 7
    assert found.last_inference > 0
    counted = found.inference_stats
    assert counted.fail.count == 1
    parts = [counted.queue, counted.compute_input, counted.compute_infer, counted.compute_output]
    assert [part.count for part in (counted.success, *parts)] == [5] * 5
    assert 0 < sum(part.ns for part in parts) <= counted.success.ns
    assert sum(each.compute_infer.count for each in found.batch_stats) == found.execution_count
    assert model in {each.name for each in triton_client.get_inference_statistics().model_stats}


def test_an_urgent_request_overtakes_and_abandoned_ones_are_dropped(lonely: LiveServer, model: str) -> None:
    waiting = 200
    image = tensor(IMAGES[:1])

    async def ask() -> tuple[list[str], int]:
        async with triton_aio.InferenceServerClient(lonely.address) as client:
            await client.load_model(model)
            order: list[str] = []

            async def infer(name: str, **options: Any) -> None:
                await client.infer(model, [image], **options)
                order.append(name)

            ordinary = [asyncio.create_task(infer("ordinary")) for _ in range(waiting)]
            await asyncio.sleep(0)
            await asyncio.create_task(infer("urgent", priority=1))
            for task in ordinary:
                task.cancel()
            await asyncio.gather(*ordinary, return_exceptions=True)
            await infer("after")
            (counted,) = (await client.get_inference_statistics(model)).model_stats
            return order, counted.execution_count

    order, executions = asyncio.run(ask())
    assert order.index("urgent") < waiting
    assert order[-1] == "after"
    assert executions < waiting + 2, "what was cancelled was not run"


@given(
    shape=st.one_of(st.just([3, SIZE, SIZE]), st.lists(st.integers(-2, 40), max_size=4)),
    datatype=st.sampled_from(["FP32", "FP32", "FP32", "INT64", ""]),
    contents=st.one_of(
        st.just([IMAGES.tobytes()]),
        st.lists(st.one_of(st.binary(max_size=64), st.just(IMAGES.tobytes()), st.just(NAN)), max_size=2),
    ),
    outputs=st.lists(st.sampled_from([*OUTPUTS, "maps"]), max_size=2),
    number=st.sampled_from(["int64_param", "uint64_param", "double_param"]),
)
@example(shape=[3, SIZE, SIZE], datatype="FP32", contents=[IMAGES.tobytes()], outputs=[], number="int64_param")
@settings(max_examples=60, deadline=None)
def test_nothing_sent_is_an_internal_error(
    stub: GRPCInferenceServiceStub,
    model: str,
    shape: list[int],
    datatype: str,
    contents: list[bytes],
    outputs: list[str],
    number: str,
) -> None:
    request = service_pb2.ModelInferRequest(model_name=model, raw_input_contents=contents)
    request.inputs.add(name="images", datatype=datatype, shape=shape)
    for name in outputs:
        request.outputs.add(name=name)
    setattr(request.parameters["priority"], number, 1)
    call = stub.ModelInfer.future(request)
    if call.code() is grpc.StatusCode.OK:
        assert [output.name for output in call.result().outputs] == (outputs or list(OUTPUTS))
    else:
        assert call.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert "; expected " in call.details()
