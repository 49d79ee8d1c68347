"""The truths that the coverage of intervals is measured against, and the sums of the controls."""

import numpy as np
import pytest
from scipy.special import expit
from scipy.stats import norm

from benchmarks.controls import summary
from benchmarks.coverage import NEGATIVE, POSITIVE, simulate


def test_the_truths_are_those_of_many_subjects() -> None:
    """On a million subjects of the same distributions; of sensitivity and the like, on the mean over many sets."""
    auc, generator = 0.9, np.random.default_rng(0)
    distance, prior = np.sqrt(2) * norm.ppf(auc), np.log(POSITIVE / NEGATIVE)
    draws = generator.normal(size=(2, 1_000_000)) + distance * np.array([[0.5], [-0.5]])
    assert (draws[0] > draws[1]).mean() == pytest.approx(auc, abs=2e-3)
    squares = np.square(np.array([[1], [0]]) - expit(distance * draws + prior)).mean(axis=1)
    brier = (POSITIVE * squares[0] + NEGATIVE * squares[1]) / (POSITIVE + NEGATIVE)
    truths: dict[str, list[float]] = {}
    values: dict[str, list[float]] = {}
    for seed in range(150):
        for metric, truth in simulate(auc, np.random.default_rng([1, seed]), bootstrap=False):
            truths.setdefault(metric.name, []).append(truth)
            values.setdefault(metric.name, []).append(metric.value)
    assert truths["brier"] == pytest.approx([brier] * 150, abs=1e-3)
    # Thresholds are set by other subjects than those they judge: what is found is true on average.
    for name in ("auc", "accuracy", "balanced_accuracy", "sensitivity", "specificity", "brier", "roc at 0.3"):
        assert np.mean(values[name]) == pytest.approx(np.mean(truths[name]), abs=0.03), name


def test_controls_are_summed_up_by_what_was_asked_last() -> None:
    same = {"subjects": 27, "phantom": 0, "epochs": 8}
    seeds = [same | {"kind": "seed", "seed": seed, "auc": 0.95 + seed / 100, "latent_auc": 1.0} for seed in range(3)]
    permuted = [
        same | {"kind": "permuted", "auc": 0.5, "low": low, "high": 0.7, "bootstrap": [0.3, 0.49], "p": p}
        for low, p in ((0.3, 0.4), (0.51, 0.01))
    ]
    verdict = {"verdict": "FAILED_CHECK", "failed": ["stability"], "checks": {"own_verdict": 0.987, "stability": 0.1}}
    failed = same | {"kind": "simulation", "of": "permuted", "seed": 4} | verdict
    found = summary([same | {"kind": "seed", "epochs": 1, "auc": 0.1}, *seeds, *permuted, failed])
    assert (found["seeds"], found["mean_auc"], found["level_reached"]) == (3, pytest.approx(0.96), True)
    assert (found["permuted"], found["intervals_that_hold_0.5"], found["p_above_0.05"]) == (2, 1, 1)
    assert found["bootstrap_intervals_that_hold_0.5"] == 0
    expected = "FAILED_CHECK; failed: stability; own_verdict 0.987, stability 0.1"
    assert found["simulation_permuted_4"] == expected
    assert summary([]) == {}
