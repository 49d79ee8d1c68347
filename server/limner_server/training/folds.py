"""Splits a cohort for cross-validation, by subject: slices of one subject on both sides of a fold leak its label."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from limner_server.errors import InvalidInputError
from limner_server.training.config import TrainingConfig
from limner_server.training.data import GriddedCohort


class Role(Enum):
    """What the network of a split is for."""

    FOLD = "fold"
    HALF = "half"
    FINAL = "all subjects"


@dataclass(frozen=True, eq=False)
class Split:
    """Slices that a network learns from, and slices it is asked about; no subject is in both.

    Attributes
    ----------
    roles
        What its network is for; with two folds, a fold's is a half's too.
    phase
        Its name, for a person.
    train, held_out
        Row numbers in the cohort.
    """

    roles: frozenset[Role]
    phase: str
    train: NDArray[np.int64]
    held_out: NDArray[np.int64]

    @property
    def passes(self) -> int:
        """How many times the configured epochs: a half has half the slices, and takes as many steps as the whole."""
        return 2 if Role.HALF in self.roles else 1


def plan_splits(cohort: GriddedCohort, config: TrainingConfig) -> list[Split]:
    """Every network of a training in order: the folds, the two halves where asked for, the final one on all subjects.

    Raises
    ------
    InvalidInputError
        As `subject_folds`.
    """
    # The models of a repeat of two folds are the halves, so two folds need no more networks for them.
    shared = config.halves and config.folds == 2
    splits = _named(subject_folds(cohort, config.folds, config.seed), Role.FOLD, *([Role.HALF] if shared else []))
    if config.halves and not shared:
        splits += _named(subject_folds(cohort, 2, config.seed), Role.HALF)
    everything = np.arange(len(cohort.labels))
    return [*splits, Split(frozenset({Role.FINAL}), Role.FINAL.value, everything, everything[:0])]


def subject_folds(cohort: GriddedCohort, folds: int, seed: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Training rows and held-out rows of each fold, split by subject, with about the same share of every label.

    Raises
    ------
    InvalidInputError
        The cohort is empty, lacks slices of a label, or a label has fewer subjects than there are folds.
    """
    names = (cohort.classes[label] for label in cohort.labels)
    check_folds(cohort.name, cohort.classes, zip(cohort.subjects, names, strict=True), folds)
    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed % 2**32)
    return list(splitter.split(cohort.labels, cohort.labels, cohort.subjects))


def _named(folds: list[tuple[NDArray[np.int64], NDArray[np.int64]]], first: Role, *others: Role) -> list[Split]:
    roles = frozenset({first, *others})
    return [
        Split(roles, f"{first.value} {number} of {len(folds)}", train, held_out)
        for number, (train, held_out) in enumerate(folds, start=1)
    ]


def check_folds(cohort: str, classes: Sequence[str], slices: Iterable[tuple[str, str]], folds: int) -> None:
    """Refuse a cohort that cannot be split by subject.

    Parameters
    ----------
    cohort
        Its name, for the error.
    classes
        Its labels.
    slices
        Subject and label of each slice.
    folds
        Number of folds.

    Raises
    ------
    InvalidInputError
        As `subject_folds`.
    """
    subjects: dict[str, set[str]] = {label: set() for label in classes}
    for subject, label in slices:
        subjects[label].add(subject)
    if not any(subjects.values()):
        raise InvalidInputError("cohort", cohort, "a cohort with slices; it is empty")
    for label, found in subjects.items():
        if not found:
            raise InvalidInputError("cohort", cohort, f"slices of every label; there are none of {label!r}")
        if len(found) < folds:
            expected = f"at most the number of subjects of the rarest label: {label!r} has {len(found)}"
            raise InvalidInputError("config.folds", folds, expected)
