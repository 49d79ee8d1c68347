"""What is wrong with a request of the Open Inference front is named, field by field."""

from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from tritonclient.grpc import service_pb2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from tests.e2e.open_inference import IMAGES, NAN, parameter, raw_request
from tests.live import LiveServer


@pytest.fixture(scope="module")
def stub(server: LiveServer) -> Iterator[GRPCInferenceServiceStub]:
    with grpc.insecure_channel(server.address) as channel:
        yield GRPCInferenceServiceStub(channel)


def change(**fields: Any) -> Callable[[service_pb2.ModelInferRequest], None]:
    def edit(request: service_pb2.ModelInferRequest) -> None:
        request.MergeFrom(service_pb2.ModelInferRequest(**fields))

    return edit


def change_input(**fields: Any) -> Callable[[service_pb2.ModelInferRequest], None]:
    def edit(request: service_pb2.ModelInferRequest) -> None:
        shape = fields.pop("shape", None)
        if shape is not None:
            request.inputs[0].shape[:] = shape
        for name, value in fields.items():
            setattr(request.inputs[0], name, value)

    return edit


def set_raw(*contents: bytes) -> Callable[[service_pb2.ModelInferRequest], None]:
    def edit(request: service_pb2.ModelInferRequest) -> None:
        request.raw_input_contents[:] = contents

    return edit


CLASSES = service_pb2.ModelInferRequest.InferRequestedOutputTensor(
    name="logits", parameters={"classification": parameter(int64_param=1)}
)
BAD = {
    "another input": (change_input(name="image"), "inputs.name is 'image'; expected images"),
    "another type": (change_input(datatype="FP16"), "images.datatype is 'FP16'; expected FP32"),
    "another grid": (change_input(shape=(3, 64, 64)), "images.shape is '(3, 64, 64)'; expected (n, 32, 32)"),
    "no batch dimension": (change_input(shape=(96, 32)), "images.shape"),
    "no images": (change_input(shape=(0, 32, 32)), "n from 1 to 1,024"),
    "too many images": (change_input(shape=(1025, 32, 32)), "n from 1 to 1,024"),
    "truncated": (set_raw(IMAGES.tobytes()[:-1]), "images is '12287 bytes'; expected 12288 bytes of FP32"),
    "too long": (set_raw(IMAGES.tobytes() + bytes(4)), "images is '12292 bytes'"),
    "nothing": (set_raw(), "images is '0 bytes'"),
    "two contents": (set_raw(IMAGES.tobytes(), b""), "raw_input_contents is '2 of them'"),
    "NaN": (set_raw(NAN), "expected finite values"),
    "unknown output": (change(outputs=[{"name": "classes"}]), "outputs.name is 'classes'; expected each once: logits"),
    "an output twice": (change(outputs=[{"name": "logits"}] * 2), "outputs.name is 'logits'; expected each once"),
    "classification": (change(outputs=[CLASSES]), "logits.classification is 'set'"),
    "negative timeout": (change(parameters={"timeout": parameter(int64_param=-5)}), "timeout is 'int64_param: -5'"),
    "priority as text": (change(parameters={"priority": parameter(string_param="high")}), "priority is"),
    "unknown region": (
        change(outputs=[{"name": "logits", "parameters": {"shared_memory_region": parameter(string_param="away")}}]),
        "no shared memory region 'away'",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_a_bad_request_is_named(stub: GRPCInferenceServiceStub, model: str, case: str) -> None:
    spoil, message = BAD[case]
    request = raw_request(model)
    spoil(request)
    with pytest.raises(grpc.RpcError) as caught:
        stub.ModelInfer(request)
    assert message in caught.value.details()
    wrong = grpc.StatusCode.NOT_FOUND if case == "unknown region" else grpc.StatusCode.INVALID_ARGUMENT
    assert caught.value.code() is wrong
