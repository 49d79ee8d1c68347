"""Tokens and the keys that they are checked with, from a file and from a real web server."""

import asyncio
import contextlib
import threading
import time
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty
from grpc import aio

from limner_server.access.access import Access
from limner_server.access.config import Tokens
from limner_server.access.keys import FRESH_S, PAUSE_S, STALE_S, UrlKeys
from limner_server.access.matrix import Role
from limner_server.access.tokens import REMEMBERED, TokenVerifier, claimed_role
from limner_server.errors import UnauthenticatedError, UnavailableError
from limner_server.rpc.access import AccessInterceptor
from limner_server.rpc.interceptor import ErrorInterceptor
from tests.issuer import AUDIENCE, NAME, Issuer, wrong_tokens


class KeyServer:
    """Publishes what `content` is; counts how often it is asked. None: answers 500."""

    def __init__(self) -> None:
        self.content: str | bytes | None = None
        self.asked = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.asked += 1
                self.send_response(200 if outer.content else 500)
                self.end_headers()
                content = outer.content or ""
                self.wfile.write(content.encode() if isinstance(content, str) else content)

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/jwks"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def published() -> Iterator[KeyServer]:
    server = KeyServer()
    yield server
    server.close()


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


def verifier(keys: UrlKeys) -> TokenVerifier:
    return TokenVerifier(Tokens(issuer=NAME, audience=AUDIENCE, jwks="https://not.asked/"), keys)


def test_keys_are_fetched_once_and_again_when_one_is_new(published: KeyServer) -> None:
    first, second, clock = Issuer("1"), Issuer("2"), Clock()
    keys = UrlKeys(published.url, clock)
    published.content = first.jwks()

    async def rotate() -> None:
        async with asyncio.TaskGroup() as group:
            for _ in range(20):
                group.create_task(keys.key("1"))
        assert published.asked == 1, "by one task for all"
        published.content = second.jwks()
        clock.now += 1
        for _ in range(5):
            with pytest.raises(UnauthenticatedError, match="a key that its issuer does not publish"):
                await keys.key("2")
        assert published.asked == 1, "whoever names unknown keys has them fetched at most so often"
        clock.now += PAUSE_S
        assert (await keys.key("2")).key_id == "2"
        with pytest.raises(UnauthenticatedError):
            await keys.key("1")
        assert published.asked == 2

    asyncio.run(rotate())


def test_a_url_that_is_away_is_told_of_and_old_keys_last_a_while(published: KeyServer) -> None:
    issuer, clock = Issuer("1"), Clock()
    keys = UrlKeys(published.url, clock)

    async def outage() -> None:
        for _ in range(3):
            with pytest.raises(UnavailableError, match=r"cannot be had: .*HTTP Error 500"):
                await keys.key("1")
        assert published.asked == 1
        published.content = issuer.jwks()
        clock.now += PAUSE_S
        await keys.key("1")
        published.content = None
        clock.now += FRESH_S
        assert (await keys.key("1")).key_id == "1", "stale, and better than nobody getting in"
        assert published.asked == 3
        clock.now += STALE_S
        with pytest.raises(UnavailableError):
            await keys.key("1")
        published.content = "no JSON"
        clock.now += PAUSE_S
        with pytest.raises(UnavailableError):
            await keys.key("1")

    asyncio.run(outage())


@pytest.mark.parametrize(
    "content",
    [b"\xff\xfe", "[" * 100_000, '{"keys": 1}', '{"keys": [{"kty": "EC", "alg": []}]}', "[]"],
    ids=["not UTF-8", "deep", "no list", "a wrong key", "no object"],
)
def test_what_is_no_jwks_is_logged_once_and_asked_for_again(
    published: KeyServer, caplog: pytest.LogCaptureFixture, content: str | bytes
) -> None:
    clock = Clock()
    keys = UrlKeys(published.url, clock)
    published.content = Issuer("1").jwks()

    async def spoil() -> None:
        await keys.key("1")
        published.content = content
        clock.now += FRESH_S
        assert (await keys.key("1")).key_id == "1", "stale"
        clock.now += PAUSE_S
        assert (await keys.key("1")).key_id == "1"
        clock.now += STALE_S
        with pytest.raises(UnavailableError, match="the keys that tokens are checked with cannot be had"):
            await keys.key("1")
        assert published.asked == 4
        (line,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
        assert line.startswith(f"no JWKS can be had of {published.url}, the keys of before last a while: ")
        published.content = Issuer("2").jwks()
        clock.now += PAUSE_S
        assert (await keys.key("2")).key_id == "2"

    asyncio.run(spoil())


def test_a_token_is_checked_once(published: KeyServer) -> None:
    issuer = Issuer()
    published.content = issuer.jwks()
    token = issuer.token("ada", "score")

    async def check() -> None:
        checked = verifier(UrlKeys(published.url))
        holder = await checked.holder(token)
        assert (holder.subject, holder.role) == ("ada", Role.SCORE)
        assert await checked.holder(token) is holder
        for wrong in wrong_tokens(issuer).values():
            with pytest.raises(UnauthenticatedError):
                await checked.holder(wrong.partition(" ")[2] if wrong.startswith("Bearer") else "Basic")
        assert token not in repr(vars(checked))

    asyncio.run(check())


def test_a_checked_token_is_forgotten_when_it_expires(published: KeyServer, monkeypatch: pytest.MonkeyPatch) -> None:
    issuer = Issuer()
    published.content = issuer.jwks()

    async def check() -> None:
        checked = verifier(UrlKeys(published.url))
        token = issuer.token("ada", "score", exp=int(time.time()) + 1)
        await checked.holder(token)
        later = time.time() + 30
        monkeypatch.setattr("limner_server.access.tokens.time.time", lambda: later)
        ((_, until),) = checked._checked.values()
        assert until < later

    asyncio.run(check())


def test_an_expiry_in_quotes_counts_as_its_number(published: KeyServer) -> None:
    issuer = Issuer()
    published.content = issuer.jwks()
    tokens, now = verifier(UrlKeys(published.url)), int(time.time())
    assert asyncio.run(tokens.holder(issuer.token(exp=str(now + 600)))).subject == "ada"
    with pytest.raises(UnauthenticatedError, match="it has expired"):
        asyncio.run(tokens.holder(issuer.token(exp=str(now - 600))))


def test_no_more_tokens_are_remembered_than_so_many(published: KeyServer) -> None:
    issuer = Issuer()
    published.content = issuer.jwks()

    async def check() -> None:
        checked = verifier(UrlKeys(published.url))
        holder = await checked.holder(issuer.token())
        for number in range(REMEMBERED + 5):
            checked._remember(str(number).encode(), holder, 0.0)
        assert len(checked._checked) == REMEMBERED

    asyncio.run(check())


@pytest.mark.parametrize(
    ("claims", "path", "role"),
    [
        ({"roles": ["read", "train", "of-another"]}, "roles", Role.TRAIN),
        ({"scope": "openid score read"}, "scope", Role.SCORE),
        ({"realm_access": {"roles": ["admin"]}}, "realm_access.roles", Role.ADMIN),
        ({"roles": {"admin": True}}, "roles", Role.NOBODY),
        ({"roles": ["nobody", "ADMIN", 3]}, "roles", Role.NOBODY),
        ({}, "roles", Role.NOBODY),
        ({"roles": "admin"}, "roles.deeper", Role.NOBODY),
    ],
)
def test_the_highest_role_of_a_claim_counts(claims: dict[str, object], path: str, role: Role) -> None:
    assert claimed_role(claims, path) is role


@contextlib.asynccontextmanager
async def serving(access: Access) -> AsyncIterator[aio.Channel]:
    """A server of two methods, of which the matrix knows one, and a channel to it."""

    async def echo(request: Empty, _context: object) -> Empty:
        return request

    server = aio.server(interceptors=[ErrorInterceptor(), AccessInterceptor(access)])
    method = grpc.unary_unary_rpc_method_handler(echo, Empty.FromString, Empty.SerializeToString)
    for service, name in (("FutureService", "Do"), ("ModelService", "ListModels")):
        handler = grpc.method_handlers_generic_handler(f"limner.v1.{service}", {name: method})
        server.add_generic_rpc_handlers((handler,))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(None)


async def call(access: Access, method: str, token: str) -> tuple[grpc.StatusCode, str]:
    """Call a method of such a server with a token."""
    async with serving(access) as channel:
        stub: aio.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(f"/limner.v1.{method}")
        try:
            await stub(b"", metadata=(("authorization", f"Bearer {token}"),))
        except aio.AioRpcError as error:
            return error.code(), error.details() or ""
        return grpc.StatusCode.OK, ""


def test_a_call_is_unavailable_while_the_keys_cannot_be_had(published: KeyServer, tmp_path: Path) -> None:
    issuer, file = Issuer(), tmp_path / "access.yaml"
    file.write_text(f"tokens: {{issuer: '{NAME}', audience: {AUDIENCE}, jwks: '{published.url}'}}\n")
    token = issuer.token("ada", "read")
    code, details = asyncio.run(call(Access(file, mutual_tls=False), "ModelService/ListModels", token))
    assert code is grpc.StatusCode.UNAVAILABLE
    assert "the keys that tokens are checked with cannot be had" in details
    published.content = issuer.jwks()
    code, _ = asyncio.run(call(Access(file, mutual_tls=False), "ModelService/ListModels", token))
    assert code is grpc.StatusCode.OK


def test_a_method_without_a_row_is_refused_to_everybody(tmp_path: Path) -> None:
    issuer = Issuer()
    access = Access(issuer.write_access(tmp_path), mutual_tls=False)
    code, details = asyncio.run(call(access, "FutureService/Do", issuer.token("root", "admin")))
    assert code is grpc.StatusCode.PERMISSION_DENIED
    assert "limner.v1.FutureService/Do is in no row of the authorisation matrix" in details


def test_a_file_by_which_nobody_could_call_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "access.yaml"
    file.write_text("principals: {'certificate:gateway': {roles: [score]}}\n")
    with pytest.raises(ValueError, match=r"has no 'tokens', and without --tls-client-ca nobody could ever call"):
        Access(file, mutual_tls=False)
    Access(file, mutual_tls=True)
