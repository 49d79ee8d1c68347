"""Traces of calls to a collector, by OpenTelemetry's standard instrumentation of gRPC. Needs `limner[tracing]`.

A call has a span, a child of the caller's where that sends one; what goes through the executor has one for each stage
beneath it. No span tells what was in a request: exceptions, whose text may, are kept out and stay in the log.
"""

import importlib.metadata
import os
import time
from collections.abc import Sequence
from weakref import WeakKeyDictionary

import structlog
from grpc import aio
from opentelemetry import trace
from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
from opentelemetry.instrumentation.grpc import aio_server_interceptor, filters
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import SpanLimits, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from limner_server.executor.engine import Output

MOST_REQUESTS = 16
"""Requests of one call whose stages have spans; a stream of thousands of images would drown all else."""

_EXPORT_S = 5.0


class Traces:
    """Sends spans to a collector until it is closed.

    Parameters
    ----------
    endpoint
        URL of an OTLP receiver over gRPC; "http://" is plain, "https://" TLS with the authorities of this machine.
    """

    def __init__(self, endpoint: str) -> None:
        resource: dict[str, str | int] = {
            "service.name": os.environ.get("OTEL_SERVICE_NAME", "limner-server"),
            "service.version": importlib.metadata.version("limner"),
            "process.pid": os.getpid(),
        }
        self._provider = TracerProvider(resource=Resource.create({**resource}), span_limits=SpanLimits(max_events=0))
        self._provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter(endpoint, timeout=_EXPORT_S)))
        self._tracer = self._provider.get_tracer(__name__)
        self._told: WeakKeyDictionary[trace.Span, int] = WeakKeyDictionary()

    def interceptor(self) -> aio.ServerInterceptor:
        """Return what gives each call a span, but those for health and reflection."""
        wanted = filters.any_of(filters.service_prefix("limner."), filters.service_prefix("inference."))
        interceptor: aio.ServerInterceptor = aio_server_interceptor(self._provider, filter_=wanted)
        return interceptor

    def stages(self, outputs: Sequence[Output], began_ns: int, read_ns: int, answered_ns: int, ended_ns: int) -> None:
        """Tell of the stages of a request that was answered just now; times are those of `time.perf_counter_ns`."""
        call = trace.get_current_span()
        told = self._told.get(call, 0)
        if not call.is_recording() or told == MOST_REQUESTS:
            return
        self._told[call] = told + 1
        call.set_attribute("limner.request_id", structlog.contextvars.get_contextvars().get("request_id", ""))
        slowest = max(outputs, key=lambda output: output.queue_s + output.compute_s)
        started_ns = read_ns + int(slowest.queue_s * 1e9)
        computed_ns = started_ns + int(slowest.compute_s * 1e9)
        epoch_ns = time.time_ns() - time.perf_counter_ns()
        for name, start, end in (
            ("decode", began_ns, read_ns),
            ("queue", read_ns, started_ns),
            ("compute", started_ns, computed_ns),
            ("encode", answered_ns, ended_ns),
        ):
            span = self._tracer.start_span(name, start_time=epoch_ns + start)
            if name == "compute":
                span.set_attribute("limner.batch_images", slowest.batch_size)
            span.end(end_time=epoch_ns + end)

    def close(self) -> None:
        """Send what is left, for seconds at most."""
        self._provider.shutdown()
