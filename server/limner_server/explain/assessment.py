"""From the stages' figures to the eight checks: which figure goes into which check, and what cannot be run."""

from collections.abc import Mapping

import numpy as np

from limner_server.explain import checks
from limner_server.explain.checks import THRESHOLDS, CheckResult, Transfer
from limner_server.explain.cohort import SliceCohort
from limner_server.explain.pipeline import Floats, Judgement, Recipe, SimulationMethod
from limner_server.explain.realism import RealSlices
from limner_server.explain.stages import Arrays
from limner_server.networks.card import HalfModel, ModelCard


def no_cross_judging(card: ModelCard, cohort: SliceCohort) -> str:
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
    cohort: SliceCohort,
    recipe: Recipe,
    results: Mapping[str, Arrays],
    real: RealSlices | None,
    judged: Judgement,
) -> tuple[CheckResult, ...]:
    """Run all checks.

    Parameters
    ----------
    card, cohort, recipe
        What the images were made from, and how.
    results
        The arrays of every stage.
    real
        What slices of the cohort are like among themselves; None where they are of one subject.
    judged
        What the served model says of the images.
    """
    own_gap = checks.gap(judged.logits)
    images = results["images"]["images"]
    cohort_images, *resampled = results["resamples"]["images"]
    randomised = [checks.gap(arrays["logits"]) for name, arrays in results.items() if name.startswith("randomised-")]
    return (
        checks.own_verdict(judged.probabilities, [card.choose(row) for row in judged.probabilities]),
        _independent_judge(card, cohort, results),
        checks.weight_randomisation(randomised, own_gap),
        _label_permutation(card, recipe.seed),
        checks.stability([checks.contrast_correlation(cohort_images, other) for other in resampled]),
        _random_channels(recipe.method, results["images"], own_gap),
        _realism(real, images),
        _another_seed(card, results, own_gap, cohort_images),
    )


def _independent_judge(card: ModelCard, cohort: SliceCohort, results: Mapping[str, Arrays]) -> CheckResult:
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


def _random_channels(method: SimulationMethod, main: Arrays, own_gap: float) -> CheckResult:
    if method is SimulationMethod.COMPOSITE:
        return checks.not_run(
            6, THRESHOLDS.random_channels, "a composite weighs all channels by their importance; it chooses none"
        )
    return checks.random_channels(checks.gap(main["random_logits"]), own_gap)


def _realism(real: RealSlices | None, images: Floats) -> CheckResult:
    if real is None:
        return checks.not_run(
            7, THRESHOLDS.nearest_real, "the cohort has one subject: no slice of another to compare with"
        )
    return checks.realism([real.judge(image) for image in images])


def _another_seed(card: ModelCard, results: Mapping[str, Arrays], own_gap: float, own_images: Floats) -> CheckResult:
    """Compare with images of as many steps: `own_images` `(k, s, s)`, those that the resamples are held against."""
    if "sibling" not in results:
        return checks.not_run(8, THRESHOLDS.another_seed, "the model was trained without a network of another seed")
    sibling = results["sibling"]
    return checks.another_seed(
        checks.contrast_correlation(own_images, sibling["images"]),
        checks.gap(sibling["logits"]),
        own_gap,
        [card.choose(row) for row in sibling["probabilities"]],
    )
