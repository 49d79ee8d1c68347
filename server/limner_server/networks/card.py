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


DISTANCE = "distance"
"""Name of the output that only artifacts with a reference have."""


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
    """A figure with its 95 % interval, which counts subjects."""

    name: str
    value: float
    low: float
    high: float
    interval: str = "bootstrap"
    """How the interval was found; docs/evaluation.md lists the ways."""


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
    chosen: str = ""
    """The label that the metrics count it as: by the threshold of the other folds. Empty on older cards."""


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


class Bin(_Record):
    """One bin of a calibration curve, of the probability of the class of interest."""

    predicted: float
    """Mean probability of the bin's slices."""
    observed: float
    """Share of them that are of the class of interest."""
    low: float
    """Lower end of the 95 % interval of `observed`."""
    high: float
    count: int
    """Number of slices; one counts for each repeat, where single networks are served."""


class PermutationTest(_Record):
    """AUC against that of labels permuted among subjects."""

    p: float
    permutations: int
    null: tuple[float, ...]
    """Percentiles 0 to 100 of the AUC under permutation, 101 of them."""


class LearningPoint(_Record):
    """What a share of the training subjects is good for."""

    subjects: int
    """Mean number of subjects that a network was trained on."""
    auc: Metric


class SimilarPair(_Record):
    """Two slices of different subjects that look alike: possible leakage."""

    first: str
    first_subject: str
    second: str
    second_subject: str
    similarity: float
    """Correlation of the normalised slices, -1 to 1; exactly 1 for copies."""


class Evaluation(_Record):
    """What out-of-fold predictions are worth, beyond `metrics`; docs/evaluation.md says how each figure is computed."""

    repeats: int
    per_repeat: tuple[float, ...]
    """AUC by subject of each repeat by itself."""
    slices: tuple[Metric, ...]
    """As `metrics`, by slice: to be shown only beside those by subject. Intervals are over subjects all the same."""
    roll_ups: dict[str, Metric]
    """AUC by subject for each way to roll its slices up: `mean_logit` (the one served), `mean_probability`, ..."""
    confusion: tuple[tuple[int, ...], ...]
    """Subjects by true label (rows) and chosen label (columns), at the thresholds of `metrics`."""
    calibration_before: tuple[Bin, ...]
    calibration_after: tuple[Bin, ...]
    """Before and after temperature scaling, by slice."""
    permutation: PermutationTest | None = None
    """Two labels only, like AUC by DeLong."""
    delong: Metric | None = None
    """AUC by subject with its interval after DeLong."""
    bootstrap: Metric | None = None
    """AUC by subject with its percentile interval over resamples of subjects."""
    learning_curve: tuple[LearningPoint, ...] = ()
    """From the fewest subjects to all; empty where it was not asked for."""
    similar: tuple[SimilarPair, ...] = ()
    """The most alike first, at most 100."""
    similar_found: int = 0
    """How many there are in all."""
    epochs: tuple[int, ...] = ()
    """Epochs after which each fold's network was taken, where training could stop early."""


class Reference(_Record):
    """The training cohort in the space of embeddings; docs/evaluation.md says how the distance is computed."""

    neighbours: int
    """Number of nearest training slices that the distance is the mean of."""
    slices: int
    """Number of training slices in the artifact."""
    percentiles: Annotated[tuple[float, ...], Field(min_length=101, max_length=101)]
    """Percentiles 0 to 100 of the distance of held-out training subjects' slices."""

    def judge(self, distance: float) -> tuple[float, bool]:
        """Percentile of a distance, 0 to 100, and whether it is far: over the 99th."""
        return float(np.interp(distance, self.percentiles, np.arange(101))), distance > self.percentiles[99]


class SiblingModel(_Record):
    """A network trained on the same subjects from another seed, the judge of check 8 of a simulation."""

    file: str
    digest: Digest
    seed: int


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
    sibling: SiblingModel | None = None
    members: Annotated[int, Field(ge=1)] = 1
    """Networks whose logits are averaged; more than 1 for an ensemble of fold networks."""
    evaluation: Evaluation | None = None
    """None in the cards of older versions."""
    reference: Reference | None = None
    """None in the cards of older versions: no distance is told."""
    calibration: Calibration
    threshold: Threshold
    versions: dict[str, str]
    """Of python, torch, torchvision and limner."""
    created: AwareDatetime
    digest: Digest
    """sha256 of `model.pt`."""

    @property
    def outputs(self) -> dict[str, int]:
        """Outputs of the artifact's `forward` by name, in order: number of values for one image."""
        labels = len(self.labels)
        outputs = {"logits": labels, "probabilities": labels, "embedding": self.channels[-1]}
        return outputs | ({} if self.reference is None else {DISTANCE: 1})

    def choose(self, probabilities: Sequence[float] | NDArray[np.floating[Any]]) -> int:
        """Index of the label that probabilities `(k,)` stand for: of two by the threshold, else the most probable."""
        if len(self.labels) == 2:
            return int(probabilities[1] >= self.threshold.value)
        return int(np.argmax(probabilities))
