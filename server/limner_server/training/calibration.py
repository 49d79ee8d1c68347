"""Temperature scaling (Guo et al. 2017, arXiv:1706.04599) on logits that were predicted out of fold."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from limner_server.networks.card import Bin, Calibration
from limner_server.training.intervals import effective_count, wilson

LOWEST, HIGHEST = 0.05, 20.0
BINS = 10
"""Of equal width, of curve and calibration error alike."""


def calibrate(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> Calibration:
    """Find the temperature that makes logits `(n, k)` likeliest for labels `(n,)`, and what it changes."""
    temperature = likeliest_temperature(logits, labels)
    before, after = softmax(logits, axis=1), softmax(logits / temperature, axis=1)
    return Calibration(
        temperature=temperature,
        brier_before=float(brier(before, labels).mean()),
        brier_after=float(brier(after, labels).mean()),
        ece_before=expected_calibration_error(before, labels),
        ece_after=expected_calibration_error(after, labels),
    )


def likeliest_temperature(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Find the temperature, 0.05 to 20, at which labels `(n,)` are likeliest given logits `(n, k)`."""
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return float(-log_softmax(logits / np.exp(log_temperature), axis=1)[rows, labels].mean())

    found = minimize_scalar(loss, bounds=(np.log(LOWEST), np.log(HIGHEST)), method="bounded")
    return float(np.exp(found.x))


def cross_fitted_probabilities(
    logits: NDArray[np.float64], labels: NDArray[np.int64], folds: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Probabilities `(n, k)` of each fold's rows at the temperature of the other folds' rows."""
    probabilities = np.empty_like(logits)
    for fold in np.unique(folds):
        own = folds == fold
        probabilities[own] = softmax(logits[own] / likeliest_temperature(logits[~own], labels[~own]), axis=1)
    return probabilities


def calibration_curve(
    predicted: NDArray[np.float64], observed: NDArray[np.bool_], subjects: NDArray[np.str_]
) -> tuple[Bin, ...]:
    """What predicted probabilities `(n,)` came to, in ten bins of equal width of which the empty ones are left out.

    Parameters
    ----------
    predicted
        `(n,)` of the class of interest, 0 to 1.
    observed
        `(n,)` whether each row is of it.
    subjects
        `(n,)`; a bin's interval is Wilson's of as many slices as its subjects make independent.
    """
    place = _bins(predicted)
    curve = []
    for rows in (place == number for number in np.unique(place)):
        share = float(observed[rows].mean())
        low, high = wilson(share, effective_count(observed[rows], subjects[rows]))
        mean = float(predicted[rows].mean())
        curve.append(Bin(predicted=mean, observed=share, low=low, high=high, count=int(rows.sum())))
    return tuple(curve)


def brier(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Brier score of each row `(n,)`, of probabilities `(n, k)`: 0 to 1 with two labels, to 2 with more."""
    wanted = np.eye(probabilities.shape[1])[labels]
    squared: NDArray[np.float64] = np.square(probabilities - wanted).sum(axis=1)
    return squared / 2 if probabilities.shape[1] == 2 else squared


def expected_calibration_error(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Mean gap, 0 to 1, between confidence and accuracy over ten equal bins of confidence, weighted by their rows."""
    confidence = probabilities.max(axis=1)
    surplus = confidence - (probabilities.argmax(axis=1) == labels)
    return float(np.abs(np.bincount(_bins(confidence), surplus, minlength=BINS)).sum() / len(labels))


def _bins(probabilities: NDArray[np.float64]) -> NDArray[np.int64]:
    return np.minimum((probabilities * BINS).astype(np.int64), BINS - 1)
