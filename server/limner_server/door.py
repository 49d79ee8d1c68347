"""The open port: there from the first moment, so that a starting server can be told from a dead one, to the last call.

Whoever calls passes the door before the interceptors and services of `app`. Until these are there, health is answered
and everything else is refused, to be asked again.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable, Mapping, Sequence
from functools import partial
from typing import cast

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from limner_server.access.tls import TlsFiles
from limner_server.probes import ProbePort
from limner_server.rpc.health import SERVICES, Health
from limner_server.rpc.interceptor import Continuation, Handler, RpcContext
from limner_server.settings import Settings

HEALTH = health_pb2.DESCRIPTOR.services_by_name["Health"].full_name
STARTING = f"the server is starting; {HEALTH} says when it serves"


def server_options(settings: Settings) -> list[tuple[str, int]]:
    """Return the options of the gRPC server. gRPC says nothing of a name that it does not know."""
    limit = settings.max_message_mb * 1024 * 1024
    return [
        ("grpc.max_receive_message_length", limit),
        ("grpc.max_send_message_length", limit),
        # By default gRPC drops some of the calls over 1,000 that Python has not come to, as CANCELLED, which no
        # caller takes for a reason to try again. All are to be refused by the services, with pushback.
        ("grpc.server.max_pending_requests", 10_000),
        ("grpc.server.max_pending_requests_hard_limit", 20_000),
        # The SDK pings every 30 s during a call; long quiet streams must not be ended for it.
        ("grpc.http2.min_ping_interval_without_data_ms", 10_000),
        # By default two servers would share a port in silence; the workers of one are meant to.
        ("grpc.so_reuseport", int(settings.workers > 1)),
    ]


class Door:
    """A gRPC server that listens before it has anything to serve. Belongs to the event loop's thread.

    Attributes
    ----------
    health
        What each service's state is.
    draining
        Set when the server is about to go.
    """

    def __init__(self, settings: Settings) -> None:
        self.health = Health()
        self.draining = asyncio.Event()
        self._settings = settings
        self._tls: TlsFiles | None = None
        if settings.tls_certificate and settings.tls_key:
            self._tls = TlsFiles(settings.tls_certificate, settings.tls_key, settings.tls_client_ca)
        self._guard = _Guard()
        self._services = _Services()
        self._server = aio.server(
            handlers=[self._services], interceptors=[self._guard], options=server_options(settings)
        )
        health_pb2_grpc.add_HealthServicer_to_server(self.health, self._server)
        reflection.enable_server_reflection([*SERVICES, HEALTH, reflection.SERVICE_NAME], self._server)
        self._probes: ProbePort | None = None
        if settings.health_port is not None:
            place = f"{settings.host}:{settings.health_port}"
            self._probes = ProbePort(self.health, place, shared=settings.workers > 1)

    @property
    def services(self) -> aio.Server:
        """Takes services as a server does; gRPC's own takes none once it listens."""
        return cast("aio.Server", self._services)

    async def listen(self) -> int:
        """Listen, and return the port. OSError if it cannot be had."""
        place = f"{self._settings.host}:{self._settings.port}"
        try:
            if self._tls:
                port = self._server.add_secure_port(place, self._tls.credentials())
            else:
                port = self._server.add_insecure_port(place)
        except RuntimeError as error:
            raise OSError(f"cannot listen on {place}: the port is taken or the address not here") from error
        if self._probes:
            await self._probes.open()
        await self._server.start()
        return port

    def open(self, interceptors: Sequence[aio.ServerInterceptor]) -> None:
        """Let callers in to the services, through interceptors, of which the first is the outermost."""
        self._guard.interceptors = interceptors

    async def close(self) -> None:
        """Not ready first; then streams are told to move and calls in flight are finished, for the grace at most."""
        self.health.leave()
        self.draining.set()
        await self._stop(self._settings.drain_s)

    async def shut(self) -> None:
        """Stop listening, and end what is in flight."""
        await self._stop(None)

    async def _stop(self, grace_s: float | None) -> None:
        await self._server.stop(grace_s)
        if self._probes:
            await self._probes.close()


class _Services(grpc.GenericRpcHandler):
    """The services that have come in, whenever that was."""

    def __init__(self) -> None:
        self._handlers: list[grpc.GenericRpcHandler] = []

    def add_generic_rpc_handlers(self, generic_rpc_handlers: Iterable[grpc.GenericRpcHandler]) -> None:
        self._handlers.extend(generic_rpc_handlers)

    def add_registered_method_handlers(self, service_name: str, method_handlers: Mapping[str, Handler]) -> None:
        """Nothing: they are the generic ones again."""

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> Handler | None:
        found = (handler.service(handler_call_details) for handler in self._handlers)
        return next((handler for handler in found if handler is not None), None)


class _Guard(aio.ServerInterceptor):
    """The one interceptor that the server is made with; the others come later.

    They are asked once for each method that is served, not for each call: of a call they may look at its method only.
    """

    def __init__(self) -> None:
        self.interceptors: Sequence[aio.ServerInterceptor] | None = None
        self._handlers: dict[str, Handler] = {}

    async def intercept_service(
        self, continuation: Continuation, handler_call_details: grpc.HandlerCallDetails
    ) -> Handler | None:
        method = handler_call_details.method
        if (known := self._handlers.get(method)) is not None:
            return known
        served = await continuation(handler_call_details)
        if method.startswith(f"/{HEALTH}/"):  # a probe has no name, and asks at every time
            return served
        if self.interceptors is None:
            return grpc.stream_stream_rpc_method_handler(_refuse)

        async def inner(_details: grpc.HandlerCallDetails) -> Handler | None:
            return served

        outer: Continuation = inner
        for interceptor in reversed(self.interceptors):
            outer = partial(interceptor.intercept_service, outer)
        handler = await outer(_Method(method))
        if served is not None and handler is not None:  # what callers make up is not kept
            self._handlers[method] = handler
        return handler


class _Method(grpc.HandlerCallDetails):
    """What is the same of all calls of a method."""

    invocation_metadata = ()

    def __init__(self, method: str) -> None:
        self.method = method


async def _refuse(_requests: AsyncIterator[bytes], context: RpcContext) -> None:
    await context.abort(grpc.StatusCode.UNAVAILABLE, STARTING)
