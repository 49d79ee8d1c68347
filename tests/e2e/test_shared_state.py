"""Two servers on one PostgreSQL and one volume are one service, whichever of them answers and whichever dies."""

import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import tritonclient.grpc as triton

from benchmarks.models import publish_untrained
from limner import Client
from limner.errors import LimnerError, NotFoundError
from limner.types import JobState
from limner.v1 import training_pb2, training_pb2_grpc
from limner_server.rpc.health import LIVE
from limner_server.state.audit import AuditLog
from limner_server.state.database import open_database
from tests import postgres
from tests.e2e.phantoms import QUICK, import_phantom
from tests.e2e.test_standard import HEALTH, health
from tests.live import LiveServer

CONFIG = QUICK.model_copy(update={"epochs": 3})
IMAGE = np.zeros((32, 32), np.float32)


class Pair:
    """A database, and two servers that share it, their folders too."""

    def __init__(self, database: postgres.Postgres, folder: Path) -> None:
        self.database = database
        self.url = database.database()
        self.servers = [LiveServer(folder, database_url=self.url) for _ in range(2)]
        self.repository = self.servers[0].model_repository

    def __enter__(self) -> "Pair":
        for server in self.servers:
            server.start()
        self.clients = [Client(server.address) for server in self.servers]
        for client in self.clients:
            client.wait_ready()
        return self

    def __exit__(self, *_: object) -> None:
        for client in self.clients:
            client.close()
        for server in self.servers:
            server.stop()

    def audited(self, target: str) -> list[tuple[str, str]]:
        """Method and status of each call that changed something of this name, the first one first."""
        return [(entry.method, entry.status) for entry in reversed(AuditLog(open_database(self.url)).entries(target))]


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    if not postgres.WANTED:
        pytest.skip(postgres.WHY_NOT)
    with postgres.Postgres() as database, Pair(database, tmp_path_factory.mktemp("pair")) as both:
        yield both


def until(condition: Callable[[], object], limit_s: float = 60) -> None:
    ends = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < ends, "it has not come to that in time"
        time.sleep(0.1)


def test_an_alias_moves_for_both_and_a_deleted_model_is_gone_for_both(pair: Pair) -> None:
    one, other = pair.clients
    publish_untrained(pair.repository, "shared", size=32)
    shutil.copytree(pair.repository / "shared/1", pair.repository / "shared/2")
    one.promote_model("shared:1")
    assert other.predict("shared:production", [IMAGE]).model.version == "1"
    other.promote_model("shared:2")
    until(lambda: one.predict("shared:production", [IMAGE]).model.version == "2", limit_s=2)
    one.delete_model("shared:1")
    until(lambda: fails(lambda: other.predict("shared:1", [IMAGE]), NotFoundError), limit_s=2)
    assert [call for call in pair.audited("shared:1") if "Promote" in call[0]] == [("ModelService/PromoteModel", "OK")]
    assert pair.audited("shared:1")[-1] == ("ModelService/DeleteModel", "OK")


def test_a_training_is_run_once_and_survives_the_server_that_runs_it(pair: Pair, phantom: Path, key: bytes) -> None:
    one, other = pair.clients
    import_phantom(one, phantom, "pelvis", key)
    assert [cohort.name for cohort in other.cohorts()] == ["pelvis"]
    training = one.start_training("pelvis", "trained", CONFIG).id
    next(state for state in other.watch_training(training) if state.progress is not None)
    first = pair.servers[0]
    first.kill()
    *_, last = other.watch_training(training)
    first.start()
    pair.clients[0] = Client(first.address)
    assert last.state is JobState.SUCCEEDED, last.error
    assert [folder.name for folder in (pair.repository / "trained").glob("[0-9]*")] == ["1"]
    assert pair.audited("pelvis")[:2] == [("CohortService/ImportCohort", "OK"), ("TrainingService/StartTraining", "OK")]


def test_a_training_asked_for_twice_under_one_key_is_one(pair: Pair, phantom: Path, key: bytes) -> None:
    import_phantom(pair.clients[1], phantom, "pelvis", key)
    request = training_pb2.StartTrainingRequest(cohort="pelvis", model="once", request_id="a key")
    request.config.epochs, request.config.folds, request.config.grid.size = 1, 2, 32
    channels = [grpc.insecure_channel(server.address) for server in pair.servers]
    one, other = (training_pb2_grpc.TrainingServiceStub(channel) for channel in channels)
    started = one.StartTraining(request)
    assert other.StartTraining(request).id == started.id
    one.CancelTraining(training_pb2.CancelTrainingRequest(id=started.id))
    assert other.StartTraining(request).state == training_pb2.JOB_STATE_CANCELLED
    request.config.epochs = 2
    with pytest.raises(grpc.RpcError) as caught:
        other.StartTraining(request)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    for channel in channels:
        channel.close()


def test_a_refused_call_is_audited_with_its_status(pair: Pair) -> None:
    with pytest.raises(LimnerError):
        pair.clients[0].delete_cohort("nowhere")
    assert pair.audited("nowhere") == [("CohortService/DeleteCohort", "NOT_FOUND")]


def test_a_database_that_goes_away_is_told_and_found_again(pair: Pair) -> None:
    client = pair.clients[1]
    publish_untrained(pair.repository, "lasting", size=32)
    client.predict("lasting", [IMAGE])
    pair.database.kill()
    with grpc.insecure_channel(pair.servers[1].address) as channel, pytest.raises(grpc.RpcError) as caught:
        training_pb2_grpc.TrainingServiceStub(channel).ListTrainings(training_pb2.ListTrainingsRequest())
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
    assert "database" in (caught.value.details() or "")
    address = pair.servers[1].address
    until(lambda: health(address, "") == health(address, "limner.v1.InferenceService") == HEALTH.NOT_SERVING)
    assert health(address, LIVE) == HEALTH.SERVING
    with triton.InferenceServerClient(address) as front:
        assert not front.is_server_ready()
        pair.database.start()
        until(lambda: health(address, "") == HEALTH.SERVING)
        assert front.is_server_ready()
    assert not fails(client.trainings, LimnerError)
    assert client.predict("lasting", [IMAGE]).results[0].ok


def fails(call: Callable[[], object], error: type[LimnerError]) -> bool:
    try:
        call()
    except error:
        return True
    return False
