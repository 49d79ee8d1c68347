"""Counts and times every call of every service, whatever becomes of it.

Stands outside all other interceptors, so that what they refuse is counted too. A method that is not served is counted
as "unknown": what callers make up becomes no label.
"""

import asyncio
import inspect
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from typing import Any

import grpc
from grpc import aio
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from limner_server.rpc.interceptor import Handler, RpcContext, rewrap

BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_LABELS = ("service", "method")
_UNKNOWN = ("unknown", "unknown")

_log = logging.getLogger(__name__)


class MeteringInterceptor(aio.ServerInterceptor):
    """Counts calls by service, method and code.

    Parameters
    ----------
    methods
        Those that are served, as "/package.Service/Method".
    registry
        Where the metrics go.
    """

    def __init__(self, methods: Collection[str], registry: CollectorRegistry) -> None:
        self._methods = frozenset(methods)
        self._requests = Counter("limner_rpc_requests", "Calls that have ended.", (*_LABELS, "code"), registry=registry)
        self._in_flight = Gauge("limner_rpc_in_flight", "Calls that have not ended.", _LABELS, registry=registry)
        self._seconds = Histogram(
            "limner_rpc_seconds",
            "Time from the beginning to the end of a call; of a stream, of all of it.",
            _LABELS,
            registry=registry,
            buckets=BOUNDS_S,
        )
        self._meter = lru_cache(maxsize=None)(self._make_meter)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Handler | None]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Handler | None:
        """Return the handler, metered; what nobody handles is counted at once."""
        handler = await continuation(handler_call_details)
        name = handler_call_details.method if handler_call_details.method in self._methods else ""
        if handler is None:
            self._requests.labels(*_UNKNOWN, grpc.StatusCode.UNIMPLEMENTED.name).inc()
            return None
        return rewrap(handler, partial(_metered, self._meter(name)))

    def _make_meter(self, name: str) -> "_Meter":
        labels = tuple(name.strip("/").split("/")) if name else _UNKNOWN
        return _Meter(
            name,
            partial(self._requests.labels, *labels),
            self._in_flight.labels(*labels),
            self._seconds.labels(*labels),
        )


class _Meter:
    """The metrics of one method."""

    def __init__(self, name: str, requests: Callable[[str], Counter], in_flight: Gauge, seconds: Histogram) -> None:
        self._name = name
        self._requests = lru_cache(maxsize=None)(requests)
        self._in_flight = in_flight
        self._seconds = seconds

    @contextmanager
    def call(self, context: RpcContext) -> Iterator[None]:
        """Count what the block does as a call."""
        started = time.perf_counter()
        self._in_flight.inc()
        error: BaseException | None = None
        try:
            yield
        except BaseException as raised:
            error = raised
            raise
        finally:
            seconds = time.perf_counter() - started
            code = _code(context, error).name
            self._in_flight.dec()
            self._seconds.observe(seconds)
            self._requests(code).inc()
            _log.debug("%s ended with %s after %.3f s", self._name, code, seconds)


def _metered(meter: _Meter, behavior: Callable[[Any, RpcContext], Any]) -> Any:
    async def call(request: Any, context: RpcContext) -> Any:
        with meter.call(context):
            return await behavior(request, context)

    async def stream(request: Any, context: RpcContext) -> AsyncIterator[Any]:
        with meter.call(context):
            async for reply in behavior(request, context):
                yield reply

    return stream if inspect.isasyncgenfunction(behavior) else call


def _code(context: RpcContext, error: BaseException | None) -> grpc.StatusCode:
    """How a call has ended; a caller whose deadline has passed is gone like one who left."""
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        remaining = context.time_remaining()
        late = remaining is not None and remaining <= 0
        return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
    return context.code() or (grpc.StatusCode.OK if error is None else grpc.StatusCode.UNKNOWN)
