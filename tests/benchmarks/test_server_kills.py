"""What the checker of kills calls lost: what was acknowledged, and not what was done without an answer."""

import shutil
from collections.abc import Iterator

import pytest

from benchmarks import server_kills
from benchmarks.cohorts import noise_plan
from benchmarks.models import publish_untrained
from benchmarks.server_kills import Acknowledged
from limner import Client
from limner.errors import UnavailableError
from limner.types import Model, Training, TrainingConfig
from tests.live import LiveServer

MODEL = "kills"


class CutClient(Client):
    """The server does what it is asked to, and its answer is lost."""

    def promote_model(self, model: str, alias: str = "production") -> Model:
        super().promote_model(model, alias)
        raise UnavailableError("cut")

    def start_training(self, cohort: str, model: str, config: TrainingConfig | None = None) -> Training:
        super().start_training(cohort, model, config)
        raise UnavailableError("cut")


class DeafClient(Client):
    """The server is gone before it hears anything."""

    def promote_model(self, model: str, alias: str = "production") -> Model:
        raise UnavailableError("cut")


@pytest.fixture(scope="module")
def live(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    server = LiveServer(tmp_path_factory.mktemp("killed"))
    published = publish_untrained(server.model_repository, MODEL, size=32).path.parent
    shutil.copytree(published, published.with_name("2"))
    with server:
        yield server


def faults(live: LiveServer, done: Acknowledged) -> list[str]:
    return list(server_kills._faults(live.folder, done))


def test_an_alias_may_be_wherever_it_was_asked_to_since_the_last_answer(live: LiveServer) -> None:
    done = Acknowledged()
    with Client(live.address) as client, CutClient(live.address) as cut, DeafClient(live.address) as deaf:
        server_kills._promote(client, done, 1)
        with pytest.raises(UnavailableError):
            server_kills._promote(cut, done, 2)
        with pytest.raises(UnavailableError):
            server_kills._promote(deaf, done, 3)
        assert done.alias == "2"
        assert faults(live, done) == []
        server_kills._promote(client, done, 1)
        client.promote_model(f"{MODEL}:1")
    assert faults(live, done) == ["the alias was acknowledged at 2, may be at ['2'], and is at 1"]


def test_a_training_whose_answer_was_cut_publishes_too(live: LiveServer) -> None:
    done = Acknowledged()
    with Client(live.address) as client, CutClient(live.address) as cut:
        client.import_cohort("trained", noise_plan(16, 32, seed=0))
        with pytest.raises(UnavailableError):
            server_kills._train(cut, done, 1)
        assert done.trainings == []
        assert list(server_kills._end(live, done)) == []
        client.delete_model("trained:1")
    assert list(server_kills._end(live, done)) == ["0 versions of 1 trainings"]
