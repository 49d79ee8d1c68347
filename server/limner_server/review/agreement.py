"""How far two raters agree, and how well readers tell two kinds apart: figures for many resamples at once.

`weights` is `(b, n)`: how often each resample holds each case; a row of ones is the figure itself. scikit-learn and
pingouin compute the same one at a time, and the tests hold these to theirs within 1e-9. docs/reading.md has formulas.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

STEPS = 5

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def steps(likelihoods: Floats) -> Ints:
    """Return the five-step scale, 1 to 5, of likelihoods 0 to 100: steps of 20, the last with its upper end."""
    return np.minimum(np.floor(np.asarray(likelihoods) / 20).astype(np.int64) + 1, STEPS)


def weighted_kappa(first: Ints, second: Ints, weights: Floats, *, power: int) -> Floats:
    """Weighted kappa `(b,)` of two raters' steps `(n,)`, 1 to 5 (Cohen, Psychological Bulletin 1968; 70: 213-220).

    Parameters
    ----------
    power
        1 for linear weights of disagreement, 2 for quadratic ones.

    Returns
    -------
    NaN where both always say the same, so that there is no disagreement to expect.
    """
    cells = np.zeros((len(first), STEPS * STEPS))
    cells[np.arange(len(first)), (first - 1) * STEPS + second - 1] = 1
    table = (weights @ cells).reshape(-1, STEPS, STEPS)
    table /= table.sum((1, 2), keepdims=True)
    scale = np.arange(STEPS)
    cost = np.abs(scale[:, None] - scale).astype(np.float64) ** power
    found = (table * cost).sum((1, 2))
    by_chance = np.einsum("bi,bj,ij->b", table.sum(2), table.sum(1), cost)
    return _divide(by_chance - found, by_chance)


def icc(ratings: Floats, weights: Floats) -> tuple[Floats, Floats]:
    """ICC(2,1) and ICC(3,1), each `(b,)`, of ratings `(n, k)` (Shrout and Fleiss, Psych. Bulletin 1979; 86: 420-428).

    Two-way models of single ratings: absolute agreement with random raters, and consistency with these raters. Of
    weighted cases each counts as so many. NaN where all ratings of a resample are equal.
    """
    raters = ratings.shape[1]
    cases = weights.sum(1)
    means = ratings.mean(1)
    grand = weights @ means / cases
    of_raters = weights @ ratings / cases[:, None]
    between_cases = raters * ((weights @ means**2) - cases * grand**2)
    between_raters = cases * ((of_raters - grand[:, None]) ** 2).sum(1)
    total = weights @ (ratings**2).sum(1) - cases * raters * grand**2
    mean_cases = between_cases / (cases - 1)
    mean_raters = between_raters / (raters - 1)
    mean_error = np.maximum(total - between_cases - between_raters, 0) / ((cases - 1) * (raters - 1))
    agreement = _divide(
        mean_cases - mean_error,
        mean_cases + (raters - 1) * mean_error + raters * (mean_raters - mean_error) / cases,
    )
    consistency = _divide(mean_cases - mean_error, mean_cases + (raters - 1) * mean_error)
    return agreement, consistency


def draw_cases(clusters: Sequence[str], resamples: int, rng: np.random.Generator) -> Floats:
    """Draw `resamples` rows of weights `(b, n)` with replacement: cases of one cluster, a subject's, come together."""
    names, whose = np.unique(np.asarray(clusters), return_inverse=True)
    counts = rng.multinomial(len(names), np.full(len(names), 1 / len(names)), size=resamples)
    drawn: Floats = counts[:, whose].astype(np.float64)
    return drawn


def _divide(above: Floats, below: Floats) -> Floats:
    defined = np.abs(below) > 1e-12
    ratio: Floats = np.divide(above, below, out=np.full(len(below), np.nan), where=defined)
    return ratio
