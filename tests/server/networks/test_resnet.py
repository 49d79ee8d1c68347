"""The network, open at its layers, and pretrained weights."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torchvision import models
from torchvision.models import resnet18

from limner_server.errors import InvalidInputError
from limner_server.networks.artifact import Artifact, export, load, normalise
from limner_server.networks.resnet import ARCHITECTURES, LAYERS, build_network


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50"])
def test_resuming_from_any_layer_gives_the_same_logits(architecture: str) -> None:
    torch.manual_seed(0)
    network = build_network(architecture, 3).eval()
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        logits, maps = network(x), network.maps(x)
        for layer in range(len(LAYERS)):
            torch.testing.assert_close(network.resume(layer, maps[layer]), logits)
    assert logits.shape == (2, 3)
    assert tuple(m.shape[1] for m in maps) == network.channels()
    assert [m.shape[2] for m in maps] == [16, 8, 4, 2, 1]
    assert all(m.min() == 0 for m in maps)  # after ReLU


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_channels_are_those_of_the_architecture(architecture: str) -> None:
    with torch.device("meta"):
        channels = build_network(architecture, 2).channels()
    expected = (64, 64, 128, 256, 512) if architecture in ("resnet18", "resnet34") else (64, 256, 512, 1024, 2048)
    assert channels == expected


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_every_architecture_starts_from_torchvisions_file_and_exports(tmp_path: Path, architecture: str) -> None:
    """Weights for 1000 classes and three channels, of which all but the classifier's are taken."""
    torch.manual_seed(0)
    trunk = getattr(models, architecture)(num_classes=1000)
    file = tmp_path / "weights.safetensors"
    save_file(trunk.state_dict(), file)
    network = build_network(architecture, 2, file).eval()
    assert torch.equal(network.layer4[-1].conv2.weight, trunk.layer4[-1].conv2.weight)
    torch.testing.assert_close(network.stem[0].weight, trunk.conv1.weight.sum(dim=1, keepdim=True))
    images = torch.rand(1, 32, 32)
    expected = network(normalise(images))
    digest = export(Artifact(network), tmp_path / "model.pt")
    logits, _, embedding = load(tmp_path / "model.pt", digest)(images)[:3]
    torch.testing.assert_close(logits, expected)
    assert embedding.shape == (1, network.channels()[-1])


def test_resume_leaves_the_maps_it_was_given_unchanged() -> None:
    torch.manual_seed(0)
    network = build_network("resnet18", 2).eval()
    with torch.no_grad():
        maps = network.maps(torch.randn(1, 1, 32, 32))
        before = [m.clone() for m in maps]
        for layer in range(len(LAYERS)):
            network.resume(layer, maps[layer])
    assert all(torch.equal(a, b) for a, b in zip(maps, before, strict=True))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_pretrained_stem_answers_as_to_three_equal_channels(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(0)
    trunk = resnet18(num_classes=1000).eval()
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pt":
        torch.save(trunk.state_dict(), file)
    else:
        save_file(trunk.state_dict(), file)
    network = build_network("resnet18", 2, file).eval()
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        expected = trunk.relu(trunk.bn1(trunk.conv1(x.expand(-1, 3, -1, -1))))
        torch.testing.assert_close(network.stem(x), expected)
    assert torch.equal(network.layer4[1].conv2.weight, trunk.layer4[1].conv2.weight)


def test_weights_of_another_architecture_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "weights.pt"
    torch.save(resnet18().state_dict(), file)
    with pytest.raises(InvalidInputError, match="resnet34"):
        build_network("resnet34", 2, file)


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (Path.touch, (Path("hostile-was-here"),))  # type: ignore[return-value]


@pytest.mark.parametrize("name", ["weights.pt", "weights.safetensors"])
def test_a_damaged_or_hostile_file_is_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = tmp_path / name
    file.write_bytes(b"not weights")
    with pytest.raises(InvalidInputError, match=name):
        build_network("resnet18", 2, file)
    torch.save({"fc.weight": Hostile()}, file)
    with pytest.raises(InvalidInputError, match=name):
        build_network("resnet18", 2, file)
    assert not (tmp_path / "hostile-was-here").exists()


def test_unknown_architecture_names_the_known() -> None:
    with pytest.raises(InvalidInputError, match="resnet152"):
        build_network("vgg16", 2)
