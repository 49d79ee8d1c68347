"""Temperature, Brier score and calibration error against cases worked out by hand."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import brier_score_loss

from limner_server.training.calibration import (
    brier,
    calibrate,
    calibration_curve,
    cross_fitted_probabilities,
    expected_calibration_error,
)
from limner_server.training.intervals import wilson


@pytest.mark.parametrize("overconfidence", [0.5, 1.0, 3.0])
def test_the_temperature_undoes_overconfidence(overconfidence: float) -> None:
    generator = np.random.default_rng(0)
    honest = generator.normal(0, 2, (5_000, 3))
    labels = np.array([generator.choice(3, p=row) for row in softmax(honest, axis=1)])
    found = calibrate(honest * overconfidence, labels)
    assert found.temperature == pytest.approx(overconfidence, rel=0.1)
    assert found.ece_after < 0.03
    assert found.brier_after <= found.brier_before + 1e-4


def test_perfect_logits_give_a_temperature_within_its_bounds() -> None:
    found = calibrate(np.array([[9.0, 0.0], [0.0, 9.0]]), np.array([0, 1]))
    assert 0.05 <= found.temperature < 1


def test_brier_of_two_labels_is_sklearns() -> None:
    positive = np.random.default_rng(0).random(50)
    labels = (positive > 0.3).astype(np.int64)
    ours = brier(np.stack([1 - positive, positive], axis=1), labels)
    assert ours.mean() == pytest.approx(brier_score_loss(labels, positive))


def test_calibration_error_by_hand() -> None:
    # Two rows at confidence 0.75, one right: gap 0.25. Two at 0.95, both right: gap 0.05.
    probabilities = np.array([[0.75, 0.25], [0.25, 0.75], [0.95, 0.05], [0.05, 0.95]])
    assert expected_calibration_error(probabilities, np.array([0, 0, 0, 1])) == pytest.approx(0.15)


def test_the_curve_by_hand() -> None:
    predicted = np.array([0.02, 0.04, 0.55, 0.51, 0.59, 1.0])
    observed = np.array([False, False, True, False, True, True])
    first, middle, last = calibration_curve(predicted, observed, np.array(list("abcdef")))
    assert (first.predicted, first.observed, first.count) == (pytest.approx(0.03), 0, 2)
    assert (middle.predicted, middle.observed, middle.count) == (pytest.approx(0.55), pytest.approx(2 / 3), 3)
    assert (middle.low, middle.high) == pytest.approx(wilson(2 / 3, 3))
    assert (last.predicted, last.observed, last.count) == (1, 1, 1)


def test_slices_of_one_subject_are_one_witness() -> None:
    predicted, observed = np.full(12, 0.95), np.ones(12, np.bool_)
    (one,) = calibration_curve(predicted, observed, np.array(["a"] * 12))
    (twelve,) = calibration_curve(predicted, observed, np.array(list("abcdefghijkl")))
    assert one.low == pytest.approx(wilson(1.0, 1)[0])
    assert twelve.low == pytest.approx(wilson(1.0, 12)[0])


def test_no_fold_sets_its_own_temperature() -> None:
    """Fold 0 is overconfident and fold 1 is not: each is judged by what the other needs."""
    generator = np.random.default_rng(0)
    honest = generator.normal(0, 2, (4_000, 2))
    labels = np.array([generator.choice(2, p=row) for row in softmax(honest, axis=1)])
    folds = np.arange(4_000) % 2
    logits = np.where(folds[:, None] == 0, 3 * honest, honest)
    found = cross_fitted_probabilities(logits, labels, folds)
    assert np.abs(found[folds == 0] - softmax(3 * honest, axis=1)[folds == 0]).max() < 0.05
    assert np.abs(found[folds == 1] - softmax(honest / 3, axis=1)[folds == 1]).max() < 0.05
