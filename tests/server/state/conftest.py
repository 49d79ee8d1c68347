"""The databases that the stores are tested on: a file of SQLite, and a real PostgreSQL."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import postgres


@pytest.fixture(scope="session")
def postgresql() -> Iterator[postgres.Postgres]:
    """One PostgreSQL for all tests; each makes a database of its own."""
    if not postgres.WANTED:
        pytest.skip(postgres.WHY_NOT)
    with postgres.Postgres() as server:
        yield server


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database of each kind."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'db.sqlite'}"
    server: postgres.Postgres = request.getfixturevalue("postgresql")
    return server.database()
