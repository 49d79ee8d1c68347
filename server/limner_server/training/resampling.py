"""Chance by subject: resamples of subjects, and labels permuted among them. What is computed of them is not here."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from limner_server.training.folds import label_profiles

RESAMPLES = 2000
PERMUTATIONS = 5000
BLOCK = 4_000_000
"""Weights that lie in memory at a time, about."""

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Resamples:
    """Subjects drawn with replacement.

    Attributes
    ----------
    weights
        `(1 + RESAMPLES, m)`, how often each subject counts: once in the first row, then as often as it was drawn.
    rows
        `(n,)` index of each row's subject.
    """

    weights: Floats
    rows: Ints

    def blocks(self) -> Iterator[Floats]:
        """How often each row counts, `(b, n)` for some resamples at a time, so that rows may be many."""
        for part in np.array_split(self.weights, -(-self.weights.shape[0] * len(self.rows) // BLOCK)):
            yield part[:, self.rows]


def resample(subjects: NDArray[np.str_], labels: Ints, classes: int, seed: int) -> Resamples:
    """Draw subjects from those with the same labels, so that every resample has every label.

    Parameters
    ----------
    subjects, labels
        `(n,)` of each row.
    classes
        Number of labels.
    seed
        Of the draws.
    """
    generator = np.random.default_rng(seed)
    names, strata = label_profiles(subjects, labels, classes)
    weights = np.ones((1 + RESAMPLES, len(names)))
    for stratum in range(strata.max() + 1):
        members = np.flatnonzero(strata == stratum)
        weights[1:, members] = generator.multinomial(len(members), np.full(len(members), 1 / len(members)), RESAMPLES)
    return Resamples(weights, np.searchsorted(names, subjects))


@dataclass(frozen=True, eq=False)
class Permuted:
    """A figure of labels, and what it is under permuted labels: its one-sided p, and percentiles 0 to 100."""

    found: float
    p: float
    null: tuple[float, ...]


def permute(figure: Callable[[Ints], float], labels: Ints, subjects: NDArray[np.str_], seed: int) -> Permuted:
    """Compare a figure of labels `(n,)`, the larger the better, with those of labels permuted `PERMUTATIONS` times.

    Parameters
    ----------
    figure
        Of labels `(n,)`; what it looks at besides stays as it is.
    labels, subjects
        `(n,)` of each row. Labels are permuted among subjects, or within them where a subject has several rows: only
        those are exchangeable, for a subject's rows of two labels are not two subjects.
    seed
        Of the permutations.
    """
    found = figure(labels)
    null = np.array([figure(permuted) for permuted in _permuted_labels(labels, subjects, seed)])
    # A permutation that restores the labels counts, whatever the rounding of its sum.
    reached = int((null >= found - 1e-9).sum())
    p = (1 + reached) / (1 + PERMUTATIONS)
    return Permuted(float(found), p, tuple(np.percentile(null, np.arange(101)).tolist()))


def _permuted_labels(labels: Ints, subjects: NDArray[np.str_], seed: int) -> Iterator[Ints]:
    generator = np.random.default_rng(seed)
    names, rows = np.unique(subjects, return_inverse=True)
    groups = np.zeros(len(rows), np.int64) if len(names) == len(rows) else rows
    place = np.argsort(groups, kind="stable")
    for _ in range(PERMUTATIONS):
        permuted = np.empty_like(labels)
        permuted[np.lexsort((generator.random(len(rows)), groups))] = labels[place]
        yield permuted
