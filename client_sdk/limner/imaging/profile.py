"""Whole DICOM images without what identifies: PS3.15 annex E, Basic Application Level Confidentiality Profile.

The table of the profile (E.1-1) lies beside this module, equal to that of the package `dicom-anonymizer`, to which a
test holds it. The profile asks for it in every sequence and for UIDs that are consistent, which that package does not
do. Private and unknown attributes are removed, and dates, names and UIDs that the table does not know, by their VR. Of
the options of E.3 those are offered that research on MR needs (`Retain`).

Pixels are left as they are. So only kinds of image are accepted whose pixels hold no text by rule, and of these none
that says it has some; that nobody has burned a name in, and that no face is seen, is not checked.
"""

import csv
import re
from collections.abc import Collection, Mapping
from datetime import date, timedelta
from enum import StrEnum
from functools import cache
from importlib.metadata import version
from importlib.resources import files
from io import BytesIO
from pathlib import Path

from pydicom.datadict import dictionary_VR, keyword_for_tag
from pydicom.dataelem import DataElement, empty_value_for_VR
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.multival import MultiValue
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag
from pydicom.uid import UID, EnhancedMRImageStorage, LegacyConvertedEnhancedMRImageStorage, MRImageStorage

from limner.imaging.deidentify import Pseudonymiser
from limner.imaging.errors import ImageError
from limner.imaging.headers import as_image_errors, read_header
from limner.imaging.protocol_words import is_protocol

EDITION = "2026c"
TABLE = "ps3_15_e1_1.csv"
CLASSES = (MRImageStorage, EnhancedMRImageStorage, LegacyConvertedEnhancedMRImageStorage)

_DATES = frozenset({"DA", "DT", "TM"})
_TIME_OF_DAY = re.compile(r"[\d.:+-]*", re.ASCII)
_BIRTH = frozenset({"PatientBirthDate", "PatientBirthTime"})
_NAMES = frozenset({"PatientID", "PatientName"})
# UIDs of vocabularies, which stand in every code.
_VOCABULARIES = frozenset({"CodingSchemeUID", "ContextUID", "MappingResourceUID"})
_TYPE_2_SEQUENCES = frozenset({"AcquisitionContextSequence"})
_DESCRIPTORS = frozenset({"SeriesDescription", "ProtocolName"})

# By VR (PS3.5 6.2), where a value is required and none may be told.
_DUMMIES: Mapping[str, object] = {
    **dict.fromkeys(("AE", "CS", "LO", "LT", "PN", "SH", "ST", "UC", "UT"), "REMOVED"),
    "AS": "000Y",
    "DA": "19000101",
    "DT": "19000101000000",
    "TM": "000000",
    "UR": "about:blank",
    **dict.fromkeys(("DS", "IS"), "0"),
    **dict.fromkeys(("FD", "FL"), 0.0),
    **dict.fromkeys(("SL", "SS", "SV", "UL", "US", "UV"), 0),
    **dict.fromkeys(("OB", "OW", "UN"), b"\0\0"),
}


class Retain(StrEnum):
    """An option of PS3.15 E.3: what is kept beside what the basic profile keeps."""

    DATES = "dates"
    """Dates, shifted by a number of days that is the patient's own; times of day as they are. Not the date of birth."""
    DEVICE = "device"
    """Which device acquired the images."""
    PATIENT = "patient"
    """Sex, age, size, weight and the like."""
    DESCRIPTIONS = "descriptions"
    """SeriesDescription and ProtocolName, where all their words are of the language of MR protocols."""


# Codes of DCM (PS3.16 CID 7050).
BASIC = ("113100", "Basic Application Confidentiality Profile")
_CODES = {
    Retain.DATES: ("113107", "Retain Longitudinal Temporal Information Modified Dates Option"),
    Retain.DEVICE: ("113109", "Retain Device Identity Option"),
    Retain.PATIENT: ("113108", "Retain Patient Characteristics Option"),
    Retain.DESCRIPTIONS: ("113105", "Clean Descriptors Option"),
}

# K in the columns of these options. Where a column says C, free text, it is removed.
_KEPT = {
    Retain.DEVICE: (
        *("CassetteID", "DetectorID", "DeviceDescription", "DeviceLabel", "DeviceSerialNumber", "DeviceUID"),
        *("GantryID", "GeneratorID", "ManufacturerDeviceClassUID", "ManufacturerDeviceIdentifier", "PlateID"),
        *("PerformedStationGeographicLocationCodeSequence", "PerformedStationName"),
        *("PerformedStationNameCodeSequence", "ScheduledProcedureStepLocation"),
        *("ScheduledStationGeographicLocationCodeSequence", "ScheduledStationName"),
        *("ScheduledStationNameCodeSequence", "ScheduledStudyLocation", "SourceManufacturer", "SourceSerialNumber"),
        *("StationName", "TransducerIdentificationSequence", "TreatmentMachineName", "UDISequence"),
        "UniqueDeviceIdentifier",
    ),
    Retain.PATIENT: (
        *("EthnicGroup", "PatientAge", "PatientSex", "PatientSexNeutered", "PatientSize", "PatientWeight"),
        *("PregnancyStatus", "SmokingStatus"),
    ),
}


@as_image_errors
def deidentified(
    source: Path | bytes, names: Pseudonymiser, retain: Collection[Retain] = (), *, pixels: bool = True
) -> FileDataset:
    """Return an MR image without what identifies the patient, the people and the place.

    Parameters
    ----------
    source
        The file, or its content.
    names
        Gives PatientID, PatientName and UIDs their pseudonyms, and the dates their shift.
    retain
        Options.
    pixels
        False to leave the pixels out, where only names are wanted.

    Returns
    -------
    FileDataset
        With new file meta information, the pixels in the transfer syntax that they were in, and what PS3.15 E.1.1 asks
        for: PatientIdentityRemoved, DeidentificationMethod and its codes, LongitudinalTemporalInformationModified.

    Raises
    ------
    ImageError
        When it is no MR image, cannot be read, or may hold text in its pixels.
    OSError
        When the file cannot be read.
    """
    dataset, options = read_header(source, pixels=pixels), frozenset(retain)
    _check(dataset, pixels)
    cleaner = _Cleaner(dataset, names, options)
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = dataset.file_meta.TransferSyntaxUID
    cleaned = FileDataset("", cleaner.clean(dataset), file_meta=meta, preamble=bytes(128))
    cleaned.set_original_encoding(*dataset.original_encoding)
    meta.MediaStorageSOPClassUID = cleaned.SOPClassUID
    meta.MediaStorageSOPInstanceUID = cleaned.SOPInstanceUID
    _declare(cleaned, dataset, options)
    return cleaned


@as_image_errors
def encoded(dataset: Dataset) -> bytes:
    """Return a dataset as the content of a file; ImageError where it cannot be written."""
    buffer = BytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def method(retain: Collection[Retain]) -> str:
    """Return what an output says of how it was made, at most 64 characters: "Limner 0.1.0, PS3.15 2026c, dates"."""
    return ", ".join([f"Limner {version('limner')}", f"PS3.15 {EDITION}", *sorted(retain)])


def _check(dataset: Dataset, pixels: bool) -> None:
    """Refuse what the profile cannot be kept for without looking at the pixels."""
    storage_class = dataset.get("SOPClassUID")
    if storage_class not in CLASSES:
        expected = "MR images; others may hold text in their pixels, or their content in text"
        raise ImageError("SOPClassUID", UID(storage_class).name if storage_class else "missing", expected)
    if not dataset.get("SOPInstanceUID"):
        raise ImageError("SOPInstanceUID", "missing", "an instance")
    if dataset.get("BurnedInAnnotation") == "YES":
        raise ImageError("BurnedInAnnotation", "YES", "no text in the pixels: they are not cleaned")
    if dataset.get("SamplesPerPixel") != 1:
        found = dataset.get("SamplesPerPixel")
        raise ImageError("SamplesPerPixel", found, "1, a grey image; a colour one is a picture of a screen")
    syntax = UID(getattr(dataset, "file_meta", Dataset()).get("TransferSyntaxUID") or "")
    if syntax.type != "Transfer Syntax":
        raise ImageError("TransferSyntaxUID", syntax or "missing", "a transfer syntax of PS3.5")
    for group in range(0x6000, 0x6020, 2):
        place = dataset.get((group, 0x0102))
        if place is not None and place.value:  # retired (PS3.3 C.9.2)
            raise ImageError("OverlayBitPosition", "a bit of the pixels", "an overlay of its own, which is removed")
    if pixels and "PixelData" not in dataset:
        raise ImageError("PixelData", "missing or cut off", "an instance with whole pixels")


class _Cleaner:
    """Applies the profile to a dataset and everything in it."""

    def __init__(self, source: Dataset, names: Pseudonymiser, retain: frozenset[Retain]) -> None:
        self._names = names
        self._retain = retain
        self._patient_id = str(source.get("PatientID") or "").strip()
        self._enhanced = source.SOPClassUID != MRImageStorage
        self._kept = frozenset(keyword for option in retain for keyword in _KEPT.get(option, ()))

    def clean(self, source: Dataset) -> Dataset:
        """Return the attributes that are left, with the values that they have now."""
        target = Dataset()
        for tag in sorted(source.keys()):
            # What goes is not looked at: a value that cannot be parsed spoils nothing then.
            if (action := self._action(tag, source.get_item(tag).VR)) == "X":
                continue
            try:
                element = source[tag]
            except Exception as error:  # whatever pydicom makes of a value that is none
                raise ImageError(keyword_for_tag(tag), f"not readable: {error}", "a value of its VR") from error
            if (cleaned := self._apply(action, element)) is not None:
                target.add(cleaned)
        return target

    def _action(self, tag: BaseTag, stored_vr: str | None) -> str:
        """Return what is done with an attribute: X, Z, D, U as in table E.1-1, K to keep it.

        `stored_vr` is what the file says of it, which is not always what the standard does.
        """
        # Group lengths, file meta information that strayed, curves and overlays.
        if tag.element == 0 or tag.group < 0x0008 or tag.group & 0xFF00 in (0x5000, 0x6000):
            return "X"
        try:
            standard_vr, keyword = dictionary_VR(tag), keyword_for_tag(tag)
        except KeyError:  # private, or of no edition that pydicom knows
            return "X"
        vr = standard_vr if stored_vr in (None, "UN") else stored_vr
        code = _table().get(int(tag)) or {"PN": "X/Z", "UI": "U", **dict.fromkeys(_DATES, "X")}.get(vr, "K")
        if keyword in self._kept | _VOCABULARIES or (keyword in _DESCRIPTORS and Retain.DESCRIPTIONS in self._retain):
            return "K"
        if vr in _DATES and Retain.DATES in self._retain and keyword not in _BIRTH:
            return "K"
        choices = code.split("/")
        if "U*" in choices:
            return "K"
        if vr == "SQ":
            return "Z" if keyword in _TYPE_2_SEQUENCES else choices[0].replace("D", "X")
        # The least in MR Image, where the attributes with a choice are of type 3, the most in Enhanced MR, where some
        # are of type 1.
        return choices[-1] if self._enhanced else choices[0]

    def _apply(self, action: str, element: DataElement) -> DataElement | None:
        keyword, vr = element.keyword, element.VR
        if keyword in _NAMES:
            pseudonym = self._patient_id and self._names.subject(self._patient_id)
            # The caret makes a family name of it (PS3.5 6.2.1.2).
            return _with_value(element, pseudonym and f"{pseudonym}^" if vr == "PN" else pseudonym)
        if action == "Z":
            return _emptied(element)
        if action == "D":
            return _with_value(element, _DUMMIES.get(vr))
        if vr == "SQ":
            return _with_value(element, Sequence([self.clean(item) for item in element.value]))
        if action == "U":
            return _with_value(element, self._uids(element.value))
        if vr in _DATES:
            return self._shifted(element)
        if keyword in _DESCRIPTORS and not is_protocol(str(element.value)):
            return None
        # Of what is no number pydicom returns the text.
        if vr in ("DS", "IS") and (texts := [one for one in _values(element.value) if type(one) is str]):
            raise ImageError(keyword, texts[0], "a number")
        return element

    def _uids(self, value: object) -> object:
        if isinstance(value, MultiValue):
            return [self._uids(one) for one in value]
        uid = UID(str(value or ""))
        # What DICOM itself has named, a class or a known frame of reference, names no patient.
        return uid if not uid or uid.name != uid else self._names.uid(uid)

    def _shifted(self, element: DataElement) -> DataElement:
        """Shift dates; times of day stay (PS3.15 E.3.6). What is neither is emptied."""
        days = 0 if element.VR == "TM" else self._names.days(self._patient_id)
        try:
            return _with_value(element, [_shift(str(value), element.VR, days) for value in _values(element.value)])
        except (ValueError, OverflowError):
            return _emptied(element)


@cache
def _table() -> dict[int, str]:
    """Return the code of the basic profile by tag; groups 50xx and 60xx, which repeat, are not in it."""
    lines = files("limner.imaging").joinpath(TABLE).read_text(encoding="ascii").splitlines()
    return {int(row["tag"], 16): row["code"] for row in csv.DictReader(lines)}


def _declare(cleaned: Dataset, source: Dataset, retain: frozenset[Retain]) -> None:
    """Say in a dataset what was done (PS3.15 E.1.1), after what others say that they have done before."""
    cleaned.PatientIdentityRemoved = "YES"
    cleaned.LongitudinalTemporalInformationModified = "MODIFIED" if Retain.DATES in retain else "REMOVED"
    methods = [*map(str, _values(source.get("DeidentificationMethod"))), method(retain)]
    cleaned.DeidentificationMethod = list(dict.fromkeys(methods))
    sequence = list(cleaned.get("DeidentificationMethodCodeSequence") or [])
    declared = {code.get("CodeValue") for code in sequence}
    for value, meaning in (BASIC, *(_CODES[option] for option in sorted(retain))):
        if value not in declared:
            code = Dataset()
            code.CodeValue, code.CodingSchemeDesignator, code.CodeMeaning = value, "DCM", meaning
            sequence.append(code)
    cleaned.DeidentificationMethodCodeSequence = sequence


def _with_value(element: DataElement, value: object) -> DataElement:
    return DataElement(element.tag, element.VR, value)


def _emptied(element: DataElement) -> DataElement:
    return _with_value(element, Sequence() if element.VR == "SQ" else empty_value_for_VR(element.VR))


def _values(value: object) -> list[object]:
    if isinstance(value, MultiValue):
        return list(value)
    return [value] if value else []


def _shift(text: str, vr: str, days: int) -> str:
    """Shift a date (DA), or the date that a date and time begins with (DT). ValueError where it is none."""
    length = 0 if vr == "TM" else 8
    if not _TIME_OF_DAY.fullmatch(text[length:]) or (vr == "DA" and len(text) > length):
        raise ValueError(text)
    if vr == "TM":
        return text
    return (date.fromisoformat(text[:8]) + timedelta(days=days)).isoformat().replace("-", "") + text[8:]
