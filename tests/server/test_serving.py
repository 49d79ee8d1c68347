"""Models by name, looked up once for all; and one load, whoever asks and gives up, that leaves nothing behind."""

import asyncio
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

import numpy as np
import pytest
from sqlalchemy import Engine
from sqlalchemy.exc import IntegrityError

from benchmarks.models import publish_identity
from limner_server import serving
from limner_server.errors import NotFoundError
from limner_server.executor.engine import Item
from limner_server.networks.repository import ModelRepository
from limner_server.serving import RESOLVE_AGAIN_S, ModelPool, Version
from limner_server.settings import Settings
from limner_server.state.aliases import AliasStore
from limner_server.state.database import open_database, writing
from limner_server.state.loaded import LoadedStore
from limner_server.state.servers import Membership

T = TypeVar("T")


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


class Clock:
    """The time of day of the pool."""

    now = 0.0

    def monotonic(self) -> float:
        """That time."""
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(serving, "time", clock)
    return clock


class Held(Generic[T]):
    """A function whose calls wait with their result until they are let go."""

    def __init__(self, function: Callable[[str], T]) -> None:
        self._function = function
        self.calls = 0
        self.free = threading.Event()
        self.free.set()

    def __call__(self, name: str) -> T:
        result = self._function(name)
        self.calls += 1
        assert self.free.wait(10)
        return result

    async def entered(self) -> None:
        """Wait for the first call."""
        while not self.calls:  # noqa: ASYNC110 - threads set no event
            await asyncio.sleep(0.01)


def test_a_name_in_use_is_looked_up_once_for_all_who_ask(
    pool: ModelPool, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = Held(pool.repository.numbers)
    monkeypatch.setattr(pool.repository, "numbers", numbers)

    async def go() -> None:
        await pool.resolve("identity")
        clock.now += RESOLVE_AGAIN_S
        found = await asyncio.gather(*(pool.resolve("identity") for _ in range(20)))
        assert found == [Version("identity", 1)] * 20
        assert numbers.calls == 2

    asyncio.run(go())


def test_a_name_in_use_is_looked_up_ahead_and_nobody_waits_for_it(
    pool: ModelPool, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = Held(pool.repository.numbers)
    monkeypatch.setattr(pool.repository, "numbers", numbers)

    async def go() -> None:
        await pool.resolve("identity")
        for calls in (2, 3, 4):
            clock.now += 0.6 * RESOLVE_AGAIN_S
            numbers.free.clear()
            assert await pool.resolve("identity") == Version("identity", 1)
            numbers.free.set()
            await asyncio.gather(*pool._resolving.values())
            assert numbers.calls == calls

    asyncio.run(go())


def test_a_name_that_nobody_knew_is_looked_up_by_each_who_asks(
    tmp_path: Path, pool: ModelPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = Held(pool.repository.numbers)
    monkeypatch.setattr(pool.repository, "numbers", numbers)

    async def go() -> None:
        numbers.free.clear()
        early = asyncio.create_task(pool.resolve("new"))
        await numbers.entered()
        publish_identity(tmp_path / "models", "new", size=32)
        late = asyncio.create_task(pool.resolve("new"))
        await asyncio.sleep(0)
        numbers.free.set()
        assert await late == Version("new", 1)
        with pytest.raises(NotFoundError):
            await early
        assert await pool.resolve("new") == Version("new", 1)

    asyncio.run(go())


def test_what_was_looked_up_before_a_promotion_is_not_kept(
    tmp_path: Path, pool: ModelPool, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(tmp_path / "models/identity/1", tmp_path / "models/identity/2")
    aliases = Held(pool._aliases.of)
    monkeypatch.setattr(pool._aliases, "of", aliases)

    async def go() -> None:
        aliases.free.clear()
        early = asyncio.create_task(pool.resolve("identity"))
        await aliases.entered()
        await pool.promote(Version("identity", 1), "production")
        aliases.free.set()
        assert await early == Version("identity", 2)
        assert await pool.resolve("identity") == Version("identity", 1)

    asyncio.run(go())


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
