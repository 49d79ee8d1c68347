"""What many tests share: the command, a live server, a small phantom cohort, and a model trained on it there."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from limner import Client
from limner.cli.main import main
from limner.imaging.phantom import write_phantom
from limner.types import Grid, JobState, TrainingConfig
from tests.e2e.phantoms import import_phantom
from tests.live import LiveServer

Run = Callable[..., tuple[int, str, str]]

SMALL = TrainingConfig(grid=Grid(fov_mm=160, size=32), folds=2, epochs=1, batch_size=16)
"""A training of seconds; its figures mean nothing."""


@pytest.fixture(scope="session")
def phantom(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A phantom cohort of six subjects as DICOM, with `labels.csv`."""
    folder = tmp_path_factory.mktemp("phantom")
    write_phantom(folder, subjects=6, seed=3)
    return folder


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    """A live server that every test of the session shares; tests clean up what they make, or use names of their own."""
    with LiveServer(tmp_path_factory.mktemp("server")) as live:
        yield live


@pytest.fixture(scope="session")
def client(server: LiveServer) -> Iterator[Client]:
    """A client of the shared server."""
    with Client(server.address) as client:
        client.wait_ready()
        yield client


@pytest.fixture(scope="session")
def key() -> bytes:
    """A key of pseudonyms."""
    return bytes(range(32))


@pytest.fixture(scope="session")
def cohort(client: Client, phantom: Path, key: bytes) -> str:
    """Name of the phantom cohort on the shared server."""
    result = import_phantom(client, phantom, "pelvis", key)
    assert (result.added, result.rejected) == (72, ())
    return "pelvis"


@pytest.fixture(scope="session")
def model(client: Client, cohort: str) -> str:
    """Name of a model trained on that cohort, with its two halves."""
    training = client.train(cohort, "small", SMALL)
    assert training.state is JobState.SUCCEEDED, training.error
    return "small"


@pytest.fixture
def limner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """The command, in this process: exit code, standard output, standard error."""

    def run(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["limner", *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            main()
        printed = capsys.readouterr()
        code = ended.value.code
        assert code is None or isinstance(code, int)
        return code or 0, printed.out, printed.err

    return run
