"""What every DICOM result has in common: patient and study of its source, what made it, and that it is no diagnosis.

A result belongs to the source's patient and study to the letter, also where the source is not as the standard has it:
a PACS files by these values. Objects themselves are built elsewhere: `export.py`, `maps.py`, `limner.gateway.results`.
"""

from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from re import fullmatch, sub
from types import ModuleType
from typing import TypedDict

from pydicom.datadict import dictionary_has_tag, dictionary_VR
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset
from pydicom.sr.coding import Code
from pydicom.uid import EnhancedMRImageStorage, LegacyConvertedEnhancedMRImageStorage, MRImageStorage
from pydicom.valuerep import DA, STR_VR, TM, PersonName

from limner.imaging.errors import ImageError
from limner.imaging.files import replace_file
from limner.imaging.headers import as_image_errors

MANUFACTURER = "Limner"
CHARACTER_SET = "ISO_IR 192"
"""UTF-8, whatever the source has: labels may be in a script that the source's own set lacks (PS3.3 C.12.1.1.2)."""
SCHEME = "99LIMNER"
"""Coding scheme of our own concepts."""

_CLASSES = (MRImageStorage, EnhancedMRImageStorage, LegacyConvertedEnhancedMRImageStorage)
_DISPUTED = ("PatientName", "PatientBirthDate", "PatientSex", "StudyDate", "StudyTime")
_FUNCTIONAL_GROUPS = 0x5200
"""Sequences of an item for each frame, in which nothing of the patient is."""

# Of type 2 (PS3.3 C.7.1.1, C.7.2.1): to be there, perhaps empty. Some senders leave them out, highdicom insists.
_TYPE_2 = (
    *("PatientName", "PatientID", "PatientBirthDate", "PatientSex"),
    *("StudyDate", "StudyTime", "StudyID", "AccessionNumber", "ReferringPhysicianName"),
)


@dataclass(frozen=True)
class ModelReference:
    """The model that made a result: its name, its version and the sha256 of its artifact, in hexadecimal."""

    name: str
    version: str
    digest: str

    def __str__(self) -> str:
        return f"{self.name} version {self.version} sha256 {self.digest}"


@dataclass(frozen=True)
class Importance:
    """What a heat map shows: the importance of each place of `layer` for `label`, to `model`.

    `method` chose the layer's `channels`, so many (None: as many as the server takes by itself); docs/explain.md has
    the formulas. With the slice this says all: the same importance is the same heat map, but for last digits.
    """

    model: ModelReference
    label: str
    layer: str
    method: str
    channels: int | None = None

    def __str__(self) -> str:
        number = "" if self.channels is None else f"{self.channels} "
        return f"importance for {self.label} in {self.layer}, {number}channels by {self.method}"


class Equipment(TypedDict):
    """What made a result (PS3.3 C.7.5.2), as highdicom's constructors take it."""

    manufacturer: str
    manufacturer_model_name: str
    device_serial_number: str
    software_versions: str


def highdicom() -> ModuleType:
    """Return highdicom with the modules that are used here, or say which extra brings it.

    Raises
    ------
    ModuleNotFoundError
        When the extra `limner[gateway]` is not installed.
    """
    try:
        import highdicom.pm
        import highdicom.sc
        import highdicom.sr
    except ModuleNotFoundError as error:
        message = "DICOM output needs highdicom: pip install 'limner[gateway]'"
        raise ModuleNotFoundError(message, name=error.name) from error
    return highdicom


def stand_in(source: Dataset) -> Dataset:
    """Return a source as highdicom takes it.

    What cannot be parsed is left out, what has to be there is added, empty, and what highdicom would refuse is emptied:
    `finish` puts it back.

    Parameters
    ----------
    source
        An instance as pydicom reads it; it is not changed.

    Raises
    ------
    ImageError
        See `check_source`.
    """
    check_source(source)
    header = Dataset()
    for tag in source.keys():  # noqa: SIM118  a dataset iterates over elements, and stops at the first broken one
        with suppress(Exception):
            if _is_of_its_kind(element := source[tag]):
                header.add(_copied(element))
    for keyword in _TYPE_2:
        header.setdefault(keyword, "")
    for keyword in _DISPUTED:
        if _is_refused(header, keyword):
            header.add_new(keyword, header[keyword].VR, "")  # a new element: the present one is the source's
    return header


@as_image_errors
def check_source(source: Dataset) -> None:
    """Check what every result refers to.

    Raises
    ------
    ImageError
        When a UID is missing, or the instance is of no MR image class.
    """
    for keyword in ("StudyInstanceUID", "SeriesInstanceUID", "SOPInstanceUID"):
        if not isinstance(uid := source.get(keyword), str) or not uid:
            raise ImageError(keyword, uid or "missing", "one UID")
    if source.get("SOPClassUID") not in _CLASSES:
        expected = "MR Image Storage or Enhanced MR Image Storage"
        raise ImageError("SOPClassUID", source.get("SOPClassUID") or "missing", expected)


def _is_of_its_kind(element: DataElement) -> bool:
    """Whether text is text: highdicom gives a value the VR of its attribute, whichever the source has."""
    if not dictionary_has_tag(element.tag):
        return True
    own = dictionary_VR(element.tag)
    return own == element.VR or own not in STR_VR or isinstance(element.value, str | PersonName)


def _copied(element: DataElement) -> DataElement:
    """Return a sequence as a copy with its text decoded: what is not read would go on as bytes of the source's set."""
    if element.VR != "SQ" or element.tag.group == _FUNCTIONAL_GROUPS:
        return element
    for item in element.value:
        for _ in item.iterall():
            pass
    return deepcopy(element)


def finish(result: Dataset, source: Dataset, description: str, derivation: str = "") -> None:
    """Give an object its source's patient and study to the letter, and say what it is and what made it.

    Parameters
    ----------
    result
        Built upon `stand_in(source)`.
    description
        Shown in lists of series; ', not for diagnosis' is added.
    derivation
        The same of an image in full, with the model.
    """
    for keyword in _DISPUTED:
        with suppress(Exception):  # what cannot be parsed is left out
            if _is_refused(source, keyword):
                result[keyword] = source[keyword]
    describe(result, description, derivation)
    # Sequences get a length (PS3.5 7.5.1), as archives write them: what one returns is then what it got, to the byte.
    for element in result.iterall():
        if element.VR == "SQ":
            element.is_undefined_length = False
            for item in element.value:
                item.is_undefined_length_sequence_item = False


def describe(result: Dataset, description: str, derivation: str = "") -> None:
    """Say what an object is and what made it, as `finish` does."""
    result.SeriesDescription = f"{long_string(description, 44)}, not for diagnosis"
    if derivation:
        result.DerivationDescription = derivation[:1024]


def equipment(model: ModelReference) -> Equipment:
    """Return what made a result: Limner by a model, whose artifact is the device."""
    return {
        "manufacturer": MANUFACTURER,
        "manufacturer_model_name": long_string(model.name),
        "device_serial_number": model.digest,
        "software_versions": version("limner"),
    }


def long_string(text: str, length: int = 64) -> str:
    """Return text as a value of VR LO or SH: within its length in bytes, without what would make two values of it.

    The standard counts characters (PS3.5 6.2), much software bytes.
    """
    return text.replace("\\", "/").encode()[:length].decode(errors="ignore").strip()


def series_number(header: Dataset, offset: int) -> int:
    """Return the number of a series of results: that of a stand-in and an offset, within an IS (PS3.5 6.2)."""
    return min(max(whole_number(header, "SeriesNumber") + offset, 1), 2**31 - 1)


def whole_number(header: Dataset, keyword: str) -> int:
    """Return a number of a stand-in, 0 where it has none."""
    with suppress(TypeError, ValueError):
        return int(header.get(keyword) or 0)
    return 0


def private_code(value: str, meaning: str) -> Code:
    """Return a concept of our own, where the standard has none (PS3.16 8.2: private schemes begin with 99).

    Parameters
    ----------
    value
        Any text; what is more than 16 letters and digits (SH, PS3.5 6.2) is shortened and ends in a digest.
    meaning
        What a reader sees.
    """
    code = sub("[^A-Z0-9]", "-", value.upper())
    if not fullmatch("[A-Za-z0-9 _-]{1,16}", value):
        code = f"{code[:7]}-{sha256(value.encode()).hexdigest()[:8]}"
    return Code(code, SCHEME, long_string(meaning))


def write_dicom(path: Path, result: Dataset) -> None:
    """Write an object as a file, as a whole.

    Raises
    ------
    OSError
        When the file cannot be written; nothing is left behind.
    """
    with replace_file(path) as temporary:
        result.save_as(temporary, enforce_file_format=True)


def _is_refused(header: Dataset, keyword: str) -> bool:
    """Whether highdicom refuses a value of the patient or the study."""
    value = header.get(keyword)
    if keyword == "PatientName":
        return not isinstance(value, str | PersonName | None)
    if keyword == "PatientSex":
        return value not in (None, "", "M", "F", "O")
    try:
        (TM if keyword == "StudyTime" else DA)(value)
    except (ValueError, TypeError):
        return True
    return False
