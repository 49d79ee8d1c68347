"""A network small enough to be worked out by hand, and slices that it tells apart."""

import numpy as np
import torch
from torch import Tensor, nn

from limner_server.explain.cohort import SliceCohort
from limner_server.networks.artifact import Artifact
from limner_server.networks.resnet import LAYERS, build_network

CLASSES = ("no", "yes")
SIZE = 32


class TinyNetwork(nn.Module):
    """Four channels throughout; `layer1` to `layer4` pass on what the stem found, then average and add up.

    Parameters
    ----------
    stem
        `(4, 1, 3, 3)`, the filters.
    classifier
        `(k, 4)`.
    rectified
        False for a network that is linear from the stem to the logits.
    """

    def __init__(self, stem: Tensor, classifier: Tensor, *, rectified: bool) -> None:
        super().__init__()
        self.stem = nn.Sequential(_convolution(stem), nn.ReLU() if rectified else nn.Identity())
        self.pool = nn.AvgPool2d(2)
        pass_on = torch.eye(4)[:, :, None, None]
        self.layer1, self.layer2, self.layer3, self.layer4 = (_convolution(pass_on) for _ in range(4))
        self.classifier = nn.Linear(4, len(classifier))
        self.classifier.weight.data = classifier
        self.classifier.bias.data.zero_()

    def maps(self, x: Tensor) -> list[Tensor]:
        found = [self.stem(x)]
        found.append(self.layer1(self.pool(found[0])))
        for layer in (self.layer2, self.layer3, self.layer4):
            found.append(layer(found[-1]))
        return found

    def resume(self, layer: int, maps: Tensor) -> Tensor:
        if layer == 0:
            maps = self.layer1(self.pool(maps))
        for later in (self.layer2, self.layer3, self.layer4)[max(layer - 1, 0) :]:
            maps = later(maps)
        return self.head(maps)[0]

    def head(self, layer4: Tensor) -> tuple[Tensor, Tensor]:
        embedding = layer4.mean((2, 3))
        return self.classifier(embedding), embedding

    def channels(self) -> tuple[int, ...]:
        return (4,) * len(LAYERS)


def stripes_artifact(classes: int = 2) -> Artifact:
    """Answers 'yes' to vertical stripes and 'no' to horizontal ones; its fourth channel and a third class are dead."""
    blur = torch.full((3, 3), 1 / 9)
    across = torch.tensor([[0.0, 0.0, 0.0], [-1.0, 2.0, -1.0], [0.0, 0.0, 0.0]]) / 2
    stem = torch.stack([across.T, across, blur, torch.zeros(3, 3)])[:, None]
    classifier = torch.tensor([[20.0, -20.0, 0.0, 0.0], [-20.0, 20.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0]])
    return Artifact(TinyNetwork(stem, classifier[:classes].clone(), rectified=True))


def linear_artifact(means: list[Tensor]) -> Artifact:
    """A network without ReLU, with weights drawn once and for all and the given channel means."""
    generator = torch.Generator().manual_seed(5)
    stem, classifier = torch.randn(4, 1, 3, 3, generator=generator), torch.randn(2, 4, generator=generator)
    return Artifact(TinyNetwork(stem, classifier, rectified=False), channel_means=means)


def untrained_artifact() -> Artifact:
    """A ResNet-18 that learned nothing."""
    torch.manual_seed(0)
    return Artifact(build_network("resnet18", 2))


def stripes_cohort(subjects: int = 8, slices: int = 3, size: int = SIZE) -> SliceCohort:
    """Slices with a patch of vertical stripes ('yes', every second subject) or horizontal ones, in noise."""
    rng = np.random.default_rng(0)
    wave = np.cos(np.pi / 2 * np.arange(size)) * 2
    middle = np.zeros((size, size))
    middle[size // 4 : -size // 4, size // 4 : -size // 4] = 1
    images, labels = [], []
    for subject in range(subjects):
        label = subject % 2
        pattern = np.broadcast_to(wave, (size, size)) if label else np.broadcast_to(wave[:, None], (size, size))
        images += [10 + middle * pattern + rng.normal(0, 0.2, (size, size)) for _ in range(slices)]
        labels += [label] * slices
    return SliceCohort(
        images=np.array(images, np.float32),
        labels=np.array(labels, np.int64),
        subjects=np.repeat([f"s{index:02d}" for index in range(subjects)], slices),
        instances=np.array([f"i{index:03d}" for index in range(subjects * slices)]),
        classes=CLASSES,
        name="stripes",
        digest="c" * 64,
    )


def _convolution(weight: Tensor) -> nn.Conv2d:
    outgoing, incoming, size, _ = weight.shape
    convolution = nn.Conv2d(incoming, outgoing, size, padding=size // 2, bias=False)
    convolution.weight.data = weight
    return convolution
