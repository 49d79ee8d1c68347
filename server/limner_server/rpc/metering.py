"""Counts and times every call of every service, whatever becomes of it.

Stands outside all other interceptors, so that what they refuse is counted too. A method that is not served is counted
as "unknown": what callers make up becomes no label.
"""

import asyncio
import inspect
import logging
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import AsyncIterator, Callable, Collection, Iterable
from functools import partial
from typing import Any

import grpc
from grpc import aio
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from limner_server.rpc.interceptor import Continuation, Handler, RpcContext, rewrap
from limner_server.telemetry.histogram import buckets

BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
_LABELS = ("service", "method")
_UNKNOWN = "/unknown/unknown"
_ON_THE_WAY_S = 0.1
"""A deadline passes at the caller's before it does here, by as long as the call was on its way."""

_log = logging.getLogger(__name__)


class MeteringInterceptor(aio.ServerInterceptor, Collector):
    """Counts calls by service, method and code, as plain numbers: prometheus_client's own cost a call six times that.

    Parameters
    ----------
    methods
        Those that are served, as "/package.Service/Method".
    """

    def __init__(self, methods: Collection[str]) -> None:
        self._methods = frozenset(methods)
        self._meters: dict[str, _Meter] = {}

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        """Return the handler, metered; what nobody handles is counted at once."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        meter = self._meter(method if method in self._methods else _UNKNOWN)
        if handler is None:
            meter.codes[grpc.StatusCode.UNIMPLEMENTED.name] += 1
            return None
        return rewrap(handler, partial(_metered, meter))

    def collect(self) -> Iterable[Metric]:
        """Yield calls that have ended, their times, and those that have not; may be called from any thread."""
        requests = CounterMetricFamily("limner_rpc_requests", "Calls that have ended.", labels=(*_LABELS, "code"))
        in_flight = GaugeMetricFamily("limner_rpc_in_flight", "Calls that have not ended.", labels=_LABELS)
        seconds = HistogramMetricFamily(
            "limner_rpc_seconds",
            "Time from the beginning to the end of a call; of a stream, of all of it.",
            labels=_LABELS,
        )
        for method, meter in list(self._meters.items()):
            labels = method.strip("/").split("/")
            for code, calls in list(meter.codes.items()):
                requests.add_metric([*labels, code], calls)
            in_flight.add_metric(labels, meter.in_flight)
            seconds.add_metric(labels, buckets(BOUNDS_S, meter.classes), meter.seconds)
        return requests, in_flight, seconds

    def _meter(self, method: str) -> "_Meter":
        if (meter := self._meters.get(method)) is None:
            meter = self._meters[method] = _Meter(method)
        return meter


class _Meter:
    """What is counted of one method, on the event loop's thread."""

    def __init__(self, method: str) -> None:
        self.method = method
        self.in_flight = 0
        self.codes: Counter[str] = Counter()
        self.classes = [0] * (len(BOUNDS_S) + 1)
        self.seconds = 0.0

    def ended(self, context: RpcContext, began: float, error: BaseException | None) -> None:
        """Count a call that began then, by `time.perf_counter`, and has ended now."""
        seconds = time.perf_counter() - began
        code = _code(context, error).name
        self.in_flight -= 1
        self.codes[code] += 1
        self.classes[bisect_left(BOUNDS_S, seconds)] += 1
        self.seconds += seconds
        _log.debug("%s ended with %s after %.3f s", self.method, code, seconds)


def _metered(meter: _Meter, behavior: Callable[[Any, RpcContext], Any]) -> Any:
    async def call(request: Any, context: RpcContext) -> Any:
        began = time.perf_counter()
        error: BaseException | None = None
        meter.in_flight += 1
        try:
            return await behavior(request, context)
        except BaseException as raised:
            error = raised
            raise
        finally:
            meter.ended(context, began, error)

    async def stream(request: Any, context: RpcContext) -> AsyncIterator[Any]:
        began = time.perf_counter()
        error: BaseException | None = None
        meter.in_flight += 1
        try:
            async for reply in behavior(request, context):
                yield reply
        except BaseException as raised:
            error = raised
            raise
        finally:
            meter.ended(context, began, error)

    return stream if inspect.isasyncgenfunction(behavior) else call


def _code(context: RpcContext, error: BaseException | None) -> grpc.StatusCode:
    """How a call has ended; a caller whose deadline has passed is gone like one who left."""
    if isinstance(error, asyncio.CancelledError | GeneratorExit):
        remaining = context.time_remaining()
        late = remaining is not None and remaining <= _ON_THE_WAY_S
        return grpc.StatusCode.DEADLINE_EXCEEDED if late else grpc.StatusCode.CANCELLED
    return context.code() or (grpc.StatusCode.OK if error is None else grpc.StatusCode.UNKNOWN)
