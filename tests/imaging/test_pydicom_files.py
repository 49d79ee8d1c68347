"""pydicom's own test files, all that carry pixels: each frame is decoded as pydicom does, or refused with a reason.

They are those of pydicom's wheel and of pydicom-data. Most are no MR and are refused before their pixels are looked at,
so each is decoded twice: as it is, and as a copy that says it is MR and gives a spacing.
"""

from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import numpy as np
import pydicom
import pytest
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.data.data_manager import DataTypes, external_data_sources
from pydicom.dataset import Dataset, FileDataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels.utils import pixel_array
from pydicom.uid import (
    JPEG2000,
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    JPEGLSNearLossless,
    RLELossless,
)

from limner.imaging import ImageError, decode
from tests.imaging.malformed import attempt

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
# Grey, decoded by pydicom, and refused all the same.
REFUSED = {"mlut_18.dcm": "ModalityLUTSequence"}


def files() -> Iterator[tuple[str, Path]]:
    """Every readable file with pixels, by a name of its own."""
    shipped = Path(pydicom.__file__).parent / "data" / "test_files"
    more = external_data_sources()["pydicom-data"].get_paths("*.dcm", DataTypes.DATASET)
    for path in sorted({*shipped.rglob("*"), *map(Path, more)}, key=str):
        try:
            if path.is_file() and any(keyword in dcmread(path) for keyword in PIXELS):
                yield (str(path.relative_to(shipped)) if shipped in path.parents else path.name), path
        except (InvalidDicomError, OSError, EOFError):
            continue


FILES = dict(files())


def as_mr(name: str) -> FileDataset:
    dataset = dcmread(FILES[name])
    dataset.Modality = "MR"
    dataset.PixelSpacing = [1, 1]
    return dataset


def frames(dataset: Dataset) -> int:
    try:
        return int(dataset.get("NumberOfFrames") or 1)
    except ValueError:
        return 1


def expected(dataset: FileDataset, frame: int) -> NDArray[np.generic] | None:
    """What pydicom makes of a frame, rescaled, larger being brighter; None where it cannot."""
    try:
        stored = pixel_array(dataset, index=frame)
    except Exception:
        return None
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        assert dataset.PixelRepresentation == 0
        stored = 2**dataset.BitsStored - 1 - stored
    slope, intercept = (transformation(dataset, frame, keyword) for keyword in ("RescaleSlope", "RescaleIntercept"))
    if (slope or 1, intercept or 0) == (1, 0):
        return stored
    return (stored.astype(np.float64) * (slope or 1) + (intercept or 0)).astype(np.float32)


def transformation(dataset: FileDataset, frame: int, keyword: str) -> float | None:
    shared = dataset.get("SharedFunctionalGroupsSequence", [])[:1]
    for place in (*dataset.get("PerFrameFunctionalGroupsSequence", [])[frame : frame + 1], *shared, dataset):
        for element in place.iterall():
            if element.keyword == keyword:
                return float(element.value)
    return None


def should_be_refused(name: str, dataset: Dataset, frame: int) -> set[str]:
    """The fields of which one should be named; none where the frame should be decoded."""
    if dataset.get("SamplesPerPixel", 1) != 1:
        return {"SamplesPerPixel"}
    if dataset.get("PhotometricInterpretation") == "PALETTE COLOR":
        return {"PhotometricInterpretation"}
    if name in REFUSED:
        return {REFUSED[name]}
    if expected(dataset, frame) is None:
        return {"PixelData", "NumberOfFrames"}
    return set()


@cache
def outcomes(name: str) -> tuple[bool, ...]:
    """Check every frame of a file as MR; return which of them were decoded."""
    dataset = as_mr(name)
    decoded = []
    for frame in range(frames(dataset)):
        refusals = should_be_refused(name, dataset, frame)
        found = attempt(dataset, frame)
        if isinstance(found, ImageError):
            assert found.field in refusals, f"frame {frame}: {found}"
        else:
            assert not refusals
            pixels = expected(dataset, frame)
            assert pixels is not None
            assert np.array_equal(found.pixels, pixels)
            # No wider than need be: what pydicom returns, in our byte order, unless a rescale makes floats of it.
            wider = {"i1": np.dtype("i2"), "u4": np.dtype("f4"), "i4": np.dtype("f4")}
            assert found.pixels.dtype == wider.get(pixels.dtype.str[1:], pixels.dtype.newbyteorder("="))
        decoded.append(not refusals)
    return tuple(decoded)


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_decoded_as_it_is_or_refused(name: str) -> None:
    dataset = dcmread(FILES[name])
    found = attempt(FILES[name])
    if not isinstance(found, ImageError):
        assert dataset.Modality == "MR"
        assert np.array_equal(found.pixels, expected(dataset, 0))
        assert (found.row_spacing_mm, found.column_spacing_mm) == tuple(dataset.PixelSpacing)


@pytest.mark.parametrize("name", FILES)
def test_every_frame_is_pydicom_s_or_refused_where_it_should(name: str) -> None:
    outcomes(name)


def test_files_of_every_syntax_are_decoded() -> None:
    decoded: Counter[UID] = Counter()
    for name in FILES:
        if any(outcomes(name)):
            decoded[dcmread(FILES[name], stop_before_pixels=True).file_meta.TransferSyntaxUID] += 1
    at_least = {
        ImplicitVRLittleEndian: 3,
        ExplicitVRLittleEndian: 50,
        ExplicitVRBigEndian: 7,
        DeflatedExplicitVRLittleEndian: 1,  # of a dataset in memory; a file is refused before it is inflated
        RLELossless: 4,
        JPEGExtended12Bit: 1,
        JPEGLosslessSV1: 3,
        JPEGLSLossless: 2,
        JPEGLSNearLossless: 2,
        JPEG2000Lossless: 8,
        JPEG2000: 5,
    }
    assert {syntax: min(decoded[syntax], number) for syntax, number in at_least.items()} == at_least


@pytest.mark.parametrize(
    ("compressed", "plain"),
    [
        *((f"{name}_J2KR.dcm", f"{name}_UNCR.dcm") for name in ("693", "MR2", "RG1", "RG3")),
        *(
            (f"emri_small_{kind}.dcm", "emri_small.dcm")
            for kind in ("RLE", "big_endian", "jpeg_2k_lossless", "jpeg_ls_lossless")
        ),
        *(
            (f"MR_small_{kind}.dcm", "MR_small.dcm")
            for kind in ("RLE", "jp2klossless", "jpeg_ls_lossless", "bigendian")
        ),
    ],
)
def test_lossless_syntaxes_give_the_pixels_of_the_plain_file(compressed: str, plain: str) -> None:
    ours, theirs = as_mr(compressed), as_mr(plain)
    for dataset in (ours, theirs):  # twins may differ in these
        for keyword in ("RescaleSlope", "RescaleIntercept"):
            dataset.pop(keyword, None)
    for frame in range(frames(theirs)):
        assert np.array_equal(decode(ours, frame).pixels, decode(theirs, frame).pixels)
