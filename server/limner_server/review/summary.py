"""From the verdicts of a closed reading to its figures of agreement, each with its bootstrap interval.

Figures of single readers and pairs draw cases; those of all readers together draw cases and readers. A real subject's
slices are drawn together. Where a figure is undefined in a resample, that resample does not count for it.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import combinations
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from limner_server.review.agreement import Floats, draw_cases, icc, steps, weighted_kappa
from limner_server.review.gather import ItemKind
from limner_server.state.reviews import MODEL, ReadingItem, StoredVerdict, counting
from limner_server.training.evaluation import weighted_auc
from limner_server.training.intervals import CONFIDENCE

KAPPAS = {"kappa_quadratic": 2, "kappa_linear": 1}
ICCS = ("icc_2_1", "icc_3_1")
PAIR_FIGURES = (*KAPPAS, *ICCS)
AGAINST_REAL = {
    "auc_real_simulated": {ItemKind.SIMULATED, ItemKind.RESAMPLED},
    "auc_real_randomised": {ItemKind.RANDOMISED},
    "auc_real_class_mean": {ItemKind.CLASS_MEAN},
}
CASES, CASES_AND_READERS = "cases", "cases and readers"


class Figure(NamedTuple):
    """One figure; fields are those of `limner.v1.AgreementFigure`."""

    name: str
    first: str
    second: str
    value: float
    low: float
    high: float
    cases: int
    readers: int
    resampled: str


class Group(NamedTuple):
    """Means of one reader over one kind and label; fields are those of `limner.v1.GroupSummary`."""

    reader: str
    kind: ItemKind
    label: str
    cases: int
    likelihood: float
    realism: float


@dataclass(frozen=True, eq=False)
class Ratings:
    """What everybody says of every item, by item number.

    Attributes
    ----------
    items
        What the images are.
    label
        The label whose likelihood was asked.
    likelihood
        Of each reader and of the model, `(n,)` 0 to 100, NaN where there is no verdict.
    realism
        Of each reader, `(n,)` 1 to 5, NaN likewise.
    weights
        `(1 + b, n)`: ones, then the bootstrap's draws of cases.
    reader_draws
        `(b, readers)` of indices.
    """

    items: Sequence[ReadingItem]
    label: str
    likelihood: Mapping[str, Floats]
    realism: Mapping[str, Floats]
    weights: Floats
    reader_draws: NDArray[np.int64]

    @property
    def readers(self) -> list[str]:
        """The readers with a verdict, in their order."""
        return list(self.realism)

    def kinds(self, kinds: set[ItemKind]) -> NDArray[np.bool_]:
        """Which items `(n,)` are of some kinds."""
        return np.array([item.kind in kinds for item in self.items])


def rate(
    items: Sequence[ReadingItem],
    labels: Sequence[str],
    label: str,
    verdicts: Sequence[StoredVerdict],
    resamples: int,
    seed: int,
) -> Ratings:
    """Put the verdicts that count, and the model's probabilities of `label`, side by side."""
    likelihood: dict[str, Floats] = {}
    realism: dict[str, Floats] = {}
    for (reader, item), stored in counting(verdicts).items():
        for found, value in ((likelihood, stored.verdict.likelihood), (realism, stored.verdict.realism)):
            found.setdefault(reader, np.full(len(items), np.nan))[item] = value
    place = list(labels).index(label)
    likelihood[MODEL] = np.array([100 * item.probabilities[place] for item in items])
    rng = np.random.default_rng(seed)
    clusters = [f"subject {item.subject}" if item.subject else f"item {number}" for number, item in enumerate(items)]
    weights = np.vstack([np.ones(len(items)), draw_cases(clusters, resamples, rng)])
    draws = rng.integers(len(realism), size=(resamples, len(realism))) if realism else np.empty((resamples, 0), int)
    return Ratings(items, label, likelihood, realism, weights, draws)


def figures(ratings: Ratings) -> Iterator[Figure]:
    """Every figure that the verdicts allow: readers against the model and each other, then AUCs."""
    with_model = [(reader, MODEL) for reader in ratings.readers]
    among = list(combinations(ratings.readers, 2))
    found = {pair: _of_pair(ratings, *pair) for pair in (*with_model, *among)}
    for name in PAIR_FIGURES:
        for (first, second), values in found.items():
            cases = int(_both(ratings, first, second).sum())
            yield _figure(name, first, second, values[name], cases, 1 + (second != MODEL))
        if among:
            yield _of_all(ratings, name, MODEL, [found[pair][name] for pair in with_model], len(ratings.items))
    for name in KAPPAS:
        if among:
            yield _among_all(ratings, name, {pair: found[pair][name] for pair in among})
    yield from _iccs(ratings)
    yield from _aucs(ratings)


def groups(ratings: Ratings) -> Iterator[Group]:
    """Mean likelihood and realism of each reader, and likelihood of the model, by kind and label."""
    keys = dict.fromkeys((item.kind, item.label) for item in ratings.items)
    for reader, likelihood in ratings.likelihood.items():
        for kind, label in keys:
            mine = np.array([(item.kind, item.label) == (kind, label) for item in ratings.items])
            mine &= ~np.isnan(likelihood)
            if mine.any():
                realism = ratings.realism[reader][mine].mean() if reader != MODEL else math.nan
                mean = float(likelihood[mine].mean())
                yield Group(reader, ItemKind(kind), label, int(mine.sum()), mean, float(realism))


def _of_pair(ratings: Ratings, first: str, second: str) -> dict[str, Floats]:
    """Every figure of two raters, on the cases that both have judged."""
    both = _both(ratings, first, second)
    rated = np.stack([ratings.likelihood[name][both] for name in (first, second)], axis=1)
    one, other = steps(rated).T
    weights = ratings.weights[:, both]
    found = {
        name: _where_any(weights, partial(weighted_kappa, one, other, power=power)) for name, power in KAPPAS.items()
    }
    both_iccs = np.full((len(weights), len(ICCS)), np.nan)
    held = (weights > 0).sum(1) > 1
    if held.any():
        both_iccs[held] = np.stack(icc(rated, weights[held]), axis=1)
    return found | dict(zip(ICCS, both_iccs.T, strict=True))


def _both(ratings: Ratings, first: str, second: str) -> NDArray[np.bool_]:
    return ~np.isnan(ratings.likelihood[first]) & ~np.isnan(ratings.likelihood[second])


def _iccs(ratings: Ratings) -> Iterator[Figure]:
    """ICC of all readers on the cases that all have judged."""
    if len(ratings.readers) < 2:
        return
    table = np.stack([ratings.likelihood[reader] for reader in ratings.readers], axis=1)
    whole = ~np.isnan(table).any(1)
    table, weights = table[whole], ratings.weights[:, whole]
    values = np.full((len(ICCS), len(weights)), np.nan)
    if len(table) > 1:
        values[:, :1] = np.array(icc(table, weights[:1]))
        # Resamples that drew the same readers are computed together.
        teams, team_of = np.unique(np.sort(ratings.reader_draws, axis=1), axis=0, return_inverse=True)
        for index, team in enumerate(teams):
            rows = 1 + np.flatnonzero(team_of.reshape(-1) == index)
            rows = rows[(weights[rows] > 0).sum(1) > 1]
            if len(set(team.tolist())) > 1 and len(rows):
                values[:, rows] = np.array(icc(table[:, team], weights[rows]))
    for name, row in zip(ICCS, values, strict=True):
        yield _figure(name, "", "", row, len(table), len(ratings.readers), CASES_AND_READERS)


def _aucs(ratings: Ratings) -> Iterator[Figure]:
    real = ratings.kinds({ItemKind.REAL})
    for name, kinds in AGAINST_REAL.items():
        wanted = real | ratings.kinds(kinds)
        yield from _auc(ratings, name, ratings.realism, real, wanted)
    of_label = np.array([item.label == ratings.label for item in ratings.items])
    yield from _auc(ratings, "auc_label", ratings.likelihood, of_label, real)


def _auc(
    ratings: Ratings,
    name: str,
    scores: Mapping[str, Floats],
    positive: NDArray[np.bool_],
    wanted: NDArray[np.bool_],
) -> Iterator[Figure]:
    found: list[Floats] = []
    cases = 0
    for reader, values in scores.items():
        used = wanted & ~np.isnan(values)
        if len(set(positive[used].tolist())) < 2:
            continue
        with np.errstate(invalid="ignore", divide="ignore"):
            auc = weighted_auc(values[used], positive[used], ratings.weights[:, used])
        cases = int(used.sum())
        yield _figure(name, reader, "", auc, cases, int(reader != MODEL))
        if reader != MODEL:
            found.append(auc)
    if len(found) == len(ratings.readers) > 1:
        yield _of_all(ratings, name, "", found, cases)


def _of_all(ratings: Ratings, name: str, second: str, values: Sequence[Floats], cases: int) -> Figure:
    """Mean over readers of what each has, of readers drawn anew in each resample."""
    table = np.stack(values, axis=1)
    drawn = np.take_along_axis(table[1:], ratings.reader_draws, axis=1)
    both = np.concatenate([table[:1].mean(1), drawn.mean(1)])
    return _figure(name, "", second, both, cases, len(values), CASES_AND_READERS)


def _among_all(ratings: Ratings, name: str, pairs: Mapping[tuple[str, str], Floats]) -> Figure:
    """Mean over pairs of different readers; a resample that drew one reader only has none."""
    count = len(ratings.readers)
    drawn = np.stack([(ratings.reader_draws == reader).sum(1) for reader in range(count)], axis=1)
    times = np.vstack([np.ones((1, count), np.int64), drawn])
    sums, totals = np.zeros(len(times)), np.zeros(len(times))
    for (first, second), values in pairs.items():
        weight = times[:, ratings.readers.index(first)] * times[:, ratings.readers.index(second)]
        sums += np.where(weight > 0, weight * values, 0)
        totals += weight
    mean = np.divide(sums, totals, out=np.full(len(sums), np.nan), where=totals > 0)
    return _figure(name, "", "", mean, len(ratings.items), count, CASES_AND_READERS)


def _figure(
    name: str, first: str, second: str, values: Floats, cases: int, readers: int, resampled: str = CASES
) -> Figure:
    """Make a figure of its value and those of the resamples, which follow it in `values`."""
    drawn = values[1:][~np.isnan(values[1:])]
    if np.isnan(values[0]) or len(drawn) == 0:
        low = high = math.nan
    else:
        low, high = np.quantile(drawn, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Figure(name, first, second, float(values[0]), float(low), float(high), cases, readers, resampled)


def _where_any(weights: Floats, compute: Callable[[Floats], Floats]) -> Floats:
    """Compute for the resamples that hold a case; the others are NaN."""
    held = weights.sum(1) > 0
    values = np.full(len(weights), np.nan)
    if held.any():
        values[held] = compute(weights[held])
    return values
