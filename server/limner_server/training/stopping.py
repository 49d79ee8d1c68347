"""Early stopping: which subjects a fold's network is watched on while it learns, and when it has seen enough."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from limner_server.errors import InvalidInputError
from limner_server.training.data import GriddedCohort

WATCHED = 0.2
"""Share of a fold's training subjects that its network is watched on."""


def choose_watched(cohort: GriddedCohort, rows: NDArray[np.int64], patience: int, seed: int) -> NDArray[np.bool_]:
    """Choose the training rows that a network is watched on in place of learning from them, by subject.

    Parameters
    ----------
    cohort
        All of it.
    rows
        `(m,)` the fold's training rows.
    patience
        Of the configuration, for the error.
    seed
        Of the draw.

    Returns
    -------
    NDArray[np.bool_]
        `(m,)` all slices of about a fifth of the subjects of each label, one at least. A subject with slices of
        several labels counts for the one that most of them have.

    Raises
    ------
    InvalidInputError
        A label has fewer than two subjects among the rows.
    """
    subjects, of_row = np.unique(cohort.subjects[rows], return_inverse=True)
    slices = np.zeros((len(subjects), len(cohort.classes)), np.int64)
    np.add.at(slices, (of_row, cohort.labels[rows]), 1)
    labels = slices.argmax(axis=1)
    generator = np.random.default_rng(seed)
    chosen = np.zeros(len(subjects), np.bool_)
    for label, name in enumerate(cohort.classes):
        own = np.flatnonzero(labels == label)
        if len(own) < 2:
            expected = f"two training subjects of each label in every fold, or 0: one fold has {len(own)} of {name!r}"
            raise InvalidInputError("config.patience", patience, expected)
        chosen[generator.permutation(own)[: max(1, round(WATCHED * len(own)))]] = True
    return chosen[of_row]


def best_epoch(losses: Sequence[float]) -> int:
    """Number, from 1, of the epoch with the smallest loss, the first of equals."""
    return int(np.argmin(losses)) + 1


def enough(losses: Sequence[float], patience: int) -> bool:
    """Whether none of the last `patience` epochs (1 or more) was better than one before them; not without losses."""
    return len(losses) > 0 and len(losses) - best_epoch(losses) >= patience


def usual_epochs(best: Sequence[float]) -> int:
    """The median of the folds' best epochs, rounded, 1 at least: how long networks on all subjects learn."""
    return max(1, round(float(np.median(best))))
