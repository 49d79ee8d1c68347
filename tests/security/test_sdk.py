"""The SDK and the command show a token where they may, nowhere else, and in no words of theirs."""

import asyncio
import os
import socket
import subprocess
import sys
from pathlib import Path

import grpc
import pytest

from limner import AsyncClient, Client, Tls, TokenFile
from limner.errors import ForbiddenError, InvalidInputError, UnauthenticatedError, UnavailableError
from limner.token import secured
from tests.conftest import Run
from tests.gateway.authority import Authority
from tests.issuer import Issuer
from tests.live import LiveServer

SECRET = "secret"  # noqa: S105 - nobody takes it
ELSEWHERE = (
    "limner.example:8500",
    "192.0.2.7:8500",
    "[2001:db8::1]:8500",
    "localhost:1,192.0.2.7:1",
    "dns:///headless:1",
)
HERE = ("localhost:1", "127.0.0.1:1", "127.0.0.8:1", "[::1]:1", "localhost:1,127.0.0.1:2")


@pytest.mark.parametrize("secure", [True, False])
def test_a_token_lets_in_by_tls_and_on_this_machine(
    tls_server: LiveServer, plain_server: LiveServer, authority: Authority, issuer: Issuer, secure: bool
) -> None:
    server, tls = (tls_server, Tls(authority.certificate)) if secure else (plain_server, None)
    address = f"localhost:{server.address.rpartition(':')[2]}"
    token = issuer.token("ada", "read")

    async def look() -> None:
        async with AsyncClient(address, tls=tls, token=lambda: token) as client:
            await client.wait_ready()
            await client.models()
            with pytest.raises(ForbiddenError, match="needs the role 'train'"):
                await client.delete_cohort("x")

    asyncio.run(look())
    with Client(address, tls=tls, token=token) as client:
        client.wait_ready()
        client.models()
        with pytest.raises(ForbiddenError, match=r"DeleteCohort needs the role 'train'; token:ada has the role 'read'"):
            client.delete_cohort("x")
        with pytest.raises(ForbiddenError, match="needs the role 'score'"):
            list(client.predict_stream("x", []))
    with Client(address, tls=tls) as nobody:
        nobody.wait_ready()
        with pytest.raises(UnauthenticatedError, match=r"expected 'authorization: Bearer TOKEN'; give Client\(token="):
            nobody.models()


def test_a_function_is_asked_for_each_call_and_a_file_read(
    plain_server: LiveServer, issuer: Issuer, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text(issuer.token("ada", "read") + "\n")
    with Client(plain_server.address, token=TokenFile(file)) as client:
        client.models()
        file.write_text("garbage")
        with pytest.raises(UnauthenticatedError, match="it is no JWT"):
            client.models()
        file.write_text("not a token")
        with pytest.raises(UnauthenticatedError, match="a text of 11 characters that is none; expected a bearer token"):
            client.models()
        file.unlink()
        with pytest.raises(UnauthenticatedError, match=f"the token could not be had: {file}: No such file"):
            client.models()
        file.write_text(issuer.token("ada", "read"))
        client.models()


@pytest.mark.parametrize("address", ELSEWHERE)
def test_a_token_goes_nowhere_else_in_the_clear(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InvalidInputError, match="is plain, so others could read it; expected tls=") as caught:
        Client(address, token=SECRET)
    assert caught.value.field == "token"
    assert SECRET not in str(caught.value)
    Client(address, token=SECRET, tls=Tls()).close()
    monkeypatch.setenv("LIMNER_TOKEN", SECRET)
    with pytest.raises(InvalidInputError, match=r"LIMNER_TOKEN is given and the connection to .* is plain"):
        Client(address)


@pytest.mark.parametrize("address", HERE)
def test_a_token_may_go_to_this_machine(address: str) -> None:
    Client(address, token=SECRET).close()


@pytest.mark.parametrize("token", ["", "two words", "a\nb", "ł"])
def test_what_is_no_token_is_said_so_without_it(token: str) -> None:
    with pytest.raises(InvalidInputError, match="expected a bearer token") as caught:
        Client("localhost:1", token=token)
    assert not token or token not in str(caught.value)


def test_grpc_itself_keeps_a_token_from_other_machines() -> None:
    """What a name leads to is gRPC's to find out: here to this machine, by the address that others reach it at."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as way:
        try:
            way.connect(("192.0.2.1", 9))  # sends nothing
        except OSError:
            pytest.skip("this machine has no network")
        address = way.getsockname()[0]
    if address.startswith("127."):
        pytest.skip("this machine has no network")
    credentials = secured("localhost:1", None, SECRET)
    assert credentials is not None
    with socket.create_server((address, 0)) as other:
        port = other.getsockname()[1]
        with grpc.secure_channel(f"{address}:{port}", credentials) as channel:
            stub: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary("/a/b")
            with pytest.raises(grpc.RpcError, match="Endpoint is neither UDS or TCP loopback address"):
                stub(b"", timeout=10)
        connection, _ = other.accept()
        with connection:
            connection.settimeout(10)
            assert SECRET.encode() not in connection.recv(4096)


def test_a_token_is_in_no_repr() -> None:
    with Client("localhost:1", token=SECRET) as client:
        assert SECRET not in repr(client) + repr(vars(client)) + repr(vars(client._servers))


def test_a_missing_or_strange_certificate_is_named(
    mutual_server: LiveServer, authority: Authority, certificates: dict[str, tuple[Path, Path]], tmp_path: Path
) -> None:
    address = f"localhost:{mutual_server.address.rpartition(':')[2]}"
    for pair in ((), Authority(tmp_path / "strange").sign("reader")):
        with (
            Client(address, tls=Tls(authority.certificate, *pair)) as client,
            pytest.raises(UnavailableError, match="wants a client certificate that it knows"),
        ):
            client.models()
    with Client(address, tls=Tls(authority.certificate, *certificates["read"])) as client:
        client.models()


def test_the_command_takes_a_file_or_the_environment(
    plain_server: LiveServer, issuer: Issuer, tmp_path: Path, limner: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "token"
    file.write_text(issuer.token("ada", "read"))
    models = ("models", "list", "--json", "--server", plain_server.address)
    code, _, error = limner(*models)
    assert (code, error.count("\n")) == (1, 1)
    assert "limner --token-file" in error
    assert limner("--token-file", file, *models)[0] == 0
    code, _, error = limner("--token-file", tmp_path / "nowhere", *models)
    assert (code, error) == (1, f"error: the token could not be had: {tmp_path}/nowhere: No such file or directory\n")
    monkeypatch.setenv("LIMNER_TOKEN", issuer.token("ada"))
    code, _, error = limner(*models)
    assert (code, "token:ada has no role" in error) == (1, True)
    monkeypatch.setenv("LIMNER_TOKEN_FILE", str(file))
    assert limner(*models)[0] == 0


def test_no_token_is_in_any_log(plain_server: LiveServer, tls_server: LiveServer, issuer: Issuer) -> None:
    """Also where gRPC is told to say all that it does."""
    token = issuer.token("talkative", "read")
    code = f"from limner import Client\nClient({plain_server.address!r}, token={token!r}).models()"
    verbose = {**os.environ, "GRPC_VERBOSITY": "info"}
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, env=verbose)
    signature = token.rpartition(".")[2]
    for said in (ended.stdout, ended.stderr, plain_server.log(), tls_server.log()):
        assert signature not in said
        assert "eyJ" not in said
