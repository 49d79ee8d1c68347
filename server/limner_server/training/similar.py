"""Finds slices of different subjects that look alike: one patient under two names leaks from one fold to the other.

Every pair of slices is compared, none is left to chance, and no patient is named in a log: what is found goes on the
card, under pseudonyms. A copy that is mirrored, or turned or moved by much, is not found.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations_with_replacement

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.fft import dctn

from limner_server.networks.artifact import normalise
from limner_server.networks.card import SimilarPair

NEAR_DUPLICATE = 0.9
"""Least correlation of two slices that are told; docs/evaluation.md has the measurement."""
SHOWN = 100
"""Pairs on the card, at most."""
BLOCK = 2048
"""Slices that are compared at a time with as many others: some 50 MB."""
FREQUENCIES = 16
"""Of the cosine transform in each direction: what a glance sees."""
ROUNDING = 1e-5
"""More than sums of float32 err by."""

Floats = NDArray[np.float32]


@dataclass(frozen=True, eq=False)
class SimilarSlices:
    """The most similar pairs first, `SHOWN` at most, and how many there are in all."""

    pairs: tuple[SimilarPair, ...] = ()
    found: int = 0


def find_similar(images: Floats, subjects: NDArray[np.str_], instances: NDArray[np.str_]) -> SimilarSlices:
    """Compare every two slices of different subjects by the correlation of what the network sees of them.

    A glance decides whether two slices are compared at all. Let x and y be normalised slices of length 1, and Px the
    part of x in the lowest frequencies. Then x·y ≤ Px·Py + |x−Px| |y−Py|, so a pair for which the right side is below
    `NEAR_DUPLICATE` cannot reach it: nothing is missed. Memory is 4 (`FREQUENCIES`² + 1) bytes a slice and some blocks
    of slices; time grows with the square of the number of slices.

    Parameters
    ----------
    images
        `(n, s, s)` on the grid, in any unit.
    subjects, instances
        `(n,)`. Slices that are constant resemble nothing.
    """
    glances, whose = _glances(images), np.unique(subjects, return_inverse=True)[1]
    best: list[tuple[float, int, int]] = []
    found = 0
    for rows, columns in _blocks(len(images)):
        near = glances[rows] @ glances[columns].T >= NEAR_DUPLICATE - ROUNDING
        near &= (
            whose[rows, None] < whose[None, columns] if rows is columns else whose[rows, None] != whose[None, columns]
        )
        if not near.any():
            continue
        first, second = rows[near.any(axis=1)], columns[near.any(axis=0)]
        similarity = _correlations(images, first, second)
        similarity[~near[near.any(axis=1)][:, near.any(axis=0)]] = -1
        alike = np.argwhere(similarity >= NEAR_DUPLICATE)
        found += len(alike)
        most = alike[np.argsort(-similarity[tuple(alike.T)], kind="stable")[:SHOWN]]
        best += [(-float(similarity[i, j]), int(first[i]), int(second[j])) for i, j in most]
        best = sorted(best)[:SHOWN]
    return SimilarSlices(tuple(_pair(*found_pair, subjects, instances) for found_pair in best), found)


def unit_vectors(images: Floats) -> Floats:
    """Normalised slices, each as a vector of length 1 `(n, s²)`; 0 for a constant one."""
    flat = normalise(torch.from_numpy(np.ascontiguousarray(images))).flatten(1).numpy()
    length: Floats = np.linalg.norm(flat, axis=1, keepdims=True)
    vectors: Floats = np.divide(flat, length, out=np.zeros_like(flat), where=length > 0)
    return vectors


def _correlations(images: Floats, first: NDArray[np.int64], second: NDArray[np.int64]) -> Floats:
    """Correlation of some slices with some others `(m, l)`, exactly 1 for copies."""
    one, other = unit_vectors(images[first]), unit_vectors(images[second])
    found: Floats = np.minimum(one @ other.T, np.float32(1 - ROUNDING))
    contents = [np.array([hash(vector.tobytes()) for vector in vectors]) for vectors in (one, other)]
    found[(found >= 1 - 2 * ROUNDING) & (contents[0][:, None] == contents[1])] = 1
    return found


def _pair(
    negative: float, first: int, second: int, subjects: NDArray[np.str_], instances: NDArray[np.str_]
) -> SimilarPair:
    return SimilarPair(
        first=str(instances[first]),
        first_subject=str(subjects[first]),
        second=str(instances[second]),
        second_subject=str(subjects[second]),
        similarity=-negative,
    )


def _glances(images: Floats) -> Floats:
    """Lowest frequencies of each normalised slice, and the length of the rest: `(n, FREQUENCIES² + 1)`."""
    parts = []
    for start in range(0, len(images), BLOCK):
        block = images[start : start + BLOCK]
        rest = dctn(unit_vectors(block).reshape(block.shape), axes=(1, 2), norm="ortho")
        low = rest[:, :FREQUENCIES, :FREQUENCIES].reshape(len(block), -1).copy()
        rest[:, :FREQUENCIES, :FREQUENCIES] = 0
        parts.append(np.column_stack([low, np.linalg.norm(rest.reshape(len(block), -1), axis=1)]))
    return np.concatenate(parts)


def _blocks(count: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
    blocks = [np.arange(start, min(start + BLOCK, count)) for start in range(0, count, BLOCK)]
    return combinations_with_replacement(blocks, 2)
