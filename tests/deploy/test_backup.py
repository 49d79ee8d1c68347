"""A backup of a server under load, restored elsewhere: the same cohorts, models, aliases, trainings and answers."""

import os
import subprocess
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from benchmarks.models import publish_untrained
from limner import Client
from tests import postgres
from tests.deploy.manifests import DEPLOY
from tests.e2e.phantoms import import_phantom
from tests.live import LiveServer

IMAGES = [np.random.default_rng(number).random((32, 32), np.float32) for number in range(4)]


def variables(folder: Path, url: str = "") -> dict[str, str]:
    """Where a `LiveServer` of this folder keeps its state, as the scripts are told."""
    path = f"{postgres.PROGRAMS}{os.pathsep}{os.environ['PATH']}"
    places = {"LIMNER_DATA_DIR": str(folder / "data"), "LIMNER_MODEL_REPOSITORY": str(folder / "model_repository")}
    return {**os.environ, "PATH": path, **places, "LIMNER_DATABASE_URL": url}


def run(script: str, environment: dict[str, str], tar: Path) -> subprocess.CompletedProcess[bytes]:
    """Run a script in the way of `kubectl exec`: its text as an argument."""
    command = ["bash", "-c", (DEPLOY / script).read_text()]
    if script == "backup.sh":
        with tar.open("wb") as out:
            return subprocess.run(command, env=environment, stdout=out, stderr=subprocess.PIPE, check=False)
    with tar.open("rb") as source:
        return subprocess.run(command, env=environment, stdin=source, capture_output=True, check=False)


@contextmanager
def load(address: str) -> Iterator[None]:
    """Keep a server busy with predictions and promotions."""
    ended = threading.Event()
    failed: list[BaseException] = []

    def call() -> None:
        try:
            with Client(address) as client:
                while not ended.is_set():
                    client.predict("kept", IMAGES)
                    client.promote_model("kept:1", "busy")
        except BaseException as error:
            failed.append(error)

    caller = threading.Thread(target=call)
    caller.start()
    try:
        yield
    finally:
        ended.set()
        caller.join()
    assert not failed, failed


def told(client: Client) -> tuple[object, ...]:
    """What a client can see of a server's state."""
    return (
        sorted((cohort.name, cohort.slices, cohort.digest) for cohort in client.cohorts()),
        sorted((str(model.identity), sorted(model.aliases)) for model in client.models() if not model.error),
        sorted((training.id, training.state) for training in client.trainings()),
    )


def answers(client: Client) -> list[float]:
    """Probabilities of some images; to rounding, since each server takes the form that is fastest when it loads."""
    predictions = [result.prediction for result in client.predict("kept:production", IMAGES).results]
    return [probability for one in predictions if one for probability in one.probabilities]


@pytest.mark.parametrize("kind", ["sqlite", "postgresql"])
def test_what_is_restored_answers_as_before(kind: str, tmp_path: Path, phantom: Path, key: bytes) -> None:
    if kind == "postgresql" and not postgres.WANTED:
        pytest.skip(postgres.WHY_NOT)
    if kind == "sqlite":
        _back_up_and_restore(tmp_path, phantom, key)
        return
    with postgres.Postgres() as database:
        _back_up_and_restore(tmp_path, phantom, key, database.database(), database.database())


def _back_up_and_restore(folder: Path, phantom: Path, key: bytes, url: str = "", other_url: str = "") -> None:
    tar = folder / "limner.tar"
    with LiveServer(folder / "old", database_url=url) as old, Client(old.address) as client:
        client.wait_ready()
        publish_untrained(old.model_repository, "kept", size=32)
        client.promote_model("kept:1")
        import_phantom(client, phantom, "pelvis", key)
        with load(old.address):
            backed_up = run("backup.sh", variables(folder / "old", url), tar)
        assert backed_up.returncode == 0, backed_up.stderr
        with tarfile.open(tar) as archive:
            names = archive.getnames()
        # The copy that SQLite made is to be put back, and no file that was being written beside it.
        assert [name for name in names if "limner.sqlite" in name] == ([] if url else ["limner.sqlite"])
        assert not [name for name in names if "/servers" in name]
        client.promote_model("kept:1", "busy")
        before, answered = told(client), answers(client)
    restored = run("restore.sh", variables(folder / "new", other_url), tar)
    assert restored.returncode == 0, restored.stderr
    with LiveServer(folder / "new", database_url=other_url) as new, Client(new.address) as client:
        client.wait_ready()
        client.promote_model("kept:1", "busy")
        assert told(client) == before
        assert answers(client) == pytest.approx(answered, abs=1e-5)
        assert len(answered) == 2 * len(IMAGES)
    again = run("restore.sh", variables(folder / "new", other_url), tar)
    assert (again.returncode, again.stderr.decode()) == (1, f"restore.sh: {folder / 'new' / 'data'} is not empty\n")
