"""Importance by the batched executor against Captum (captum.ai) on the same network, layer by layer."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from captum.attr import (
    InputXGradient,
    LayerActivation,
    LayerFeatureAblation,
    LayerGradCam,
    LayerGradientXActivation,
)
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr
from torch import Tensor, nn

from limner.imaging.grid import Grid
from limner_server.executor.engine import Arrays, Item, Operation
from limner_server.executor.executor import Executor
from limner_server.executor.torchscript import TorchScriptEngine
from limner_server.explain.importance import ImportanceMethod, channel_importance
from limner_server.networks.artifact import Artifact, export, margins, normalise
from limner_server.networks.resnet import LAYERS, build_network
from tests.server.networks.cards import make_card

pytestmark = pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients:UserWarning")

SIZE = 32
LABELS = ("a", "b", "c")
TARGETS = torch.tensor([2, 0])
# Slices of blobs, as different from each other as real ones are; the first two are explained, all make the means.
COHORT = gaussian_filter(np.random.default_rng(3).normal(size=(16, SIZE, SIZE)), (0, 3, 3)).astype(np.float32)
IMAGES = COHORT[:2]
# Captum sums in another order: float32 allows no more.
CLOSE = {"atol": 1e-4, "rtol": 1e-4}


@dataclass(frozen=True)
class World:
    """One network of three labels, as the server has it and as Captum sees it."""

    artifact: Artifact
    outputs: Arrays

    @property
    def slices(self) -> Tensor:
        """Normalised, `(2, 1, s, s)`."""
        return self.artifact.normalise(torch.from_numpy(IMAGES))

    def margin(self, slices: Tensor, target: Tensor) -> Tensor:
        """What is explained, `(n,)`."""
        return margins(self.artifact.network(slices), target)

    def layer(self, name: str) -> nn.Module:
        found: nn.Module = getattr(self.artifact.network, name)
        return found

    def importance(self, method: ImportanceMethod, layer: str) -> Tensor:
        """As FeatureService computes it from the executor's outputs, `(2, C)`."""
        maps, gradients, ablation = (
            torch.from_numpy(self.outputs[f"{name}.{layer}"]) for name in ("maps", "gradients", "ablation")
        )
        means = self.artifact.channel_means()[LAYERS.index(layer)]
        return channel_importance(method, maps, gradients, means, ablation=ablation)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    torch.manual_seed(0)
    network = build_network("resnet18", len(LABELS))
    with torch.no_grad():
        maps = network.eval().maps(normalise(torch.from_numpy(COHORT)))
    artifact = Artifact(network, 1.0, [layer.mean((0, 2, 3)) for layer in maps])
    path: Path = tmp_path_factory.mktemp("artifact") / "model.pt"
    card = make_card(labels=LABELS, grid=Grid(size=SIZE), digest=export(artifact, path))
    executor = Executor(TorchScriptEngine(path, card, threads=1), SIZE, 4, 0.01, 16)
    try:
        futures = [
            [
                executor.submit(Item(image, operation, target, LAYERS))
                for image, target in zip(IMAGES, (2, 0), strict=True)
            ]
            for operation in (Operation.EXPLAIN, Operation.ABLATE)
        ]
        outputs: Arrays = {}
        for both in futures:
            answers = [future.result().arrays for future in both]
            outputs |= {name: np.stack([answer[name] for answer in answers]) for name in answers[0]}
        yield World(artifact, outputs)
    finally:
        executor.close()


@pytest.mark.parametrize("layer", LAYERS)
def test_gradient_x_activation(world: World, layer: str) -> None:
    captum = LayerGradientXActivation(world.margin, world.layer(layer))
    expected = captum.attribute(world.slices, additional_forward_args=TARGETS).sum((2, 3))
    torch.testing.assert_close(world.importance(ImportanceMethod.GRADIENT_X_ACTIVATION, layer), expected, **CLOSE)


@pytest.mark.parametrize("layer", LAYERS)
def test_gradient_x_deviation_is_input_x_gradient_of_the_deviation(world: World, layer: str) -> None:
    number = LAYERS.index(layer)
    means = world.artifact.channel_means()[number][:, None, None]

    def margin(deviation: Tensor, target: Tensor) -> Tensor:
        return margins(world.artifact.resume(number, means + deviation), target)

    deviation = world.artifact.maps(world.slices)[number] - means
    expected = InputXGradient(margin).attribute(deviation, additional_forward_args=TARGETS).sum((2, 3))
    torch.testing.assert_close(world.importance(ImportanceMethod.GRADIENT_X_DEVIATION, layer), expected, **CLOSE)


@pytest.mark.parametrize("layer", LAYERS)
def test_grad_cam_by_channel(world: World, layer: str) -> None:
    captum = LayerGradCam(world.margin, world.layer(layer))
    heat = captum.attribute(world.slices, additional_forward_args=TARGETS, attr_dim_summation=False)
    found = world.importance(ImportanceMethod.GRAD_CAM, layer)
    torch.testing.assert_close(found, heat.mean((2, 3)), **CLOSE)
    # Grad-CAM proper is their sum over the channels.
    summed = captum.attribute(world.slices, additional_forward_args=TARGETS).mean((1, 2, 3))
    torch.testing.assert_close(found.sum(1), summed, **CLOSE)


def test_cam_is_gradient_x_activation_of_the_pooled_layer(world: World) -> None:
    captum = LayerGradientXActivation(world.margin, world.artifact.network.average)
    expected = captum.attribute(world.slices, additional_forward_args=TARGETS)[:, :, 0, 0]
    torch.testing.assert_close(world.importance(ImportanceMethod.CAM, "layer4"), expected, **CLOSE)


@pytest.mark.parametrize("layer", LAYERS)
def test_activation(world: World, layer: str) -> None:
    expected = LayerActivation(world.margin, world.layer(layer)).attribute(
        world.slices, additional_forward_args=TARGETS
    )
    found = world.importance(ImportanceMethod.ACTIVATION, layer)
    torch.testing.assert_close(found, expected.mean((2, 3)), **CLOSE)


@pytest.mark.parametrize("layer", LAYERS)
def test_mean_ablation(world: World, layer: str) -> None:
    number = LAYERS.index(layer)
    maps = world.artifact.maps(world.slices)[number]
    means = world.artifact.channel_means()[number][None, :, None, None].expand_as(maps[:1])
    channels = torch.arange(maps.shape[1])[None, :, None, None].expand_as(maps[:1])
    found = world.importance(ImportanceMethod.MEAN_ABLATION, layer)
    ablation = LayerFeatureAblation(world.margin, world.layer(layer))
    expected = ablation.attribute(
        world.slices,
        layer_baselines=means,
        layer_mask=channels,
        additional_forward_args=TARGETS,
        perturbations_per_eval=64,
    )
    torch.testing.assert_close(found, expected[:, :, 0, 0], **CLOSE)


@pytest.mark.parametrize("layer", LAYERS)
def test_gradient_x_deviation_ranks_channels_as_mean_ablation_does(world: World, layer: str) -> None:
    first, exact = (
        world.importance(method, layer).numpy()
        for method in (ImportanceMethod.GRADIENT_X_DEVIATION, ImportanceMethod.MEAN_ABLATION)
    )
    # Less in the first layers of a network that learned nothing; docs/explain.md has the figures of a trained one.
    least = 0.75 if layer in LAYERS[:2] else 0.94
    assert all(spearmanr(a, b).statistic > least for a, b in zip(first, exact, strict=True))
