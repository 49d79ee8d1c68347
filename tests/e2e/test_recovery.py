"""kill -9 in mid-training, of the server and of the job: nothing is lost, and the figures are those of a quiet run."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from limner import Client
from limner.types import JobState, Training
from tests.e2e.phantoms import QUICK, import_phantom
from tests.live import LiveServer

CONFIG = QUICK.model_copy(update={"epochs": 3})


@pytest.fixture(scope="module")
def quiet(client: Client, cohort: str) -> Training:
    """The same training without any disturbance."""
    training = client.train(cohort, "quiet", CONFIG)
    assert training.state is JobState.SUCCEEDED, training.error
    return training


@pytest.fixture
def own_server(tmp_path: Path, phantom: Path, key: bytes) -> Iterator[LiveServer]:
    """A server of the test's own, with the phantom cohort in it."""
    with LiveServer(tmp_path) as live:
        with Client(live.address) as client:
            import_phantom(client, phantom, "phantom", key)
        yield live


def until_second_epoch(client: Client, training: str) -> None:
    """Follow a training until something has been learned that a restart could lose."""
    for state in client.watch_training(training):
        if state.progress is not None and state.progress.epoch >= 2:
            return
    pytest.fail("the training ended too soon to be disturbed")


def assert_as_quiet(client: Client, training: Training, quiet: Training) -> None:
    assert training.state is JobState.SUCCEEDED, training.error
    assert training.resumed >= 1
    assert training.metrics == quiet.metrics
    (published,) = client.models()
    assert published.identity == training.result


def test_a_killed_server_resumes_the_training(own_server: LiveServer, quiet: Training) -> None:
    with Client(own_server.address) as client:
        training = client.start_training("phantom", "disturbed", CONFIG)
        until_second_epoch(client, training.id)
    own_server.kill()
    own_server.start()
    with Client(own_server.address) as client:
        *_, last = client.watch_training(training.id)
        assert_as_quiet(client, last, quiet)


def test_a_killed_job_is_resumed(own_server: LiveServer, quiet: Training) -> None:
    with Client(own_server.address) as client:
        training = client.start_training("phantom", "disturbed", CONFIG)
        until_second_epoch(client, training.id)
        (job,) = [
            process for process in psutil.process_iter(["cmdline"]) if training.id in str(process.info["cmdline"])
        ]
        os.kill(job.pid, signal.SIGKILL)
        *_, last = client.watch_training(training.id)
        assert_as_quiet(client, last, quiet)


def test_a_cancelled_training_leaves_nothing(own_server: LiveServer) -> None:
    with Client(own_server.address) as client:
        training = client.start_training("phantom", "disturbed", CONFIG)
        until_second_epoch(client, training.id)
        assert client.cancel_training(training.id).state is JobState.CANCELLED
        assert client.training(training.id).state is JobState.CANCELLED
        assert client.models() == ()
        assert not [path for path in own_server.model_repository.rglob("*") if path.is_file()]
        assert not (own_server.data_dir / "jobs" / training.id).exists()
