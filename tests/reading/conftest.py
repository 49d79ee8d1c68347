"""One server for the tests of readings, with the study of `study`; tests that kill a server start their own."""

from collections.abc import Iterator

import pytest

from limner import Client
from tests.live import LiveServer
from tests.reading import study


@pytest.fixture(scope="package")
def study_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LiveServer]:
    server = study.start(tmp_path_factory.mktemp("readings"))
    yield server
    server.stop()


@pytest.fixture(scope="package")
def study_client(study_server: LiveServer) -> Iterator[Client]:
    with Client(study_server.address) as client:
        yield client
