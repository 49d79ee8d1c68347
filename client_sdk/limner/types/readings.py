"""Blinded readings: what readers are asked, what they said, and how far they and the model agree."""

from collections.abc import Mapping
from datetime import datetime
from enum import StrEnum
from typing import Annotated

from pydantic import Field

from limner.imaging.grid import Grid
from limner.types.common import ModelIdentity, Result
from limner.types.simulation import SimulationMethod, SimulationResult, Verdict


class ItemKind(StrEnum):
    """What an image of a reading is; `RANDOMISED` and `CLASS_MEAN` are controls."""

    REAL = "real"
    SIMULATED = "simulated"
    RESAMPLED = "resampled"
    RANDOMISED = "randomised"
    CLASS_MEAN = "class_mean"


class SimulationQuestion(Result):
    """Which finished simulation is meant: what `simulate` was asked. `checks`: whether it was checked."""

    model: str
    cohort: str
    method: SimulationMethod
    steps: int
    seed: int
    checks: bool

    @classmethod
    def of(cls, result: SimulationResult) -> "SimulationQuestion":
        """Return the question that a result answers."""
        return cls(
            model=str(result.model),
            cohort=result.cohort,
            method=result.method,
            steps=result.steps,
            seed=result.seed,
            checks=bool(result.checks),
        )


class LexiconEntry(Result):
    """A feature that readers are asked for, and what may be said of it, 2 to 12 options."""

    name: Annotated[str, Field(min_length=1, max_length=64)]
    options: Annotated[tuple[str, ...], Field(min_length=2, max_length=12)]


class ReaderToken(Result):
    """A reader, and the token that opens the reading for them; it is told once."""

    reader: str
    token: str


class ItemCount(Result):
    """How many images of a kind and a label a reading holds."""

    kind: ItemKind
    label: str
    images: int


class ReaderProgress(Result):
    """How far a reader is: cases with a verdict, verdicts in all, and when the last came (None before the first)."""

    reader: str
    done: int
    verdicts: int
    last: datetime | None


class Reading(Result):
    """A reading as who runs it sees it.

    Attributes
    ----------
    id
        16 hexadecimal digits.
    title, question
        What readers see.
    label
        The label whose likelihood is asked.
    grid
        Of every image.
    items
        What there is to read, by kind and label; which image is which is told by the export, once closed.
    total
        Number of images.
    closed
        When; None while it is open.
    """

    id: str
    title: str
    question: str
    label: str
    labels: tuple[str, ...]
    lexicon: tuple[LexiconEntry, ...]
    model: ModelIdentity
    cohort: str
    cohort_digest: str
    seed: int
    grid: Grid
    items: tuple[ItemCount, ...]
    total: int
    readers: tuple[ReaderProgress, ...]
    created: datetime
    closed: datetime | None


class NewReading(Result):
    """A reading that was made, and the token of each reader, told this once."""

    reading: Reading
    tokens: tuple[ReaderToken, ...]


class ReadingForm(Result):
    """A reading as a reader sees it.

    Attributes
    ----------
    size, spacing_mm
        Edge of every image in pixels, and of a pixel.
    cases
        Ids in this reader's order.
    done
        Places of the cases with a verdict, from 1.
    closed
        Whether no verdict is taken any more.
    """

    title: str
    question: str
    lexicon: tuple[LexiconEntry, ...]
    reader: str
    size: int
    spacing_mm: float
    cases: tuple[str, ...]
    done: tuple[int, ...]
    closed: bool


class ReaderVerdict(Result):
    """What a reader says of a case.

    Attributes
    ----------
    id
        8 to 64 letters, digits and '-', new for each verdict: the same may be handed in again.
    case
        Id of the case.
    likelihood
        Of the label asked about, 0 to 100; its five steps are 20 wide.
    realism
        1 (surely simulated) to 5 (surely real).
    confidence
        In the likelihood, 1 (a guess) to 5 (certain).
    features
        Options of the lexicon by name; what was not judged is left out.
    comment
        At most 4,000 characters.
    seconds
        That the case was on the screen.
    """

    id: str
    case: str
    likelihood: float
    realism: int
    confidence: int
    features: Mapping[str, str] = {}
    comment: str = ""
    seconds: float = 0.0


class Case(Result):
    """One image to be judged.

    Attributes
    ----------
    position
        In the reader's order, from 1.
    pixels
        `size * size` uint16, row by row, little-endian, 0 to 65535.
    verdict
        The reader's own that counts, with an empty id; None before the first.
    """

    id: str
    position: int
    pixels: Annotated[bytes, Field(repr=False)]
    size: int
    spacing_mm: float
    verdict: ReaderVerdict | None


class Receipt(Result):
    """A verdict is kept: its id, whether it was there already, and how many of the cases are done."""

    id: str
    repeated: bool
    done: int
    total: int


class AgreementFigure(Result):
    """A figure of agreement with its 95 % percentile interval by bootstrap; docs/reading.md has the formulas.

    Attributes
    ----------
    name
        "kappa_quadratic", "kappa_linear", "icc_2_1", "icc_3_1", "auc_real_simulated", "auc_real_randomised",
        "auc_real_class_mean" or "auc_label".
    first, second
        Readers, or "model"; empty for all readers together.
    value, low, high
        NaN where it is not defined.
    resampled
        What the bootstrap draws: "cases", or "cases and readers".
    """

    name: str
    first: str
    second: str
    value: float
    low: float
    high: float
    cases: int
    readers: int
    resampled: str

    @property
    def raters(self) -> str:
        """Whose agreement it is, in words: "ann and model", "all readers and model" or "all readers"."""
        first = self.first or "all readers"
        return f"{first} and {self.second}" if self.second else first


class GroupSummary(Result):
    """Mean likelihood (0 to 100) and realism (1 to 5; NaN of the model) of one rater over one kind and label."""

    reader: str
    kind: ItemKind
    label: str
    cases: int
    likelihood: float
    realism: float


class Agreement(Result):
    """How far the readers of a closed reading and the model agree."""

    reading: Reading
    figures: tuple[AgreementFigure, ...]
    groups: tuple[GroupSummary, ...]
    resamples: int
    seed: int


class ReadingItem(Result):
    """An image of a closed reading.

    Attributes
    ----------
    number
        In the reading, from 0.
    subject, instance
        Of a real slice, pseudonymous.
    simulation
        Which of the reading's simulations it is from; None of real slices and class means.
    simulation_verdict
        What that may be called.
    probabilities
        The model's, of each label; out of fold where `out_of_fold`.
    pixels
        As readers saw it, see `Case`; empty where not asked for.
    """

    number: int
    kind: ItemKind
    label: str
    subject: str
    instance: str
    simulation: int | None
    simulation_verdict: Verdict | None
    probabilities: tuple[float, ...]
    out_of_fold: bool
    pixels: Annotated[bytes, Field(repr=False)] = b""


class RecordedVerdict(Result):
    """A verdict as it was kept.

    Attributes
    ----------
    sequence
        In the order of coming.
    item
        Number of the image.
    position
        Of the case in the reader's order, from 1.
    step
        Five-step scale of the likelihood.
    counts
        Whether it is this reader's last on this image.
    """

    sequence: int
    reader: str
    item: int
    position: int
    verdict: ReaderVerdict
    step: int
    counts: bool
    received: datetime


class ReadingExport(Result):
    """Everything of a closed reading: its images by number, and the verdicts in the order of coming."""

    reading: Reading
    items: tuple[ReadingItem, ...]
    verdicts: tuple[RecordedVerdict, ...]
