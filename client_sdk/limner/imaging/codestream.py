"""What a compressed frame says of itself, read before a codec is let near it.

A codec takes memory and time for what the codestream claims, not for what the DICOM header does: a hundred bytes can
ask for gigabytes, or for hours. So a frame has to be one whole grey image of the header's size, in no more pieces than
such an image needs. Nothing is decoded here. RLE is not looked at: its decoder takes no more than the header says.

JPEG is ISO/IEC 10918-1 annex B, JPEG-LS ISO/IEC 14495-1 annex C, JPEG 2000 ISO/IEC 15444-1 annex A.
"""

import re
import struct
from collections.abc import Callable, Iterator
from functools import partial
from struct import unpack_from
from typing import NamedTuple

from pydicom.uid import UID, JPEG2000TransferSyntaxes, JPEGLSTransferSyntaxes, JPEGTransferSyntaxes

from limner.imaging.errors import ImageError

# Precincts of all layers, and code-blocks. OpenJPEG takes some 500 bytes for each, before it has read any of them.
MAX_PIECES = 1 << 18

# Frame headers: baseline, extended sequential, lossless. A progressive image has as many scans as it likes.
_JPEG_FRAMES = frozenset({0xC0, 0xC1, 0xC3})
_JPEG_LS_FRAMES = frozenset({0xF7})
# Every frame header there is (B.2.2), and that of a hierarchy of frames (DHP).
_ALL_FRAMES = frozenset({*range(0xC0, 0xD0), 0xDE, 0xF7}) - {0xC4, 0xC8, 0xCC}
_SCAN = 0xDA
_CUT_SHORT = "that is cut short"
# What ends entropy-coded data: any marker but stuffed bytes and restarts (B.1.1.5).
_AFTER_SCAN = re.compile(rb"\xff[\xc0-\xcf\xd8-\xfe]")

_SIZE, _STYLE, _TILE_PART, _DATA = 0x51, 0x52, 0x90, 0x93
# CAP, SIZ, COD, TLM, PLM, QCD, QCC, RGN, PPM, CRG, COM; of a tile-part PLT, QCD, QCC, RGN, PPT, COM. Others could
# change the pieces that are counted, or OpenJPEG, which knows them not, could read on in the midst of them.
_MAIN = frozenset({0x50, _SIZE, _STYLE, 0x55, 0x57, 0x5C, 0x5D, 0x5E, 0x60, 0x63, 0x64})
_OF_TILE_PART = frozenset({0x58, 0x5C, 0x5D, 0x5E, 0x61, 0x64})


class _Segment(NamedTuple):
    """A marker, what follows its length, and where it begins and ends."""

    marker: int
    body: bytes
    start: int
    end: int


def check_codestream(frame: bytes, syntax: UID, rows: int, columns: int) -> None:
    """Refuse a frame that is no whole grey image of a size, or that is in more pieces than it needs.

    Parameters
    ----------
    frame
        The fragments of one frame, joined (PS3.5 A.4).
    syntax
        Its transfer syntax; of one that is no JPEG nothing is checked.
    rows, columns
        As the DICOM header has them.

    Raises
    ------
    ImageError
        Of PixelData, with what was found.
    """
    check: Callable[[bytes, int, int], str]
    if syntax in JPEG2000TransferSyntaxes:
        name, check = "JPEG 2000", _jpeg_2000
    elif syntax in JPEGLSTransferSyntaxes:
        name, check = "JPEG-LS", partial(_jpeg, allowed=_JPEG_LS_FRAMES)
    elif syntax in JPEGTransferSyntaxes:
        name, check = "JPEG", partial(_jpeg, allowed=_JPEG_FRAMES)
    else:
        return
    try:
        found = check(frame, rows, columns)
    except (struct.error, IndexError):
        found = _CUT_SHORT
    if found:
        expected = f"one whole grey image of {rows} x {columns} pixels"
        raise ImageError("PixelData", f"a {name} codestream {found}", expected)


def _jpeg(frame: bytes, rows: int, columns: int, allowed: frozenset[int]) -> str:
    """Return what is wrong with a JPEG or JPEG-LS frame, "" where nothing is."""
    if frame[:2] != b"\xff\xd8":
        return "without its start"
    headers = []
    for segment in _segments(frame, 2):
        if segment.marker in _ALL_FRAMES:
            headers.append(segment)
        if segment.marker == _SCAN:
            break
    if len(headers) != 1 or headers[0].marker not in allowed:
        return "with frame headers " + (" ".join(f"{header.marker:02X}" for header in headers) or "missing")
    _, height, width, components = unpack_from(">BHHB", headers[0].body)
    if (height, width, components) != (rows, columns, 1):
        return f"of {height} x {width} pixels, {components} components"
    after = _AFTER_SCAN.search(frame, segment.end)
    if after is None:
        return _CUT_SHORT
    return "" if after.group() == b"\xff\xd9" else f"with marker {after.group()[1]:02X} after its scan"


def _jpeg_2000(frame: bytes, rows: int, columns: int) -> str:
    """Return what is wrong with a JPEG 2000 codestream, "" where nothing is; a JP2 file is none (PS3.5 A.4.4)."""
    if frame[:2] != b"\xff\x4f":
        return "without its start"
    tiles: tuple[int, int, int] | None = None
    pieces = 0
    for segment in _segments(frame, 2):
        if segment.marker == _TILE_PART:
            return _tile_parts(frame, segment) if pieces else "without SIZ and COD"
        if segment.marker not in _MAIN:
            return f"with marker {segment.marker:02X} in its header"
        if segment.marker == _SIZE:
            right, bottom, left, top, *grid, components = unpack_from(">8IH", segment.body, 2)
            if (bottom - top, right - left, components) != (rows, columns, 1) or segment.body[37:39] != b"\1\1":
                return f"of {bottom - top} x {right - left} pixels, {components} components"
            wide, high, tiles_left, tiles_top = grid
            if not (wide and high and tiles_left <= left and tiles_top <= top):
                return f"with tiles of {high} x {wide} pixels"
            tiles = (
                -(-(bottom - tiles_top) // high) * -(-(right - tiles_left) // wide),
                min(high, rows),
                min(wide, columns),
            )
        elif segment.marker == _STYLE and tiles:
            pieces = max(pieces, _pieces(segment.body, *tiles))
            if pieces > MAX_PIECES:
                return f"in {pieces:,} pieces"
    return _CUT_SHORT


def _pieces(style: bytes, tiles: int, rows: int, columns: int) -> int:
    """Return how many pieces a COD segment (A.6.1) cuts so many tiles of a size into."""
    own_precincts, _, layers, _, levels, width, height = unpack_from(">BBHBBBB", style)
    blocks = rows * columns >> (width + height + 4)
    precincts = 1
    for level in range(levels + 1):
        size = style[10 + level] if own_precincts & 1 else 0xFF
        high, wide = (-(-edge >> levels - level) for edge in (rows, columns))
        precincts = max(precincts, -(-high >> (size >> 4)) * -(-wide >> (size & 15)))
    # OpenJPEG follows the progression with room, in each layer and level, for the most precincts that any level has.
    return int(tiles * max(layers * (levels + 1) * precincts, blocks))


def _tile_parts(frame: bytes, first: _Segment) -> str:
    """Return what is wrong with the tile-parts of a codestream and its end, "" where nothing is."""
    place = first.start
    while frame[place : place + 2] == b"\xff\x90":
        for segment in _segments(frame, place):
            if segment.marker == _DATA:
                break
            if segment.marker not in _OF_TILE_PART and segment.start > place:
                return f"with marker {segment.marker:02X} in a tile-part"
        (length,) = unpack_from(">I", frame, place + 6)
        # 0: to the end of the codestream (A.4.2).
        place = place + length if length >= segment.end - place else max(segment.end, frame.rfind(b"\xff\xd9"))
    return "" if frame[place : place + 2] == b"\xff\xd9" else _CUT_SHORT


def _segments(frame: bytes, place: int) -> Iterator[_Segment]:
    """Yield the marker segments from a place on; struct.error where there is none."""
    while True:
        introducer, marker = unpack_from(">BB", frame, place)
        if introducer != 0xFF:
            raise struct.error("no marker")
        if marker == 0xFF:  # fill (B.1.1.2)
            place += 1
            continue
        if marker == _DATA:
            yield _Segment(marker, b"", place, place + 2)
            return
        (length,) = unpack_from(">H", frame, place + 2)
        end = place + 2 + length
        if length < 2 or end > len(frame):
            raise struct.error("no whole segment")
        yield _Segment(marker, frame[place + 4 : end], place, end)
        place = end
