"""Decoding: real files, real codecs, and every way a file can be wrong."""

import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom import dcmread
from pydicom.data import get_testdata_file
from pydicom.dataset import FileDataset
from pydicom.pixels.decoders.base import JPEGLSLosslessDecoder
from pydicom.uid import JPEGLSLossless

from limner.imaging import ImageError, decode, read_header
from tests.imaging.builders import TRANSVERSE, content, enhanced_mr, mr_instance
from tests.imaging.malformed import attempt
from tests.imaging.malformed_bases import BASES

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

PIXELS = np.arange(48, dtype=np.uint16).reshape(6, 8)


def shipped(name: str) -> Path:
    return Path(str(get_testdata_file(name, download=False)))


def refused(source: bytes | Path | FileDataset, frame: int = 0) -> ImageError:
    with pytest.raises(ImageError) as error:
        decode(source, frame)
    return error.value


def test_a_real_slice_keeps_its_pixels_and_geometry() -> None:
    path = TRANSVERSE / "10.dcm"
    image = decode(path)
    assert image.pixels.shape == (384, 384)
    assert image.pixels.dtype == np.uint16
    assert np.array_equal(image.pixels, dcmread(path).pixel_array)
    assert (image.row_spacing_mm, image.column_spacing_mm) == (0.5, 0.5)
    assert image.orientation == pytest.approx((1, 0, -0.001, 0, 0.948, -0.317), abs=1e-3)
    assert image.position is not None
    assert np.array_equal(decode(path.read_bytes()).pixels, image.pixels)
    assert np.array_equal(decode(dcmread(path)).pixels, image.pixels)


@pytest.mark.parametrize(
    "name",
    [
        "MR_small_RLE.dcm",
        "MR_small_jp2klossless.dcm",
        "MR_small_jpeg_ls_lossless.dcm",
        "MR_small_bigendian.dcm",
        "MR_small_implicit.dcm",
        "MR_small_padded.dcm",
    ],
)
def test_every_syntax_gives_the_pixels_of_the_plain_one(name: str) -> None:
    plain = decode(shipped("MR_small.dcm"))
    image = decode(shipped(name))
    assert image.pixels.dtype == np.int16
    assert np.array_equal(image.pixels, plain.pixels)


def test_jpeg_is_decoded_too() -> None:
    source = dcmread(shipped("JPGExtended.dcm"))
    source.Modality = "MR"
    image = decode(source)
    assert image.pixels.shape == (1024, 256)
    assert image.pixels.max() > 0


def test_spacing_is_of_rows_then_of_columns() -> None:
    image = decode(content(mr_instance(PIXELS)))
    assert (image.row_spacing_mm, image.column_spacing_mm) == (0.5, 0.75)
    assert image.position == (1, 2, 3)


@pytest.mark.parametrize(
    ("stored", "decoded"), [("u1", "uint8"), ("i1", "int16"), ("u2", "uint16"), ("i2", "int16"), ("u4", "float32")]
)
def test_integers_stay_exact(stored: str, decoded: str) -> None:
    pixels = (np.arange(48).reshape(6, 8) - (20 if stored[0] == "i" else 0)).astype(stored)
    image = decode(mr_instance(pixels))
    assert image.pixels.dtype == decoded
    assert np.array_equal(image.pixels, pixels)


def test_a_rescale_gives_the_units_it_describes() -> None:
    image = decode(mr_instance(PIXELS, RescaleSlope="0.5", RescaleIntercept="-3"))
    assert image.pixels.dtype == np.float32
    assert np.array_equal(image.pixels, PIXELS * 0.5 - 3)


def test_a_rescale_that_changes_nothing_keeps_integers() -> None:
    assert decode(mr_instance(PIXELS, RescaleSlope="1", RescaleIntercept="0")).pixels.dtype == np.uint16


def test_monochrome1_is_inverted_within_its_stored_bits() -> None:
    inverted = decode(mr_instance(PIXELS, PhotometricInterpretation="MONOCHROME1", BitsStored=12, HighBit=11))
    assert inverted.pixels.dtype == np.uint16
    assert np.array_equal(inverted.pixels, 4095 - PIXELS)
    signed = decode(mr_instance(PIXELS.astype(np.int16) - 24, PhotometricInterpretation="MONOCHROME1"))
    assert np.array_equal(signed.pixels, 23 - PIXELS.astype(np.int16))


def test_one_frame_of_several_is_decoded() -> None:
    frames = np.stack([PIXELS, PIXELS + 100, PIXELS + 200])
    source = content(mr_instance(frames))
    assert np.array_equal(decode(source, 2).pixels, frames[2])
    assert refused(source, 3).field == "frame"
    assert refused(source, -1).field == "frame"


def test_enhanced_mr_takes_geometry_and_rescale_from_the_frame_s_groups() -> None:
    image = decode(content(enhanced_mr(np.stack([PIXELS, PIXELS, PIXELS]))), 1)
    assert np.array_equal(image.pixels, PIXELS * 2)
    assert (image.row_spacing_mm, image.column_spacing_mm) == (1.5, 1.25)
    assert image.orientation == (0, 1, 0, 0, 0, -1)
    assert image.position == (1, 0, 0)


def test_missing_geometry_other_than_spacing_is_none() -> None:
    source = mr_instance(PIXELS)
    del source.ImageOrientationPatient
    source.ImagePositionPatient = None
    image = decode(source)
    assert image.orientation is None
    assert image.position is None


@pytest.mark.parametrize("source", [b"", b"not DICOM", b"\0" * 128 + b"DICN", b"\x89PNG" + b"\0" * 300])
def test_what_is_not_dicom_is_refused(source: bytes) -> None:
    assert refused(source).field == "file"


def test_a_missing_file_is_no_image_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        decode(tmp_path / "none.dcm")


@pytest.mark.parametrize(
    ("attributes", "field", "value"),
    [
        ({"Modality": "CT"}, "Modality", "CT"),
        ({"Modality": None}, "Modality", "missing"),
        ({"Rows": None}, "PixelData", "missing"),
        ({"Rows": 1, "Columns": 1}, "Rows", "1"),
        ({"Rows": 8193}, "Rows", "8193"),
        ({"Columns": 20000}, "Columns", "20000"),
        ({"SamplesPerPixel": 3, "PhotometricInterpretation": "RGB"}, "SamplesPerPixel", "3, a colour image"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PhotometricInterpretation", "PALETTE COLOR"),
        ({"PixelSpacing": None}, "PixelSpacing", "missing"),
        ({"PixelSpacing": [0, 0]}, "PixelSpacing", "0\\0"),
        ({"PixelSpacing": [-1, 1]}, "PixelSpacing", "-1\\1"),
        ({"PixelSpacing": [1]}, "PixelSpacing", "1.0"),
        ({"PixelSpacing": [1, 1, 1]}, "PixelSpacing", "1.0\\1.0\\1.0"),
        ({"PixelSpacing": [1, 1e6]}, "PixelSpacing", "1\\1e+06"),
        ({"ImageOrientationPatient": [1, 0]}, "ImageOrientationPatient", "1.0\\0.0"),
        ({"RescaleSlope": 0}, "RescaleSlope", "0.0"),
        ({"NumberOfFrames": 0}, "NumberOfFrames", "0"),
    ],
)
def test_a_wrong_attribute_is_named_with_its_value(attributes: dict[str, object], field: str, value: str) -> None:
    error = refused(content(mr_instance(PIXELS, **attributes)))
    assert (error.field, error.value) == (field, value)


def test_a_spacing_that_is_no_number_is_named() -> None:
    source = content(mr_instance(PIXELS)).replace(b"0.5\\0.75", b"0.5\\0,75")
    assert "0,75" in str(refused(source))


def test_colour_is_refused() -> None:
    source = dcmread(shipped("SC_rgb_rle.dcm"))
    source.Modality = "MR"
    assert refused(source).field == "SamplesPerPixel"


def test_an_instance_without_pixels_is_refused() -> None:
    source = mr_instance(PIXELS)
    del source.PixelData
    assert refused(content(source)).field == "PixelData"
    assert refused(source).field == "PixelData"


def test_truncated_pixels_are_refused() -> None:
    error = refused(content(mr_instance(PIXELS))[:-40])
    assert error.field == "PixelData"
    assert "6 x 8" in str(error)
    assert refused(shipped("MR_truncated.dcm")).field == "PixelData"
    assert refused(shipped("MR_small_RLE.dcm").read_bytes()[:-2000]).field == "PixelData"


def test_a_syntax_that_is_no_image_s_is_named() -> None:
    source = content(mr_instance(PIXELS))
    assert refused(source.replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.9.9.9\0")).field == "TransferSyntaxUID"


def test_a_deflated_file_is_refused_before_it_unfolds() -> None:
    assert refused(shipped("image_dfl.dcm")).value == "Deflated Explicit VR Little Endian"


def test_a_missing_decoder_is_named_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for plugin in JPEGLSLosslessDecoder.available_plugins:
        monkeypatch.delitem(JPEGLSLosslessDecoder._available, plugin)
    error = refused(shipped("MR_small_jpeg_ls_lossless.dcm"))
    assert error.field == "TransferSyntaxUID"
    assert error.value == JPEGLSLossless.name[:80]
    assert "limner[codecs]" in str(error)


def test_a_dataset_without_its_meta_information_is_refused() -> None:
    source = mr_instance(PIXELS)
    del source.file_meta.TransferSyntaxUID
    assert refused(source).field == "TransferSyntaxUID"


def test_an_image_too_large_is_refused_without_reading_its_pixels(tmp_path: Path) -> None:
    path = tmp_path / "large.dcm"
    header = content(mr_instance(PIXELS, Rows=20000, Columns=20000))
    size = 20000 * 20000 * 2
    start = header.rindex(PIXELS.tobytes())
    with path.open("wb") as file:
        file.write(header[: start - 4] + size.to_bytes(4, "little"))
        # Sparse: 800 MB to a reader, nothing on the disk.
        file.truncate(start + size)
    tracemalloc.start()
    assert refused(path).value == "20000"
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 << 20


def test_a_header_holds_no_pixels() -> None:
    header = read_header(TRANSVERSE / "10.dcm")
    assert header.PatientID == "ProstateX-0000"
    assert "PixelData" not in header


SMALL = shipped("MR_small.dcm").read_bytes()
COMPRESSED = [shipped(f"MR_small_{name}.dcm").read_bytes() for name in ("RLE", "jp2klossless", "jpeg_ls_lossless")]
ENHANCED = content(enhanced_mr(np.stack([PIXELS, PIXELS])))


@settings(max_examples=150, deadline=None)
@given(original=st.sampled_from([SMALL, ENHANCED, *COMPRESSED]), fraction=st.floats(0, 1))
def test_a_file_cut_anywhere_decodes_or_is_refused(original: bytes, fraction: float) -> None:
    attempt(original[: int(fraction * len(original))])


@settings(max_examples=250, deadline=None)
@given(
    original=st.sampled_from([SMALL, ENHANCED, *COMPRESSED]),
    changes=st.lists(st.tuples(st.integers(0, 2500), st.integers(0, 255)), min_size=1, max_size=8),
)
def test_a_file_with_changed_bytes_decodes_or_is_refused(original: bytes, changes: list[tuple[int, int]]) -> None:
    broken = bytearray(original)
    for place, value in changes:
        broken[place % len(broken)] = value
    attempt(bytes(broken))


def test_a_panic_of_a_codec_is_an_image_error() -> None:
    # Found by the test above: an RLE segment that runs past the image makes the Rust decoder panic.
    broken = bytearray(COMPRESSED[0])
    start = broken.index(b"\xfe\xff\x00\xe0", broken.index(b"\xe0\x7f\x10\x00") + 20) + 8
    broken[start + 8] = 0
    assert refused(bytes(broken)).field == "PixelData"


@settings(max_examples=100, deadline=None)
@given(noise=st.binary(max_size=400))
def test_noise_after_a_preamble_is_refused(noise: bytes) -> None:
    attempt(b"\0" * 128 + b"DICM" + noise)


def test_nothing_that_identifies_the_patient_is_in_a_slice() -> None:
    image = decode(TRANSVERSE / "10.dcm")
    assert set(vars(image)) == {"pixels", "row_spacing_mm", "column_spacing_mm", "orientation", "position"}
    assert isinstance(image.pixels, np.ndarray)
    assert "ProstateX" not in repr(image)
    assert image.pixels.base is None or isinstance(image.pixels.base, np.ndarray | bytes | bytearray)


def test_the_sdk_decodes_without_torch() -> None:
    script = "import sys, limner.imaging.dicom; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", script], check=True)


ODD = """
import logging, sys
from pathlib import Path
from limner.imaging import ImageError, decode, read_header
from limner.imaging.quiet import hush_dicom
logging.basicConfig()
HUSH
print(read_header(Path(sys.argv[1])).PatientID)
try:
    decode(Path(sys.argv[1]))
except ImageError as error:
    print(error)
"""


@pytest.mark.parametrize("hushed", [False, True])
def test_pydicom_s_own_remarks_can_be_kept_from_the_log(tmp_path: Path, hushed: bool) -> None:
    # It quotes what it finds in headers, and logs the stack of each codec that fails.
    source = BASES["RLE"]().replace(b"\x02\0\0\0\x40\0\0\0", b"\x02\0\0\0\xff\xff\xff\xff")  # first segment
    path = tmp_path / "odd.dcm"
    path.write_bytes(source.replace(b"\x10\x00\x20\x00LO", b"\x10\x00\x20\x00UI"))
    script = ODD.replace("HUSH", "hush_dicom()" if hushed else "pass")
    ended = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=True)
    assert "PixelData is not decodable: pylibjpeg: Invalid segment offset" in ended.stdout
    assert ("ProstateX-0000" in ended.stderr, "Traceback" in ended.stderr) == (not hushed, not hushed)
    assert (ended.stderr == "") is hushed
