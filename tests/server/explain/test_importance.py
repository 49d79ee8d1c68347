"""Importance on numbers that can be worked out by hand, and against the ablation it stands for."""

import numpy as np
import pytest
import torch

from limner_server.errors import InvalidInputError
from limner_server.explain.importance import (
    ImportanceMethod,
    alive_channels,
    channel_importance,
    content_seed,
    default_top_k,
    explain_layer,
    heat_map,
    top_channels,
)
from limner_server.networks.artifact import margins
from limner_server.networks.resnet import LAYERS
from tests.server.explain.tiny import linear_artifact

MAPS = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]], [[0.0, 0.0], [0.0, 8.0]]]])
GRADIENTS = torch.tensor([[[[1.0, 0.0], [0.0, 1.0]], [[-1.0, -1.0], [-1.0, -1.0]]]])
MEANS = torch.tensor([2.0, 1.0])


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (ImportanceMethod.GRADIENT_X_DEVIATION, [(1 - 2) + (4 - 2), 1.0 + 1.0 + 1.0 - 7.0]),
        (ImportanceMethod.GRADIENT_X_ACTIVATION, [5.0, -8.0]),
        (ImportanceMethod.GRAD_CAM, [0.5 * 2.5, -1.0 * 2.0]),
        (ImportanceMethod.CAM, [2.0 * 2.5, -4.0 * 2.0]),
        (ImportanceMethod.ACTIVATION, [2.5, 2.0]),
        (ImportanceMethod.MEAN_ABLATION, [0.25, -0.5]),
    ],
)
def test_each_method_by_hand(method: ImportanceMethod, expected: list[float]) -> None:
    found = channel_importance(method, MAPS, GRADIENTS, MEANS, ablation=torch.tensor([[0.25, -0.5]]))
    torch.testing.assert_close(found, torch.tensor([expected]))


def test_random_depends_on_the_image_alone() -> None:
    image = np.arange(4, dtype=np.float32).reshape(2, 2)
    seed = content_seed(image)
    assert seed == content_seed(image.copy())
    assert content_seed(np.full((4, 4), 7, np.uint16)) == content_seed(np.full((4, 4), 7, np.float32))
    assert seed != content_seed(image + 1)
    first, again = (channel_importance(ImportanceMethod.RANDOM, MAPS, GRADIENTS, MEANS, seed=seed) for _ in range(2))
    assert torch.equal(first, again)


@pytest.mark.parametrize("layer", range(len(LAYERS)))
def test_gradient_x_deviation_is_mean_ablation_on_a_linear_network(layer: int) -> None:
    means = [torch.linspace(-1, 1, 4) * (index + 1) for index in range(len(LAYERS))]
    artifact = linear_artifact(means)
    images = torch.rand(3, 8, 8, generator=torch.Generator().manual_seed(2))
    logits, target, _, maps, gradients = artifact.explain(images, torch.tensor([0, 1, -1]))
    found = channel_importance(
        ImportanceMethod.GRADIENT_X_DEVIATION, maps[layer], gradients[layer], artifact.channel_means()[layer]
    )
    for channel in range(4):
        ablated = maps[layer].clone()
        ablated[:, channel] = means[layer][channel]
        drop = margins(logits, target) - margins(artifact.resume(layer, ablated), target)
        torch.testing.assert_close(found[:, channel], drop, atol=1e-5, rtol=1e-5)


def test_cam_is_the_classifier_weight_times_the_pooled_map() -> None:
    artifact = linear_artifact([torch.zeros(4)] * 5)
    images = torch.rand(2, 8, 8, generator=torch.Generator().manual_seed(2))
    _, _, embedding, maps, gradients = artifact.explain(images, torch.tensor([1, 1]))
    found = channel_importance(ImportanceMethod.CAM, maps[4], gradients[4], torch.zeros(4))
    weight = artifact.network.classifier.weight
    torch.testing.assert_close(found, (weight[1] - weight[0]) * embedding)


def test_top_channels_weigh_positive_parts_and_leave_dead_ones_out() -> None:
    importance = torch.tensor([[1.0, 9.0, 3.0, -2.0], [-1.0, 9.0, -3.0, -2.0]])
    order, weights = top_channels(importance, 3, torch.tensor([True, False, True, True]))
    assert order.tolist() == [[2, 0, 3], [0, 3, 2]]
    torch.testing.assert_close(weights, torch.tensor([[0.75, 0.25, 0.0], [0.0, 0.0, 0.0]]))


def test_alive_channels_are_relative_to_the_layer() -> None:
    assert alive_channels(torch.tensor([1.0, 2e-3, 0.5e-3, 0.0])).tolist() == [True, True, False, False]
    assert alive_channels(torch.zeros(3)).tolist() == [False] * 3


def test_default_top_k() -> None:
    assert [default_top_k(channels) for channels in (2, 4, 64, 512, 2048)] == [2, 4, 6, 51, 205]


def test_a_heat_map_shows_where_the_channels_speak_for_the_target() -> None:
    found = heat_map(MAPS[0, :1], GRADIENTS[0, :1], MEANS[:1], 2)
    torch.testing.assert_close(found, torch.tensor([[0.0, 0.0], [0.0, 1.0]]))
    assert heat_map(MAPS[0], -GRADIENTS[0].abs(), torch.zeros(2), 8).max() == 0
    larger = heat_map(MAPS[0, :1], GRADIENTS[0, :1], MEANS[:1], 16)
    assert larger.shape == (16, 16)
    assert larger[8:, 8:].max() == larger.max() == 1
    assert larger[:4, :4].max() == 0


def test_a_layer_is_explained_whole() -> None:
    found = explain_layer("layer1", MAPS[0].numpy(), GRADIENTS[0].numpy(), MEANS.numpy(), size=8)
    np.testing.assert_allclose(found.importance, [1.0, -4.0])
    assert found.order.tolist() == [0, 1]
    assert found.weights.tolist() == [1.0, 0.0]
    assert found.heat_map.shape == (8, 8)
    assert found.heat_map.dtype == np.float32


@pytest.mark.parametrize(
    ("layer", "method", "top_k", "field"),
    [
        ("layer3", ImportanceMethod.CAM, 0, "layers"),
        ("layer4", ImportanceMethod.MEAN_ABLATION, 0, "ablation"),
        ("layer4", ImportanceMethod.ACTIVATION, 3, "top_k"),
    ],
)
def test_what_cannot_be_done_is_refused(layer: str, method: ImportanceMethod, top_k: int, field: str) -> None:
    arrays = (MAPS[0].numpy(), GRADIENTS[0].numpy(), MEANS.numpy())
    with pytest.raises(InvalidInputError) as refused:
        explain_layer(layer, *arrays, size=8, method=method, top_k=top_k)
    assert refused.value.field == field
