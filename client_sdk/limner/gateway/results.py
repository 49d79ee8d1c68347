"""What goes back to the PACS for a series: its report, and by choice its heat maps as values and as pictures.

Decides which objects there are, in which order, and what happens where one cannot be made; each is built elsewhere
(`structured_report.py`, `limner.imaging`).
"""

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

from pydicom.dataset import Dataset

from limner.client import Client
from limner.gateway.kinds import Kind
from limner.gateway.scoring import ExplainedSeries, SeriesScore, explain_series
from limner.gateway.structured_report import prediction_report
from limner.imaging.derived import check_source
from limner.imaging.dicom import decode, read_header
from limner.imaging.errors import ImageError
from limner.imaging.export import heat_map_capture
from limner.imaging.maps import MappedSlice, parametric_maps

PICTURES = 3
"""Slices of a series that are sent as pictures: those that speak most for its label."""

MOST_BYTES = 256 << 20
"""Of all heat maps of a series."""


@dataclass
class SeriesResults:
    """What was made of a series' score.

    Attributes
    ----------
    description
        Of the series.
    objects
        In the order to be sent: the report first, since a PACS that refuses heat maps is to have it all the same.
    missing
        What could not be made, and why, in a sentence each.
    """

    description: str
    objects: list[Dataset] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)

    @contextmanager
    def optional(self, what: str) -> Iterator[None]:
        """Go on without an object that its source does not allow, and note why."""
        try:
            yield
        except ImageError as error:
            self.miss(f"no {what}: {error}")

    def miss(self, reason: str) -> None:
        """Note what could not be made, and why."""
        self.missing.append(f"series {self.description!r}: {reason}")


def series_results(client: Client, score: SeriesScore, kinds: Collection[Kind]) -> SeriesResults:
    """Make the results of a series.

    Heat maps that cannot be made, their source not saying where its slices lie, for example, keep no report back.

    Raises
    ------
    LimnerError
        A call failed.
    """
    results = SeriesResults(score.series.description)
    headers = _headers(score, results)
    if not headers:
        return results
    if Kind.HEAT_MAP in kinds or Kind.PICTURE in kinds:
        with results.optional("heat map"):
            _check_size(score, headers)
            explained = explain_series(client, score)
            for reason in explained.failed:
                results.miss(reason)
            if Kind.HEAT_MAP in kinds:
                _add_maps(explained, headers, results)
            if Kind.PICTURE in kinds:
                _add_pictures(explained, headers, results)
    if Kind.REPORT in kinds:
        card = client.model(f"{score.model.name}:{score.model.version}").card
        results.objects.insert(0, prediction_report(score, headers, card, tuple(results.objects)))
    return results


def _headers(score: SeriesScore, results: SeriesResults) -> dict[str, Dataset]:
    """Read the sources of what was scored, each once, by SOPInstanceUID."""
    headers = {}
    for uid, path in {part.instance_uid: part.path for part, _ in score.scored}.items():
        with results.optional(f"reference to instance {uid}"):
            header = read_header(path)
            check_source(header)
            headers[uid] = header
    return headers


def _check_size(score: SeriesScore, headers: Mapping[str, Dataset]) -> None:
    """Refuse more heat maps than fit in memory, some four times over."""
    known = [headers[part.instance_uid] for part, _ in score.scored if part.instance_uid in headers]
    size = sum(4 * int(header.Rows) * int(header.Columns) for header in known)
    if size > MOST_BYTES:
        raise ImageError("series", f"{size >> 20} MiB of heat maps", f"at most {MOST_BYTES >> 20} MiB")


def _add_maps(explained: ExplainedSeries, headers: Mapping[str, Dataset], results: SeriesResults) -> None:
    slices = [
        MappedSlice(headers[one.part.instance_uid], one.part.frame, one.values)
        for one in explained.maps
        if one.part.instance_uid in headers
    ]
    with results.optional("heat map"):
        results.objects += parametric_maps(slices, explained.importance)


def _add_pictures(explained: ExplainedSeries, headers: Mapping[str, Dataset], results: SeriesResults) -> None:
    known = [one for one in explained.maps if one.part.instance_uid in headers]
    for one in sorted(known, key=lambda one: -one.probability)[:PICTURES]:
        with results.optional("picture"):
            part, header = one.part, headers[one.part.instance_uid]
            image = decode(part.path, part.frame)
            picture = heat_map_capture(header, image, one.values, explained.importance, part.frame)
            results.objects.append(picture)
