"""Compressed frames are looked at before a codec is: what takes a codec gigabytes or minutes never reaches it."""

import io
import struct
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydicom import dcmread
from pydicom.encaps import get_frame
from pydicom.uid import JPEG2000, UID, JPEGBaseline8Bit, JPEGLSLossless

from limner.imaging import ImageError, decode
from limner.imaging.codestream import MAX_PIECES, check_codestream
from tests.imaging.malformed_bases import BASES
from tests.imaging.malformed_codestreams import jpeg_2000

COMPRESSED = ("JPEG-LS", "JPEG 2000", "JPEG", "JPEG 12 bit", "lossless JPEG", "enhanced JPEG 2000")


def frame_of(base: str) -> tuple[bytes, UID, int, int]:
    dataset = dcmread(io.BytesIO(BASES[base]()))
    frames = int(dataset.get("NumberOfFrames", 1))
    return get_frame(dataset.PixelData, 0, number_of_frames=frames), *(
        dataset.file_meta.TransferSyntaxUID,
        dataset.Rows,
        dataset.Columns,
    )


FRAMES = {base: frame_of(base) for base in COMPRESSED}


def refused(frame: bytes, syntax: UID, rows: int, columns: int) -> str:
    with pytest.raises(ImageError) as error:
        check_codestream(frame, syntax, rows, columns)
    assert error.value.field == "PixelData"
    assert error.value.expected == f"one whole grey image of {rows} x {columns} pixels"
    return error.value.value


@pytest.mark.parametrize("base", COMPRESSED)
def test_a_whole_frame_passes(base: str) -> None:
    frame, *described = FRAMES[base]
    check_codestream(frame, *described)
    check_codestream(frame.rstrip(b"\0") + b"\0", *described)  # padded to even length


@pytest.mark.parametrize("base", COMPRESSED)
def test_a_raster_other_than_the_header_s_is_named(base: str) -> None:
    frame, syntax, rows, columns = FRAMES[base]
    assert f"of {rows} x {columns} pixels" in refused(frame, syntax, rows, columns + 1)
    assert f"of {rows} x {columns} pixels" in refused(frame, syntax, 8192, columns)


@settings(max_examples=300, deadline=None)
@given(base=st.sampled_from(COMPRESSED), fraction=st.floats(0, 1, exclude_max=True))
def test_a_frame_cut_anywhere_is_refused(base: str, fraction: float) -> None:
    frame, *described = FRAMES[base]
    whole = frame[: frame.rindex(b"\xff\xd9") + 2]
    refused(whole[: int(fraction * len(whole))], *described)


def test_a_codec_would_take_a_frame_that_is_cut_short() -> None:
    # Why the end is looked for: libjpeg fills the rest up and says nothing.
    dataset = dcmread(io.BytesIO(BASES["JPEG-LS"]()))
    frame = FRAMES["JPEG-LS"][0]
    place = BASES["JPEG-LS"]().index(frame)
    broken = bytearray(BASES["JPEG-LS"]())
    broken[place + len(frame) // 2 : place + len(frame)] = bytes(len(frame) - len(frame) // 2)
    assert dcmread(io.BytesIO(bytes(broken))).pixel_array.shape == (dataset.Rows, dataset.Columns)
    with pytest.raises(ImageError, match="JPEG-LS codestream that is cut short"):
        decode(bytes(broken))


@pytest.mark.parametrize("base", ["JPEG", "JPEG 12 bit", "lossless JPEG", "JPEG-LS"])
def test_a_second_scan_is_refused(base: str) -> None:
    # libjpeg goes over the whole raster for each of them: a thousand take minutes.
    frame, *described = FRAMES[base]
    scan = frame.index(b"\xff\xda")
    assert refused(frame[:-2].rstrip(b"\xff\xd9") + frame[scan:], *described) == (
        f"a {'JPEG-LS' if base == 'JPEG-LS' else 'JPEG'} codestream with marker DA after its scan"
    )


def test_other_frame_headers_than_those_of_one_pass_are_refused() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(buffer, "JPEG", progressive=True)
    assert "with frame headers C2" in refused(buffer.getvalue(), JPEGBaseline8Bit, 8, 8)
    frame, *described = FRAMES["JPEG"]
    header = frame.index(b"\xff\xc0")
    (length,) = struct.unpack_from(">H", frame, header + 2)
    segment = frame[header : header + 2 + length]
    assert "with frame headers C0 C0" in refused(frame[:header] + segment + frame[header:], *described)
    assert "with frame headers DE C0" in refused(
        frame[:header] + b"\xff\xde" + segment[2:] + frame[header:], *described
    )
    assert "without its start" in refused(b"\x89PNG", JPEGLSLossless, 8, 8)


@pytest.mark.parametrize(
    ("changes", "pieces"),
    [
        # 9 GB and 29 s in OpenJPEG, of 100 bytes whose raster is the header's own.
        ({"levels": 0, "precincts": b"\0"}, 4096 * 4096),
        ({"precincts": b"\x11" * 6}, 6 * 2048 * 2048),
        ({"layers": 65535}, 65535 * 6),
        ({"block": 0}, 1024 * 1024),
        ({"tile": (8, 8)}, 512 * 512 * 6),
    ],
)
def test_more_pieces_than_an_image_needs_are_refused(changes: dict[str, Any], pieces: int) -> None:
    assert pieces > MAX_PIECES
    assert f"in {pieces:,} pieces" in refused(jpeg_2000(4096, 4096, **changes), JPEG2000, 4096, 4096)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"tile": (64, 64)},
        {"block": 1},
        {"layers": 12},
        {"precincts": b"\x66" * 6},
        {"precincts": b"\x88" * 6, "layers": 20},
    ],
)
def test_what_encoders_write_passes(changes: dict[str, Any]) -> None:
    check_codestream(jpeg_2000(4096, 4096, **changes), JPEG2000, 4096, 4096)


STYLE = b"\xff\x52\x00\x0c\0\0\0\1\0\0\4\4\0\1"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"components": 3}, "3 components"),
        ({"tile": (0, 4096)}, "with tiles of 4096 x 0 pixels"),
        ({"main": b"\xff\x53\x00\x03\0"}, "with marker 53 in its header"),
        ({"main": b"\xff\x6f\x00\x02"}, "with marker 6F in its header"),
        ({"part": STYLE}, "with marker 52 in a tile-part"),
    ],
)
def test_what_could_ask_for_more_later_is_refused(changes: dict[str, Any], words: str) -> None:
    assert words in refused(jpeg_2000(4096, 4096, **changes), JPEG2000, 4096, 4096)


def test_a_jp2_file_is_no_codestream() -> None:
    buffer = io.BytesIO()
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(buffer, "JPEG2000")
    assert "without its start" in refused(buffer.getvalue(), JPEG2000, 8, 8)
