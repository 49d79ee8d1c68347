"""What a model is worth: out-of-fold predictions rolled up by subject, metrics with intervals, the threshold.

Where labels belong to slices, a subject counts once for each of its labels; resampling is by subject all the same.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from limner_server.networks.card import Metric, Threshold
from limner_server.training.calibration import brier

RESAMPLES = 2000
CONFIDENCE = 0.95
THRESHOLD_RULE = (
    "largest sensitivity + specificity (Youden) of all out-of-fold subjects, midway between two scores; "
    "the metrics judge each fold's subjects by the threshold of the other folds"
)
ARGMAX_RULE = "the most probable label is chosen"

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Units:
    """What metrics count: subjects, or a subject's slices of one label. Sorted by subject, then by label.

    Attributes
    ----------
    subjects, labels, folds
        `(u,)` of each unit.
    logits
        `(u, k)`, mean over the unit's slices.
    unit_of_slice
        `(n,)` index of each slice's unit.
    """

    subjects: NDArray[np.str_]
    labels: Ints
    folds: Ints
    logits: Floats
    unit_of_slice: Ints


def roll_up(subjects: NDArray[np.str_], labels: Ints, folds: Ints, logits: Floats) -> Units:
    """Average the logits `(n, k)` of the slices of each subject and label; all other arrays are `(n,)`."""
    names, subject_index = np.unique(subjects, return_inverse=True)
    keys, first, unit_of_slice = np.unique(
        np.stack([subject_index, labels], axis=1), axis=0, return_index=True, return_inverse=True
    )
    unit_of_slice = unit_of_slice.reshape(-1)
    sums = np.stack([np.bincount(unit_of_slice, column) for column in logits.T], axis=1)
    means = sums / np.bincount(unit_of_slice)[:, None]
    return Units(names[keys[:, 0]], keys[:, 1], folds[first], means, unit_of_slice)


def evaluate(units: Units, temperature: float, seed: int) -> tuple[tuple[Metric, ...], Threshold]:
    """Metrics of the units' predictions with their intervals, and the threshold for serving.

    Two labels: auc, accuracy, sensitivity, specificity, brier. More: auc (macro, one against the rest), accuracy and
    brier.
    """
    probabilities = softmax(units.logits / temperature, axis=1)
    weights = _bootstrap_weights(units, seed)
    found = {"auc": _macro_auc(probabilities, units.labels, weights)}
    if probabilities.shape[1] == 2:
        scores, positive = probabilities[:, 1], units.labels == 1
        right = _cross_fitted_decisions(scores, units) == positive
        found["accuracy"] = _mean(right, weights)
        found["sensitivity"] = _mean(right[positive], weights[:, positive])
        found["specificity"] = _mean(right[~positive], weights[:, ~positive])
        threshold = Threshold(value=youden_threshold(scores, positive), rule=THRESHOLD_RULE)
    else:
        found["accuracy"] = _mean(probabilities.argmax(axis=1) == units.labels, weights)
        threshold = Threshold(value=0.5, rule=ARGMAX_RULE)
    found["brier"] = _mean(brier(probabilities, units.labels), weights)
    return tuple(_metric(name, values) for name, values in found.items()), threshold


def youden_threshold(scores: Floats, positive: NDArray[np.bool_]) -> float:
    """Score `(u,)` from which sensitivity + specificity is largest, midway between the two scores around it.

    0.5 where there is nothing to choose by: one score, or one label.
    """
    ordered = np.unique(scores)
    between = (ordered[1:] + ordered[:-1]) / 2
    if len(between) == 0 or positive.all() or not positive.any():
        return 0.5
    chosen = scores >= between[:, None]
    youden = chosen[:, positive].mean(axis=1) - chosen[:, ~positive].mean(axis=1)
    return float(between[youden.argmax()])


def weighted_auc(scores: Floats, positive: NDArray[np.bool_], weights: Floats) -> Floats:
    """Area under the ROC curve, ties counting half, for each row of weights `(b, u)`: `(b,)`."""
    order = np.argsort(scores)
    ordered = scores[order]
    negatives = np.where(positive[order], 0, weights[:, order])
    below = np.concatenate([np.zeros((len(weights), 1)), negatives.cumsum(axis=1)], axis=1)
    ranked = scores[positive]
    beaten = (below[:, np.searchsorted(ordered, ranked)] + below[:, np.searchsorted(ordered, ranked, "right")]) / 2
    positives = weights[:, positive]
    area: Floats = (positives * beaten).sum(axis=1) / (positives.sum(axis=1) * below[:, -1])
    return area


def _macro_auc(probabilities: Floats, labels: Ints, weights: Floats) -> Floats:
    classes = [1] if probabilities.shape[1] == 2 else range(probabilities.shape[1])
    areas = np.array([weighted_auc(probabilities[:, c], labels == c, weights) for c in classes])
    means: Floats = areas.mean(axis=0)
    return means


def _cross_fitted_decisions(scores: Floats, units: Units) -> NDArray[np.bool_]:
    """Decide each fold's units by the threshold of the other folds' units, so that none sets its own."""
    decisions = np.zeros(len(scores), np.bool_)
    for fold in np.unique(units.folds):
        own = units.folds == fold
        decisions[own] = scores[own] >= youden_threshold(scores[~own], units.labels[~own] == 1)
    return decisions


def _bootstrap_weights(units: Units, seed: int) -> Floats:
    """How often each unit counts `(1 + RESAMPLES, u)`: once in the first row, then as its subject was drawn.

    Subjects are drawn from those with the same labels, so every resample has every label.
    """
    generator = np.random.default_rng(seed)
    names, subject_of_unit = np.unique(units.subjects, return_inverse=True)
    profile = np.zeros((len(names), units.logits.shape[1]), np.bool_)
    profile[subject_of_unit, units.labels] = True
    weights = np.ones((1 + RESAMPLES, len(names)))
    strata = np.unique(profile, axis=0, return_inverse=True)[1].reshape(-1)
    for stratum in range(strata.max() + 1):
        members = np.flatnonzero(strata == stratum)
        weights[1:, members] = generator.multinomial(len(members), np.full(len(members), 1 / len(members)), RESAMPLES)
    return weights[:, subject_of_unit]


def _mean(values: Floats | NDArray[np.bool_], weights: Floats) -> Floats:
    means: Floats = weights @ values.astype(np.float64) / weights.sum(axis=1)
    return means


def _metric(name: str, values: Floats) -> Metric:
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(values[1:], [tail, 1 - tail])
    return Metric(name=name, value=float(values[0]), low=float(low), high=float(high))
