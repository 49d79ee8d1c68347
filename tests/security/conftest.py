"""Servers that ask who calls: by TLS and tokens, by mutual TLS, and plainly on the loopback address."""

import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.gateway.authority import Authority
from tests.gateway.real import OPENSSL
from tests.issuer import Issuer
from tests.live import LiveServer

ROLES = ("read", "score", "train", "admin")
SPIFFE = "spiffe://hospital.test/limner/admin"


def openssl(*words: object) -> None:
    """Run openssl."""
    assert OPENSSL
    subprocess.run([OPENSSL, *map(str, words)], check=True, capture_output=True)


@pytest.fixture(scope="package")
def issuer() -> Issuer:
    """The issuer that all servers here trust."""
    return Issuer()


@pytest.fixture(scope="package")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    """The authority of the servers' certificates, and of those that callers are known by."""
    if not OPENSSL and not os.environ.get("CI"):
        pytest.skip("needs openssl")
    return Authority(tmp_path_factory.mktemp("certificates") / "authority")


@pytest.fixture(scope="package")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of two pairs of keys of Ed25519, "ours" and "theirs"."""
    folder = tmp_path_factory.mktemp("keys")
    for name in ("ours", "theirs"):
        openssl("genpkey", "-algorithm", "ed25519", "-out", folder / f"{name}.key")
        openssl("pkey", "-in", folder / f"{name}.key", "-pubout", "-out", folder / f"{name}.pem")
    return folder


@pytest.fixture(scope="package")
def tls_server(tmp_path_factory: pytest.TempPathFactory, authority: Authority, issuer: Issuer) -> Iterator[LiveServer]:
    """TLS and tokens."""
    folder = tmp_path_factory.mktemp("tls-server")
    certificate, key = authority.sign("server")
    access = issuer.write_access(folder / "access")
    with LiveServer(folder, tls_certificate=certificate, tls_key=key, access=access) as live:
        yield live


@pytest.fixture(scope="package")
def mutual_server(
    tmp_path_factory: pytest.TempPathFactory, authority: Authority, issuer: Issuer, keys: Path
) -> Iterator[LiveServer]:
    """Mutual TLS, tokens, and signed models only.

    A certificate is known by its common name, "reader" and so on, or by its URI.
    """
    folder = tmp_path_factory.mktemp("mutual-server")
    certificate, key = authority.sign("mutual")
    names = [*((f"certificate:{role}er", role) for role in ROLES), (f"certificate:{SPIFFE}", "admin")]
    rest = "principals:\n" + "".join(f'  "{name}": {{roles: [{role}]}}\n' for name, role in names)
    access = issuer.write_access(folder / "access", rest)
    clients = folder / "clients.pem"
    clients.write_bytes(authority.certificate.read_bytes())
    files = {"tls_certificate": certificate, "tls_key": key, "tls_client_ca": clients, "access": access}
    with LiveServer(folder, **files, model_signing_key=keys / "ours.pem", health_port=0) as live:
        yield live


@pytest.fixture(scope="package")
def plain_server(tmp_path_factory: pytest.TempPathFactory, issuer: Issuer) -> Iterator[LiveServer]:
    """No TLS, and tokens; three principals may do little, and nothing again for a long time."""
    folder = tmp_path_factory.mktemp("plain-server")
    rest = """principals:
  "token:few-calls": {limits: {calls_per_s: 0.01}}
  "token:few-images": {limits: {images_per_s: 0.01}}
  "token:small-messages": {limits: {message_mb: 0.01}}
"""
    with LiveServer(folder, access=issuer.write_access(folder / "access", rest)) as live:
        yield live


@pytest.fixture(scope="package")
def certificates(authority: Authority) -> dict[str, tuple[Path, Path]]:
    """A certificate and key for each role by its common name, one by its URI, and one that no file names."""
    found = {role: authority.sign(f"{role}er", "DNS:caller.test") for role in ROLES}
    found["admin by URI"] = authority.sign("uri", f"URI:{SPIFFE}", common_name="reader")
    found["unlisted"] = authority.sign("unlisted", "DNS:caller.test")
    return found
