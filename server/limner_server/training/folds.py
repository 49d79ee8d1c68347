"""Splits a cohort for cross-validation, by subject: slices of one subject on both sides of a fold leak its label."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from limner_server.errors import InvalidInputError
from limner_server.training.config import TrainingConfig
from limner_server.training.data import GriddedCohort


class Role(Enum):
    """What the network of a split is for."""

    FOLD = "fold"
    HALF = "half"
    FINAL = "all subjects"
    CURVE = "learning curve"
    SIBLING = "all subjects, another seed"


SHARES = (0.25, 0.5, 0.75)
"""Of a fold's training subjects, in the networks of the learning curve; all of them is the fold itself."""
HALF_PASSES = 2.0
"""A half has half of the slices: with twice the epochs it takes as many steps as the whole."""


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
    repeat
        Which repeat of the cross-validation a fold belongs to, from 0.
    share
        Of the fold's training subjects, in `train`; over 0 to 1.
    passes
        Its epochs over those of a network on all subjects. A part of the subjects takes more, so that every network
        takes about as many steps and subjects are all that differs.
    member
        Whether its network is served, as one of an ensemble.
    """

    roles: frozenset[Role]
    phase: str
    train: NDArray[np.int64]
    held_out: NDArray[np.int64]
    repeat: int = 0
    share: float = 1.0
    passes: float = 1.0
    member: bool = False

    @property
    def home(self) -> NDArray[np.int64]:
        """Rows that stand for the cohort where its network is served: a member's are those of the whole ensemble."""
        return np.sort(np.concatenate([self.train, self.held_out])) if self.member else self.train

    @property
    def kept(self) -> bool:
        """Whether its network is needed once its held-out slices are scored."""
        return Role.CURVE not in self.roles and self.repeat == 0

    def epochs(self, whole: int) -> int:
        """Epochs of its network where one on all subjects takes `whole`."""
        return round(whole * self.passes)


def plan_splits(cohort: GriddedCohort, config: TrainingConfig) -> list[Split]:
    """Every network of a training in order. A network's place is part of its seed: what is added stands at the end.

    The folds of the first repeat, the halves where asked for, the one on all subjects unless an ensemble is served;
    then the other repeats' folds, the learning curve's networks and the sibling, each where asked for.

    Raises
    ------
    InvalidInputError
        As `subject_folds`.
    """
    # The models of a repeat of two folds are the halves, so two folds need no more networks for them.
    shared = config.halves and config.folds == 2
    passes = HALF_PASSES if shared else 1.0
    first = subject_folds(cohort, config.folds, config.seed)
    roles = {Role.FOLD, Role.HALF} if shared else {Role.FOLD}
    splits = _named(first, roles, passes=passes, member=config.ensemble)
    if config.halves and not shared:
        splits += _named(subject_folds(cohort, 2, config.seed), {Role.HALF}, passes=HALF_PASSES)
    if not config.ensemble:
        splits.append(_of_all(cohort, Role.FINAL))
    for repeat in range(1, config.repeats):
        again = subject_folds(cohort, config.folds, _seed(config.seed, repeat))
        splits += _named(again, {Role.FOLD}, repeat=repeat, passes=passes)
    if config.learning_curve:
        for share in SHARES:
            parts = [
                (train[_some_subjects(cohort, train, share, _seed(config.seed, 0, number))], held_out)
                for number, (train, held_out) in enumerate(first)
            ]
            splits += _named(parts, {Role.CURVE}, share=share, passes=passes / share)
    if config.sibling:
        splits.append(_of_all(cohort, Role.SIBLING))
    return splits


def subject_folds(cohort: GriddedCohort, folds: int, seed: int) -> list[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    """Training rows and held-out rows of each fold, split by subject, with about the same share of every label.

    Raises
    ------
    InvalidInputError
        The cohort is empty, lacks slices of a label, or a label has fewer subjects than there are folds.
    """
    names = (cohort.classes[label] for label in cohort.labels)
    check_folds(cohort.name, cohort.classes, zip(cohort.subjects, names, strict=True), folds)
    # Imported here: it takes most of a second, and a server only asks whether there can be folds.
    from sklearn.model_selection import StratifiedGroupKFold

    splitter = StratifiedGroupKFold(folds, shuffle=True, random_state=seed % 2**32)
    return list(splitter.split(cohort.labels, cohort.labels, cohort.subjects))


def _named(
    folds: list[tuple[NDArray[np.int64], NDArray[np.int64]]],
    roles: set[Role],
    *,
    repeat: int = 0,
    share: float = 1.0,
    passes: float = 1.0,
    member: bool = False,
) -> list[Split]:
    name = next(role.value for role in Role if role in roles)
    which = (f", repeat {repeat + 1}" if repeat else "") + (f", {share:.0%} of the subjects" if share < 1 else "")
    return [
        Split(
            frozenset(roles),
            f"{name} {number} of {len(folds)}{which}",
            train,
            held_out,
            repeat,
            share,
            passes,
            member,
        )
        for number, (train, held_out) in enumerate(folds, start=1)
    ]


def _of_all(cohort: GriddedCohort, role: Role) -> Split:
    everything = np.arange(len(cohort.labels))
    return Split(frozenset({role}), role.value, everything, everything[:0])


def _seed(*parts: int) -> int:
    return int(np.random.SeedSequence(parts).generate_state(1)[0])


def _some_subjects(cohort: GriddedCohort, rows: NDArray[np.int64], share: float, seed: int) -> NDArray[np.bool_]:
    """Mask `(m,)` of the rows of about a share of the subjects in them, of each label alike and one at least.

    With one seed, a smaller share's subjects are among a larger share's.
    """
    names, strata = label_profiles(cohort.subjects[rows], cohort.labels[rows], len(cohort.classes))
    order = np.random.default_rng(seed).permutation(len(names))
    chosen = []
    for stratum in range(strata.max() + 1):
        members = order[strata[order] == stratum]
        chosen.extend(names[members[: max(1, round(share * len(members)))]])
    found: NDArray[np.bool_] = np.isin(cohort.subjects[rows], chosen)
    return found


def label_profiles(
    subjects: NDArray[np.str_], labels: NDArray[np.int64], classes: int
) -> tuple[NDArray[np.str_], NDArray[np.int64]]:
    """Subjects by which labels their slices have: names `(m,)`, sorted, and the number of each one's group `(m,)`."""
    names, rows = np.unique(subjects, return_inverse=True)
    profile = np.zeros((len(names), classes), np.bool_)
    profile[rows, labels] = True
    return names, np.unique(profile, axis=0, return_inverse=True)[1].reshape(-1)


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
    rarest, found = min(subjects.items(), key=lambda item: len(item[1]))
    if not found:
        raise InvalidInputError("cohort", cohort, f"slices of every label; there are none of {rarest!r}")
    if len(found) < folds:
        expected = f"at most the number of subjects of the rarest label: {rarest!r} has {len(found)}"
        raise InvalidInputError("config.folds", folds, expected)
