"""OpenTelemetry traces of the SDK's calls, by the standard instrumentation of gRPC. Needs the extra `limner[tracing]`.

Spans go to the tracer provider that the program has set (`opentelemetry.trace.set_tracer_provider`), and every call
carries its trace to the server. Imported only where tracing is asked for.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import grpc
from grpc import aio

try:
    from opentelemetry.instrumentation.grpc import aio_client_interceptors, client_interceptor, filters, grpcext
except ModuleNotFoundError as error:
    raise ModuleNotFoundError("tracing needs OpenTelemetry: pip install 'limner[tracing]'", name=error.name) from error

_Invoke = Callable[[Any, Any], Any]

# Looks at a server's health, four a second while one is waited for, are no calls of the program's.
_wanted = filters.service_prefix("limner.")


def traced(channel: grpc.Channel) -> grpc.Channel:
    """Return a channel whose calls are traced."""
    traced: grpc.Channel = grpcext.intercept_channel(channel, _Interceptor())
    return traced


def interceptors() -> Sequence[aio.ClientInterceptor]:
    """Return what a channel for asyncio is opened with, so that its calls are traced."""
    found: Sequence[aio.ClientInterceptor] = aio_client_interceptors(filter_=_wanted)
    return found


class _Interceptor(grpcext.UnaryClientInterceptor, grpcext.StreamClientInterceptor):
    """The standard interceptor, whose streams of replies can be cancelled here as gRPC's own can."""

    def __init__(self) -> None:
        self._standard = client_interceptor(filter_=_wanted)

    def intercept_unary(self, request: Any, metadata: Any, client_info: Any, invoker: _Invoke) -> Any:
        """Trace a call with one reply."""
        return self._standard.intercept_unary(request, metadata, client_info, invoker)

    def intercept_stream(self, request_or_iterator: Any, metadata: Any, client_info: Any, invoker: _Invoke) -> Any:
        """Trace a call with any number of messages."""
        begun = []

        def invoke(request: Any, metadata: Any) -> Any:
            begun.append(invoker(request, metadata))
            return begun[-1]

        replies = self._standard.intercept_stream(request_or_iterator, metadata, client_info, invoke)
        if not client_info.is_server_stream or hasattr(replies, "cancel"):
            return replies
        return _Replies(replies, begun)


class _Replies:
    """What the standard interceptor makes of a stream of replies, a generator, and the call behind it."""

    def __init__(self, replies: Iterator[Any], begun: Sequence[grpc.Call]) -> None:
        self._replies = replies
        self._begun = begun

    def __iter__(self) -> Iterator[Any]:
        return self._replies

    def cancel(self) -> None:
        """End the call, if it has begun."""
        for call in self._begun:
            call.cancel()
