"""The model card: everything that is known of one version of a model, as `card.json` beside its artifact.

Only a record: figures are computed elsewhere. docs/artifact.md tells of each field to those who read the JSON.
"""

from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, JsonValue

from limner.imaging.grid import Grid

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Normalisation(_Record):
    """How the artifact normalises a slice: clipped to two of its percentiles, then to mean 0 and deviation 1."""

    low_percentile: float
    high_percentile: float


class CohortSummary(_Record):
    """What the model was trained on."""

    name: str
    digest: str
    subjects: dict[str, int]
    """Number of subjects that have slices of each label."""
    slices: dict[str, int]
    """Number of slices of each label."""


class Metric(_Record):
    """A figure with its 95 % bootstrap interval over subjects."""

    name: str
    value: float
    low: float
    high: float


class SliceLogits(_Record):
    """Out-of-fold logits of one slice, in the order of the labels."""

    instance: str
    logits: tuple[float, ...]


class SubjectPrediction(_Record):
    """Out-of-fold prediction of one subject, or of its slices of one label where labels differ within it."""

    subject: str
    label: str
    fold: int
    logits: tuple[float, ...]
    """Mean of the slices' logits."""
    slices: tuple[SliceLogits, ...]


class HeldOutMargin(_Record):
    """How a half-cohort model tells one label's held-out slices from the others'."""

    label: str
    difference: float
    """Mean margin for the label on its slices, minus that on all other slices."""
    deviation: float
    """Standard deviation of the margin over all held-out slices."""


class HalfModel(_Record):
    """A model of half of the subjects, the independent judge of check 2 of a simulation."""

    file: str
    digest: Digest
    subjects: tuple[str, ...]
    """The subjects it was trained on."""
    held_out: tuple[HeldOutMargin, ...]
    """Its margins on the other half's slices, one for each label."""


class Calibration(_Record):
    """Temperature and what it did to out-of-fold slices."""

    temperature: Annotated[float, Field(gt=0)]
    brier_before: float
    brier_after: float
    ece_before: float
    ece_after: float


class Threshold(_Record):
    """With two labels: probability of the second from which it is chosen."""

    value: Annotated[float, Field(ge=0, le=1)]
    rule: str
    """How it was found."""


class ModelCard(_Record):
    """One version of a model."""

    schema_version: Literal[1] = 1
    notice: Literal["Research software, not for diagnostic use."] = "Research software, not for diagnostic use."
    name: str
    training: str
    """Id of the training that made it."""
    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    """In the order of logits and probabilities, the class of interest last."""
    grid: Grid
    normalisation: Normalisation
    architecture: str
    channels: Annotated[tuple[int, ...], Field(min_length=5, max_length=5)]
    """Number of channels of stem, layer1 to layer4; the last is the width of the embedding."""
    cohort: CohortSummary
    seed: int
    config: dict[str, JsonValue]
    """The training's configuration, every default filled in."""
    folds: int
    metrics: tuple[Metric, ...]
    """Of the out-of-fold predictions, by subject."""
    out_of_fold: tuple[SubjectPrediction, ...]
    halves: tuple[HalfModel, ...] = ()
    calibration: Calibration
    threshold: Threshold
    versions: dict[str, str]
    """Of python, torch, torchvision and limner."""
    created: AwareDatetime
    digest: Digest
    """sha256 of `model.pt`."""

    def choose(self, probabilities: Sequence[float] | NDArray[np.floating[Any]]) -> int:
        """Index of the label that probabilities `(k,)` stand for: of two by the threshold, else the most probable."""
        if len(self.labels) == 2:
            return int(probabilities[1] >= self.threshold.value)
        return int(np.argmax(probabilities))
