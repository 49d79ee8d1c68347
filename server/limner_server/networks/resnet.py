"""torchvision's ResNets for slices of one channel, open at five layers.

Knows nothing of normalisation, temperature or files of models: that is `artifact`.
"""

from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from limner_server.errors import InvalidInputError

if TYPE_CHECKING:
    from torchvision.models import ResNet

LAYERS = ("stem", "layer1", "layer2", "layer3", "layer4")

ARCHITECTURES = ("resnet18", "resnet34", "resnet50", "resnet101", "resnet152")
"""By torchvision's names."""


class Network(nn.Module):
    """A ResNet (He et al. 2016, doi:10.1109/CVPR.2016.90) whose five layers can be read and resumed from. Scriptable.

    Parameters
    ----------
    trunk
        The torchvision network; its parts are taken over, with a stem for one channel in place of three.
    """

    def __init__(self, trunk: "ResNet") -> None:
        super().__init__()
        self.stem = nn.Sequential(_one_channel(trunk.conv1), trunk.bn1, trunk.relu)
        self.pool = trunk.maxpool
        self.layer1 = trunk.layer1
        self.layer2 = trunk.layer2
        self.layer3 = trunk.layer3
        self.layer4 = trunk.layer4
        self.average = trunk.avgpool
        self.classifier = trunk.fc

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(n, k)` of normalised slices `(n, 1, s, s)`."""
        return self.resume(0, self.stem(x))

    def maps(self, x: Tensor) -> list[Tensor]:
        """Activations after ReLU of the five `LAYERS`, each `(n, C_l, h_l, w_l)`; the stem's before its max pooling."""
        stem = self.stem(x)
        layer1 = self.layer1(self.pool(stem))
        layer2 = self.layer2(layer1)
        layer3 = self.layer3(layer2)
        return [stem, layer1, layer2, layer3, self.layer4(layer3)]

    def resume(self, layer: int, maps: Tensor) -> Tensor:
        """Logits `(n, k)` from the maps `(n, C_l, h_l, w_l)` of `LAYERS[layer]`."""
        if layer <= 0:
            maps = self.layer1(self.pool(maps))
        if layer <= 1:
            maps = self.layer2(maps)
        if layer <= 2:
            maps = self.layer3(maps)
        if layer <= 3:
            maps = self.layer4(maps)
        return self.head(maps)[0]

    def head(self, layer4: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `(n, k)` and embedding `(n, c)`, the mean of each map of the last layer."""
        embedding = torch.flatten(self.average(layer4), 1)
        return self.classifier(embedding), embedding

    def channels(self) -> tuple[int, ...]:
        """Number of channels of each of the five `LAYERS`."""
        last = [layer[-1] for layer in (self.layer1, self.layer2, self.layer3, self.layer4)]
        norms = [getattr(block, "bn3", None) or block.bn2 for block in last]
        return (self.stem[1].num_features, *(norm.num_features for norm in norms))


def build_network(architecture: str, classes: int, pretrained: Path | None = None) -> Network:
    """A network with fresh weights from torch's global random state, or with pretrained ones below its classifier.

    Parameters
    ----------
    architecture
        One of `ARCHITECTURES`.
    classes
        Number of labels, at least 2.
    pretrained
        A torchvision `state_dict` of the same architecture, `.safetensors`, or `.pt` / `.pth` without code.

    Raises
    ------
    InvalidInputError
        For an unknown architecture, or a file that cannot be read or is of another network.
    """
    if architecture not in ARCHITECTURES:
        raise InvalidInputError("architecture", architecture, "one of " + ", ".join(ARCHITECTURES))
    # Imported here: it takes longer than torch itself, and a server that only predicts builds no network.
    from torchvision.models import get_model

    trunk = get_model(architecture, num_classes=classes)
    if pretrained is not None:
        _load_trunk(trunk, pretrained, architecture)
    return Network(trunk)


def _one_channel(rgb: nn.Conv2d) -> nn.Conv2d:
    """The stem that answers to a grey image as `rgb` does to three equal channels."""
    grey = nn.Conv2d(1, rgb.out_channels, kernel_size=7, stride=2, padding=3, bias=False)
    grey.weight = nn.Parameter(rgb.weight.detach().sum(dim=1, keepdim=True))
    return grey


def _load_trunk(trunk: "ResNet", file: Path, architecture: str) -> None:
    weights = {name: value for name, value in _read_weights(file).items() if not name.startswith("fc.")}
    expected = {name: value for name, value in trunk.state_dict().items() if not name.startswith("fc.")}
    wrong = [
        name
        for name in sorted(weights.keys() | expected.keys())
        if name not in weights or name not in expected or weights[name].shape != expected[name].shape
    ]
    if wrong:
        raise InvalidInputError(
            "pretrained", file.name, f"torchvision weights of {architecture}; {len(wrong)} differ, {wrong[0]} first"
        )
    trunk.load_state_dict(weights, strict=False)


def _read_weights(file: Path) -> dict[str, Tensor]:
    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        weights = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and pickle raise a dozen kinds on a damaged or hostile file
        kind = "SafetensorError" if isinstance(error, SafetensorError) else type(error).__name__
        raise InvalidInputError("pretrained", file.name, f"a readable .safetensors or .pt file ({kind})") from error
    if not isinstance(weights, dict) or not all(isinstance(value, Tensor) for value in weights.values()):
        raise InvalidInputError("pretrained", file.name, "a state_dict: names and tensors, nothing else")
    return weights
