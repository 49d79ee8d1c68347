"""Folds by subject, and cohorts that cannot be split."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limner_server.errors import InvalidInputError
from limner_server.training.config import TrainingConfig
from limner_server.training.folds import Role, plan_splits, subject_folds
from tests.server.training.cohorts import gridded


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[list[str], list[int]]:
    """Subjects of both labels with 1 to 5 slices each, in any order."""
    counts = draw(st.lists(st.tuples(st.booleans(), st.integers(1, 5)), min_size=0, max_size=20))
    counts += [(label, 2) for label in (False, True) for _ in range(4)]
    rows = [(f"s{subject}", int(label)) for subject, (label, count) in enumerate(counts) for _ in range(count)]
    rows = draw(st.permutations(rows))
    return [subject for subject, _ in rows], [label for _, label in rows]


@settings(max_examples=50, deadline=None)
@given(cohorts(), st.integers(2, 4), st.integers(0, 2**64 - 1))
def test_no_subject_is_on_both_sides(rows: tuple[list[str], list[int]], folds: int, seed: int) -> None:
    cohort = gridded(*rows)
    held_out = []
    for train, test in subject_folds(cohort, folds, seed):
        assert not set(cohort.subjects[train]) & set(cohort.subjects[test])
        assert len(train) + len(test) == len(cohort.labels)
        assert set(cohort.labels[train]) == {0, 1}
        held_out.extend(test.tolist())
    assert sorted(held_out) == list(range(len(cohort.labels)))


def test_folds_repeat_with_the_seed() -> None:
    cohort = gridded([f"s{n}" for n in range(30)], [n % 2 for n in range(30)])
    first, second, other = (subject_folds(cohort, 3, seed) for seed in (1, 1, 2))
    assert all(np.array_equal(a[1], b[1]) for a, b in zip(first, second, strict=True))
    assert not all(np.array_equal(a[1], b[1]) for a, b in zip(first, other, strict=True))


def test_the_plan_is_folds_then_halves_then_everything() -> None:
    cohort = gridded([f"s{n}" for n in range(12)], [n % 2 for n in range(12)])
    splits = plan_splits(cohort, TrainingConfig(folds=3))
    assert [split.phase for split in splits] == [
        "fold 1 of 3", "fold 2 of 3", "fold 3 of 3", "half 1 of 2", "half 2 of 2", "all subjects",
    ]  # fmt: skip
    assert np.array_equal(splits[3].train, splits[4].held_out)
    assert len(splits[-1].train) == 12
    assert len(plan_splits(cohort, TrainingConfig(folds=3, halves=False))) == 4


def test_two_folds_are_the_halves() -> None:
    cohort = gridded([f"s{n}" for n in range(12)], [n % 2 for n in range(12)])
    splits = plan_splits(cohort, TrainingConfig(folds=2))
    assert len(splits) == 3
    assert [Role.HALF in split.roles for split in splits] == [True, True, False]


@pytest.mark.parametrize(
    ("subjects", "labels", "folds", "named"),
    [
        ([], [], 2, "empty"),
        (["a", "b", "c"], [0, 0, 0], 2, "none of 'yes'"),
        (["a", "b", "c", "d"], [0, 0, 0, 1], 2, "'yes' has 1"),
        (["a", "a", "b", "c"], [0, 0, 1, 1], 2, "'no' has 1"),
    ],
)
def test_a_cohort_that_cannot_be_split_is_refused(
    subjects: list[str], labels: list[int], folds: int, named: str
) -> None:
    with pytest.raises(InvalidInputError, match=named):
        subject_folds(gridded(subjects, labels), folds, 0)
