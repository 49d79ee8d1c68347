"""Which subjects a fold is watched on, and when it stops."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limner_server.errors import InvalidInputError
from limner_server.training.stopping import best_epoch, choose_watched, enough, usual_epochs
from tests.server.training.cohorts import gridded


def cohort_of(*subjects_of_label: int, slices: int = 3):  # type: ignore[no-untyped-def]
    labels = np.repeat(np.arange(len(subjects_of_label)), subjects_of_label)
    names = [f"s{number}" for number in range(len(labels))]
    classes = [f"label {number}" for number in range(len(subjects_of_label))]
    return gridded(np.repeat(names, slices).tolist(), np.repeat(labels, slices).tolist(), classes)


@given(st.lists(st.integers(2, 12), min_size=2, max_size=3), st.integers(0, 2**63))
def test_a_fifth_of_the_subjects_of_each_label_with_all_their_slices(subjects: list[int], seed: int) -> None:
    cohort = cohort_of(*subjects)
    mask = choose_watched(cohort, np.arange(len(cohort.labels)), 3, seed)
    watched, learnt = set(cohort.subjects[mask]), set(cohort.subjects[~mask])
    assert watched.isdisjoint(learnt)
    for label, count in enumerate(subjects):
        own = set(cohort.subjects[cohort.labels == label])
        assert len(own & watched) == max(1, round(count / 5))
        assert own & learnt


def test_the_choice_is_the_seeds_and_among_the_rows_it_is_given() -> None:
    cohort = cohort_of(10, 10)
    rows = np.flatnonzero(np.arange(60) % 60 < 45)
    masks = [choose_watched(cohort, rows, 3, seed) for seed in (0, 0, 1)]
    assert masks[0].shape == rows.shape
    assert (masks[0] == masks[1]).all()
    assert (masks[0] != masks[2]).any()


def test_a_subject_of_several_labels_counts_for_the_one_of_most_slices() -> None:
    subjects = ["a", "a", "a", "b", "b", "b", "c", "c", "c", "d", "d", "d"]
    labels = [0, 0, 1, 0, 0, 1, 1, 1, 0, 1, 1, 0]
    mask = choose_watched(gridded(subjects, labels), np.arange(12), 1, 5)
    assert len({"a", "b"} & set(np.array(subjects)[mask])) == 1
    assert len({"c", "d"} & set(np.array(subjects)[mask])) == 1


def test_too_few_subjects_are_refused_with_the_label() -> None:
    with pytest.raises(InvalidInputError, match="1 of 'label 1'") as caught:
        choose_watched(cohort_of(5, 1), np.arange(18), 7, 0)
    assert (caught.value.field, caught.value.value) == ("config.patience", "7")


def test_it_stops_after_patience_epochs_without_a_better_one() -> None:
    losses = [3.0, 2.0, 2.5, 2.0, 2.1]
    assert best_epoch(losses) == 2  # the first of equals
    assert [enough(losses[:count], 2) for count in range(6)] == [False, False, False, False, True, True]
    assert not enough(losses, 4)


@pytest.mark.parametrize(("best", "epochs"), [([3], 3), ([2, 9, 4], 4), ([4, 7], 6), ([0.4], 1)])
def test_the_others_learn_the_median(best: list[float], epochs: int) -> None:
    assert usual_epochs(best) == epochs
