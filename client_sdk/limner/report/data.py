"""What a report shows: everything it needs to know, and nothing about where that came from.

`collect` gathers it from a server and a folder of DICOM; `report` makes the page of it.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from limner.cohort_flow import Flow
from limner.imaging.slices import Slice
from limner.types import Agreement, Cohort, FloatArray, Model, Prediction, SimulationResult


@dataclass(frozen=True, eq=False)
class RealSlice:
    """One slice of a subject, under its pseudonyms."""

    subject: str
    label: str
    image: Slice
    instance: str = ""

    @property
    def aspect(self) -> float:
        """Width over height in millimetres: pixels need not be square."""
        rows, columns = self.image.pixels.shape
        return float(columns * self.image.column_spacing_mm / (rows * self.image.row_spacing_mm))


@dataclass(frozen=True, eq=False)
class HeatMapExample:
    """One slice under its heat maps.

    Attributes
    ----------
    source
        The slice.
    target
        The label whose margin the heat maps explain.
    prediction
        What the served model says of the slice.
    heat_maps
        By layer: `(rows, columns)` of the source's raster, 0 to 1.
    """

    source: RealSlice
    target: str
    prediction: Prediction
    heat_maps: Mapping[str, FloatArray]


@dataclass(frozen=True, eq=False)
class ReportData:
    """Everything that a report shows.

    Attributes
    ----------
    cohort, model
        As the SDK returns them; the model's labels are the cohort's, and its card holds the out-of-fold scores.
    simulation
        Of this model and this cohort; None where none was asked for.
    slices
        The contact sheet, in the order of showing.
    examples
        Slices under heat maps, all of the same layers.
    command
        What made this report, as it could be typed again.
    created
        When.
    versions
        Of what made this report, by name.
    flow
        How the cohort's subjects were chosen; None where it is not known.
    seconds
        Duration of each step, by its name.
    reading
        How far readers and this model agree; None where there was no reading.
    """

    cohort: Cohort
    model: Model
    simulation: SimulationResult | None
    slices: tuple[RealSlice, ...]
    examples: tuple[HeatMapExample, ...]
    command: str
    created: datetime
    versions: Mapping[str, str] = field(default_factory=dict)
    flow: Flow | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)
    reading: Agreement | None = None

    @property
    def own_cohort(self) -> bool:
        """Whether the model was trained on this cohort, by its digest; True where an old card does not tell."""
        trained_on = self.model.card.get("cohort")
        return not isinstance(trained_on, dict) or trained_on.get("digest") in {None, self.cohort.digest}
