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


def test_what_is_added_stands_after_what_was_there() -> None:
    """A network's place is part of its seed: no option may move another option's networks."""
    cohort = gridded([f"s{n}" for n in range(24)], [n % 2 for n in range(24)])
    plain = plan_splits(cohort, TrainingConfig(folds=3))
    more = plan_splits(cohort, TrainingConfig(folds=3, repeats=2, learning_curve=True, sibling=True))
    for before, after in zip(plain, more, strict=False):
        assert before.phase == after.phase
        assert np.array_equal(before.train, after.train)
    assert [split.phase for split in more[len(plain) :]] == [
        "fold 1 of 3, repeat 2", "fold 2 of 3, repeat 2", "fold 3 of 3, repeat 2",
        "learning curve 1 of 3, 25% of the subjects", "learning curve 2 of 3, 25% of the subjects",
        "learning curve 3 of 3, 25% of the subjects", "learning curve 1 of 3, 50% of the subjects",
        "learning curve 2 of 3, 50% of the subjects", "learning curve 3 of 3, 50% of the subjects",
        "learning curve 1 of 3, 75% of the subjects", "learning curve 2 of 3, 75% of the subjects",
        "learning curve 3 of 3, 75% of the subjects", "all subjects, another seed",
    ]  # fmt: skip
    assert [split.epochs(8) for split in more] == [8, 8, 8, 16, 16, 8, 8, 8, 8, 32, 32, 32, 16, 16, 16, 11, 11, 11, 8]
    # Networks of which only the scores are wanted are not kept in memory.
    assert [split.kept for split in more] == [True] * 6 + [False] * 12 + [True]


def test_repeats_have_folds_of_their_own() -> None:
    cohort = gridded([f"s{n}" for n in range(24)], [n % 2 for n in range(24)])
    splits = plan_splits(cohort, TrainingConfig(folds=2, repeats=3))
    for repeat in range(3):
        own = [split for split in splits if Role.FOLD in split.roles and split.repeat == repeat]
        assert sorted(np.concatenate([split.held_out for split in own])) == list(range(24))
        assert {split.epochs(8) for split in own} == {16}, "the halves of the first repeat learn twice as long"
    firsts = [split.held_out for split in splits if split.phase.startswith("fold 1")]
    assert len({tuple(held_out) for held_out in firsts}) == 3


def test_an_ensemble_needs_no_network_on_all_subjects() -> None:
    cohort = gridded([f"s{n}" for n in range(12)], [n % 2 for n in range(12)])
    splits = plan_splits(cohort, TrainingConfig(folds=3, ensemble=True, halves=False, repeats=2))
    assert [split.member for split in splits] == [True] * 3 + [False] * 3
    assert np.array_equal(splits[0].home, np.arange(12))
    assert np.array_equal(splits[3].home, splits[3].train)


def test_the_learning_curve_takes_more_and_more_of_the_same_subjects() -> None:
    cohort = gridded([f"s{n // 2}" for n in range(80)], [n // 2 % 4 == 0 for n in range(80)])
    config = TrainingConfig(folds=2, learning_curve=True)
    splits = plan_splits(cohort, config)
    for fold in range(2):
        whole = splits[fold]
        parts = [split for split in splits if split.phase.startswith(f"learning curve {fold + 1}")]
        chosen = [set(cohort.subjects[split.train]) for split in parts]
        assert [len(subjects) for subjects in chosen] == [5, 10, 15]
        assert chosen[0] < chosen[1] < chosen[2] < set(cohort.subjects[whole.train])
        for split, subjects in zip(parts, chosen, strict=True):
            assert np.array_equal(split.held_out, whole.held_out)
            # All slices of a subject, and of the rarer label its quarter.
            assert len(split.train) == 2 * len(subjects)
            assert cohort.labels[split.train].mean() == pytest.approx(0.25, abs=0.06)


def test_even_a_share_of_few_subjects_has_every_label() -> None:
    cohort = gridded(list("aabbccdd"), [0, 1, 0, 0, 1, 1, 0, 1])
    splits = plan_splits(cohort, TrainingConfig(folds=2, learning_curve=True))
    assert all(set(cohort.labels[split.train]) == {0, 1} for split in splits)


@pytest.mark.parametrize(
    ("subjects", "labels", "folds", "named"),
    [
        ([], [], 2, "empty"),
        (["a", "b", "c"], [0, 0, 0], 2, "none of 'yes'"),
        (["a", "b", "c", "d"], [0, 0, 0, 1], 2, "'yes' has 1"),
        (["a", "a", "b", "c"], [0, 0, 1, 1], 2, "'no' has 1"),
        (list("abcdef"), [0, 0, 0, 0, 1, 1], 5, "the rarest label: 'yes' has 2"),
    ],
)
def test_a_cohort_that_cannot_be_split_is_refused(
    subjects: list[str], labels: list[int], folds: int, named: str
) -> None:
    with pytest.raises(InvalidInputError, match=named):
        subject_folds(gridded(subjects, labels), folds, 0)
