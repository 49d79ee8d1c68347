"""What many tests share: a live server, a small phantom cohort, and a model trained on it over the wire."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from limner import Client
from limner.imaging.phantom import write_phantom
from tests.live import LiveServer

SMALL = {"grid": {"fov_mm": 160, "size": 32}, "folds": 2, "epochs": 1, "batch_size": 16}
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
