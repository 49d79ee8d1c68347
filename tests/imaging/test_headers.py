"""Headers that lie, or that would become too much in memory: refused by the name of what is wrong with them."""

import io
import struct
import warnings
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence
from pydicom.uid import ImplicitVRLittleEndian

from limner.imaging import ImageError, decode, find_series, headers, read_header
from limner.imaging.dicom import MAX_PIXELS
from limner.imaging.headers import MAX_SEQUENCE_BYTES, MAX_VALUE_BYTES
from tests.imaging.builders import TRANSVERSE, content, enhanced_mr, mr_instance
from tests.imaging.malformed import attempt

PIXELS = np.arange(48, dtype=np.uint16).reshape(6, 8)
ITEM = b"\xfe\xff\x00\xe0\0\0\0\0"


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def refused(source: bytes | Path, frame: int = 0) -> ImageError:
    found = attempt(source, frame)
    assert isinstance(found, ImageError)
    return found


def implicit(tag: tuple[int, int], value: bytes) -> bytes:
    """A file of implicit VR, in which an element may be of any length, with this one before the raster's."""
    dataset = mr_instance(PIXELS)
    dataset.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    whole = content(dataset)
    place = whole.index(struct.pack("<HH", 0x0028, 0x0002))
    return whole[:place] + struct.pack("<HHI", *tag, len(value)) + value + whole[place:]


def before_raster(raw: bytes) -> bytes:
    whole = content(mr_instance(PIXELS))
    place = whole.index(b"\x28\x00\x02\x00US")
    return whole[:place] + raw + whole[place:]


@pytest.mark.parametrize("frames", ["1000000000", "99999"])
@pytest.mark.parametrize("compressed", [False, True])
def test_no_more_frames_than_a_file_has_room_for(tmp_path: Path, frames: str, compressed: bool) -> None:
    # Each frame of a header is a slice of a series: a thousand million of them took all memory.
    dataset = mr_instance(PIXELS, NumberOfFrames=frames)
    if compressed:
        del dataset.NumberOfFrames
        dataset.compress("1.2.840.10008.1.2.5")
        dataset.NumberOfFrames = frames
    path = tmp_path / "frames.dcm"
    path.write_bytes(content(dataset))
    assert refused(path).field == "NumberOfFrames"
    found = find_series(tmp_path)
    assert not found.series
    ((named, reason),) = found.unreadable
    assert named == path
    assert reason.startswith(f"NumberOfFrames is {frames}; expected at most ")


@pytest.mark.parametrize("padding", [26, 60_000])
def test_a_deflated_file_is_refused_wherever_its_syntax_stands(padding: int) -> None:
    # It would become 64 MiB, or any number; of a syntax behind the first KiB nothing was known.
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    syntax = b"1.2.840.10008.1.2.1.99"
    meta = b"\x02\x00\x02\x00UI" + struct.pack("<H", padding) + b"1" * padding
    meta += b"\x02\x00\x10\x00UI" + struct.pack("<H", len(syntax)) + syntax
    whole = bytes(128) + b"DICM\x02\x00\x00\x00UL\x04\x00" + struct.pack("<I", len(meta)) + meta + block * 64
    assert refused(whole).field == "TransferSyntaxUID"


@pytest.mark.parametrize(
    ("tag", "keyword"),
    [
        ((0x0018, 0x0081), "EchoTime"),
        ((0x0020, 0x0037), "ImageOrientationPatient"),
        ((0x0010, 0x0020), "PatientID"),
        ((0x0020, 0x4000), None),  # ImageComments, a text of any length
    ],
)
def test_a_value_that_would_become_millions_is_refused(tag: tuple[int, int], keyword: str | None) -> None:
    found = attempt(implicit(tag, b"1\\" * 4_000_000))
    if keyword is None:
        assert not isinstance(found, ImageError)
    else:
        assert isinstance(found, ImageError)
        assert (found.field, found.value) == (keyword, "8,000,000 bytes")
    assert not isinstance(attempt(implicit(tag, b"1" * min(16, MAX_VALUE_BYTES))), ImageError) or keyword


def test_a_character_set_of_thousands_is_refused() -> None:
    # pydicom warns of each while it reads.
    assert refused(implicit((0x0008, 0x0005), b"\\" * 4000)).field == "SpecificCharacterSet"


def test_items_without_end_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(headers, "MAX_ELEMENTS", 1000)
    sequence = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff"
    for raw in (
        sequence + ITEM * 1000,
        b"".join(struct.pack("<HH2sH", 0x29, place, b"CS", 0) for place in range(1000)),
    ):
        error = refused(before_raster(raw))
        assert (error.field, error.value) == ("file", "over 1,000 elements and items")
    for tag in (b"\x00\x52\x29\x92", b"\x00\x52\x30\x92"):  # of functional groups, with a length: parsed when looked at
        items = ITEM * (MAX_SEQUENCE_BYTES // len(ITEM) + 1)
        found = refused(before_raster(tag + b"SQ\0\0" + struct.pack("<I", len(items)) + items))
        assert found.field.endswith("FunctionalGroupsSequence")
        assert found.expected == f"at most {MAX_SEQUENCE_BYTES:,} bytes"


def test_sequences_nested_without_end_are_refused() -> None:
    opened = b"\x08\x00\x40\x11SQ\0\0\xff\xff\xff\xff" + ITEM[:4] + b"\xff\xff\xff\xff"
    assert "RecursionError" in refused(before_raster(opened * 10_000)).value


@pytest.mark.parametrize("rows", [4096, 8192])
def test_a_raster_takes_no_more_memory_than_one_of_2_24_pixels(rows: int) -> None:
    error = refused(content(mr_instance(PIXELS, Rows=rows, Columns=8192)))
    assert (error.field, error.value) == ("Rows", f"{rows}, with 8192 Columns")
    assert error.expected == f"at most {MAX_PIXELS:,} pixels"


@pytest.mark.parametrize("text", ["1_0", "１２", "0x10", "inf", "nan", "1e999", "1,5", "--1", "", "1\\2\\3"])
def test_only_what_the_standard_calls_a_number_is_one(text: str) -> None:
    # Python takes the first two for 10 and 12.
    whole = content(mr_instance(PIXELS, PixelSpacing="0.5\\0.75"))
    element = b"\x28\x00\x30\x00DS\x08\x000.5\\0.75"
    value = text.encode()
    value += b" " * (len(value) % 2)
    broken = whole.replace(element, element[:6] + struct.pack("<H", len(value)) + value)
    assert broken != whole
    assert refused(broken).field == "PixelSpacing"


@pytest.mark.parametrize(
    ("attributes", "field", "value"),
    [
        ({"BitsAllocated": 12}, "BitsAllocated", "12"),
        ({"BitsAllocated": None}, "BitsAllocated", "missing"),
        ({"Rows": [6, 6]}, "Rows", "[6, 6]"),
        ({"Modality": ["MR", "CT"]}, "Modality", "['MR', 'CT']"),
        ({"RescaleSlope": "1e300"}, "pixels", "not finite"),
        ({"ModalityLUTSequence": Sequence([Dataset()])}, "ModalityLUTSequence", "present"),
    ],
)
def test_what_would_be_decoded_wrongly_is_named(attributes: dict[str, object], field: str, value: str) -> None:
    error = refused(content(mr_instance(PIXELS, **attributes)))
    assert (error.field, error.value) == (field, value)


def test_an_attribute_that_cannot_be_parsed_is_named() -> None:
    whole = content(mr_instance(PIXELS, RescaleSlope="1", RescaleIntercept="0"))
    error = refused(whole.replace(b"\x28\x00\x53\x10DS\x02\x001 ", b"\x28\x00\x53\x10DS\x02\x00$$"))
    assert error.field == "RescaleSlope"
    assert "$$" in error.value
    broken = content(enhanced_mr(np.stack([PIXELS] * 2))).replace(b"DS\x08\x001.5\\1.25", b"DS\x08\x00abc\\1.25")
    assert refused(broken).field in ("PixelMeasuresSequence", "PixelSpacing")


def test_functional_groups_that_are_none_are_named() -> None:
    whole = content(enhanced_mr(np.stack([PIXELS] * 2)))
    broken = whole.replace(b"\x00\x52\x30\x92SQ", b"\x00\x52\x30\x92UT")
    assert refused(broken).field == "PerFrameFunctionalGroupsSequence"


def test_a_file_cut_within_its_header_says_so() -> None:
    unended = before_raster(b"\x29\x00\x01\x10OB\0\0\xff\xff\xff\xff")
    error = refused(unended)
    assert (error.field, error.value) == ("file", "cut short within its header")


def test_pixels_are_read_with_a_header_only_where_they_are_whole(tmp_path: Path) -> None:
    path = tmp_path / "cut.dcm"
    whole = content(mr_instance(PIXELS))
    path.write_bytes(whole[:-9])
    assert read_header(path, pixels=True).Rows == 6
    dataset = dcmread(io.BytesIO(whole))
    dataset.compress("1.2.840.10008.1.2.5")
    path.write_bytes(content(dataset)[:-20])
    header = read_header(path, pixels=True)
    assert header.Rows == 6
    assert "PixelData" not in header


def test_of_a_header_only_what_is_wanted_is_returned() -> None:
    header = read_header(TRANSVERSE / "10.dcm", only=("SOPInstanceUID",))
    assert "SOPInstanceUID" in header
    assert "PatientID" not in header


@pytest.mark.parametrize("modality", ["\x1b[31mMR", "M\r\nR", "MR" * 50])
def test_a_refusal_can_be_printed_wherever(modality: str) -> None:
    error = refused(content(mr_instance(PIXELS, Modality=modality)))
    assert error.field == "Modality"
    assert error.value.isprintable()
    assert len(error.value) <= 80
    assert ImageError("x", "\ud800\n", "y").value == "  "


def test_a_large_rescaled_image_takes_little_more_than_itself() -> None:
    import tracemalloc

    source = mr_instance(np.zeros((2048, 2048), np.uint16), RescaleSlope="0.5", RescaleIntercept="1")
    tracemalloc.start()
    decode(source)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 15 * 2048 * 2048  # 2 bytes stored, 8 computed, 4 kept
