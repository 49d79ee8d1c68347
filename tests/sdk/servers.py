"""Small real gRPC servers that behave as the real one may only rarely: unavailable, slow, overloaded, gone."""

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
import numpy as np
from google.protobuf import any_pb2
from google.rpc import code_pb2, error_details_pb2, status_pb2
from grpc_status import rpc_status

from limner.v1 import (
    cohort_pb2,
    cohort_pb2_grpc,
    common_pb2,
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

LABELS = ("quiet", "loud")
IDENTITY = common_pb2.ModelIdentity(name="m", version="3", digest="d" * 64)


@contextmanager
def serving(register: Any, servicer: Any, port: int = 0, host: str = "127.0.0.1") -> Iterator[str]:
    """Serve one servicer on a loopback address; gives "host:port"."""
    server = grpc.server(ThreadPoolExecutor(8))
    register(servicer, server)
    address = f"{host}:{server.add_insecure_port(f'{host}:{port}')}"
    server.start()
    try:
        yield address
    finally:
        server.stop(None).wait()


def refuse(context: grpc.ServicerContext, code: int, message: str, field: str = "", expected: str = "") -> Any:
    """Abort as the real server does: rich details, and a request id in the trailer."""
    status = status_pb2.Status(code=code, message=message)
    if field:
        violation = error_details_pb2.BadRequest.FieldViolation(field=field, description=f"is 9; expected {expected}")
        detail = any_pb2.Any()
        detail.Pack(error_details_pb2.BadRequest(field_violations=[violation]))
        status.details.append(detail)
    rich = rpc_status.to_status(status)
    context.set_trailing_metadata((("limner-request-id", "r-1"), *rich.trailing_metadata))
    context.abort(rich.code, rich.details)


class Models(model_pb2_grpc.ModelServiceServicer):
    """Fails with `code` for its first `failures` calls, and counts all."""

    def __init__(self, code: int = code_pb2.UNAVAILABLE, failures: int = 0, **details: str) -> None:
        self.calls = 0
        self._code = code
        self._failures = failures
        self._details = details

    def _model(self, context: grpc.ServicerContext) -> model_pb2.Model:
        self.calls += 1
        if self.calls <= self._failures:
            refuse(context, self._code, "not now", **self._details)
        return model_pb2.Model(
            identity=IDENTITY, state=model_pb2.MODEL_STATE_LOADED, labels=LABELS, card_json='{"a": 1}'
        )

    def GetModel(self, request: model_pb2.GetModelRequest, context: Any) -> model_pb2.Model:
        return self._model(context)

    def DeleteModel(self, request: model_pb2.DeleteModelRequest, context: Any) -> model_pb2.DeleteModelResponse:
        self._model(context)
        return model_pb2.DeleteModelResponse()


class Inference(inference_pb2_grpc.InferenceServiceServicer):
    """Says of each image how loud it is: the probability of "loud" is its mean. `far` are far from home, in that order.

    Remembers what it was sent, how many images in each message of a stream, and when a stream ended.
    """

    def __init__(self, far: int = 0) -> None:
        self._far = far
        self.seen: list[common_pb2.Image] = []
        self.parcels: list[int] = []
        self.ended = threading.Event()

    def _result(self, image: common_pb2.Image) -> inference_pb2.ImageResult:
        self.seen.append(image)
        data = image.grid.data or image.pixels.data
        mean = sum(data) / len(data) / 255 if data else 0.0
        scores = common_pb2.Prediction(probabilities=[1 - mean, mean], logits=[0, mean], label=LABELS[mean > 0.5])
        far = len(self.seen) <= self._far
        if self._far:
            scores.distance.CopyFrom(common_pb2.Distance(value=1.5, percentile=99.75 if far else 42.4, far=far))
        return inference_pb2.ImageResult(id=image.id, subject=image.subject, prediction=scores)

    def _subjects(self, images: list[common_pb2.Image]) -> list[common_pb2.SubjectResult]:
        names = dict.fromkeys(image.subject for image in images if image.subject)
        return [
            common_pb2.SubjectResult(subject=name, images=sum(image.subject == name for image in images))
            for name in names
        ]

    def Predict(self, request: inference_pb2.PredictRequest, context: Any) -> inference_pb2.PredictResponse:
        return inference_pb2.PredictResponse(
            model=IDENTITY,
            labels=LABELS,
            results=map(self._result, request.images),
            subjects=self._subjects(list(request.images)),
        )

    def PredictStream(self, request_iterator: Any, context: Any) -> Iterator[inference_pb2.PredictStreamResponse]:
        context.add_callback(self.ended.set)
        next(request_iterator)
        start = inference_pb2.PredictStreamStart(model=IDENTITY, labels=LABELS)
        yield inference_pb2.PredictStreamResponse(start=start)
        images = []
        for request in request_iterator:
            images.extend(request.images)
            self.parcels.append(len(request.images))
            results = [self._result(image) for image in request.images]
            yield inference_pb2.PredictStreamResponse(results=results)
        end = inference_pb2.PredictStreamEnd(subjects=self._subjects(images), images=len(images))
        yield inference_pb2.PredictStreamResponse(end=end)


class Swapped(Inference):
    """Answers the images of a request in the wrong order."""

    def Predict(self, request: inference_pb2.PredictRequest, context: Any) -> inference_pb2.PredictResponse:
        reply = super().Predict(request, context)
        reversed_results = list(reply.results)[::-1]
        del reply.results[:]
        reply.results.extend(reversed_results)
        return reply


class Silent(Inference):
    """Leaves every call without an answer until it is cancelled."""

    def Predict(self, request: inference_pb2.PredictRequest, context: Any) -> inference_pb2.PredictResponse:
        context.add_callback(self.ended.set)
        self.ended.wait(30)
        return inference_pb2.PredictResponse()


class Cohorts(cohort_pb2_grpc.CohortServiceServicer):
    """Keeps instances; refuses those named in `bad`; loses the connection after `breaks_after` slices, once."""

    def __init__(self, bad: tuple[str, ...] = (), breaks_after: int | None = None) -> None:
        self.header: cohort_pb2.ImportHeader | None = None
        self.slices: dict[str, cohort_pb2.CohortSlice] = {}
        self.received = 0
        self._bad = bad
        self._breaks_after = breaks_after

    def _cohort(self) -> cohort_pb2.Cohort:
        assert self.header is not None
        return cohort_pb2.Cohort(
            name=self.header.cohort, labels=self.header.labels, slices=len(self.slices), instances=sorted(self.slices)
        )

    def GetCohort(self, request: cohort_pb2.GetCohortRequest, context: Any) -> cohort_pb2.Cohort:
        if self.header is None:
            refuse(context, code_pb2.NOT_FOUND, f"no cohort {request.cohort!r}")
        return self._cohort()

    def ImportCohort(self, request_iterator: Any, context: Any) -> cohort_pb2.ImportCohortResponse:
        reply = cohort_pb2.ImportCohortResponse()
        self.header = next(request_iterator).header
        for request in request_iterator:
            if self._breaks_after is not None and len(self.slices) >= self._breaks_after:
                self._breaks_after = None
                refuse(context, code_pb2.UNAVAILABLE, "going away")
            self.received += 1
            instance = request.slice.instance
            if instance in self._bad:
                status = status_pb2.Status(code=code_pb2.INVALID_ARGUMENT, message="pixels are bad")
                reply.rejected.append(common_pb2.Rejection(id=instance, status=status))
            else:
                self.slices[instance] = request.slice
                reply.added += 1
        reply.cohort.CopyFrom(self._cohort())
        return reply


class Trainings(training_pb2_grpc.TrainingServiceServicer):
    """Reports the given states; ends the stream with UNAVAILABLE after `lost_after` of them and `quiet_s`, once.

    `hangs` keeps the stream open after the last, as a long epoch does.
    """

    def __init__(
        self, states: list[int], lost_after: int | None = None, hangs: bool = False, quiet_s: float = 0.0
    ) -> None:
        self.requests: list[training_pb2.StartTrainingRequest] = []
        self.watched = 0
        self._states = states
        self._lost_after = lost_after
        self._hangs = hangs
        self._quiet_s = quiet_s
        self.reported = threading.Event()

    def StartTraining(self, request: training_pb2.StartTrainingRequest, context: Any) -> training_pb2.Training:
        self.requests.append(request)
        return training_pb2.Training(id="t-1", state=training_pb2.JOB_STATE_QUEUED)

    def GetTraining(self, request: training_pb2.GetTrainingRequest, context: Any) -> training_pb2.Training:
        return training_pb2.Training(id=request.id, state=training_pb2.JOB_STATE_RUNNING)

    def WatchTraining(self, request: Any, context: Any) -> Iterator[training_pb2.Training]:
        self.watched += 1
        ended = threading.Event()
        context.add_callback(ended.set)
        for count, state in enumerate(self._states):
            if count == self._lost_after:
                self._lost_after = None
                time.sleep(self._quiet_s)
                context.abort(grpc.StatusCode.UNAVAILABLE, "going away")
            yield training_pb2.Training(id=request.id, state=state)  # type: ignore[arg-type]
        self.reported.set()
        if self._hangs:
            ended.wait(30)


class Simulations(simulation_pb2_grpc.SimulationServiceServicer):
    """Gives one and the same result after one message of progress."""

    def __init__(self, verdict: int, checks: list[simulation_pb2.Check]) -> None:
        self.requests: list[simulation_pb2.SimulateRequest] = []
        self._verdict = verdict
        self._checks = checks

    def Simulate(self, request: Any, context: Any) -> Iterator[simulation_pb2.SimulateResponse]:
        self.requests.append(request)
        progress = common_pb2.Progress(phase="optimising", fraction=0.5, remaining_s=-1)
        yield simulation_pb2.SimulateResponse(progress=progress)
        values = np.linspace(-3, 4, 32 * 32, dtype="<f4")
        grid = common_pb2.GridArray(data=values.tobytes(), data_type=common_pb2.DATA_TYPE_FLOAT32, size=32)
        images = [
            simulation_pb2.SimulatedImage(
                label=label,
                image=grid,
                nearest=grid,
                prediction=common_pb2.Prediction(label=label, probabilities=[0.1, 0.9], logits=[-1, 1]),
            )
            for label in LABELS
        ]
        yield simulation_pb2.SimulateResponse(
            result=simulation_pb2.SimulationResult(
                model=IDENTITY,
                cohort=request.cohort,
                method=simulation_pb2.SIMULATION_METHOD_INVERSION,
                images=images,
                checks=self._checks,
                verdict=self._verdict,  # type: ignore[arg-type]
                grid=common_pb2.Grid(fov_mm=160, size=32),
            )
        )


class Features(feature_pb2_grpc.FeatureServiceServicer):
    """Finds channel 7 important in every image, and its heat in the upper half."""

    def ExtractFeaturesStream(
        self, request_iterator: Any, context: Any
    ) -> Iterator[feature_pb2.ExtractFeaturesStreamResponse]:
        options = next(request_iterator).header.options
        start = feature_pb2.ExtractFeaturesStreamStart(model=IDENTITY, labels=LABELS, method=options.method)
        yield feature_pb2.ExtractFeaturesStreamResponse(start=start)
        for request in request_iterator:
            rows, columns = request.image.pixels.rows, request.image.pixels.columns
            heat = np.zeros((rows, columns), np.float32)
            heat[: rows // 2] = 1
            layers = [
                feature_pb2.LayerFeatures(
                    layer=layer,
                    channels=8,
                    height=2,
                    width=3,
                    top=[feature_pb2.Channel(index=7, importance=1.5, weight=1, map=range(6))],
                    source_heat_map=feature_pb2.HeatMap(values=heat.ravel(), rows=rows, columns=columns),
                )
                for layer in options.layers
            ]
            features = feature_pb2.ImageFeatures(id=request.image.id, target="loud", layers=layers, embedding=[1, 2])
            yield feature_pb2.ExtractFeaturesStreamResponse(result=features)
