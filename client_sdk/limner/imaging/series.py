"""What a folder of DICOM holds: its series, as the headers of their slices describe them.

Works on headers only; no pixel is read. What could not be read is returned beside what could: nothing is dropped
unnamed. Which series are used is `selection.py`'s, which subjects and labels a cohort has the caller's.

A SeriesInstanceUID is only where to begin: one that holds several echoes, stacks, orientations or kinds of image (as an
Enhanced MR instance or a localizer may) is several series here, and one series that was split over several
SeriesInstanceUIDs is one.
"""

from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset

from limner.imaging.errors import ImageError
from limner.imaging.files import each_file
from limner.imaging.headers import (
    as_image_errors,
    frame_count,
    frame_value,
    numbers,
    orientation,
    pixel_spacing,
    position,
    read_header,
    value_of,
    why_unreadable,
)

Plane = Literal["transverse", "sagittal", "coronal", "oblique", "unknown"]
PLANES: tuple[Plane, ...] = ("transverse", "sagittal", "coronal", "oblique", "unknown")
# A normal further than this from every axis of the patient belongs to no plane: cos 45°, less rounding.
MIN_COSINE = 0.7072


@dataclass(frozen=True, slots=True)
class SeriesSlice:
    """One slice of a series: where it is stored, and where it lies.

    Attributes
    ----------
    path, frame
        The file, and the frame in it, from 0.
    instance_uid
        SOPInstanceUID, an identifying attribute: pseudonymise it before it leaves the machine.
    position_mm
        Along the normal of the slices; None where the header has no position.
    """

    path: Path
    frame: int
    instance_uid: str
    position_mm: float | None


@dataclass(frozen=True)
class Series:
    """One series: slices of one orientation, stack, echo time and kind of image.

    `patient_id` and the UIDs are identifying attributes: pseudonymise them before they leave the machine.

    Attributes
    ----------
    series_uid
        SeriesInstanceUID; the first of them by name where the series was split.
    image_type
        Of the frames where they have one of their own (FrameType, PS3.3 C.8.13.3.1), else of the image.
    sequence
        ScanningSequence or EchoPulseSequence; EP too where EchoPlanarPulseSequence says so.
    slices
        In the order of their positions; in that of their instance numbers where positions are missing.
    pixel_spacing_mm
        Between rows, between columns; None when missing or malformed.
    echo_time_ms, repetition_time_ms, slice_thickness_mm
        None when missing or malformed.
    other_series_uids
        The further SeriesInstanceUIDs of a series that was split.
    """

    patient_id: str
    study_uid: str
    series_uid: str
    description: str
    modality: str
    plane: Plane
    image_type: tuple[str, ...]
    sequence: tuple[str, ...]
    echo_time_ms: float | None
    repetition_time_ms: float | None
    pixel_spacing_mm: tuple[float, float] | None
    slices: tuple[SeriesSlice, ...]
    slice_thickness_mm: float | None = None
    other_series_uids: tuple[str, ...] = ()


@dataclass(frozen=True)
class FoundFiles:
    """What a folder holds: its series, and every file that belongs to none, with the reason."""

    series: list[Series]
    unreadable: list[tuple[Path, str]]


def find_series(folder: Path, progress: Callable[[], None] | None = None) -> FoundFiles:
    """Read the header of every file under a folder and group the images into series.

    Parameters
    ----------
    folder
        Walked to its end; links to folders are not followed.
    progress
        Called once after each file.

    Returns
    -------
    FoundFiles
        Series in the order of patient, study, description and UID.

    Raises
    ------
    ImageError
        When `folder` is no folder.
    """
    if not folder.is_dir():
        raise ImageError("folder", folder, "an existing folder")
    groups: dict[_Key, _Group] = {}
    unreadable: list[tuple[Path, str]] = []
    for path in each_file(folder, unreadable):
        try:
            for group in _groups(path):
                groups.setdefault(group.key, group).absorb(group)
        except (ImageError, OSError) as error:
            unreadable.append((path, why_unreadable(path, error)))
        if progress:
            progress()
    series = [group.series() for group in _joined(groups.values())]
    series.sort(key=lambda one: (one.patient_id, one.study_uid, one.description, one.series_uid, one.plane))
    return FoundFiles(series, unreadable)


def gather_series(headers: Iterable[Dataset]) -> list[Series]:
    """Group images into series as `find_series` does, of headers that are not in files: their paths are empty.

    One that cannot be understood is left out.
    """
    groups: dict[_Key, _Group] = {}
    for header in headers:
        with suppress(ImageError):
            for group in _frames(Path(), header):
                groups.setdefault(group.key, group).absorb(group)
    return [group.series() for group in _joined(groups.values())]


def named_series(uid: str, modality: str, description: str) -> Series:
    """Return a series of which no more than this is known."""
    header = Dataset()
    header.SeriesInstanceUID, header.Modality, header.SeriesDescription = uid, modality, description
    return _facts(header, 0, None)


@dataclass(frozen=True)
class _Key:
    """What the slices of one series have in common; of a SeriesInstanceUID with several of these, each is a series."""

    series_uid: str
    orientation: tuple[float, ...] | None
    stack: str
    echo_time_ms: float | None
    image_type: tuple[str, ...]


@dataclass(frozen=True)
class _Facts:
    """What a header says of its series: the series without slices, and SeriesNumber and FrameOfReferenceUID."""

    series: Series
    acquisition: tuple[str, str]


@dataclass
class _Group:
    """A series being gathered: what its headers say, and its slices with their instance numbers.

    Headers themselves are not kept: those of 100,000 slices would not fit in memory.
    """

    key: _Key
    told: Counter[_Facts]
    """What how many headers say."""
    slices: list[tuple[int, SeriesSlice]]

    @property
    def facts(self) -> _Facts:
        """What most headers say: one that is wrong does not speak for its neighbours."""
        return self.told.most_common(1)[0][0]

    def absorb(self, other: "_Group") -> None:
        if other is not self:
            self.told += other.told
            self.slices += other.slices

    def series(self) -> Series:
        ordered = sorted(self.slices, key=lambda one: (one[1].position_mm or 0.0, one[0], one[1].frame))
        return replace(self.facts.series, slices=tuple(one for _, one in ordered))


def _joined(groups: Iterable[_Group]) -> list[_Group]:
    """Join what differs in nothing but SeriesInstanceUID and place: one series that was split.

    Slices at the same place were acquired twice, so that each of these series stands for itself.
    """
    alike: dict[object, list[_Group]] = {}
    for group in groups:
        facts = group.facts
        nameless = replace(facts, series=replace(facts.series, series_uid=""))
        alike.setdefault((replace(group.key, series_uid=""), nameless), []).append(group)
    joined: list[_Group] = []
    for parts in alike.values():
        places = [one.position_mm for part in parts for _, one in part.slices]
        distinct = {round(place, 1) for place in places if place is not None}
        if all(parts[0].facts.acquisition) and len(distinct) == len(places):
            first, *others = sorted(parts, key=lambda part: part.key.series_uid)
            whole = replace(first.facts.series, other_series_uids=tuple(part.key.series_uid for part in others))
            slices = list(chain.from_iterable(part.slices for part in parts))
            joined.append(_Group(first.key, Counter([replace(first.facts, series=whole)]), slices))
        else:
            joined += parts
    return joined


@as_image_errors
def _groups(path: Path) -> list[_Group]:
    """Return the group of each frame of a file."""
    if not path.is_file():
        raise ImageError("file", "not a regular file", "a DICOM file")
    header = read_header(path)
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        if value_of(header, keyword) is None:
            raise ImageError(keyword, "missing", "an instance of a series")
    if value_of(header, "Rows") is None:
        raise ImageError("PixelData", "missing", "an instance with pixels")
    return _frames(path, header)


@as_image_errors
def _frames(path: Path, header: Dataset) -> list[_Group]:
    return [_group(path, header, frame) for frame in range(frame_count(header))]


def _group(path: Path, header: Dataset, frame: int) -> _Group:
    cosines, place = orientation(header, frame), position(header, frame)
    along = None if cosines is None or place is None else float(np.dot(_normal(cosines), place))
    one = SeriesSlice(path, frame, str(header.SOPInstanceUID), along)
    facts = _facts(header, frame, cosines)
    echo_time = facts.echo_time_ms
    key = _Key(
        facts.series_uid,
        # A tenth is far below the angle between two planes and far above rounding between two slices.
        None if cosines is None else tuple(round(cosine, 1) + 0.0 for cosine in cosines),
        str(frame_value(header, "StackID", frame) or ""),
        None if echo_time is None else round(echo_time, 1),
        facts.image_type,
    )
    acquisition = (_text(header, "SeriesNumber"), _text(header, "FrameOfReferenceUID"))
    return _Group(
        key, Counter([_Facts(facts, acquisition)]), [(int(_number(header, frame, "InstanceNumber") or 0), one)]
    )


def _facts(header: Dataset, frame: int, cosines: tuple[float, ...] | None) -> Series:
    return Series(
        patient_id=_text(header, "PatientID"),
        study_uid=_text(header, "StudyInstanceUID"),
        series_uid=_text(header, "SeriesInstanceUID"),
        description=_text(header, "SeriesDescription") or _text(header, "ProtocolName"),
        modality=_text(header, "Modality"),
        plane=_plane(cosines),
        image_type=_words(frame_value(header, "FrameType", frame) or value_of(header, "ImageType")),
        sequence=_sequence(header, frame),
        echo_time_ms=_number(header, frame, "EchoTime", "EffectiveEchoTime"),
        repetition_time_ms=_number(header, frame, "RepetitionTime"),
        pixel_spacing_mm=_spacing(header, frame),
        slices=(),
        slice_thickness_mm=_number(header, frame, "SliceThickness"),
    )


def _sequence(header: Dataset, frame: int) -> tuple[str, ...]:
    words = _words(value_of(header, "ScanningSequence") or value_of(header, "EchoPulseSequence"))
    planar = frame_value(header, "EchoPlanarPulseSequence", frame) == "YES"  # PS3.3 C.8.13.4
    return (*words, "EP") if planar and "EP" not in words else words


def _normal(cosines: tuple[float, ...]) -> NDArray[np.float64]:
    return np.cross(cosines[:3], cosines[3:])


def _plane(cosines: tuple[float, ...] | None) -> Plane:
    """Name the plane by the axis that its normal is nearest to (PS3.3 C.7.6.2.1.1)."""
    if cosines is None:
        return "unknown"
    components = np.abs(_normal(cosines))
    if components.max() < MIN_COSINE:
        return "oblique"
    names: tuple[Plane, ...] = ("sagittal", "coronal", "transverse")
    return names[int(components.argmax())]


def _text(header: Dataset, keyword: str) -> str:
    value = value_of(header, keyword)
    return "" if value is None else str(value).strip()


def _words(value: object) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    return (value,) if isinstance(value, str) else tuple(str(word) for word in value)  # type: ignore[attr-defined]


def _number(header: Dataset, frame: int, *keywords: str) -> float | None:
    for keyword in keywords:
        value = frame_value(header, keyword, frame)
        if value is not None:
            try:
                return numbers(keyword, value, 1, "a number")[0]
            except ImageError:
                return None
    return None


def _spacing(header: Dataset, frame: int) -> tuple[float, float] | None:
    try:
        return pixel_spacing(header, frame)
    except ImageError:
        return None
