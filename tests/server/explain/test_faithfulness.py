"""Deletion and insertion where the answer is known: on a linear network drops are sums of importances."""

import numpy as np
import pytest
import torch

from limner_server.explain.faithfulness import FRACTIONS, METHODS, SLICES, curves, drops, measure
from limner_server.explain.importance import ImportanceMethod, gradient_x_deviation
from limner_server.explain.stages import Arrays
from limner_server.networks.artifact import margins
from limner_server.networks.resnet import LAYERS
from tests.server.explain.tiny import linear_artifact, stripes_artifact, stripes_cohort

COHORT = stripes_cohort()
DEVIATION, RANDOM = (
    METHODS.index(method) for method in (ImportanceMethod.GRADIENT_X_DEVIATION, ImportanceMethod.RANDOM)
)


@pytest.mark.parametrize("layer", range(len(LAYERS)))
def test_on_a_linear_network_drops_are_sums_of_importances(layer: int) -> None:
    artifact = linear_artifact([torch.linspace(-1, 1, 4)] * len(LAYERS))
    images = torch.rand(5, 8, 8, generator=torch.Generator().manual_seed(2))
    target = torch.tensor([0, 1, 0, 1, 1])
    logits, _, _, maps, gradients = artifact.explain(images, target)
    importance = gradient_x_deviation(maps[layer], gradients[layer], artifact.channel_means()[layer])
    fractions = (0.0, 0.25, 0.5, 0.75, 1.0)
    found = drops(artifact, layer, maps[layer], importance, target, margins(logits, target), fractions)
    ordered = importance.sort(dim=1, descending=True).values.cumsum(1).double().numpy()
    deletion = np.concatenate([np.zeros((5, 1)), ordered], axis=1)
    np.testing.assert_allclose(found[0], deletion, atol=1e-5)
    np.testing.assert_allclose(found[1], deletion[:, -1:] - deletion, atol=1e-5)


@pytest.fixture(scope="module")
def measured() -> Arrays:
    return measure(stripes_artifact(), COHORT, 0)


def test_it_tells_the_channels_that_matter_from_others(measured: Arrays) -> None:
    found = {(curve.layer, curve.method): curve for curve in curves(measured, 0)}
    assert len(found) == len(LAYERS) * len(METHODS)
    for layer in LAYERS:
        ours, control = (found[layer, method] for method in METHODS)
        areas = {area.name: area for area in ours.areas}
        assert areas["deletion_over_random"].low > 0
        assert areas["insertion_over_random"].high < 0
        assert [area.name for area in control.areas] == ["deletion", "insertion"]
        assert ours.deletion[-1] == pytest.approx(control.deletion[-1])
        assert ours.insertion[0] == pytest.approx(ours.deletion[-1])
        assert ours.deletion[0] == ours.insertion[-1] == 0
        assert ours.slices == len(COHORT)


def test_a_slice_is_the_same_alone_and_in_a_batch(measured: Arrays) -> None:
    alone = measure(stripes_artifact(), COHORT.take(np.array([9])), 0)
    for name in ("deletion", "insertion"):
        np.testing.assert_allclose(alone[name][0, :, DEVIATION], measured[name][9, :, DEVIATION], atol=1e-4)


def test_progress_reaches_the_end() -> None:
    told: list[float] = []
    measure(stripes_artifact(), COHORT.take(np.arange(9)), 0, told.append)
    assert told == [8 / 9, 1.0]


def test_intervals_are_over_subjects() -> None:
    # Two subjects, one with a single slice: means weigh slices, resamples draw subjects.
    rows = np.array([3.0, 1.0, 1.0, 1.0])
    shape = (4, len(LAYERS), len(METHODS), len(FRACTIONS))
    constant = np.broadcast_to(rows[:, None, None, None], shape)
    found = curves(
        {"deletion": constant, "insertion": 2 * constant, "subjects": np.array(["a", "b", "b", "b"])}, seed=0
    )
    for curve in found:
        assert curve.deletion == pytest.approx([1.5] * len(FRACTIONS))
        assert curve.insertion == pytest.approx([3.0] * len(FRACTIONS))
        assert (curve.deletion_low[0], curve.deletion_high[0]) == pytest.approx((1.0, 3.0))
        areas = {area.name: (area.value, area.low, area.high) for area in curve.areas}
        assert areas["deletion"] == pytest.approx((1.5, 1.0, 3.0))
        if curve.method is not ImportanceMethod.RANDOM:
            assert areas["deletion_over_random"] == pytest.approx((0.0, 0.0, 0.0))


def test_a_large_cohort_is_sampled() -> None:
    assert len(stripes_cohort(subjects=20, slices=5).thin(SLICES)) <= SLICES
