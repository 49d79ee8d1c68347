"""The phantom cohort as DICOM: what demo, tests and benchmarks run on where no patient data can be shipped.

Writes single-frame MR Image Storage (PS3.3 A.4), one study of one T2-weighted series for each subject, and
`labels.csv`. The pixels come from `phantom_anatomy`.
"""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, MRImageStorage, generate_uid

from limner.imaging.errors import ImageError
from limner.imaging.files import replace_file
from limner.imaging.phantom_anatomy import (
    PIXEL_MM,
    PIXELS,
    SLICE_GAP_MM,
    SLICES,
    phantom_severity,
    phantom_subject,
)

__all__ = ["LABELS", "phantom_recurrent", "phantom_severity", "phantom_subject", "write_phantom"]

LABELS = ("non-recurrent", "recurrent")
RECURRENT_FRACTION = 11 / 27
# Relative signal to 12 stored bits: urine lands near 1500, and the brightest pixel under 4096.
STORED_PER_SIGNAL = 1500


def phantom_recurrent(subjects: int, seed: int = 0) -> NDArray[np.bool_]:
    """Return which subjects of a cohort are recurrent, `(subjects,)`: 11 of 27, rounded, in a shuffled order."""
    recurrent = np.arange(subjects) < round(RECURRENT_FRACTION * subjects)
    return np.random.default_rng([seed, subjects]).permutation(recurrent)


def write_phantom(
    folder: Path,
    subjects: int = 27,
    seed: int = 0,
    separation: float = 3.5,
    correlation: float = 0.9,
    progress: Callable[[], None] | None = None,
) -> None:
    """Write a cohort as `folder/PH-000/0001.dcm` … and, when it is whole, `folder/labels.csv`.

    Parameters
    ----------
    folder
        Made when missing; files of an earlier phantom in it are replaced.
    subjects
        1 to 100,000.
    seed
        0 and up; the same seed and options give the same files.
    separation, correlation
        See `phantom_subject`.
    progress
        Called once after each subject.

    Raises
    ------
    ImageError
        When a number is out of its range.
    """
    _check(subjects, seed, separation, correlation)
    rows = [("subject", "label")]
    for index, recurrent in enumerate(phantom_recurrent(subjects, seed).tolist()):
        name = f"PH-{index:03d}"
        identity = ("limner phantom", str(seed), name, str(recurrent), repr(separation), repr(correlation))
        (folder / name).mkdir(parents=True, exist_ok=True)
        volume = phantom_subject(seed, index, recurrent, separation, correlation)
        for number, dataset in enumerate(_series(name, identity, volume), start=1):
            dataset.save_as(folder / name / f"{number:04d}.dcm", enforce_file_format=True)
        rows.append((name, LABELS[recurrent]))
        if progress:
            progress()
    with replace_file(folder / "labels.csv") as temporary, temporary.open("w", newline="") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)


def _check(subjects: int, seed: int, separation: float, correlation: float) -> None:
    if not 1 <= subjects <= 100_000:
        raise ImageError("subjects", subjects, "1 to 100000")
    if seed < 0:
        raise ImageError("seed", seed, "0 or more")
    if not 0 <= separation <= 100:
        raise ImageError("separation", separation, "0 to 100 standard deviations")
    if not -1 <= correlation <= 1:
        raise ImageError("correlation", correlation, "-1 to 1")


def _series(name: str, identity: tuple[str, ...], volume: NDArray[np.float32]) -> list[FileDataset]:
    stored = np.clip(np.rint(volume * STORED_PER_SIGNAL), 0, 4095).astype("<u2")
    return [_instance(name, identity, number, pixels) for number, pixels in enumerate(stored)]


def _instance(name: str, identity: tuple[str, ...], number: int, pixels: NDArray[np.uint16]) -> FileDataset:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid(entropy_srcs=[*identity, f"instance {number}"])
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = meta.MediaStorageSOPClassUID
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    _describe_subject(dataset, name, identity)
    _describe_acquisition(dataset)
    _describe_pixels(dataset, number, pixels)
    return dataset


def _describe_subject(dataset: FileDataset, name: str, identity: tuple[str, ...]) -> None:
    dataset.PatientName = f"PHANTOM^{name}"
    dataset.PatientID = name
    dataset.PatientBirthDate = ""
    dataset.PatientSex = "F"
    dataset.StudyInstanceUID = generate_uid(entropy_srcs=[*identity, "study"])
    dataset.StudyDate = dataset.ContentDate = "20250101"
    dataset.StudyTime = dataset.ContentTime = "120000"
    dataset.ReferringPhysicianName = ""
    dataset.StudyID = "1"
    dataset.AccessionNumber = ""
    dataset.StudyDescription = "Simulated pelvis, not a patient"
    dataset.SeriesInstanceUID = generate_uid(entropy_srcs=[*identity, "series"])
    dataset.FrameOfReferenceUID = generate_uid(entropy_srcs=[*identity, "frame of reference"])
    dataset.PositionReferenceIndicator = ""


def _describe_acquisition(dataset: FileDataset) -> None:
    dataset.Modality = "MR"
    dataset.Manufacturer = "Limner phantom"
    dataset.ManufacturerModelName = "Limner phantom"
    dataset.SeriesNumber = 1
    dataset.SeriesDescription = "t2_tse_tra"
    dataset.ProtocolName = "t2_tse_tra"
    dataset.BodyPartExamined = "PELVIS"
    dataset.PatientPosition = "HFS"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "OTHER"]
    dataset.ScanningSequence = "SE"
    dataset.SequenceVariant = "SK"
    dataset.ScanOptions = ""
    dataset.MRAcquisitionType = "2D"
    dataset.RepetitionTime = 4500
    dataset.EchoTime = 100
    dataset.EchoTrainLength = 16
    dataset.MagneticFieldStrength = 1.5
    dataset.AcquisitionNumber = 1


def _describe_pixels(dataset: FileDataset, number: int, pixels: NDArray[np.uint16]) -> None:
    edge = -(PIXELS - 1) / 2 * PIXEL_MM
    dataset.InstanceNumber = number + 1
    dataset.SliceThickness = SLICE_GAP_MM
    dataset.SpacingBetweenSlices = SLICE_GAP_MM
    dataset.PixelSpacing = [PIXEL_MM, PIXEL_MM]
    dataset.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
    dataset.ImagePositionPatient = [edge, edge, (number - (SLICES - 1) / 2) * SLICE_GAP_MM]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.WindowCenter, dataset.WindowWidth = 900, 1800
    dataset.PixelData = pixels.tobytes()
