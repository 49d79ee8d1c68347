"""A score as a DICOM report: Comprehensive 3D SR after TID 1500 (PS3.16), derived from the series that was scored.

By highdicom. Identifiers follow from the content: the same score of the same slices is the same object, so that a PACS
that is sent it twice keeps one.
"""

from collections.abc import Mapping, Sequence
from importlib.metadata import version
from warnings import catch_warnings, filterwarnings

from highdicom.sr import (
    AlgorithmIdentification,
    CodedConcept,
    Comprehensive3DSR,
    DeviceObserverIdentifyingAttributes,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    QualitativeEvaluation,
    SourceImageForMeasurementGroup,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import generate_uid

from limner.gateway.scoring import SeriesScore

MARK = "RESEARCH USE ONLY - NOT FOR DIAGNOSTIC USE"
SCHEME = "99LIMNER"
"""Coding scheme of our own concepts (PS3.16 8.2: private ones begin with 99)."""

PROCEDURE = CodedConcept("113091000", "SCT", "Magnetic resonance imaging")

# Of type 2 (PS3.3 C.7.1.1, C.7.2.1): to be there, perhaps empty. Some senders leave them out, highdicom insists.
_TYPE_2 = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
)
_SERIES_NUMBER = 9100
_MAX_STRING = 64


def prediction_report(score: SeriesScore, sources: Sequence[Dataset], card: Mapping[str, object]) -> Comprehensive3DSR:
    """Write what a model says of a series as a structured report.

    Parameters
    ----------
    score
        The series' score.
    sources
        Its instances that could be scored, without pixels: patient, study and references come from them. What they lack
        of these is added, empty.
    card
        The model's card, as `Client.model` returns it.

    Returns
    -------
    Comprehensive3DSR
        One measurement group: the label chosen, the probability of each, how many slices it rests on, and the algorithm
        with version, digest, temperature and threshold. Not verified, and marked as research.
    """
    for source in sources:
        for keyword in _TYPE_2:
            if keyword not in source:
                setattr(source, keyword, "")
    prediction = score.subject.prediction
    assert prediction is not None  # noqa: S101 - a score has a slice that was decoded
    identity = [
        str(score.series.study_uid),
        score.series.series_uid,
        score.model.digest,
        repr(prediction.probabilities),
    ]
    identity += sorted(str(source.SOPInstanceUID) for source in sources)
    algorithm = AlgorithmIdentification(
        name=score.model.name,
        version=score.model.version,
        manufacturer="Limner",
        parameters=_parameters(score, card),
    )
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=generate_uid(entropy_srcs=[*identity, "tracking"]), identifier=f"Limner {score.model}"
        ),
        algorithm_id=algorithm,
        measurements=[
            *(
                Measurement(_concept(f"P-{label}", f"Probability of {label}"), value, codes.UCUM.NoUnits)
                for label, value in zip(score.labels, prediction.probabilities, strict=True)
            ),
            Measurement(_concept("SLICES", "Number of slices scored"), score.subject.images, codes.UCUM.NoUnits),
            Measurement(_concept("FAR", "Slices unlike the training cohort"), score.subject.far, codes.UCUM.NoUnits),
        ],
        qualitative_evaluations=[
            QualitativeEvaluation(
                _concept("LABEL", "Label chosen by the model"), _concept(f"L-{prediction.label}", prediction.label)
            ),
            QualitativeEvaluation(_concept("USE", "Intended use"), _concept("RESEARCH", MARK)),
        ],
        source_images=[SourceImageForMeasurementGroup(source.SOPClassUID, source.SOPInstanceUID) for source in sources],
    )
    observer = ObserverContext(
        observer_type=codes.DCM.Device,
        observer_identifying_attributes=DeviceObserverIdentifyingAttributes(
            uid=generate_uid(entropy_srcs=["Limner", score.model.digest]),
            name="Limner",
            manufacturer_name="Limner",
            model_name=score.model.name,
            serial_number=score.model.digest,
        ),
    )
    content = MeasurementReport(
        observation_context=ObservationContext(observer_device_context=observer),
        procedure_reported=PROCEDURE,
        imaging_measurements=[group],
        title=codes.DCM.ImagingMeasurementReport,
    )
    with catch_warnings():
        # The patient's name is the source's own, however it is written there.
        filterwarnings("ignore", "The string .* is unlikely to represent", UserWarning)
        report = Comprehensive3DSR(
            evidence=sources,
            content=content[0],
            series_instance_uid=generate_uid(entropy_srcs=[*identity, "series"]),
            series_number=_SERIES_NUMBER,
            sop_instance_uid=generate_uid(entropy_srcs=[*identity, "instance"]),
            instance_number=1,
            manufacturer="Limner",
            is_complete=True,
        )
    report.SpecificCharacterSet = "ISO_IR 192"
    report.SeriesDescription = f"{score.model.name[:30]}, not for diagnosis"
    report.SoftwareVersions = version("limner")
    return report


def _parameters(score: SeriesScore, card: Mapping[str, object]) -> list[str]:
    calibration, threshold = card.get("calibration"), card.get("threshold")
    found = {
        "sha256": score.model.digest,
        "temperature": calibration.get("temperature") if isinstance(calibration, Mapping) else None,
        "threshold": threshold.get("value") if isinstance(threshold, Mapping) else None,
    }
    return [MARK, *(f"{name}={value}" for name, value in found.items() if value is not None)]


def _concept(value: str, meaning: str) -> CodedConcept:
    """Return a concept of our own; a code value is at most 16 characters (SH), a meaning 64 (LO, PS3.5 6.2)."""
    return CodedConcept(
        value=value.upper().replace(" ", "-")[:16], scheme_designator=SCHEME, meaning=meaning[:_MAX_STRING]
    )
