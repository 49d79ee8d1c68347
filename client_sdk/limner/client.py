"""The synchronous client: every RPC of `limner.v1` as one typed method.

Only the calls stand here: `limner.requests` builds what is sent, `limner.wire` reads what comes back, `limner.errors`
says what went wrong; `limner.aio` shares all three.
"""

import time
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from contextvars import copy_context
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

import grpc

from limner import channel, requests, wire
from limner.cohorts import Advance, CohortPlan, Upload
from limner.delivery import Delivery
from limner.endpoint import Tls
from limner.errors import DeadlineError, InternalError, NotFoundError, UnavailableError
from limner.images import Ledger, SendDicom
from limner.readings import Readings
from limner.servers import Servers
from limner.streams import ResultStream
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
from limner.v1 import cohort_pb2, model_pb2, training_pb2
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
    from limner.images import Images
    from limner.scoring.sources import Source

_Q = TypeVar("_Q")
_A = TypeVar("_A")
_R = TypeVar("_R", PredictStreamResponse, ExtractFeaturesStreamResponse)
_A_co = TypeVar("_A_co", covariant=True)


class _Call(Protocol[_A_co]):
    """A stream of replies that is under way."""

    def __iter__(self) -> Iterator[_A_co]: ...

    def cancel(self) -> bool: ...


class Client:
    """A connection to a Limner server, or to several; close it, or use it in a `with` block. Threads may share it.

    Every method raises a `limner.errors.LimnerError`. A `model` is named "name", "name:3" or "name:production"; without
    a version it is the one called `production`, else the highest. Calls that may be made twice are retried.

    Parameters
    ----------
    address
        "host:port"; several servers of one model repository as a list or with commas between; or "dns:///host:port" for
        all addresses of a name, such as a headless service of Kubernetes. Calls go round those that are serving.
    timeout
        Seconds that a call may take, over 0. Streams (imports, trainings, simulations, `..._stream`) have no limit.
    tls
        How the connection is encrypted, `Tls()` for the authorities of this machine; default: not at all.
    token
        The bearer token that says who calls, or a function that returns it for each call, such as
        `TokenFile("/run/limner/token")`; default: that of the environment variable LIMNER_TOKEN, if there is one. It is
        sent over TLS, or to this machine itself, and over no other connection.
    tracing
        True for an OpenTelemetry span of each call, in the tracer provider that the program has set, and for passing
        the trace on to the server (`limner[tracing]`).

    Attributes
    ----------
    readings
        The calls of blinded readings, a `limner.readings.Readings`.
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
        self._channel = self._servers.open()
        self._cohorts = CohortServiceStub(self._channel)
        self._trainings = TrainingServiceStub(self._channel)
        self._inference = InferenceServiceStub(self._channel)
        self._features = FeatureServiceStub(self._channel)
        self._simulations = SimulationServiceStub(self._channel)
        self._models = ModelServiceStub(self._channel)
        self.readings = Readings(ReviewServiceStub(self._channel), self._call)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection; calls in flight are cancelled."""
        self._channel.close()

    def wait_ready(self, timeout: float = 30.0) -> None:
        """Wait until the server, or one of several, says that it is serving (grpc.health.v1).

        Raises
        ------
        UnavailableError
            Where it does not within `timeout` seconds.
        """
        check: grpc.UnaryUnaryMultiCallable[bytes, bytes] = self._channel.unary_unary(channel.HEALTH_CHECK)
        deadline = time.monotonic() + timeout
        while (left := deadline - time.monotonic()) > 0:
            try:
                if check(b"", timeout=left, wait_for_ready=True) == channel.SERVING:
                    return
            except grpc.RpcError as error:
                translated = self._servers.explain(error)
                if not isinstance(translated, DeadlineError | UnavailableError):
                    raise translated from error
            time.sleep(channel.POLL_S)
        raise self._servers.not_ready(timeout)

    # Cohorts

    def import_cohort(self, cohort: str, plan: CohortPlan, *, progress: Advance | None = None) -> ImportResult:
        """Add slices to a cohort, creating it if need be.

        Asks first what is there and sends only the rest, so that an interrupted import is resumed by calling again; one
        whose server is lost resumes by itself. A slice that cannot be read, or that the server refuses, is listed in
        the result and stops no other.

        Parameters
        ----------
        plan
            Labels and slices; `limner.plan_import` makes one from a folder of DICOM.
        progress
            Called with the number of slices done and in all, from another thread.
        """
        upload = Upload(cohort, plan, self._instances(cohort), progress)
        patience = channel.Patience()
        patience.renew()
        while True:
            try:
                reply = self._cohorts.ImportCohort(upload.messages())
                return wire.import_result(reply, upload)
            except grpc.RpcError as error:
                lost = self._servers.explain(error)
                if not isinstance(lost, UnavailableError):
                    raise lost from error
            if upload.resume(self._insist(lambda: self._instances(cohort), patience)):
                patience.renew()
            elif patience.exhausted():
                raise lost

    def _instances(self, cohort: str) -> tuple[str, ...]:
        try:
            return self.cohort(cohort, instances=True).instances
        except NotFoundError:
            return ()

    def cohorts(self) -> tuple[Cohort, ...]:
        """Return all cohorts, by name, without instances."""
        return wire.cohorts(self._call(self._cohorts.ListCohorts, cohort_pb2.ListCohortsRequest()))

    def cohort(self, cohort: str, *, instances: bool = False) -> Cohort:
        """Return one cohort; with the ids of its slices where `instances`."""
        request = cohort_pb2.GetCohortRequest(cohort=cohort, include_instances=instances)
        return wire.cohort(self._call(self._cohorts.GetCohort, request))

    def delete_cohort(self, cohort: str) -> None:
        """Delete a cohort and its pixels; a `WrongStateError` while a job is using it."""
        self._call(self._cohorts.DeleteCohort, cohort_pb2.DeleteCohortRequest(cohort=cohort))

    # Training

    def start_training(self, cohort: str, model: str, config: TrainingConfig | None = None) -> Training:
        """Queue a training, whose result will be the next version of `model`, and return at once."""
        request = requests.start_training(cohort, model, config or TrainingConfig())
        return wire.training(self._call(self._trainings.StartTraining, request))

    def watch_training(self, training: str) -> Iterator[Training]:
        """Give a training's state now and at every change until its end; goes on through a restart of the server."""
        request = training_pb2.WatchTrainingRequest(id=training)
        return map(wire.training, self._follow(lambda: self._trainings.WatchTraining(request)))

    def train(
        self,
        cohort: str,
        model: str,
        config: TrainingConfig | None = None,
        *,
        progress: Callable[[Training], None] | None = None,
    ) -> Training:
        """Train to the end and return the last state; `progress` is called with each. It may be FAILED or CANCELLED."""
        state = self.start_training(cohort, model, config)
        for state in self.watch_training(state.id):  # noqa: B020  the id is read once
            if progress is not None:
                progress(state)
        return state

    def trainings(self) -> tuple[Training, ...]:
        """Return all trainings, newest first."""
        return wire.trainings(self._call(self._trainings.ListTrainings, training_pb2.ListTrainingsRequest()))

    def training(self, training: str) -> Training:
        """Return a training's state now."""
        return wire.training(self._call(self._trainings.GetTraining, training_pb2.GetTrainingRequest(id=training)))

    def cancel_training(self, training: str) -> Training:
        """Cancel a training; a `WrongStateError` where it has ended."""
        return wire.training(
            self._call(self._trainings.CancelTraining, training_pb2.CancelTrainingRequest(id=training))
        )

    # Inference

    def predict(
        self,
        model: str,
        images: "Images",
        *,
        priority: int = 0,
        send_dicom: SendDicom = False,
        embedding: bool = False,
    ) -> PredictResult:
        """Score up to 1,024 images at once; for more, `predict_stream`.

        DICOM is decoded here and only pixels are sent, under neutral names. An image that cannot be read or scored has
        an `error` in its result and stops no other.

        Parameters
        ----------
        images
            Each a DICOM path, bytes or `Dataset`, a `Slice`, an array on the model's grid, or an `Image` with names.
        priority
            0, the lowest, to 10: what waits with a higher one is batched first.
        send_dicom
            True to send whole DICOM files, de-identified (`limner.imaging.profile`); "identified" to send them as they
            are.
        embedding
            True to have the pooled last layer of each image returned too.
        """
        ledger = Ledger(ImageResult, send_dicom=send_dicom)
        request = requests.predict(model, ledger.all_messages(images), priority, embedding)
        if ledger.nothing_to_send:
            return wire.predict_result(wire.no_predictions(self._get_model(model)), ledger)
        return wire.predict_result(self._call(self._inference.Predict, request), ledger)

    def predict_stream(
        self,
        model: str,
        images: "Images",
        *,
        priority: int = 0,
        send_dicom: SendDicom = False,
        embedding: bool = False,
    ) -> ResultStream[ImageResult]:
        """Score any number of images as `predict` does; results come as they are done, the roll-ups at the end.

        Of a list or an array several images travel in one message, which is faster; those of an iterator go one by one,
        as it gives them. Where the server is lost, what it has not answered is sent again.
        """
        ledger = Ledger(ImageResult, send_dicom=send_dicom)
        delivery = Delivery(model, ledger.parcels(images))

        def begin() -> _Call[PredictStreamResponse]:
            header = requests.predict_header(delivery.model, priority, embedding)
            parcels = map(requests.predict_images, delivery.parcels())
            return self._inference.PredictStream(chain([header], parcels))

        return ResultStream(self._deliver(begin, delivery), ledger, wire.image_result)

    def score(
        self,
        model: str,
        source: "Source",
        out: str | Path,
        options: ScoreOptions | None = None,
        *,
        progress: Callable[[str, int, int | None], None] | None = None,
    ) -> Scores:
        """Score any number of images into tables in a folder, through restarts of the server and of this program.

        Results are kept as they come; a run that was stopped in whatever way goes on with `resume`. docs/score.md
        describes the folder.

        Parameters
        ----------
        source
            Path of a folder, a file of DICOM or NIfTI, a manifest or a pattern, or a list of these; or the images
            themselves, given as in `predict`.
        out
            The folder, new or empty, or that of the run to resume.
        progress
            Called with what is done now, how much of it is done, and of how much, None where that is not known.

        Raises
        ------
        LimnerError
            Of a whole run only; an image that cannot be read or scored has its reason in the table of failures.
        """
        # Imported here: it brings pydicom, which takes a third of a second.
        from limner.scoring.calls import kind_of
        from limner.scoring.fleet import Fleet
        from limner.scoring.score import score

        options = options or ScoreOptions()
        found = self.model(model)
        with Fleet(self._servers, kind_of(options), self._timeout, options.in_flight) as fleet:
            return score(found, fleet, source, Path(out), options, progress or (lambda _what, _done, _all: None))

    def extract_features(
        self, model: str, images: "Images", options: FeatureOptions | None = None, *, send_dicom: SendDicom = False
    ) -> FeaturesResult:
        """Find the most important channels of up to 64 images, given as in `predict`."""
        ledger = Ledger(ImageFeatures, send_dicom=send_dicom)
        request = requests.extract_features(model, ledger.all_messages(images), options or FeatureOptions())
        if ledger.nothing_to_send:
            return wire.features_result(wire.no_features(self._get_model(model), request.options), ledger)
        return wire.features_result(self._call(self._features.ExtractFeatures, request), ledger)

    def extract_features_stream(
        self, model: str, images: "Images", options: FeatureOptions | None = None, *, send_dicom: SendDicom = False
    ) -> ResultStream[ImageFeatures]:
        """Find the most important channels of any number of images; results come as they are done."""
        ledger = Ledger(ImageFeatures, send_dicom=send_dicom)
        delivery = Delivery(model, ([message] for message in ledger.messages(images)))

        def begin() -> _Call[ExtractFeaturesStreamResponse]:
            header = requests.features_header(delivery.model, options or FeatureOptions())
            messages = (requests.features_image(message) for (message,) in delivery.parcels())
            return self._features.ExtractFeaturesStream(chain([header], messages))

        return ResultStream(self._deliver(begin, delivery), ledger, wire.image_features)

    # Simulation

    def simulate(
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
        """Make an image that stands for each class, and have it checked; goes on through a restart of the server.

        Look at the result's `verdict` before you call it an explanation.

        Parameters
        ----------
        method
            Default inversion.
        steps
            Of the optimiser, 10 to 2,000; default 150.
        seed
            Of everything random; default 0.
        checks
            False to skip the checks; the verdict is then UNCHECKED.
        progress
            Called with how far it is.
        """
        request = requests.simulate(model, cohort, method=method, steps=steps, seed=seed, checks=checks)
        for reply in self._follow(lambda: self._simulations.Simulate(request)):
            if reply.HasField("result"):
                return wire.simulation(reply.result)
            if progress is not None:
                progress(wire.progress(reply.progress))
        raise InternalError(f"the server at {self._servers.address} ended the simulation without a result")

    # Models

    def models(self) -> tuple[Model, ...]:
        """Return all versions of all models, by name and version; what is broken says why."""
        return wire.models(self._call(self._models.ListModels, model_pb2.ListModelsRequest()))

    def model(self, model: str) -> Model:
        """Return one version."""
        return wire.model(self._get_model(model))

    def load_model(self, model: str) -> Model:
        """Load a version and warm it; a `WrongStateError` where its digest is not the card's."""
        request = model_pb2.LoadModelRequest(model=requests.model_spec(model))
        return wire.model(self._call(self._models.LoadModel, request))

    def unload_model(self, model: str) -> Model:
        """Take a version out of memory; requests that are in it are answered first."""
        request = model_pb2.UnloadModelRequest(model=requests.model_spec(model))
        return wire.model(self._call(self._models.UnloadModel, request))

    def promote_model(self, model: str, alias: str = "production") -> Model:
        """Point an alias at a version, in one step."""
        request = model_pb2.PromoteModelRequest(model=requests.model_spec(model), alias=alias)
        return wire.model(self._call(self._models.PromoteModel, request))

    def delete_model(self, model: str) -> None:
        """Delete a version, "name:3"; a `WrongStateError` while an alias points at it."""
        self._call(self._models.DeleteModel, model_pb2.DeleteModelRequest(model=requests.model_spec(model)))

    def _get_model(self, model: str) -> model_pb2.Model:
        return self._call(self._models.GetModel, model_pb2.GetModelRequest(model=requests.model_spec(model)))

    def _call(self, method: "grpc.UnaryUnaryMultiCallable[_Q, _A]", request: _Q) -> _A:
        try:
            return method(request, timeout=self._timeout)
        except grpc.RpcError as error:
            raise self._servers.explain(error, type(request).__name__.removesuffix("Request")) from error

    def _deliver(self, begin: Callable[[], _Call[_R]], delivery: Delivery) -> Generator[_R, None, None]:
        """As `_stream`, and on with a new one for what was not answered when its server is lost."""
        while True:
            try:
                with closing(self._stream(begin)) as replies:
                    for reply in replies:
                        delivery.note(reply)
                        if isinstance(reply, PredictStreamResponse) and reply.HasField("end") and delivery.resumed:
                            delivery.mend(reply.end, self.model(delivery.model))
                        yield reply
                return
            except UnavailableError:
                if not delivery.again():
                    raise
            time.sleep(channel.POLL_S)

    def _insist(self, call: Callable[[], _A], patience: channel.Patience) -> _A:
        """Make a call, again and again while no server is there, as long as the patience lasts."""
        while True:
            time.sleep(channel.POLL_S)
            try:
                return call()
            except UnavailableError:
                if patience.exhausted():
                    raise

    def _stream(self, start: Callable[[], _Call[_A]]) -> Generator[_A, None, None]:
        """Give the messages of a stream, which is cancelled where the caller stops early."""
        # Begun in a thread that Ctrl-C does not reach: gRPC's close waits for ever for a call interrupted as it begins.
        with ThreadPoolExecutor(1) as beginner:
            call = beginner.submit(copy_context().run, start).result()
        try:
            yield from call
        except grpc.RpcError as error:
            raise self._servers.explain(error) from error
        finally:
            call.cancel()

    def _follow(self, start: Callable[[], _Call[_A]]) -> Iterator[_A]:
        """As `_stream`, for a stream that has begun and may be asked for again when its server is lost."""
        patience = channel.Patience()
        while True:
            try:
                for message in self._stream(start):
                    patience.renew()
                    yield message
                return
            except UnavailableError:
                if patience.exhausted():
                    raise
            time.sleep(channel.POLL_S)
