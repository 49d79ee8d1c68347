"""What out-of-fold logits say beyond the metrics: fills `card.Evaluation`. docs/evaluation.md states every rule."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax
from scipy.stats import rankdata

from limner_server.networks.card import Evaluation, LearningPoint, Metric, PermutationTest
from limner_server.training.calibration import calibration_curve, cross_fitted_probabilities
from limner_server.training.evaluation import (
    Floats,
    Ints,
    Judged,
    Units,
    auc_metric,
    cross_fitted_thresholds,
    judge,
    resampled_metrics,
    roll_up,
)
from limner_server.training.intervals import delong, delong_interval
from limner_server.training.resampling import PERMUTATIONS, permute, resample
from limner_server.training.similar import SimilarSlices


@dataclass(frozen=True, eq=False)
class OutOfFold:
    """Each slice by networks that did not see its subject.

    Attributes
    ----------
    subjects, labels
        `(n,)` of each slice.
    folds
        `(n,)` the fold that held it out, in the first repeat.
    repeats
        `(r, n, k)` logits of each repeat.
    """

    subjects: NDArray[np.str_]
    labels: Ints
    folds: Ints
    repeats: Floats

    @property
    def logits(self) -> Floats:
        """Mean over the repeats, `(n, k)`."""
        means: Floats = self.repeats.mean(axis=0)
        return means

    def one_by_one(self) -> "OutOfFold":
        """Return what single networks say: each slice once for each repeat, as if it were another of its subject's."""
        count, classes = len(self.repeats), self.repeats.shape[2]
        return OutOfFold(
            np.tile(self.subjects, count),
            np.tile(self.labels, count),
            np.tile(self.folds, count),
            self.repeats.reshape(1, -1, classes),
        )

    def units(self, logits: Floats) -> Units:
        """Roll logits `(n, k)` of the slices up by subject."""
        return roll_up(self.subjects, self.labels, self.folds, logits)

    def auc(self, logits: Floats, temperature: float) -> Metric:
        """AUC by subject of logits `(n, k)` of the slices."""
        units = self.units(logits)
        return auc_metric(softmax(units.logits / temperature, axis=1), units.labels, units.subjects)


@dataclass(frozen=True, eq=False)
class CurvePart:
    """The learning curve's networks of one share of the subjects: how many those were, and what they say `(n, k)`."""

    subjects: int
    logits: Floats


def evaluation(
    found: OutOfFold,
    temperature: float,
    seed: int,
    curve: Sequence[CurvePart] = (),
    similar: SimilarSlices | None = None,
    epochs: tuple[int, ...] = (),
    served: OutOfFold | None = None,
) -> Evaluation:
    """Everything that the card tells of out-of-fold predictions beside its metrics.

    Parameters
    ----------
    found
        The predictions.
    temperature
        The served one.
    seed
        Of resamples and permutations.
    curve
        Shares of the subjects, from the fewest to all; empty where no learning curve was asked for.
    similar
        Slices of different subjects that look alike.
    epochs
        Of each fold's network, where it could stop early.
    served
        Predictions that spread like those of what is served, for the calibration curves; None: `found`.
    """
    served = served or found
    units = found.units(found.logits)
    judged, two = judge(units, temperature), found.repeats.shape[2] == 2
    drawn = resample(units.subjects, units.labels, found.repeats.shape[2], seed)
    before = softmax(served.logits, axis=1)
    after = cross_fitted_probabilities(served.logits, served.labels, served.folds)
    return Evaluation(
        repeats=len(found.repeats),
        per_repeat=tuple(found.auc(logits, temperature).value for logits in found.repeats),
        slices=_slice_metrics(found, units, judged, temperature, seed),
        roll_ups=_roll_ups(found, units, temperature),
        confusion=_confusion(judged),
        calibration_before=calibration_curve(before[:, -1], served.labels == before.shape[1] - 1, served.subjects),
        calibration_after=calibration_curve(after[:, -1], served.labels == after.shape[1] - 1, served.subjects),
        permutation=permutation_test(judged.probabilities[:, 1], units.labels, units.subjects, seed) if two else None,
        delong=_delong(judged) if two else None,
        bootstrap=resampled_metrics(judged, drawn)[0],
        learning_curve=tuple(
            LearningPoint(subjects=part.subjects, auc=found.auc(part.logits, temperature)) for part in curve
        ),
        similar=similar.pairs if similar else (),
        similar_found=similar.found if similar else 0,
        epochs=epochs,
    )


def permutation_test(scores: Floats, labels: Ints, subjects: NDArray[np.str_], seed: int) -> PermutationTest:
    """How often the AUC of scores `(n,)` is reached by labels `(n,)` permuted among subjects, `PERMUTATIONS` times.

    The scores are out of fold and stay as they are: no network is trained anew.
    """
    ranks, positives = rankdata(scores), int(labels.sum())
    pairs = positives * (len(labels) - positives)

    def auc(permuted: Ints) -> float:
        return float((ranks @ permuted - positives * (positives + 1) / 2) / pairs)

    found = permute(auc, labels, subjects, seed)
    return PermutationTest(p=found.p, permutations=PERMUTATIONS, null=found.null)


def _slice_metrics(found: OutOfFold, units: Units, judged: Judged, temperature: float, seed: int) -> tuple[Metric, ...]:
    """The metrics of single slices, each decided as its subject is: by the threshold of the other folds' subjects."""
    probabilities = softmax(found.logits / temperature, axis=1)
    if probabilities.shape[1] == 2:
        thresholds = cross_fitted_thresholds(judged.probabilities[:, 1], units)
        chosen = (probabilities[:, 1] >= thresholds[units.unit_of_slice]).astype(np.int64)
    else:
        chosen = probabilities.argmax(axis=1)
    slices = Judged(probabilities, found.labels, chosen, found.subjects)
    return resampled_metrics(slices, resample(found.subjects, found.labels, probabilities.shape[1], seed))


def _roll_ups(found: OutOfFold, units: Units, temperature: float) -> dict[str, Metric]:
    """AUC by subject for each way to make one score of a subject's slices."""
    probabilities = softmax(found.logits / temperature, axis=1)
    # Of two labels, the margin; of more, each against the rest.
    margins = np.log(np.clip(probabilities, 1e-300, None)) - np.log(np.clip(1 - probabilities, 1e-300, None))

    def rolled(values: Floats, by: Callable[[Floats], Floats]) -> Metric:
        scores = np.stack([by(values[units.unit_of_slice == unit]) for unit in range(len(units.labels))])
        return auc_metric(scores, units.labels, units.subjects)

    return {
        "mean_logit": found.auc(found.logits, temperature),
        "median_logit": rolled(margins, lambda rows: np.median(rows, axis=0)),
        "mean_probability": rolled(probabilities, lambda rows: rows.mean(axis=0)),
        "max_probability": rolled(probabilities, lambda rows: rows.max(axis=0)),
        "vote": rolled(np.eye(probabilities.shape[1])[probabilities.argmax(axis=1)], lambda rows: rows.mean(axis=0)),
    }


def _confusion(judged: Judged) -> tuple[tuple[int, ...], ...]:
    labels = range(judged.probabilities.shape[1])
    return tuple(
        tuple(int(((judged.labels == true) & (judged.chosen == chosen)).sum()) for chosen in labels) for true in labels
    )


def _delong(judged: Judged) -> Metric:
    auc, variance = delong(judged.probabilities[:, 1], judged.labels == 1, judged.subjects)
    low, high = delong_interval(auc, variance)
    return Metric(name="auc", value=auc, low=low, high=high, interval="delong")
