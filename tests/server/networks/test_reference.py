"""How far slices lie: by hand where a network's maps are known, and the same numbers from the exported file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from limner_server.networks.artifact import Artifact, eager, export, load
from limner_server.networks.card import Reference
from limner_server.networks.ensemble import Ensemble
from limner_server.networks.reference import ReferenceSlices, measure, thin
from limner_server.networks.resnet import Network, build_network
from tests.server.explain.tiny import TinyNetwork
from tests.server.networks.cards import make_card


class Flat(TinyNetwork):
    """Four channels throughout: the mean of a slice, twice that, its negative, and one that is silent."""

    def __init__(self) -> None:
        stem = torch.zeros(4, 1, 3, 3)
        stem[:3, 0, 1, 1] = torch.tensor([1.0, 2.0, -1.0])
        super().__init__(stem, torch.eye(2, 4), rectified=False)


ON_THE_LINE = np.sqrt(3 / 4) * np.sqrt(0.01 / 1.01)
"""Distance of flat slices that differ by one deviation: in three channels of four, and damped by all the variance."""


def flat(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float32)[:, None, None, None].expand(-1, 1, 8, 8).contiguous()


def distances(network: Network, reference: ReferenceSlices, slices: Tensor) -> list[float]:
    with torch.no_grad():
        found = reference(network.maps(slices))
    assert found.shape == (len(slices), 1)
    return found.flatten().tolist()


def test_distances_that_can_be_told_beforehand() -> None:
    """Reference values 0 and 2: mean 1, deviation 1 in the first channel, so a value lies |value - x| from each.

    All flat slices lie on one line, that of the only variance there is.
    """
    network = Flat()
    reference = ReferenceSlices.of(network, flat(0, 2))
    expected = [ON_THE_LINE * (5 + 3) / 2, ON_THE_LINE * (0 + 2) / 2, ON_THE_LINE * 1]
    assert distances(network, reference, flat(5, 2, 1)) == pytest.approx(expected, rel=1e-5)
    assert ReferenceSlices.of(network, flat(0, 2)).neighbours == 2, "no more than there are"


def test_only_the_nearest_count() -> None:
    network = Flat()
    reference = ReferenceSlices.of(network, flat(0, 1, 2, 3, 4, 100, 200))
    space = (reference.mean, reference.scale, reference.directions, reference.damping)
    alone = ReferenceSlices(*space, reference.slices[:5])
    inside = flat(2.0, 3.5)
    assert distances(network, reference, inside) == pytest.approx(distances(network, alone, inside), rel=1e-4)
    assert reference.neighbours == 5


def test_a_single_reference_slice_or_equal_ones_give_finite_distances() -> None:
    network = Flat()
    for slices in (flat(3), flat(3, 3, 3)):
        reference = ReferenceSlices.of(network, slices)
        at_home, away = distances(network, reference, flat(3, 4))
        assert at_home == 0
        assert 0 < away < np.inf


def test_without_reference_the_distance_is_nan() -> None:
    network = Flat()
    assert np.isnan(distances(network, ReferenceSlices.none(), flat(1, 2))).all()


@pytest.fixture(scope="module")
def slices() -> Tensor:
    return torch.randn(24, 1, 32, 32, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return build_network("resnet18", 2).eval()


@pytest.fixture(scope="module")
def reference(network: Network, slices: Tensor) -> ReferenceSlices:
    return ReferenceSlices.of(network, slices[:20])


@torch.no_grad()
def test_it_is_the_mean_length_of_damped_differences_of_standardised_channels(
    network: Network, reference: ReferenceSlices, slices: Tensor
) -> None:
    """The definition, written out in numpy."""
    parts = []
    for layer in network.maps(slices)[1:]:
        pooled = layer.mean(dim=(2, 3)).double().numpy()
        deviation = pooled[:20].std(axis=0)
        standard = (pooled - pooled[:20].mean(axis=0)) / np.maximum(deviation, 0.05 * deviation.mean())
        parts.append(standard / np.sqrt(4 * pooled.shape[1]))
    vectors = np.concatenate(parts, axis=1)
    _, spread, directions = np.linalg.svd(vectors[:20], full_matrices=False)
    variances = np.square(spread) / 20
    plain = 0.01 * variances.sum()
    for direction, variance in zip(directions[:16], variances[:16], strict=True):
        along = vectors @ direction
        vectors += np.outer(along * (np.sqrt(plain / (variance + plain)) - 1), direction)
    squared = np.square(vectors[20:, None] - vectors[None, :20]).sum(axis=2)
    expected = np.sort(np.sqrt(squared), axis=1)[:, :5].mean(axis=1)
    np.testing.assert_allclose(distances(network, reference, slices[20:]), expected, rtol=1e-4)


@torch.no_grad()
def test_a_reference_slice_lies_at_home_whatever_its_gain(network: Network, slices: Tensor) -> None:
    artifact = Artifact(network, reference=ReferenceSlices.of(network, Artifact(network).normalise(slices[:3, 0])))
    artifact.reference.neighbours = 1
    images = slices[:3, 0]
    for same in (images, 40 * images + 1000):
        assert artifact(same)[3].max() < 0.01
    assert artifact(images.flip(1))[3].min() > 0.1


def test_the_exported_artifact_and_its_twin_know_the_distance(
    network: Network, reference: ReferenceSlices, slices: Tensor, tmp_path: Path
) -> None:
    artifact = Artifact(network, reference=reference)
    images = slices[18:, 0]
    expected = artifact(images)[3]
    served = load(tmp_path / "model.pt", export(artifact, tmp_path / "model.pt"))
    torch.testing.assert_close(served(images)[3], expected)
    for index in range(len(images)):
        torch.testing.assert_close(served(images[index : index + 1])[3], expected[index : index + 1])
    torch.testing.assert_close(served.distance(served.maps(served.normalise(images))), expected)
    torch.testing.assert_close(eager(served, make_card())(images)[3], expected)
    frozen = torch.jit.freeze(served)
    torch.testing.assert_close(frozen(images)[3], expected)


class OldArtifact(Artifact):
    """As artifacts were before they knew distances."""

    def __init__(self, network: Network) -> None:
        super().__init__(network)
        del self.reference

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:  # type: ignore[override]
        logits, embedding = self.network.head(self.network.maps(self.normalise(images))[4])
        return logits, torch.softmax(logits / self.temperature, dim=1), embedding

    distance = None  # type: ignore[assignment]


def test_an_artifact_of_an_older_version_still_loads(network: Network, slices: Tensor, tmp_path: Path) -> None:
    served = load(tmp_path / "model.pt", export(OldArtifact(network), tmp_path / "model.pt"))
    assert not any(name.startswith("reference") for name in served.state_dict())
    images = slices[:2, 0]
    twin = eager(served, make_card())(images)
    torch.testing.assert_close(twin[:3], served(images), atol=1e-5, rtol=1e-5)
    assert twin[3].isnan().all()


def test_measuring_asks_each_fold_about_subjects_that_it_never_saw() -> None:
    """Two folds of flat slices, whose distances are those of one number from others."""
    network = Flat()
    values = flat(0, 2, 10, 12)
    subjects, labels = np.array(["a", "b", "c", "d"]), np.array([0, 1, 0, 1])
    low, high = np.array([0, 1]), np.array([2, 3])
    reference, record = measure(network, [(network, low, high), (network, high, low)], values, subjects, labels)
    # From 0 and 2, whose deviation is 1, 10 and 12 lie 9 and 11 away on average; the other fold mirrors this.
    assert record.percentiles[0] == pytest.approx(9 * ON_THE_LINE, rel=1e-5)
    assert record.percentiles[50] == pytest.approx(10 * ON_THE_LINE, rel=1e-5)
    assert record.percentiles[100] == pytest.approx(11 * ON_THE_LINE, rel=1e-5)
    assert (record.neighbours, record.slices) == (4, 4)
    assert reference.slices.shape == (4, 16)


def test_an_ensemble_has_a_reference_in_all_its_members_channels(network: Network, slices: Tensor) -> None:
    ensemble = Ensemble([network, network]).eval()
    twice = ReferenceSlices.of(ensemble, slices[:20])
    once = ReferenceSlices.of(network, slices[:20])
    assert distances(ensemble, twice, slices[20:]) == pytest.approx(distances(network, once, slices[20:]), rel=1e-4)


def test_a_percentile_is_interpolated_and_far_is_over_the_99th() -> None:
    reference = Reference(neighbours=5, slices=10, percentiles=tuple(np.linspace(1, 3, 101).tolist()))
    assert reference.judge(0.0) == (0.0, False)
    assert reference.judge(2.0) == (pytest.approx(50), False)
    assert reference.judge(2.98) == (pytest.approx(99), False)
    assert reference.judge(2.99) == (pytest.approx(99.5), True)
    assert reference.judge(1e9) == (100.0, True)


@given(
    sizes=st.lists(st.tuples(st.integers(0, 3), st.integers(1, 12)), min_size=1, max_size=12), most=st.integers(1, 60)
)
def test_thinning_takes_from_all_alike(sizes: list[tuple[int, int]], most: int) -> None:
    """Each entry is a subject's label and its number of slices."""
    subjects = np.repeat([f"s{number}" for number in range(len(sizes))], [count for _, count in sizes])
    labels = np.repeat([label for label, _ in sizes], [count for _, count in sizes])
    kept = thin(subjects, labels, most)
    assert 1 <= len(kept) <= most
    assert (np.diff(kept) > 0).all()
    taken = [int((subjects[kept] == f"s{number}").sum()) for number in range(len(sizes))]
    if len(sizes) > most:
        assert sum(taken) == most
        assert max(taken) == 1
    else:
        each = max(taken)
        assert taken == [min(count, each) for _, count in sizes]
        missing = [count > each for _, count in sizes]
        assert len(kept) + sum(missing) > most or not any(missing), "one more of each would have fitted"


def test_thinned_slices_are_evenly_spaced() -> None:
    subjects, labels = np.array(["a"] * 9 + ["b"]), np.zeros(10, np.int64)
    assert thin(subjects, labels, 4).tolist() == [1, 4, 7, 9]
    assert thin(subjects, labels, 100).tolist() == list(range(10))
