"""What a model is worth: out-of-fold predictions rolled up by subject, metrics with intervals, the threshold.

Where labels belong to slices, a subject counts once for each of its labels; intervals are by subject all the same.
docs/evaluation.md states every rule with its source.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from limner_server.networks.card import Metric, Threshold
from limner_server.training.calibration import brier
from limner_server.training.intervals import effective_count, logit_t, mover, newcombe, percentiles, wilson
from limner_server.training.resampling import Resamples

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


@dataclass(frozen=True, eq=False)
class Judged:
    """What metrics are computed of: units or slices.

    Attributes
    ----------
    probabilities
        `(n, k)`.
    labels, chosen
        `(n,)` true label, and the one decided for.
    subjects
        `(n,)`.
    """

    probabilities: Floats
    labels: Ints
    chosen: Ints
    subjects: NDArray[np.str_]

    @property
    def right(self) -> NDArray[np.bool_]:
        """Whether each was decided rightly."""
        right: NDArray[np.bool_] = self.labels == self.chosen
        return right

    def shares(self) -> Iterator[tuple[str, NDArray[np.bool_]]]:
        """Each metric that is a share of right decisions: its name, and the rows that it is a share of."""
        yield "accuracy", np.ones(len(self.labels), np.bool_)
        if self.probabilities.shape[1] == 2:
            yield "sensitivity", self.labels == 1
            yield "specificity", self.labels == 0
            yield "ppv", self.chosen == 1
            yield "npv", self.chosen == 0

    def recalls(self) -> Iterator[NDArray[np.bool_]]:
        """The rows of each label."""
        for label in range(self.probabilities.shape[1]):
            yield self.labels == label


def judge(units: Units, temperature: float) -> Judged:
    """Decide each fold's units by the threshold of the other folds' units; more than two labels need none."""
    probabilities = softmax(units.logits / temperature, axis=1)
    if probabilities.shape[1] == 2:
        chosen = (probabilities[:, 1] >= cross_fitted_thresholds(probabilities[:, 1], units)).astype(np.int64)
    else:
        chosen = probabilities.argmax(axis=1)
    return Judged(probabilities, units.labels, chosen, units.subjects)


def evaluate(units: Units, temperature: float) -> tuple[tuple[Metric, ...], Threshold]:
    """Metrics of the units' predictions with their intervals, and the threshold for serving.

    Two labels: auc, accuracy, balanced_accuracy, sensitivity, specificity, ppv, npv, brier. More: auc (macro, one
    against the rest), accuracy, balanced_accuracy, brier. What is a share of nobody is left out, such as the ppv where
    no unit is called positive.
    """
    judged = judge(units, temperature)
    if judged.probabilities.shape[1] == 2:
        threshold = Threshold(
            value=youden_threshold(judged.probabilities[:, 1], units.labels == 1), rule=THRESHOLD_RULE
        )
    else:
        threshold = Threshold(value=0.5, rule=ARGMAX_RULE)
    shares = {name: _share_metric(name, judged, rows) for name, rows in judged.shares() if rows.any()}
    metrics = (
        auc_metric(judged.probabilities, judged.labels, judged.subjects),
        shares.pop("accuracy"),
        _balanced_accuracy(judged),
        *shares.values(),
        _brier_metric(judged),
    )
    return metrics, threshold


def resampled_metrics(judged: Judged, resamples: Resamples) -> tuple[Metric, ...]:
    """The same metrics, each with its percentile interval over resamples of subjects."""
    blocks = [_figures(judged, weights) for weights in resamples.blocks()]
    found = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    return tuple(_resampled(name, values) for name, values in found.items() if not np.isnan(values[0]))


def auc_metric(scores: Floats, labels: Ints, subjects: NDArray[np.str_]) -> Metric:
    """AUC of scores `(n, k)`, of two labels that of the second, of more the mean of each against the rest.

    The interval is Newcombe's; of more labels the mean of theirs, which holds however the AUCs hang together.
    """
    value = float(macro_auc(scores, labels, np.ones((1, len(labels))))[0])
    ends = []
    for index in _classes(scores):
        positive = labels == index
        auc = float(weighted_auc(scores[:, index], positive, np.ones((1, len(labels))))[0])
        ends.append(newcombe(auc, *(len(np.unique(subjects[side])) for side in (positive, ~positive))))
    low, high = np.mean(ends, axis=0)
    return Metric(name="auc", value=value, low=float(low), high=float(high), interval="newcombe")


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


def macro_auc(scores: Floats, labels: Ints, weights: Floats) -> Floats:
    """AUC `(b,)` of scores `(n, k)` for each row of weights `(b, n)`: of the second label, or the mean over all."""
    areas = np.array([weighted_auc(scores[:, index], labels == index, weights) for index in _classes(scores)])
    means: Floats = areas.mean(axis=0)
    return means


def cross_fitted_thresholds(scores: Floats, units: Units) -> Floats:
    """Threshold `(u,)` that each unit is judged by: that of the other folds' units, so that none sets its own."""
    thresholds = np.empty(len(scores))
    for fold in np.unique(units.folds):
        own = units.folds == fold
        thresholds[own] = youden_threshold(scores[~own], units.labels[~own] == 1)
    return thresholds


def _classes(scores: Floats) -> range:
    return range(1, 2) if scores.shape[1] == 2 else range(scores.shape[1])


def _share_metric(name: str, judged: Judged, rows: NDArray[np.bool_]) -> Metric:
    right = judged.right[rows]
    low, high = wilson(float(right.mean()), effective_count(right, judged.subjects[rows]))
    return Metric(name=name, value=float(right.mean()), low=low, high=high, interval="wilson")


def _balanced_accuracy(judged: Judged) -> Metric:
    recalls = [_share_metric("recall", judged, rows) for rows in judged.recalls()]
    values = [recall.value for recall in recalls]
    low, high = mover(values, [(recall.low, recall.high) for recall in recalls])
    return Metric(name="balanced_accuracy", value=float(np.mean(values)), low=low, high=high, interval="mover")


def _brier_metric(judged: Judged) -> Metric:
    scores = brier(judged.probabilities, judged.labels)
    low, high = logit_t(scores, judged.subjects, 1.0 if judged.probabilities.shape[1] == 2 else 2.0)
    return Metric(name="brier", value=float(scores.mean()), low=low, high=high, interval="logit-t")


def _figures(judged: Judged, weights: Floats) -> dict[str, Floats]:
    """Every metric `(b,)` for each row of weights `(b, n)`; NaN where it is a share of nobody."""
    found = {"auc": macro_auc(judged.probabilities, judged.labels, weights)}
    shares = {name: _mean(judged.right[rows], weights[:, rows]) for name, rows in judged.shares()}
    found["accuracy"] = shares.pop("accuracy")
    recalls = [_mean(judged.right[rows], weights[:, rows]) for rows in judged.recalls()]
    found["balanced_accuracy"] = np.mean(recalls, axis=0)
    found["brier"] = _mean(brier(judged.probabilities, judged.labels), weights)
    return found | shares


def _mean(values: Floats | NDArray[np.bool_], weights: Floats) -> Floats:
    totals = weights.sum(axis=1)
    sums: Floats = weights @ values.astype(np.float64)
    means: Floats = np.divide(sums, totals, out=np.full(len(sums), np.nan), where=totals > 0)
    return means


def _resampled(name: str, values: Floats) -> Metric:
    low, high = percentiles(values[1:])
    return Metric(name=name, value=float(values[0]), low=low, high=high, interval="bootstrap")
