"""Elements as pydicom would not write them, put into the bytes of a file."""

import io
import struct
from collections.abc import Mapping
from functools import cache

from pydicom import dcmread
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID

LONG_VRS = (b"OB", b"OD", b"OF", b"OL", b"OV", b"OW", b"SQ", b"UC", b"UN", b"UR", b"UT")

END_OF_SEQUENCE = b"\xfe\xff\xdd\xe0\0\0\0\0"


def raw_element(group: int, element: int, vr: bytes, value: bytes) -> bytes:
    """Return an element of explicit VR, little endian, of any VR."""
    length = struct.pack("<HI", 0, len(value)) if vr in LONG_VRS else struct.pack("<H", len(value) & 0xFFFF)
    return struct.pack("<HH", group, element) + vr + length + value


def endless_sequence(group: int, element: int, items: bytes) -> bytes:
    return struct.pack("<HH", group, element) + b"SQ\0\0\xff\xff\xff\xff" + items


def insert(base: bytes, raw: bytes) -> bytes:
    """Put elements before the group that describes the raster; at the pixels where it cannot be found."""
    place = base.find(b"\x28\x00\x02\x00US")
    place = place if place >= 0 else max(base.rfind(b"\xe0\x7f\x10\x00"), 132)
    return base[:place] + raw + base[place:]


def put(base: bytes, values: Mapping[str, bytes | None], vr: str = "") -> bytes:
    """Put these bytes where the attributes of a file are or would be; None: take them out.

    By cutting and pasting, since pydicom writes no nonsense.
    """
    syntax, places = _places(base)
    for keyword, value in sorted(values.items(), key=lambda item: Tag(item[0]), reverse=True):
        tag = Tag(keyword)
        start = next(place for place, other in places if other >= tag)
        end = next(place for place, other in places if other > tag)
        element = b"" if value is None else _encoded(syntax, tag, vr or dictionary_VR(tag)[:2], value)
        base = base[:start] + element + base[end:]
    return base


@cache
def _places(base: bytes) -> tuple[UID, tuple[tuple[int, BaseTag], ...]]:
    """Return the transfer syntax of a file, and where each element of its dataset begins; after the last, its end."""
    dataset = dcmread(io.BytesIO(base))
    syntax = dataset.file_meta.TransferSyntaxUID
    places = []
    for element in dataset.elements():
        value = element.value_tell if isinstance(element, RawDataElement) else element.file_tell or 0
        long = not syntax.is_implicit_VR and str(element.VR).encode() in LONG_VRS
        places.append((value - (12 if long else 8), element.tag))
    return syntax, (*places, (len(base), BaseTag(0xFFFFFFFF)))


def _encoded(syntax: UID, tag: BaseTag, vr: str, value: bytes) -> bytes:
    value += b"\0" * (len(value) % 2)
    order = "<" if syntax.is_little_endian else ">"
    if vr == "US" and order == ">":
        value = b"".join(value[place : place + 2][::-1] for place in range(0, len(value), 2))
    start = struct.pack(f"{order}HH", tag.group, tag.element)
    if syntax.is_implicit_VR:
        return start + struct.pack("<I", len(value)) + value
    if vr.encode() in LONG_VRS:
        return start + vr.encode() + struct.pack(f"{order}HI", 0, len(value)) + value
    return start + vr.encode() + struct.pack(f"{order}H", len(value) & 0xFFFF) + value
