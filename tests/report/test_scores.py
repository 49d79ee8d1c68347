"""The ROC curve and its band, on scores few enough to count by hand."""

import numpy as np
import pytest
from pydantic import ValidationError

from limner.report.scores import SubjectScore, roc_band, roc_curve, subject_scores
from tests.report.sample import report_data


def test_roc_steps_once_for_each_score_and_merges_ties() -> None:
    positive = np.array([True, False, True, False, False])
    scores = np.array([0.9, 0.8, 0.8, 0.3, 0.1])
    false, true = roc_curve(positive, scores)
    np.testing.assert_allclose(false, [0, 0, 1 / 3, 2 / 3, 1])
    np.testing.assert_allclose(true, [0, 0.5, 1, 1, 1])


def test_roc_of_a_perfect_ranking_rises_before_it_moves() -> None:
    false, true = roc_curve(np.array([False, True]), np.array([0.1, 0.9]))
    np.testing.assert_allclose((false, true), [[0, 0, 1], [0, 1, 1]])


def test_band_holds_the_curve() -> None:
    rng = np.random.default_rng(1)
    scores = [_score(f"s{index}", index % 2, rng.normal(index % 2, 1)) for index in range(40)]
    at = np.linspace(0, 1, 11)
    low, high = roc_band(scores, "b", at)
    false, true = roc_curve(np.array([s.label == "b" for s in scores]), np.array([s.probability for s in scores]))
    curve = np.interp(at, false, true)
    assert np.all(low <= curve + 1e-9)
    assert np.all(curve <= high + 1e-9)
    assert np.all(np.diff(low) >= 0)
    assert np.all(np.diff(high) >= 0)
    assert low[-1] == high[-1] == 1


def test_band_of_perfect_scores_is_as_wide_as_few_subjects_make_it() -> None:
    """Wilson's interval of 0 of 16 reaches to 0.1936, that of 11 of 11 from 0.7412."""
    scores = [_score(f"s{index}", int(index < 11), float(index < 11)) for index in range(27)]
    low, high = roc_band(scores, "b", np.array([0.0, 0.193, 0.194, 0.9]))
    np.testing.assert_allclose(low, [0, 0, 0.7412, 0.7412], atol=1e-4)
    np.testing.assert_array_equal(high, 1)


def test_scores_are_the_softmax_of_tempered_logits_judged_by_the_threshold() -> None:
    model = report_data().model
    card = {
        "calibration": {"temperature": 2.0},
        "out_of_fold": [
            {"subject": "a", "label": "recurrent", "fold": 1, "logits": [0.0, 2 * np.log(3)], "slices": []}
        ],
    }
    (score,) = subject_scores(model.model_copy(update={"card": card, "threshold": 0.8}))
    assert score.probability == pytest.approx(0.75)
    assert score.predicted == "non-recurrent"
    (score,) = subject_scores(model.model_copy(update={"card": card, "threshold": 0.7}))
    assert score.predicted == "recurrent"


def test_a_subject_is_taken_for_what_the_metrics_count_it_as() -> None:
    """By the threshold of the other folds: the one that is served was chosen on this very subject too."""
    model = report_data().model
    entries = [{**entry, "chosen": "non-recurrent"} for entry in model.card["out_of_fold"]]  # type: ignore[union-attr,dict-item]
    scores = subject_scores(model.model_copy(update={"card": {**model.card, "out_of_fold": entries}}))
    assert {score.predicted for score in scores} == {"non-recurrent"}


def test_a_card_without_scores_is_refused_by_name() -> None:
    model = report_data().model.model_copy(update={"card": {"out_of_fold": [{"subject": "a"}]}})
    with pytest.raises(ValidationError, match="logits"):
        subject_scores(model)


def _score(subject: str, label: int, probability: float) -> SubjectScore:
    return SubjectScore(subject=subject, label="ab"[label], fold=0, probability=probability, predicted="a")
