"""Reading what a DICOM header says, with the errors of a hostile or broken file told in one way.

Attributes are looked up where an instance may keep them: in the functional groups of its frame, in the groups that all
frames share (PS3.3 C.7.6.16, Enhanced MR), or at the top (PS3.3 C.8.3.1, MR Image). pydicom makes objects of what it
parses, hundreds of bytes of a few; so what would make too many of them is refused before. Pixels are `dicom.py`'s.
"""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import wraps
from io import BytesIO
from math import isfinite
from os import SEEK_END
from pathlib import Path
from typing import BinaryIO, ParamSpec, TypeVar

from pydicom import dcmread
from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.sequence import Sequence as Items
from pydicom.tag import BaseTag
from pydicom.uid import UID, DeflatedExplicitVRLittleEndian

from limner.imaging.errors import ImageError

P = ParamSpec("P")
T = TypeVar("T")

NOT_DICOM = "not DICOM"
# Names that promise DICOM.
DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})
# Of a header: 4,000 frames of an Enhanced MR instance have as many. An empty item of 8 bytes takes 600 as an object.
MAX_ELEMENTS = 250_000
# Of a value that is parsed into many. Explicit VR leaves no room for more in any of these (PS3.5 7.1.2).
MAX_VALUE_BYTES = 64 << 10
MAX_SEQUENCE_BYTES = 8 << 20
MAX_CHARACTER_SET_BYTES = 1 << 10
MAX_FRAMES = 100_000
# No frame is compressed to less.
MIN_FRAME_BYTES = 32

# Values of these are kept as they are, however long.
_BULK = frozenset({"OB", "OD", "OF", "OL", "OV", "OW", "LT", "ST", "UN", "UR", "UT"})
_TRANSFER_SYNTAX = b"\x02\x00\x10\x00"
_CHARACTER_SET = (b"\x08\x00\x05\x00", b"\x00\x08\x00\x05")
"""Tags as they lie in a file, the second in either byte order."""
# PS3.5 6.2. Python would also take 1_000, inf, nan and the digits of other scripts.
_WHOLE = re.compile(r"[+-]?[0-9]+")
_DECIMAL = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")


def as_image_errors(function: Callable[P, T]) -> Callable[P, T]:
    """Turn whatever a broken file makes pydicom or a codec raise into `ImageError`.

    `OSError` passes: a file that cannot be opened says nothing of an image.
    """

    @wraps(function)
    def guarded(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except ImageError:
            raise
        except InvalidDicomError as error:
            raise ImageError("file", "not DICOM", "a DICOM file (PS3.10), with its preamble and 'DICM'") from error
        # Values are parsed when they are first asked for, so a corrupt byte may raise anything, anywhere.
        except Exception as error:
            if isinstance(error.__context__, ImageError):  # of `_Watched`, which pydicom took for the end of the file
                raise error.__context__ from None
            # pydicom's parser raises OSError too, without a number; the system's own have one.
            if isinstance(error, OSError) and error.errno is not None:
                raise
            raise ImageError("file", f"corrupt: {type(error).__name__}: {error}", "a readable DICOM file") from error

    return guarded


@contextmanager
def open_source(source: bytes | Path) -> Iterator[BinaryIO]:
    """Open the content of a DICOM file, or the file itself."""
    if isinstance(source, bytes):
        yield BytesIO(source)
    else:
        with source.open("rb") as file:
            yield file


class _Watched:
    """A file for pydicom's parser, which is stopped before it would make too much of what it has read.

    Of pydicom's own hooks none is called within sequences, and none before a deflated file is inflated.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._read = file.read
        self._left = MAX_ELEMENTS
        # Tag, VR and length of the element whose value comes next.
        self._header = b""
        self.seek = file.seek
        self.tell = file.tell

    def read(self, size: int = -1, /) -> bytes:
        content = self._read(size)
        if size == 8:
            self._header = content
            self._left -= 1
            if self._left < 0:
                raise ImageError("file", f"over {MAX_ELEMENTS:,} elements and items", "fewer")
        elif size > MAX_CHARACTER_SET_BYTES or self._header.startswith(_TRANSFER_SYNTAX):
            self._check(content)
        return content

    def _check(self, content: bytes) -> None:
        tag = self._header[:4]
        if tag == _TRANSFER_SYNTAX and DeflatedExplicitVRLittleEndian.encode() in content:
            raise ImageError("TransferSyntaxUID", DeflatedExplicitVRLittleEndian.name, "a syntax that is not deflated")
        if tag in _CHARACTER_SET:  # parsed while it is read
            raise ImageError("SpecificCharacterSet", f"{len(content):,} bytes", f"at most {MAX_CHARACTER_SET_BYTES:,}")
        _check_length(BaseTag(int.from_bytes(tag[1::-1] + tag[:1:-1])), len(content))


@as_image_errors
def read_header(source: bytes | Path, pixels: bool = False, only: Sequence[str] = ()) -> Dataset:
    """Return the attributes of a DICOM file that come before its pixels.

    Parameters
    ----------
    pixels
        Return the pixels too, where the file has them whole.
    only
        Keywords of the attributes that are wanted; default all.

    Raises
    ------
    ImageError
        When it is not DICOM, cannot be parsed, claims more frames or longer values than there can be, or is deflated as
        a whole (PS3.5 A.5): its size is not known beforehand.
    OSError
        When the file cannot be opened or read.
    """
    with open_source(source) as file:
        header = dcmread(_Watched(file), stop_before_pixels=not pixels, specific_tags=list(only) or None)
        size = file.seek(0, SEEK_END)
    if not header and pixels:  # pydicom drops all elements where one ends nowhere
        return read_header(source, only=only)
    if not header:
        raise ImageError("file", "cut short within its header", "a whole DICOM file")
    if value_of(header, "Rows") is not None:
        _check_room(header, size)
    return header


def why_unreadable(path: Path, error: ImageError | OSError) -> str:
    """Tell a file that never was DICOM (NBIA's metadata.csv and LICENSE, say) from a broken one."""
    never = isinstance(error.__cause__, InvalidDicomError) and path.suffix.lower() not in DICOM_SUFFIXES
    return NOT_DICOM if never else str(error)


def value_of(dataset: Dataset, attribute: str | BaseTag) -> object:
    """Return the value of an attribute, named by keyword or tag; None when it is missing or empty.

    Raises
    ------
    ImageError
        Naming the attribute, when it is too long or cannot be parsed.
    """
    element = dataset.get_item(attribute)
    if element is None:
        return None
    if isinstance(element, RawDataElement):
        _check_length(element.tag, len(element.value or b""))
    try:
        value = dataset[element.tag].value
    except Exception as error:  # a corrupt byte may raise anything in the parser
        name = keyword_for_tag(element.tag) or str(element.tag)
        raise ImageError(name, f"not readable: {error}", "a value such as its VR asks for (PS3.5 6.2)") from error
    return None if value in (None, "", []) else value


def transfer_syntax(dataset: Dataset) -> UID | None:
    """Return the transfer syntax of a dataset, None where its file meta information is missing or has none."""
    syntax = value_of(getattr(dataset, "file_meta", Dataset()), "TransferSyntaxUID")
    if syntax is None or isinstance(syntax, UID):
        return syntax
    raise ImageError("TransferSyntaxUID", syntax, "one transfer syntax")


def frame_value(dataset: Dataset, keyword: str, frame: int = 0) -> object:
    """Return the value that an attribute has for one frame, None when it is missing or empty."""
    for groups in _functional_groups(dataset, frame):
        for element in groups.elements():
            macro = None if element.tag.is_private else value_of(groups, element.tag)
            if isinstance(macro, Items) and keyword in macro[0]:
                return value_of(macro[0], keyword)
    return value_of(dataset, keyword)


def frame_count(dataset: Dataset) -> int:
    """Return the number of frames, 1 for an object that has none (PS3.3 C.7.6.6)."""
    count = value_of(dataset, "NumberOfFrames")
    if count is None:
        return 1
    frames = integer("NumberOfFrames", count, 1)
    if frames > MAX_FRAMES:
        raise ImageError("NumberOfFrames", frames, f"at most {MAX_FRAMES:,}")
    return frames


def integer(keyword: str, value: object, minimum: int) -> int:
    """Return a value as a whole number, or raise `ImageError` naming the attribute."""
    text = str(value).strip()
    # int() takes time with the square of the digits.
    number = int(text) if len(text) <= 16 and _WHOLE.fullmatch(text) else minimum - 1
    if number < minimum:
        raise ImageError(keyword, "missing" if value is None else value, f"a whole number of at least {minimum}")
    return number


def numbers(keyword: str, value: object, count: int, expected: str) -> tuple[float, ...]:
    """Return a value as `count` finite numbers, or raise `ImageError` naming the attribute."""
    if value is None:
        raise ImageError(keyword, "missing", expected)
    parts = [value] if isinstance(value, str) or not isinstance(value, Iterable) else list(value)
    texts = [str(part).strip() for part in parts]
    parsed = tuple(float(text) for text in texts if _DECIMAL.fullmatch(text))
    if not len(texts) == len(parsed) == count or not all(isfinite(number) for number in parsed):
        raise ImageError(keyword, "\\".join(texts), expected)
    return parsed


def orientation(dataset: Dataset, frame: int = 0) -> tuple[float, ...] | None:
    """Return ImageOrientationPatient of a frame, six direction cosines, None when it is missing."""
    value = frame_value(dataset, "ImageOrientationPatient", frame)
    return None if value is None else numbers("ImageOrientationPatient", value, 6, "six direction cosines")


def position(dataset: Dataset, frame: int = 0) -> tuple[float, ...] | None:
    """Return ImagePositionPatient of a frame, in mm, None when it is missing."""
    value = frame_value(dataset, "ImagePositionPatient", frame)
    return None if value is None else numbers("ImagePositionPatient", value, 3, "three numbers, in mm")


def pixel_spacing(dataset: Dataset, frame: int = 0) -> tuple[float, float]:
    """Return PixelSpacing of a frame: between rows, between columns (PS3.3 10.7.1.3).

    Raises
    ------
    ImageError
        When it is missing, malformed, not over 0, or over 100 mm.
    """
    expected = "two numbers over 0 and at most 100, in mm"
    value = frame_value(dataset, "PixelSpacing", frame)
    rows, columns = numbers("PixelSpacing", value, 2, expected)
    if not (0 < rows <= 100 and 0 < columns <= 100):
        raise ImageError("PixelSpacing", f"{rows:g}\\{columns:g}", expected)
    return rows, columns


def _functional_groups(dataset: Dataset, frame: int) -> Iterator[Dataset]:
    """Yield the groups of a frame, then those of all frames."""
    for keyword, index in (("PerFrameFunctionalGroupsSequence", frame), ("SharedFunctionalGroupsSequence", 0)):
        items = value_of(dataset, keyword)
        if items is not None and not isinstance(items, Items):
            raise ImageError(keyword, type(items).__name__, "a sequence")
        if items and index < len(items):
            yield items[index]


def _check_length(tag: BaseTag, length: int) -> None:
    """Refuse a value that pydicom would make too many objects of."""
    if length <= MAX_VALUE_BYTES:
        return
    try:
        kind = dictionary_VR(tag)
    except KeyError:  # nobody asks for what has no name
        return
    longest = MAX_SEQUENCE_BYTES if kind == "SQ" else MAX_VALUE_BYTES
    if _BULK.isdisjoint(kind.split(" or ")) and length > longest:
        raise ImageError(keyword_for_tag(tag), f"{length:,} bytes", f"at most {longest:,} bytes")


def _check_room(header: Dataset, size: int) -> None:
    """Refuse more frames than a file of a size has room for: whoever lists them would run out of memory."""
    frames = frame_count(header)
    if frames == 1:
        return
    least = MIN_FRAME_BYTES
    syntax = transfer_syntax(header)
    if syntax is None or not syntax.is_encapsulated:
        rows, columns, bits = (
            integer(name, value_of(header, name), 1) for name in ("Rows", "Columns", "BitsAllocated")
        )
        least = max(1, rows * columns * bits // 8)
    if frames * least > size:
        raise ImageError("NumberOfFrames", frames, f"at most {size // least}, as the file has {size:,} bytes")
