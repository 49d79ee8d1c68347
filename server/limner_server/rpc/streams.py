"""Many items answered while several are at work: the bounded window of every RPC that takes more than one."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
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


async def answer_all(
    requests: Iterable[Request], answer: Callable[[Request], Awaitable[Reply]], window: int
) -> list[Reply]:
    """Return the answer to each request, with at most `window` at work at a time; the first failure ends them all."""
    slots = asyncio.Semaphore(window)

    async def answer_one(request: Request) -> Reply:
        async with slots:
            return await answer(request)

    try:
        async with asyncio.TaskGroup() as group:
            tasks = [group.create_task(answer_one(request)) for request in requests]
    except ExceptionGroup as failures:
        raise failures.exceptions[0] from None
    return [task.result() for task in tasks]


async def answer_in_order(
    requests: AsyncIterator[Request], answer: Callable[[Request], Awaitable[Reply]], window: int
) -> AsyncIterator[list[Reply]]:
    """Yield the answers in the order of the requests, with at most `window` of them begun and not yet yielded.

    Each list holds the next ones that are done, one or more. When the caller goes away the generator is closed, and
    every answer that is under way is cancelled.
    """
    slots = asyncio.Semaphore(window)
    begun: deque[asyncio.Future[Reply]] = deque()
    changed = asyncio.Event()
    ended = False

    async def read() -> None:
        nonlocal ended
        try:
            async for request in requests:
                await slots.acquire()
                begun.append(asyncio.ensure_future(answer(request)))
                changed.set()
        finally:
            ended = True
            changed.set()

    reader = asyncio.create_task(read())
    try:
        while begun or not ended:
            if not begun:
                changed.clear()
                await changed.wait()
                continue
            await begun[0]
            replies = []
            while begun and begun[0].done():
                replies.append(begun.popleft().result())
            yield replies
            for _ in replies:
                slots.release()
        await reader  # raises what ended the reading, if anything did
    finally:
        reader.cancel()
        for task in begun:
            task.cancel()
