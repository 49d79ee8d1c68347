"""Codestreams that ask for more than they have, or are broken themselves."""

import io
import random
import struct

from pydicom import dcmread
from pydicom.encaps import get_frame
from pydicom.uid import (
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
)

from tests.imaging.malformed_bases import base_of, cropped, encapsulated
from tests.imaging.malformed_writing import put

Chance = random.Random


def bomb(chance: Chance, base: bytes) -> bytes:
    """Have a codestream claim a raster, or pieces, that take gigabytes; with the header's consent or against it."""
    edges = chance.choice(((60_000, 60_000), (65_535, 65_535), (8192, 8192), (4096, 4096), (96, 60_000)))
    syntax, frame = chance.choice(
        (
            (JPEG2000Lossless, _greedy_jpeg_2000(chance, *edges)),
            (JPEGBaseline8Bit, _resized("JPEG", b"\xff\xc0", edges)),
            (JPEGExtended12Bit, _resized("JPEG 12 bit", b"\xff\xc1", edges)),
            (JPEGLosslessSV1, _resized("lossless JPEG", b"\xff\xc3", edges)),
            (JPEGLSLossless, _resized("JPEG-LS", b"\xff\xf7", edges)),
            (RLELossless, struct.pack("<16I", 2, 64, 64 + 40_000, *[0] * 13) + b"\x81\0" * 40_000),
        )
    )
    if chance.random() < 0.4 and syntax not in (JPEG2000Lossless, RLELossless):
        frame = _many_scans(frame, chance.choice((2, 50, 2000)))
    base = encapsulated(cropped(bits=8 if syntax == JPEGBaseline8Bit else 16), syntax, [frame])
    if chance.random() < 0.3:
        return base
    return put(base, {"Rows": struct.pack("<H", edges[0]), "Columns": struct.pack("<H", edges[1])})


def _resized(name: str, marker: bytes, edges: tuple[int, int]) -> bytes:
    frame = get_frame(dcmread(io.BytesIO(base_of(name))).PixelData, 0, number_of_frames=1)
    place = frame.index(marker) + 5
    return frame[:place] + struct.pack(">HH", *edges) + frame[place + 4 :]


def _many_scans(frame: bytes, scans: int) -> bytes:
    """Repeat the scan of a JPEG frame, with next to no data: a decoder goes over the whole raster for each."""
    place = frame.index(b"\xff\xda")
    (length,) = struct.unpack_from(">H", frame, place + 2)
    return frame[:place] + (frame[place : place + 2 + length] + bytes(4)) * scans + b"\xff\xd9"


def jpeg_2000(
    rows: int,
    columns: int,
    *,
    levels: int = 5,
    layers: int = 1,
    block: int = 4,
    tile: tuple[int, int] | None = None,
    precincts: bytes = b"",
    components: int = 1,
    main: bytes = b"",
    part: bytes = b"",
    body: bytes = b"",
) -> bytes:
    """Return a JPEG 2000 codestream of one tile-part (ISO/IEC 15444-1 A).

    Parameters
    ----------
    block
        Exponent of the edges of a code-block, less 2.
    tile
        Columns and rows; default the whole image.
    precincts
        A byte of two exponents for each level and one more; none: as large as may be.
    main, part
        Further segments in the header, and in that of the tile-part.
    body
        Coded data.
    """
    size = struct.pack(">H8IH", 0, columns, rows, 0, 0, *(tile or (columns, rows)), 0, 0, components) + b"\x0f\1\1"
    style = struct.pack(">BBHB5B", bool(precincts), 0, layers, 0, levels, block, block, 0, 1) + precincts
    segments = ((b"\xff\x51", size), (b"\xff\x52", style), (b"\xff\x5c", b"\x40" + b"\x48" * (3 * levels + 1)))
    header = b"".join(marker + struct.pack(">H", len(content) + 2) + content for marker, content in segments)
    tile_part = b"\xff\x90" + struct.pack(">HHIBB", 10, 0, 14 + len(part) + len(body), 0, 1) + part + b"\xff\x93" + body
    return b"\xff\x4f" + header + main + tile_part + b"\xff\xd9"


def _greedy_jpeg_2000(chance: Chance, rows: int, columns: int) -> bytes:
    levels = chance.choice((0, 1, 5, 32))
    return jpeg_2000(
        rows,
        columns,
        levels=levels,
        layers=chance.choice((1, 1, 65_535)),
        block=chance.choice((0, 4, 8)),
        tile=chance.choice((None, (1, 1), (64, 64), (2**32 - 1, 2**32 - 1))),
        precincts=chance.choice((b"", bytes(levels + 1), b"\x11" * (levels + 1), b"\xff" * (levels + 1))),
        components=chance.choice((1, 1, 1, 16_384)),
        body=bytes(chance.choice((0, 100_000))),
    )


def codestream(chance: Chance, base: bytes) -> bytes:
    """Change bytes of a compressed frame, its header first of all."""
    name = chance.choice(("RLE", "JPEG-LS", "JPEG 2000", "JPEG", "JPEG 12 bit", "lossless JPEG"))
    dataset = dcmread(io.BytesIO(base_of(name)))
    frame = bytearray(get_frame(dataset.PixelData, 0, number_of_frames=1))
    for _ in range(chance.choice((1, 2, 4, 16))):
        place = chance.randrange(chance.choice((len(frame), 120, 600)))
        change = chance.randrange(4)
        if change == 0:
            frame[place] = chance.randrange(256)
        elif change == 1:
            frame[place] ^= 1 << chance.randrange(8)
        elif change == 2:
            del frame[place : place + chance.randrange(1, 30)]
        else:
            frame[place:place] = frame[: chance.randrange(60)]
    return encapsulated(dataset, dataset.file_meta.TransferSyntaxUID, [bytes(frame)])
