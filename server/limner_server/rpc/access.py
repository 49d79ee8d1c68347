"""Lets a call in or not, before any message of it is received: one interceptor for every method of every service.

Who calls and which role a method needs is known to `limner_server.access`; how a refusal looks on the wire, to
`rpc.interceptor`, which stands around this.
"""

import inspect
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
from google.protobuf.message import Message
from grpc import aio

from limner_server.access.access import Access
from limner_server.access.limits import Meter, Meters
from limner_server.access.matrix import MATRIX, Role
from limner_server.access.principal import enter
from limner_server.errors import ForbiddenError, InvalidInputError, UnauthenticatedError
from limner_server.rpc.interceptor import Continuation, Handler, RpcContext, shape

_log = logging.getLogger(__name__)


class AccessInterceptor(aio.ServerInterceptor):
    """Asks of every call who it is by, whether that principal may, and whether it does so too often."""

    def __init__(self, access: Access) -> None:
        self._access = access
        self._meters = Meters()

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """Return the handler with a guard before it. A method that there is not is told of as such, to anybody."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method.lstrip("/")
        needed = MATRIX.get(method)
        if handler is None or needed is Role.NOBODY:
            return handler
        return _guarded(handler, lambda context: self._admit(method, needed, context))

    async def _admit(self, method: str, needed: Role | None, context: RpcContext) -> Meter:
        """Let a call in, and return the meter of whoever it is by."""
        peer = context.peer()  # before anything is awaited: of a call that is gone, gRPC's `peer` ends the process
        try:
            principal = await self._access.identify(context.invocation_metadata() or (), context.auth_context())
        except UnauthenticatedError as error:
            _log.info("%s refused to %s: %s", method, peer, error)
            raise
        meter = self._meters.of(principal)
        meter.check_call()
        enter(principal)  # from here on a refusal is audited, so no more often than the limits let it
        if needed is None:
            raise ForbiddenError(f"{method} is in no row of the authorisation matrix, so nobody may call it")
        if principal.role < needed:
            has = f"has the role '{principal.role.name.lower()}'" if principal.role else "has no role"
            raise ForbiddenError(f"{method} needs the role '{needed.name.lower()}'; {principal.name} {has}")
        return meter


def _guarded(handler: Handler, admit: Callable[[RpcContext], Awaitable[Meter]]) -> Handler:
    """Return a handler that admits a call, and only then reads its messages.

    It takes a stream whatever the method takes: gRPC would read the one message of another method before its handler.
    """
    request, reply = shape(handler.request_streaming), shape(handler.response_streaming)
    behavior: Callable[[Any, RpcContext], Any] = getattr(handler, f"{request}_{reply}")

    async def read(requests: AsyncIterator[Message], context: RpcContext) -> Any:
        meter = await admit(context)
        return _paced(requests, meter) if handler.request_streaming else await _only(requests, meter)

    async def call(requests: AsyncIterator[Message], context: RpcContext) -> Any:
        return await behavior(await read(requests, context), context)

    async def stream(requests: AsyncIterator[Message], context: RpcContext) -> AsyncIterator[Any]:
        async for answer in behavior(await read(requests, context), context):
            yield answer

    rebuild = getattr(grpc, f"stream_{reply}_rpc_method_handler")
    rebuilt: Handler = rebuild(
        stream if inspect.isasyncgenfunction(behavior) else call,
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
    return rebuilt


async def _only(requests: AsyncIterator[Message], meter: Meter) -> Message:
    """Read the message of a call that has one; over a limit the whole call is refused, to be sent again."""
    async for request in requests:
        meter.check(request)
        return request
    raise InvalidInputError("request", "missing", "one message")


async def _paced(requests: AsyncIterator[Message], meter: Meter) -> AsyncIterator[Message]:
    """Read a stream no faster than its caller may send images: HTTP/2 has the caller wait."""
    async for request in requests:
        await meter.pace(request)
        yield request
