"""The models that can answer: versions resolved, loaded on demand, unloaded, promoted, deleted."""

import asyncio
import contextlib
import logging
import math
import time
from collections import deque
from collections.abc import Iterator, Mapping
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sqlalchemy.exc import SQLAlchemyError

from limner_server.errors import InvalidInputError, NotFoundError, QueueFullError, WrongStateError
from limner_server.executor.engine import Item, Output
from limner_server.executor.executor import Executor, Places
from limner_server.executor.torchscript import TorchScriptEngine
from limner_server.executor.triton import TritonEngine
from limner_server.executor.triton_client import TritonClient
from limner_server.names import check_name
from limner_server.networks.card import ModelCard
from limner_server.networks.repository import ModelRepository
from limner_server.settings import Settings
from limner_server.state.aliases import AliasStore
from limner_server.state.loaded import LoadedStore
from limner_server.statistics import Reason, Statistics, Trace

DEFAULT_ALIAS = "production"
RESOLVE_AGAIN_S = 0.5
"""How long a name stands for the version that it last did; what other processes publish or promote shows after it."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Version:
    """Name and number of one version of a model."""

    name: str
    number: int


class ServedModel:
    """One loaded version: card, mean of each channel over its cohort, executor, and what it has answered so far."""

    def __init__(
        self,
        version: Version,
        card: ModelCard,
        channel_means: Mapping[str, NDArray[np.float32]],
        executor: Executor,
        trace: Trace | None = None,
    ) -> None:
        self.version = version
        self.card = card
        self.grid = card.grid
        self.channel_means = channel_means
        self.executor = executor
        self.statistics = Statistics(trace=trace)
        self._mailbox = _Mailbox()

    @contextlib.contextmanager
    def admitted(
        self, images: int, priority: int = 0, deadline: float | None = None, *, runs: int = 1
    ) -> Iterator[Places]:
        """Keep places for all images of a call, as the executor does; each image that it refuses counts as failed.

        `runs` is how often each of them is run.
        """
        with contextlib.ExitStack() as stack:
            try:
                places = stack.enter_context(self.executor.admitted(images * runs, priority, deadline))
            except QueueFullError:
                self.statistics.failures[Reason.QUEUE_FULL].count += images
                raise
            yield places

    async def run(
        self, item: Item, priority: int = 0, deadline: float | None = None, places: Places | None = None
    ) -> Output:
        """Run one item in the next batch, on the event loop that first did. Cancelling drops it if it still waits.

        Raises
        ------
        QueueFullError, DeadlineError, EngineError, InvalidInputError, UnavailableError
            As the executor does.
        """
        work = self.executor.submit(item, priority, deadline, places)
        answer = asyncio.get_running_loop().create_future()
        work.add_done_callback(lambda done: self._mailbox.post(answer, done))
        try:
            return await answer  # type: ignore[no-any-return]
        except asyncio.CancelledError:
            work.cancel()
            raise


class _Mailbox:
    """Brings answers from the executor's threads to the event loop, with one wake-up for those that come together."""

    def __init__(self) -> None:
        self._letters: deque[tuple[asyncio.Future[Output], Future[Output]]] = deque()
        self._called = False

    def post(self, answer: asyncio.Future[Output], done: Future[Output]) -> None:
        """Have an answer delivered; may be called from any thread."""
        self._letters.append((answer, done))
        if not self._called:
            self._called = True
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
                answer.get_loop().call_soon_threadsafe(self._deliver)

    def _deliver(self) -> None:
        self._called = False  # first, so that what is posted from here on calls again
        while self._letters:
            answer, done = self._letters.popleft()
            if answer.done():  # its caller is gone
                continue
            if done.cancelled():
                answer.cancel()
            elif (error := done.exception()) is not None:
                answer.set_exception(error)
            else:
                answer.set_result(done.result())


class ModelPool:
    """All models of a repository, and those of them that are loaded. All methods belong to the event loop's thread."""

    def __init__(
        self,
        repository: ModelRepository,
        aliases: AliasStore,
        holdings: LoadedStore,
        settings: Settings,
        device: str,
        trace: Trace | None = None,
    ) -> None:
        self.repository = repository
        self._aliases = aliases
        self._holdings = holdings
        self._settings = settings
        self._device = device
        self._trace = trace
        self._loaded: dict[Version, ServedModel] = {}
        self._resolved: dict[tuple[str, str], tuple[Version, float]] = {}
        self._resolving: dict[tuple[str, str], asyncio.Task[Version]] = {}
        self._loading: dict[Version, asyncio.Task[ServedModel]] = {}

    async def resolve(self, name: str, version: str = "") -> Version:
        """Find the version that a name and a number, an alias or nothing stand for.

        Raises
        ------
        NotFoundError
            Naming the models, or the versions and aliases, that there are.
        """
        cached, looked = self._resolved.get((name, version), (None, -math.inf))
        age = time.monotonic() - looked
        if cached is None or age >= RESOLVE_AGAIN_S:
            return await asyncio.shield(self._look_up(name, version, join=cached is not None))
        if age >= RESOLVE_AGAIN_S / 2:  # ahead, so that no call has to wait for it while the name is in use
            self._look_up(name, version, join=True)
        return cached

    def _look_up(self, name: str, version: str, *, join: bool) -> "asyncio.Task[Version]":
        """Look a name up, in one go with who does so already where `join`: what is newer than that is not seen."""
        key = name, version
        if join and (looking := self._resolving.get(key)) is not None:
            return looking

        def keep(task: "asyncio.Task[Version]") -> None:
            found = not task.cancelled() and task.exception() is None
            if self._resolving.get(key) is task:  # else another is newer, or what it found may be no more
                del self._resolving[key]
                if found:
                    self._resolved[key] = task.result(), time.monotonic()

        looking = self._resolving[key] = asyncio.create_task(self._find(name, version))
        looking.add_done_callback(keep)
        return looking

    def _forget_resolved(self) -> None:
        self._resolved.clear()
        self._resolving.clear()

    async def _find(self, name: str, version: str) -> Version:
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
        if (served := self._loaded.get(found)) is not None:
            return served
        if (loading := self._loading.get(found)) is None:
            loading = self._loading[found] = asyncio.create_task(self._take_in(found))
            loading.add_done_callback(lambda _: self._loading.pop(found))
        # Shielded: a caller who gives up takes the model from nobody, and leaves no half-loaded one behind.
        return await asyncio.shield(loading)

    def is_loaded(self, version: Version) -> bool:
        """Whether a version is in an executor."""
        return version in self._loaded

    @property
    def loaded(self) -> list[ServedModel]:
        """The versions that are in an executor now; of all methods here this one may be called from any thread."""
        return list(self._loaded.values())

    @property
    def healthy(self) -> bool:
        """Whether every loaded model would answer."""
        return all(served.executor.healthy for served in self._loaded.values())

    async def aliases(self, name: str) -> dict[str, str]:
        """Version of each alias of a model."""
        return await asyncio.to_thread(self._aliases.of, name)

    async def unload(self, version: Version) -> None:
        """Take a version out of every server; what is in it is answered first. WrongStateError if none has it loaded.

        The others follow with `close_unloaded`.
        """
        if not await self._take_out(version):
            raise WrongStateError(f"version {version.number} of model {version.name!r} is not loaded")

    async def close_unloaded(self) -> None:
        """Take out what another server has unloaded or deleted; what is in it is answered first."""
        loaded = list(self._loaded)  # before the look: what is loaded meanwhile is not of it
        here = await asyncio.to_thread(self._holdings.here)
        for version in loaded:
            if (version.name, version.number) not in here:
                await self._close(version)

    async def promote(self, version: Version, alias: str) -> None:
        """Point an alias at a version in one step. InvalidInputError for an alias that could be taken for a number."""
        check_name("alias", alias)
        if not alias[0].isalpha():
            raise InvalidInputError("alias", alias, "a letter first")
        await asyncio.to_thread(self._aliases.point, version.name, alias, str(version.number))
        self._forget_resolved()

    async def delete(self, name: str, number: str) -> None:
        """Delete a version. WrongStateError while an alias points at it."""
        version = await self.resolve(name, number)
        holding = [alias for alias, target in (await self.aliases(name)).items() if target == str(version.number)]
        if holding:
            raise WrongStateError(
                f"version {version.number} of model {name!r} is {', '.join(holding)}; point that elsewhere first"
            )
        await self._take_out(version)
        await asyncio.to_thread(self.repository.delete, version.name, version.number)
        self._forget_resolved()

    async def close(self) -> None:
        """Close every executor; what is still queued is answered UNAVAILABLE."""
        await asyncio.gather(*self._loading.values(), return_exceptions=True)
        loaded, self._loaded = list(self._loaded.values()), {}
        await asyncio.gather(*(asyncio.to_thread(served.executor.close) for served in loaded))

    async def _take_in(self, version: Version) -> ServedModel:
        started = time.perf_counter()
        served = await asyncio.to_thread(self._load, version)
        try:
            await asyncio.to_thread(self._holdings.add, version.name, version.number)
        except SQLAlchemyError:
            await asyncio.to_thread(served.executor.close)
            raise
        self._loaded[version] = served
        _log.info("loaded %s version %s in %.2f s", version.name, version.number, time.perf_counter() - started)
        return served

    async def _take_out(self, version: Version) -> bool:
        anywhere = await asyncio.to_thread(self._holdings.drop, version.name, version.number)
        await self._close(version)
        return anywhere

    async def _close(self, version: Version) -> None:
        if (served := self._loaded.pop(version, None)) is not None:
            await asyncio.to_thread(served.executor.close, drain=True)

    def _load(self, version: Version) -> ServedModel:
        card = self.repository.card(version.name, version.number)
        artifact = self.repository.get(version.name, version.number).artifact
        settings = self._settings
        engine = self._engine(version, card, artifact)
        executor = Executor(
            engine,
            card.grid.size,
            settings.max_batch_size,
            settings.max_queue_delay_ms / 1e3,
            settings.max_queue_images,
            settings.max_queue_ms / 1e3,
        )
        return ServedModel(version, card, engine.channel_means, executor, self._trace)

    def _engine(self, version: Version, card: ModelCard, artifact: Path) -> TorchScriptEngine | TritonEngine:
        settings = self._settings
        if settings.engine == "torchscript":
            return TorchScriptEngine(artifact, card, self._device, settings.engine_threads, settings.precision)
        triton = TritonClient(settings.triton_url, settings.triton_timeout_s, version.name, version.number, card)
        return TritonEngine(triton, card, artifact, self._device, settings.engine_threads)
