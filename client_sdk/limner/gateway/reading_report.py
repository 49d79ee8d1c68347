"""A reading as DICOM: its images as Secondary Capture, and what each reader said of them as a structured report.

Comprehensive 3D SR after TID 1500 (PS3.16) by highdicom, of a patient named after the reading: nobody's. A measurement
group for each image; concepts are the standard's where it has them, of our own scheme where it has none.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
from highdicom.sc import SCImage
from highdicom.sr import (
    Comprehensive3DSR,
    Measurement,
    MeasurementReport,
    MeasurementsAndQualitativeEvaluations,
    ObservationContext,
    ObserverContext,
    PersonObserverIdentifyingAttributes,
    QualitativeEvaluation,
    RelationshipTypeValues,
    SourceImageForMeasurementGroup,
    TextContentItem,
    TrackingIdentifier,
)
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from limner.gateway.structured_report import MARK, PROCEDURE
from limner.imaging.derived import (
    CHARACTER_SET,
    ModelReference,
    describe,
    equipment,
    finish,
    private_code,
    write_dicom,
)
from limner.reading_export import describe as describe_item
from limner.reading_export import pixels, report_name
from limner.types import ReadingExport, ReadingItem, RecordedVerdict


def write(content: ReadingExport, folder: Path) -> list[Path]:
    """Write `images/NNN.dcm` for each image and `report-READER.dcm` for each reader with a verdict."""
    images = [_image(content, item) for item in content.items]
    written = []
    for item, image in zip(content.items, images, strict=True):
        path = folder / "images" / f"{item.number:03}.dcm"
        write_dicom(path, image)
        written.append(path)
    for reader in dict.fromkeys(one.reader for one in content.verdicts):
        path = folder / report_name(reader)
        write_dicom(path, reader_report(content, reader, images))
        written.append(path)
    return written


def reader_report(content: ReadingExport, reader: str, images: list[Dataset]) -> Comprehensive3DSR:
    """Return what one reader said of each image, by the verdicts that count; `images` are by item number."""
    said = [one for one in content.verdicts if one.reader == reader and one.counts]
    identity = [MARK, content.reading.id, reader, *(str(one.sequence) for one in said)]
    report = MeasurementReport(
        observation_context=ObservationContext(
            observer_person_context=ObserverContext(
                observer_type=codes.DCM.Person,
                observer_identifying_attributes=PersonObserverIdentifyingAttributes(name=f"{reader}^"),
            )
        ),
        procedure_reported=PROCEDURE,
        imaging_measurements=[_group(content, one, images[one.item], identity) for one in said],
        title=codes.DCM.ImagingMeasurementReport,
    )
    comment = TextContentItem(codes.DCM.Comment, MARK, RelationshipTypeValues.CONTAINS)
    report[0].ContentSequence.insert(-1, comment)
    document = Comprehensive3DSR(
        evidence=[images[one.item] for one in said],
        content=report[0],
        series_instance_uid=generate_uid(entropy_srcs=[*identity, "series"]),
        series_number=2,
        sop_instance_uid=generate_uid(entropy_srcs=[*identity, "instance"]),
        instance_number=1,
        is_complete=True,
        specific_character_set=CHARACTER_SET,
        **equipment(_model(content)),
    )
    finish(document, images[said[0].item], f"Reading by {reader}")
    return document


def _group(
    content: ReadingExport, one: RecordedVerdict, image: Dataset, identity: list[str]
) -> MeasurementsAndQualitativeEvaluations:
    item = content.items[one.item]
    group = MeasurementsAndQualitativeEvaluations(
        tracking_identifier=TrackingIdentifier(
            uid=generate_uid(entropy_srcs=[*identity, str(one.item)]), identifier=f"Image {one.item}"
        ),
        measurements=list(_measurements(content, one)),
        qualitative_evaluations=[
            QualitativeEvaluation(private_code("KIND", "Kind of image"), private_code(item.kind, item.kind)),
            QualitativeEvaluation(private_code("LABEL", "Label of the image"), private_code(item.label, item.label)),
            *(
                QualitativeEvaluation(private_code(name, name), private_code(option, option))
                for name, option in one.verdict.features.items()
            ),
        ],
        source_images=[SourceImageForMeasurementGroup(image.SOPClassUID, image.SOPInstanceUID)],
    )
    if one.verdict.comment:
        text = TextContentItem(codes.DCM.Comment, one.verdict.comment, RelationshipTypeValues.CONTAINS)
        group[0].ContentSequence.append(text)
    return group


def _measurements(content: ReadingExport, one: RecordedVerdict) -> Iterator[Measurement]:
    said = one.verdict
    likelihood = private_code("LIKELIHOOD", f"Likelihood of {content.reading.label}")
    yield Measurement(likelihood, said.likelihood, codes.UCUM.Percent)
    yield Measurement(private_code("REALISM", "Realism, 1 simulated to 5 real"), said.realism, codes.UCUM.NoUnits)
    yield Measurement(private_code("CONFIDENCE", "Confidence, 1 to 5"), said.confidence, codes.UCUM.NoUnits)
    yield Measurement(private_code("SECONDS", "Time taken"), round(said.seconds, 1), codes.UCUM.Second)


def _image(content: ReadingExport, item: ReadingItem) -> Dataset:
    reading = content.reading
    identity = [MARK, reading.id, str(item.number)]
    spacing = reading.grid.fov_mm / reading.grid.size
    image: Dataset = SCImage(
        pixel_array=np.ascontiguousarray(pixels(content, item)),
        photometric_interpretation="MONOCHROME2",
        bits_allocated=16,
        coordinate_system="PATIENT",
        patient_orientation=("L", "P"),
        patient_id=f"READING-{reading.id}",
        patient_name=f"READING^{reading.id}",
        study_instance_uid=generate_uid(entropy_srcs=[MARK, reading.id]),
        series_instance_uid=generate_uid(entropy_srcs=[MARK, reading.id, "images"]),
        sop_instance_uid=generate_uid(entropy_srcs=identity),
        series_number=1,
        instance_number=item.number + 1,
        pixel_spacing=(spacing, spacing),
        transfer_syntax_uid=ExplicitVRLittleEndian,
        specific_character_set=CHARACTER_SET,
        **equipment(_model(content)),
    )
    # The slices of a cohort may lie in any plane, and are of no side of the body that is known.
    image.PatientOrientation = ""
    image.Laterality = ""
    describe(
        image, "Images of a reading", f"Image {item.number} of reading {reading.id}: {describe_item(item)}. {MARK}"
    )
    return image


def _model(content: ReadingExport) -> ModelReference:
    return ModelReference(**content.reading.model.to_dict())
