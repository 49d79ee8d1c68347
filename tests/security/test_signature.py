"""Models that are signed: what a server with a signing key serves, and what it refuses."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from benchmarks.models import publish_identity
from limner import Client, Tls
from limner.errors import WrongStateError
from limner.types import ModelState
from limner_server.errors import WrongStateError as Refused
from limner_server.networks.repository import ModelRepository
from tests.gateway.authority import Authority
from tests.live import LiveServer
from tests.security.conftest import openssl

IMAGE = [np.zeros((32, 32), np.float32)]


@pytest.fixture(scope="module")
def client(
    mutual_server: LiveServer, authority: Authority, certificates: dict[str, tuple[Path, Path]]
) -> Iterator[Client]:
    """A client of the server that takes what `ours` has signed."""
    port = mutual_server.address.rpartition(":")[2]
    with Client(f"localhost:{port}", tls=Tls(authority.certificate, *certificates["admin"])) as client:
        yield client


def sign(server: LiveServer, model: str, key: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "limner_server", "sign", model, f"--key={key}"]
    command.append(f"--model-repository={server.model_repository}")
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_a_version_is_served_once_it_is_signed(mutual_server: LiveServer, client: Client, keys: Path) -> None:
    publish_identity(mutual_server.model_repository, "m", 32)
    card = mutual_server.model_repository / "m" / "1" / "card.json"
    with pytest.raises(WrongStateError, match=r"model m version 1 is broken: card\.json\.sig: no such file"):
        client.predict("m", IMAGE)
    assert client.model("m").state is ModelState.BROKEN
    assert sign(mutual_server, "m:1", keys / "theirs.key").returncode == 0
    with pytest.raises(WrongStateError, match="not a signature of this card by the key that this server takes"):
        client.predict("m", IMAGE)
    ended = sign(mutual_server, "m:1", keys / "ours.key")
    assert (ended.returncode, ended.stdout) == (0, f"{card}.sig\n")
    assert client.predict("m", IMAGE).results[0].prediction
    verify = ("pkeyutl", "-verify", "-pubin", "-rawin", "-inkey", keys / "ours.pem", "-in", card)
    openssl(*verify, "-sigfile", f"{card}.sig")


def test_openssl_signs_as_well(mutual_server: LiveServer, client: Client, keys: Path) -> None:
    publish_identity(mutual_server.model_repository, "by-openssl", 32)
    card = mutual_server.model_repository / "by-openssl" / "1" / "card.json"
    openssl("pkeyutl", "-sign", "-rawin", "-inkey", keys / "ours.key", "-in", card, "-out", f"{card}.sig")
    assert client.predict("by-openssl", IMAGE).results[0].prediction


def test_a_card_or_an_artifact_that_was_changed_is_refused(
    mutual_server: LiveServer, client: Client, keys: Path
) -> None:
    root = mutual_server.model_repository
    for name, file in (("changed-card", "card.json"), ("changed-artifact", "model.pt")):
        publish_identity(root, name, 32)
        assert sign(mutual_server, f"{name}:1", keys / "ours.key").returncode == 0
        path = root / name / "1" / file
        path.write_bytes(path.read_bytes() + b"\n")
        with pytest.raises(WrongStateError) as caught:
            client.predict(name, IMAGE)
        assert ("card.json.sig" if file == "card.json" else "has sha256") in str(caught.value)


def test_a_simulation_looks_at_the_signature_too(tmp_path: Path, keys: Path) -> None:
    publish_identity(tmp_path, "m", 32)
    with pytest.raises(Refused, match=r"card\.json\.sig: no such file"):
        ModelRepository(tmp_path, keys / "ours.pem").card("m", 1)


def test_only_what_is_whole_is_signed(mutual_server: LiveServer, keys: Path) -> None:
    publish_identity(mutual_server.model_repository, "torn", 32)
    artifact = mutual_server.model_repository / "torn" / "1" / "model.pt"
    artifact.write_bytes(artifact.read_bytes()[:-1])
    wrong = {
        "torn:1": (keys / "ours.key", "its card says"),
        "nowhere:1": (keys / "ours.key", "no model 'nowhere'"),
        "torn:2": (keys / "ours.pem", "expected a PEM private key of Ed25519"),
    }
    for model, (key, reason) in wrong.items():
        ended = sign(mutual_server, model, key)
        assert (ended.returncode, ended.stdout, ended.stderr.count("\n")) == (1, "", 1)
        assert reason in ended.stderr
