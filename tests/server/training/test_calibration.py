"""Temperature, Brier score and calibration error against cases worked out by hand."""

import numpy as np
import pytest
from scipy.special import softmax
from sklearn.metrics import brier_score_loss

from limner_server.training.calibration import brier, calibrate, expected_calibration_error


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
