"""grpc.health.v1: which services would answer now. Imports nothing heavy: it is asked before torch is there."""

import asyncio
from collections.abc import AsyncIterator, Collection

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from limner_server.rpc.interceptor import RpcContext

LIVE = "limner.live"
"""Asks whether the process is there at all: SERVING from before the models until the process ends."""

PREDICTING = ("limner.v1.InferenceService", "limner.v1.FeatureService", "inference.GRPCInferenceService")
"""Services that answer out of loaded models."""

KEEPING = (
    "limner.v1.CohortService",
    "limner.v1.TrainingService",
    "limner.v1.SimulationService",
    "limner.v1.ModelService",
    "limner.v1.ReviewService",
)
"""Services that answer out of the database and the folders."""

SERVICES = (*PREDICTING, *KEEPING)

LEAVING = "the server is going away; ask another one, or again"
"""What calls that outlast the server end with."""

_Reply = health_pb2.HealthCheckResponse


class Health(health_pb2_grpc.HealthServicer):
    """What each service's state is, for who asks once and for who keeps watching. "" is all services together.

    grpcio's own keeps a watch open for ever, which would hold up a drain to the end of its grace.
    """

    def __init__(self) -> None:
        self._serving: frozenset[str] = frozenset()
        self._leaving = False
        self._changed = asyncio.Event()

    def serve(self, services: Collection[str]) -> None:
        """Say that these services answer, and no others."""
        self._serving = frozenset(services)
        self._change()

    def serves(self, service: str) -> bool:
        """Whether a service answers."""
        return self._status(service) == _Reply.SERVING

    def leave(self) -> None:
        """Say that no service answers any more, and end the watches."""
        self._leaving = True
        self.serve(())

    def _change(self) -> None:
        self._changed.set()
        self._changed = asyncio.Event()

    def _status(self, service: str) -> int | None:
        if service == LIVE:
            return _Reply.SERVING
        wanted = SERVICES if service == "" else (service,)
        if not set(wanted) <= set(SERVICES):
            return None
        return _Reply.SERVING if self._serving.issuperset(wanted) else _Reply.NOT_SERVING

    async def Check(self, request: health_pb2.HealthCheckRequest, context: RpcContext) -> _Reply:
        """Say what the state of a service is now."""
        status = self._status(request.service)
        if status is None:
            known = ", ".join((LIVE, *SERVICES))
            await context.abort(grpc.StatusCode.NOT_FOUND, f"no service {request.service!r}; there is: {known}")
        return _Reply(status=status)

    async def Watch(self, request: health_pb2.HealthCheckRequest, context: RpcContext) -> AsyncIterator[_Reply]:
        """Say what the state of a service is, now and whenever it changes."""
        told = None
        while True:
            changed, status = self._changed, self._status(request.service)
            if status is None:
                status = _Reply.SERVICE_UNKNOWN
            if status != told:
                told = status
                yield _Reply(status=status)  # meanwhile it may have changed again
            elif self._leaving:
                return  # well: with an error, gRPC drops what was not read yet
            else:
                await changed.wait()
