"""The files of TLS: what is wrong with one is said when a client is made. Real handshakes: tests/e2e/test_nginx.py."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from limner import Client, Tls
from limner.errors import InvalidInputError
from tests.certificates import make_certificate

pytestmark = pytest.mark.skipif(not shutil.which("openssl") and not os.environ.get("CI"), reason="needs openssl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates `good` and `other` with their keys, the first key encrypted too, and a file that is none of them."""
    folder = tmp_path_factory.mktemp("tls")
    for name in ("good", "other"):
        make_certificate(folder, name)
    locked = ("-aes256", "-passout", "pass:x", "-out", folder / "locked.key")
    lock = ["openssl", "pkey", "-in", folder / "good.key", *locked]
    subprocess.run(lock, check=True, capture_output=True)
    (folder / "garbage.pem").write_bytes(b"\xffnot a certificate")
    (folder / "commented.pem").write_text("# of Łódź\n" + (folder / "other.pem").read_text())
    return folder


def test_good_files_are_taken(folder: Path) -> None:
    pair = folder / "good.pem", folder / "good.key"
    for tls in (Tls(), Tls(str(folder / "other.pem")), Tls(folder / "commented.pem", *pair)):
        Client("localhost:1", tls=tls).close()


@pytest.mark.parametrize(
    ("ca", "certificate", "key", "field"),
    [
        ("garbage.pem", None, None, "tls.ca"),
        ("good.key", None, None, "tls.ca"),
        (None, "good.pem", None, "tls.certificate and tls.key"),
        (None, None, "good.key", "tls.certificate and tls.key"),
        (None, "good.pem", "other.key", "tls.certificate and tls.key"),
        (None, "good.pem", "locked.key", "tls.certificate and tls.key"),
        (None, "garbage.pem", "good.key", "tls.certificate and tls.key"),
    ],
)
def test_a_file_that_is_not_what_it_should_be_is_named(
    folder: Path, ca: str | None, certificate: str | None, key: str | None, field: str
) -> None:
    files = [name and folder / name for name in (ca, certificate, key)]
    with pytest.raises(InvalidInputError) as caught:
        Client("localhost:1", tls=Tls(*files))
    assert caught.value.field == field
    assert all(str(path) in str(caught.value) for path in files if path)
    assert caught.value.expected


@pytest.mark.parametrize("missing", ["ca", "certificate", "key"])
def test_a_file_that_is_not_there_is_named(folder: Path, missing: str) -> None:
    files = {"certificate": folder / "good.pem", "key": folder / "good.key", missing: folder / "nowhere.pem"}
    with pytest.raises(FileNotFoundError, match=r"nowhere\.pem"):
        Client("localhost:1", tls=Tls(**files))


def test_the_command_says_it_in_one_line(folder: Path) -> None:
    for name, code in (("garbage.pem", 2), ("nowhere.pem", 1)):
        command = [sys.executable, "-m", "limner.cli.main", "--tls-ca", folder / name, "models", "list"]
        ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
        assert ended.returncode == code
        assert name in ended.stderr
        assert ended.stderr.count("\n") == 1
