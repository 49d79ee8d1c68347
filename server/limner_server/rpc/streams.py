"""A stream of requests answered in order while several are at work: the bounded window of every bidirectional RPC."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TypeVar

from google.protobuf.message import Message

from limner_server.errors import InvalidInputError

Opened = TypeVar("Opened", bound=Message)
Request = TypeVar("Request")
Reply = TypeVar("Reply")


async def opening(requests: AsyncIterator[Opened]) -> Opened:
    """Return the first message of a stream; InvalidInputError if there is none, or it is not the header."""
    async for request in requests:
        return expect(request, "header")
    raise InvalidInputError("stream", "empty", "a header, then any number of items")


def expect(request: Opened, item: str) -> Opened:
    """Return a message that holds what its place in the stream asks for; InvalidInputError if it does not."""
    found = request.WhichOneof("item")
    if found != item:
        raise InvalidInputError("item", found or "missing", f"the header first, then nothing but items; here: {item}")
    return request


async def answer_in_order(
    requests: AsyncIterator[Request], answer: Callable[[Request], Awaitable[Reply]], window: int
) -> AsyncIterator[Reply]:
    """Yield the answer to each request in order of arrival, with at most `window` of them begun and not yet yielded.

    When the caller goes away the generator is closed, and every answer that is under way is cancelled.
    """
    slots = asyncio.Semaphore(window)
    begun: asyncio.Queue[asyncio.Future[Reply] | None] = asyncio.Queue()

    async def read() -> None:
        try:
            async for request in requests:
                await slots.acquire()
                begun.put_nowait(asyncio.ensure_future(answer(request)))
        finally:
            begun.put_nowait(None)

    reader = asyncio.create_task(read())
    try:
        while (task := await begun.get()) is not None:
            yield await task
            slots.release()
        await reader  # raises what ended the reading, if anything did
    finally:
        reader.cancel()
        while not begun.empty():
            if (task := begun.get_nowait()) is not None:
                task.cancel()
