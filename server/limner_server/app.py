"""Puts the server together. The one place that wires things: read it top to bottom.

The path of a request: wire → `rpc` servicer → `serving.ModelPool` → `executor.Executor` → engine → reply.
`rpc.interceptor` turns whatever goes wrong on it into a status; `rpc.images` brings pixels onto the grid on the way.
"""

import asyncio
import gc
import logging
from typing import TYPE_CHECKING

import torch
from grpc import aio
from prometheus_client import CollectorRegistry
from sqlalchemy.exc import SQLAlchemyError
from tritonclient.grpc import service_pb2_grpc

from limner.v1 import (
    cohort_pb2_grpc,
    feature_pb2_grpc,
    inference_pb2_grpc,
    model_pb2_grpc,
    review_pb2_grpc,
    simulation_pb2_grpc,
    training_pb2_grpc,
)
from limner_server.access.access import Access
from limner_server.access.matrix import MATRIX
from limner_server.door import Door
from limner_server.errors import InvalidInputError, LimnerError
from limner_server.jobs.runner import JobRunner
from limner_server.networks.repository import ModelRepository
from limner_server.rpc.access import AccessInterceptor
from limner_server.rpc.audit import AuditInterceptor
from limner_server.rpc.cohort import CohortService
from limner_server.rpc.drain import DrainInterceptor
from limner_server.rpc.feature import FeatureService
from limner_server.rpc.health import KEEPING, PREDICTING
from limner_server.rpc.images import ImageReader
from limner_server.rpc.inference import InferenceService
from limner_server.rpc.interceptor import ErrorInterceptor
from limner_server.rpc.metering import MeteringInterceptor
from limner_server.rpc.model import ModelService
from limner_server.rpc.open_inference.service import OpenInferenceService
from limner_server.rpc.ownership import Ownership
from limner_server.rpc.review import ReviewService
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
from limner_server.state.reviews import ReviewStore
from limner_server.state.servers import Membership
from limner_server.telemetry.metrics import register_serving

if TYPE_CHECKING:
    from limner_server.telemetry.traces import Traces  # of an extra

_WATCH_S = 1.0

_log = logging.getLogger(__name__)


class App:
    """A whole server behind its door. Made in a thread while the door answers for it; the rest is the event loop's.

    Its metrics are added to a registry.
    """

    def __init__(self, settings: Settings, door: Door, metrics: CollectorRegistry) -> None:
        self._settings = settings
        self._door = door
        self._database_answers = True
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        settings.model_repository.mkdir(parents=True, exist_ok=True)
        device = choose_device(settings.device)

        database = open_database(settings.resolved_database_url)
        cohorts = CohortStore(database, settings.data_dir)
        jobs = JobStore(database)
        repository = ModelRepository(settings.model_repository, settings.model_signing_key)
        ownership = Ownership(cohorts, jobs, repository)
        mutual_tls = settings.tls_client_ca is not None
        self._access = Access(settings.access, mutual_tls=mutual_tls) if settings.access else None

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

        register_serving(metrics, self._models, jobs, self._runner)
        self._interceptors: list[aio.ServerInterceptor] = []  # the first is the outermost
        if settings.metrics_port is not None:
            metering = MeteringInterceptor([f"/{method}" for method in MATRIX])
            metrics.register(metering)
            self._interceptors.append(metering)
        if self._traces is not None:
            self._interceptors.append(self._traces.interceptor())
        audit = AuditInterceptor(AuditLog(database), only_known=self._access is not None)
        self._interceptors += [audit, ErrorInterceptor()]
        if self._access is not None:
            self._interceptors.append(AccessInterceptor(self._access))
        self._interceptors.append(DrainInterceptor(door.draining))
        server = door.services
        cohort_pb2_grpc.add_CohortServiceServicer_to_server(CohortService(cohorts, jobs, ownership), server)
        training_pb2_grpc.add_TrainingServiceServicer_to_server(
            TrainingService(self._runner, jobs, cohorts, ownership, settings, device), server
        )
        inference_pb2_grpc.add_InferenceServiceServicer_to_server(InferenceService(self._models, self._images), server)
        feature_pb2_grpc.add_FeatureServiceServicer_to_server(FeatureService(self._models, self._images), server)
        simulations = SimulationService(self._runner, jobs, self._models, cohorts, settings, device)
        simulation_pb2_grpc.add_SimulationServiceServicer_to_server(simulations, server)
        reviews = ReviewStore(database, settings.data_dir)
        review_pb2_grpc.add_ReviewServiceServicer_to_server(
            ReviewService(reviews, self._models, cohorts, simulations.finished), server
        )
        model_pb2_grpc.add_ModelServiceServicer_to_server(ModelService(self._models, ownership), server)
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(
            OpenInferenceService(self._models, ownership, settings, door.health), server
        )

    async def start(self) -> None:
        """Load what is to be there from the beginning, take up unfinished jobs, and let callers in.

        InvalidInputError where a model of `--load` cannot be loaded.
        """
        await asyncio.to_thread(self._membership.join)
        await self._load()
        _spare_collector()
        self._runner.start()
        self._door.open(self._interceptors)
        self._tell_health()

    async def run_until(self, told_to_stop: asyncio.Event) -> None:
        """Serve until told to stop, then drain: not ready first, calls finished, jobs left to the next server."""
        watches = [asyncio.create_task(self._watch_executors()), asyncio.create_task(self._follow_unloads())]
        if self._access:
            watches.append(asyncio.create_task(self._access.follow()))
        await told_to_stop.wait()
        for watch in watches:
            watch.cancel()
        await self._stop()

    async def _stop(self) -> None:
        self._runner.leave_off()
        await self._door.close()
        await self._runner.close()
        await self._models.close()
        await asyncio.to_thread(self._membership.leave)
        self._images.close()
        if self._traces is not None:
            await asyncio.to_thread(self._traces.close)

    async def _load(self) -> None:
        """Load and warm the models of `--load`, all of them although one fails."""
        problems = []
        for model in self._settings.load:
            name, _, version = model.partition(":")
            try:
                await self._models.acquire(name, version)
            except LimnerError as error:
                problems.append((model, str(error)))
        if problems:
            names, reasons = zip(*problems, strict=True)
            raise InvalidInputError("load", ", ".join(names), f"models that can be loaded: {'; '.join(reasons)}")

    async def _watch_executors(self) -> None:
        """Readiness follows the executors: one that died, or whose engine is not well, must not look ready."""
        healthy = True
        while True:
            await asyncio.sleep(_WATCH_S)
            if self._models.healthy != healthy:
                healthy = self._models.healthy
                _log.error("every model is well again" if healthy else "a model cannot answer: not ready any more")
                self._tell_health()

    async def _follow_unloads(self) -> None:
        """What one server of the database unloads goes from all within about a second; so readiness follows it too."""
        while True:
            await asyncio.sleep(_WATCH_S)
            try:
                await self._models.close_unloaded()
            except SQLAlchemyError:
                if self._database_answers:
                    _log.exception("the database cannot be reached: not ready any more")
                answers = False
            else:
                answers = True
            if answers != self._database_answers:
                self._database_answers = answers
                self._tell_health()

    def _tell_health(self) -> None:
        """Without the database nothing answers: even a model's name stands for what the database says."""
        predicting = PREDICTING if self._models.healthy else ()
        self._door.health.serve((*predicting, *KEEPING) if self._database_answers else ())


def _spare_collector() -> None:
    """Have what is there now looked at by no later garbage collection, which would stop everything for half a second.

    Torch's modules are hundreds of thousands of objects, and stay.
    """
    gc.collect()
    gc.freeze()


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
