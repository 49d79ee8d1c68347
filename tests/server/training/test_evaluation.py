"""Metrics against scikit-learn's, intervals, the roll-up and the threshold."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import (
    accuracy_score,
    balanced_accuracy_score,
    precision_score,
    recall_score,
    roc_auc_score,
)

from limner_server.training.evaluation import (
    Judged,
    Units,
    evaluate,
    judge,
    resampled_metrics,
    roll_up,
    weighted_auc,
    youden_threshold,
)
from limner_server.training.intervals import wilson
from limner_server.training.resampling import resample


def units_of(scores: np.ndarray, labels: np.ndarray, folds: int = 2) -> Units:
    """Subjects of one slice each, whose second logit is their score."""
    count = len(scores)
    logits = np.stack([np.zeros(count), scores], axis=1)
    rows = np.arange(count)
    return Units(np.array([f"s{n:04d}" for n in rows]), labels, rows // 2 % folds, logits, rows)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(1, 3)), min_size=2, max_size=30))
def test_weighted_auc_is_sklearns(rows: list[tuple[int, bool, int]]) -> None:
    scores, positive, weights = (np.array(column) for column in zip(*rows, strict=True))
    if positive.all() or not positive.any():
        return
    found = weighted_auc(scores.astype(float), positive, weights[None].astype(float))
    assert found[0] == pytest.approx(roc_auc_score(positive, scores, sample_weight=weights))


def test_macro_auc_is_sklearns() -> None:
    generator = np.random.default_rng(0)
    labels = np.arange(60) % 3
    logits = generator.normal(size=(60, 3)) + np.eye(3)[labels]
    units = Units(np.array([f"s{n}" for n in range(60)]), labels, labels * 0, logits, np.arange(60))
    metrics, threshold = evaluate(units, 1.0)
    shares = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    assert [metric.name for metric in metrics] == ["auc", "accuracy", "balanced_accuracy", "brier"]
    assert metrics[0].value == pytest.approx(roc_auc_score(labels, shares, multi_class="ovr"))
    assert metrics[1].value == pytest.approx((logits.argmax(axis=1) == labels).mean())
    assert "most probable" in threshold.rule


def test_perfect_and_useless_predictions() -> None:
    labels = np.arange(40) // 20
    perfect = {m.name: m for m in evaluate(units_of(labels * 4.0 - 2, labels), 1.0)[0]}
    for name in ("auc", "accuracy", "balanced_accuracy", "sensitivity", "specificity", "ppv", "npv"):
        assert (perfect[name].value, perfect[name].high) == (1, 1)
        assert 0.8 < perfect[name].low < 0.95, "forty subjects prove no perfection"
    useless = {m.name: m for m in evaluate(units_of(np.zeros(40), labels), 1.0)[0]}
    assert useless["auc"].value == 0.5
    assert useless["auc"].low < 0.5 < useless["auc"].high
    assert useless["brier"].value == pytest.approx(0.25)


def test_shares_are_sklearns() -> None:
    generator = np.random.default_rng(3)
    labels = (np.arange(50) % 3 == 0).astype(np.int64)
    units = units_of(generator.normal(size=50) + labels, labels)
    judged = judge(units, 1.0)
    found = {metric.name: metric.value for metric in evaluate(units, 1.0)[0]}
    assert found["accuracy"] == accuracy_score(labels, judged.chosen)
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(labels, judged.chosen))
    assert found["sensitivity"] == recall_score(labels, judged.chosen)
    assert found["specificity"] == recall_score(labels, judged.chosen, pos_label=0)
    assert found["ppv"] == precision_score(labels, judged.chosen)
    assert found["npv"] == precision_score(labels, judged.chosen, pos_label=0)


def test_a_share_of_nobody_is_left_out() -> None:
    """Without other folds the threshold is 0.5, and every score is below it: none is called positive."""
    labels = np.arange(6) % 2
    units = replace(units_of(-1.0 - labels, labels), folds=labels * 0)
    judged = judge(units, 1.0)
    analytic, drawn = evaluate(units, 1.0)[0], resampled_metrics(judged, resample(units.subjects, labels, 2, 0))
    for metrics in (analytic, drawn):
        found = {metric.name: metric.value for metric in metrics}
        assert "ppv" not in found
        assert (found["npv"], found["sensitivity"], found["specificity"]) == (0.5, 0, 1)


def test_a_resample_without_a_figure_may_have_had_any() -> None:
    """One of two subjects is called positive: every fourth resample has neither of it, so its ppv could be anything."""
    labels = np.array([1, 1, 0, 0])
    judged = Judged(np.full((4, 2), 0.5), labels, np.array([1, 0, 0, 0]), np.array(list("abcd")))
    metrics = {m.name: m for m in resampled_metrics(judged, resample(judged.subjects, labels, 2, 0))}
    assert (metrics["ppv"].low, metrics["ppv"].value, metrics["ppv"].high) == (0, 1, 1)


def test_the_interval_holds_the_true_value_about_as_often_as_it_says() -> None:
    """Scores one deviation apart have a true AUC of Φ(1/√2) = 0.7602."""
    held = 0
    for seed in range(40):
        labels = np.arange(80) % 2
        scores = np.random.default_rng(seed).normal(size=80) + labels
        auc = evaluate(units_of(scores, labels), 1.0)[0][0]
        assert auc.low < auc.value < auc.high
        held += auc.low <= 0.7602 <= auc.high
    assert held >= 33


def test_resampled_metrics_are_the_same_values_and_repeat_with_their_seed() -> None:
    labels = np.arange(30) % 2
    units = units_of(np.random.default_rng(0).normal(size=30) + labels, labels)
    judged = judge(units, 1.0)
    first, again, other = (resampled_metrics(judged, resample(units.subjects, labels, 2, seed)) for seed in (7, 7, 8))
    assert first == again
    assert first != other
    expected = {metric.name: metric.value for metric in evaluate(units, 1.0)[0]}
    assert {metric.name: metric.value for metric in first} == pytest.approx(expected)


def test_resamples_in_blocks_are_the_resamples() -> None:
    subjects = np.repeat([f"s{n}" for n in range(2100)], 2)
    labels = np.repeat(np.arange(2100) % 2, 2)
    drawn = resample(subjects, labels, 2, 0)
    blocks = list(drawn.blocks())
    assert len(blocks) > 2
    assert np.array_equal(np.concatenate(blocks), drawn.weights[:, drawn.rows])
    assert (drawn.weights.sum(axis=1) == 2100).all()


def test_youden_lies_midway_between_two_scores() -> None:
    scores = np.array([0.1, 0.2, 0.3, 0.6, 0.7, 0.9])
    assert youden_threshold(scores, scores > 0.5) == pytest.approx(0.45)
    assert youden_threshold(np.array([0.4, 0.4]), np.array([True, False])) == 0.5


def test_no_fold_sets_its_own_threshold() -> None:
    """Fold 0 would be perfect by a threshold of its own, 0.5; by that of fold 1, far below, it is not."""
    scores, labels = np.array([-1.0, 1.0, -9.0, -7.0]), np.array([0, 1, 0, 1])
    units = Units(np.array(list("abcd")), labels, np.array([0, 0, 1, 1]), np.stack([scores * 0, scores], 1), labels)
    metrics = {metric.name: metric.value for metric in evaluate(units, 1.0)[0]}
    assert (metrics["sensitivity"], metrics["specificity"]) == (0.5, 0.5)


def test_roll_up_averages_a_subjects_logits() -> None:
    logits = np.array([[0.0, 1.0], [0.0, 5.0], [0.0, 3.0]])
    units = roll_up(np.array(["b", "a", "b"]), np.array([1, 0, 1]), np.array([2, 4, 2]), logits)
    assert units.subjects.tolist() == ["a", "b"]
    assert units.labels.tolist() == [0, 1]
    assert units.folds.tolist() == [4, 2]
    assert units.logits.tolist() == [[0, 5], [0, 2]]
    assert units.unit_of_slice.tolist() == [1, 0, 1]


def test_a_subject_with_slices_of_two_labels_counts_for_each() -> None:
    subjects = np.repeat([f"s{n}" for n in range(8)], 2)
    labels = np.tile([0, 1], 8)
    logits = np.stack([np.zeros(16), labels * 2.0], axis=1)
    units = roll_up(subjects, labels, np.repeat(np.arange(8) % 2, 2), logits)
    assert len(units.subjects) == 16
    metrics = {metric.name: metric for metric in evaluate(units, 1.0)[0]}
    assert metrics["auc"].value == 1
    assert metrics["accuracy"].low == pytest.approx(wilson(1.0, 8)[0]), "eight subjects, not sixteen"
