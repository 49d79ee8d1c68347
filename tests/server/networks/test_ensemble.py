"""Ensembles: the mean of the members' logits, whichever way the network is entered."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from limner_server.executor.cuda import fold_batch_norms
from limner_server.networks.artifact import Artifact, eager, export, load
from limner_server.networks.ensemble import Ensemble
from limner_server.networks.resnet import LAYERS, Network, build_network
from tests.server.explain.tiny import TinyNetwork
from tests.server.networks.cards import make_card

EXACT = {"atol": 1e-5, "rtol": 1e-5}


def resnets(count: int, classes: int = 3) -> list[Network]:
    torch.manual_seed(0)
    networks = [build_network("resnet18", classes).eval() for _ in range(count)]
    for network in networks:
        torch.nn.init.normal_(network.classifier.bias)
    return networks


@pytest.fixture(scope="module")
def slices() -> Tensor:
    return torch.randn(3, 1, 32, 32, generator=torch.Generator().manual_seed(1))


def test_two_hand_weighted_networks_average() -> None:
    """Members that pass the image on as it is, doubled or negated, so that each logit can be told beforehand."""
    once = torch.zeros(4, 1, 3, 3)
    once[0, 0, 1, 1] = 1
    head = torch.tensor([[1.0, 0.0, 0.0, 0.0], [-3.0, 0.0, 0.0, 0.0]])
    first = TinyNetwork(once, head, rectified=False)
    second = TinyNetwork(2 * once, -head, rectified=False)
    ensemble = Ensemble([first, second])
    x = torch.full((1, 1, 8, 8), 5.0)
    logits, embedding = ensemble.head(ensemble.maps(x)[-1])
    assert embedding.tolist() == [[5, 0, 0, 0, 10, 0, 0, 0]]
    assert logits.tolist() == [[(5 - 10) / 2, (-15 + 30) / 2]]
    assert ensemble.channels() == (8,) * 5


@torch.no_grad()
def test_logits_are_the_mean_and_maps_lie_side_by_side(slices: Tensor) -> None:
    members = resnets(3)
    expected = torch.stack([member(slices) for member in members]).mean(dim=0)
    maps = [torch.cat(parts, dim=1) for parts in zip(*(member.maps(slices) for member in members), strict=True)]
    ensemble = Ensemble(members).eval()
    torch.testing.assert_close(ensemble(slices), expected, **EXACT)
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(ensemble.maps(slices), maps, strict=True))
    assert ensemble.channels() == tuple(found.shape[1] for found in maps) == (192, 192, 384, 768, 1536)
    for layer in range(len(LAYERS)):
        torch.testing.assert_close(ensemble.resume(layer, maps[layer]), expected, **EXACT)


@torch.no_grad()
def test_one_member_answers_as_it_does_alone(slices: Tensor) -> None:
    (member,) = resnets(1)
    expected = member(slices)
    torch.testing.assert_close(Ensemble([member])(slices), expected, **EXACT)


def test_building_one_leaves_the_random_state_alone() -> None:
    members = resnets(2)
    before = torch.get_rng_state()
    Ensemble(members)
    assert torch.equal(torch.get_rng_state(), before)


def test_an_exported_ensemble_explains_as_its_members_do(tmp_path: Path, slices: Tensor) -> None:
    members = resnets(2)
    with torch.no_grad():
        expected = torch.stack([member(Artifact(member).normalise(slices[:, 0])) for member in members]).mean(dim=0)
    artifact = Artifact(Ensemble(members), temperature=2.0)
    digest = export(artifact, tmp_path / "model.pt")
    served = load(tmp_path / "model.pt", digest)
    torch.testing.assert_close(served(slices[:, 0])[0], expected, **EXACT)

    card = make_card(labels=("a", "b", "c"), members=2, channels=artifact.network.channels())
    twin = eager(served, card)
    torch.testing.assert_close(twin(slices[:, 0])[:3], served(slices[:, 0])[:3], **EXACT)

    logits, target, _, maps, gradients = served.explain(slices[:, 0], torch.full((3,), -1))
    torch.testing.assert_close(logits, expected, **EXACT)
    weight = twin.network.classifier.weight
    for row, chosen in enumerate(target.tolist()):
        others = [label for label in range(3) if label != chosen]
        share = torch.softmax(logits[row, others], dim=0)
        exact = (weight[chosen] - share @ weight[others]) / maps[4][row, 0].numel()
        torch.testing.assert_close(
            gradients[4][row], exact[:, None, None].expand_as(gradients[4][row]), atol=1e-6, rtol=1e-4
        )


@torch.no_grad()
def test_folding_batch_norms_changes_no_logit(slices: Tensor) -> None:
    members = resnets(2)
    for module in (module for member in members for module in member.modules()):
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
            torch.nn.init.normal_(module.running_mean)
    ensemble = Ensemble(members).eval()
    folded = fold_batch_norms(ensemble)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    torch.testing.assert_close(folded(slices), ensemble(slices), atol=1e-4, rtol=1e-4)
