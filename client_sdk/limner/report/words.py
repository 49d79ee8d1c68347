"""What the report says in words: verdicts, names of figures, and what was not measured. Not for layout.

A figure that is not there is said to be not measured, with how to get it; none is made up.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from limner.report.card import read_card
from limner.report.data import ReportData
from limner.types import AgreementFigure, Check, SimulationResult, Verdict

_METRICS = {
    "auc": "AUC",
    "ppv": "Positive predictive value",
    "npv": "Negative predictive value",
    "brier": "Brier score",
    "ece": "Expected calibration error",
    "f1": "F1 score",
}
_AGREEMENT = {
    "kappa_quadratic": "Kappa, quadratic weights",
    "kappa_linear": "Kappa, linear weights",
    "icc_2_1": "ICC(2,1), agreement",
    "icc_3_1": "ICC(3,1), consistency",
    "auc_real_simulated": "AUC, real or simulated",
    "auc_real_randomised": "AUC, real or of a randomised network",
    "auc_real_class_mean": "AUC, real or a class mean",
    "auc_label": "AUC of the label, real slices",
}
_INTERVALS = {"newcombe": "Newcombe", "wilson": "Wilson", "mover": "MOVER", "logit-t": "t on the logit scale"}


@dataclass(frozen=True)
class Gap:
    """Something that this report does not show.

    Attributes
    ----------
    section
        Where it would be: the anchor of a section.
    what
        Its name.
    how
        How to get it.
    """

    section: str
    what: str
    how: str


def not_measured(data: ReportData) -> tuple[Gap, ...]:
    """Return what was not measured or not given, in the order of the sections."""
    card = read_card(data.model)
    two, found = len(data.model.labels) == 2, card.evaluation
    simulation = data.simulation
    not_run = {check.number for check in simulation.checks if not check.ran} if simulation else set()
    asked = (
        (simulation is None, "simulated", "Simulated images", "report without --no-simulate"),
        (not (simulation and simulation.checks), "checks", "Checks", "simulate without --no-checks"),
        (2 in not_run and not card.halves, "checks", "Independent judge", "train without --no-halves"),
        (8 in not_run, "checks", "Network of another seed", "train with --sibling"),
        (
            found is None,
            "performance",
            "Figures by slice, permutation test, DeLong interval, calibration curves, similar slices",
            "train the model again with this version",
        ),
        (
            two and found is not None and found.permutation is None,
            "performance",
            "Permutation test",
            "train with enough subjects of each label",
        ),
        (
            not (found and found.repeats > 1),
            "performance",
            "Spread over repeated cross-validation",
            "train with --repeats 5",
        ),
        (not (found and found.learning_curve), "learning", "Learning curve", "train with --learning-curve"),
        (data.reading is None, "reading", "Agreement with readers", "read (limner reading), then give --reading ID"),
        (data.flow is None, "cohort", "How subjects were chosen", "give --flow labels.flow.json"),
        (not data.examples, "heat", "Heat maps", "give --images DIR, the DICOM of the cohort"),
        (
            not (simulation and simulation.faithfulness),
            "faithfulness",
            "Faithfulness of importance",
            "simulate with the checks, with this version of the server",
        ),
        (card.reference is None, "far", "Distance from the training cohort", "train the model again with this version"),
    )
    return tuple(Gap(section, what, how) for missing, section, what, how in asked if missing)


def verdict_words(simulation: SimulationResult) -> str:
    """Say in a sentence or two what the simulated images may be called, with the figures that decide it."""
    if simulation.verdict is Verdict.EXPLANATION:
        passed = "; ".join(_outcome(check) for check in simulation.checks if check.gate)
        return f"Every gate was passed, so the simulated images may be shown as an explanation of this model. {passed}."
    why = "failed a check" if simulation.verdict is Verdict.FAILED_CHECK else "were not put to every check"
    outcomes = "".join(f" {_outcome(check)}." for check in simulation.failed_gates)
    return f"The simulated images {why} and are not to be shown as an explanation.{outcomes}"


def expected(check: Check) -> str:
    """Say what a check's figure has to be."""
    return f"{'at most' if check.at_most else 'at least'} {number(check.threshold)}"


def number(value: float | None) -> str:
    """Format a figure with two decimals, or with one digit where those would hide it; a dash where there is none."""
    if value is None:
        return "–"
    if np.isnan(value):
        return "–"
    if not np.isfinite(value):
        return "∞" if value > 0 else "−∞"
    text = f"{value:.2f}" if value == 0 or abs(value) >= 0.01 else f"{value:.1g}"
    return text.replace("-", "−", 1) if value < 0 else text


def words(name: str) -> str:
    """Return an identifier as words."""
    return name.replace("_", " ")


def capital(text: str) -> str:
    """Return text with its first letter large, and every other as it is."""
    return text[:1].upper() + text[1:]


def metric_name(name: str) -> str:
    """Return a metric's name as a reader knows it."""
    return _METRICS.get(name, capital(words(name)))


def interval_name(name: str) -> str:
    """Return how an interval was found, as docs/evaluation.md calls it."""
    return _INTERVALS.get(name, words(name))


def agreement_name(figure: AgreementFigure) -> str:
    """Say what a figure of agreement measures: "Kappa, quadratic weights"."""
    return _AGREEMENT.get(figure.name, capital(words(figure.name)))


def contrasts(simulation: SimulationResult) -> Iterator[tuple[str, str, NDArray[np.float32], float]]:
    """Give each class against the first: its name, the first's, the difference image, and the range of its colours."""
    reference, *others = simulation.images
    for other in others:
        difference = other.image - reference.image
        limit = float(np.percentile(np.abs(difference), 99.5)) or 1.0
        yield other.label, reference.label, difference, limit


def _outcome(check: Check) -> str:
    name = capital(words(check.name))
    if not check.ran:
        return f"{name} not run: {check.detail}"
    within = check.value <= check.threshold if check.at_most else check.value >= check.threshold
    # A check can ask for more than its figure, and fail by that: the figure alone would read as passed.
    more = f": {check.detail}" if within and not check.passed else ""
    return f"{name} {number(check.value)} ({expected(check)}){more}"
