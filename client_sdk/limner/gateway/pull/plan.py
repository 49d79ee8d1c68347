"""What a pull would fetch: the studies that match, their series, and which of these the rules take.

Series are judged before a pixel is fetched, by what the source tells of them; where it does not tell, they are fetched.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain

from pydicom.dataset import Dataset
from pydicom.uid import MRImageStorage

from limner.gateway.journal import is_uid
from limner.gateway.peers import PeerError, is_of_one_request
from limner.gateway.pull.query import Level, Query
from limner.gateway.pull.sources import UNIQUE, Instance, Source
from limner.imaging.rules import SelectionRules
from limner.imaging.selection import select
from limner.imaging.series import gather_series, named_series

STUDY_FIELDS = ("StudyDate", "PatientID", "AccessionNumber", "StudyDescription")
SERIES_FIELDS = ("Modality", "SeriesDescription", "ProtocolName", "SeriesNumber", "NumberOfSeriesRelatedInstances")
IMAGE_FIELDS = (
    *("SOPClassUID", "InstanceNumber", "NumberOfFrames", "ImageType", "ScanningSequence"),
    *("EchoTime", "RepetitionTime", "PixelSpacing", "SliceThickness"),
    *("ImageOrientationPatient", "ImagePositionPatient", "FrameOfReferenceUID"),
)
"""Attributes that the rules may look at."""


@dataclass(frozen=True)
class FoundStudy:
    """A study that a source has; everything but `series_keys` is identifying.

    Attributes
    ----------
    series_keys
        What its series have to match.
    """

    uid: str
    patient_id: str = ""
    date: str = ""
    accession_number: str = ""
    description: str = ""
    series_keys: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SeriesPlan:
    """A series, and what to fetch of it.

    Attributes
    ----------
    images
        Number of its instances; None where the source does not tell.
    instances
        Those to fetch.
    reasons
        Why none of it is fetched, a sentence for each rule that it does not pass.
    """

    uid: str
    modality: str
    description: str
    images: int | None
    instances: tuple[Instance, ...] = ()
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class StudyPlan:
    """A study, and what to fetch of its series; and why of some of them the source did not tell what they hold."""

    study: FoundStudy
    series: tuple[SeriesPlan, ...]
    failed: Mapping[str, str] = field(default_factory=dict)

    @property
    def instances(self) -> tuple[Instance, ...]:
        """Everything to fetch."""
        return tuple(instance for series in self.series for instance in series.instances)


def find_studies(source: Source, query: Query) -> list[FoundStudy]:
    """Return the studies that match.

    Raises
    ------
    PeerError
        The source did not answer, or refused.
    """
    return [
        FoundStudy(
            uid=_text(answer, "StudyInstanceUID"),
            patient_id=_text(answer, "PatientID"),
            date=_text(answer, "StudyDate"),
            accession_number=_text(answer, "AccessionNumber"),
            description=_text(answer, "StudyDescription"),
            series_keys=query.series,
        )
        for answer in source.find("STUDY", query.study, ("StudyInstanceUID", *STUDY_FIELDS))
    ]


def plan_study(source: Source, study: FoundStudy, rules: SelectionRules | None) -> StudyPlan:
    """Ask for the series and instances of a study, and judge them.

    Parameters
    ----------
    rules
        What a series must be; None: all are taken.

    Raises
    ------
    PeerError
        The source did not answer, or refused.
    """
    keys = {"StudyInstanceUID": _checked(source, "STUDY", study.uid), **study.series_keys}
    listed: list[tuple[SeriesPlan, list[Dataset]]] = []
    failed: dict[str, str] = {}
    for answer in source.find("SERIES", keys, ("SeriesInstanceUID", *SERIES_FIELDS)):
        try:
            listed.append(_listed(source, study, answer, rules))
        except PeerError as error:
            if not is_of_one_request(error):
                raise
            failed[_text(answer, "SeriesInstanceUID")] = str(error)
    # All series at once: one that was split over several is judged as a whole.
    objections = _objections(chain.from_iterable(headers for _, headers in listed), rules) if rules else {}
    return StudyPlan(study, tuple(_judged(series, objections) for series, _ in listed), failed)


def _listed(
    source: Source, study: FoundStudy, answer: Dataset, rules: SelectionRules | None
) -> tuple[SeriesPlan, list[Dataset]]:
    """Return a series with all its instances and what is told of them, unless its name is enough to leave it out."""
    uid = _uid(source, "SERIES", answer)
    modality, description = _text(answer, "Modality"), _text(answer, "SeriesDescription", "ProtocolName")
    images = _text(answer, "NumberOfSeriesRelatedInstances")
    series = SeriesPlan(uid, modality, description, int(images) if images.isdecimal() else None)
    if rules is not None:
        (decision,) = select([named_series(uid, modality, description)], rules)
        if decision.known_reasons:
            return replace(series, reasons=decision.known_reasons), []
    above = {"StudyInstanceUID": study.uid, "SeriesInstanceUID": uid}
    headers = _headers(source, above)
    instances = tuple(
        Instance(study.uid, uid, _uid(source, "IMAGE", header), _text(header, "SOPClassUID")) for header in headers
    )
    for header in headers:
        header.PatientID, header.StudyInstanceUID, header.SeriesInstanceUID = study.patient_id, study.uid, uid
        header.Modality, header.SeriesDescription = modality, description
        header.SeriesNumber = answer.get("SeriesNumber")
    return replace(series, images=len(instances), instances=instances), headers


def _headers(source: Source, above: Mapping[str, str]) -> list[Dataset]:
    """Ask for the instances of a series and what the rules may look at, or where that is too much, for the former."""
    try:
        return source.find("IMAGE", above, ("SOPInstanceUID", *IMAGE_FIELDS))
    except PeerError as error:
        if not is_of_one_request(error):
            raise
        return source.find("IMAGE", above, ("SOPInstanceUID",))


def _objections(headers: Iterable[Dataset], rules: SelectionRules) -> dict[str, tuple[str, ...]]:
    """Return what speaks against each instance, by its UID; nothing where a frame of it is wanted."""
    found: dict[str, list[tuple[str, ...]]] = {}
    known = (header for header in headers if _frames_are_known(header))
    for decision in select(gather_series(known), rules):
        for one in decision.series.slices:
            found.setdefault(one.instance_uid, []).append(decision.known_reasons)
    return {uid: _common(reasons) for uid, reasons in found.items()}


def _judged(series: SeriesPlan, objections: Mapping[str, tuple[str, ...]]) -> SeriesPlan:
    """Leave a series out where something speaks against each of its instances."""
    if reasons := _common([objections.get(one.uid, ()) for one in series.instances]):
        return replace(series, instances=(), reasons=reasons)
    return series


def _common(reasons: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return all reasons, or none where one of them is none."""
    return tuple(dict.fromkeys(chain.from_iterable(reasons))) if all(reasons) else ()


def _frames_are_known(header: Dataset) -> bool:
    """Whether a source tells how many frames an instance has: one that does not says little of it at all."""
    return bool(header.get("NumberOfFrames")) or header.get("SOPClassUID") == MRImageStorage


def _uid(source: Source, level: Level, answer: Dataset) -> str:
    return _checked(source, level, _text(answer, UNIQUE[level]))


def _checked(source: Source, level: Level, uid: str) -> str:
    """Return the UID of what was found, which will be the name of a file or folder."""
    if not is_uid(uid):
        raise PeerError(f"{source} answered {UNIQUE[level]} {uid!r}; expected numbers with dots between them")
    return uid


def _text(answer: Dataset, *keywords: str) -> str:
    return next((text for keyword in keywords if (text := str(answer.get(keyword) or "").strip())), "")
