"""Puts the server together. The one place that wires things: read it top to bottom.

The path of a request: wire → `rpc` servicer → `serving.ModelPool` → `executor.Executor` → engine → reply.
`rpc.interceptor` turns whatever goes wrong on it into a status; `rpc.images` brings pixels onto the grid on the way.
"""

import asyncio
import logging
import signal
from typing import TYPE_CHECKING

import torch
from grpc import aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection, reflection_pb2
from prometheus_client import CollectorRegistry
from sqlalchemy.exc import SQLAlchemyError
from tritonclient.grpc import service_pb2, service_pb2_grpc

from limner.v1 import (
    cohort_pb2,
    cohort_pb2_grpc,
    feature_pb2,
    feature_pb2_grpc,
    inference_pb2,
    inference_pb2_grpc,
    model_pb2,
    model_pb2_grpc,
    simulation_pb2,
    simulation_pb2_grpc,
    training_pb2,
    training_pb2_grpc,
)
from limner_server.errors import InvalidInputError
from limner_server.jobs.runner import JobRunner
from limner_server.networks.repository import ModelRepository
from limner_server.rpc.audit import AuditInterceptor
from limner_server.rpc.cohort import CohortService
from limner_server.rpc.feature import FeatureService
from limner_server.rpc.images import ImageReader
from limner_server.rpc.inference import InferenceService
from limner_server.rpc.interceptor import ErrorInterceptor
from limner_server.rpc.metering import MeteringInterceptor
from limner_server.rpc.model import ModelService
from limner_server.rpc.open_inference.service import OpenInferenceService
from limner_server.rpc.simulation import SimulationService
from limner_server.rpc.training import TrainingService
from limner_server.serving import ModelPool
from limner_server.settings import Settings
from limner_server.state.aliases import AliasStore
from limner_server.state.audit import AuditLog
from limner_server.state.cohorts import CohortStore
from limner_server.state.database import open_database
from limner_server.state.jobs import JobStore
from limner_server.state.loaded import LoadedStore
from limner_server.state.servers import Membership
from limner_server.telemetry.metrics import register_serving

if TYPE_CHECKING:
    from limner_server.telemetry.traces import Traces  # of an extra

_DESCRIPTORS = [
    file.DESCRIPTOR.services_by_name[name]
    for file, name in (
        (cohort_pb2, "CohortService"),
        (training_pb2, "TrainingService"),
        (inference_pb2, "InferenceService"),
        (feature_pb2, "FeatureService"),
        (simulation_pb2, "SimulationService"),
        (model_pb2, "ModelService"),
        (service_pb2, "GRPCInferenceService"),
    )
]
_SERVICES = [service.full_name for service in _DESCRIPTORS]
_STANDARD = [
    health_pb2.DESCRIPTOR.services_by_name["Health"],
    reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"],
]
_METHODS = [
    f"/{service.full_name}/{method.name}" for service in (*_DESCRIPTORS, *_STANDARD) for method in service.methods
]
_WATCH_S = 1.0

_log = logging.getLogger(__name__)


class App:
    """A whole server, from settings to open port, which adds its metrics to a registry."""

    def __init__(self, settings: Settings, metrics: CollectorRegistry) -> None:
        self._settings = settings
        self._stopped = asyncio.Event()
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        settings.model_repository.mkdir(parents=True, exist_ok=True)
        device = choose_device(settings.device)

        database = open_database(settings.resolved_database_url)
        cohorts = CohortStore(database, settings.data_dir)
        jobs = JobStore(database)
        repository = ModelRepository(settings.model_repository)

        self._membership = Membership(database, settings.data_dir / "servers")
        self._runner = JobRunner(
            jobs,
            self._membership,
            settings.data_dir / "jobs",
            settings.max_jobs,
            training_processes=settings.training_processes,
        )
        holdings = LoadedStore(database, self._membership.id)
        self._traces = open_traces(settings.trace_endpoint) if settings.trace_endpoint else None
        self._models = ModelPool(
            repository,
            AliasStore(database),
            holdings,
            settings,
            device,
            self._traces.stages if self._traces is not None else None,
        )
        self._images = ImageReader(settings.decode_threads)
        self._health = health_aio.HealthServicer()

        register_serving(metrics, self._models, jobs, self._runner)
        interceptors: list[aio.ServerInterceptor] = [AuditInterceptor(AuditLog(database)), ErrorInterceptor()]
        if self._traces is not None:
            interceptors.insert(0, self._traces.interceptor())
        if settings.metrics_port is not None:
            metering = MeteringInterceptor(_METHODS)
            metrics.register(metering)
            interceptors.insert(0, metering)

        limit = settings.max_message_mb * 1024 * 1024
        self._server = aio.server(
            interceptors=interceptors,
            options=[
                ("grpc.max_receive_message_length", limit),
                ("grpc.max_send_message_length", limit),
                # The SDK pings every 30 s during a call; long quiet streams must not be ended for it.
                ("grpc.http2.min_recv_ping_interval_without_data_ms", 10_000),
                # By default two servers would share a port in silence; the workers of one are meant to.
                ("grpc.so_reuseport", int(settings.workers > 1)),
            ],
        )
        cohort_pb2_grpc.add_CohortServiceServicer_to_server(CohortService(cohorts, jobs), self._server)
        training_pb2_grpc.add_TrainingServiceServicer_to_server(
            TrainingService(self._runner, jobs, cohorts, settings, device), self._server
        )
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(
            InferenceService(self._models, self._images), self._server
        )
        feature_pb2_grpc.add_FeatureServiceServicer_to_server(FeatureService(self._models, self._images), self._server)
        simulation_pb2_grpc.add_SimulationServiceServicer_to_server(
            SimulationService(self._runner, self._models, cohorts, settings, device), self._server
        )
        model_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(self._models), self._server)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
            OpenInferenceService(self._models, settings), self._server
        )
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)
        reflection.enable_server_reflection([*_SERVICES, *(service.full_name for service in _STANDARD)], self._server)

    async def start(self) -> int:
        """Open the port, take up unfinished jobs, and return the port. OSError if it cannot be had."""
        settings = self._settings
        for number in (signal.SIGTERM, signal.SIGINT):
            asyncio.get_running_loop().add_signal_handler(number, self._stopped.set)
        try:
            port = self._server.add_insecure_port(f"{settings.host}:{settings.port}")
        except RuntimeError as error:
            raise OSError(
                f"cannot listen on {settings.host}:{settings.port}: the port is taken or the address not here"
            ) from error
        await asyncio.to_thread(self._membership.join)
        await self._server.start()
        self._runner.start()
        await self._set_health(serving=True)
        return port

    async def run_until_stopped(self) -> None:
        """Serve until SIGTERM or SIGINT, then drain: not ready first, calls finished, jobs left to the next server."""
        watches = [asyncio.create_task(self._watch_executors()), asyncio.create_task(self._follow_unloads())]
        await self._stopped.wait()
        for watch in watches:
            watch.cancel()
        await self._stop()

    async def _stop(self) -> None:
        await self._set_health(serving=False)
        self._runner.stop_claiming()
        await self._server.stop(self._settings.drain_s)
        await self._runner.close()
        await self._models.close()
        await asyncio.to_thread(self._membership.leave)
        self._images.close()
        if self._traces is not None:
            await asyncio.to_thread(self._traces.close)

    async def _watch_executors(self) -> None:
        """Readiness follows the executors: one that died, or whose engine is not well, must not look ready."""
        healthy = True
        while True:
            await asyncio.sleep(_WATCH_S)
            if self._models.healthy != healthy:
                healthy = self._models.healthy
                _log.error("every model is well again" if healthy else "a model cannot answer: not ready any more")
                await self._set_health(serving=healthy)

    async def _follow_unloads(self) -> None:
        """What one server of the database unloads goes from all within about a second."""
        while True:
            await asyncio.sleep(_WATCH_S)
            try:
                await self._models.close_unloaded()
            except SQLAlchemyError:
                _log.exception("what other servers have unloaded could not be looked up")

    async def _set_health(self, serving: bool) -> None:
        response = health_pb2.HealthCheckResponse
        status = response.SERVING if serving else response.NOT_SERVING
        for service in ("", *_SERVICES):
            await self._health.set(service, status)


def open_traces(endpoint: str) -> "Traces":
    """Begin to trace; InvalidInputError where what it takes is not installed."""
    try:
        from limner_server.telemetry.traces import Traces
    except ModuleNotFoundError as error:
        raise InvalidInputError("trace_endpoint", endpoint, "OpenTelemetry: pip install 'limner[tracing]'") from error
    return Traces(endpoint)


def choose_device(setting: str) -> str:
    """Return "cpu" or "cuda" for the setting; InvalidInputError where cuda is asked for and not there."""
    available = torch.cuda.is_available()
    if setting == "cuda" and not available:
        raise InvalidInputError("device", setting, "cpu or auto: torch finds no CUDA device here")
    return "cuda" if available and setting != "cpu" else "cpu"
