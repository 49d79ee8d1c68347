"""From the stages' figures to the seven checks: which figure goes into which check, and what cannot be run."""

from collections.abc import Mapping

import numpy as np

from limner_server.explain import checks
from limner_server.explain.checks import THRESHOLDS, CheckResult, Transfer
from limner_server.explain.pipeline import Floats, Recipe, SimulationMethod
from limner_server.explain.realism import RealSlices
from limner_server.explain.stages import Arrays
from limner_server.networks.card import HalfModel, ModelCard
from limner_server.training.data import GriddedCohort


def differences(images: Floats) -> Floats:
    """Return the last label's image minus the first's, `(..., s, s)`, of images `(..., k, s, s)`."""
    return images[..., -1, :, :] - images[..., 0, :, :]


def no_cross_judging(card: ModelCard, cohort: GriddedCohort) -> str:
    """Tell why check 2 cannot be run; empty where it can."""
    if len(card.halves) != 2:
        return "the model was trained without its two half-cohort models"
    for half in card.halves:
        unseen = ~np.isin(cohort.subjects, half.subjects)
        missing = [label for index, label in enumerate(cohort.classes) if not (cohort.labels[unseen] == index).any()]
        if missing:
            return f"{half.file} was trained on every subject of the cohort that has slices of {', '.join(missing)}"
    return ""


def assess(
    card: ModelCard,
    cohort: GriddedCohort,
    recipe: Recipe,
    results: Mapping[str, Arrays],
    real: Floats,
    logits: Floats,
    probabilities: Floats,
) -> tuple[CheckResult, ...]:
    """Run all checks.

    Parameters
    ----------
    card, cohort, recipe
        What the images were made from, and how.
    results
        The arrays of every stage.
    real
        `(n, s, s)`, the cohort's normalised slices.
    logits, probabilities
        `(k, k)`, what the served model says of each image (rows).
    """
    own_gap = checks.gap(logits)
    images = results["images"]["images"]
    randomised = [checks.gap(arrays["logits"]) for name, arrays in results.items() if name.startswith("randomised-")]
    return (
        checks.own_verdict(probabilities, [card.choose(row) for row in probabilities]),
        _independent_judge(card, cohort, results),
        checks.weight_randomisation(randomised, own_gap),
        _label_permutation(card, recipe.seed),
        checks.stability(_correlations(differences(results["resamples"]["images"]))),
        _random_channels(recipe.method, results["images"], own_gap),
        _realism(real, cohort, images),
    )


def _independent_judge(card: ModelCard, cohort: GriddedCohort, results: Mapping[str, Arrays]) -> CheckResult:
    obstacle = no_cross_judging(card, cohort)
    if obstacle:
        return checks.not_run(2, THRESHOLDS.transfer, obstacle)
    judged = [results[f"half-{index}"]["logits"] for index in range(2)]
    transfers = [_transfer(card, logits, judge) for logits, judge in zip(judged, reversed(card.halves), strict=True)]
    return checks.independent_judge(transfers)


def _transfer(card: ModelCard, logits: Floats, judge: HalfModel) -> Transfer:
    """Divide by the deviation of the judge's margins; the mean over labels, which of two labels are equal."""
    gaps = checks.label_gaps(checks.margins(logits))[[card.labels.index(item.label) for item in judge.held_out]]
    own = np.array([item.difference for item in judge.held_out])
    # A judge that says the same of every slice is none: nan passes no threshold.
    deviations = np.array([item.deviation or np.nan for item in judge.held_out])
    return Transfer(float((gaps / deviations).mean()), float((own / deviations).mean()))


def _label_permutation(card: ModelCard, seed: int) -> CheckResult:
    predictions = card.out_of_fold
    return checks.label_permutation(
        np.array([prediction.logits for prediction in predictions]),
        np.array([card.labels.index(prediction.label) for prediction in predictions]),
        [prediction.subject for prediction in predictions],
        seed,
    )


def _correlations(planes: Floats) -> list[float]:
    """Correlate the first plane, the cohort's, with each of the others."""
    return [float(np.corrcoef(planes[0].ravel(), other.ravel())[0, 1]) for other in planes[1:]]


def _random_channels(method: SimulationMethod, main: Arrays, own_gap: float) -> CheckResult:
    if method is SimulationMethod.COMPOSITE:
        return checks.not_run(
            6, THRESHOLDS.random_channels, "a composite weighs all channels by their importance; it chooses none"
        )
    return checks.random_channels(checks.gap(main["random_logits"]), own_gap)


def _realism(real: Floats, cohort: GriddedCohort, images: Floats) -> CheckResult:
    if len(set(cohort.subjects.tolist())) < 2:
        return checks.not_run(
            7, THRESHOLDS.nearest_real, "the cohort has one subject: no slice of another to compare with"
        )
    slices = RealSlices.measure(real, cohort.subjects)
    return checks.realism([slices.judge(image) for image in images])
