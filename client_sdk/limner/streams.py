"""Results of a stream as they come: what the synchronous and the asynchronous form share, and the two forms."""

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Generator, Iterator
from contextlib import aclosing, closing
from typing import Generic, TypeVar

from limner import types, wire
from limner.images import Ledger
from limner.v1 import feature_pb2, inference_pb2

_R = TypeVar("_R", bound=types.ItemResult)
Reply = inference_pb2.PredictStreamResponse | feature_pb2.ExtractFeaturesStreamResponse


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

    def _absorb(self, reply: Reply) -> Iterator[_R]:
        if reply.HasField("start"):
            self.model = wire.identity(reply.start.model)
            self.labels = tuple(reply.start.labels)
        if isinstance(reply, inference_pb2.PredictStreamResponse):
            for result in reply.results:
                yield from self._ledger.answered(self._parse(result))
            if reply.HasField("end"):
                self.subjects = self._ledger.roll_up(map(wire.subject_result, reply.end.subjects))
        elif reply.HasField("result"):
            yield from self._ledger.answered(self._parse(reply.result))


class ResultStream(_Stream[_R]):
    """Results as they come, in the order of the images; iterate once."""

    def __init__(self, replies: Generator[Reply, None, None], ledger: Ledger[_R], parse: Callable[..., _R]) -> None:
        super().__init__(ledger, parse)
        self._results = self._run(replies)

    def __iter__(self) -> Iterator[_R]:
        return self._results

    def close(self) -> None:
        """Stop early: the call is cancelled."""
        self._results.close()

    def _run(self, replies: Generator[Reply, None, None]) -> Generator[_R, None, None]:
        with closing(replies):
            for reply in replies:
                yield from self._absorb(reply)
        yield from self._ledger.close()


class AsyncResultStream(_Stream[_R]):
    """Results as they come, in the order of the images; iterate once, by `async for`."""

    def __init__(self, replies: AsyncGenerator[Reply, None], ledger: Ledger[_R], parse: Callable[..., _R]) -> None:
        super().__init__(ledger, parse)
        self._results = self._run(replies)

    def __aiter__(self) -> AsyncIterator[_R]:
        return self._results

    async def close(self) -> None:
        """Stop early: the call is cancelled."""
        await self._results.aclose()

    async def _run(self, replies: AsyncGenerator[Reply, None]) -> AsyncGenerator[_R, None]:
        async with aclosing(replies):
            async for reply in replies:
                for result in self._absorb(reply):
                    yield result
        for result in self._ledger.close():
            yield result
