"""Reading what a DICOM header says, with the errors of a hostile or broken file told in one way.

Attributes are looked up where an instance may keep them: in the functional groups of its frame, in the groups that all
frames share (PS3.3 C.7.6.16, Enhanced MR), or at the top (PS3.3 C.8.3.1, MR Image). Pixels are `dicom.py`'s.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from io import BytesIO
from math import isfinite
from pathlib import Path
from typing import BinaryIO, ParamSpec, TypeVar

from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError
from pydicom.uid import DeflatedExplicitVRLittleEndian

from limner.imaging.errors import ImageError

P = ParamSpec("P")
T = TypeVar("T")

NOT_DICOM = "not DICOM"
# Names that promise DICOM.
DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})
# The file meta information, which names the transfer syntax, lies within these.
META_BYTES = 1024


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


@as_image_errors
def read_header(source: bytes | Path, pixels: bool = False) -> Dataset:
    """Return the attributes of a DICOM file that come before its pixels; with `pixels`, those too.

    Raises
    ------
    ImageError
        When it is not DICOM, cannot be parsed, or is deflated as a whole (PS3.5 A.5): its size is not known beforehand.
    OSError
        When the file cannot be opened or read.
    """
    with open_source(source) as file:
        if DeflatedExplicitVRLittleEndian.encode() in file.read(META_BYTES):
            raise ImageError("TransferSyntaxUID", DeflatedExplicitVRLittleEndian.name, "a syntax that is not deflated")
        file.seek(0)
        return dcmread(file, stop_before_pixels=not pixels)


def why_unreadable(path: Path, error: ImageError | OSError) -> str:
    """Tell a file that never was DICOM (NBIA's metadata.csv and LICENSE, say) from a broken one."""
    never = isinstance(error.__cause__, InvalidDicomError) and path.suffix.lower() not in DICOM_SUFFIXES
    return NOT_DICOM if never else str(error)


def frame_value(dataset: Dataset, keyword: str, frame: int = 0) -> object:
    """Return the value that an attribute has for one frame, None when it is missing or empty."""
    for groups in _functional_groups(dataset, frame):
        for macro in groups:
            items = macro.value if macro.VR == "SQ" and not macro.tag.is_private else None
            if items and keyword in items[0]:
                return _unless_empty(items[0].get(keyword))
    return _unless_empty(dataset.get(keyword))


def frame_count(dataset: Dataset) -> int:
    """Return the number of frames, 1 for an object that has none (PS3.3 C.7.6.6)."""
    count = dataset.get("NumberOfFrames")
    if count in (None, ""):
        return 1
    return integer("NumberOfFrames", count, 1)


def integer(keyword: str, value: object, minimum: int) -> int:
    """Return a value as a whole number, or raise `ImageError` naming the attribute."""
    try:
        number = int(str(value))
    except ValueError:
        number = minimum - 1
    if number < minimum:
        raise ImageError(keyword, "missing" if value is None else value, f"a whole number of at least {minimum}")
    return number


def numbers(keyword: str, value: object, count: int, expected: str) -> tuple[float, ...]:
    """Return a value as `count` finite numbers, or raise `ImageError` naming the attribute."""
    if value is None:
        raise ImageError(keyword, "missing", expected)
    parts = [value] if isinstance(value, str | int | float) or not hasattr(value, "__iter__") else list(value)
    try:
        parsed = tuple(float(str(part)) for part in parts)
    except ValueError:
        parsed = ()
    if len(parsed) != count or not all(isfinite(number) for number in parsed):
        raise ImageError(keyword, "\\".join(str(part) for part in parts), expected)
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
    frames = dataset.get("PerFrameFunctionalGroupsSequence") or []
    if frame < len(frames):
        yield frames[frame]
    yield from (dataset.get("SharedFunctionalGroupsSequence") or [])[:1]


def _unless_empty(value: object) -> object:
    return None if value is None or value == "" or value == [] else value
