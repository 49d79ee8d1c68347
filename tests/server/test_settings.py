"""The settings of security: what is refused at start, and how that is told."""

from pathlib import Path

import pytest

from limner_server.__main__ import main
from limner_server.settings import Settings

LOCAL = ("127.0.0.1", "127.8.8.8", "[::1]", "::1", "localhost")
NETWORK = ("0.0.0.0", "[::]", "::", "192.0.2.7", "limner.example", "")  # noqa: S104


@pytest.mark.parametrize("host", LOCAL)
def test_on_the_loopback_address_nothing_is_asked(host: str) -> None:
    assert Settings(host=host).host == host


@pytest.mark.parametrize("host", NETWORK)
def test_on_a_network_it_takes_encryption_identity_or_plain_words(
    host: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main([f"--host={host}"])
    assert ended.value.code == 2
    told = capsys.readouterr().err
    assert told.startswith(f"limner-server: --insecure-network: --host {host} can be reached by others")
    for way_out in ("--tls-certificate", "--tls-key", "--access", "--insecure-network"):
        assert way_out in told
    assert Settings(host=host, insecure_network=True).host == host


def test_every_wrong_file_is_told_of_at_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    garbage = tmp_path / "garbage"
    garbage.write_text("limits: {nonsense: 1}")
    flags = ("--tls-certificate", "--tls-key", "--tls-client-ca", "--access", "--model-signing-key")
    with pytest.raises(SystemExit) as ended:
        main([f"{flag}={garbage}" for flag in flags])
    assert ended.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(": ")[1] for line in lines] == list(flags[1:])
    assert all(str(garbage) in line for line in lines)
    assert f"{garbage}, line 1: limits.nonsense: Extra inputs are not permitted" in lines[2]


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["--tls-key=k"], "--tls-key: expected --tls-certificate and --tls-key, both or neither"),
        (["--tls-certificate=c"], "--tls-key: expected --tls-certificate and --tls-key, both or neither"),
        (["--tls-client-ca=c"], "--tls-client-ca: expected only with --tls-certificate and --tls-key"),
        (["--access=/nowhere.yaml"], "--access: /nowhere.yaml: No such file or directory"),
        (["--model-signing-key=/nowhere.pem"], "--model-signing-key: /nowhere.pem: No such file or directory"),
    ],
)
def test_what_is_missing_is_named(given: list[str], expected: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(given)
    assert expected in capsys.readouterr().err
