"""The artifact: numbers that can be worked out by hand, and the same numbers from the exported file."""

import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from limner_server.errors import StorageFullError, WrongStateError
from limner_server.networks.artifact import Artifact, eager, export, load, margins, normalise
from limner_server.networks.reference import ReferenceSlices
from limner_server.networks.resnet import LAYERS, build_network
from tests.server.networks.cards import make_card

LABELS = 3


@pytest.fixture(scope="module")
def artifact() -> Artifact:
    torch.manual_seed(0)
    network = build_network("resnet18", LABELS)
    means = [torch.rand(count) for count in network.channels()]
    reference = ReferenceSlices.of(network.eval(), torch.randn(12, 1, 48, 48))
    return Artifact(network, temperature=2.0, channel_means=means, reference=reference)


@pytest.fixture(scope="module")
def exported(artifact: Artifact, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    path = tmp_path_factory.mktemp("artifact") / "model.pt"
    return path, export(artifact, path)


@pytest.fixture(scope="module")
def served(exported: tuple[Path, str]) -> torch.jit.ScriptModule:
    return load(*exported)


@pytest.fixture(scope="module")
def images() -> Tensor:
    return 1000 * torch.rand(16, 48, 48, generator=torch.Generator().manual_seed(1))


def test_the_exported_artifact_equals_the_module(
    artifact: Artifact, served: torch.jit.ScriptModule, images: Tensor
) -> None:
    for ours, theirs in zip(artifact(images), served(images), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_probabilities_are_temperature_scaled(served: torch.jit.ScriptModule, images: Tensor) -> None:
    logits, probabilities, embedding, _ = served(images)
    torch.testing.assert_close(probabilities, torch.softmax(logits / 2.0, dim=1))
    assert embedding.shape == (16, 512)


def test_a_slice_alone_and_in_a_batch_of_16(served: torch.jit.ScriptModule, images: Tensor) -> None:
    together = served(images)
    for index in range(len(images)):
        alone = served(images[index : index + 1])
        for one, many in zip(alone, together, strict=True):
            assert (one[0] - many[index]).abs().max() < 1e-4


def test_normalise_clips_and_standardises() -> None:
    values = torch.arange(1000.0).reshape(1, 25, 40)
    values[0, 0, 0], values[0, 0, 1] = -1e6, 1e6
    low, high = np.sort(values.numpy().ravel())[[10, 989]]
    expected = np.clip(values.numpy(), low, high)
    expected = (expected - expected.mean()) / expected.std()
    np.testing.assert_allclose(normalise(values)[0].numpy(), expected, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, 1234.567, -3e7])
def test_a_constant_slice_becomes_zero(value: float) -> None:
    assert torch.equal(normalise(torch.full((2, 32, 32), value)), torch.zeros(2, 1, 32, 32))


def test_normalise_does_not_care_for_scale() -> None:
    slices = torch.rand(2, 32, 32)
    torch.testing.assert_close(normalise(slices * 1e-12), normalise(slices), atol=1e-4, rtol=1e-4)


def test_margin_is_the_targets_logit_minus_logsumexp_of_the_others() -> None:
    logits = torch.tensor([[1.0, 2.0, 4.0], [0.0, 0.0, 0.0]])
    found = margins(logits, torch.tensor([2, 0]))
    expected = [4 - np.log(np.e + np.e**2), -np.log(2)]
    np.testing.assert_allclose(found.numpy(), expected, rtol=1e-6)


def test_explain_gradient_of_the_last_layer_is_exact(
    artifact: Artifact, served: torch.jit.ScriptModule, images: Tensor
) -> None:
    """The head is linear in the mean of each map, so the gradient follows from its weights alone."""
    logits, target, _, maps, gradients = served.explain(images[:4], torch.tensor([-1, 0, 1, 2]))
    weights = artifact.network.classifier.weight
    for row, chosen in enumerate(target.tolist()):
        others = [label for label in range(LABELS) if label != chosen]
        share = torch.softmax(logits[row, others], dim=0)
        expected = (weights[chosen] - share @ weights[others]) / maps[4][row, 0].numel()
        found = gradients[4][row]
        torch.testing.assert_close(found, expected[:, None, None].expand_as(found), atol=1e-6, rtol=1e-4)


def test_explain_gradients_of_every_layer_agree_with_differences(
    artifact: Artifact, served: torch.jit.ScriptModule, images: Tensor
) -> None:
    double = Artifact(build_network("resnet18", LABELS))
    double.network.load_state_dict(artifact.network.state_dict())
    double.double()
    target = torch.tensor([1])
    _, _, _, maps, gradients = served.explain(images[:1], target)
    generator = torch.Generator().manual_seed(0)
    for layer, (values, gradient) in enumerate(zip(maps, gradients, strict=True)):
        # Where ReLU is at 0 the max pooling after the stem has ties, and no derivative.
        direction = torch.randn(values.shape, generator=generator, dtype=torch.float64) * (values > 0)
        step = 1e-7 * direction
        after, before = (
            margins(double.resume(layer, values.double() + sign * step), target).item() for sign in (1, -1)
        )
        expected = (gradient.double() * direction).sum().item()
        assert (after - before) / 2e-7 == pytest.approx(expected, rel=2e-3, abs=1e-4), LAYERS[layer]


def test_explain_agrees_with_forward_and_chooses_the_predicted(served: torch.jit.ScriptModule, images: Tensor) -> None:
    logits, target, embedding, maps, gradients = served.explain(images, torch.full((16,), -1))
    expected_logits, _, expected_embedding, _ = served(images)
    torch.testing.assert_close(logits, expected_logits)
    torch.testing.assert_close(embedding, expected_embedding)
    assert torch.equal(target, logits.argmax(dim=1))
    assert [g.shape for g in gradients] == [m.shape for m in maps]
    assert not any(t.requires_grad for t in (logits, embedding, *maps, *gradients))


def test_explaining_in_a_batch_equals_explaining_alone(served: torch.jit.ScriptModule, images: Tensor) -> None:
    together = served.explain(images, torch.full((16,), 1))[4]
    alone = served.explain(images[3:4], torch.tensor([1]))[4]
    for one, many in zip(alone, together, strict=True):
        torch.testing.assert_close(one[0], many[3], atol=1e-5, rtol=1e-3)


def test_resume_and_means_travel_with_the_file(
    artifact: Artifact, served: torch.jit.ScriptModule, images: Tensor
) -> None:
    maps = served.maps(served.normalise(images))
    for layer in range(len(LAYERS)):
        torch.testing.assert_close(served.resume(layer, maps[layer]), served(images)[0], atol=1e-5, rtol=1e-4)
    assert all(torch.equal(a, b) for a, b in zip(served.channel_means(), artifact.channel_means(), strict=True))


def test_eager_has_the_same_weights(served: torch.jit.ScriptModule, images: Tensor) -> None:
    twin = eager(served, make_card(labels=("a", "b", "c")))
    for ours, theirs in zip(twin(images), served(images), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert not twin.training


def test_another_digest_is_not_loaded(exported: tuple[Path, str], tmp_path: Path) -> None:
    path, digest = exported
    damaged = tmp_path / "model.pt"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    damaged.write_bytes(data)
    with pytest.raises(WrongStateError, match=digest):
        load(damaged, digest)
    with pytest.raises(WrongStateError, match="cannot be read"):
        load(tmp_path / "none.pt", digest)


def test_equal_artifacts_have_equal_digests(artifact: Artifact, exported: tuple[Path, str], tmp_path: Path) -> None:
    assert export(artifact, tmp_path / "other-name.pt") == exported[1]


@contextmanager
def full_disk(free_bytes: int) -> Iterator[None]:
    """Let no file grow beyond some bytes, which fails as a full disk does."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (free_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_a_full_disk_leaves_nothing(artifact: Artifact, tmp_path: Path) -> None:
    with full_disk(100_000), pytest.raises(StorageFullError, match=r"model\.pt"):
        export(artifact, tmp_path / "model.pt")
    assert list(tmp_path.iterdir()) == []
