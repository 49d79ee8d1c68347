"""From DICOM to a `Slice`: one frame of an MR image, decoded, in the file's own units.

Works on MR Image Storage, multi-frame and Enhanced MR, in any transfer syntax with an installed decoder. Everything
that decides how much memory a frame takes is checked before a pixel is decoded. It does not resample (`grid.py`),
choose series (`selection.py`) or keep anything that identifies the patient.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from os import SEEK_CUR
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate, get_frame
from pydicom.pixels.decoders.base import Decoder, get_decoder
from pydicom.pixels.utils import as_pixel_options, pixel_array
from pydicom.uid import UID

from limner.imaging.codestream import check_codestream
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
    transfer_syntax,
    value_of,
)
from limner.imaging.slices import DTYPES, MAX_EDGE, MIN_EDGE, Slice, checked_frame

Pixels = NDArray[np.generic]

# A file up to this size is read at once, in half the time; of a larger one, the header and then the frame.
WHOLE_BYTES = 32 << 20
# A frame compresses to next to nothing; decoded and rescaled, one of so many pixels takes 250 MB.
MAX_PIXELS = 1 << 24

# pydicom would try all that are installed, one after the other. pyjpegls is left out: it takes 10 s to refuse some
# JPEG-LS frames of 64 x 64 pixels.
_PLUGINS = ("pylibjpeg", "pillow", "pydicom")

__all__ = ["can_decode", "decode", "read_header"]


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
        2 pixels along an edge or than 2^24 in all, without a usable PixelSpacing, in a syntax without a decoder, asks
        for more memory than its frame can need, or has no such frame.
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
    return read_header(source, pixels=size <= WHOLE_BYTES)


def can_decode(syntax: UID) -> bool:
    """Return whether a decoder for images in a transfer syntax is installed."""
    try:
        decoder = get_decoder(syntax)
    except NotImplementedError:
        return False
    return not decoder.is_encapsulated or _plugin(decoder) is not None


def _plugin(decoder: Decoder) -> str | None:
    return next((name for name in _PLUGINS if name in decoder.available_plugins), None)


def _check(header: Dataset, frame: int | None) -> int:
    """Return the frame that is meant."""
    modality = value_of(header, "Modality")
    if modality != "MR":
        raise ImageError("Modality", modality or "missing", "MR")
    if value_of(header, "Rows") is None or value_of(header, "Columns") is None:
        raise ImageError("PixelData", "missing", "an instance with pixels")
    samples = integer("SamplesPerPixel", value_of(header, "SamplesPerPixel"), 1)
    if samples != 1:
        raise ImageError("SamplesPerPixel", f"{samples}, a colour image", "1, a grey image")
    photometric = value_of(header, "PhotometricInterpretation")
    if photometric not in ("MONOCHROME1", "MONOCHROME2"):
        raise ImageError("PhotometricInterpretation", photometric or "missing", "MONOCHROME1 or MONOCHROME2")
    _check_size(header)
    if value_of(header, "ModalityLUTSequence") is not None:
        raise ImageError("ModalityLUTSequence", "present", "none; RescaleSlope and RescaleIntercept (PS3.3 C.11.1)")
    frame = checked_frame(frame, frame_count(header))
    _check_syntax(header)
    return frame


def _check_size(header: Dataset) -> None:
    rows, columns = (integer(keyword, value_of(header, keyword), 0) for keyword in ("Rows", "Columns"))
    for keyword, edge in (("Rows", rows), ("Columns", columns)):
        if not MIN_EDGE <= edge <= MAX_EDGE:
            raise ImageError(keyword, edge, f"{MIN_EDGE} to {MAX_EDGE} pixels")
    if rows * columns > MAX_PIXELS:
        raise ImageError("Rows", f"{rows}, with {columns} Columns", f"at most {MAX_PIXELS:,} pixels")
    bits = integer("BitsAllocated", value_of(header, "BitsAllocated"), 1)
    if bits not in (1, 8, 16, 32, 64):
        raise ImageError("BitsAllocated", bits, "1, 8, 16, 32 or 64")


def _check_syntax(header: Dataset) -> None:
    syntax = transfer_syntax(header)
    if syntax is None:
        raise ImageError("TransferSyntaxUID", "missing", "a DICOM file with its file meta information (PS3.10 7.1)")
    if can_decode(syntax):
        return
    try:
        get_decoder(syntax)
    except NotImplementedError:
        raise ImageError("TransferSyntaxUID", syntax.name, "a transfer syntax of single images") from None
    expected = "a syntax with an installed decoder; pip install 'limner[codecs]' brings them"
    raise ImageError("TransferSyntaxUID", syntax.name, expected)


def _stored(source: bytes | Path | Dataset, header: Dataset, frame: int) -> Pixels:
    """Return the stored values of a frame, `(rows, columns)`."""
    shape = (int(header.Rows), int(header.Columns))
    decoder = get_decoder(header.file_meta.TransferSyntaxUID)
    try:
        if decoder.is_encapsulated:
            pixels = _decompressed(source, header, frame, decoder)
        elif isinstance(source, Dataset) or "PixelData" in header:
            pixels = pixel_array(header, index=frame)
        else:
            with open_source(source) as file:
                pixels = pixel_array(file, index=frame)
    except ImageError:
        raise
    except AttributeError as error:
        raise ImageError("PixelData", f"missing or undescribed: {error}", "an instance with pixels") from error
    # Each codec has exceptions of its own, and a Rust one's panic is no Exception; all say that the bytes are no image.
    except BaseException as error:
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        cause = str(error).rpartition("by all available plugins:")[2].strip()
        expected = f"whole, readable pixel data of {shape[0]} x {shape[1]} pixels"
        raise ImageError("PixelData", f"not decodable: {cause}", expected) from error
    if pixels.shape != shape:
        raise ImageError("PixelData", f"a raster of shape {pixels.shape}", f"{shape}, as Rows and Columns say")
    return pixels.astype(pixels.dtype.newbyteorder("="), copy=False)


def _decompressed(source: bytes | Path | Dataset, header: Dataset, frame: int, decoder: Decoder) -> Pixels:
    """Decompress a frame by one codec, after a look at what the codec would be asked for."""
    options = as_pixel_options(header, number_of_frames=1)
    offsets = options.pop("extended_offsets", None)
    with _encapsulated(source, header) as data:
        codestream = get_frame(data, frame, number_of_frames=frame_count(header), extended_offsets=offsets)
    check_codestream(codestream, decoder.UID, header.Rows, header.Columns)
    alone = encapsulate([codestream], has_bot=False)
    return decoder.as_array(alone, index=0, decoding_plugin=_plugin(decoder) or "", **options)[0]


@contextmanager
def _encapsulated(source: bytes | Path | Dataset, header: Dataset) -> Iterator[BinaryIO]:
    """Open encapsulated pixels at their first item, the table of offsets (PS3.5 A.4)."""
    if isinstance(source, Dataset) or "PixelData" in header:
        yield BytesIO(header.PixelData)
        return
    with open_source(source) as file:
        dcmread(file, stop_before_pixels=True)
        file.seek(12, SEEK_CUR)  # tag, VR and length of PixelData (PS3.5 7.1.2)
        yield file


def _values(header: Dataset, frame: int, stored: Pixels) -> Pixels:
    """Invert MONOCHROME1 within the stored range (PS3.3 C.7.6.3.1.2), then rescale (C.11.1)."""
    if header.PhotometricInterpretation == "MONOCHROME1":
        stored = _inverted(stored, integer("BitsStored", value_of(header, "BitsStored"), 1))
    slope = _rescale(header, "RescaleSlope", frame, 1.0)
    intercept = _rescale(header, "RescaleIntercept", frame, 0.0)
    if slope == 0:
        raise ImageError("RescaleSlope", slope, "a number other than 0")
    with np.errstate(over="ignore"):  # what overflows is refused as not finite
        if (slope, intercept) != (1, 0):
            values = stored.astype(np.float64)
            values *= slope
            values += intercept
            return values.astype(np.float32)
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
