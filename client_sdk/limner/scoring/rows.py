"""A scored image as a row: how the journal keeps it, and as what the tables show it."""

from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

from limner.scoring.sources import Item, clean
from limner.types import ItemResult, ModelIdentity


class Row(NamedTuple):
    """What is known of one image once it is scored, or has failed.

    Attributes
    ----------
    position
        In the source, from 0.
    known_label
        What the source said of it; `label` is what the model says.
    probabilities, logits
        One for each label of the model; empty where the image failed.
    distance, distance_percentile, far
        From what the model was trained on; None where the image failed or the model holds no reference.
    model, version, digest
        Which artifact answered, or was to answer.
    error, code, field, value, expected
        Why it failed, as `limner.types.Failure` has it; empty where it did not.
    """

    position: int
    id: str
    subject: str
    path: str
    frame: int | None
    known_label: str
    label: str
    probabilities: Sequence[float]
    logits: Sequence[float]
    distance: float | None
    distance_percentile: float | None
    far: bool | None
    model: str
    version: str
    digest: str
    error: str
    code: str
    field: str
    value: str
    expected: str


def to_row(item: Item, result: ItemResult, model: ModelIdentity) -> Row:
    """Return the row of a result."""
    scores, failure = result.prediction, result.error
    distance = scores.distance if scores else None
    return Row(
        position=item.position,
        id=item.image.id,
        subject=item.image.subject,
        path=item.path,
        frame=item.image.frame if item.path else None,
        known_label=item.label,
        label=scores.label if scores else "",
        probabilities=scores.probabilities if scores else (),
        logits=scores.logits if scores else (),
        distance=distance.value if distance else None,
        distance_percentile=distance.percentile if distance else None,
        far=distance.far if distance else None,
        model=model.name,
        version=model.version,
        digest=model.digest,
        error=clean(failure.message) if failure else "",
        code=failure.code if failure else "",
        field=failure.field if failure else "",
        value=clean(failure.value) if failure else "",
        expected=failure.expected if failure else "",
    )


Columns = dict[str, type]
"""Names and types of a table's columns: str, int, float or bool."""


def image_columns(labels: Sequence[str]) -> Columns:
    """Columns of the table of images, of a model with these labels."""
    return {
        **dict.fromkeys(("id", "subject", "path"), str),
        "frame": int,
        **dict.fromkeys(("known_label", "label"), str),
        **score_columns(labels),
        "distance": float,
        "distance_percentile": float,
        "far": bool,
        **dict.fromkeys(("model", "version", "digest", "error"), str),
    }


def image_cells(rows: Iterable[Row], labels: Sequence[str]) -> Iterator[Sequence[object]]:
    """Give the cells of the table of images."""
    nothing = [None] * len(labels)
    for row in rows:
        yield (
            *(row.id, row.subject, row.path, row.frame, row.known_label, row.label),
            *(row.probabilities or nothing),
            *(row.logits or nothing),
            *(row.distance, row.distance_percentile, row.far),
            *(row.model, row.version, row.digest, row.error),
        )


def score_columns(labels: Sequence[str]) -> Columns:
    """Columns of what a model says of an image or a subject."""
    return dict.fromkeys([*(f"p_{label}" for label in labels), *(f"logit_{label}" for label in labels)], float)


FAILURE_COLUMNS: Columns = {
    **dict.fromkeys(("id", "subject", "path"), str),
    "frame": int,
    **dict.fromkeys(("code", "field", "value", "expected", "error"), str),
}


def failure_cells(rows: Iterable[Row]) -> Iterator[Sequence[object]]:
    """Give the cells of the table of failures."""
    for row in rows:
        if row.code:
            yield row.id, row.subject, row.path, row.frame, row.code, row.field, row.value, row.expected, row.error
