"""The authorisation matrix on the wire: every method of every service, by every kind of caller, gets what it may."""

import re
import threading
from collections.abc import Iterable, Iterator
from pathlib import Path

import grpc
import pytest
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_health.v1.health_pb2 import HealthCheckRequest, HealthCheckResponse
from grpc_health.v1.health_pb2_grpc import HealthStub
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from limner.token import secured
from limner_server.access.matrix import MATRIX, Role
from tests.gateway.authority import Authority
from tests.issuer import Issuer, wrong_tokens
from tests.live import LiveServer
from tests.security.conftest import ROLES

UNAUTHENTICATED, PERMISSION_DENIED = grpc.StatusCode.UNAUTHENTICATED, grpc.StatusCode.PERMISSION_DENIED


def channel_of(server: LiveServer, ca: Path, pair: tuple[Path, Path] | None = None) -> grpc.Channel:
    certificate, key = (path.read_bytes() for path in pair) if pair else (None, None)
    port = server.address.rpartition(":")[2]
    return grpc.secure_channel(f"localhost:{port}", grpc.ssl_channel_credentials(ca.read_bytes(), key, certificate))


def code_of(channel: grpc.Channel, method: str, authorization: str = "") -> grpc.StatusCode:
    """Call any method with one empty message; on the wire all kinds of methods are alike. OK is a first reply."""
    metadata = [("authorization", authorization)] if authorization else None
    stub: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(f"/{method}")
    call = stub(iter([b""]), timeout=20, metadata=metadata)
    try:
        next(call, None)
    except grpc.RpcError:
        return call.code()
    call.cancel()
    return grpc.StatusCode.OK


def outcome(code: grpc.StatusCode) -> str:
    """What of a status is the door's: "in" is whatever the service itself says to an empty message."""
    assert code not in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN)
    return {UNAUTHENTICATED: "unknown", PERMISSION_DENIED: "forbidden"}.get(code, "in")


def allowed(role: Role | None) -> dict[str, str]:
    """What a caller should get of each method: with no role (NOBODY), or not even known (None)."""
    refused = "unknown" if role is None else "forbidden"
    return {method: "in" if (role or 0) >= needed else refused for method, needed in MATRIX.items()}


def found(channel: grpc.Channel, authorization: str = "") -> dict[str, str]:
    return {method: outcome(code_of(channel, method, authorization)) for method in MATRIX}


@pytest.fixture(scope="module")
def channel(tls_server: LiveServer, authority: Authority) -> Iterator[grpc.Channel]:
    with channel_of(tls_server, authority.certificate) as channel:
        yield channel


def test_the_matrix_has_exactly_the_methods_of_the_server(
    tls_server: LiveServer, authority: Authority, issuer: Issuer
) -> None:
    port = tls_server.address.rpartition(":")[2]
    tls = grpc.ssl_channel_credentials(authority.certificate.read_bytes())
    credentials = secured(f"localhost:{port}", tls, issuer.token("ada", "read"))
    assert credentials is not None
    with grpc.secure_channel(f"localhost:{port}", credentials) as known:
        database = ProtoReflectionDescriptorDatabase(known)
        services: Iterable[str] = database.get_services()
        pool = DescriptorPool(database)
        methods = {f"{name}/{method.name}" for name in services for method in pool.FindServiceByName(name).methods}
    assert methods == set(MATRIX)


def test_nobody_gets_at_nothing_but_health(channel: grpc.Channel) -> None:
    assert found(channel) == allowed(None)
    assert [method for method, what in allowed(None).items() if what == "in"] == [
        "grpc.health.v1.Health/Check",
        "grpc.health.v1.Health/Watch",
    ]


@pytest.mark.parametrize("role", ["", *ROLES])
def test_a_token_opens_what_its_role_opens(channel: grpc.Channel, issuer: Issuer, role: str) -> None:
    token = issuer.token("ada", *([role] if role else []), "of-another-service")
    assert found(channel, f"Bearer {token}") == allowed(Role[role.upper()] if role else Role.NOBODY)


@pytest.mark.parametrize("wrong", wrong_tokens(Issuer()))
def test_a_wrong_token_opens_nothing(channel: grpc.Channel, issuer: Issuer, wrong: str) -> None:
    assert found(channel, wrong_tokens(issuer)[wrong]) == allowed(None)


@pytest.mark.parametrize("role", ROLES)
def test_a_certificate_opens_what_its_role_opens(
    mutual_server: LiveServer, authority: Authority, certificates: dict[str, tuple[Path, Path]], role: str
) -> None:
    with channel_of(mutual_server, authority.certificate, certificates[role]) as channel:
        assert found(channel) == allowed(Role[role.upper()])


def test_a_certificate_is_known_by_its_uri_before_its_name(
    mutual_server: LiveServer, authority: Authority, certificates: dict[str, tuple[Path, Path]]
) -> None:
    with channel_of(mutual_server, authority.certificate, certificates["admin by URI"]) as channel:
        assert found(channel) == allowed(Role.ADMIN)


def test_a_certificate_that_the_file_does_not_name_has_no_role(
    mutual_server: LiveServer, authority: Authority, certificates: dict[str, tuple[Path, Path]]
) -> None:
    with channel_of(mutual_server, authority.certificate, certificates["unlisted"]) as channel:
        assert found(channel) == allowed(Role.NOBODY)


def test_a_token_speaks_before_the_certificate(
    mutual_server: LiveServer, authority: Authority, certificates: dict[str, tuple[Path, Path]], issuer: Issuer
) -> None:
    with channel_of(mutual_server, authority.certificate, certificates["admin"]) as channel:
        assert found(channel, f"Bearer {issuer.token('ada', 'read')}") == allowed(Role.READ)
        assert found(channel, wrong_tokens(issuer)["expired"]) == allowed(None)


@pytest.mark.parametrize("who", ["another authority", "nobody's", "none"])
def test_without_a_certificate_of_the_authority_there_is_no_connection(
    mutual_server: LiveServer, authority: Authority, tmp_path: Path, issuer: Issuer, who: str
) -> None:
    stranger = Authority(tmp_path / "stranger")
    pairs = {"another authority": stranger.sign("adminer"), "nobody's": (stranger.certificate, stranger.key)}
    bearer = f"Bearer {issuer.token('root', 'admin')}"
    with channel_of(mutual_server, authority.certificate, pairs.get(who)) as channel:
        codes = {code_of(channel, method, bearer) for method in MATRIX}
    assert codes == {grpc.StatusCode.UNAVAILABLE}


def test_the_port_of_probes_answers_health_in_the_clear_and_nothing_else(mutual_server: LiveServer) -> None:
    found = re.search(r"health is answered in the clear on ([\d.:]+)", mutual_server.log())
    assert found
    with grpc.insecure_channel(found[1]) as channel:
        health = HealthStub(channel)
        assert health.Check(HealthCheckRequest()).status == HealthCheckResponse.SERVING
        assert next(iter(health.Watch(HealthCheckRequest()))).status == HealthCheckResponse.SERVING
        others = {method for method in MATRIX if not method.startswith("grpc.health.v1.")}
        assert {code_of(channel, method) for method in others} == {grpc.StatusCode.UNIMPLEMENTED}


def test_a_plain_connection_is_none(tls_server: LiveServer) -> None:
    with grpc.insecure_channel(tls_server.address) as channel:
        assert {code_of(channel, method) for method in MATRIX} == {grpc.StatusCode.UNAVAILABLE}


def test_nobody_is_refused_before_a_message_is_received(channel: grpc.Channel) -> None:
    over = threading.Event()

    def nothing_yet() -> Iterator[bytes]:
        over.wait()
        yield from ()

    for method, role in MATRIX.items():
        if role is not Role.NOBODY:
            stub: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(f"/{method}")
            assert stub(nothing_yet(), timeout=20).code() is UNAUTHENTICATED, method
    over.set()


def test_a_method_that_there_is_not_is_told_of_as_such(channel: grpc.Channel) -> None:
    assert code_of(channel, "limner.v1.ModelService/NoSuchMethod") == grpc.StatusCode.UNIMPLEMENTED
