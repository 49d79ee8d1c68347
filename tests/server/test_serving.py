"""Loading models: one load, whoever asks and whoever gives up, and no executor left behind where it fails."""

import asyncio
import threading
from pathlib import Path

import numpy as np
import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError

from benchmarks.models import publish_identity
from limner_server.executor.engine import Item
from limner_server.networks.repository import ModelRepository
from limner_server.serving import ModelPool
from limner_server.settings import Settings
from limner_server.state.aliases import AliasStore
from limner_server.state.database import open_database, writing
from limner_server.state.loaded import LoadedStore
from limner_server.state.servers import Membership


@pytest.fixture
def database(tmp_path: Path) -> Engine:
    return open_database(f"sqlite:///{tmp_path / 'state.sqlite'}")


@pytest.fixture
def server(tmp_path: Path, database: Engine) -> Membership:
    return Membership(database, tmp_path / "servers")


@pytest.fixture
def pool(tmp_path: Path, database: Engine, server: Membership) -> ModelPool:
    publish_identity(tmp_path / "models", "identity", size=32)
    holdings = LoadedStore(database, server.id)
    return ModelPool(ModelRepository(tmp_path / "models"), AliasStore(database), holdings, Settings(), "cpu")


def executors() -> int:
    """How many there are, each with one first lane."""
    return sum(thread.name == "limner-lane-0" for thread in threading.enumerate())


def test_a_caller_who_gives_up_takes_the_model_from_nobody(
    pool: ModelPool, database: Engine, server: Membership
) -> None:
    server.join()
    before = executors()

    async def go() -> None:
        with writing(database, "held: a load ends with a line in the database, which now waits"):
            first = asyncio.create_task(pool.acquire("identity"))
            second = asyncio.create_task(pool.acquire("identity"))
            while executors() == before:  # noqa: ASYNC110 - threads set no event
                await asyncio.sleep(0.01)
            assert not first.done()
            first.cancel()
            with pytest.raises(asyncio.CancelledError):
                await first
        served = await second
        assert await pool.acquire("identity") is served
        output = await served.run(Item(np.full((32, 32), 3, np.float32)))
        assert output.arrays["logits"].tolist() == [3, 3]
        assert executors() == before + 1
        await pool.close()

    asyncio.run(go())
    assert executors() == before


def test_a_model_that_the_database_does_not_take_is_closed_again(pool: ModelPool, server: Membership) -> None:
    before = executors()

    async def go() -> None:
        with pytest.raises(IntegrityError):  # this server has not joined: nothing can be noted of it
            await pool.acquire("identity")
        assert executors() == before
        server.join()
        await pool.acquire("identity")
        assert executors() == before + 1
        await pool.close()

    asyncio.run(go())
    assert executors() == before
