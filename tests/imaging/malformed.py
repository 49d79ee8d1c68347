"""Malformed DICOM without end, made from real slices: case number → bytes, the same today and tomorrow.

`malformed(number)` is used by the short tests beside this, by those over the wire, and by `python -m
benchmarks.malformed`, which drives 10,000 cases to everything that takes DICOM. Each kind in `KINDS` breaks one of the
`BASES` in its own way, with the chance of its number. A case may turn out to be valid all the same.
"""

import io
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image
from pydicom import dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame
from pydicom.tag import Tag
from pydicom.uid import UID, AllTransferSyntaxes, DeflatedExplicitVRLittleEndian

from limner.imaging import ImageError, Slice, decode
from tests.imaging.builders import content
from tests.imaging.malformed_bases import BASES, INSTANCE, STUDY, base_of, cropped
from tests.imaging.malformed_codestreams import bomb, codestream
from tests.imaging.malformed_writing import END_OF_SEQUENCE, LONG_VRS, endless_sequence, insert, put, raw_element

CASES_PER_STUDY = 20

Chance = random.Random


@dataclass(frozen=True)
class Case:
    """One malformed input.

    Attributes
    ----------
    number
        What it was made from.
    kind, base
        How it was broken, and what was.
    content
        The whole file, or what there is instead of one.
    instance, study
        The UIDs that it had before it was broken; it shares the study, and a series, with its neighbours.
    """

    number: int
    kind: str
    base: str
    content: bytes
    instance: str
    study: str

    def __str__(self) -> str:
        return f"case {self.number} ({self.kind} of {self.base})"


def malformed(number: int) -> Case:
    """Return the case of a number, 0 to 8,999,999."""
    chance = Chance(number)
    kind = list(KINDS)[number % len(KINDS)]
    base = chance.choice(list(BASES))
    return Case(
        number,
        kind,
        base,
        _named(KINDS[kind](chance, base_of(base)), number, study_of(number)),
        INSTANCE[:-8] + str(10_000_000 + number),
        study_of(number),
    )


def attempt(source: bytes | Path | Dataset, frame: int = 0) -> Slice | ImageError:
    """Decode, and return the slice or the refusal, which says what was wrong; any other exception is raised."""
    try:
        return decode(source, frame)
    except ImageError as error:
        if not (error.field and error.value and error.expected and str(error).isprintable()):
            raise AssertionError(f"a refusal without its cause: {error!r}") from error
        return error


def healthy(number: int, study: str) -> tuple[str, bytes]:
    """Return the SOPInstanceUID and the content of a whole slice, 0 to 99 within a study."""
    index = int(study.rpartition(".")[2]) - 10_000_000
    instance = 9_000_000 + 100 * index + number
    dataset = cropped()
    dataset.ImagePositionPatient = [0, 0, 3 * number]
    return INSTANCE[:-8] + str(10_000_000 + instance), _named(content(dataset), instance, study)


def study_of(number: int) -> str:
    """Return the StudyInstanceUID of a case."""
    return STUDY[:-8] + str(10_000_000 + number // CASES_PER_STUDY)


def _named(whole: bytes, number: int, study: str) -> bytes:
    instance = INSTANCE[:-8] + str(10_000_000 + number)
    return whole.replace(INSTANCE.encode(), instance.encode()).replace(STUDY.encode(), study.encode())


# How it is broken

_SHORT = (
    b"AE",
    b"AS",
    b"AT",
    b"CS",
    b"DA",
    b"DS",
    b"DT",
    b"FL",
    b"FD",
    b"IS",
    b"LO",
    b"LT",
    b"PN",
    b"SH",
    b"SL",
    b"SS",
)
_VRS = (*_SHORT, b"ST", b"TM", b"UI", b"UL", b"US", b"XX", b"\0\0", b"\xff\xff", *LONG_VRS)
_LENGTHS = (0, 1, 3, 7, 0x7FFF, 0xFFFE, 0xFFFF, 0x80000000, 0x7FFFFFFF, 0xFFFFFFFE, 0xFFFFFFFF)
# An element of explicit VR, little endian, as it lies in a file: tag, VR, length.
_ELEMENT = re.compile(rb"[\x00-\x60]\x00..(?:" + b"|".join(vr for vr in _VRS if vr.isalpha()) + rb")", re.DOTALL)

_NUMBERS = (
    *(b"nan", b"NaN", b"inf", b"-inf", b"1e400", b"-1e400", b"1e-400", b"1e38", b"0", b"-0", b"-1", b"", b" "),
    *(b"1_0", b"0x10", b"1,5", b"1.5.5", b"--1", b"\\", b"\\\\", b"1\\", b"1\\2\\3", b"1\0", b"\0\0", b"abc"),
    *(
        "１２".encode(),
        "٣".encode(),
        "²".encode(),
        b"\xb2",
        b"\xff\xfe",
        b"9" * 5000,
        b"1" * 17,
        b"1.0\\1.0" + b"\\1" * 9,
    ),
)
_NUMERIC = (
    *("PixelSpacing", "RescaleSlope", "RescaleIntercept", "ImageOrientationPatient", "ImagePositionPatient"),
    *("EchoTime", "RepetitionTime", "InstanceNumber", "NumberOfFrames", "SliceThickness"),
)
_UIDS = (
    *(b"../../../etc/passwd", b"..", b"/etc/passwd", b"1.2/../../x", b"C:\\x", b"1.2\x003", b"", b" ", b"0", b"1" * 65),
    *(
        b"1." * 40,
        b"abc",
        b"1.2.3\n4",
        b"\x1b[31m",
        "１.２".encode(),
        b"-1",
        b"NULL",
        b"~",
        b"con",
        b"1.2\\1.3",
        b"%2e%2e",
    ),
)
_TEXTS = (
    *(
        b"MR\\CT",
        b"mr",
        b"M\0R",
        b"\xff\xfe",
        "磁".encode(),
        b"MR" * 5000,
        b"\x1b$B\x1b(B",
        b"\r\n\r\nHTTP/1.1 200 OK",
        b"",
    ),
    *(b"MONOCHROME3", b"ORIGINAL", b"\\\\\\\\", b"\xed\xa0\x80", b"${jndi:ldap://x}", b"'; DROP TABLE studies; --"),
)
_WORDS = (
    *("Modality", "PhotometricInterpretation", "ImageType", "SeriesDescription", "PatientID", "SpecificCharacterSet"),
    *("ScanningSequence", "PatientName", "StudyDate", "ProtocolName"),
)
_DESCRIBING = (
    *("Rows", "Columns", "BitsAllocated", "BitsStored", "HighBit", "PixelRepresentation", "SamplesPerPixel"),
    *("PhotometricInterpretation", "NumberOfFrames"),
)
_LOOKED_AT = (
    *_NUMERIC,
    *_WORDS,
    *_DESCRIBING,
    "SOPInstanceUID",
    "SeriesInstanceUID",
    "StudyInstanceUID",
    "SOPClassUID",
)


def _cut(chance: Chance, base: bytes) -> bytes:
    return base[: chance.randrange(chance.choice((len(base), 2000)))]


def _flip(chance: Chance, base: bytes) -> bytes:
    broken = bytearray(base)
    reach = chance.choice((len(base), 400, 2500))
    for _ in range(chance.choice((1, 2, 8, 64))):
        broken[chance.randrange(min(reach, len(base)))] = chance.randrange(256)
    return bytes(broken)


def _splice(chance: Chance, base: bytes) -> bytes:
    """Put a piece of a file where another was: of itself, of another, or of nothing but zeros."""
    other = chance.choice((base, base_of(chance.choice(list(BASES))), bytes(4096)))
    size = chance.choice((2, 40, 1000, 100_000))
    here, there = chance.randrange(len(base)), chance.randrange(len(other))
    return base[:here] + other[there : there + size] + base[here + chance.choice((0, size)) :]


def _element(chance: Chance, base: bytes) -> int:
    """Return where an element of explicit VR begins; anywhere in a file that has none of these."""
    places = [found.start() for found in _ELEMENT.finditer(base, 0, 6000)]
    return chance.choice(places) if places else chance.randrange(132, min(len(base), 4000))


def _length(chance: Chance, base: bytes) -> bytes:
    place = _element(chance, base)
    length = chance.choice((*_LENGTHS, chance.randrange(100_000)))
    long = base[place + 4 : place + 6] in LONG_VRS
    packed = struct.pack("<I", length) if long else struct.pack("<H", length & 0xFFFF)
    place += 8 if long else 6
    return base[:place] + packed + base[place + len(packed) :]


def _vr(chance: Chance, base: bytes) -> bytes:
    place = _element(chance, base)
    return base[: place + 4] + chance.choice(_VRS) + base[place + 6 :]


def _lie(chance: Chance, base: bytes) -> bytes:
    """Describe the raster by other numbers than its own."""
    values: dict[str, bytes] = {}
    for keyword in chance.sample(_DESCRIBING, chance.choice((1, 1, 2, 4))):
        if keyword == "PhotometricInterpretation":
            values[keyword] = chance.choice((b"MONOCHROME1", b"RGB", b"PALETTE COLOR", b"YBR_FULL", b"YBR_RCT", b"X"))
        elif keyword == "NumberOfFrames":
            values[keyword] = str(chance.choice((0, -1, 1, 2, 3, 4, 1000, 10**5, 10**6, 2**31 - 1, 10**12))).encode()
        else:
            number = chance.choice(
                (0, 1, 2, 3, 7, 8, 12, 15, 16, 17, 24, 32, 63, 64, 65, 255, 4096, 8192, 60000, 65535)
            )
            values[keyword] = struct.pack("<H", number)
    return put(base, values)


def _numbers(chance: Chance, base: bytes) -> bytes:
    chosen = chance.sample(_NUMERIC, chance.choice((1, 1, 3)))
    return put(base, {keyword: chance.choice(_NUMBERS) for keyword in chosen})


def _multiplied(chance: Chance, base: bytes) -> bytes:
    """Give several values where one is expected."""
    keyword = chance.choice(_LOOKED_AT)
    one = {"US": b"\x10\0", "IS": b"3", "DS": b"0.5", "UI": INSTANCE.encode()}.get(dictionary_VR(keyword), b"MR")
    times = chance.choice((2, 3, 1000, 30_000))
    return put(base, {keyword: (b"" if dictionary_VR(keyword) == "US" else b"\\").join([one] * times)[:65_534]})


def _missing(chance: Chance, base: bytes) -> bytes:
    keywords = (*_LOOKED_AT, "PixelData", "SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
    return put(base, dict.fromkeys(chance.sample(keywords, chance.choice((1, 2, 5)))))


def _named_by_path(chance: Chance, base: bytes) -> bytes:
    keywords = chance.sample(("SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID"), chance.choice((1, 1, 3)))
    return put(base, {keyword: chance.choice(_UIDS) for keyword in keywords})


def _words(chance: Chance, base: bytes) -> bytes:
    return put(base, {keyword: chance.choice(_TEXTS) for keyword in chance.sample(_WORDS, chance.choice((1, 1, 3)))})


def _duplicate(chance: Chance, base: bytes) -> bytes:
    """Repeat an element that is there, with another value."""
    keyword = chance.choice(_LOOKED_AT)
    tag = Tag(keyword)
    value = chance.choice((b"", b"1\\2", b"MR", b"\xff\xff", b"9" * 40))
    raw = raw_element(tag.group, tag.element, dictionary_VR(keyword)[:2].encode(), value)
    return insert(base, raw)


def _private(chance: Chance, base: bytes) -> bytes:
    """Add private elements without, before or twice after their creator, and groups of wrong lengths."""
    pieces = [
        raw_element(0x0029, 0x1010, chance.choice(_VRS), bytes(chance.randrange(40))),
        raw_element(0x0029, 0x0010, b"LO", chance.choice((b"SIEMENS CSA HEADER", b"", b"\xff" * 70))),
        raw_element(0x0029, 0x0010, b"LO", b"ANOTHER"),
        raw_element(chance.choice((0x0008, 0x0018, 0x0028)), 0x0000, b"UL", struct.pack("<I", chance.choice(_LENGTHS))),
        raw_element(0x0009, 0x0001, b"UN", b"\xfe\xff\x00\xe0" * 9),
    ]
    chance.shuffle(pieces)
    return insert(base, b"".join(pieces[: chance.randrange(1, 6)]))


def _nested(chance: Chance, base: bytes) -> bytes:
    """Nest sequences 10,000 deep, with lengths or without; or give one 20,000 empty items."""
    if chance.random() < 0.3:
        items = b"\xfe\xff\x00\xe0\0\0\0\0" * 20_000
        tag = chance.choice(((0x0008, 0x1140), (0x5200, 0x9229), (0x5200, 0x9230), (0x0029, 0x1001)))
        defined = chance.random() < 0.5
        return insert(
            base, raw_element(*tag, b"SQ", items) if defined else endless_sequence(*tag, items + END_OF_SEQUENCE)
        )
    if chance.random() < 0.5:
        opened = endless_sequence(0x0008, 0x1140, b"\xfe\xff\x00\xe0\xff\xff\xff\xff") * 10_000
        closed = (b"\xfe\xff\x0d\xe0\0\0\0\0" + END_OF_SEQUENCE) * 10_000
        return insert(base, opened + chance.choice((closed, b"")))
    # Every level is 20 bytes longer than the one in it.
    outer = chance.choice((b"\x08\x00\x40\x11", b"\x00\x52\x30\x92"))
    levels = (
        outer + b"SQ\0\0" + struct.pack("<I", size + 8) + b"\xfe\xff\x00\xe0" + struct.pack("<I", size)
        for size in range(20 * 9_999, -1, -20)
    )
    return insert(base, b"".join(levels))


def _unended(chance: Chance, base: bytes) -> bytes:
    """Leave an undefined length without its end."""
    tag = chance.choice(((0x0008, 0x1140), (0x0018, 0x1250), (0x5200, 0x9229), (0x0029, 0x1001), (0x0028, 0x0010)))
    vr = chance.choice((b"SQ", b"UN", b"OB", b"UT", b"LO"))
    start = struct.pack("<HH", *tag) + vr + (b"\0\0" if vr in LONG_VRS else b"") + b"\xff\xff\xff\xff"
    return insert(base, start + chance.choice((b"", b"\xfe\xff\x00\xe0\xff\xff\xff\xff", b"\xfe\xff\xdd\xe0")))


def _relabelled(chance: Chance, base: bytes) -> bytes:
    return relabelled(
        base, chance.choice((*AllTransferSyntaxes, UID("1.2.3.4"), UID("1.2.840.10008.1.2.4.999"), UID("")))
    )


def relabelled(whole: bytes, syntax: UID) -> bytes:
    """Name another transfer syntax than a file's own, or none."""
    own = dcmread(io.BytesIO(whole)).file_meta.TransferSyntaxUID
    before, after = (raw_element(0x0002, 0x0010, b"UI", uid.encode() + b"\0" * (len(uid) % 2)) for uid in (own, syntax))
    return whole.replace(before, after, 1)


def _deflated(chance: Chance, base: bytes) -> bytes:
    """Make 2 GiB of zeros of 2 MB, the syntax where it is looked for or behind an element of some KB."""
    meta = raw_element(0x0002, 0x0002, b"UI", b"1" * chance.choice((26, 60_000)))
    meta += raw_element(0x0002, 0x0010, b"UI", DeflatedExplicitVRLittleEndian.encode())
    start = bytes(128) + b"DICM" + raw_element(0x0002, 0x0000, b"UL", struct.pack("<I", len(meta))) + meta
    return start + chance.choice((_zeros(), _zeros()[:-3], base, b""))


@cache
def _zeros() -> bytes:
    """Return a deflated stream of 2 GiB, of one block over and over."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    block = packer.compress(bytes(1 << 20)) + packer.flush(zlib.Z_FULL_FLUSH)
    return block * 2048 + packer.flush()


def _other_file(chance: Chance, base: bytes) -> bytes:
    """Return what is no DICOM file."""
    picture, archive = io.BytesIO(), io.BytesIO()
    Image.new("L", (8, 8)).save(picture, "PNG")
    with zipfile.ZipFile(archive, "w") as packed:
        # Named by a ZipInfo it has no time of day, and is the same tomorrow.
        packed.writestr(zipfile.ZipInfo("10.dcm"), base[:9000], zipfile.ZIP_DEFLATED)
    return chance.choice(
        (
            *(b"", b"\0", b"DICM", bytes(128), bytes(128) + b"DICM", bytes(128) + b"DICN", base[128:], base[132:]),
            *(picture.getvalue(), archive.getvalue(), b"subject,label\na,b\n", zlib.compress(base[:9000])),
            *(bytes(128) + b"DICM" + chance.randbytes(chance.randrange(3000)), chance.randbytes(2000)),
            *(base + base, base[:132] + base, b"\xef\xbb\xbf" + base, base[::-1]),
        )
    )


def _pixel_vr(chance: Chance, base: bytes) -> bytes:
    """Keep pixels as floats, as another VR, twice, or as nothing."""
    if chance.random() < 0.7:
        base = base_of("plain")
    floats = np.full(
        9216, chance.choice((1.0, np.nan, np.inf, 1e38)), chance.choice((np.float32, np.float64))
    ).tobytes()
    keyword, vr = chance.choice((("PixelData", "OF"), ("FloatPixelData", "OF"), ("DoubleFloatPixelData", "OD")))
    if chance.random() < 0.4:
        vr = chance.choice(("OL", "OV", "UN", "OW", "OB"))
    if chance.random() < 0.5:
        base = put(base, {"PixelData": None})
    base = put(base, {"BitsAllocated": chance.choice((b"\x20\0", b"\x40\0", b"\x10\0"))})
    return put(base, {keyword: chance.choice((floats, floats[:-1], b"", floats[:3]))}, vr)


def _fragments(chance: Chance, base: bytes) -> bytes:
    """Encapsulate a frame wrongly: odd and empty fragments, tables that point elsewhere, no end."""
    dataset = dcmread(io.BytesIO(base))
    syntax, pixels = dataset.file_meta.TransferSyntaxUID, dataset.PixelData
    frame = get_frame(pixels, 0, number_of_frames=3) if syntax.is_encapsulated else pixels[:2000]
    table = chance.choice((b"", b"\0" * 4, b"\xff" * 4, b"\0\0\0\0\x10\0\0\0", b"\1\0\0", bytes(4 * 5000)))
    middle = chance.randrange(len(frame) + 1)
    parts = chance.choice(
        ([frame], [frame[:middle], frame[middle:]], [b""] * 50 + [frame], [frame[:-1]], [], [frame] * 9)
    )
    lengths = chance.choice((None, None, None, 0xFFFFFFFF, 0x7FFFFFFF, 1))
    items = b"".join(
        b"\xfe\xff\x00\xe0" + struct.pack("<I", len(part) if lengths is None else lengths) + part
        for part in (table, *parts)
    )
    start = base.rfind(b"\xe0\x7f\x10\x00")
    whole = b"\xe0\x7f\x10\x00OB\0\0\xff\xff\xff\xff" + items + chance.choice((END_OF_SEQUENCE, b"", b"\xfe\xff\xdd"))
    if chance.random() < 0.2:
        offsets = struct.pack("<Q", chance.choice((0, 8, 2**63, 2**64 - 1, 10**6)))
        whole = raw_element(0x7FE0, 0x0001, b"OV", offsets) + raw_element(0x7FE0, 0x0002, b"OV", offsets[::-1]) + whole
    return base[:start] + whole


def _groups(chance: Chance, base: bytes) -> bytes:
    """Break the functional groups of an Enhanced MR instance."""
    base = base_of(chance.choice(("enhanced", "enhanced JPEG 2000", "enhanced RLE")))
    keyword = chance.choice(("PerFrameFunctionalGroupsSequence", "SharedFunctionalGroupsSequence"))
    change = chance.randrange(5)
    if change == 0:
        value = chance.choice((b"", b"\xfe\xff\x00\xe0", b"text", bytes(64)))
        return put(base, {keyword: value}, chance.choice(("LO", "OB", "SQ")))
    dataset = dcmread(io.BytesIO(base))
    items = dataset[keyword].value
    item = chance.choice(items)
    if change == 1:
        dataset[keyword].value = items[:1]
    elif change == 2:
        item.clear()
    else:
        macro = item[chance.choice(list(item.keys()))]
        if change == 3:
            macro.value = []
        else:
            tag = chance.choice(list(macro.value[0].keys()))
            value = chance.choice((b"nan ", b"\\\\\\\\", b"\xff\xff\xff\xff"))
            macro.value[0][tag] = RawDataElement(tag, macro.value[0][tag].VR, 4, value, 0, False, True)
    return content(dataset)


def _oversized(chance: Chance, base: bytes) -> bytes:
    """Give an attribute a value of hundreds of KB, for which implicit VR has room."""
    base = base_of("implicit VR")
    keyword = chance.choice((*_LOOKED_AT, "RequestAttributesSequence"))
    return put(base, {keyword: chance.choice((b"1\\" * 150_000, b"\\" * 300_000, bytes(300_000), b"1" * 300_000))})


KINDS: dict[str, Callable[[Chance, bytes], bytes]] = {
    "cut": _cut,
    "flipped bytes": _flip,
    "spliced": _splice,
    "wrong length": _length,
    "wrong VR": _vr,
    "wrong raster": _lie,
    "wrong number": _numbers,
    "wrong text": _words,
    "wrong UID": _named_by_path,
    "many values": _multiplied,
    "missing": _missing,
    "duplicate": _duplicate,
    "private": _private,
    "nested": _nested,
    "no end": _unended,
    "wrong syntax": _relabelled,
    "deflated": _deflated,
    "no DICOM": _other_file,
    "wrong pixels": _pixel_vr,
    "fragments": _fragments,
    "functional groups": _groups,
    "oversized": _oversized,
    "bomb": bomb,
    "codestream": codestream,
}
