"""The asynchronous client: the calls of `limner.client`, awaited. DICOM is decoded off the event loop."""

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import grpc
from grpc import aio

from limner import channel, requests, wire
from limner.cohorts import Advance, CohortPlan, Upload
from limner.delivery import AsyncDelivery
from limner.endpoint import Tls
from limner.errors import DeadlineError, InternalError, LimnerError, NotFoundError, UnavailableError
from limner.images import Ledger, SendDicom
from limner.readings import AsyncReadings
from limner.servers import Servers
from limner.spread import AsyncSpread
from limner.streams import AsyncResultStream
from limner.token import Token
from limner.types import (
    Cohort,
    FeatureOptions,
    FeaturesResult,
    ImageFeatures,
    ImageResult,
    ImportResult,
    Model,
    PredictResult,
    Progress,
    ScoreOptions,
    Scores,
    SimulationMethod,
    SimulationResult,
    Training,
    TrainingConfig,
)
from limner.v1 import cohort_pb2, feature_pb2, inference_pb2, model_pb2, training_pb2
from limner.v1.cohort_pb2_grpc import CohortServiceStub
from limner.v1.feature_pb2 import ExtractFeaturesStreamResponse
from limner.v1.feature_pb2_grpc import FeatureServiceStub
from limner.v1.inference_pb2 import PredictStreamResponse
from limner.v1.inference_pb2_grpc import InferenceServiceStub
from limner.v1.model_pb2_grpc import ModelServiceStub
from limner.v1.review_pb2_grpc import ReviewServiceStub
from limner.v1.simulation_pb2_grpc import SimulationServiceStub
from limner.v1.training_pb2_grpc import TrainingServiceStub

if TYPE_CHECKING:
    from limner.images import AsyncImages, Images
    from limner.scoring.sources import Source

_Q = TypeVar("_Q")
_A = TypeVar("_A")
_R = TypeVar("_R", PredictStreamResponse, ExtractFeaturesStreamResponse)


class AsyncClient:
    """A connection to a Limner server, or to several, for asyncio; close it, or use it in an `async with` block.

    Parameters, methods and errors are those of `limner.Client`; callbacks are called on the event loop, but for that of
    `import_cohort`.
    """

    def __init__(
        self,
        address: str | Sequence[str] = channel.DEFAULT_ADDRESS,
        *,
        timeout: float = channel.DEFAULT_TIMEOUT_S,
        tls: Tls | None = None,
        token: Token | None = None,
        tracing: bool = False,
    ) -> None:
        self._servers = Servers(address, tls, token, tracing)
        self._timeout = timeout
        self._channel = self._servers.open_async()
        self._cohorts = CohortServiceStub(self._channel)
        self._trainings = TrainingServiceStub(self._channel)
        self._inference = InferenceServiceStub(self._channel)
        self._features = FeatureServiceStub(self._channel)
        self._simulations = SimulationServiceStub(self._channel)
        self._models = ModelServiceStub(self._channel)
        self.readings = AsyncReadings(ReviewServiceStub(self._channel), self._call)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """As `Client.close`."""
        await self._channel.close()

    async def wait_ready(self, timeout: float = 30.0) -> None:  # noqa: ASYNC109  same signature as Client's
        """As `Client.wait_ready`."""
        check: aio.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(channel.HEALTH_CHECK)
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            try:
                if await check(b"", timeout=left, wait_for_ready=True) == channel.SERVING:
                    return
            except grpc.RpcError as error:
                translated = await self._explain(error)
                if not isinstance(translated, DeadlineError | UnavailableError):
                    raise translated from error
            await asyncio.sleep(channel.POLL_S)
        raise await asyncio.to_thread(self._servers.not_ready, timeout)

    # Cohorts

    async def import_cohort(self, cohort: str, plan: CohortPlan, *, progress: Advance | None = None) -> ImportResult:
        """As `Client.import_cohort`."""
        upload = Upload(cohort, plan, await self._instances(cohort), progress)
        patience = channel.Patience()
        patience.renew()

        async def messages() -> AsyncIterator[cohort_pb2.ImportCohortRequest]:
            source = upload.messages()
            while (message := await asyncio.to_thread(next, source, None)) is not None:
                yield message

        while True:
            try:
                reply = await self._cohorts.ImportCohort(messages())
                return wire.import_result(reply, upload)
            except grpc.RpcError as error:
                lost = await self._explain(error)
                if not isinstance(lost, UnavailableError):
                    raise lost from error
            if upload.resume(await self._insist(lambda: self._instances(cohort), patience)):
                patience.renew()
            elif patience.exhausted():
                raise lost

    async def _instances(self, cohort: str) -> tuple[str, ...]:
        try:
            return (await self.cohort(cohort, instances=True)).instances
        except NotFoundError:
            return ()

    async def cohorts(self) -> tuple[Cohort, ...]:
        """As `Client.cohorts`."""
        return wire.cohorts(await self._call(self._cohorts.ListCohorts, cohort_pb2.ListCohortsRequest()))

    async def cohort(self, cohort: str, *, instances: bool = False) -> Cohort:
        """As `Client.cohort`."""
        request = cohort_pb2.GetCohortRequest(cohort=cohort, include_instances=instances)
        return wire.cohort(await self._call(self._cohorts.GetCohort, request))

    async def delete_cohort(self, cohort: str) -> None:
        """As `Client.delete_cohort`."""
        await self._call(self._cohorts.DeleteCohort, cohort_pb2.DeleteCohortRequest(cohort=cohort))

    # Training

    async def start_training(self, cohort: str, model: str, config: TrainingConfig | None = None) -> Training:
        """As `Client.start_training`."""
        request = requests.start_training(cohort, model, config or TrainingConfig())
        return wire.training(await self._call(self._trainings.StartTraining, request))

    async def watch_training(self, training: str) -> AsyncIterator[Training]:
        """As `Client.watch_training`."""
        request = training_pb2.WatchTrainingRequest(id=training)
        async for reply in self._follow(lambda: self._trainings.WatchTraining(request)):
            yield wire.training(reply)

    async def train(
        self,
        cohort: str,
        model: str,
        config: TrainingConfig | None = None,
        *,
        progress: Callable[[Training], None] | None = None,
    ) -> Training:
        """As `Client.train`."""
        state = await self.start_training(cohort, model, config)
        async for state in self.watch_training(state.id):  # noqa: B020  the id is read once
            if progress is not None:
                progress(state)
        return state

    async def trainings(self) -> tuple[Training, ...]:
        """As `Client.trainings`."""
        return wire.trainings(await self._call(self._trainings.ListTrainings, training_pb2.ListTrainingsRequest()))

    async def training(self, training: str) -> Training:
        """As `Client.training`."""
        request = training_pb2.GetTrainingRequest(id=training)
        return wire.training(await self._call(self._trainings.GetTraining, request))

    async def cancel_training(self, training: str) -> Training:
        """As `Client.cancel_training`."""
        request = training_pb2.CancelTrainingRequest(id=training)
        return wire.training(await self._call(self._trainings.CancelTraining, request))

    # Inference

    async def predict(
        self,
        model: str,
        images: "Images",
        *,
        priority: int = 0,
        send_dicom: SendDicom = False,
        embedding: bool = False,
    ) -> PredictResult:
        """As `Client.predict`."""
        ledger = Ledger(ImageResult, send_dicom=send_dicom)
        messages = await asyncio.to_thread(ledger.all_messages, images)
        request = requests.predict(model, messages, priority, embedding)
        if ledger.nothing_to_send:
            return wire.predict_result(wire.no_predictions(await self._get_model(model)), ledger)
        return wire.predict_result(await self._call(self._inference.Predict, request), ledger)

    def predict_stream(
        self,
        model: str,
        images: "AsyncImages",
        *,
        priority: int = 0,
        send_dicom: SendDicom = False,
        embedding: bool = False,
    ) -> AsyncResultStream[ImageResult]:
        """As `Client.predict_stream`; takes asynchronous iterables too."""
        ledger = Ledger(ImageResult, send_dicom=send_dicom)
        delivery = AsyncDelivery(model, ledger.parcels_async(images))

        async def messages() -> AsyncIterator[inference_pb2.PredictStreamRequest]:
            yield requests.predict_header(delivery.model, priority, embedding)
            async for parcel in delivery.parcels():
                yield requests.predict_images(parcel)

        replies = self._deliver(lambda: self._inference.PredictStream(messages()), delivery)
        return AsyncResultStream(replies, ledger, wire.image_result)

    async def score(
        self,
        model: str,
        source: "Source",
        out: str | Path,
        options: ScoreOptions | None = None,
        *,
        progress: Callable[[str, int, int | None], None] | None = None,
    ) -> Scores:
        """As `Client.score`; runs in threads of its own. Where the task is cancelled, what was scored is kept."""
        # Imported here: it brings pydicom, which takes a third of a second.
        from limner.scoring.calls import kind_of
        from limner.scoring.fleet import Fleet
        from limner.scoring.score import score

        options = options or ScoreOptions()
        found = await self.model(model)
        loop = asyncio.get_running_loop()
        fleet = await asyncio.to_thread(Fleet, self._servers, kind_of(options), self._timeout, options.in_flight)

        def tell(what: str, done: int, total: int | None) -> None:
            fleet.check()
            if progress is not None:
                loop.call_soon_threadsafe(progress, what, done, total)

        with fleet:
            run = asyncio.ensure_future(asyncio.to_thread(score, found, fleet, source, Path(out), options, tell))
            try:
                return await asyncio.shield(run)
            except asyncio.CancelledError:
                fleet.close()
                await asyncio.wait([run])  # until the folder is let go
                run.exception()
                raise

    async def extract_features(
        self, model: str, images: "Images", options: FeatureOptions | None = None, *, send_dicom: SendDicom = False
    ) -> FeaturesResult:
        """As `Client.extract_features`."""
        ledger = Ledger(ImageFeatures, send_dicom=send_dicom)
        messages = await asyncio.to_thread(ledger.all_messages, images)
        request = requests.extract_features(model, messages, options or FeatureOptions())
        if ledger.nothing_to_send:
            return wire.features_result(wire.no_features(await self._get_model(model), request.options), ledger)
        return wire.features_result(await self._call(self._features.ExtractFeatures, request), ledger)

    def extract_features_stream(
        self,
        model: str,
        images: "AsyncImages",
        options: FeatureOptions | None = None,
        *,
        send_dicom: SendDicom = False,
    ) -> AsyncResultStream[ImageFeatures]:
        """As `Client.extract_features_stream`; takes asynchronous iterables too."""
        ledger = Ledger(ImageFeatures, send_dicom=send_dicom)
        delivery = AsyncDelivery(model, ([message] async for message in ledger.messages_async(images)))

        async def messages() -> AsyncIterator[feature_pb2.ExtractFeaturesStreamRequest]:
            yield requests.features_header(delivery.model, options or FeatureOptions())
            async for (message,) in delivery.parcels():
                yield requests.features_image(message)

        replies = self._deliver(lambda: self._features.ExtractFeaturesStream(messages()), delivery)
        return AsyncResultStream(replies, ledger, wire.image_features)

    # Simulation

    async def simulate(
        self,
        model: str,
        cohort: str,
        *,
        method: SimulationMethod | None = None,
        steps: int | None = None,
        seed: int | None = None,
        checks: bool | None = None,
        progress: Callable[[Progress], None] | None = None,
    ) -> SimulationResult:
        """As `Client.simulate`."""
        request = requests.simulate(model, cohort, method=method, steps=steps, seed=seed, checks=checks)
        async for reply in self._follow(lambda: self._simulations.Simulate(request)):
            if reply.HasField("result"):
                return wire.simulation(reply.result)
            if progress is not None:
                progress(wire.progress(reply.progress))
        raise InternalError(f"the server at {self._servers.address} ended the simulation without a result")

    # Models

    async def models(self) -> tuple[Model, ...]:
        """As `Client.models`."""
        return wire.models(await self._call(self._models.ListModels, model_pb2.ListModelsRequest()))

    async def model(self, model: str) -> Model:
        """As `Client.model`."""
        return wire.model(await self._get_model(model))

    async def load_model(self, model: str) -> Model:
        """As `Client.load_model`."""
        request = model_pb2.LoadModelRequest(model=requests.model_spec(model))
        return wire.model(await self._call(self._models.LoadModel, request))

    async def unload_model(self, model: str) -> Model:
        """As `Client.unload_model`."""
        request = model_pb2.UnloadModelRequest(model=requests.model_spec(model))
        return wire.model(await self._call(self._models.UnloadModel, request))

    async def promote_model(self, model: str, alias: str = "production") -> Model:
        """As `Client.promote_model`."""
        request = model_pb2.PromoteModelRequest(model=requests.model_spec(model), alias=alias)
        return wire.model(await self._call(self._models.PromoteModel, request))

    async def delete_model(self, model: str) -> None:
        """As `Client.delete_model`."""
        request = model_pb2.DeleteModelRequest(model=requests.model_spec(model))
        await self._call(self._models.DeleteModel, request)

    async def _get_model(self, model: str) -> model_pb2.Model:
        request = model_pb2.GetModelRequest(model=requests.model_spec(model))
        return await self._call(self._models.GetModel, request)

    async def _call(self, method: "aio.UnaryUnaryMultiCallable[_Q, _A]", request: _Q) -> _A:
        try:
            return await method(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise await self._explain(error, type(request).__name__.removesuffix("Request")) from error

    async def _insist(self, call: Callable[[], Awaitable[_A]], patience: channel.Patience) -> _A:
        """Make a call, again and again while no server is there, as long as the patience lasts."""
        while True:
            await asyncio.sleep(channel.POLL_S)
            try:
                return await call()
            except UnavailableError:
                if patience.exhausted():
                    raise

    async def _explain(self, error: grpc.RpcError, call: str = "") -> LimnerError:
        return await asyncio.to_thread(self._servers.explain, error, call)

    async def _deliver(
        self, begin: Callable[[], AsyncIterable[_R]], delivery: AsyncDelivery
    ) -> AsyncGenerator[_R, None]:
        """As `_stream`, and on with a new one for what was not answered when its server is lost."""
        try:
            while True:
                try:
                    async with aclosing(self._stream(begin)) as replies:
                        async for reply in replies:
                            delivery.note(reply)
                            if isinstance(reply, PredictStreamResponse) and reply.HasField("end") and delivery.resumed:
                                delivery.mend(reply.end, await self.model(delivery.model))
                            yield reply
                    return
                except UnavailableError:
                    if not delivery.again():
                        raise
                await asyncio.sleep(channel.POLL_S)
        finally:
            delivery.close()

    async def _stream(self, start: Callable[[], AsyncIterable[_A]]) -> AsyncGenerator[_A, None]:
        """Give the messages of a stream, which is cancelled where the caller stops early."""
        if isinstance(self._channel, AsyncSpread):
            await self._channel.wait_ready()
        call: Any = start()
        try:
            async for message in call:
                yield message
        except grpc.RpcError as error:
            raise await self._explain(error) from error
        finally:
            call.cancel()

    async def _follow(self, start: Callable[[], AsyncIterable[_A]]) -> AsyncIterator[_A]:
        """As `_stream`, for a stream that has begun and may be asked for again when its server is lost."""
        patience = channel.Patience()
        while True:
            try:
                async for message in self._stream(start):
                    patience.renew()
                    yield message
                return
            except UnavailableError:
                if patience.exhausted():
                    raise
            await asyncio.sleep(channel.POLL_S)
