"""Temperature scaling (Guo et al. 2017, arXiv:1706.04599) on logits that were predicted out of fold."""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax, softmax

from limner_server.networks.card import Calibration

LOWEST, HIGHEST = 0.05, 20.0
ECE_BINS = 10


def calibrate(logits: NDArray[np.float64], labels: NDArray[np.int64]) -> Calibration:
    """Find the temperature, 0.05 to 20, that makes logits `(n, k)` likeliest for labels `(n,)`, and what it changes."""
    rows = np.arange(len(labels))

    def loss(log_temperature: float) -> float:
        return float(-log_softmax(logits / np.exp(log_temperature), axis=1)[rows, labels].mean())

    found = minimize_scalar(loss, bounds=(np.log(LOWEST), np.log(HIGHEST)), method="bounded")
    temperature = float(np.exp(found.x))
    before, after = softmax(logits, axis=1), softmax(logits / temperature, axis=1)
    return Calibration(
        temperature=temperature,
        brier_before=float(brier(before, labels).mean()),
        brier_after=float(brier(after, labels).mean()),
        ece_before=expected_calibration_error(before, labels),
        ece_after=expected_calibration_error(after, labels),
    )


def brier(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> NDArray[np.float64]:
    """Brier score of each row `(n,)`, of probabilities `(n, k)`: 0 to 1 with two labels, to 2 with more."""
    wanted = np.eye(probabilities.shape[1])[labels]
    squared: NDArray[np.float64] = np.square(probabilities - wanted).sum(axis=1)
    return squared / 2 if probabilities.shape[1] == 2 else squared


def expected_calibration_error(probabilities: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """Mean gap, 0 to 1, between confidence and accuracy over ten equal bins of confidence, weighted by their rows."""
    confidence = probabilities.max(axis=1)
    surplus = confidence - (probabilities.argmax(axis=1) == labels)
    bins = np.minimum((confidence * ECE_BINS).astype(np.int64), ECE_BINS - 1)
    return float(np.abs(np.bincount(bins, surplus, minlength=ECE_BINS)).sum() / len(labels))
