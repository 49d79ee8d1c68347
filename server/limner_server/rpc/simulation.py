"""SimulationService: simulated images asked for and followed. The work is a job; see `limner_server.jobs`."""

import asyncio
import hashlib
from collections.abc import AsyncIterator
from dataclasses import asdict
from dataclasses import fields as dataclass_fields
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from limner.v1 import common_pb2, feature_pb2, simulation_pb2, simulation_pb2_grpc
from limner_server.access.principal import caller_name
from limner_server.errors import InvalidInputError, NotFoundError, WrongStateError
from limner_server.explain.faithfulness import FaithfulnessCurve
from limner_server.explain.job import SimulationRequest
from limner_server.explain.pipeline import SimulationMethod
from limner_server.explain.result import Source, load_result
from limner_server.explain.simulation import SimulationOutcome
from limner_server.jobs.runner import JobRunner
from limner_server.networks.card import ModelCard
from limner_server.review.gather import FinishedSimulation
from limner_server.rpc.interceptor import RpcContext
from limner_server.rpc.wire import job_progress, metrics, prediction
from limner_server.serving import ModelPool
from limner_server.settings import Settings
from limner_server.state.cohorts import CohortStore
from limner_server.state.jobs import Job, JobKind, JobState, JobStore

_METHODS = {
    simulation_pb2.SIMULATION_METHOD_UNSPECIFIED: SimulationMethod.INVERSION,
    simulation_pb2.SIMULATION_METHOD_INVERSION: SimulationMethod.INVERSION,
    simulation_pb2.SIMULATION_METHOD_COMPOSITE: SimulationMethod.COMPOSITE,
}
_QUESTION = {"model", "version", "cohort", "cohort_digest", "method", "steps", "seed", "checks"}


class SimulationService(simulation_pb2_grpc.SimulationServiceServicer):
    """Translates between the wire and the job runner."""

    def __init__(
        self,
        runner: JobRunner,
        jobs: JobStore,
        models: ModelPool,
        cohorts: CohortStore,
        settings: Settings,
        device: str,
    ) -> None:
        self._runner = runner
        self._jobs = jobs
        self._models = models
        self._cohorts = cohorts
        self._settings = settings
        self._device = device

    async def Simulate(
        self, request: simulation_pb2.SimulateRequest, context: RpcContext
    ) -> AsyncIterator[simulation_pb2.SimulateResponse]:
        """Start the job of this request, or find it where it is, and follow it to its result."""
        job_request, card = await self._request(request)
        job = Job(
            _job_id(job_request, card),
            JobKind.SIMULATION,
            request.cohort,
            job_request.model_dump(mode="json"),
            owner=caller_name(),
        )
        await self._runner.submit(job)
        async for state in self._runner.watch(job.id, JobKind.SIMULATION):
            if state.progress and not state.state.ended:
                yield simulation_pb2.SimulateResponse(progress=job_progress(state))
        if state.state is not JobState.SUCCEEDED:
            raise WrongStateError(f"the simulation {state.state.lower()}: {state.error}")
        source, outcome = await asyncio.to_thread(load_result, self._runner.folder(state))
        yield simulation_pb2.SimulateResponse(result=_result(card, source, outcome))

    async def finished(self, request: simulation_pb2.SimulateRequest) -> FinishedSimulation:
        """Return the result of this request's job; WrongStateError where it was not asked for yet, or is not done."""
        job_request, card = await self._request(request)
        asked = f"the simulation of {request.cohort!r} by {card.name} with seed {job_request.seed}"
        try:
            job = await asyncio.to_thread(self._jobs.get, _job_id(job_request, card), JobKind.SIMULATION)
        except NotFoundError as error:
            raise WrongStateError(f"{asked} was not asked for yet: simulate first") from error
        if job.state is not JobState.SUCCEEDED:
            raise WrongStateError(f"{asked} is {job.state.lower()}; expected one that succeeded")
        folder = self._runner.folder(job)
        return FinishedSimulation(folder, *await asyncio.to_thread(load_result, folder))

    async def _request(self, request: simulation_pb2.SimulateRequest) -> tuple[SimulationRequest, ModelCard]:
        """Check the request against model and cohort, and fill in every default."""
        version = await self._models.resolve(request.model.name, request.model.version)
        card = await asyncio.to_thread(self._models.repository.card, version.name, version.number)
        snapshot = await asyncio.to_thread(self._cohorts.snapshot, request.cohort)
        if snapshot.labels != card.labels:
            raise InvalidInputError("cohort", list(snapshot.labels), f"the model's labels, {list(card.labels)}")
        if request.method not in _METHODS:
            raise InvalidInputError("method", request.method, "one of limner.v1.SimulationMethod")
        settings = self._settings
        chosen: dict[str, Any] = {
            field: getattr(request, field) for field in ("steps", "seed", "checks") if request.HasField(field)
        }
        try:
            return (
                SimulationRequest(
                    model=version.name,
                    version=version.number,
                    cohort=request.cohort,
                    cohort_digest=snapshot.digest,
                    method=_METHODS[request.method],
                    database_url=settings.resolved_database_url,
                    data_dir=settings.data_dir.absolute(),
                    model_repository=settings.model_repository.absolute(),
                    device=self._device,
                    threads=settings.threads,
                    model_signing_key=settings.model_signing_key and settings.model_signing_key.absolute(),
                    **chosen,
                ),
                card,
            )
        except ValidationError as error:
            first = error.errors()[0]
            expected = first["msg"].removeprefix("Input should be ")
            raise InvalidInputError(str(first["loc"][0]), first["input"], expected) from error


def _job_id(request: SimulationRequest, card: ModelCard) -> str:
    """Return one id for one question: equal model, cohort and recipe are the same simulation, whoever asks and when."""
    question = [card.digest, request.model_dump_json(include=_QUESTION)]
    return hashlib.sha256("\n".join(question).encode()).hexdigest()[:16]


def _result(card: ModelCard, source: Source, outcome: SimulationOutcome) -> simulation_pb2.SimulationResult:
    return simulation_pb2.SimulationResult(
        model=common_pb2.ModelIdentity(name=source.model, version=str(source.version), digest=source.digest),
        cohort=source.cohort,
        cohort_digest=source.cohort_digest,
        method=simulation_pb2.SimulationMethod.Value(f"SIMULATION_METHOD_{source.recipe.method.name}"),
        steps=source.recipe.steps,
        seed=source.recipe.seed,
        images=[
            simulation_pb2.SimulatedImage(
                label=label,
                image=_grid_array(outcome.images[index]),
                prediction=prediction(
                    card, outcome.logits[index], outcome.probabilities[index], outcome.distances[index]
                ),
                nearest_instance=outcome.nearest_instances[index],
                nearest_subject=outcome.nearest_subjects[index],
                nearest=_grid_array(outcome.nearest[index]),
            )
            for index, label in enumerate(card.labels)
        ],
        checks=[simulation_pb2.Check(name=check.name, gate=check.gate, **asdict(check)) for check in outcome.checks],
        verdict=simulation_pb2.Verdict.Value(f"VERDICT_{outcome.verdict}"),
        layers=[simulation_pb2.LayerLineage(**asdict(layer)) for layer in outcome.layers],
        subjects=[simulation_pb2.SubjectLineage(**asdict(subject)) for subject in outcome.subjects],
        grid=common_pb2.Grid(fov_mm=source.grid.fov_mm, size=source.grid.size),
        faithfulness=map(_faithfulness, outcome.faithfulness),
    )


def _faithfulness(curve: FaithfulnessCurve) -> simulation_pb2.FaithfulnessCurve:
    fields = {field.name: getattr(curve, field.name) for field in dataclass_fields(curve)}
    fields["method"] = feature_pb2.ImportanceMethod.Value(f"IMPORTANCE_METHOD_{curve.method.name}")
    fields["areas"] = metrics(curve.areas)
    return simulation_pb2.FaithfulnessCurve(**fields)


def _grid_array(values: NDArray[np.float32]) -> common_pb2.GridArray:
    return common_pb2.GridArray(
        data=np.ascontiguousarray(values, "<f4").tobytes(),
        data_type=common_pb2.DATA_TYPE_FLOAT32,
        size=values.shape[0],
    )
