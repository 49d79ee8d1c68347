"""Results of a stream as they come: what the synchronous and the asynchronous form share, and the two forms.

A stream that has begun goes on through the loss of its server: another call asks for what is not answered.
"""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Generator, Iterator, Sequence
from contextlib import aclosing, closing
from typing import Generic, NamedTuple, TypeVar

from limner import types, wire
from limner.channel import POLL_S, Patience
from limner.errors import UnavailableError, WrongStateError
from limner.images import Ledger
from limner.scoring.run import run_model
from limner.scoring.subjects import RollUp
from limner.v1 import feature_pb2, inference_pb2

_R = TypeVar("_R", bound=types.ItemResult)
Reply = inference_pb2.PredictStreamResponse | feature_pb2.ExtractFeaturesStreamResponse


class _Scored(NamedTuple):
    """What the roll-up counts of an image."""

    subject: str
    code: str
    far: bool | None
    logits: Sequence[float]


class _Stream(Generic[_R]):
    """Results in the order of the images.

    Attributes
    ----------
    model, labels
        The artifact that answers and its labels, once the first result is there.
    subjects
        Roll-ups of the whole stream, once it has ended; none for features.
    """

    def __init__(self, ledger: Ledger[_R], parse: Callable[..., _R]) -> None:
        self._ledger = ledger
        self._parse = parse
        self.model: types.ModelIdentity | None = None
        self.labels: tuple[str, ...] = ()
        self.subjects: tuple[types.SubjectResult, ...] = ()
        self._patience = Patience()
        self._calls = 0
        self._roll_up = RollUp()

    def _absorb(self, reply: Reply) -> Iterator[_R]:
        self._patience.renew()
        if reply.HasField("start"):
            self._meet(wire.identity(reply.start.model))
            self.labels = tuple(reply.start.labels)
        if isinstance(reply, inference_pb2.PredictStreamResponse):
            for message in reply.results:
                result = self._parse(message)
                self._roll_up.add(_scored(result))
                yield from self._ledger.answered(result)
            if reply.HasField("end"):
                self.subjects = self._ledger.roll_up(map(wire.subject_result, reply.end.subjects))
        elif reply.HasField("result"):
            yield from self._ledger.answered(self._parse(reply.result))

    def _meet(self, model: types.ModelIdentity) -> None:
        """Take note of who answers; WrongStateError where that is another one than before."""
        self._calls += 1
        if self.model is not None and self.model.digest != model.digest:
            raise WrongStateError(f"model {self.model} was replaced: its digest is now {model.digest}")
        self.model = model

    @property
    def _asks(self) -> str:
        """The model that another call has to ask; empty for the first call."""
        return "" if self.model is None else f"{self.model.name}:{self.model.version}"

    @property
    def _knows_no_whole(self) -> bool:
        """Whether several calls have each rolled up their own part."""
        return self._calls > 1 and bool(self.subjects)

    def _roll_up_all(self, model: types.Model) -> None:
        self.subjects = self._ledger.roll_up(self._roll_up.results(run_model(model)))


class ResultStream(_Stream[_R]):
    """Results as they come, in the order of the images; iterate once."""

    def __init__(
        self,
        begin: Callable[[str], Generator[Reply, None, None]],
        find: Callable[[str], types.Model],
        ledger: Ledger[_R],
        parse: Callable[..., _R],
    ) -> None:
        super().__init__(ledger, parse)
        self._begin = begin
        self._find = find
        self._results = self._run()

    def __iter__(self) -> Iterator[_R]:
        return self._results

    def close(self) -> None:
        """Stop early: the call is cancelled."""
        self._results.close()

    def _run(self) -> Generator[_R, None, None]:
        while True:
            try:
                with closing(self._begin(self._asks)) as replies:
                    for reply in replies:
                        yield from self._absorb(reply)
                break
            except UnavailableError:
                if self._patience.exhausted():
                    raise
            time.sleep(POLL_S)
        if self._knows_no_whole:
            self._roll_up_all(self._find(self._asks))
        yield from self._ledger.close()


class AsyncResultStream(_Stream[_R]):
    """Results as they come, in the order of the images; iterate once, by `async for`."""

    def __init__(
        self,
        begin: Callable[[str], AsyncGenerator[Reply, None]],
        find: Callable[[str], Awaitable[types.Model]],
        ledger: Ledger[_R],
        parse: Callable[..., _R],
    ) -> None:
        super().__init__(ledger, parse)
        self._begin = begin
        self._find = find
        self._results = self._run()

    def __aiter__(self) -> AsyncIterator[_R]:
        return self._results

    async def close(self) -> None:
        """Stop early: the call is cancelled."""
        await self._results.aclose()

    async def _run(self) -> AsyncGenerator[_R, None]:
        while True:
            try:
                async with aclosing(self._begin(self._asks)) as replies:
                    async for reply in replies:
                        for result in self._absorb(reply):
                            yield result
                break
            except UnavailableError:
                if self._patience.exhausted():
                    raise
            await asyncio.sleep(POLL_S)
        if self._knows_no_whole:
            self._roll_up_all(await self._find(self._asks))
        for result in self._ledger.close():
            yield result


def _scored(result: types.ItemResult) -> _Scored:
    if result.error is not None or not isinstance(result, types.ImageResult) or result.prediction is None:
        return _Scored(result.subject, result.error.code if result.error else "UNKNOWN", None, ())
    distance = result.prediction.distance
    return _Scored(result.subject, "", distance.far if distance else None, result.prediction.logits)
