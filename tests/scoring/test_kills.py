"""Ends of every kind, of the client and of the server, at random moments: with --resume nothing is missing or twice."""

import os
import random
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from limner import Client
from limner.types import ScoreOptions
from tests.live import LiveServer
from tests.scoring.tables import assert_same_tables, read
from tests.sdk.test_cli import hear_ctrl_c

IMAGES = 2000


@pytest.fixture(scope="module")
def manifest(phantom: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A manifest of some thousand images, of which each hundredth cannot be read."""
    files = sorted(phantom.rglob("*.dcm"))
    path = tmp_path_factory.mktemp("manifest") / "m.csv"
    lines = [f"{files[n % len(files)] if n % 100 else '/none.dcm'},image {n},subject {n % 7}" for n in range(IMAGES)]
    path.write_text("\n".join(["path,id,subject", *lines]))
    return path


@pytest.fixture(scope="module")
def undisturbed(client: Client, untrained: str, manifest: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing disturbed."""
    return client.score(untrained, manifest, tmp_path_factory.mktemp("undisturbed") / "run").folder


def command(server: str, model: str, manifest: Path, out: Path, *more: str) -> list[str]:
    return [
        *(sys.executable, "-m", "limner.cli.main", "score", model, str(manifest)),
        *("--out", str(out), "--server", server, "--resume", *more),
    ]


def lines_in(out: Path) -> int:
    rows = out / "rows.jsonl"
    return rows.read_bytes().count(b"\n") if rows.exists() else 0


def begin(arguments: list[str], prepare: Callable[[], None] | None = None) -> "subprocess.Popen[str]":
    return subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=prepare)


def assert_each_once(out: Path) -> None:
    assert [row["id"] for row in read(out / "images.csv")] == [f"image {n}" for n in range(IMAGES)]


@pytest.mark.parametrize("readers", [0, 1])
def test_a_killed_client_goes_on(
    server: LiveServer, untrained: str, manifest: Path, undisturbed: Path, tmp_path: Path, readers: int
) -> None:
    out, moment = tmp_path / "run", random.Random(readers)  # noqa: S311
    arguments = command(server.address, untrained, manifest, out, f"--readers={readers}")
    scored = 0
    for share in (0.2, 0.5, 0.8):
        process = begin(arguments)
        enough = scored + moment.random() * 2 * share * IMAGES / 3
        while process.poll() is None and lines_in(out) <= enough:
            time.sleep(0.002)
        process.kill()
        process.communicate()
        assert lines_in(out) >= scored, "what was kept stays"
        scored = lines_in(out)
    process = begin(arguments)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 1, told
    assert f"scored {IMAGES - IMAGES // 100:,} of {IMAGES:,} slices of 7 subjects" in told
    assert lines_in(out) == IMAGES, "nothing that was kept was scored again"
    assert_each_once(out)
    assert_same_tables(out, undisturbed)


def test_ctrl_c_says_how_to_go_on(
    server: LiveServer, untrained: str, manifest: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    arguments = command(server.address, untrained, manifest, out, "--readers=1")
    process = begin(arguments, hear_ctrl_c)
    while process.poll() is None and lines_in(out) < 100:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGINT)
    printed, told = process.communicate(timeout=60)
    kept = lines_in(out)
    assert (process.returncode, printed) == (130, "")
    assert told == f"stopped; {kept:,} are scored and kept in {out}. Go on: the same command with --resume\n"
    assert begin(arguments).wait(120) == 1
    assert_same_tables(out, undisturbed)


def test_a_full_disk_ends_in_one_line_and_goes_on(
    server: LiveServer, untrained: str, manifest: Path, undisturbed: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    arguments = command(server.address, untrained, manifest, out)

    def small_disk() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))

    process = begin(arguments, small_disk)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 1
    assert [line.partition(":")[0] for line in told.splitlines()][-1] == "error"
    assert "File too large" in told
    assert "Traceback" not in told
    assert 0 < lines_in(out) < IMAGES
    assert begin(arguments).wait(120) == 1
    assert lines_in(out) == IMAGES
    assert_same_tables(out, undisturbed)


def test_a_second_process_does_not_score_into_one_folder(
    server: LiveServer, client: Client, untrained: str, manifest: Path, tmp_path: Path
) -> None:
    process = begin(command(server.address, untrained, manifest, tmp_path / "run"))
    while process.poll() is None and lines_in(tmp_path / "run") < 1:
        time.sleep(0.002)
    with pytest.raises(Exception, match="another process is scoring into"):
        client.score(untrained, manifest, tmp_path / "run", ScoreOptions(resume=True))
    process.kill()
    process.communicate()


def test_a_killed_server_that_comes_back_is_waited_for(
    server: LiveServer, untrained: str, manifest: Path, undisturbed: Path, tmp_path: Path
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = LiveServer(tmp_path / "server", port=port)
    (tmp_path / "server").mkdir()
    own.model_repository.symlink_to(server.model_repository)
    out = tmp_path / "run"
    with own:
        process = begin(command(own.address, untrained, manifest, out))
        while process.poll() is None and lines_in(out) < 300:
            time.sleep(0.002)
        own.kill()
        assert lines_in(out) < IMAGES
        own.start()
        _, told = process.communicate(timeout=120)
    assert process.returncode == 1, told
    assert lines_in(out) == IMAGES
    assert_same_tables(out, undisturbed)
