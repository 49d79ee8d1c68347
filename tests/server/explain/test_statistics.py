"""Sums over a cohort: against the same figures computed slice by slice, and merged in any order."""

import numpy as np
import pytest
import torch

from limner_server.explain.importance import default_top_k, gradient_x_deviation, top_channels
from limner_server.explain.statistics import Sums, gather, parts, pooled, select_channels
from tests.server.explain.tiny import stripes_artifact, stripes_cohort

COHORT = stripes_cohort()


@pytest.fixture(scope="module")
def runs() -> list[Sums]:
    return [part.sums for part in parts(stripes_artifact(), COHORT, batch=5)]


def assert_equal(first: Sums, second: Sums) -> None:
    assert first.count == second.count
    torch.testing.assert_close(first.image, second.image, atol=1e-4, rtol=1e-5)
    for mine, theirs in zip(first.layers, second.layers, strict=True):
        for a, b in zip(mine, theirs, strict=True):
            torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-5)


def test_sums_are_those_of_the_slices() -> None:
    artifact = stripes_artifact()
    found = gather(artifact, COHORT).cohort[1]
    images = torch.from_numpy(COHORT.take(COHORT.labels == 1).load())
    _, _, _, maps, gradients = artifact.explain(images, torch.ones(len(images), dtype=torch.int64))
    assert found.count == len(images)
    torch.testing.assert_close(found.image, artifact.normalise(images)[:, 0].sum(0), atol=1e-4, rtol=1e-5)
    for layer, a, g in zip(found.layers, maps, gradients, strict=True):
        order, shares = top_channels(gradient_x_deviation(a, g, torch.zeros(4)), default_top_k(4))
        weights = torch.zeros(len(images), 4).scatter(1, order, shares)
        torch.testing.assert_close(layer.maps, a.sum(0), atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(layer.weighted, (weights[:, :, None, None] * a).sum(0), atol=1e-4, rtol=1e-5)
        torch.testing.assert_close(layer.weights, weights.sum(0).double())
        means = a.mean((2, 3)).double()
        torch.testing.assert_close(layer.means, means.sum(0))
        within = a.std((2, 3), correction=0).double()
        torch.testing.assert_close(layer.deviations, within.sum(0), atol=1e-5, rtol=1e-5)
        expected = (means.var(0, correction=0) + within.mean(0).square()).sqrt()
        torch.testing.assert_close(layer.deviation(found.count), expected, atol=1e-6, rtol=1e-4)


def test_merging_is_associative_and_commutative(runs: list[Sums]) -> None:
    first, second, third, *_ = runs
    assert_equal(first.plus(second).plus(third), first.plus(second.plus(third)))
    assert_equal(first.plus(second), second.plus(first))
    assert_equal(first.plus(second, 3.0), first.plus(second).plus(second).plus(second))


@pytest.mark.parametrize("batch", [1, 4, 7, 24])
def test_the_batch_does_not_matter(runs: list[Sums], batch: int) -> None:
    again = [part.sums for part in parts(stripes_artifact(), COHORT, batch)]
    assert_equal(pooled(runs), pooled(again))


def test_a_resample_is_the_cohort_of_its_subjects() -> None:
    artifact = stripes_artifact()
    times = np.array([[2, 0, 1, 1, 0, 3, 0, 0]])
    resampled = gather(artifact, COHORT, times).resamples[1]
    rows = np.concatenate([np.flatnonzero(COHORT.subjects == f"s{i:02d}").repeat(n) for i, n in enumerate(times[0])])
    from_rows = [part for part in parts(artifact, COHORT) if times[0][int(part.subject[1:])]]
    for label in (0, 1):
        mine = [part.sums for part in from_rows if part.label == label]
        counts = [times[0][int(part.subject[1:])] for part in from_rows if part.label == label]
        expected = mine[0].plus(mine[0], counts[0] - 1)
        for sums, count in zip(mine[1:], counts[1:], strict=True):
            expected = expected.plus(sums, count)
        assert_equal(resampled[label], expected)
        assert resampled[label].count == (COHORT.labels[rows] == label).sum()


def test_subjects_shares_add_up_to_their_class() -> None:
    found = gather(stripes_artifact(), COHORT)
    for label, sums in enumerate(found.cohort):
        for index, layer in enumerate(sums.layers):
            total = sum(weights[index] for (_, own), weights in found.weights.items() if own == label)
            torch.testing.assert_close(total, layer.weights)


def test_a_dead_channel_is_never_selected() -> None:
    for order, shares in select_channels(gather(stripes_artifact(), COHORT).cohort):
        assert 3 not in order.tolist()
        assert shares.sum() == pytest.approx(1)
        assert set(order[:2].tolist()) == {0, 1}
