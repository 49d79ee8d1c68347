"""The verdict, and each check on figures that are known to pass or to fail."""

import math
from dataclasses import replace

import numpy as np
import pytest

from limner_server.explain import checks
from limner_server.explain.checks import GATES, THRESHOLDS, CheckResult, Realism, Transfer, Verdict

GOOD = np.array([[0.9, 0.1], [0.2, 0.8]])


def result(number: int, *, passed: bool = True, ran: bool = True) -> CheckResult:
    return CheckResult(number, 0.0, 0.0, at_most=True, passed=passed and ran, ran=ran, detail="")


ALL = [result(number) for number in checks.NAMES]


def test_every_gate_passed_is_an_explanation() -> None:
    assert checks.verdict(ALL) is Verdict.EXPLANATION


@pytest.mark.parametrize("number", GATES)
def test_one_failed_gate_fails_the_result(number: int) -> None:
    failed = [replace(check, passed=False) if check.number == number else check for check in ALL]
    assert checks.verdict(failed) is Verdict.FAILED_CHECK


@pytest.mark.parametrize("number", GATES)
def test_a_gate_that_did_not_run_leaves_the_result_unchecked(number: int) -> None:
    without = [result(number, ran=False) if check.number == number else check for check in ALL]
    assert checks.verdict(without) is Verdict.UNCHECKED
    assert checks.verdict([check for check in ALL if check.number != number]) is Verdict.UNCHECKED


def test_a_failed_gate_outweighs_one_that_did_not_run() -> None:
    assert checks.verdict([result(1, passed=False), result(2, ran=False), *ALL[2:]]) is Verdict.FAILED_CHECK


@pytest.mark.parametrize("number", [6, 7, 8])
def test_what_is_only_reported_does_not_count(number: int) -> None:
    failed = [replace(check, passed=False) if check.number == number else check for check in ALL]
    assert checks.verdict(failed) is Verdict.EXPLANATION


def test_no_checks_is_unchecked() -> None:
    assert checks.verdict([]) is Verdict.UNCHECKED


def test_margins_and_gap_of_two_labels() -> None:
    logits = np.array([[3.0, 1.0], [-1.0, 2.0]])
    np.testing.assert_allclose(checks.margins(logits), [[2, -2], [-3, 3]])
    assert checks.gap(logits) == pytest.approx(3 - (-2))


def test_margins_of_three_labels() -> None:
    found = checks.margins(np.array([[1.0, 0.0, 0.0]]))
    np.testing.assert_allclose(found[0, 0], 1 - math.log(2))
    np.testing.assert_allclose(found[0, 1], 0 - math.log(math.e + 1))


def test_own_verdict() -> None:
    found = checks.own_verdict(GOOD, [0, 1])
    assert found.value == pytest.approx(0.7)
    assert found.passed
    assert found.gate
    assert (found.name, found.threshold, found.at_most) == ("own_verdict", 0.5, False)
    assert not checks.own_verdict(GOOD, [0, 0]).passed
    assert not checks.own_verdict(np.array([[0.6, 0.4], [0.4, 0.6]]), [0, 1]).passed


def test_own_verdict_of_three_labels_is_that_of_the_worst() -> None:
    probabilities = np.array([[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.4, 0.2, 0.4]])
    assert checks.own_verdict(probabilities, [0, 1, 2]).value == pytest.approx(0.4 - 0.1)


@pytest.mark.parametrize(
    ("transfers", "passed"),
    [
        ([Transfer(1.5, 1.2), Transfer(0.7, 1.1)], True),
        ([Transfer(0.9, 1.2), Transfer(0.8, 1.1)], False),
        ([Transfer(1.5, 0.3), Transfer(1.5, 1.1)], False),
        ([Transfer(math.nan, math.nan), Transfer(1.5, 1.1)], False),
    ],
)
def test_independent_judge(transfers: list[Transfer], passed: bool) -> None:
    assert checks.independent_judge(transfers).passed is passed


@pytest.mark.parametrize(
    ("gaps", "own", "value", "passed"),
    [([0.2, -0.5, 0.1], 2.0, 0.1, True), ([0.2, 0.8], 2.0, 0.4, False), ([0.1], -1.0, math.inf, False)],
)
def test_weight_randomisation(gaps: list[float], own: float, value: float, passed: bool) -> None:
    found = checks.weight_randomisation(gaps, own)
    assert found.value == pytest.approx(value)
    assert found.passed is passed
    assert len(found.values) == len(gaps)
    assert ("nothing to compare with" in found.detail) is math.isinf(value)


def test_label_permutation_tells_knowledge_from_none() -> None:
    labels = np.repeat([0, 1], 8)
    subjects = [f"s{index}" for index in range(16)]
    noise = np.random.default_rng(0).normal(size=16)
    knows = np.stack([np.zeros(16), 4 * labels - 2 + noise], axis=1)
    assert checks.label_permutation(knows, labels, subjects, 0).value == pytest.approx(1 / 5001, rel=2)
    assert checks.label_permutation(knows, labels, subjects, 0).passed
    assert not checks.label_permutation(np.stack([np.zeros(16), noise], axis=1), labels, subjects, 0).passed
    assert not checks.label_permutation(-knows, labels, subjects, 0).passed


def test_label_permutation_of_few_subjects_is_exact() -> None:
    # Two of four labels: six arrangements, one of which is the one found.
    logits = np.array([[2.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 2.0]])
    found = checks.label_permutation(logits, np.array([0, 0, 1, 1]), list("abcd"), 0)
    assert found.value == pytest.approx(1 / 6, abs=0.02)
    assert not found.passed


def test_labels_of_slices_are_permuted_within_subjects() -> None:
    # Three subjects with both labels: eight arrangements.
    logits = np.array([[1.0, 0.0], [0.0, 1.0]] * 3)
    found = checks.label_permutation(logits, np.array([0, 1] * 3), ["a", "a", "b", "b", "c", "c"], 0)
    assert found.value == pytest.approx(1 / 8, abs=0.02)


def test_stability_is_the_mean_correlation() -> None:
    assert checks.stability([0.5, 0.8]).value == pytest.approx(0.65)
    assert checks.stability([0.5, 0.8]).passed
    assert not checks.stability([0.5, math.nan]).passed


def test_realism_needs_all_three_figures() -> None:
    good = Realism(high_frequencies=1.0, spectrum=1.5, nearest_real=1.0)
    assert checks.realism([good, good]).passed
    for worse in (replace(good, high_frequencies=0.3), replace(good, spectrum=3.0), replace(good, nearest_real=1.4)):
        found = checks.realism([good, worse])
        assert not found.passed
        assert not found.gate


def test_random_channels_are_only_reported() -> None:
    assert not checks.random_channels(1.0, 2.0).gate
    assert checks.random_channels(1.0, 2.0).value == 0.5


def test_random_channels_without_a_gap_to_compare_with_say_so() -> None:
    found = checks.random_channels(1.0, -0.5)
    assert math.isinf(found.value)
    assert found.detail == "the model's own gap is -0.50: there is nothing to compare with"


def test_the_null_of_the_permutation_test_can_be_drawn() -> None:
    labels = np.repeat([0, 1], 10)
    logits = np.stack([np.zeros(20), np.random.default_rng(1).normal(size=20) + labels], axis=1)
    found = checks.label_permutation(logits, labels, [str(index) for index in range(20)], 0)
    (observed,) = found.values
    assert observed == pytest.approx(checks.margins(logits)[np.arange(20), labels].mean())
    assert len(found.null) == 101
    assert list(found.null) == sorted(found.null)
    # The share of the null at or over what was found is the p-value.
    assert np.mean(np.array(found.null) >= observed) == pytest.approx(found.value, abs=0.02)


@pytest.mark.parametrize("labels", [2, 3])
def test_contrast_correlation_is_that_of_the_difference_images(labels: int) -> None:
    rng = np.random.default_rng(0)
    first, second = rng.normal(size=(2, labels, 6, 6))
    if labels == 2:
        expected = np.corrcoef((first[1] - first[0]).ravel(), (second[1] - second[0]).ravel())[0, 1]
        assert checks.contrast_correlation(first, second) == pytest.approx(expected)
    assert checks.contrast_correlation(first, 3 * first + second[0]) == pytest.approx(1)
    # Brightness of a whole image says nothing of where they differ.
    assert checks.contrast_correlation(first, first + np.arange(labels)[:, None, None]) == pytest.approx(1)
    assert checks.contrast_correlation(first, first[::-1]) < 0.5
    assert math.isnan(checks.contrast_correlation(first, np.broadcast_to(first[0], first.shape)))


def test_another_seed_is_reported_with_the_models_verdict() -> None:
    found = checks.another_seed(0.45, 3.0, 6.0, [0, 0])
    assert found.passed
    assert not found.gate
    assert "takes 1 of 2 images" in found.detail
    assert found.values == (0.45,)
    assert not checks.another_seed(0.2, 3.0, 6.0, [0, 1]).passed
    assert not checks.another_seed(math.nan, 0.0, 6.0, [0, 1]).passed


def test_every_threshold_names_its_source() -> None:
    assert all(threshold.source for threshold in vars(THRESHOLDS).values())
    assert checks.stability([0.5]).source == THRESHOLDS.stability.source
    assert checks.not_run(8, THRESHOLDS.another_seed, "why").source == THRESHOLDS.another_seed.source
