"""MR instances made for the tests: small, valid, and easy to break in one place."""

from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import EnhancedMRImageStorage, ExplicitVRLittleEndian, MRImageStorage, generate_uid

DATA = Path(__file__).parent.parent / "data" / "prostatex"
TRANSVERSE = DATA / "ProstateX-0000" / "t2-transverse"
SMALL = np.arange(48, dtype=np.uint16).reshape(6, 8)
AXES = {"transverse": [1, 0, 0, 0, 1, 0], "sagittal": [0, 1, 0, 0, 0, -1], "coronal": [1, 0, 0, 0, 0, -1]}


def mr_instance(pixels: NDArray[np.generic], **attributes: object) -> FileDataset:
    """Return a T2-weighted instance of `(rows, columns)` or `(frames, rows, columns)` integers."""
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = MRImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    dataset.SOPClassUID = MRImageStorage
    dataset.SOPInstanceUID = meta.MediaStorageSOPInstanceUID
    dataset.SeriesInstanceUID = "1.2.3"
    dataset.StudyInstanceUID = "1.2"
    dataset.PatientID = "patient"
    dataset.Modality = "MR"
    dataset.ImageType = ["ORIGINAL", "PRIMARY", "OTHER"]
    dataset.SeriesDescription = "t2_tse"
    dataset.ScanningSequence = "SE"
    dataset.EchoTime = 100
    dataset.RepetitionTime = 4000
    dataset.PixelSpacing = [0.5, 0.75]
    dataset.ImageOrientationPatient = AXES["transverse"]
    dataset.ImagePositionPatient = [1, 2, 3]
    dataset.SamplesPerPixel = 1
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.Rows, dataset.Columns = pixels.shape[-2:]
    if pixels.ndim == 3:
        dataset.NumberOfFrames = len(pixels)
    dataset.BitsAllocated = dataset.BitsStored = pixels.dtype.itemsize * 8
    dataset.HighBit = dataset.BitsStored - 1
    dataset.PixelRepresentation = int(pixels.dtype.kind == "i")
    dataset.PixelData = pixels.tobytes()
    for keyword, value in attributes.items():
        setattr(dataset, keyword, value)
    return dataset


def enhanced_mr(pixels: NDArray[np.generic], plane: str = "sagittal") -> FileDataset:
    """Return an Enhanced MR instance of `(frames, rows, columns)`; frame i lies at i mm, with slope i + 1."""
    dataset = mr_instance(pixels, SOPClassUID=EnhancedMRImageStorage)
    for keyword in ("PixelSpacing", "ImageOrientationPatient", "ImagePositionPatient", "EchoTime", "RepetitionTime"):
        delattr(dataset, keyword)
    dataset.SharedFunctionalGroupsSequence = Sequence(
        [
            item(
                PixelMeasuresSequence=items(PixelSpacing=[1.5, 1.25]),
                PlaneOrientationSequence=items(ImageOrientationPatient=AXES[plane]),
                MREchoSequence=items(EffectiveEchoTime=90.0),
                MRTimingAndRelatedParametersSequence=items(RepetitionTime=3000.0),
            )
        ]
    )
    dataset.PerFrameFunctionalGroupsSequence = Sequence(
        [
            item(
                PlanePositionSequence=items(ImagePositionPatient=[index, 0, 0]),
                PixelValueTransformationSequence=items(RescaleSlope=index + 1, RescaleIntercept=0),
            )
            for index in range(len(pixels))
        ]
    )
    return dataset


def write_series(folder: Path, count: int = 5, **attributes: object) -> None:
    """Write slices 4 mm apart, the last first."""
    for number in range(count):
        attributes["ImagePositionPatient"] = [0, 0, 4 * number]
        instance = mr_instance(SMALL, InstanceNumber=number + 1, **attributes)
        instance.save_as(folder / f"{count - number}.dcm", enforce_file_format=True)


def content(dataset: FileDataset) -> bytes:
    """Return the dataset as the content of a file."""
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def item(**attributes: object) -> Dataset:
    item = Dataset()
    for keyword, value in attributes.items():
        setattr(item, keyword, value)
    return item


def items(**attributes: object) -> Sequence:
    return Sequence([item(**attributes)])
