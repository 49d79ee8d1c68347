"""The boundary: gives every call a request id, tells the version, and maps the error family to status codes.

The text of an unexpected error stays in the log.
"""

import inspect
import logging
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from importlib.metadata import version
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import structlog
from google.rpc import code_pb2, status_pb2
from grpc import aio
from grpc_status import rpc_status
from sqlalchemy.exc import OperationalError

from limner.imaging.errors import ImageError
from limner_server.errors import LimnerError, MessageTooLargeError, QueueFullError, RateLimitError
from limner_server.rpc.status import to_status

REQUEST_ID = "limner-request-id"
PUSHBACK = "grpc-retry-pushback-ms"
VERSION = "limner-version"

_VERSION = (VERSION, version("limner"))

_log = logging.getLogger(__name__)
RpcContext = aio.ServicerContext[Any, Any]
if TYPE_CHECKING:
    Handler = grpc.RpcMethodHandler[Any, Any]
else:
    Handler = grpc.RpcMethodHandler  # generic in its stubs only
Continuation = Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]]
"""What an interceptor asks for the handler that the others, and the services, give."""


class ErrorInterceptor(aio.ServerInterceptor):
    """Wraps every handler of every service."""

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """Return the handler with its errors translated."""
        handler = await continuation(handler_call_details)
        if handler is None:
            return _unknown(handler_call_details.method)
        return rewrap(handler, lambda behavior: _translated(handler_call_details.method, behavior))


def _unknown(method: str) -> Handler:
    """Return what answers a call that is not there; grpcio's own answer could not tell the version."""

    async def answer(_requests: Any, context: RpcContext) -> NoReturn:
        request_id = _identify(context)
        rich = rpc_status.to_status(status_pb2.Status(code=code_pb2.UNIMPLEMENTED, message=f"there is no {method}"))
        await context.abort(rich.code, rich.details, ((REQUEST_ID, request_id), _VERSION, *rich.trailing_metadata))
        raise AssertionError("abort returned")

    # Of this kind no message is waited for, however the caller takes the method to be.
    return grpc.stream_stream_rpc_method_handler(answer)


def rewrap(handler: Handler, wrap: Callable[[Callable[[Any, RpcContext], Any]], Any]) -> Handler:
    """Return a handler of the same kind whose behavior is `wrap` of this one's.

    What streams is an asynchronous generator, but for what refuses a call: that never comes to a reply.
    """
    kind = f"{shape(handler.request_streaming)}_{shape(handler.response_streaming)}"
    rebuild = getattr(grpc, f"{kind}_rpc_method_handler")
    rebuilt: Handler = rebuild(
        wrap(getattr(handler, kind)),
        request_deserializer=handler.request_deserializer,
        response_serializer=handler.response_serializer,
    )
    return rebuilt


def shape(streaming: bool) -> str:
    """Return the word by which gRPC's functions tell one side of a method."""
    return "stream" if streaming else "unary"


def _translated(method: str, behavior: Callable[[Any, RpcContext], Any]) -> Any:
    async def call(request: Any, context: RpcContext) -> Any:
        request_id = _identify(context)
        try:
            return await behavior(request, context)
        except Exception as error:  # translated, never swallowed
            await _abort(context, method, request_id, error)

    async def stream(request: Any, context: RpcContext) -> AsyncIterator[Any]:
        request_id = _identify(context)
        try:
            async for reply in behavior(request, context):
                yield reply
        except Exception as error:  # translated, never swallowed
            await _abort(context, method, request_id, error)

    return stream if inspect.isasyncgenfunction(behavior) else call


def _identify(context: RpcContext) -> str:
    request_id = uuid.uuid4().hex
    context.set_trailing_metadata(((REQUEST_ID, request_id), _VERSION))
    structlog.contextvars.bind_contextvars(request_id=request_id)  # each call has a task, and so a context, of its own
    return request_id


async def _abort(context: RpcContext, method: str, request_id: str, error: Exception) -> NoReturn:
    trailer: tuple[tuple[str, str], ...] = ((REQUEST_ID, request_id), _VERSION)
    match error:
        case aio.BaseError():  # aborted already
            raise error
        case LimnerError() | ImageError():
            status = to_status(error)
        case OperationalError():
            _log.error("%s failed, request %s: the database", method, request_id, exc_info=error)
            message = f"the database cannot be reached; the server's log has the details under request id {request_id}"
            status = status_pb2.Status(code=code_pb2.UNAVAILABLE, message=message)
        case _:
            _log.error("%s failed, request %s", method, request_id, exc_info=error)
            message = f"internal error; the server's log has the details under request id {request_id}"
            status = status_pb2.Status(code=code_pb2.INTERNAL, message=message)
    # gRFC A6: the client's retry policy waits just this long, or with -1 does not try again.
    if isinstance(error, QueueFullError | RateLimitError):
        trailer = (*trailer, (PUSHBACK, str(max(1, round(error.retry_after_s * 1000)))))
    elif isinstance(error, MessageTooLargeError):
        trailer = (*trailer, (PUSHBACK, "-1"))
    rich = rpc_status.to_status(status)
    await context.abort(rich.code, rich.details, (*trailer, *rich.trailing_metadata))
    raise AssertionError("abort returned")
