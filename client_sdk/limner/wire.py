"""Messages of `limner.v1` as the types of the SDK: every reply to either client is translated here.

Not for the way out: `limner.requests` builds what is sent.
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime
from enum import StrEnum
from typing import TypeVar

import numpy as np
from google.protobuf.timestamp_pb2 import Timestamp
from numpy.typing import NDArray

from limner import types
from limner.cohorts import Upload
from limner.errors import failure
from limner.images import Ledger
from limner.imaging.grid import Grid
from limner.requests import DTYPES, OPTIONAL_TRAINING_FIELDS, Enum, enum_prefix
from limner.v1 import cohort_pb2, common_pb2, feature_pb2, inference_pb2, model_pb2, simulation_pb2, training_pb2

_E = TypeVar("_E", bound=StrEnum)


def _enum(kind: type[_E], wrapper: Enum, number: int) -> _E:
    """Translate the number of `JOB_STATE_RUNNING` to `JobState.RUNNING`."""
    return kind(wrapper.Name(number).removeprefix(enum_prefix(wrapper)).lower())


def _time(time: Timestamp) -> datetime:
    return time.ToDatetime(tzinfo=UTC)


def _floats(values: Sequence[float], shape: tuple[int, ...]) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32).reshape(shape)


def _grid_array(array: common_pb2.GridArray) -> NDArray[np.float32]:
    values = np.frombuffer(array.data, DTYPES[array.data_type])
    return values.reshape(array.size, array.size).astype(np.float32)


def _grid(grid: common_pb2.Grid) -> Grid:
    return Grid(fov_mm=grid.fov_mm, size=grid.size)


def identity(model: common_pb2.ModelIdentity) -> types.ModelIdentity:
    """Translate which artifact answered."""
    return types.ModelIdentity(name=model.name, version=model.version, digest=model.digest)


def _prediction(prediction: common_pb2.Prediction) -> types.Prediction:
    return types.Prediction(
        label=prediction.label,
        probabilities=tuple(prediction.probabilities),
        logits=tuple(prediction.logits),
        distance=_distance(prediction.distance) if prediction.HasField("distance") else None,
    )


def _distance(distance: common_pb2.Distance) -> types.Distance:
    return types.Distance(value=distance.value, percentile=distance.percentile, far=distance.far)


def _timing(timing: common_pb2.Timing) -> types.Timing:
    return types.Timing(
        decode_ms=timing.decode_ms,
        queue_ms=timing.queue_ms,
        compute_ms=timing.compute_ms,
        batch_size=timing.batch_size,
    )


def subject_result(subject: common_pb2.SubjectResult) -> types.SubjectResult:
    """Translate the roll-up of one subject."""
    return types.SubjectResult(
        subject=subject.subject,
        images=subject.images,
        failed=subject.failed,
        prediction=_prediction(subject.prediction) if subject.HasField("prediction") else None,
        far=subject.far,
    )


def progress(progress: common_pb2.Progress) -> types.Progress:
    """Translate how far a long operation is."""
    remaining = progress.remaining_s if progress.remaining_s >= 0 else None
    return types.Progress(phase=progress.phase, fraction=progress.fraction, remaining_s=remaining)


def _metrics(metrics: Sequence[training_pb2.Metric]) -> tuple[types.Metric, ...]:
    return tuple(types.Metric(name=m.name, value=m.value, low=m.low, high=m.high, interval=m.interval) for m in metrics)


# Cohorts


def cohort(cohort: cohort_pb2.Cohort) -> types.Cohort:
    """Translate a cohort."""
    return types.Cohort(
        name=cohort.name,
        labels=tuple(cohort.labels),
        subjects=tuple(types.CohortSubject(subject=s.subject, label=s.label, slices=s.slices) for s in cohort.subjects),
        slices=cohort.slices,
        digest=cohort.digest,
        created=_time(cohort.created),
        instances=tuple(cohort.instances),
    )


def cohorts(reply: cohort_pb2.ListCohortsResponse) -> tuple[types.Cohort, ...]:
    """Translate a list of cohorts."""
    return tuple(map(cohort, reply.cohorts))


def import_result(reply: cohort_pb2.ImportCohortResponse, upload: Upload) -> types.ImportResult:
    """Translate what became of an import, with what its last call did not send."""
    refused_there = (
        types.Rejection(id=item.id, error=error)
        for item in reply.rejected
        if (error := failure(item.status)) is not None
    )
    return types.ImportResult(
        cohort=cohort(reply.cohort),
        added=reply.added + upload.stored,
        unchanged=reply.unchanged + upload.known,
        rejected=(*upload.refused, *refused_there),
    )


# Training


def _training_config(config: training_pb2.TrainingConfig) -> types.TrainingConfig:
    given = {field.name for field, _ in config.ListFields()}
    fold_unit = _enum(types.FoldUnit, training_pb2.FoldUnit, config.fold_unit) if config.fold_unit else None
    return types.TrainingConfig(
        architecture=config.architecture or None,
        grid=_grid(config.grid) if config.HasField("grid") else None,
        fold_unit=fold_unit,
        pretrained=config.pretrained or None,
        augmentation=config.augmentation or None,
        **{name: getattr(config, name) for name in OPTIONAL_TRAINING_FIELDS if name in given},
    )


def _training_progress(figures: training_pb2.TrainingProgress) -> types.TrainingProgress:
    return types.TrainingProgress(
        progress=progress(figures.progress),
        epoch=figures.epoch,
        epochs=figures.epochs,
        loss=figures.loss,
        accuracy=figures.accuracy,
        images_per_second=figures.images_per_second,
    )


def training(training: training_pb2.Training) -> types.Training:
    """Translate a training."""
    return types.Training(
        id=training.id,
        cohort=training.cohort,
        model=training.model,
        config=_training_config(training.config),
        state=_enum(types.JobState, training_pb2.JobState, training.state),
        progress=_training_progress(training.progress) if training.HasField("progress") else None,
        error=training.error,
        result=identity(training.result) if training.HasField("result") else None,
        metrics=_metrics(training.metrics),
        resumed=training.resumed,
        created=_time(training.created),
        ended=_time(training.ended) if training.HasField("ended") else None,
    )


def trainings(reply: training_pb2.ListTrainingsResponse) -> tuple[types.Training, ...]:
    """Translate a list of trainings."""
    return tuple(map(training, reply.trainings))


# Prediction and features


def image_result(result: inference_pb2.ImageResult) -> types.ImageResult:
    """Translate the result of one image."""
    return types.ImageResult(
        id=result.id,
        subject=result.subject,
        error=failure(result.status),
        prediction=_prediction(result.prediction) if result.HasField("prediction") else None,
        timing=_timing(result.timing) if result.HasField("timing") else None,
        embedding=_floats(result.embedding, (-1,)) if result.embedding else None,
    )


def predict_result(reply: inference_pb2.PredictResponse, ledger: Ledger[types.ImageResult]) -> types.PredictResult:
    """Translate predictions, under the caller's names and with the images that were not sent."""
    answered = (result for item in reply.results for result in ledger.answered(image_result(item)))
    return types.PredictResult(
        model=identity(reply.model),
        labels=tuple(reply.labels),
        results=(*answered, *ledger.close()),
        subjects=ledger.roll_up(map(subject_result, reply.subjects)),
    )


def no_predictions(model: model_pb2.Model) -> inference_pb2.PredictResponse:
    """Return the reply to a request without images, which the server would refuse."""
    return inference_pb2.PredictResponse(model=model.identity, labels=model.labels)


def _heat_map(heat_map: feature_pb2.HeatMap) -> NDArray[np.float32]:
    return _floats(heat_map.values, (heat_map.rows, heat_map.columns))


def _layer(layer: feature_pb2.LayerFeatures) -> types.LayerFeatures:
    shape = (layer.height, layer.width)
    return types.LayerFeatures(
        layer=layer.layer,
        channels=layer.channels,
        height=layer.height,
        width=layer.width,
        top=tuple(
            types.Channel(
                index=channel.index,
                importance=channel.importance,
                weight=channel.weight,
                map=_floats(channel.map, shape) if channel.map else None,
            )
            for channel in layer.top
        ),
        grid_heat_map=_heat_map(layer.grid_heat_map) if layer.HasField("grid_heat_map") else None,
        source_heat_map=_heat_map(layer.source_heat_map) if layer.HasField("source_heat_map") else None,
    )


def image_features(result: feature_pb2.ImageFeatures) -> types.ImageFeatures:
    """Translate the features of one image."""
    return types.ImageFeatures(
        id=result.id,
        subject=result.subject,
        error=failure(result.status),
        prediction=_prediction(result.prediction) if result.HasField("prediction") else None,
        timing=_timing(result.timing) if result.HasField("timing") else None,
        target=result.target,
        layers=tuple(map(_layer, result.layers)),
        embedding=_floats(result.embedding, (-1,)) if result.embedding else None,
    )


def features_result(
    reply: feature_pb2.ExtractFeaturesResponse, ledger: Ledger[types.ImageFeatures]
) -> types.FeaturesResult:
    """Translate features, under the caller's names and with the images that were not sent."""
    answered = (result for item in reply.results for result in ledger.answered(image_features(item)))
    return types.FeaturesResult(
        model=identity(reply.model),
        labels=tuple(reply.labels),
        method=_enum(types.ImportanceMethod, feature_pb2.ImportanceMethod, reply.method),
        results=(*answered, *ledger.close()),
    )


def no_features(model: model_pb2.Model, options: feature_pb2.FeatureOptions) -> feature_pb2.ExtractFeaturesResponse:
    """Return the reply to a request without images, which the server would refuse."""
    method = options.method or feature_pb2.IMPORTANCE_METHOD_GRADIENT_X_DEVIATION
    return feature_pb2.ExtractFeaturesResponse(model=model.identity, labels=model.labels, method=method)


# Simulation


def _simulated_image(image: simulation_pb2.SimulatedImage) -> types.SimulatedImage:
    return types.SimulatedImage(
        label=image.label,
        image=_grid_array(image.image),
        prediction=_prediction(image.prediction),
        nearest_instance=image.nearest_instance,
        nearest_subject=image.nearest_subject,
        nearest=_grid_array(image.nearest),
    )


def _check(check: simulation_pb2.Check) -> types.Check:
    return types.Check(
        number=check.number,
        name=check.name,
        value=check.value,
        threshold=check.threshold,
        at_most=check.at_most,
        passed=check.passed,
        gate=check.gate,
        ran=check.ran,
        detail=check.detail,
        values=tuple(check.values),
        null=tuple(check.null),
        source=check.source,
    )


def _faithfulness(curve: simulation_pb2.FaithfulnessCurve) -> types.FaithfulnessCurve:
    return types.FaithfulnessCurve(
        layer=curve.layer,
        method=_enum(types.ImportanceMethod, feature_pb2.ImportanceMethod, curve.method),
        fractions=tuple(curve.fractions),
        deletion=tuple(curve.deletion),
        deletion_low=tuple(curve.deletion_low),
        deletion_high=tuple(curve.deletion_high),
        insertion=tuple(curve.insertion),
        insertion_low=tuple(curve.insertion_low),
        insertion_high=tuple(curve.insertion_high),
        areas=_metrics(curve.areas),
        slices=curve.slices,
    )


def simulation(result: simulation_pb2.SimulationResult) -> types.SimulationResult:
    """Translate a simulation."""
    return types.SimulationResult(
        model=identity(result.model),
        cohort=result.cohort,
        cohort_digest=result.cohort_digest,
        method=_enum(types.SimulationMethod, simulation_pb2.SimulationMethod, result.method),
        steps=result.steps,
        seed=result.seed,
        images=tuple(map(_simulated_image, result.images)),
        checks=tuple(map(_check, result.checks)),
        verdict=_enum(types.Verdict, simulation_pb2.Verdict, result.verdict),
        layers=tuple(
            types.LayerLineage(
                layer=item.layer, channels=item.channels, selected=tuple(item.selected), weights=tuple(item.weights)
            )
            for item in result.layers
        ),
        subjects=tuple(
            types.SubjectLineage(subject=s.subject, label=s.label, slices=s.slices, weight=s.weight)
            for s in result.subjects
        ),
        grid=_grid(result.grid),
        faithfulness=tuple(map(_faithfulness, result.faithfulness)),
    )


# Models


def model(model: model_pb2.Model) -> types.Model:
    """Translate one version of a model."""
    return types.Model(
        identity=identity(model.identity),
        state=_enum(types.ModelState, model_pb2.ModelState, model.state),
        aliases=tuple(model.aliases),
        labels=tuple(model.labels),
        grid=_grid(model.grid) if model.HasField("grid") else None,
        architecture=model.architecture,
        threshold=model.threshold,
        metrics=_metrics(model.metrics),
        created=_time(model.created) if model.HasField("created") else None,
        card=json.loads(model.card_json) if model.card_json else {},
        error=model.error,
    )


def models(reply: model_pb2.ListModelsResponse) -> tuple[types.Model, ...]:
    """Translate a list of models."""
    return tuple(map(model, reply.models))
