"""Behind a real nginx that speaks TLS: every kind of call is as without it, and what stands in the way is named."""

import asyncio
import json
import os
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from itertools import repeat
from pathlib import Path
from urllib.request import urlopen

import grpc
import numpy as np
import pytest

from benchmarks.models import publish_untrained
from limner import AsyncClient, Client, Slice, Tls
from limner.channel import MAX_MESSAGE_BYTES, channel_options
from limner.errors import LimnerError, UnavailableError
from limner.types import JobState
from limner.v1 import common_pb2, inference_pb2, model_pb2
from limner.v1.inference_pb2_grpc import InferenceServiceStub, add_InferenceServiceServicer_to_server
from limner.v1.model_pb2_grpc import ModelServiceStub, add_ModelServiceServicer_to_server
from tests.certificates import make_certificate
from tests.conftest import SMALL
from tests.e2e.nginx import PROGRAM, STORES, Nginx
from tests.gateway.orthanc import free_port
from tests.live import LiveServer
from tests.sdk.servers import Inference, Models, serving

pytestmark = pytest.mark.skipif(not PROGRAM and not os.environ.get("CI"), reason="needs Debian's nginx and openssl")

SIZE = 32
Call = Callable[[grpc.Channel], object]


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Self-signed: `good` for localhost, `other` likewise, `elsewhere` for another host; each with its key."""
    folder = tmp_path_factory.mktemp("certificates")
    for name in ("good", "other"):
        make_certificate(folder, name)
    make_certificate(folder, "elsewhere", "DNS:elsewhere.example")
    return folder


@pytest.fixture(scope="module")
def tls(certificates: Path) -> Tls:
    return Tls(ca=certificates / "good.pem")


@pytest.fixture(scope="module")
def model(server: LiveServer) -> str:
    """Name of an untrained model on the shared server."""
    return publish_untrained(server.model_repository, "behind-nginx", size=SIZE).name


@pytest.fixture(scope="module")
def proxy(server: LiveServer, certificates: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Nginx]:
    """An nginx in front of the shared server."""
    pair = certificates / "good.pem", certificates / "good.key"
    with Nginx(tmp_path_factory.mktemp("nginx"), *pair, server.address) as nginx:
        yield nginx


@pytest.fixture(scope="module")
def secure(proxy: Nginx, tls: Tls) -> Iterator[Client]:
    """A client that reaches the shared server by TLS."""
    with Client(proxy.address, tls=tls) as client:
        client.wait_ready()
        yield client


def grids(count: int) -> Iterator[np.ndarray]:
    """Random slices on the model's grid, one after the other."""
    random = np.random.default_rng(7)
    for _ in range(count):
        yield random.integers(0, 4096, (SIZE, SIZE), np.uint16)


def test_a_study_is_scored_as_without_it(client: Client, secure: Client, model: str, phantom: Path) -> None:
    study = sorted((phantom / "PH-000").glob("*.dcm"))
    through, direct = secure.predict(model, study), client.predict(model, study)
    assert len(through.results) == len(study)
    for one, other in zip(through.results, direct.results, strict=True):
        assert one.prediction
        assert other.prediction
        assert one.prediction.probabilities == pytest.approx(other.prediction.probabilities, abs=1e-4)
    assert through.model == direct.model


def test_a_stream_of_thousands_of_messages_keeps_its_order(secure: Client, model: str) -> None:
    stream = secure.predict_stream(model, grids(3000))
    results = list(stream)
    assert [result.id for result in results] == [str(number) for number in range(3000)]
    assert all(result.ok for result in results)


def test_the_asynchronous_client_streams_too(proxy: Nginx, tls: Tls, model: str) -> None:
    async def score() -> int:
        async with AsyncClient(proxy.address, tls=tls) as client:
            await client.wait_ready()
            return len([result async for result in client.predict_stream(model, list(grids(200)))])

    assert asyncio.run(score()) == 200


def test_a_training_is_watched_to_its_end(secure: Client, cohort: str) -> None:
    seen = []
    ended = secure.train(cohort, "proxied", SMALL.model_copy(update={"halves": False}), progress=seen.append)
    assert ended.state is JobState.SUCCEEDED, ended.error
    assert len(seen) > 2
    secure.delete_model("proxied:1")


def test_a_message_of_nearly_the_largest_size_passes_and_leaves_no_trace(
    proxy: Nginx, secure: Client, model: str
) -> None:
    edge = 8180
    pixels = np.zeros((edge, edge), np.float32)
    assert 0.99 < pixels.nbytes / MAX_MESSAGE_BYTES < 1
    (result,) = secure.predict(model, [Slice(pixels, 0.05, 0.05)]).results
    assert result.ok, result.error
    assert [path for store in STORES for path in (proxy.folder / store).iterdir()] == []


def wrong_model(channel: grpc.Channel) -> object:
    return ModelServiceStub(channel).GetModel(model_pb2.GetModelRequest(model=common_pb2.ModelSpec(name="nobody")))


def wrong_field(channel: grpc.Channel) -> object:
    return InferenceServiceStub(channel).Predict(inference_pb2.PredictRequest(model=common_pb2.ModelSpec(name="m")))


def wrong_stream(channel: grpc.Channel) -> object:
    header = inference_pb2.PredictStreamRequest(
        header=inference_pb2.PredictStreamHeader(model=common_pb2.ModelSpec(name="behind-nginx"))
    )
    return list(InferenceServiceStub(channel).PredictStream(iter([header, header])))


def no_such_call(channel: grpc.Channel) -> object:
    call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/limner.v1.ModelService/Nothing")
    return call(b"")


@pytest.mark.parametrize("call", [wrong_model, wrong_field, wrong_stream, no_such_call])
def test_errors_pass_with_their_details(
    server: LiveServer, proxy: Nginx, certificates: Path, model: str, call: Call
) -> None:
    assert model == "behind-nginx"
    trusted = grpc.ssl_channel_credentials((certificates / "good.pem").read_bytes())
    seen = []
    for channel in (
        grpc.insecure_channel(server.address, channel_options()),
        grpc.secure_channel(proxy.address, trusted, channel_options()),
    ):
        with channel, pytest.raises(grpc.RpcError) as caught:
            call(channel)
        error = caught.value
        trailer = dict(error.trailing_metadata())
        assert trailer["limner-request-id"]
        assert trailer["limner-version"]
        seen.append((error.code(), error.details(), trailer.get("grpc-status-details-bin")))
    assert seen[0] == seen[1]
    assert seen[0][2]


def test_a_caller_that_leaves_is_seen_to_leave(certificates: Path, tls: Tls, tmp_path: Path) -> None:
    servicer = Inference()
    with (
        serving(add_InferenceServiceServicer_to_server, servicer) as behind,
        Nginx(tmp_path, certificates / "good.pem", certificates / "good.key", behind) as nginx,
        Client(nginx.address, tls=tls) as client,
    ):
        stream = client.predict_stream("m", repeat(np.zeros((SIZE, SIZE), np.uint8)))
        assert next(iter(stream)).ok
        stream.close()
        assert servicer.ended.wait(10)


def test_a_server_that_is_away_is_unavailable_until_it_is_back(certificates: Path, tls: Tls, tmp_path: Path) -> None:
    pair, port = (certificates / "good.pem", certificates / "good.key"), free_port()
    serve = partial(serving, add_ModelServiceServicer_to_server, Models(), port)
    with (
        Nginx(tmp_path, *pair, f"127.0.0.1:{port}") as nginx,
        Client(nginx.address, tls=tls) as client,
    ):
        with serve():
            client.model("m")
        with pytest.raises(UnavailableError, match="no Limner server answers the proxy"):
            client.model("m")
        with serve():
            client.model("m")


def test_a_server_that_dies_in_the_middle_of_a_stream_is_waited_for(
    certificates: Path, tls: Tls, tmp_path: Path
) -> None:
    pair = certificates / "good.pem", certificates / "good.key"
    publish_untrained(tmp_path / "server" / "model_repository", "m", size=SIZE)
    with (
        LiveServer(tmp_path / "server", port=free_port()) as live,
        Nginx(tmp_path / "nginx", *pair, live.address) as nginx,
        Client(nginx.address, tls=tls) as client,
    ):
        stream = client.predict_stream("m", grids(500))
        results = iter(stream)
        found = [next(results)]
        live.kill()
        live.start()
        found.extend(results)
    assert [result.id for result in found] == [str(number) for number in range(500)]
    assert all(result.ok for result in found)


def test_of_two_servers_one_is_enough(certificates: Path, tls: Tls, tmp_path: Path) -> None:
    pair = certificates / "good.pem", certificates / "good.key"
    with (
        ExitStack() as first,
        serving(add_ModelServiceServicer_to_server, one := Models()) as behind,
    ):
        other = first.enter_context(serving(add_ModelServiceServicer_to_server, two := Models()))
        with Nginx(tmp_path, *pair, behind, other) as nginx, Client(nginx.address, tls=tls) as client:
            for _ in range(10):
                client.model("m")
            assert one.calls
            assert two.calls
            first.close()
            for _ in range(10):
                client.model("m")
    assert one.calls + two.calls == 20


def test_callers_may_be_asked_for_a_certificate(
    server: LiveServer, certificates: Path, tls: Tls, tmp_path: Path
) -> None:
    pair = certificates / "good.pem", certificates / "good.key"
    known = replace(tls, certificate=certificates / "other.pem", key=certificates / "other.key")
    with Nginx(tmp_path, *pair, server.address, clients=certificates / "other.pem") as nginx:
        with Client(nginx.address, tls=known) as client:
            client.wait_ready()
        for unknown in (tls, replace(tls, certificate=pair[0], key=pair[1])):
            with Client(nginx.address, tls=unknown) as client, pytest.raises(LimnerError, match="client certificate"):
                client.models()


def test_a_load_balancer_is_told_that_nginx_answers(proxy: Nginx, certificates: Path) -> None:
    context = ssl.create_default_context(cafile=certificates / "good.pem")
    with urlopen(f"https://{proxy.address}/healthz", context=context) as reply:
        assert (reply.status, reply.read()) == (200, b"ok\n")


OBSTACLES = {
    "plain to TLS": ("good", None, "it speaks TLS, and this connection does not"),
    "TLS to plain": (None, "good", "it does not speak TLS, and this connection does"),
    "wrong authority": ("good", "other", "its certificate is not accepted: self-signed certificate"),
    "wrong host": ("elsewhere", "elsewhere", "certificate is not valid for 'localhost'"),
}


@pytest.mark.parametrize(("certificate", "ca", "reason"), OBSTACLES.values(), ids=OBSTACLES)
def test_what_keeps_tls_from_coming_about_is_named(
    server: LiveServer, certificates: Path, tmp_path: Path, certificate: str | None, ca: str | None, reason: str
) -> None:
    tls = Tls(ca=certificates / f"{ca}.pem") if ca else None

    async def ask(address: str) -> None:
        async with AsyncClient(address, tls=tls) as client:
            await client.delete_cohort("none")

    def check(address: str) -> None:
        with Client(address, tls=tls) as client, pytest.raises(UnavailableError, match=reason) as caught:
            client.delete_cohort("none")  # is not tried again, so that it fails at once
        assert f"no Limner server answers at {address}: " in str(caught.value)
        with pytest.raises(UnavailableError, match=reason):
            asyncio.run(ask(address))
        with Client(address, tls=tls) as client, pytest.raises(UnavailableError, match=reason):
            client.wait_ready(timeout=0.5)
        code, _, err = command(address, "models", "list", ca=tls and tls.ca)
        assert code == 3
        assert reason in err
        assert err.count("\n") == 1

    if certificate is None:
        check(server.address.replace("127.0.0.1", "localhost"))
        return
    pair = certificates / f"{certificate}.pem", certificates / f"{certificate}.key"
    with Nginx(tmp_path, *pair, server.address) as nginx:
        check(nginx.address)


def test_the_command_reaches_it_by_options_and_by_environment(proxy: Nginx, certificates: Path, model: str) -> None:
    ca = certificates / "good.pem"
    for code, out, err in (
        command(proxy.address, "models", "list", "--json", ca=ca),
        command(proxy.address, "models", "list", "--json", LIMNER_TLS_CA=str(ca)),
        command(proxy.address, "models", "list", "--json", LIMNER_TLS="true", SSL_CERT_FILE=str(ca)),
    ):
        assert (code, err) == (0, "")
        assert model in {found["identity"]["name"] for found in json.loads(out)["models"]}


def command(address: str, *words: str, ca: Path | None = None, **environment: str) -> tuple[int, str, str]:
    options = ["--tls-ca", str(ca)] if ca else []
    ended = subprocess.run(
        [sys.executable, "-m", "limner.cli.main", *options, *words],
        env={**os.environ, "LIMNER_SERVER": address, **environment},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    return ended.returncode, ended.stdout, ended.stderr
