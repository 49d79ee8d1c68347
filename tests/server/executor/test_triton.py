"""The Triton engine against a server that speaks Triton's protocol and says what a sound Triton never would.

The real Triton is in tests/e2e/test_triton.py.
"""

import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import torch
from google.protobuf import text_format
from numpy.typing import NDArray
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.grpc.service_pb2_grpc import (
    GRPCInferenceServiceServicer,
    add_GRPCInferenceServiceServicer_to_server,
)

from limner_server.errors import UnavailableError, WrongStateError
from limner_server.executor.engine import Operation
from limner_server.executor.torchscript import TorchScriptEngine
from limner_server.executor.triton import TritonEngine
from limner_server.executor.triton_client import TritonClient
from limner_server.networks.artifact import Artifact, export
from limner_server.networks.card import ModelCard
from limner_server.networks.resnet import build_network
from limner_server.networks.triton import model_config
from tests.sdk.servers import serving
from tests.server.networks.cards import REFERENCE, make_card

SIZE = 32
IMAGES = np.arange(5, dtype=np.float32)[:, None, None] * np.ones((SIZE, SIZE), np.float32)
NO_TARGETS = np.full(5, -1, np.int64)

Alter = Callable[[service_pb2.ModelInferResponse], object]


class StandIn(GRPCInferenceServiceServicer):  # type: ignore[misc]
    """Serves version 3 of "m": all outputs of an image are its maximum. `config` and replies can be altered."""

    def __init__(self, card: ModelCard) -> None:
        self.config = model_config("m", {3: card}, "pytorch")
        self._widths = card.outputs
        self.batches: list[int] = []
        self.alter: Alter = lambda _: None
        self.status: grpc.StatusCode | None = None
        self.loading = False

    def ServerLive(
        self, request: service_pb2.ServerLiveRequest, context: grpc.ServicerContext
    ) -> service_pb2.ServerLiveResponse:
        return service_pb2.ServerLiveResponse(live=True)

    def ModelConfig(
        self, request: service_pb2.ModelConfigRequest, context: grpc.ServicerContext
    ) -> service_pb2.ModelConfigResponse:
        if (request.name, request.version) != ("m", "3"):
            context.abort(grpc.StatusCode.NOT_FOUND, f"Request for unknown model: {request.name!r} is not found")
        if self.loading:
            context.abort(grpc.StatusCode.UNAVAILABLE, "version 3 is not at ready state")
        return service_pb2.ModelConfigResponse(config=self.config)

    def ModelInfer(
        self, request: service_pb2.ModelInferRequest, context: grpc.ServicerContext
    ) -> service_pb2.ModelInferResponse:
        images = np.frombuffer(request.raw_input_contents[0], np.float32).reshape(request.inputs[0].shape)
        self.batches.append(len(images))
        if self.status is not None:
            context.abort(self.status, "as the test wants it")
        reply = service_pb2.ModelInferResponse(model_name="m", model_version="3")
        for output in request.outputs:
            width = self._widths[output.name]
            reply.outputs.add(name=output.name, datatype="FP32", shape=(len(images), width))
            reply.raw_output_contents.append(images.max(axis=(1, 2)).repeat(width).tobytes())
        self.alter(reply)
        return reply


@pytest.fixture(scope="module")
def artifact(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, ModelCard]:
    """An untrained ResNet-18 with channel means drawn at random, and its card."""
    torch.manual_seed(0)
    network = build_network("resnet18", 2)
    path = tmp_path_factory.mktemp("artifact") / "model.pt"
    means = [torch.rand(channels) for channels in network.channels()]
    return path, make_card(digest=export(Artifact(network, 1.3, means), path), reference=REFERENCE)


@pytest.fixture
def triton(artifact: tuple[Path, ModelCard]) -> StandIn:
    return StandIn(artifact[1])


@pytest.fixture
def url(triton: StandIn) -> Iterator[str]:
    with serving(add_GRPCInferenceServiceServicer_to_server, triton) as address:
        yield address


@pytest.fixture
def engine(url: str, artifact: tuple[Path, ModelCard]) -> Iterator[TritonEngine]:
    engine = make_engine(url, artifact)
    yield engine
    engine.close()


def make_engine(url: str, artifact: tuple[Path, ModelCard], version: int = 3) -> TritonEngine:
    path, card = artifact
    return TritonEngine(TritonClient(url, 5.0, "m", version, card), card, path, threads=1)


def predict(engine: TritonEngine) -> NDArray[np.float32]:
    return engine.run(Operation.PREDICT, (), IMAGES, NO_TARGETS)["logits"]


def until_healthy(engine: TritonEngine) -> None:
    while not engine.healthy:
        time.sleep(0.05)


def test_a_batch_is_sent_in_parts_that_triton_takes(engine: TritonEngine, triton: StandIn) -> None:
    triton.config.max_batch_size = 2
    engine.warm(SIZE, 16)
    arrays = engine.run(Operation.PREDICT, (), IMAGES, NO_TARGETS)
    assert triton.batches == [2, 2, 1]
    assert [array.shape for array in arrays.values()] == [(5, 2), (5, 2), (5, 512), (5, 1)]
    assert all(np.array_equal(array[:, -1], np.arange(5)) for array in arrays.values())


def test_batches_of_two_lanes_are_in_triton_at_a_time(engine: TritonEngine, triton: StandIn) -> None:
    both = threading.Barrier(engine.lanes)
    triton.alter = lambda _: both.wait(timeout=4)
    engine.warm(SIZE, 16)
    with ThreadPoolExecutor(engine.lanes) as pool:
        answers = list(pool.map(lambda _: predict(engine), range(engine.lanes)))
    assert [answer[:, 0].tolist() for answer in answers] == [[0, 1, 2, 3, 4]] * 2


@pytest.mark.parametrize(
    ("line", "instead", "said"),
    [
        ('string_value: "0', 'string_value: "f', "digest f0*; here it has 0*"),
        ('key: "digest.3"', 'key: "digest.4"', "digest unknown; here it has 0*"),
        ("max_batch_size: 64", "max_batch_size: 0", "max_batch_size 0; expected 1 or more"),
        ('name: "images"', 'name: "x"', "images of nothing"),
        ("dims: 32", "dims: 64", r"images of TYPE_FP32 \[64, 32\]; expected TYPE_FP32 \[32, 32\]"),
        ("dims: 2", "dims: 2 dims: 2", r"logits of TYPE_FP32 \[2, 2\]; expected TYPE_FP32 \[2\]"),
        ("data_type: TYPE_FP32", "data_type: TYPE_FP16", "images of TYPE_FP16"),
    ],
)
def test_another_model_is_refused_when_loaded(triton: StandIn, url: str, line: str, instead: str, said: str) -> None:
    card = make_card()
    text = text_format.MessageToString(model_config("m", {3: card}, "pytorch"))
    triton.config = text_format.Parse(text.replace(line, instead, 1), model_config_pb2.ModelConfig())
    with pytest.raises(WrongStateError, match=said) as caught:
        TritonClient(url, 5.0, "m", 3, card).check()
    assert url in str(caught.value)


def test_a_triton_that_tells_no_distance_serves_all_else(engine: TritonEngine, triton: StandIn) -> None:
    """As one does that has an older version of the model beside this one."""
    del triton.config.output[3]
    engine.warm(SIZE, 16)
    arrays = engine.run(Operation.PREDICT, (), IMAGES, NO_TARGETS)
    assert arrays["logits"][:, 0].tolist() == [0, 1, 2, 3, 4]
    assert arrays["distance"].shape == (5, 1)
    assert np.isnan(arrays["distance"]).all()


def test_sizes_that_triton_leaves_open_are_accepted(engine: TritonEngine, triton: StandIn) -> None:
    for tensor in (*triton.config.input, *triton.config.output):
        tensor.dims[:] = [-1] * len(tensor.dims)
    engine.warm(SIZE, 16)
    assert predict(engine)[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_a_version_that_is_not_ready_is_not_loaded_while_triton_is_up(engine: TritonEngine, triton: StandIn) -> None:
    triton.loading = True
    with pytest.raises(UnavailableError, match="not at ready state"):
        engine.warm(SIZE, 16)


def test_a_version_that_triton_does_not_have_is_named(url: str, artifact: tuple[Path, ModelCard]) -> None:
    engine = make_engine(url, artifact, version=4)
    with pytest.raises(WrongStateError, match=f"no version 4 of model 'm' in the Triton at {url}"):
        engine.warm(SIZE, 16)
    engine.close()


@pytest.mark.parametrize(
    ("tensor", "content", "said"),
    [
        ({"name": "logits", "datatype": "FP32", "shape": (5, 3)}, bytes(60), r"logits of FP32 \(5, 3\) in 60 bytes"),
        ({"name": "logits", "datatype": "FP64", "shape": (5, 2)}, bytes(80), r"logits of FP64 \(5, 2\)"),
        ({"name": "logits", "datatype": "FP32", "shape": (5, 2)}, bytes(36), "in 36 bytes"),
        ({"name": "x", "datatype": "FP32", "shape": (5, 2)}, bytes(40), "logits of nothing"),
    ],
    ids=["shape", "type", "length", "name"],
)
def test_a_reply_of_another_shape_is_no_answer(
    engine: TritonEngine, triton: StandIn, tensor: dict[str, Any], content: bytes, said: str
) -> None:
    def alter(reply: service_pb2.ModelInferResponse) -> None:
        reply.outputs[0].CopyFrom(service_pb2.ModelInferResponse.InferOutputTensor(**tensor))
        reply.raw_output_contents[0] = content

    engine.warm(SIZE, 16)
    triton.alter = alter
    with pytest.raises(WrongStateError, match=said):
        predict(engine)


def test_logits_that_are_not_finite_are_no_answer(engine: TritonEngine, triton: StandIn) -> None:
    def alter(reply: service_pb2.ModelInferResponse) -> None:
        reply.raw_output_contents[0] = np.full((5, 2), np.nan, np.float32).tobytes()

    engine.warm(SIZE, 16)
    triton.alter = alter
    with pytest.raises(ArithmeticError):
        predict(engine)
    assert engine.healthy, "it is the image's fault"


def test_an_answer_during_which_the_artifact_was_changed_is_none(
    engine: TritonEngine, triton: StandIn, artifact: tuple[Path, ModelCard]
) -> None:
    """A Triton restarted between two looks answers like the one before; only its configuration tells."""
    engine.warm(SIZE, 16)
    own = triton.config.parameters["digest.3"].string_value
    triton.config.parameters["digest.3"].string_value = "f" * 64
    with pytest.raises(WrongStateError, match=f"digest {'f' * 64}; here it has {own}"):
        predict(engine)
    assert not engine.healthy
    sent = len(triton.batches)
    with pytest.raises(WrongStateError):
        predict(engine)
    assert len(triton.batches) == sent, "nothing is sent before Triton is found well again"
    triton.config.parameters["digest.3"].string_value = own
    until_healthy(engine)
    assert predict(engine)[:, 0].tolist() == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("status", [grpc.StatusCode.INTERNAL, grpc.StatusCode.INVALID_ARGUMENT])
def test_a_failed_batch_is_for_the_executor_to_look_into(
    engine: TritonEngine, triton: StandIn, status: grpc.StatusCode
) -> None:
    engine.warm(SIZE, 16)
    triton.status = status
    with pytest.raises(RuntimeError, match="as the test wants it"):
        predict(engine)
    assert engine.healthy


@pytest.mark.parametrize("status", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.RESOURCE_EXHAUSTED])
def test_a_triton_that_gives_no_answer_is_unavailable(
    engine: TritonEngine, triton: StandIn, url: str, status: grpc.StatusCode
) -> None:
    engine.warm(SIZE, 16)
    triton.status = status
    with pytest.raises(UnavailableError, match=f"Triton at {url} did not give the answer to 5 images: {status.name}"):
        predict(engine)
    triton.status = None
    until_healthy(engine)
    assert predict(engine)[:, 0].tolist() == [0, 1, 2, 3, 4]


def test_what_is_no_triton_is_unavailable(artifact: tuple[Path, ModelCard]) -> None:
    with serving(lambda *_: None, None) as url:
        engine = make_engine(url, artifact)
        engine.warm(SIZE, 16)
        with pytest.raises(UnavailableError, match="UNIMPLEMENTED"):
            predict(engine)
        engine.close()


def test_explaining_needs_no_triton(artifact: tuple[Path, ModelCard]) -> None:
    path, card = artifact
    engine = make_engine("127.0.0.1:1", artifact)
    engine.warm(SIZE, 16)
    assert not engine.healthy
    with pytest.raises(UnavailableError, match=r"127\.0\.0\.1:1"):
        predict(engine)
    alone = TorchScriptEngine(path, card, threads=1)
    alone.warm(SIZE, 1)
    for operation in (Operation.EXPLAIN, Operation.ABLATE):
        found = engine.run(operation, ("layer4",), IMAGES[:2], NO_TARGETS[:2])
        expected = alone.run(operation, ("layer4",), IMAGES[:2], NO_TARGETS[:2])
        assert found.keys() == expected.keys()
        for name, array in found.items():
            np.testing.assert_allclose(array, expected[name], atol=1e-5)
    for layer, means in engine.channel_means.items():
        np.testing.assert_array_equal(means, alone.channel_means[layer])
    engine.close()


def test_an_artifact_that_is_not_the_cards_is_refused(artifact: tuple[Path, ModelCard], tmp_path: Path) -> None:
    path = tmp_path / "model.pt"
    path.write_bytes(artifact[0].read_bytes() + b"\0")
    with pytest.raises(WrongStateError, match="not loaded"):
        make_engine("127.0.0.1:1", (path, artifact[1]))


def test_closing_leaves_no_thread(url: str, artifact: tuple[Path, ModelCard]) -> None:
    engine = make_engine(url, artifact)
    engine.warm(SIZE, 16)
    engine.run(Operation.EXPLAIN, ("layer4",), IMAGES[:1], NO_TARGETS[:1])
    engine.close()
    names = {thread.name for thread in threading.enumerate()}
    assert not any(name.startswith("limner-") for name in names), names
