"""Three servers of one model, one of which is killed and one restarted while they score: nothing is lost or twice."""

import json
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from benchmarks.models import publish_untrained
from limner import Client
from tests.gateway.orthanc import free_port
from tests.live import LiveServer
from tests.scoring.tables import assert_same_tables, read

IMAGES = 3000


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository of all servers."""
    repository = tmp_path_factory.mktemp("shared") / "model_repository"
    publish_untrained(repository, "untrained", size=32)
    return repository


@pytest.fixture(scope="module")
def servers(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[LiveServer]]:
    """Three servers, each with a port that it keeps when it is started again."""
    folder = tmp_path_factory.mktemp("servers")
    found = [LiveServer(folder / str(n), port=free_port(), threads=1, drain_s=1) for n in range(3)]
    for server in found:
        server.folder.mkdir()
        server.model_repository.symlink_to(model)
    with ExitStack() as stack, ThreadPoolExecutor(len(found)) as pool:
        list(pool.map(stack.enter_context, found))
        yield found


def slices() -> Iterator[NDArray[np.float32]]:
    some = np.random.default_rng(0).gamma(2.0, 100.0, (50, 32, 32)).astype(np.float32)
    return (some[n % 50] for n in range(IMAGES))


def kept(out: Path) -> int:
    rows = out / "rows.jsonl"
    return rows.read_bytes().count(b"\n") if rows.exists() else 0


def until(out: Path, images: int) -> None:
    deadline = time.monotonic() + 60
    while kept(out) < images:
        assert time.monotonic() < deadline, f"{kept(out)} are scored after a minute"
        time.sleep(0.005)


def test_one_is_killed_and_one_restarted_and_nothing_is_lost(servers: list[LiveServer], tmp_path: Path) -> None:
    killed, restarted, stays = servers
    disturbed, quiet = tmp_path / "disturbed", tmp_path / "quiet"
    addresses = [server.address for server in servers]
    with ThreadPoolExecutor(1) as pool, Client(addresses) as client:
        client.wait_ready()
        run = pool.submit(client.score, "untrained", slices(), disturbed)
        until(disturbed, IMAGES // 6)
        killed.kill()
        until(disturbed, IMAGES // 3)
        assert restarted.stop() == 0
        restarted.start()
        scores = run.result(timeout=120)
    assert (scores.images, scores.failed) == (IMAGES, 0)
    assert kept(disturbed) == IMAGES, "each has one line"
    assert [row["id"] for row in read(disturbed / "images.csv")] == [str(n) for n in range(IMAGES)]
    with Client(stays.address) as client:
        client.score("untrained", slices(), quiet)
    assert_same_tables(disturbed, quiet)


def test_a_stream_is_finished_elsewhere_when_its_server_drains(servers: list[LiveServer]) -> None:
    back, leaving, _ = servers
    moved = threading.Event()

    def source() -> Iterator[NDArray[np.float32]]:
        for number, image in enumerate(slices()):
            if number == IMAGES // 2:
                assert moved.wait(120)
            yield image

    with Client([leaving.address, back.address]) as client:
        client.wait_ready()
        results = iter(client.predict_stream("untrained", source()))
        found = [next(results)]  # of the one that is there: the other was killed
        back.start()
        assert leaving.stop() == 0
        moved.set()
        found.extend(results)
    assert [result.id for result in found] == [str(n) for n in range(IMAGES)]
    assert all(result.ok for result in found)


def test_the_command_takes_several(servers: list[LiveServer]) -> None:
    one, _, other = servers
    command = [sys.executable, "-m", "limner.cli.main", "models", "list", "--json"]
    for options in (
        ["--server", f"{one.address},{other.address}"],
        ["--server", one.address, "--server", other.address],
        ["--server", "localhost:1", "--server", other.address],
    ):
        ended = subprocess.run([*command, *options], capture_output=True, text=True, check=True, timeout=60)
        assert [model["identity"]["name"] for model in json.loads(ended.stdout)["models"]] == ["untrained"]
    twice = [*command, "--server", one.address, "--server", one.address]
    ended = subprocess.run(twice, capture_output=True, text=True, check=False, timeout=60)
    assert ended.returncode == 2
    assert f"error: address is '{one.address}' twice; expected" in ended.stderr
