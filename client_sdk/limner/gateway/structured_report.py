"""A score as a DICOM report: Comprehensive 3D SR after TID 1500 (PS3.16), derived from the series that was scored.

By highdicom. Concepts are the standard's where it has them, of our own scheme where it has none.
"""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from highdicom.sr import (
    AlgorithmIdentification,
    CodeContentItem,
    Comprehensive3DSR,
    ContentSequence,
    DeviceObserverIdentifyingAttributes,
    ImageContentItem,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.sr.coding import Code
from pydicom.uid import generate_uid

from limner.gateway.scoring import SeriesScore
from limner.imaging.derived import (
    CHARACTER_SET,
    MANUFACTURER,
    ModelReference,
    equipment,
    finish,
    private_code,
    series_number,
    stand_in,
)
from limner.types import Prediction

MARK = "RESEARCH USE ONLY - NOT FOR DIAGNOSTIC USE"

PROCEDURE = Code("25056-3", "LN", "MRI unspecified body region")
YES, NO, UNKNOWN = (
    Code("373066001", "SCT", "Yes"),
    Code("373067005", "SCT", "No"),
    Code("261665006", "SCT", "Unknown"),
)
CLASSIFICATION = Code("278201002", "SCT", "Classification")

_SERIES_OFFSET = 9100


def prediction_report(
    score: SeriesScore,
    sources: Mapping[str, Dataset],
    card: Mapping[str, object],
    explanations: Sequence[Dataset] = (),
) -> Comprehensive3DSR:
    """Write what a model says of a series as a structured report.

    The same question has the same SOPInstanceUID: it follows from the slices, the model, its calibration and its
    threshold, the label and the explanations, and not from the last digits of a probability.

    Parameters
    ----------
    score
        The series' score.
    sources
        Its instances that could be scored, by SOPInstanceUID, with pixels or without: patient, study and references
        come from them.
    card
        The model's card, as `Client.model` returns it.
    explanations
        Heat maps of the series, in any form, to be referred to.

    Returns
    -------
    Comprehensive3DSR
        One measurement group: the label chosen, the probability of each, how many slices it rests on, how far they lie
        from the training cohort, and the algorithm with version, digest, calibration and threshold. Not verified, and
        marked as research.

    Raises
    ------
    ImageError
        When a source lacks what a reference needs.
    """
    evidence = [stand_in(source) for source in sources.values()]
    prediction = score.subject.prediction
    assert prediction is not None  # noqa: S101 - a score has a slice that was decoded
    parameters = _parameters(score, card)
    identity = [score.series.study_uid, score.series.series_uid, prediction.label, *parameters]
    identity += [f"{part.instance_uid}:{part.frame}" for part, _ in score.scored]
    identity += [str(one.SOPInstanceUID) for one in explanations]
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=generate_uid(entropy_srcs=[*identity, "tracking"]), identifier=f"Limner {score.model}"
        ),
        algorithm_id=AlgorithmIdentification(
            name=score.model.name,
            version=score.model.version,
            manufacturer=MANUFACTURER,
            parameters=parameters,
            family=codes.DCM.ArtificialIntelligence,
        ),
        measurements=list(_measurements(score, prediction)),
        qualitative_evaluations=[
            QualitativeEvaluation(CLASSIFICATION, _label(prediction.label)),
            QualitativeEvaluation(private_code("FAR", "Far from the training cohort"), _far(score)),
        ],
        source_images=list(_references(score, sources)),
    )
    group[0].ContentSequence.extend(map(_explanation, explanations))
    content = MeasurementReport(
        observation_context=ObservationContext(observer_device_context=_observer(score)),
        procedure_reported=PROCEDURE,
        imaging_measurements=[group],
        title=codes.DCM.ImagingMeasurementReport,
    )
    comment = TextContentItem(codes.DCM.Comment, MARK, RelationshipTypeValues.CONTAINS)
    content[0].ContentSequence.insert(-1, comment)  # before the measurements, to be read first
    report = Comprehensive3DSR(
        evidence=[*evidence, *explanations],
        content=content[0],
        series_instance_uid=generate_uid(entropy_srcs=[*identity, "series"]),
        series_number=series_number(evidence[0], _SERIES_OFFSET),
        sop_instance_uid=generate_uid(entropy_srcs=[*identity, "instance"]),
        instance_number=1,
        is_complete=True,
        specific_character_set=CHARACTER_SET,
        **equipment(ModelReference(**score.model.to_dict())),
    )
    finish(report, next(iter(sources.values())), f"Score by {score.model.name}")
    return report


def _measurements(score: SeriesScore, prediction: Prediction) -> Iterator[Measurement]:
    for label, value in zip(score.labels, prediction.probabilities, strict=True):
        yield _probability(label, value)
    for code, meaning, count in (
        ("SLICES", "Slices scored", score.subject.images),
        ("SLICES-FAILED", "Slices that could not be scored", score.subject.failed),
        ("SLICES-FAR", "Slices far from the training cohort", score.subject.far),
    ):
        yield Measurement(private_code(code, meaning), count, codes.UCUM.NoUnits)
    percentiles = [
        one.prediction.distance.percentile for _, one in score.scored if one.prediction and one.prediction.distance
    ]
    if percentiles:
        name = private_code("DISTANCE", "Percentile of the distance from the training cohort")
        for derivation, value in ((codes.SCT.Median, np.median(percentiles)), (codes.SCT.Maximum, max(percentiles))):
            yield Measurement(name, round(float(value), 2), codes.UCUM.Percent, derivation=derivation)


def _probability(label: str, value: float) -> Measurement:
    """Return the probability of a class, which modifies its name (PS3.16 TID 300, $ModType)."""
    measurement = Measurement(codes.DCM.Probability, round(value, 6), codes.UCUM.NoUnits)
    which = CodeContentItem(CLASSIFICATION, _label(label), RelationshipTypeValues.HAS_CONCEPT_MOD)
    measurement[0].ContentSequence = ContentSequence([which])
    return measurement


def _label(label: str) -> Code:
    return private_code(label, label)


def _far(score: SeriesScore) -> Code:
    """Return whether at least half of the slices lie far from the training cohort; unknown without a reference."""
    if not any(one.prediction and one.prediction.distance for _, one in score.scored):
        return UNKNOWN
    return YES if 2 * score.subject.far >= score.subject.images else NO


def _references(score: SeriesScore, sources: Mapping[str, Dataset]) -> Iterator[SourceImageForMeasurementGroup]:
    """Refer to the instances that were scored; to their frames where those are not all."""
    for uid, source in sources.items():
        frames = sorted(part.frame + 1 for part, _ in score.scored if part.instance_uid == uid)
        partly = len(frames) < int(source.get("NumberOfFrames") or 1)
        yield SourceImageForMeasurementGroup(source.SOPClassUID, source.SOPInstanceUID, frames if partly else None)


def _explanation(image: Dataset) -> ImageContentItem:
    return ImageContentItem(
        name=codes.DCM.VisualExplanation,
        referenced_sop_class_uid=image.SOPClassUID,
        referenced_sop_instance_uid=image.SOPInstanceUID,
        relationship_type=RelationshipTypeValues.CONTAINS,
    )


def _observer(score: SeriesScore) -> ObserverContext:
    return ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=generate_uid(entropy_srcs=[MANUFACTURER, score.model.digest]),
            name=MANUFACTURER,
            manufacturer_name=MANUFACTURER,
            model_name=score.model.name,
            serial_number=score.model.digest,
        ),
    )


def _parameters(score: SeriesScore, card: Mapping[str, object]) -> list[str]:
    """Say what a number rests on: the artifact, its calibration, the threshold of the label."""
    calibration, threshold = card.get("calibration"), card.get("threshold")
    found: list[tuple[str, object]] = [("sha256", score.model.digest)]
    if isinstance(calibration, Mapping):
        found += [(name, calibration.get(name)) for name in ("temperature", "ece_before", "ece_after")]
    if isinstance(threshold, Mapping):
        found.append(("threshold", threshold.get("value")))
    return [
        f"{name}={value:.6g}" if isinstance(value, float) else f"{name}={value}"
        for name, value in found
        if value is not None
    ]
