"""TrainingService: trainings asked for, followed and cancelled. The work is a job; see `limner_server.jobs`."""

import asyncio
import hashlib
import uuid
from collections.abc import AsyncIterator
from typing import Any

from limner.imaging.grid import Grid
from limner.v1 import common_pb2, training_pb2, training_pb2_grpc
from limner_server.access.principal import caller_name
from limner_server.errors import InvalidInputError
from limner_server.jobs.runner import JobRunner
from limner_server.names import check_name
from limner_server.networks.card import Metric
from limner_server.rpc.images import check_text
from limner_server.rpc.interceptor import RpcContext
from limner_server.rpc.ownership import Ownership, check_job
from limner_server.rpc.wire import job_progress, metrics, timestamp
from limner_server.settings import Settings
from limner_server.state.cohorts import CohortStore
from limner_server.state.jobs import Job, JobKind, JobStore
from limner_server.training.config import TrainingConfig
from limner_server.training.folds import check_folds
from limner_server.training.request import TrainingRequest

_FOLD_UNITS = {training_pb2.FOLD_UNIT_SUBJECT: "subject", training_pb2.FOLD_UNIT_SLICE: "slice"}
MAX_REQUEST_ID = 64
_FIGURES = ("epoch", "epochs", "loss", "accuracy", "images_per_second")


class TrainingService(training_pb2_grpc.TrainingServiceServicer):
    """Translates between the wire and the job runner."""

    def __init__(
        self,
        runner: JobRunner,
        jobs: JobStore,
        cohorts: CohortStore,
        ownership: Ownership,
        settings: Settings,
        device: str,
    ) -> None:
        self._runner = runner
        self._jobs = jobs
        self._cohorts = cohorts
        self._ownership = ownership
        self._settings = settings
        self._device = device

    async def StartTraining(
        self, request: training_pb2.StartTrainingRequest, context: RpcContext
    ) -> training_pb2.Training:
        """Check the request against the cohort, and queue the job."""
        check_name("model", request.model)
        config = _config(request.config)
        snapshot = await asyncio.to_thread(self._cohorts.snapshot, request.cohort)
        members = ((item.subject, item.label) for item in snapshot.slices)
        check_folds(snapshot.name, snapshot.labels, members, config.folds)
        settings = self._settings
        check_text("request_id", request.request_id, MAX_REQUEST_ID)
        job_id = hashlib.sha256((request.request_id or uuid.uuid4().hex).encode()).hexdigest()[:12]
        job_request = TrainingRequest(
            id=job_id,
            cohort=request.cohort,
            model=request.model,
            config=config,
            database_url=settings.resolved_database_url,
            data_dir=settings.data_dir.absolute(),
            model_repository=settings.model_repository.absolute(),
            weights_dir=settings.weights_dir.absolute() if settings.weights_dir else None,
            device=self._device,
            threads=settings.threads,
        )
        # Better said now than once the jobs before it are done.
        await asyncio.to_thread(job_request.pretrained_file)
        job = Job(job_id, JobKind.TRAINING, request.cohort, job_request.model_dump(mode="json"), owner=caller_name())
        check = self._ownership.training_check(request.model)
        started = await self._runner.submit(job, again=False, check=check)
        same = all(started.request[name] == job.request[name] for name in ("cohort", "model", "config"))
        if not same or started.owner != job.owner:
            raise InvalidInputError("request_id", request.request_id, "one that no other training was asked for by")
        return _message(started)

    async def WatchTraining(
        self, request: training_pb2.WatchTrainingRequest, context: RpcContext
    ) -> AsyncIterator[training_pb2.Training]:
        """Stream the training's state until it has ended."""
        async for job in self._runner.watch(request.id, JobKind.TRAINING):
            yield _message(job)

    async def GetTraining(self, request: training_pb2.GetTrainingRequest, context: RpcContext) -> training_pb2.Training:
        """Return the training's state now."""
        return _message(await self._runner.get(request.id, JobKind.TRAINING))

    async def ListTrainings(
        self, request: training_pb2.ListTrainingsRequest, context: RpcContext
    ) -> training_pb2.ListTrainingsResponse:
        """Return all trainings."""
        jobs = await asyncio.to_thread(self._jobs.of_kind, JobKind.TRAINING)
        return training_pb2.ListTrainingsResponse(trainings=map(_message, jobs))

    async def CancelTraining(
        self, request: training_pb2.CancelTrainingRequest, context: RpcContext
    ) -> training_pb2.Training:
        """End a training now."""
        check_job(await self._runner.get(request.id, JobKind.TRAINING))
        return _message(await self._runner.cancel(request.id, JobKind.TRAINING))


def _config(message: training_pb2.TrainingConfig) -> TrainingConfig:
    """Translate what the caller set; the rest takes its default."""
    choices: dict[str, Any] = {field.name: value for field, value in message.ListFields()}
    if "grid" in choices:
        choices["grid"] = Grid(message.grid.fov_mm or Grid().fov_mm, message.grid.size or Grid().size)
    if "fold_unit" in choices:
        choices["fold_unit"] = _FOLD_UNITS.get(message.fold_unit, str(message.fold_unit))
    return TrainingConfig.make(**choices)


def _message(job: Job) -> training_pb2.Training:
    config = TrainingConfig.model_validate(job.request["config"])
    message = training_pb2.Training(
        id=job.id,
        cohort=job.cohort,
        model=job.request["model"],
        config=training_pb2.TrainingConfig(
            grid=common_pb2.Grid(fov_mm=config.grid.fov_mm, size=config.grid.size),
            fold_unit=training_pb2.FoldUnit.Value(f"FOLD_UNIT_{config.fold_unit.upper()}"),
            **config.model_dump(exclude={"grid", "fold_unit"}),
        ),
        state=training_pb2.JobState.Value(f"JOB_STATE_{job.state}"),
        error=job.error,
        resumed=job.resumed,
        created=timestamp(job.created),
    )
    if job.progress:
        message.progress.CopyFrom(
            training_pb2.TrainingProgress(
                progress=job_progress(job), **{name: job.progress[name] for name in _FIGURES if name in job.progress}
            )
        )
    if job.result:
        result = job.result
        message.result.name, message.result.version = result["name"], str(result["version"])
        message.result.digest = result["digest"]
        message.metrics.extend(metrics(Metric.model_validate(metric) for metric in result["metrics"]))
    if job.ended:
        message.ended.CopyFrom(timestamp(job.ended))
    return message
