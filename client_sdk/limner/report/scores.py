"""The out-of-fold scores of a model card, and the ROC curve they draw. Not for metrics: those are the card's own."""

from collections.abc import Sequence
from statistics import NormalDist

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from limner.decision import decide
from limner.report.card import Card, SubjectPrediction, read_card
from limner.types import Model


class SubjectScore(BaseModel):
    """How one subject was scored by the network that had not seen it.

    Attributes
    ----------
    subject, label
        Pseudonym and true label. With slice labels a subject appears once for each label it has.
    fold
        The fold that held it out, from 0.
    probability
        Of the class of interest, the model's last label; 0 to 1, temperature-scaled.
    predicted
        The label that the metrics count it as; of an older card, which does not tell, by the model's own threshold.
    """

    model_config = ConfigDict(frozen=True)

    subject: str
    label: str
    fold: int
    probability: float
    predicted: str


def subject_scores(model: Model, card: Card | None = None) -> tuple[SubjectScore, ...]:
    """Return the out-of-fold scores in the card of `model` (read here where it is not given), in the card's order.

    Raises
    ------
    pydantic.ValidationError
        When the card has no `out_of_fold` or `calibration` of the form that docs/artifact.md describes.
    """
    card = card or read_card(model)
    return tuple(_score(prediction, card.calibration.temperature, model) for prediction in card.out_of_fold)


def _score(prediction: SubjectPrediction, temperature: float, model: Model) -> SubjectScore:
    logits = np.asarray(prediction.logits)
    decided = decide(logits, model.labels, temperature=temperature, threshold=model.threshold)
    return SubjectScore(
        subject=prediction.subject,
        label=prediction.label,
        fold=prediction.fold,
        probability=decided.probabilities[-1],
        predicted=prediction.chosen or decided.label,
    )


def roc_curve(
    positive: NDArray[np.bool_], scores: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return false and true positive rates, each `(points,)` from 0 to 1; equal scores make one point.

    Parameters
    ----------
    positive
        `(n,)`, with at least one True and one False.
    scores
        `(n,)`, higher for positive.
    """
    false, true = _positives(positive, scores)
    return false / false[-1], true / true[-1]


def roc_band(
    scores: Sequence[SubjectScore], label: str, at: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the ends of the 95 % band of the true positive rate, `(points,)` each.

    Wilson's intervals of both rates at every threshold: where a false positive rate is at most x, the curve at x is at
    least as high as the true positive rate there, which is at least its lower end; and the other way round. It is wide
    also where no subject is misplaced, and none of any resample either (docs/evaluation.md measures both).

    Parameters
    ----------
    scores
        Of at least one subject with `label` and one without.
    label
        The class of interest.
    at
        `(points,)` false positive rates, 0 to 1.
    """
    positive = np.array([score.label == label for score in scores])
    counts = _positives(positive, np.array([score.probability for score in scores]))
    (false_low, false_high), (true_low, true_high) = map(_wilson, counts)
    low = [true_low[false_high <= rate].max(initial=0) for rate in at]
    high = [true_high[false_low > rate].min(initial=1) for rate in at]
    return np.array(low), np.array(high)


def _positives(positive: NDArray[np.bool_], scores: NDArray[np.float64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return how many are falsely and truly taken for positive at each threshold, from none to all, `(points,)`."""
    order = np.argsort(-scores, kind="stable")
    last_of_ties = np.append(np.diff(scores[order]) != 0, True)
    false, true = (np.append(0, np.cumsum(members[order])[last_of_ties]) for members in (~positive, positive))
    return false, true


def _wilson(counts: NDArray[np.int64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the ends of Wilson's 95 % intervals of counts `(points,)` out of the last one; that is 1 for certain."""
    of, z = counts[-1], NormalDist().inv_cdf(0.975)
    share = counts / of
    middle = (share + z**2 / (2 * of)) / (1 + z**2 / of)
    half = z / (1 + z**2 / of) * np.sqrt(share * (1 - share) / of + z**2 / (4 * of**2))
    low, high = np.clip(middle - half, 0, 1), np.clip(middle + half, 0, 1)
    low[-1] = high[-1] = 1
    return low, high
