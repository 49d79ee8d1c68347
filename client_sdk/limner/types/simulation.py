"""Simulated images, their checks, and what they were made from."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING

from limner.imaging.grid import Grid
from limner.types.common import FloatArray, Metric, ModelIdentity, Prediction, Result
from limner.types.features import ImportanceMethod

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class SimulationMethod(StrEnum):
    """How simulated images are made: optimised, or averaged as in the paper (`COMPOSITE`, known to fail the checks)."""

    INVERSION = "inversion"
    COMPOSITE = "composite"


class Verdict(StrEnum):
    """What a result may be called; only an `EXPLANATION` may be shown as one."""

    EXPLANATION = "explanation"
    FAILED_CHECK = "failed_check"
    UNCHECKED = "unchecked"


class SimulatedImage(Result):
    """The image that stands for one label, and the nearest real slice of that label.

    Attributes
    ----------
    image, nearest
        `(size, size)` float32 on the model's grid, in standard deviations of a normalised slice, about -3 to 4.
    prediction
        What the served model says of `image`.
    nearest_instance, nearest_subject
        Pseudonymous ids of the nearest real slice.
    """

    label: str
    image: FloatArray
    prediction: Prediction
    nearest_instance: str
    nearest_subject: str
    nearest: FloatArray


class Check(Result):
    """One check of a simulation, numbered 1 to 8: its figure, what that is compared with, and what follows.

    Attributes
    ----------
    value, threshold, at_most
        The figure has to be at most the threshold where `at_most`, else at least.
    gate
        Whether failing it makes the verdict `FAILED_CHECK`; others are only reported.
    ran
        False where it could not be run; `detail` then says why.
    values
        The values behind the figure: each randomised network, each bootstrap resample, ...; of `label_permutation` the
        mean margin that was found.
    null
        Percentiles 0 to 100, 101 of them, of that mean margin under permuted labels; `label_permutation` only.
    source
        Where the threshold comes from.
    """

    number: int
    name: str
    value: float
    threshold: float
    at_most: bool
    passed: bool
    gate: bool
    ran: bool
    detail: str
    values: tuple[float, ...]
    null: tuple[float, ...] = ()
    source: str = ""


class FaithfulnessCurve(Result):
    """What becomes of the margin when channels of a layer are set to their means, over some of the cohort's slices.

    Attributes
    ----------
    layer
        "stem", "layer1" ... "layer4".
    method
        What the channels were ordered by, the most important first; `RANDOM` is the control.
    fractions
        Shares of the layer's channels, ascending from 0 to 1; every list below has one value for each.
    deletion
        Mean drop of the margin, in logits, with that share of the most important channels at their means.
    deletion_low, deletion_high
        Its 95 % bootstrap interval over subjects.
    insertion
        Mean drop of the margin with all but that share of the most important channels at their means.
    insertion_low, insertion_high
        Its 95 % bootstrap interval over subjects.
    areas
        Under the curves, in logits: "deletion", "insertion"; and, but for the control, "deletion_over_random" (better
        over 0) and "insertion_over_random" (better under 0), the differences from the control's on the same slices.
    slices
        Number of slices.
    """

    layer: str
    method: ImportanceMethod
    fractions: tuple[float, ...]
    deletion: tuple[float, ...]
    deletion_low: tuple[float, ...]
    deletion_high: tuple[float, ...]
    insertion: tuple[float, ...]
    insertion_low: tuple[float, ...]
    insertion_high: tuple[float, ...]
    areas: tuple[Metric, ...] = ()
    slices: int = 0


class LayerLineage(Result):
    """Which of a layer's channels went into the images, the most important first, with weights that sum to 1."""

    layer: str
    channels: int
    selected: tuple[int, ...]
    weights: tuple[float, ...]


class SubjectLineage(Result):
    """One subject's slices, and its share in its class's accumulated importance, 0 to 1."""

    subject: str
    label: str
    slices: int
    weight: float


class SimulationResult(Result):
    """One simulated image for each label, in the model's order, and everything needed to judge them.

    `faithfulness` tells how well importance finds the channels that matter: for each layer by gradient times deviation,
    then by chance; nothing where the checks were not run.
    """

    model: ModelIdentity
    cohort: str
    cohort_digest: str
    method: SimulationMethod
    steps: int
    seed: int
    images: tuple[SimulatedImage, ...]
    checks: tuple[Check, ...]
    verdict: Verdict
    layers: tuple[LayerLineage, ...]
    subjects: tuple[SubjectLineage, ...]
    grid: Grid
    faithfulness: tuple[FaithfulnessCurve, ...] = ()

    @property
    def failed_gates(self) -> tuple[Check, ...]:
        """The checks that keep this from being called an explanation: gates that failed or could not be run."""
        return tuple(check for check in self.checks if check.gate and not (check.ran and check.passed))

    def to_pandas(self) -> "pd.DataFrame":
        """Return one row for each check, as a table of pandas (`limner[notebook]`)."""
        from limner import notebook

        return notebook.frame(notebook.rows(self))

    def plot(self) -> "Figure":
        """Draw the images, their nearest real slices and what tells the classes apart (`limner[notebook]`)."""
        from limner import notebook

        return notebook.plot_simulation(self)

    def export(self, folder: Path, *, allow_failed: bool = False, dicom: bool = True) -> tuple[Path, ...]:
        """Write the images to a folder, as PNG and DICOM that say what they are; see `limner.simulated.export`.

        What failed a check, or was not checked, is no explanation: `WrongStateError`, or with `allow_failed` files that
        say so, and why, in their names, in the picture and in the DICOM.
        """
        from limner import simulated

        return simulated.export(self, folder, allow_failed=allow_failed, dicom=dicom)
