"""Intervals against published formulas, other implementations and cases worked out by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest

from limner_server.training.intervals import (
    Z,
    delong,
    delong_interval,
    effective_count,
    logit_t,
    mover,
    newcombe,
    percentiles,
    wilson,
)


def names(count: int) -> np.ndarray:
    return np.array([f"s{number:03d}" for number in range(count)])


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 200), st.data())
def test_wilson_is_scipys(count: int, data: st.DataObject) -> None:
    right = data.draw(st.integers(0, count))
    expected = binomtest(right, count).proportion_ci(method="wilson")
    assert wilson(right / count, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


@settings(max_examples=50, deadline=None)
@given(st.floats(0, 1), st.integers(2, 60), st.integers(2, 60))
def test_newcombes_ends_lie_as_far_as_their_own_standard_error_says(auc: float, positives: int, negatives: int) -> None:
    ends = newcombe(auc, positives, negatives)
    assert 0 <= ends[0] <= auc <= ends[1] <= 1
    for end in ends:
        if abs(end - auc) > 1e-6:
            common = (positives + negatives) / 2 - 1
            q1, q2 = end / (2 - end), 2 * end**2 / (1 + end)
            # Hanley and McNeil's variance, as they wrote it.
            variance = (end * (1 - end) + common * (q1 - end**2) + common * (q2 - end**2)) / (positives * negatives)
            assert abs(end - auc) == pytest.approx(Z * np.sqrt(variance), abs=1e-6)


def test_a_perfect_auc_of_few_subjects_proves_little() -> None:
    assert newcombe(1.0, 11, 16) == (pytest.approx(0.845, abs=5e-4), 1.0)
    assert newcombe(0.0, 11, 16) == (0.0, pytest.approx(0.155, abs=5e-4))


def test_delong_by_every_pair() -> None:
    """The structural components as DeLong, DeLong and Clarke-Pearson define them, ties counting half."""
    generator = np.random.default_rng(0)
    positive = np.arange(40) % 3 == 0
    scores = np.round(generator.normal(size=40) + positive, 1)
    wins = scores[positive][:, None] > scores[~positive]
    pairs = wins + 0.5 * (scores[positive][:, None] == scores[~positive])
    expected = pairs.mean(axis=1).var(ddof=1) / positive.sum() + pairs.mean(axis=0).var(ddof=1) / (~positive).sum()
    assert delong(scores, positive, names(40)) == pytest.approx((pairs.mean(), expected))


def test_subjects_with_both_labels_are_one_draw() -> None:
    """A subject with high scores has both high: its errors cancel, and DeLong alone would see twice the variance."""
    generator = np.random.default_rng(1)
    positive, subjects = np.arange(200) >= 100, np.tile(names(100), 2)
    aucs, paired, apart = [], [], []
    for _ in range(300):
        level = 2 * generator.normal(size=100)
        scores = np.concatenate([level, level + 1]) + generator.normal(size=200)
        auc, variance = delong(scores, positive, subjects)
        aucs.append(auc)
        paired.append(variance)
        apart.append(delong(scores, positive, names(200))[1])
    assert np.mean(paired) == pytest.approx(np.var(aucs), rel=0.3)
    assert np.mean(apart) > 2 * np.mean(paired)


def test_delongs_interval_stays_within_bounds() -> None:
    low, high = delong_interval(0.97, 0.03**2)
    assert 0.8 < low < 0.97 < high < 1
    assert delong_interval(1.0, 0.0) == (1.0, 1.0)


def test_mover_of_one_figure_is_its_own_interval() -> None:
    assert mover([0.8], [(0.6, 0.9)]) == pytest.approx((0.6, 0.9))
    assert mover([1.0, 1.0], [(0.8, 1.0), (0.8, 1.0)]) == pytest.approx((1 - 0.2 / np.sqrt(2), 1))


def test_logit_t_of_twenty_values() -> None:
    values = np.linspace(0.1, 0.3, 21)
    error = values.std(ddof=1) / np.sqrt(21) / (0.2 * 0.8)
    expected = 1 / (1 + np.exp(-(np.log(0.25) + np.array([-1, 1]) * 2.08596 * error)))
    assert logit_t(values, names(21)) == pytest.approx(tuple(expected), abs=1e-5)
    assert logit_t(2 * values, names(21), 2.0) == pytest.approx(tuple(2 * expected), abs=1e-5)
    assert logit_t(np.zeros(3), names(3)) == (0, 0)


def test_values_of_one_subject_are_worth_one() -> None:
    right = np.repeat([True, False, True, True], 5)
    assert effective_count(right, names(20)) == 20
    assert effective_count(right, np.repeat(names(4), 5)) == 4
    assert effective_count(np.ones(20, np.bool_), np.repeat(names(4), 5)) == 4
    # Right and wrong in every subject alike: nothing hangs together.
    assert effective_count(np.tile([True, False], 10), np.repeat(names(10), 2)) == 20


def test_an_undefined_resample_may_have_been_anything() -> None:
    values = np.full(100, 0.5)
    values[:10] = np.nan
    assert percentiles(values) == (0, 1)
    assert percentiles(np.full(100, 0.5)) == (0.5, 0.5)
