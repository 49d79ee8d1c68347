"""The out-of-fold scores of a model card, and the ROC curve they draw. Not for metrics: those are the card's own."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from limner.decision import decide
from limner.report.card import Card, SubjectPrediction, read_card
from limner.types import Model

RESAMPLES = 2000


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
        The label chosen by the model's rule.
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
        predicted=decided.label,
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
    (false, true), _ = _weighted_roc(positive, scores, np.ones((1, len(scores))))
    return false[0], true[0]


def roc_band(
    scores: Sequence[SubjectScore], label: str, at: NDArray[np.float64], seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return the 95 % bootstrap interval over subjects of the true positive rate, `(2.5 %, 97.5 %)`.

    Parameters
    ----------
    scores
        Of at least one subject with `label` and one without.
    label
        The class of interest.
    at
        `(points,)` false positive rates, 0 to 1.
    seed
        Of the resamples.
    """
    names, member = np.unique([score.subject for score in scores], return_inverse=True)
    draws = np.random.default_rng(seed).multinomial(len(names), np.full(len(names), 1 / len(names)), size=RESAMPLES)
    positive = np.array([score.label == label for score in scores])
    probabilities = np.array([score.probability for score in scores])
    (false, true), complete = _weighted_roc(positive, probabilities, draws[:, member].astype(np.float64))
    curves = [np.interp(at, x, y) for x, y in zip(false[complete], true[complete], strict=True)]
    low, high = np.percentile(curves, (2.5, 97.5), axis=0)
    return low, high


def _weighted_roc(
    positive: NDArray[np.bool_], scores: NDArray[np.float64], weights: NDArray[np.float64]
) -> tuple[tuple[NDArray[np.float64], NDArray[np.float64]], NDArray[np.bool_]]:
    # One curve for each row of weights, all at the same thresholds; and which rows hold both classes.
    order = np.argsort(-scores, kind="stable")
    last_of_ties = np.append(np.diff(scores[order]) != 0, True)
    rates = []
    complete = np.ones(len(weights), dtype=bool)
    for members in (~positive, positive):
        counts = np.cumsum((weights * members)[:, order], axis=1)
        complete &= counts[:, -1] > 0
        counts = np.concatenate([np.zeros((len(weights), 1)), counts[:, last_of_ties]], axis=1)
        rates.append(counts / np.maximum(counts[:, -1:], 1))
    return (rates[0], rates[1]), complete
