"""What the card tells beside its metrics, of predictions whose answer is known."""

import numpy as np
import pytest
from scipy.special import logit
from scipy.stats import mannwhitneyu
from sklearn.metrics import roc_auc_score

from limner_server.networks.card import Evaluation, SimilarPair
from limner_server.training.record import CurvePart, OutOfFold, evaluation, permutation_test
from limner_server.training.similar import SimilarSlices


def out_of_fold(
    subjects: int = 24, slices: int = 4, repeats: int = 1, classes: int = 2, signal: float = 1.0
) -> OutOfFold:
    """Logits that know the label of each subject, more or less."""
    generator = np.random.default_rng(0)
    whose = np.repeat(np.arange(subjects), slices)
    labels = whose % classes
    noise = (
        generator.normal(size=(repeats, subjects * slices, classes)) + generator.normal(size=(subjects, classes))[whose]
    )
    return OutOfFold(
        np.array([f"s{number:03d}" for number in whose]),
        labels,
        whose // 2 % 3,
        noise + signal * np.eye(classes)[labels],
    )


def test_repeats_are_averaged_by_slice_and_told_one_by_one() -> None:
    found = out_of_fold(repeats=3)
    assert np.allclose(found.logits, found.repeats.mean(axis=0))
    told = evaluation(found, 1.0, 0)
    assert told.repeats == 3
    subjects = [found.subjects == name for name in np.unique(found.subjects)]
    labels = [found.labels[rows][0] for rows in subjects]
    margins = found.repeats[..., 1] - found.repeats[..., 0]
    expected = [roc_auc_score(labels, [margin[rows].mean() for rows in subjects]) for margin in margins]
    assert told.per_repeat == pytest.approx(expected)


def test_every_roll_up_is_what_its_name_says() -> None:
    found = out_of_fold()
    margin = found.logits[0:, 1] - found.logits[:, 0]
    probability = 1 / (1 + np.exp(-margin))
    subjects = [found.subjects == name for name in np.unique(found.subjects)]
    labels = [found.labels[rows][0] for rows in subjects]
    expected = {
        "mean_logit": [margin[rows].mean() for rows in subjects],
        "median_logit": [np.median(margin[rows]) for rows in subjects],
        "mean_probability": [probability[rows].mean() for rows in subjects],
        "max_probability": [probability[rows].max() for rows in subjects],
        "vote": [(probability[rows] > 0.5).mean() for rows in subjects],
    }
    told = evaluation(found, 1.0, 0).roll_ups
    assert {name: metric.value for name, metric in told.items()} == pytest.approx(
        {name: roc_auc_score(labels, scores) for name, scores in expected.items()}
    )


def test_the_whole_record_of_two_labels() -> None:
    found = out_of_fold(signal=2.0)
    pair = SimilarPair(first="a", first_subject="s", second="b", second_subject="t", similarity=1.0)
    curve = [CurvePart(4, found.repeats[0] * 0), CurvePart(16, found.repeats[0])]
    told = evaluation(found, 1.5, 0, curve, SimilarSlices((pair,), 1), (3, 4))
    assert Evaluation.model_validate_json(told.model_dump_json()) == told
    assert np.sum(told.confusion) == 24
    assert [sum(row) for row in told.confusion] == [12, 12]
    assert told.delong is not None
    assert told.bootstrap is not None
    assert told.permutation is not None
    assert told.delong.value == pytest.approx(told.bootstrap.value)
    assert {told.delong.interval, told.bootstrap.interval} == {"delong", "bootstrap"}
    assert sum(item.count for item in told.calibration_before) == len(found.labels)
    assert [(point.subjects, point.auc.value) for point in told.learning_curve] == [
        (4, 0.5),
        (16, told.bootstrap.value),
    ]
    assert (told.similar, told.similar_found, told.epochs) == ((pair,), 1, (3, 4))
    names = [metric.name for metric in told.slices]
    assert names[:4] == ["auc", "accuracy", "balanced_accuracy", "brier"]
    assert {metric.interval for metric in told.slices} == {"bootstrap"}


def test_slices_are_no_independent_witnesses() -> None:
    """The interval of the slices' AUC is about as wide as that of the subjects', not four times as narrow."""
    found = out_of_fold(subjects=40, slices=20)
    told = {metric.name: metric for metric in evaluation(found, 1.0, 0).slices}
    alone = OutOfFold(np.array([f"x{n:04d}" for n in range(800)]), found.labels, found.folds, found.repeats)
    independent = {metric.name: metric for metric in evaluation(alone, 1.0, 0).slices}
    assert told["auc"].value == independent["auc"].value
    assert told["auc"].high - told["auc"].low > 2 * (independent["auc"].high - independent["auc"].low)


def test_more_than_two_labels() -> None:
    told = evaluation(out_of_fold(classes=3), 1.0, 0)
    assert (told.permutation, told.delong) == (None, None)
    assert np.shape(told.confusion) == (3, 3)
    assert [metric.name for metric in told.slices] == ["auc", "accuracy", "balanced_accuracy", "brier"]
    assert set(told.roll_ups) >= {"mean_logit", "mean_probability"}


def test_the_permutation_test_is_the_rank_sum_test() -> None:
    """With one row a subject the exact p is Mann and Whitney's."""
    labels = np.arange(14) % 2
    scores = np.random.default_rng(4).normal(size=14) + 0.8 * labels
    subjects = np.array([f"s{n}" for n in range(14)])
    found = permutation_test(scores, labels, subjects, 0)
    exact = mannwhitneyu(scores[labels == 1], scores[labels == 0], alternative="greater", method="exact").pvalue
    assert found.p == pytest.approx(exact, abs=0.012)
    assert len(found.null) == 101
    assert found.null[50] == pytest.approx(0.5, abs=0.03)
    assert permutation_test(scores, labels, subjects, 0) == found


def test_labels_are_permuted_within_a_subject_that_has_both() -> None:
    """Every subject's second slice scores higher, by a little: within subjects that is clear, among them it is not."""
    subjects = np.repeat([f"s{n:02d}" for n in range(12)], 2)
    labels = np.tile([0, 1], 12)
    scores = logit(np.linspace(0.05, 0.95, 24))
    assert permutation_test(scores, labels, subjects, 0).p == pytest.approx(1 / 5001 + 2**-12, abs=1e-3)
    alone = np.array([f"t{n}" for n in range(24)])
    assert permutation_test(scores, labels, alone, 0).p > 0.2
