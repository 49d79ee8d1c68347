"""Figures of agreement: equal to scikit-learn's and pingouin's, and their intervals of what they are said to be."""

import numpy as np
import pandas as pd
import pingouin
import pytest
from numpy.typing import NDArray
from sklearn.metrics import cohen_kappa_score, roc_auc_score

from limner_server.review.agreement import draw_cases, icc, steps, weighted_kappa
from limner_server.review.gather import ItemKind
from limner_server.review.summary import Figure, figures, groups, rate
from limner_server.state.database import now
from limner_server.state.reviews import NewVerdict, ReadingItem, StoredVerdict
from limner_server.training.evaluation import weighted_auc

LABELS = ("no", "yes")


def once(cases: int) -> NDArray[np.float64]:
    return np.ones((1, cases))


@pytest.mark.parametrize("seed", range(40))
@pytest.mark.parametrize(("power", "name"), [(1, "linear"), (2, "quadratic")])
def test_kappa_is_that_of_scikit_learn(seed: int, power: int, name: str) -> None:
    rng = np.random.default_rng(seed)
    first, second = rng.integers(1, 6, (2, rng.integers(2, 60)))
    if seed % 4 == 0:
        second = np.clip(first + rng.integers(-1, 2, len(first)), 1, 5)
    weights = rng.integers(0, 4, (3, len(first))).astype(float)
    weights[:, 0] += 1
    for row, found in zip(weights, weighted_kappa(first, second, weights, power=power), strict=True):
        wanted = cohen_kappa_score(first, second, labels=[1, 2, 3, 4, 5], weights=name, sample_weight=row)
        assert found == pytest.approx(wanted, abs=1e-9, nan_ok=True)


@pytest.mark.filterwarnings("ignore:.*:Warning:pingouin")
@pytest.mark.parametrize("seed", range(40))
def test_icc_is_that_of_pingouin(seed: int) -> None:
    rng = np.random.default_rng(seed)
    cases, raters = int(rng.integers(5, 40)), int(rng.integers(2, 7))
    ratings = rng.uniform(0, 100, (cases, 1)) * rng.integers(0, 2) + rng.uniform(0, 40, (cases, raters))
    ratings += rng.uniform(0, 20, raters)
    long = pd.DataFrame(ratings).reset_index().melt("index", var_name="rater", value_name="rating")
    table = pingouin.intraclass_corr(long, targets="index", raters="rater", ratings="rating").set_index("Type")
    agreement, consistency = icc(ratings, once(cases))
    assert agreement[0] == pytest.approx(table["ICC"]["ICC(A,1)"], abs=1e-9)
    assert consistency[0] == pytest.approx(table["ICC"]["ICC(C,1)"], abs=1e-9)


def test_icc_of_weighted_cases_is_that_of_cases_repeated() -> None:
    rng = np.random.default_rng(0)
    ratings = rng.uniform(0, 100, (12, 3))
    weights = rng.integers(0, 4, (5, 12))
    for row, *found in zip(weights, *icc(ratings, weights.astype(float)), strict=True):
        repeated = np.repeat(ratings, row, axis=0)
        assert found == pytest.approx([float(value[0]) for value in icc(repeated, once(len(repeated)))], abs=1e-9)


@pytest.mark.parametrize("seed", range(20))
def test_auc_is_that_of_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    realism, real = rng.integers(1, 6, 30).astype(float), np.arange(30) < 12
    found = weighted_auc(realism, real, once(30))[0]
    assert found == pytest.approx(roc_auc_score(real, realism), abs=1e-9)


def test_what_is_not_defined_is_no_number() -> None:
    same = np.full(6, 3)
    assert np.isnan(weighted_kappa(same, same, once(6), power=2)[0])
    assert np.isnan(icc(np.full((6, 2), 50.0), once(6))).all()


def test_steps_are_twenty_wide_and_the_last_takes_the_end() -> None:
    assert steps(np.array([0, 19.9, 20, 50, 79.9, 80, 100])).tolist() == [1, 1, 2, 3, 4, 5, 5]


def test_slices_of_one_subject_are_drawn_together() -> None:
    weights = draw_cases(["a", "a", "b", "c"], 500, np.random.default_rng(0))
    assert (weights[:, 0] == weights[:, 1]).all()
    assert (weights[:, 0] + weights[:, 2] + weights[:, 3] == 3).all()
    assert 0.9 < weights.mean() < 1.1


def _study(
    readers: dict[str, NDArray[np.float64]], realism: NDArray[np.int64] | None = None
) -> dict[tuple[str, ...], Figure]:
    """Return the figures of a study of 12 real and 4 simulated images by reader and name."""
    items = [
        ReadingItem(
            ItemKind.REAL if number < 12 else ItemKind.SIMULATED,
            LABELS[number % 2],
            f"s{number}" if number < 12 else "",
            "",
            None,
            None,
            (1 - number / 20, number / 20),
            out_of_fold=False,
        )
        for number in range(16)
    ]
    verdicts = [
        StoredVerdict(
            0, name, NewVerdict("", item, value, int(realism[item] if realism is not None else 3), 3, {}, "", 1), now()
        )
        for name, values in readers.items()
        for item, value in enumerate(values)
        if not np.isnan(value)
    ]
    ratings = rate(items, LABELS, "yes", verdicts, 400, 0)
    assert {group.reader for group in groups(ratings)} == {"model", *readers}
    return {figure[:3]: figure for figure in figures(ratings)}


def test_a_reader_who_says_what_the_model_says_agrees_with_it() -> None:
    found = _study({"ann": np.arange(16) * 5.0})
    kappa = found["kappa_quadratic", "ann", "model"]
    assert (kappa.value, kappa.low, kappa.high, kappa.cases, kappa.resampled) == (1, 1, 1, 16, "cases")
    assert ("kappa_quadratic", "", "") not in found


def test_readers_who_can_tell_have_an_auc_of_one() -> None:
    values = np.linspace(0, 100, 16)
    found = _study({"ann": values, "bo": values}, np.where(np.arange(16) < 12, 5, 1))
    told = found["auc_real_simulated", "", ""]
    assert (told.value, told.low, told.high, told.cases, told.readers) == (1, 1, 1, 16, 2)
    assert told.resampled == "cases and readers"
    cannot = _study({"ann": values, "bo": values})["auc_real_simulated", "ann", ""]
    assert (cannot.value, cannot.low, cannot.high) == (0.5, 0.5, 0.5)


def test_figures_of_all_are_means_and_intervals_hold_the_value() -> None:
    rng = np.random.default_rng(1)
    truth = np.arange(16) * 6.0
    readers = {name: np.clip(truth + rng.normal(0, 15, 16), 0, 100) for name in ("ann", "bo", "cy")}
    found = _study(readers)
    pairs = [found["kappa_linear", *pair].value for pair in (("ann", "bo"), ("ann", "cy"), ("bo", "cy"))]
    assert found["kappa_linear", "", ""].value == pytest.approx(np.mean(pairs))
    of_model = [found["icc_2_1", name, "model"].value for name in readers]
    assert found["icc_2_1", "", "model"].value == pytest.approx(np.mean(of_model))
    for figure in found.values():
        assert figure.low <= figure.value + 1e-12
        assert figure.value <= figure.high + 1e-12


def test_figures_rest_on_the_cases_that_both_have_judged() -> None:
    whole = np.arange(16) * 5.0
    found = _study({"ann": np.where(whole < 30, whole, np.nan), "bo": whole})
    assert found["kappa_linear", "ann", "bo"].cases == 6
    assert found["kappa_linear", "bo", "model"].cases == 16
    assert found["icc_2_1", "", ""].cases == 6
    assert found["auc_label", "ann", ""].cases == 6
    assert ("auc_real_simulated", "ann", "") not in found
