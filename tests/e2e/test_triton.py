"""`--engine triton` with the real Triton: the same answers; and if Triton dies, hangs or serves another artifact."""

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest
from grpc_health.v1 import health_pb2
from numpy.typing import NDArray

from benchmarks.models import Published, publish_untrained, random_slices
from limner import Client
from limner.errors import WrongStateError
from limner.types import FeatureOptions, ImageFeatures, ImageResult
from limner_server.executor.engine import Operation
from limner_server.executor.torchscript import TorchScriptEngine
from limner_server.networks.repository import ModelRepository
from tests.e2e.test_standard import health
from tests.live import LiveServer
from tests.triton_server import TritonServer, install_triton

SIZE = 32
READY, NOT_READY = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING
TIMEOUT_S = 2


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """The model, in a repository of its own."""
    return publish_untrained(tmp_path_factory.mktemp("ours"), "m", size=SIZE)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Published:
    """Another model under the same name and number, with the same shapes."""
    return publish_untrained(tmp_path_factory.mktemp("other"), "m", "resnet34", size=SIZE)


@pytest.fixture(scope="module")
def module_triton(published: Published, tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """Triton on the repository of `published`."""
    install_triton()
    server = TritonServer(repository_of(published), tmp_path_factory.mktemp("triton"))
    try:
        yield server
    finally:
        server.kill()


@pytest.fixture
def triton(module_triton: TritonServer) -> TritonServer:
    """The same, running, whatever the test before did to it."""
    if not module_triton.running:
        module_triton.start()
    return module_triton


@pytest.fixture(scope="module")
def live(
    published: Published, module_triton: TritonServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[LiveServer]:
    """A Limner that has Triton predict. It starts while Triton does not run."""
    assert not module_triton.running
    server = LiveServer(
        tmp_path_factory.mktemp("live"),
        threads=1,
        engine="triton",
        triton_url=module_triton.url,
        triton_timeout_s=TIMEOUT_S,
    )
    server.model_repository.symlink_to(repository_of(published))
    with server:
        yield server


@pytest.fixture
def client(live: LiveServer, triton: TritonServer) -> Iterator[Client]:
    """A client of that Limner."""
    with Client(live.address) as client:
        yield client


def repository_of(published: Published) -> Path:
    return published.path.parents[2]


def images(count: int) -> list[NDArray[np.float32]]:
    return list(random_slices(count, SIZE))


def logits(results: Sequence[ImageResult | ImageFeatures]) -> NDArray[np.float32]:
    """Logits `(n, k)` of images that all succeeded."""
    assert {result.error for result in results} == {None}
    return np.array([result.prediction.logits for result in results if result.prediction is not None])


def distances(results: Sequence[ImageResult | ImageFeatures]) -> list[float]:
    """Distance of each image from what the model was trained on."""
    found = [result.prediction.distance for result in results if result.prediction is not None]
    return [distance.value for distance in found if distance is not None]


def until_health(server: LiveServer, wanted: int) -> None:
    """Wait for readiness, or for its end; pytest's timeout ends a wait in vain."""
    while health(server.address, "") != wanted:
        time.sleep(0.1)


def assert_unavailable(failed: Sequence[ImageResult], triton: TritonServer) -> None:
    """Every one says that Triton did not answer, and which."""
    errors = [result.error for result in failed if result.error is not None]
    assert len(errors) == len(failed)
    assert {error.code for error in errors} == {"UNAVAILABLE"}
    assert all(triton.url in error.message for error in errors)


def test_the_answers_are_those_of_the_engine_in_the_process(client: Client, published: Published) -> None:
    engine = TorchScriptEngine(published.path, ModelRepository(repository_of(published)).card("m", 1), threads=1)
    engine.warm(SIZE, 8)
    slices = images(40)
    expected = engine.run(Operation.PREDICT, (), np.stack(slices), np.full(40, -1))
    assert np.ptp(expected["logits"], axis=0).min() > 0.01, "they must differ for this to mean anything"

    found = client.predict("m", slices)
    assert found.model.digest == published.digest
    np.testing.assert_allclose(logits(found.results), expected["logits"], atol=1e-4)
    probabilities = [result.prediction.probabilities for result in found.results if result.prediction is not None]
    np.testing.assert_allclose(probabilities, expected["probabilities"], atol=1e-4)
    np.testing.assert_allclose(distances(found.results), expected["distance"][:, 0], rtol=1e-3)

    streamed = list(client.predict_stream("m", slices))
    np.testing.assert_allclose(logits(streamed), expected["logits"], atol=1e-4)

    explained = client.extract_features("m", slices[:3], FeatureOptions(embedding=True)).results
    np.testing.assert_allclose(logits(explained), expected["logits"][:3], atol=1e-4)
    np.testing.assert_allclose(distances(explained), expected["distance"][:3, 0], rtol=1e-3)
    np.testing.assert_allclose([result.embedding for result in explained], expected["embedding"][:3], atol=1e-3)
    assert all(result.layers[0].top for result in explained)


def test_triton_killed_in_mid_stream_and_started_again(client: Client, live: LiveServer, triton: TritonServer) -> None:
    slices = images(8)
    before = logits(client.predict("m", slices).results)
    stream = iter(client.predict_stream("m", (slices[0] for _ in range(1000))))
    results = [next(stream) for _ in range(20)]
    triton.kill()
    results += stream
    assert len({result.id for result in results}) == len(results) == 1000
    assert all(result.ok for result in results[:20])
    assert_unavailable([result for result in results if not result.ok], triton)
    assert not results[-1].ok
    until_health(live, NOT_READY)
    for service, state in (("Inference", NOT_READY), ("Feature", NOT_READY), ("Cohort", READY), ("Training", READY)):
        assert health(live.address, f"limner.v1.{service}Service") == state

    client.unload_model("m")
    assert_unavailable(client.predict("m", slices).results, triton)  # loaded while Triton is down, and kept
    until_health(live, NOT_READY)
    triton.start()
    until_health(live, READY)
    np.testing.assert_allclose(logits(client.predict("m", slices).results), before, atol=1e-4)


def test_a_triton_that_hangs_is_an_error_in_time(client: Client, live: LiveServer, triton: TritonServer) -> None:
    slices = images(8)
    before = logits(client.predict("m", slices).results)
    triton.freeze()
    try:
        failed = client.predict("m", slices).results
        assert_unavailable(failed, triton)
        assert all(f"within {TIMEOUT_S} s" in str(result.error) for result in failed)
        until_health(live, NOT_READY)
    finally:
        triton.thaw()
    until_health(live, READY)
    np.testing.assert_allclose(logits(client.predict("m", slices).results), before, atol=1e-4)


def test_a_triton_that_serves_another_artifact_answers_nothing(
    client: Client, live: LiveServer, triton: TritonServer, published: Published, other: Published
) -> None:
    slices = images(2)
    before = logits(client.predict("m", slices).results)
    triton.kill()
    triton.repository = repository_of(other)
    try:
        triton.start()
        until_health(live, NOT_READY)
        while "UNAVAILABLE" in (said := str([result.error for result in client.predict("m", slices).results])):
            time.sleep(0.1)  # until Limner has found the new one
        assert said.count("FAILED_PRECONDITION") == len(slices)
        assert published.digest in said
        assert other.digest in said
        client.unload_model("m")
        with pytest.raises(WrongStateError, match=other.digest):
            client.load_model("m")
    finally:
        triton.kill()
        triton.repository = repository_of(published)
    triton.start()
    np.testing.assert_allclose(logits(client.predict("m", slices).results), before, atol=1e-4)
    until_health(live, READY)
