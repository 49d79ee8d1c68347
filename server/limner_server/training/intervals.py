"""95 % intervals of figures that count few subjects. `python -m benchmarks.coverage` measures how often each holds.

Knows nothing of networks: figures and counts in, ends of intervals out. Where a subject counts more than once, every
interval is by subject all the same.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import expit, logit
from scipy.stats import norm, rankdata, t

CONFIDENCE = 0.95
Z = float(norm.ppf((1 + CONFIDENCE) / 2))

Floats = NDArray[np.float64]
Interval = tuple[float, float]


def newcombe(auc: float, positives: int, negatives: int) -> Interval:
    """Interval of an AUC, 0 to 1, by the score method 5 of Newcombe (Statistics in Medicine 2006; 25: 559-573).

    The ends are the AUCs from which the one found lies 1.96 standard errors away, with the standard error of Hanley
    and McNeil (1982) at the end itself. So it is of use where the AUC found is 1, and every resample's too.
    """
    size = (positives + negatives) / 2 - 1

    def distance(end: float) -> float:
        variance = end * (1 - end) * (1 + size * ((1 - end) / (2 - end) + end / (1 + end))) / (positives * negatives)
        return float(abs(auc - end) - Z * np.sqrt(variance))

    tiny = 1e-9
    low = brentq(distance, 0, auc - tiny) if auc > tiny else 0.0
    high = brentq(distance, auc + tiny, 1) if auc < 1 - tiny else 1.0
    return float(low), float(high)


def wilson(share: float, count: float) -> Interval:
    """Interval of a share, 0 to 1, of `count` independent ones, over 0 (Wilson, JASA 1927; 22: 209-212)."""
    middle = (share + Z**2 / (2 * count)) / (1 + Z**2 / count)
    half = Z / (1 + Z**2 / count) * np.sqrt(share * (1 - share) / count + Z**2 / (4 * count**2))
    return float(max(0.0, middle - half)), float(min(1.0, middle + half))


def mover(values: Sequence[float], intervals: Sequence[Interval]) -> Interval:
    """Interval of the mean of independent figures from their own (Zou and Donner, Statistics in Medicine 2008; 27)."""
    found, ends = np.asarray(values), np.asarray(intervals)
    below, above = (np.sqrt(np.square(found - ends[:, side]).sum()) / len(found) for side in (0, 1))
    return float(found.mean() - below), float(found.mean() + above)


def logit_t(values: Floats, subjects: NDArray[np.str_], largest: float = 1.0) -> Interval:
    """Interval of the mean of values `(n,)`, 0 to `largest`, by Student's t on the logit scale.

    Parameters
    ----------
    values
        Such as squared errors. A mean of 0 or of `largest` has no interval but itself.
    subjects
        `(n,)` whose each value is.
    largest
        What a value can be.
    """
    mean = values.mean() / largest
    if not 0 < mean < 1:
        return float(values.mean()), float(values.mean())
    freedom = max(len(np.unique(subjects)) - 1, 1)
    error = np.sqrt(_variance_of_mean(values / largest, subjects))
    half = t.ppf((1 + CONFIDENCE) / 2, freedom) * error / (mean * (1 - mean))
    return float(largest * expit(logit(mean) - half)), float(largest * expit(logit(mean) + half))


def effective_count(right: NDArray[np.bool_], subjects: NDArray[np.str_]) -> float:
    """How many independent values `(n,)`, several a subject, are worth (Rao and Scott, Biometrics 1992; 48: 577-585).

    Parameters
    ----------
    right
        `(n,)`, at least one.
    subjects
        `(n,)` whose each value is.

    Returns
    -------
    float
        Between the numbers of subjects and of values; the number of subjects where all are right, or none.
    """
    fewest, share = len(np.unique(subjects)), right.mean()
    if fewest == len(right) or not 0 < share < 1:
        return float(fewest)
    variance = max(_variance_of_mean(right.astype(np.float64), subjects), np.finfo(np.float64).tiny)
    return float(np.clip(share * (1 - share) / variance, fewest, len(right)))


def delong(scores: Floats, positive: NDArray[np.bool_], subjects: NDArray[np.str_]) -> tuple[float, float]:
    """AUC of scores `(n,)`, and its variance by DeLong (Biometrics 1988; 44: 837-845).

    Mid-ranks as by Sun and Xu (IEEE Signal Processing Letters 2014; 21: 1389-1393). A subject that has scores of both
    labels counts as one draw (Obuchowski, Biometrics 1997; 53: 567-578), which is DeLong's where none has.

    Parameters
    ----------
    scores, positive
        `(n,)`, of at least two subjects of each label.
    subjects
        `(n,)` whose each score is.
    """
    within = np.empty(len(scores))
    for side in (positive, ~positive):
        within[side] = rankdata(scores[side])
    beaten = rankdata(scores) - within
    positives, negatives = positive.sum(), (~positive).sum()
    placement = np.where(positive, beaten / negatives, 1 - beaten / positives)
    auc = placement[positive].mean()
    whose = np.unique(subjects, return_inverse=True)[1]
    above = np.bincount(whose, np.where(positive, placement - auc, 0)) / positives
    below = np.bincount(whose, np.where(positive, 0, placement - auc)) / negatives
    variance = (
        _unbiased(subjects[positive]) * (above @ above)
        + _unbiased(subjects[~positive]) * (below @ below)
        + 2 * _unbiased(subjects) * (above @ below)
    )
    return float(auc), max(float(variance), 0.0)


def delong_interval(auc: float, variance: float) -> Interval:
    """Interval of an AUC on the logit scale, so that it stays within 0 to 1; the AUC itself where that is 0 or 1."""
    if not 0 < auc < 1:
        return auc, auc
    half = Z * np.sqrt(variance) / (auc * (1 - auc))
    return float(expit(logit(auc) - half)), float(expit(logit(auc) + half))


def percentiles(values: Floats) -> Interval:
    """Percentile interval of resamples `(b,)`. One whose figure is undefined (NaN) may have been anything, 0 to 1."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(np.nan_to_num(values, nan=0), tail), np.quantile(np.nan_to_num(values, nan=1), 1 - tail)
    return float(low), float(high)


def _variance_of_mean(values: Floats, subjects: NDArray[np.str_]) -> float:
    """Variance of the mean of values `(n,)`, of subjects that are drawn with all of theirs."""
    whose = np.unique(subjects, return_inverse=True)[1]
    sums = np.bincount(whose, values - values.mean()) / len(values)
    return float(_unbiased(subjects) * (sums @ sums))


def _unbiased(subjects: NDArray[np.str_]) -> float:
    """By how much a variance between subjects grows where their own mean was taken off."""
    count = len(np.unique(subjects))
    return count / max(count - 1, 1)
