"""What the report reads of a model card, also an older one: the records of `limner_server.networks.card` it shows.

Fields that a card of another version has more are ignored, and what an older one lacks is None or empty: the report
then says what was not measured, and how to get it. docs/artifact.md tells of each field.
"""

from pydantic import BaseModel, ConfigDict, JsonValue

from limner.types import Model


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")


class CardMetric(_Record):
    """A figure with its 95 % interval, and how that was found; empty where an older card does not tell."""

    name: str
    value: float
    low: float
    high: float
    interval: str = ""


class SubjectPrediction(_Record):
    """Out-of-fold logits of one subject, or of its slices of one label where labels differ within it.

    `chosen` is the label that the metrics count it as.
    """

    subject: str
    label: str
    fold: int
    logits: tuple[float, ...]
    chosen: str = ""


class Calibration(_Record):
    """Temperature, and Brier score and ECE of out-of-fold slices before and after it."""

    temperature: float
    brier_before: float | None = None
    brier_after: float | None = None
    ece_before: float | None = None
    ece_after: float | None = None


class Bin(_Record):
    """One bin of a calibration curve: mean probability, share observed with its 95 % interval, number of slices."""

    predicted: float
    observed: float
    low: float
    high: float
    count: int


class PermutationTest(_Record):
    """AUC against labels permuted among subjects; `null` holds percentiles 0 to 100 of the AUC under permutation."""

    p: float
    permutations: int
    null: tuple[float, ...]


class LearningPoint(_Record):
    """AUC of networks trained on a mean number of subjects."""

    subjects: int
    auc: CardMetric


class SimilarPair(_Record):
    """Two slices of different subjects that look alike, and the correlation of their pixels."""

    first: str
    first_subject: str
    second: str
    second_subject: str
    similarity: float


class Evaluation(_Record):
    """What out-of-fold predictions are worth, beyond the metrics by subject."""

    repeats: int = 1
    per_repeat: tuple[float, ...] = ()
    slices: tuple[CardMetric, ...] = ()
    roll_ups: dict[str, CardMetric] = {}
    confusion: tuple[tuple[int, ...], ...] = ()
    calibration_before: tuple[Bin, ...] = ()
    calibration_after: tuple[Bin, ...] = ()
    permutation: PermutationTest | None = None
    delong: CardMetric | None = None
    bootstrap: CardMetric | None = None
    learning_curve: tuple[LearningPoint, ...] = ()
    similar: tuple[SimilarPair, ...] = ()
    similar_found: int = 0
    epochs: tuple[int, ...] = ()


class Reference(_Record):
    """Percentiles 0 to 100 of the distance of held-out training slices from their nearest training slices."""

    neighbours: int
    slices: int
    percentiles: tuple[float, ...]

    @property
    def limit(self) -> float:
        """Return the distance from which on a slice is far from home."""
        return self.percentiles[99]


class CohortSummary(_Record):
    """The cohort that the model was trained on."""

    name: str = ""
    digest: str
    subjects: dict[str, int] = {}
    slices: dict[str, int] = {}


class Threshold(_Record):
    """Probability of the second of two labels from which it is chosen, and how it was found."""

    value: float
    rule: str


class Sibling(_Record):
    """The network of another seed that check 8 asks."""

    seed: int


class Half(_Record):
    """A model of half of the subjects."""

    subjects: tuple[str, ...] = ()


class Card(_Record):
    """The parts of a model card that the report lays out; the rest is shown as it is."""

    out_of_fold: tuple[SubjectPrediction, ...]
    calibration: Calibration
    cohort: CohortSummary | None = None
    threshold: Threshold | None = None
    folds: int | None = None
    members: int = 1
    evaluation: Evaluation | None = None
    reference: Reference | None = None
    sibling: Sibling | None = None
    halves: tuple[Half, ...] = ()
    config: dict[str, JsonValue] = {}
    versions: dict[str, str] = {}


def read_card(model: Model) -> Card:
    """Read the card of `model`.

    Raises
    ------
    pydantic.ValidationError
        Naming what is not of the form that docs/artifact.md describes, `out_of_fold` or `calibration` where missing.
    """
    return Card.model_validate(model.card)
