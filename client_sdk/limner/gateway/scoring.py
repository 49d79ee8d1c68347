"""From a study's folder to what the model says of its series, and where it looks: one RPC a series for each."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from limner.client import Client
from limner.errors import UnavailableError
from limner.images import Image
from limner.imaging.derived import Importance, ModelReference
from limner.imaging.rules import SelectionRules
from limner.imaging.selection import Decision, select
from limner.imaging.series import Series, SeriesSlice, find_series
from limner.types import FeatureOptions, ImageResult, ImportanceMethod, ItemResult, ModelIdentity, SubjectResult
from limner.types.common import FloatArray

LAYER = "layer2"
"""Of the heat maps: on the default grid of 64 pixels it has 8 each way, one for 16 mm; layer4 has two."""

METHOD = ImportanceMethod.GRADIENT_X_DEVIATION

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

    @property
    def scored(self) -> tuple[tuple[SeriesSlice, ImageResult], ...]:
        """The slices that could be scored, and what the model says of each."""
        pairs = zip(self.series.slices, self.results, strict=True)
        return tuple((part, result) for part, result in pairs if result.ok)


@dataclass(frozen=True, eq=False)
class SliceHeatMap:
    """Where the model looks in one slice.

    Attributes
    ----------
    part
        The slice.
    values
        `(rows, columns)` of the slice, 0 to 1.
    probability
        Of the label that the heat map is for, 0 to 1.
    """

    part: SeriesSlice
    values: FloatArray
    probability: float


@dataclass(frozen=True)
class ExplainedSeries:
    """Where the model looks in a series that it has scored.

    Attributes
    ----------
    importance
        What the heat maps show: the importance for the series' label, in all slices.
    maps
        One for each slice that could be explained, in order.
    failed
        Which slices could not be explained, and why, in a sentence each.
    """

    importance: Importance
    maps: tuple[SliceHeatMap, ...]
    failed: tuple[str, ...]


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


def explain_series(client: Client, score: SeriesScore) -> ExplainedSeries:
    """Ask for the heat maps of the slices that were scored, all for the label that the series was given.

    Raises
    ------
    LimnerError
        The call failed; UnavailableError too where another artifact answered than scored.
    """
    prediction = score.subject.prediction
    assert prediction is not None  # noqa: S101 - a score has a slice that was decoded
    options = FeatureOptions(layers=(LAYER,), method=METHOD, target=prediction.label, heat_maps=True)
    images = [Image(part.path, frame=part.frame) for part, _ in score.scored]
    stream = client.extract_features_stream(f"{score.model.name}:{score.model.version}", images, options)
    results = tuple(stream)
    _check(results)
    if stream.model != score.model:
        raise UnavailableError(f"{stream.model} is another artifact than the one that scored")
    number = score.labels.index(prediction.label)
    maps, failed = [], []
    for (part, _), result in zip(score.scored, results, strict=True):
        heat_map = result.layers[0].source_heat_map if result.layers else None
        if heat_map is None or result.prediction is None:
            failed.append(f"no heat map of instance {part.instance_uid}: {result.error}")
        else:
            maps.append(SliceHeatMap(part, heat_map, result.prediction.probabilities[number]))
    importance = Importance(ModelReference(**score.model.to_dict()), prediction.label, LAYER, METHOD)
    return ExplainedSeries(importance, tuple(maps), tuple(failed))


def _check(results: Sequence[ItemResult]) -> None:
    for result in results:
        if result.error is not None and result.error.code in _PASSING:
            raise UnavailableError(result.error.message)


def _why(decision: Decision) -> str:
    series = decision.series
    return f"series {series.description!r} ({series.plane}, {len(series.slices)} slices): " + "; ".join(
        decision.reasons
    )
