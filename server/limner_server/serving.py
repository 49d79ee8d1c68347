"""The models that can answer: versions resolved, loaded on demand, unloaded, promoted, deleted."""

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from limner_server.errors import InvalidInputError, NotFoundError, WrongStateError
from limner_server.executor.engine import Item, Output
from limner_server.executor.executor import Executor
from limner_server.executor.torchscript import TorchScriptEngine
from limner_server.names import check_name
from limner_server.networks.card import ModelCard
from limner_server.networks.repository import ModelRepository
from limner_server.settings import Settings
from limner_server.state.aliases import AliasStore

DEFAULT_ALIAS = "production"

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Version:
    """Name and number of one version of a model."""

    name: str
    number: int


class ServedModel:
    """One loaded version: its card, the mean of each channel over its cohort, and the executor that runs it."""

    def __init__(
        self, version: Version, card: ModelCard, channel_means: Mapping[str, NDArray[np.float32]], executor: Executor
    ) -> None:
        self.version = version
        self.card = card
        self.grid = card.grid
        self.channel_means = channel_means
        self.executor = executor

    async def run(self, item: Item, priority: int = 0, deadline: float | None = None) -> Output:
        """Run one item in the next batch. Cancelling the call drops the item if its batch has not begun.

        Raises
        ------
        QueueFullError, DeadlineError, EngineError, InvalidInputError, UnavailableError
            As the executor does.
        """
        return await asyncio.wrap_future(self.executor.submit(item, priority, deadline))


class ModelPool:
    """All models of a repository, and those of them that are loaded. All methods belong to the event loop's thread."""

    def __init__(self, repository: ModelRepository, aliases: AliasStore, settings: Settings, device: str) -> None:
        self.repository = repository
        self._aliases = aliases
        self._settings = settings
        self._device = device
        self._loaded: dict[Version, ServedModel] = {}
        self._loading: defaultdict[Version, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def resolve(self, name: str, version: str = "") -> Version:
        """Find the version that a name and a number, an alias or nothing stand for.

        Raises
        ------
        NotFoundError
            Naming the models, or the versions and aliases, that there are.
        """
        check_name("model.name", name)
        numbers = await asyncio.to_thread(self.repository.numbers, name)
        if not numbers:
            known = {found.name for found in await asyncio.to_thread(self.repository.list_versions)}
            raise NotFoundError("model", name, known)
        aliases = await self.aliases(name)
        wanted = aliases.get(version or DEFAULT_ALIAS, version) or str(numbers[-1])
        if wanted not in map(str, numbers):
            raise NotFoundError(f"version of model {name!r}", wanted, [*map(str, numbers), *aliases])
        return Version(name, int(wanted))

    async def acquire(self, name: str, version: str = "") -> ServedModel:
        """Return a version ready to run, loading and warming it first if need be; one load, however many ask."""
        found = await self.resolve(name, version)
        async with self._loading[found]:
            served = self._loaded.get(found)
            if served is None:
                started = time.perf_counter()
                served = await asyncio.to_thread(self._load, found)
                self._loaded[found] = served
                _log.info("loaded %s version %s in %.2f s", found.name, found.number, time.perf_counter() - started)
        return served

    def is_loaded(self, version: Version) -> bool:
        """Whether a version is in an executor."""
        return version in self._loaded

    @property
    def healthy(self) -> bool:
        """Whether the worker of every loaded model is alive."""
        return all(served.executor.healthy for served in self._loaded.values())

    async def aliases(self, name: str) -> dict[str, str]:
        """Version of each alias of a model."""
        return await asyncio.to_thread(self._aliases.of, name)

    async def unload(self, version: Version) -> None:
        """Take a version out; what is in it is answered first. WrongStateError if it is not loaded."""
        served = self._loaded.pop(version, None)
        if served is None:
            raise WrongStateError(f"version {version.number} of model {version.name!r} is not loaded")
        await asyncio.to_thread(served.executor.close, drain=True)

    async def promote(self, version: Version, alias: str) -> None:
        """Point an alias at a version in one step. InvalidInputError for an alias that could be taken for a number."""
        check_name("alias", alias)
        if not alias[0].isalpha():
            raise InvalidInputError("alias", alias, "a letter first")
        await asyncio.to_thread(self._aliases.point, version.name, alias, str(version.number))

    async def delete(self, name: str, number: str) -> None:
        """Delete a version. WrongStateError while an alias points at it."""
        version = await self.resolve(name, number)
        holding = [alias for alias, target in (await self.aliases(name)).items() if target == str(version.number)]
        if holding:
            raise WrongStateError(
                f"version {version.number} of model {name!r} is {', '.join(holding)}; point that elsewhere first"
            )
        if version in self._loaded:
            await self.unload(version)
        await asyncio.to_thread(self.repository.delete, version.name, version.number)

    async def close(self) -> None:
        """Close every executor; what is still queued is answered UNAVAILABLE."""
        loaded, self._loaded = list(self._loaded.values()), {}
        await asyncio.gather(*(asyncio.to_thread(served.executor.close) for served in loaded))

    def _load(self, version: Version) -> ServedModel:
        card = self.repository.card(version.name, version.number)
        artifact = self.repository.get(version.name, version.number).artifact
        settings = self._settings
        engine = TorchScriptEngine(artifact, card.digest, self._device, settings.threads)
        executor = Executor(
            engine,
            card.grid.size,
            settings.max_batch_size,
            settings.max_queue_delay_ms / 1e3,
            settings.max_queue_images,
        )
        return ServedModel(version, card, engine.channel_means, executor)
