"""From DICOM to a `Slice`: one frame of an MR image, decoded, in the file's own units.

Works on MR Image Storage, multi-frame and Enhanced MR, in any transfer syntax with an installed decoder. Everything
that decides how much memory a frame takes is checked before a pixel is decoded. It does not resample (`grid.py`),
choose series (`selection.py`) or keep anything that identifies the patient.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.pixels.decoders.base import get_decoder
from pydicom.pixels.utils import pixel_array

from limner.imaging.errors import ImageError
from limner.imaging.headers import (
    as_image_errors,
    frame_count,
    frame_value,
    integer,
    numbers,
    open_source,
    orientation,
    pixel_spacing,
    position,
    read_header,
)
from limner.imaging.slices import DTYPES, MAX_EDGE, MIN_EDGE, Slice, checked_frame

Pixels = NDArray[np.generic]

# A file up to this size is read at once, in half the time; of a larger one, the header and then the frame.
WHOLE_BYTES = 32 << 20

__all__ = ["decode", "read_header"]


@as_image_errors
def decode(source: bytes | Path | Dataset, frame: int | None = 0) -> Slice:
    """Return one frame of an MR image.

    The stored values keep their integer type where the rescale is the identity and are float32 otherwise. MONOCHROME1
    is inverted, so that larger is brighter. Only the frame that is asked for is decoded.

    Parameters
    ----------
    source
        The content of a DICOM file, its path, or a dataset with its file meta information.
    frame
        0 to the number of frames less 1; None: the only one.

    Raises
    ------
    ImageError
        When it is not DICOM, not MR, in colour, without pixels, truncated or corrupt, larger than 8192 or smaller than
        2 pixels along an edge, without a usable PixelSpacing, in a syntax without a decoder, or has no such frame.
    OSError
        When the file cannot be opened or read.
    """
    header = source if isinstance(source, Dataset) else _read(source)
    frame = _check(header, frame)
    row_spacing, column_spacing = pixel_spacing(header, frame)
    return Slice(
        pixels=_values(header, frame, _stored(source, header, frame)),
        row_spacing_mm=row_spacing,
        column_spacing_mm=column_spacing,
        orientation=orientation(header, frame),
        position=position(header, frame),
    )


def _read(source: bytes | Path) -> Dataset:
    size = len(source) if isinstance(source, bytes) else source.stat().st_size
    if size <= WHOLE_BYTES:
        whole = read_header(source, pixels=True)
        # Of a file that ends within its pixels, pydicom returns nothing at all.
        if "PixelData" in whole:
            return whole
    return read_header(source)


def _check(header: Dataset, frame: int | None) -> int:
    """Return the frame that is meant."""
    modality = header.get("Modality")
    if modality != "MR":
        raise ImageError("Modality", modality or "missing", "MR")
    if header.get("Rows") is None or header.get("Columns") is None:
        raise ImageError("PixelData", "missing", "an instance with pixels")
    samples = integer("SamplesPerPixel", header.get("SamplesPerPixel"), 1)
    if samples != 1:
        raise ImageError("SamplesPerPixel", f"{samples}, a colour image", "1, a grey image")
    photometric = header.get("PhotometricInterpretation")
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise ImageError("PhotometricInterpretation", photometric or "missing", "MONOCHROME1 or MONOCHROME2")
    for keyword in ("Rows", "Columns"):
        edge = integer(keyword, header.get(keyword), 0)
        if not MIN_EDGE <= edge <= MAX_EDGE:
            raise ImageError(keyword, edge, f"{MIN_EDGE} to {MAX_EDGE} pixels")
    frame = checked_frame(frame, frame_count(header))
    _check_decoder(header)
    return frame


def _check_decoder(header: Dataset) -> None:
    syntax = getattr(header, "file_meta", Dataset()).get("TransferSyntaxUID")
    if syntax is None:
        raise ImageError("TransferSyntaxUID", "missing", "a DICOM file with its file meta information (PS3.10 7.1)")
    try:
        available = get_decoder(syntax).is_available
    except NotImplementedError:
        raise ImageError("TransferSyntaxUID", syntax.name, "a transfer syntax of single images") from None
    if not available:
        expected = "a syntax with an installed decoder; pip install 'limner[codecs]' brings them"
        raise ImageError("TransferSyntaxUID", syntax.name, expected)


def _stored(source: bytes | Path | Dataset, header: Dataset, frame: int) -> Pixels:
    """Return the stored values of a frame, `(rows, columns)`."""
    shape = (int(header.Rows), int(header.Columns))
    try:
        if isinstance(source, Dataset) or "PixelData" in header:
            pixels = pixel_array(header, index=frame)
        else:
            with open_source(source) as file:
                pixels = pixel_array(file, index=frame)
    except AttributeError as error:
        raise ImageError("PixelData", f"missing or undescribed: {error}", "an instance with pixels") from error
    # Each codec has exceptions of its own, and a Rust one's panic is no Exception; all say that the bytes are no image.
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        expected = f"whole, readable pixel data of {shape[0]} x {shape[1]} pixels"
        raise ImageError("PixelData", f"not decodable: {error}", expected) from error
    if pixels.shape != shape:
        raise ImageError("PixelData", f"a raster of shape {pixels.shape}", f"{shape}, as Rows and Columns say")
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def _values(header: Dataset, frame: int, stored: Pixels) -> Pixels:
    """Invert MONOCHROME1 within the stored range (PS3.3 C.7.6.3.1.2), then rescale (C.11.1)."""
    if header.PhotometricInterpretation == "MONOCHROME1":
        stored = _inverted(stored, integer("BitsStored", header.get("BitsStored"), 1))
    slope = _rescale(header, "RescaleSlope", frame, 1.0)
    intercept = _rescale(header, "RescaleIntercept", frame, 0.0)
    if slope == 0:
        raise ImageError("RescaleSlope", slope, "a number other than 0")
    if (slope, intercept) != (1, 0):
        return (stored.astype(np.float64) * slope + intercept).astype(np.float32)
    if stored.dtype == np.int8:
        return stored.astype(np.int16)
    return stored if stored.dtype in DTYPES else stored.astype(np.float32)


def _rescale(header: Dataset, keyword: str, frame: int, default: float) -> float:
    value = frame_value(header, keyword, frame)
    return default if value is None else numbers(keyword, value, 1, "a number")[0]


def _inverted(stored: Pixels, bits: int) -> Pixels:
    if stored.dtype.kind == "f":
        return np.negative(stored)
    bits = min(bits, stored.dtype.itemsize * 8)
    low, high = (-(1 << bits - 1), (1 << bits - 1) - 1) if stored.dtype.kind == "i" else (0, (1 << bits) - 1)
    return np.subtract(low + high, np.clip(stored, low, high), dtype=stored.dtype)
