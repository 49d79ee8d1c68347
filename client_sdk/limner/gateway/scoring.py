"""From a study's folder to what the model says of its series: selection, one RPC a series, nothing kept back."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from limner.client import Client
from limner.errors import UnavailableError
from limner.images import Image
from limner.imaging.rules import SelectionRules
from limner.imaging.selection import Decision, select
from limner.imaging.series import Series, find_series
from limner.types import ImageResult, ModelIdentity, SubjectResult

# Codes of an image's failure that say nothing of the image.
_PASSING = {"UNAVAILABLE", "RESOURCE_EXHAUSTED", "DEADLINE_EXCEEDED", "CANCELLED", "INTERNAL"}


@dataclass(frozen=True)
class SeriesScore:
    """What the model says of one series.

    Attributes
    ----------
    series
        The series, its slices in order of position.
    model, labels
        The artifact that answered, and its labels, the class of interest last.
    results
        One for each slice, in order; a slice that could not be decoded has an error.
    subject
        The roll-up of those that could.
    """

    series: Series
    model: ModelIdentity
    labels: tuple[str, ...]
    results: tuple[ImageResult, ...]
    subject: SubjectResult


@dataclass(frozen=True)
class StudyScore:
    """What the model says of a study.

    Attributes
    ----------
    series
        Those that were asked about and have a slice that could be decoded.
    dead
        SOPInstanceUIDs that could not be scored, and why.
    left_out
        Series that were not asked about, and why, in a sentence each.
    """

    series: tuple[SeriesScore, ...]
    dead: dict[str, str]
    left_out: tuple[str, ...]


def score_study(client: Client, model: str, folder: Path, rules: SelectionRules) -> StudyScore:
    """Choose the series of a study that the model is for, and score their slices.

    Parameters
    ----------
    client
        Pixels and geometry go through it, under neutral names; no identifying attribute does.
    model
        NAME, NAME:VERSION or NAME:ALIAS.
    folder
        Of the study, one file an instance, named by its SOPInstanceUID.
    rules
        What a series must be.

    Raises
    ------
    LimnerError
        The call failed; UnavailableError too where the server refused single images for a reason of its own.
    """
    found = find_series(folder)
    dead = {path.stem: reason for path, reason in found.unreadable}
    scores, left_out = [], []
    for decision in select(found.series, rules):
        if not decision.accepted:
            left_out.append(_why(decision))
            continue
        score = _score(client, model, decision.series)
        for part, result in zip(decision.series.slices, score.results, strict=True):
            if result.error is not None:
                dead[part.instance_uid] = result.error.message
        if score.subject.images:
            scores.append(score)
    return StudyScore(tuple(scores), dead, tuple(left_out))


def _score(client: Client, model: str, series: Series) -> SeriesScore:
    images = [Image(part.path, frame=part.frame, subject=series.series_uid) for part in series.slices]
    stream = client.predict_stream(model, images)
    results = tuple(stream)
    _check(results)
    (subject,) = stream.subjects
    assert stream.model is not None  # noqa: S101 - the stream has ended
    return SeriesScore(series, stream.model, stream.labels, results, subject)


def _check(results: Sequence[ImageResult]) -> None:
    for result in results:
        if result.error is not None and result.error.code in _PASSING:
            raise UnavailableError(result.error.message)


def _why(decision: Decision) -> str:
    series = decision.series
    return f"series {series.description!r} ({series.plane}, {len(series.slices)} slices): " + "; ".join(
        decision.reasons
    )
