"""What is renewed while the server runs: certificates, authorities, the access file, the issuer's keys."""

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from limner import Client, Tls
from limner.errors import ForbiddenError, UnauthenticatedError, UnavailableError
from tests.gateway.authority import Authority
from tests.issuer import Issuer
from tests.live import LiveServer


def put(path: Path, content: bytes | str) -> None:
    """Write a file as what renews certificates does: under another name, then renamed."""
    other = path.with_name(".new")
    other.write_bytes(content.encode() if isinstance(content, str) else content)
    other.replace(path)


def until(done: Callable[[], bool], what: str) -> None:
    for _ in range(400):
        if done():
            return
        time.sleep(0.05)
    raise AssertionError(what)


@pytest.fixture
def ours(tmp_path: Path) -> Authority:
    """An authority of this test."""
    return Authority(tmp_path / "ours")


@pytest.fixture
def served(tmp_path_factory: pytest.TempPathFactory, tls_server: LiveServer) -> Iterator[tuple[Path, Path]]:
    """The certificate and key of the server with TLS, put back afterwards."""
    pair = tls_server.setting("tls_certificate"), tls_server.setting("tls_key")
    before = [path.read_bytes() for path in pair]
    yield pair
    for path, content in zip(pair, before, strict=True):
        put(path, content)


def accepted(server: LiveServer, authority: Authority, token: str, pair: tuple[Path, Path] | None = None) -> bool:
    """Whether a new connection comes about, by the certificates that an authority has signed."""
    certificate, key = pair or (None, None)
    port = server.address.rpartition(":")[2]
    with Client(f"localhost:{port}", tls=Tls(authority.certificate, certificate, key), token=token) as client:
        try:
            client.models()
        except UnavailableError:
            return False
    return True


def test_a_renewed_certificate_is_shown_to_the_next_connection(
    tls_server: LiveServer, served: tuple[Path, Path], authority: Authority, ours: Authority, issuer: Issuer
) -> None:
    token, pid = issuer.token("ada", "read"), tls_server.pid
    port = tls_server.address.rpartition(":")[2]
    with Client(f"localhost:{port}", tls=Tls(authority.certificate), token=token) as early:
        early.models()
        for path, new in zip(served, ours.sign("renewed"), strict=True):
            put(path, new.read_bytes())
        assert accepted(tls_server, ours, token)
        assert not accepted(tls_server, authority, token)
        early.models()  # a connection that there was goes on
    assert tls_server.pid == pid


@pytest.mark.parametrize("wrong", ["half a certificate", "another key", "no file"])
def test_a_wrong_certificate_is_not_taken_and_the_old_one_stays(
    tls_server: LiveServer,
    served: tuple[Path, Path],
    authority: Authority,
    ours: Authority,
    issuer: Issuer,
    wrong: str,
) -> None:
    token, (certificate, key) = issuer.token("ada", "read"), served
    assert accepted(tls_server, authority, token), "it has seen the right one last"
    before = tls_server.log().count("the renewed certificate is not taken")
    match wrong:
        case "half a certificate":
            put(certificate, certificate.read_bytes()[:300])
        case "another key":
            put(key, ours.sign("other")[1].read_bytes())
        case "no file":
            certificate.rename(certificate.with_name("away.pem"))
    assert accepted(tls_server, authority, token)
    assert accepted(tls_server, authority, token)
    log = tls_server.log()
    assert log.count("the renewed certificate is not taken") == before + 1, "of two connections that found it so"
    assert str(key if wrong == "another key" else certificate) in log.splitlines()[-1]


def test_renewed_authorities_decide_who_connects(
    mutual_server: LiveServer,
    authority: Authority,
    certificates: dict[str, tuple[Path, Path]],
    ours: Authority,
    issuer: Issuer,
) -> None:
    token, file = issuer.token("ada", "read"), mutual_server.setting("tls_client_ca")
    stranger = ours.sign("stranger")
    assert accepted(mutual_server, authority, token, certificates["read"])
    assert not accepted(mutual_server, authority, token, stranger)
    put(file, ours.certificate.read_bytes())
    try:
        assert accepted(mutual_server, authority, token, stranger)
        assert not accepted(mutual_server, authority, token, certificates["read"])
    finally:
        put(file, authority.certificate.read_bytes())


def test_a_changed_access_file_counts_from_then_on(plain_server: LiveServer, issuer: Issuer) -> None:
    file = plain_server.setting("access")
    before = file.read_text()
    with Client(plain_server.address, token=issuer.token("carol")) as carol:
        with pytest.raises(ForbiddenError, match=r"token:carol has no role"):
            carol.models()
        try:
            put(file, before + '  "token:carol": {roles: [read]}\n')
            until(lambda: lets_in(carol), "carol may look")
            put(file, before + '  "token:carol": {roles: [raed]}\n')
            until(lambda: "what has changed of the access file or its keys is not taken" in plain_server.log(), "log")
            assert f"{file}, line 6: principals.token:carol.roles.0" in plain_server.log()
            assert lets_in(carol), "as before"
        finally:
            put(file, before)
        until(lambda: not lets_in(carol), "carol may not any more, on the connection that she had")


def test_a_key_that_the_issuer_has_changed_counts_from_then_on(plain_server: LiveServer, issuer: Issuer) -> None:
    file, renewed = plain_server.setting("access").with_name("jwks.json"), Issuer("second")
    with (
        Client(plain_server.address, token=issuer.token("ada", "read")) as early,
        Client(plain_server.address, token=renewed.token("ada", "read")) as late,
    ):
        early.models()
        with pytest.raises(UnauthenticatedError, match="a key that its issuer does not publish"):
            late.models()
        try:
            put(file, renewed.jwks())
            until(lambda: lets_in(late), "the new key is known")
            with pytest.raises(UnauthenticatedError):
                early.models()  # although its token has been checked before
            put(file, "{}")
            until(lambda: "expected a JWKS" in plain_server.log(), "log")
            late.models()
        finally:
            put(file, issuer.jwks())
        until(lambda: lets_in(early), "the old key is back")


def test_a_new_file_of_keys_is_taken_once_it_is_right(plain_server: LiveServer, issuer: Issuer) -> None:
    file, renewed = plain_server.setting("access"), Issuer("third")
    before, keys = file.read_text(), file.with_name("other.json")
    with (
        Client(plain_server.address, token=issuer.token("ada", "read")) as early,
        Client(plain_server.address, token=renewed.token("ada", "read")) as late,
    ):
        try:
            put(keys, "[]")
            put(file, before.replace("jwks.json", keys.name))
            until(lambda: f"{keys}: expected a JWKS" in plain_server.log(), "log")
            early.models()  # as before
            put(keys, renewed.jwks())
            until(lambda: lets_in(late), "the new key is known")
        finally:
            put(file, before)
        until(lambda: lets_in(early), "the old key is back")
    assert plain_server.log().count(f"{keys}: expected a JWKS") == 1


def lets_in(client: Client) -> bool:
    try:
        client.models()
    except (ForbiddenError, UnauthenticatedError):
        return False
    return True


def test_a_server_does_not_start_with_wrong_files(tmp_path: Path, ours: Authority, issuer: Issuer) -> None:
    certificate, key = ours.sign("one")
    other = ours.sign("two")[1]
    access = issuer.write_access(tmp_path, "principals: {nobody: {roles: [read]}}\n")
    wrong = {
        "--tls-key": {"tls_certificate": certificate, "tls_key": other},
        "--tls-client-ca": {"tls_certificate": certificate, "tls_key": key, "tls_client_ca": key},
        "--access": {"access": access},
        "--model-signing-key": {"model_signing_key": certificate},
    }
    for flag, settings in wrong.items():
        server = LiveServer(tmp_path / flag, **settings)
        with pytest.raises(AssertionError, match=f"limner-server: {flag}: .*{os.fspath(list(settings.values())[-1])}"):
            server.start()
