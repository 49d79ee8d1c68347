"""Has streams move to another server when this one is about to go: a stream may last longer than any grace.

What was received is answered first. Then a stream of requests is read no further, and every stream ends with
UNAVAILABLE, whereupon its caller asks elsewhere for what is not answered. Calls of one request and one reply are left
alone: they end by themselves.
"""

import asyncio
import contextlib
import inspect
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from typing import Any, TypeVar

import grpc
from grpc import aio

from limner_server.errors import UnavailableError
from limner_server.rpc.health import LEAVING
from limner_server.rpc.interceptor import Continuation, Handler, RpcContext, rewrap

T = TypeVar("T")


class DrainInterceptor(aio.ServerInterceptor):
    """Ends streams once `draining` is set. Stands inside `ErrorInterceptor`."""

    def __init__(self, draining: asyncio.Event) -> None:
        self._draining = draining

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """Return the handler, and where it streams, one that ends in time."""
        handler = await continuation(handler_call_details)
        if handler is None or not (handler.request_streaming or handler.response_streaming):
            return handler
        return rewrap(handler, self._reads_on if handler.request_streaming else self._answers_on)

    def _reads_on(self, behavior: Callable[[Any, RpcContext], Any]) -> Any:
        """A handler that finds the end of its requests when the server drains, and after it the reason."""

        async def call(requests: AsyncIterator[Any], context: RpcContext) -> Any:
            return await behavior(until(self._draining, requests), context)

        async def stream(requests: AsyncIterator[Any], context: RpcContext) -> AsyncIterator[Any]:
            async with contextlib.aclosing(behavior(until(self._draining, requests), context)) as replies:
                async for reply in replies:
                    yield reply

        return stream if inspect.isasyncgenfunction(behavior) else call

    def _answers_on(self, behavior: Callable[[Any, RpcContext], Any]) -> Any:
        """A handler whose replies end when the server drains."""

        async def stream(request: Any, context: RpcContext) -> AsyncIterator[Any]:
            async with contextlib.aclosing(behavior(request, context)) as replies:
                async for reply in until(self._draining, replies):
                    yield reply

        return stream


async def until(draining: asyncio.Event, items: AsyncIterator[T]) -> AsyncGenerator[T, None]:
    """Give items until the server drains.

    Raises
    ------
    UnavailableError
        It drains. What the source was at is cancelled.
    """
    going = asyncio.create_task(draining.wait())
    try:
        while True:
            item = asyncio.ensure_future(anext(items))
            try:
                await asyncio.wait((item, going), return_when=asyncio.FIRST_COMPLETED)
                if not item.done():
                    raise UnavailableError(LEAVING)
            finally:
                if not item.done():  # the source must have come to rest before anyone closes it
                    item.cancel()
                    await asyncio.wait((item,))
                if not item.cancelled():
                    item.exception()  # looked at, or asyncio logs the end of a stream whose caller leaves just then
            try:
                yield item.result()
            except StopAsyncIteration:
                return
    finally:
        going.cancel()
