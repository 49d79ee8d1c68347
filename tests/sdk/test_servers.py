"""Several servers: calls go round those that serve, streams outlive one, and a call that is unknown says who is old."""

import asyncio
import socket
import socketserver
import struct
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from google.rpc import code_pb2
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from limner import AsyncClient, Client, Image, Slice, Tls, errors
from limner.channel import Patience
from limner.types import ImageResult, SubjectResult
from limner.v1 import inference_pb2, model_pb2
from limner.v1.feature_pb2_grpc import add_FeatureServiceServicer_to_server as add_features
from limner.v1.inference_pb2_grpc import add_InferenceServiceServicer_to_server as add_inference
from limner.v1.model_pb2_grpc import ModelServiceServicer
from limner.v1.model_pb2_grpc import add_ModelServiceServicer_to_server as add_models
from tests.certificates import make_certificate
from tests.live import LiveServer
from tests.sdk.servers import IDENTITY, LABELS, Features, Inference, Models, refuse, serving

SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@contextmanager
def several(*servicers: Any, register: Callable[..., None] = add_models) -> Iterator[list[str]]:
    """Servers of one service each; gives their addresses."""
    with ExitStack() as stack:
        yield [stack.enter_context(serving(register, servicer)) for servicer in servicers]


def with_health(status: Any) -> tuple[Callable[..., None], health.HealthServicer]:
    """What registers models and a health service of that status."""
    # By default its `set` and the end of a watch, in another thread, may wait for each other for ever.
    servicer = health.HealthServicer(experimental_non_blocking=False)
    servicer.set("", status)

    def register(models: Any, server: grpc.Server) -> None:
        add_models(models, server)
        health_pb2_grpc.add_HealthServicer_to_server(servicer, server)

    return register, servicer


async def models_asked(addresses: Any, times: int) -> None:
    async with AsyncClient(addresses) as client:
        for _ in range(times):
            await client.model("m")


@pytest.mark.parametrize("bad", ["", "a:1,,b:1", [], ["a:1", ""], "a:1, a:1"])
def test_addresses_that_are_none_are_refused(bad: Any) -> None:
    with pytest.raises(errors.InvalidInputError, match='expected "host:port", several of them') as caught:
        Client(bad)
    assert caught.value.field == "address"


@pytest.mark.parametrize("form", [list, ",".join, " , ".join])
def test_calls_go_round(form: Callable[[list[str]], Any]) -> None:
    first, second = Models(), Models()
    with several(first, second) as addresses:
        with Client(form(addresses)) as client:
            while not (first.calls and second.calls):  # until both are connected
                client.model("m")
            before = first.calls, second.calls
            for _ in range(6):
                client.model("m")
            assert (first.calls - before[0], second.calls - before[1]) == (3, 3)
        before = first.calls, second.calls
        asyncio.run(models_asked(form(addresses), 20))
    assert first.calls + second.calls == sum(before) + 20
    assert min(first.calls - before[0], second.calls - before[1]) > 0


def test_a_server_that_does_not_serve_is_asked_nothing() -> None:
    away, serves = Models(), Models()
    (ill, status), (well, _) = with_health(NOT_SERVING), with_health(SERVING)
    with serving(ill, away) as one, serving(well, serves) as other, Client([one, other]) as client:
        client.wait_ready()
        for _ in range(4):
            client.model("m")
        client.delete_model("m:3")
        asyncio.run(models_asked([one, other], 4))
        assert (away.calls, serves.calls) == (0, 9)
        status.set("", SERVING)
        while not away.calls:
            client.model("m")


def test_what_is_lost_with_a_server_is_asked_of_another() -> None:
    lost, other = Models(failures=1000), Models()
    with several(lost, other) as addresses, Client(addresses) as client:
        for _ in range(6):
            client.model("m")
        asyncio.run(models_asked(addresses, 6))
    assert lost.calls > 0
    assert other.calls == 12


def test_each_is_asked_once_and_a_change_of_only_one() -> None:
    first, second = Models(failures=1000), Models(failures=1000)
    with several(first, second) as addresses, Client(addresses) as client:
        with pytest.raises(errors.UnavailableError, match="not now"):
            client.model("m")
        assert (first.calls, second.calls) == (1, 1)
        with pytest.raises(errors.UnavailableError, match="not now"):
            client.delete_model("m:3")
    assert first.calls + second.calls == 3


def test_all_that_are_away_are_named() -> None:
    with Client("localhost:1, localhost:2") as client:
        with pytest.raises(errors.UnavailableError, match=r"no Limner server answers at localhost:1, localhost:2"):
            client.models()
        with pytest.raises(errors.UnavailableError, match=r"is ready at localhost:1, localhost:2 after 0.3 s"):
            client.wait_ready(timeout=0.3)


def test_one_set_of_files_is_for_every_address(tmp_path: Path) -> None:
    make_certificate(tmp_path, "good")
    make_certificate(tmp_path, "elsewhere", "DNS:elsewhere.example")
    both = tmp_path / "both.pem"
    both.write_text((tmp_path / "good.pem").read_text() + (tmp_path / "elsewhere.pem").read_text())
    with secure(tmp_path, "good") as first, secure(tmp_path, "good") as second, secure(tmp_path, "elsewhere") as third:
        with Client(f"{first},{second}", tls=Tls(tmp_path / "good.pem")) as client:
            for _ in range(4):
                client.model("m")
        with Client(f"{first},{third}", tls=Tls(both)) as client:
            for _ in range(4):
                client.model("m")
        with (
            Client(f"{third},localhost:1", tls=Tls(both)) as client,
            pytest.raises(errors.UnavailableError, match=rf"{third}: its certificate is not accepted: Hostname"),
        ):
            client.model("m")
        with Client(first.replace("localhost", "dns:///localhost"), tls=Tls(both)) as client:
            assert str(client.model("m").identity) == "m:3"


@contextmanager
def name_server(hosts: list[str]) -> Iterator[int]:
    """A DNS server that knows so many IPv4 addresses of every name, and no other records; gives its port."""

    class Answer(socketserver.BaseRequestHandler):
        def handle(self) -> None:
            query, reply_to = self.request
            question = query[12 : query.index(b"\0", 12) + 5]
            found = hosts if question[-4:-2] == b"\0\1" else []
            head = query[:2] + struct.pack("!HHHHH", 0x8180, 1, len(found), 0, 0)
            records = [struct.pack("!HHHIH", 0xC00C, 1, 1, 0, 4) + socket.inet_aton(host) for host in found]
            reply_to.sendto(head + question + b"".join(records), self.client_address)

    with socketserver.ThreadingUDPServer(("127.0.0.1", 0), Answer) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield server.server_address[1]
        finally:
            server.shutdown()


def test_a_name_stands_for_all_its_addresses() -> None:
    first, second = Models(), Models()
    (register, status), (well, _) = with_health(SERVING), with_health(SERVING)
    with name_server(["127.0.0.1", "127.0.0.2"]) as names, serving(register, first) as address:
        port = int(address.rpartition(":")[2])
        with serving(well, second, port, host="127.0.0.2"):
            name = f"dns://127.0.0.1:{names}/limner-headless.test:{port}"
            with Client(name) as client:
                while not (first.calls and second.calls):
                    client.model("m")
                status.set("", NOT_SERVING)
                asked = -1
                while first.calls != asked:  # until it has heard of it
                    asked = first.calls
                    for _ in range(4):
                        client.model("m")
                before = second.calls
                client.delete_model("m:3")
                assert (first.calls, second.calls) == (asked, before + 1)
            asyncio.run(models_asked(name, 3))
            assert (first.calls, second.calls) == (asked, before + 4)


@contextmanager
def secure(folder: Path, name: str) -> Iterator[str]:
    """A server of models that speaks TLS with a certificate of a folder."""
    pair = (folder / f"{name}.key").read_bytes(), (folder / f"{name}.pem").read_bytes()
    server = grpc.server(ThreadPoolExecutor(4))
    add_models(Models(), server)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
    server.start()
    try:
        yield f"localhost:{port}"
    finally:
        server.stop(None).wait()


# Streams


class Leaving(Inference, ModelServiceServicer):
    """Is lost in a stream as often as `losses` says, which servers may share: after so many images, so many answered.

    Knows the model too, whose card the roll-up of an interrupted stream needs.
    """

    def __init__(self, losses: list[tuple[int, int]]) -> None:
        super().__init__()
        self._losses = losses

    def PredictStream(self, request_iterator: Any, context: Any) -> Iterator[inference_pb2.PredictStreamResponse]:
        if not self._losses:
            yield from super().PredictStream(request_iterator, context)
            return
        after, answered = self._losses.pop()
        assert next(request_iterator).header.model.version in ("", IDENTITY.version)
        start = inference_pb2.PredictStreamStart(model=IDENTITY, labels=LABELS)
        yield inference_pb2.PredictStreamResponse(start=start)
        received = 0
        for request in request_iterator:
            received += len(request.images)
            results = [self._result(image) for image in request.images[: max(answered - len(self.seen), 0)]]
            yield inference_pb2.PredictStreamResponse(results=results)
            if received >= after:
                break
        refuse(context, code_pb2.UNAVAILABLE, "draining")

    def GetModel(self, request: model_pb2.GetModelRequest, context: Any) -> model_pb2.Model:
        card = '{"calibration": {"temperature": 1.0}, "channels": [1, 1, 1, 1, 8]}'
        return model_pb2.Model(
            identity=IDENTITY, state=model_pb2.MODEL_STATE_LOADED, labels=LABELS, card_json=card, threshold=0.5
        )


def add_both(servicer: Any, server: grpc.Server) -> None:
    add_inference(servicer, server)
    add_models(servicer, server)


def images(count: int) -> list[Image]:
    return [Image(np.full((4, 4), n % 256, np.uint8), id=f"image {n}", subject=f"s{n % 3}") for n in range(count)]


Streamed = tuple[list[ImageResult], tuple[SubjectResult, ...]]


def streamed(addresses: Any, source: Any) -> Streamed:
    with Client(addresses) as client:
        stream = client.predict_stream("m", source)
        return list(stream), stream.subjects


def streamed_async(addresses: Any, source: Any) -> Streamed:
    async def run() -> Streamed:
        async with AsyncClient(addresses) as client:
            stream = client.predict_stream("m", source)
            return [result async for result in stream], stream.subjects

    return asyncio.run(run())


@pytest.mark.parametrize("stream", [streamed, streamed_async])
@pytest.mark.parametrize("make", [images, lambda count: iter(images(count))], ids=["a list", "an iterator"])
def test_a_stream_goes_on_where_its_server_left_it(stream: Callable[..., Streamed], make: Callable[[int], Any]) -> None:
    losses = [(50, 37)]
    first, second = Leaving(losses), Leaving(losses)
    with several(first, second, register=add_both) as addresses:
        found, subjects = stream(addresses, make(100))
    assert not losses
    assert [result.id for result in found] == [f"image {n}" for n in range(100)]
    for number, result in enumerate(found):
        assert result.prediction is not None
        assert result.prediction.probabilities[1] == pytest.approx(number / 255, abs=1e-6)
    assert len(first.seen) + len(second.seen) == 100, "what was answered is not sent again"
    assert [(one.subject, one.images, one.failed) for one in subjects] == [("s0", 34, 0), ("s1", 33, 0), ("s2", 33, 0)]
    assert subjects[0].prediction is not None
    assert subjects[0].prediction.logits[1] == pytest.approx(np.mean(np.arange(0, 100, 3)) / 255, abs=1e-5)


@pytest.mark.parametrize("stream", [streamed, streamed_async])
def test_a_stream_that_was_quiet_for_longer_than_the_patience_goes_on(
    stream: Callable[..., Streamed], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Quiet(Leaving):
        def PredictStream(self, request_iterator: Any, context: Any) -> Iterator[inference_pb2.PredictStreamResponse]:
            for reply in super().PredictStream(request_iterator, context):
                yield reply
                if losses == [] and reply.results:
                    time.sleep(0.5)

    monkeypatch.setattr(Patience, "LIMIT_S", 0.2)
    losses = [(20, 10)]
    with serving(add_both, Quiet(losses)) as address:
        found, _ = stream(address, images(20))
    assert [result.id for result in found] == [f"image {n}" for n in range(20)]


@pytest.mark.parametrize("stream", [streamed, streamed_async])
def test_a_stream_that_is_always_lost_before_an_answer_ends(stream: Callable[..., Streamed]) -> None:
    losses = [(1, 0)] * 9
    with (
        serving(add_both, Leaving(losses)) as address,
        pytest.raises(errors.UnavailableError, match="draining"),
    ):
        stream(address, images(3))
    assert len(losses) == 5, "four of them began"


def test_a_stream_is_not_mixed_of_two_models() -> None:
    class Replaced(Leaving):
        def PredictStream(self, request_iterator: Any, context: Any) -> Iterator[inference_pb2.PredictStreamResponse]:
            for reply in super().PredictStream(request_iterator, context):
                if not losses and reply.HasField("start"):
                    reply.start.model.digest = ("e" if self.seen else "d") * 64
                yield reply

    losses = [(20, 10)]
    with (
        serving(add_both, Replaced(losses)) as address,
        pytest.raises(errors.WrongStateError, match="m:3 was replaced"),
    ):
        streamed(address, images(50))


def test_features_go_on_elsewhere_too() -> None:
    class Once(Features):
        def ExtractFeaturesStream(self, request_iterator: Any, context: Any) -> Iterator[Any]:
            for count, reply in enumerate(super().ExtractFeaturesStream(request_iterator, context)):
                yield reply
                if count == 5 and losses:
                    losses.pop()
                    refuse(context, code_pb2.UNAVAILABLE, "draining")

    async def run(addresses: list[str]) -> list[str]:
        async with AsyncClient(addresses) as client:
            return [result.id async for result in client.extract_features_stream("m", slices)]

    slices = [Image(Slice(np.zeros((8, 8), np.uint8), 1, 1), id=f"image {n}") for n in range(20)]
    with several(Once(), Once(), register=add_features) as addresses:
        losses = [1]
        with Client(addresses) as client:
            assert [result.id for result in client.extract_features_stream("m", slices)] == [one.id for one in slices]
        assert not losses
        losses = [1]
        assert asyncio.run(run(addresses)) == [one.id for one in slices]
        assert not losses


# Versions


def old(trailer: tuple[tuple[str, str], ...]) -> Callable[[Any, grpc.Server], None]:
    """What registers a server of another version, which has a service of models and no method in it."""

    class Nothing(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> Any:
            def refused(_requests: Any, context: grpc.ServicerContext) -> Iterator[bytes]:
                context.set_trailing_metadata(trailer)
                context.abort(grpc.StatusCode.UNIMPLEMENTED, "Method not found!")
                yield b""

            return grpc.stream_stream_rpc_method_handler(refused) if trailer else None

    return lambda _, server: server.add_generic_rpc_handlers((Nothing(),))


@pytest.mark.parametrize(
    ("theirs", "reason"),
    [
        ("0.0.9", rf"it is Limner 0\.0\.9, older than this client \({version('limner')}\); upgrade the server$"),
        ("99.0.1", r"it is Limner 99\.0\.1, newer than this client .*; upgrade the client$"),
        ("", r"it is older than this client .*, and to be upgraded, or it is another service \(Method not found!\)$"),
    ],
)
def test_another_version_is_named_and_who_is_to_be_upgraded(theirs: str, reason: str) -> None:
    async def ask(address: str) -> None:
        async with AsyncClient(address) as client:
            await client.promote_model("m:3")

    with serving(old((("limner-version", theirs),) if theirs else ()), None) as address:
        with Client(address) as client:
            with pytest.raises(errors.UnsupportedError, match=f"does not know this call, PromoteModel: {reason}"):
                client.promote_model("m:3")
            with pytest.raises(errors.UnsupportedError, match=f"does not know this call: {reason}"):
                list(client.predict_stream("m", np.zeros((4, 4), np.uint8)))
        with pytest.raises(errors.UnsupportedError, match=f"does not know this call, PromoteModel: {reason}"):
            asyncio.run(ask(address))


def test_the_server_tells_its_version_with_every_answer(server: LiveServer) -> None:
    with grpc.insecure_channel(server.address) as channel:
        ours = ("limner-version", version("limner"))
        list_models = channel.unary_unary("/limner.v1.ModelService/ListModels")
        _, call = list_models.with_call(b"")
        assert ours in call.trailing_metadata()
        for kind in (channel.unary_unary, channel.unary_stream):
            method: Any = kind("/limner.v1.ModelService/TeachModels")
            with pytest.raises(grpc.RpcError) as caught:
                list(method(b"", timeout=10))
            assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED  # type: ignore[attr-defined]
            assert caught.value.details() == "there is no /limner.v1.ModelService/TeachModels"  # type: ignore[attr-defined]
            assert ours in caught.value.trailing_metadata()  # type: ignore[attr-defined]
