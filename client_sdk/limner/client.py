"""The synchronous client: every RPC of `limner.v1` as one typed method.

Only the calls stand here: `limner.requests` builds what is sent, `limner.wire` reads what comes back, `limner.errors`
says what went wrong; `limner.aio` shares all three.
"""

import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, Self, TypeVar

import grpc

from limner import channel, requests, wire
from limner.cohorts import Advance, CohortPlan, Upload
from limner.endpoint import Endpoint, Tls
from limner.errors import DeadlineError, InternalError, NotFoundError, UnavailableError
from limner.images import Ledger, SendDicom
from limner.readings import Readings
from limner.streams import ResultStream
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
from limner.v1.feature_pb2_grpc import FeatureServiceStub
from limner.v1.inference_pb2 import PredictResponse
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
_A_co = TypeVar("_A_co", covariant=True)


class _Call(Protocol[_A_co]):
    """A stream of replies that is under way."""

    def __iter__(self) -> Iterator[_A_co]: ...

    def cancel(self) -> bool: ...


class Client:
    """A connection to a Limner server; close it, or use it in a `with` block. Safe to share between threads.

    Every method raises a `limner.errors.LimnerError`. A `model` is named "name", "name:3" or "name:production"; without
    a version it is the one called `production`, else the highest. Calls that may be made twice are retried.

    Parameters
    ----------
    address
        "host:port".
    timeout
        Seconds that a call may take, over 0. Streams (imports, trainings, simulations, `..._stream`) have no limit.
    tls
        How the connection is encrypted, `Tls()` for the authorities of this machine; default: not at all.

    Attributes
    ----------
    readings
        The calls of blinded readings, a `limner.readings.Readings`.
    """

    def __init__(
        self,
        address: str = channel.DEFAULT_ADDRESS,
        *,
        timeout: float = channel.DEFAULT_TIMEOUT_S,
        tls: Tls | None = None,
    ) -> None:
        self._endpoint = Endpoint(address, tls)
        self._timeout = timeout
        self._channel = self._endpoint.open()
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
        """Wait until the server says that it is serving (grpc.health.v1).

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
                translated = self._endpoint.explain(error)
                if not isinstance(translated, DeadlineError | UnavailableError):
                    raise translated from error
            time.sleep(channel.POLL_S)
        raise self._endpoint.not_ready(timeout)

    # Cohorts

    def import_cohort(self, cohort: str, plan: CohortPlan, *, progress: Advance | None = None) -> ImportResult:
        """Add slices to a cohort, creating it if need be.

        Asks first what is there and sends only the rest, so that an interrupted import is resumed by calling again. A
        slice that cannot be read, or that the server refuses, is listed in the result and stops no other.

        Parameters
        ----------
        plan
            Labels and slices; `limner.plan_import` makes one from a folder of DICOM.
        progress
            Called with the number of slices done and in all, from another thread.
        """
        try:
            there = self.cohort(cohort, instances=True).instances
        except NotFoundError:
            there = ()
        upload = Upload(cohort, plan, there, progress)
        try:
            reply = self._cohorts.ImportCohort(upload.messages())
        except grpc.RpcError as error:
            raise self._endpoint.explain(error) from error
        return wire.import_result(reply, upload.known, upload.refused)

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
        as it gives them.
        """
        ledger = Ledger(ImageResult, send_dicom=send_dicom)
        messages = chain(
            [requests.predict_header(model, priority, embedding)], map(requests.predict_images, ledger.parcels(images))
        )
        return ResultStream(self._stream(lambda: self._inference.PredictStream(messages)), ledger, wire.image_result)

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
        from limner.scoring.score import Server, score

        call: grpc.UnaryUnaryMultiCallable[bytes, PredictResponse] = self._channel.unary_unary(
            channel.PREDICT, response_deserializer=PredictResponse.FromString
        )
        server = Server(self._endpoint.address, self.model(model), partial(call.future, timeout=self._timeout))
        return score(
            server, source, Path(out), options or ScoreOptions(), progress or (lambda _what, _done, _all: None)
        )

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
        header = requests.features_header(model, options or FeatureOptions())
        messages = chain([header], map(requests.features_image, ledger.messages(images)))
        replies = self._stream(lambda: self._features.ExtractFeaturesStream(messages))
        return ResultStream(replies, ledger, wire.image_features)

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
        raise InternalError(f"the server at {self._endpoint.address} ended the simulation without a result")

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
            raise self._endpoint.explain(error) from error

    def _stream(self, start: Callable[[], _Call[_A]]) -> Generator[_A, None, None]:
        """Give the messages of a stream, which is cancelled where the caller stops early."""
        # Begun in a thread that Ctrl-C does not reach: gRPC's close waits for ever for a call interrupted as it begins.
        with ThreadPoolExecutor(1) as beginner:
            call = beginner.submit(start).result()
        try:
            yield from call
        except grpc.RpcError as error:
            raise self._endpoint.explain(error) from error
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
