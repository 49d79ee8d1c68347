"""What `malformed` breaks: one real slice in twelve encodings."""

import io
from collections.abc import Callable
from functools import cache

import numpy as np
from PIL import Image
from pydicom import dcmread, dcmwrite
from pydicom.data import get_testdata_file
from pydicom.dataset import FileDataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.uid import (
    UID,
    ExplicitVRBigEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from tests.imaging.builders import TRANSVERSE, content, enhanced_mr, mr_instance

ROOT = "1.2.826.0.1.3680043.10.1338"
# Of the same length as what they stand for, so that they can be replaced within bytes.
INSTANCE, STUDY = f"{ROOT}.2.10000000", f"{ROOT}.1.10000000"
SERIES = f"{STUDY}.1"


def real() -> FileDataset:
    return _identified(dcmread(TRANSVERSE / "10.dcm"))


def _identified(dataset: FileDataset) -> FileDataset:
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = UID(INSTANCE)
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = UID(STUDY), UID(SERIES)
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    return dataset


def cropped(bits: int = 16, edge: int = 96) -> FileDataset:
    dataset = real()
    middle = slice(192 - edge // 2, 192 + edge // 2)
    pixels = dataset.pixel_array[middle, middle]
    if bits == 8:
        pixels = np.clip(pixels // 4, 0, 255).astype(np.uint8)
    dataset.Rows, dataset.Columns = pixels.shape
    dataset.BitsAllocated = dataset.BitsStored = bits
    dataset.HighBit = bits - 1
    dataset.PixelData = pixels.tobytes()
    dataset["PixelData"].VR = "OB" if bits == 8 else "OW"
    return dataset


def _compressed(syntax: UID) -> bytes:
    dataset = cropped()
    dataset.compress(syntax, generate_instance_uid=False)
    return content(dataset)


def _jpeg() -> bytes:
    dataset = cropped(bits=8)
    buffer = io.BytesIO()
    Image.fromarray(dataset.pixel_array).save(buffer, "JPEG")
    return encapsulated(dataset, JPEGBaseline8Bit, [buffer.getvalue()])


def _shipped_jpeg(name: str, syntax: UID) -> bytes:
    """Return the frame of one of pydicom's files, for which there is no encoder, as a slice of ours."""
    source = dcmread(str(get_testdata_file(name, download=False)))
    dataset = real()
    for keyword in ("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation"):
        setattr(dataset, keyword, source[keyword].value)
    return encapsulated(dataset, syntax, [get_frame(source.PixelData, 0, number_of_frames=1)])


def encapsulated(dataset: FileDataset, syntax: UID, frames: list[bytes]) -> bytes:
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate(frames)
    dataset["PixelData"].VR = "OB"
    dataset["PixelData"].is_undefined_length = True
    return content(dataset)


def _enhanced(syntax: UID | None = None) -> bytes:
    pixels = cropped(edge=48).pixel_array
    dataset = _identified(enhanced_mr(np.stack([pixels, pixels // 2, pixels // 4]), plane="transverse"))
    if syntax:
        dataset.compress(syntax, generate_instance_uid=False)
    return content(dataset)


def _implicit() -> bytes:
    dataset = real()
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    return content(dataset)


def _big_endian() -> bytes:
    pixels = cropped().pixel_array
    dataset = _identified(mr_instance(pixels, PixelData=pixels.astype(">u2").tobytes()))
    dataset.file_meta.TransferSyntaxUID = ExplicitVRBigEndian
    buffer = io.BytesIO()
    dcmwrite(buffer, dataset)
    return buffer.getvalue()


BASES: dict[str, Callable[[], bytes]] = {
    "plain": lambda: content(real()),
    "implicit VR": _implicit,
    "big endian": _big_endian,
    "RLE": lambda: _compressed(RLELossless),
    "JPEG-LS": lambda: _compressed(JPEGLSLossless),
    "JPEG 2000": lambda: _compressed(JPEG2000Lossless),
    "JPEG": _jpeg,
    "JPEG 12 bit": lambda: _shipped_jpeg("JPGExtended.dcm", JPEGExtended12Bit),
    "lossless JPEG": lambda: _shipped_jpeg("JPEG-LL.dcm", JPEGLosslessSV1),
    "enhanced": _enhanced,
    "enhanced JPEG 2000": lambda: _enhanced(JPEG2000Lossless),
    "enhanced RLE": lambda: _enhanced(RLELossless),
}


@cache
def base_of(name: str) -> bytes:
    return BASES[name]()
