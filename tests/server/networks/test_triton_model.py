"""`model.py` in the real Triton's Python backend, with a tiny artifact whose answers are known."""

import hashlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
import numpy as np
import pytest
import torch
from google.protobuf import text_format
from numpy.typing import NDArray
from torch import Tensor
from tritonclient.grpc import model_config_pb2, service_pb2
from tritonclient.grpc.service_pb2_grpc import GRPCInferenceServiceStub

from limner.imaging.grid import Grid
from limner_server.networks.repository import ModelRepository
from tests.server.networks.cards import REFERENCE, make_card
from tests.triton_server import TritonServer, install_triton

BATCH = 4
TOO_BRIGHT = 1000
CONFIG = "configs/python.pbtxt"


class Old(torch.nn.Module):
    """As before there were distances. Logits are mean and minimum of an image, the embedding is its maximum."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = torch.stack([images.mean(dim=(1, 2)), images.amin(dim=(1, 2))], dim=1)
        return logits, torch.softmax(logits, dim=1), images.amax(dim=(1, 2)).unsqueeze(1)


class Picky(Old):
    """The same with minus the maximum as distance; fails where an image is bright."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # type: ignore[override]
        if bool(images.max() > 1000):
            raise ValueError("too bright")
        logits = torch.stack([images.mean(dim=(1, 2)), images.amin(dim=(1, 2))], dim=1)
        largest = images.amax(dim=(1, 2)).unsqueeze(1)
        return logits, torch.softmax(logits, dim=1), largest, -largest


def publish(repository: ModelRepository, name: str, staging: Path, size: int = 32, *, old: bool = False) -> None:
    staging.mkdir()
    torch.jit.save(torch.jit.script((Old() if old else Picky()).eval()), staging / "model.pt")
    digest = hashlib.sha256((staging / "model.pt").read_bytes()).hexdigest()
    reference = None if old else REFERENCE
    changes = {"training": staging.name, "digest": digest, "reference": reference, "channels": (1,) * 5}
    card = make_card(grid=Grid(size=size), **changes)
    (staging / "card.json").write_text(card.model_dump_json())
    repository.publish(name, staging)


def configure(repository: ModelRepository, name: str, **parameters: str) -> None:
    """Let a batch wait longer than `infer` does for `BATCH` images to be there; and set parameters."""
    path = repository.root / name / CONFIG
    config = text_format.Parse(path.read_text(), model_config_pb2.ModelConfig())
    config.dynamic_batching.preferred_batch_size.append(BATCH)
    config.dynamic_batching.max_queue_delay_microseconds = 60_000_000
    del config.model_warmup[:]
    for key, value in parameters.items():
        config.parameters[key.replace("__", ".")].string_value = value
    path.write_text(text_format.MessageToString(config))


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Iterator[GRPCInferenceServiceStub]:
    """Triton with a sound model, one of two grids, and some that must not be served."""
    install_triton()
    folder = tmp_path_factory.mktemp("triton")
    repository = ModelRepository(folder / "models")
    for name in ("picky", "changed-file", "changed-configuration", "no-threads"):
        publish(repository, name, folder / name)
    configure(repository, "picky", INTRA_OP_THREAD_COUNT="1")
    configure(repository, "no-threads", INTRA_OP_THREAD_COUNT="0")
    configure(repository, "changed-configuration", digest__1="f" * 64)
    (repository.root / "changed-file/1/model.pt").write_bytes(b"another file")
    publish(repository, "old", folder / "old", old=True)
    publish(repository, "two-grids", folder / "two-grids", 32)
    publish(repository, "two-grids", folder / "two-grids-2", 64)
    server = TritonServer(repository.root, folder)
    server.start()
    try:
        with grpc.insecure_channel(server.url) as channel:
            yield GRPCInferenceServiceStub(channel)
    finally:
        server.kill()


def infer(
    stub: GRPCInferenceServiceStub,
    images: NDArray[np.float32],
    model: str = "picky",
    version: int = 1,
    outputs: tuple[str, ...] = ("logits", "probabilities", "embedding", "distance"),
) -> dict[str, NDArray[np.float32]]:
    request = service_pb2.ModelInferRequest(model_name=model, model_version=str(version))
    request.inputs.add(name="images", datatype="FP32", shape=images.shape)
    request.raw_input_contents.append(images.tobytes())
    for output in outputs:
        request.outputs.add(name=output)
    reply = stub.ModelInfer(request, timeout=30)
    contents = zip(reply.outputs, reply.raw_output_contents, strict=True)
    return {tensor.name: np.frombuffer(raw, np.float32).reshape(tensor.shape) for tensor, raw in contents}


def ramps(count: int, size: int = 32) -> NDArray[np.float32]:
    """Images that start at their index and rise by 1/8 from row to row."""
    rows = np.arange(size, dtype=np.float32)[:, None] / 8
    return np.arange(count, dtype=np.float32)[:, None, None] + np.broadcast_to(rows, (size, size))


def test_a_batch_has_the_exact_answers(stub: GRPCInferenceServiceStub) -> None:
    found = infer(stub, ramps(BATCH))
    assert found["logits"].tolist() == [[index + 15.5 / 8, index] for index in range(BATCH)]
    assert found["probabilities"].sum(axis=1) == pytest.approx(np.ones(BATCH))
    assert found["embedding"].tolist() == [[index + 31 / 8] for index in range(BATCH)]
    assert found["distance"].tolist() == (-found["embedding"]).tolist()


def test_only_the_outputs_asked_for_are_sent(stub: GRPCInferenceServiceStub) -> None:
    assert infer(stub, ramps(BATCH), outputs=("embedding",)).keys() == {"embedding"}


def test_an_artifact_from_before_there_were_distances_is_served(stub: GRPCInferenceServiceStub) -> None:
    found = infer(stub, ramps(2), "old", outputs=("logits", "probabilities", "embedding"))
    assert found["logits"].tolist() == [[index + 15.5 / 8, index] for index in range(2)]


def test_waiting_requests_are_one_batch_and_each_gets_its_own(stub: GRPCInferenceServiceStub) -> None:
    """None of them would be answered before the time is up, were they not put together."""
    images = ramps(BATCH)
    parts = [images[:1], images[1:3], images[3:]]
    with ThreadPoolExecutor(len(parts)) as pool:
        found = list(pool.map(lambda part: infer(stub, part), parts))
    for part, answer in zip(parts, found, strict=True):
        assert answer["logits"][:, 1].tolist() == part.min(axis=(1, 2)).tolist()


def test_of_a_batch_that_fails_only_the_request_to_blame_has_an_error(stub: GRPCInferenceServiceStub) -> None:
    images = ramps(BATCH)
    images[2] += TOO_BRIGHT
    with ThreadPoolExecutor(BATCH) as pool:
        answers = [pool.submit(infer, stub, images[index : index + 1]) for index in range(BATCH)]
    failed = [answer for answer in answers if answer.exception() is not None]
    assert failed == [answers[2]]
    assert "too bright" in str(failed[0].exception())
    assert [answers[index].result()["logits"][0, 1] for index in (0, 1, 3)] == [0, 1, 3]


def test_versions_of_different_grids_are_both_served(stub: GRPCInferenceServiceStub) -> None:
    assert infer(stub, ramps(2, 32), "two-grids", 1)["logits"].shape == (2, 2)
    assert infer(stub, ramps(2, 64), "two-grids", 2)["logits"].shape == (2, 2)
    with pytest.raises(grpc.RpcError, match=r"\(1, 64, 64\); expected \(n, 32, 32\)") as caught:
        infer(stub, ramps(1, 64), "two-grids", 1)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        ("changed-file", f"sha256 {hashlib.sha256(b'another file').hexdigest()}; card.json says"),
        ("changed-configuration", f"the configuration says {'f' * 64}"),
        ("no-threads", "set_num_threads expects a positive integer"),
    ],
)
def test_what_is_not_as_configured_is_not_served_and_triton_says_why(
    stub: GRPCInferenceServiceStub, model: str, reason: str
) -> None:
    (entry,) = [
        entry for entry in stub.RepositoryIndex(service_pb2.RepositoryIndexRequest()).models if entry.name == model
    ]
    assert entry.state == "UNAVAILABLE"
    assert reason in entry.reason
