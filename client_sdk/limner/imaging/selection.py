"""Finding the series of a folder, and choosing the T2-weighted ones among them, with a reason for each that is not.

Works on headers only; no pixel is read. What could not be read is returned beside what could: nothing is dropped
unnamed. Which subjects and labels a cohort has is the caller's.
"""

import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.errors import InvalidDicomError

from limner.imaging.errors import ImageError
from limner.imaging.headers import (
    as_image_errors,
    frame_count,
    frame_value,
    numbers,
    orientation,
    pixel_spacing,
    position,
    read_header,
)

Plane = Literal["transverse", "sagittal", "coronal", "oblique", "unknown"]
PLANES: tuple[Plane, ...] = ("transverse", "sagittal", "coronal", "oblique", "unknown")
# Names that promise DICOM.
DICOM_SUFFIXES = frozenset({".dcm", ".dicom", ".ima"})
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
    """One series, or the part of one that has one orientation.

    `patient_id` and the UIDs are identifying attributes: pseudonymise them before they leave the machine.

    Attributes
    ----------
    slices
        In the order of their positions; in that of their instance numbers where positions are missing.
    pixel_spacing_mm
        Between rows, between columns; None when missing or malformed.
    echo_time_ms, repetition_time_ms
        None when missing or malformed.
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


@dataclass(frozen=True)
class FoundFiles:
    """What a folder holds: its series, and every file that belongs to none, with the reason."""

    series: list[Series]
    unreadable: list[tuple[Path, str]]


@dataclass(frozen=True)
class SelectionRules:
    """What a series must be to be taken; the defaults are those of a T2-weighted turbo spin echo.

    Attributes
    ----------
    planes
        The planes to keep.
    min_echo_time_ms, min_repetition_time_ms
        T2 weighting: T1-weighted and proton-density series have shorter ones.
    min_slices, max_pixel_spacing_mm
        Localizers have few slices and large pixels.
    localizer, diffusion
        Regular expressions, without case; a series whose description matches is rejected.
    """

    planes: frozenset[Plane] = frozenset(PLANES)
    min_echo_time_ms: float = 60.0
    min_repetition_time_ms: float = 1500.0
    min_slices: int = 5
    max_pixel_spacing_mm: float = 2.0
    localizer: str = r"locali[sz]er|scout|survey|(three|3).?(plane|pl\b)"
    diffusion: str = r"diff|dwi|dti|(^|[^a-z])adc([^a-z]|$)|trace|(^|[^a-z])epi?([^a-z]|\d|$)|b_?value"


@dataclass(frozen=True)
class Decision:
    """Whether a series is taken, and every rule that speaks against it: what was found, what was expected."""

    series: Series
    reasons: tuple[str, ...] = ()

    @property
    def accepted(self) -> bool:
        """Whether no rule speaks against it."""
        return not self.reasons


def find_series(folder: Path, progress: Callable[[], None] | None = None) -> FoundFiles:
    """Read the header of every file under a folder and group the images by series and orientation.

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
    for path in each_file(folder, lambda path, reason: unreadable.append((path, reason))):
        try:
            for key, group in _groups(path):
                groups.setdefault(key, group).absorb(group)
        except (ImageError, OSError) as error:
            unreadable.append((path, _why_not(path, error)))
        if progress:
            progress()
    series = [group.series() for group in groups.values()]
    series.sort(key=lambda one: (one.patient_id, one.study_uid, one.description, one.series_uid, one.plane))
    return FoundFiles(series, unreadable)


def select(series: list[Series], rules: SelectionRules | None = None) -> list[Decision]:
    """Judge each series by every rule, in the order given."""
    rules = rules or SelectionRules()
    return [Decision(one, tuple(_objections(one, rules))) for one in series]


def _objections(series: Series, rules: SelectionRules) -> Iterator[str]:
    kind = "\\".join(series.image_type) or "missing"
    if series.modality != "MR":
        yield f"modality is {series.modality or 'missing'}; expected MR"
    if series.image_type[:2] != ("ORIGINAL", "PRIMARY"):
        yield f"image type is {kind}; expected ORIGINAL\\PRIMARY"
    if re.search(rules.localizer, series.description, re.IGNORECASE):
        yield f"description is {series.description!r}; expected no localizer, scout or survey"
    if (
        re.search(rules.diffusion, series.description, re.IGNORECASE)
        or {"ADC", "DIFFUSION"} & set(series.image_type)
        or "EP" in series.sequence
    ):
        sequence = "\\".join(series.sequence) or "missing"
        found = f"{series.description!r}, {kind}, sequence {sequence}"
        yield f"series is {found}; expected no diffusion, ADC or echo-planar images"
    yield from _too_small("echo time", series.echo_time_ms, rules.min_echo_time_ms, " ms")
    yield from _too_small("repetition time", series.repetition_time_ms, rules.min_repetition_time_ms, " ms")
    yield from _too_small("number of slices", len(series.slices), rules.min_slices, "")
    spacing = series.pixel_spacing_mm
    if spacing is None or max(spacing) > rules.max_pixel_spacing_mm:
        found = "missing" if spacing is None else f"{max(spacing):g} mm"
        yield f"pixel spacing is {found}; expected at most {rules.max_pixel_spacing_mm:g} mm"
    if series.plane not in rules.planes:
        yield f"plane is {series.plane}; expected {' or '.join(p for p in PLANES if p in rules.planes) or 'none'}"


def _too_small(name: str, value: float | None, minimum: float, unit: str) -> Iterator[str]:
    if value is None:
        yield f"{name} is missing; expected at least {minimum:g}{unit}"
    elif value < minimum:
        yield f"{name} is {value:g}{unit}; expected at least {minimum:g}{unit}"


_Key = tuple[str, tuple[float, ...] | None]


@dataclass
class _Group:
    """A series being gathered: what its first header says, and its slices with their instance numbers.

    Headers themselves are not kept: those of 100,000 slices would not fit in memory.
    """

    facts: Series
    slices: list[tuple[int, SeriesSlice]]

    def absorb(self, other: "_Group") -> None:
        if other is not self:
            self.slices += other.slices

    def series(self) -> Series:
        ordered = sorted(self.slices, key=lambda one: (one[1].position_mm or 0.0, one[0], one[1].frame))
        return replace(self.facts, slices=tuple(one for _, one in ordered))


def _why_not(path: Path, error: ImageError | OSError) -> str:
    """Tell a file that never was DICOM (NBIA's metadata.csv and LICENSE, say) from a broken one."""
    never = isinstance(error.__cause__, InvalidDicomError) and path.suffix.lower() not in DICOM_SUFFIXES
    return "not DICOM" if never else str(error)


def each_file(folder: Path, unreadable: Callable[[Path, str], None]) -> Iterator[Path]:
    """Give every file under a folder, those of a folder in order; `unreadable` is told of folders and why."""

    def note(error: OSError) -> None:
        unreadable(Path(error.filename), str(error))

    for parent, folders, names in os.walk(folder, onerror=note):
        folders.sort()
        for name in sorted(names):
            yield Path(parent, name)


@as_image_errors
def _groups(path: Path) -> list[tuple[_Key, _Group]]:
    """Return the group of each frame of a file."""
    if not path.is_file():
        raise ImageError("file", "not a regular file", "a DICOM file")
    header = read_header(path)
    for keyword in ("SOPInstanceUID", "SeriesInstanceUID"):
        if not header.get(keyword):
            raise ImageError(keyword, "missing", "an instance of a series")
    if header.get("Rows") is None:
        raise ImageError("PixelData", "missing", "an instance with pixels")
    return [_group(path, header, frame) for frame in range(frame_count(header))]


def _group(path: Path, header: Dataset, frame: int) -> tuple[_Key, _Group]:
    cosines, place = orientation(header, frame), position(header, frame)
    along = None if cosines is None or place is None else float(np.dot(_normal(cosines), place))
    one = SeriesSlice(path, frame, str(header.SOPInstanceUID), along)
    # A tenth is far below the angle between two planes and far above rounding between two slices.
    rounded = None if cosines is None else tuple(round(cosine, 1) + 0.0 for cosine in cosines)
    facts = _facts(header, frame, cosines)
    return (facts.series_uid, rounded), _Group(facts, [(int(header.get("InstanceNumber") or 0), one)])


def _facts(header: Dataset, frame: int, cosines: tuple[float, ...] | None) -> Series:
    return Series(
        patient_id=_text(header, "PatientID"),
        study_uid=_text(header, "StudyInstanceUID"),
        series_uid=_text(header, "SeriesInstanceUID"),
        description=_text(header, "SeriesDescription") or _text(header, "ProtocolName"),
        modality=_text(header, "Modality"),
        plane=_plane(cosines),
        image_type=_words(header.get("ImageType")),
        sequence=_words(header.get("ScanningSequence") or header.get("EchoPulseSequence")),
        echo_time_ms=_time(header, frame, "EchoTime", "EffectiveEchoTime"),
        repetition_time_ms=_time(header, frame, "RepetitionTime"),
        pixel_spacing_mm=_spacing(header, frame),
        slices=(),
    )


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
    return str(header.get(keyword) or "").strip()


def _words(value: object) -> tuple[str, ...]:
    if value is None or value == "":
        return ()
    return (value,) if isinstance(value, str) else tuple(str(word) for word in value)  # type: ignore[attr-defined]


def _time(header: Dataset, frame: int, *keywords: str) -> float | None:
    for keyword in keywords:
        value = frame_value(header, keyword, frame)
        if value is not None:
            try:
                return numbers(keyword, value, 1, "a time in ms")[0]
            except ImageError:
                return None
    return None


def _spacing(header: Dataset, frame: int) -> tuple[float, float] | None:
    try:
        return pixel_spacing(header, frame)
    except ImageError:
        return None
