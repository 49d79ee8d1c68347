"""How far a slice lies from the slices that a network learned from: distance to the nearest of them.

The space is that of the pooled layers. A deep layer folds what it never saw onto what it knows: by `layer4` alone, a
third of real MRI passed for phantom (docs/evaluation.md). So all four residual layers are pooled, and count alike.
"""

from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from limner_server.networks.card import Reference
from limner_server.networks.resnet import Network

NEIGHBOURS = 5
MOST_SLICES = 1000
"""More would cost time in each forward pass: a batch of one image reads them all."""

_LEAST_DEVIATION = 0.05
"""Of a channel, as a share of the mean of its layer's: a channel that was silent in training must not decide alone."""
_DAMPED = 16
"""Directions that are damped, at most."""
_PLAIN_SHARE = 0.01
"""Share of the variance from which on a direction is damped."""
_BATCH = 64


class ReferenceSlices(nn.Module):
    """Slices of the training cohort as a network sees them, and the distance of others from them. Scriptable.

    The vector of a slice holds the mean of each channel of layer1 to layer4, less its mean over the reference slices,
    over its deviation there; layers count alike, whatever their number of channels. Its part along each of the few
    directions in which most of the variance lies, the label's first of all, is multiplied by √(λ / (v + λ)), v the
    variance along it and λ a hundredth of all: home is wide in them, and they say little of what is not home. The
    distance of two slices is the length of the difference, so 1 is one deviation in each channel. Being relative to the
    network's own training slices, distances of different networks compare.

    Parameters
    ----------
    mean, scale
        `(c,)`: what is taken from the pooled channels, and what they are then multiplied by.
    directions, damping
        `(d, c)` of length 1, at right angles; `(d,)`, the share of a vector's part along each that is taken away.
    slices
        `(m, c)`, the vectors of the reference slices; none where nothing is known of the training cohort.
    neighbours
        Number of nearest slices that a distance is the mean of; at most m.
    """

    def __init__(
        self,
        mean: Tensor,
        scale: Tensor,
        directions: Tensor,
        damping: Tensor,
        slices: Tensor,
        neighbours: int = NEIGHBOURS,
    ) -> None:
        super().__init__()
        self.register_buffer("mean", mean)
        self.register_buffer("scale", scale)
        self.register_buffer("directions", directions)
        self.register_buffer("damping", damping)
        self.register_buffer("slices", slices)
        self.register_buffer("half_norms", slices.square().sum(dim=1) / 2)
        self.neighbours = min(neighbours, len(slices))

    mean: Tensor
    scale: Tensor
    directions: Tensor
    damping: Tensor
    slices: Tensor
    half_norms: Tensor

    @classmethod
    def none(cls) -> "ReferenceSlices":
        """Nothing to compare with: every distance is NaN."""
        return cls(torch.zeros(0), torch.zeros(0), torch.zeros(0, 0), torch.zeros(0), torch.zeros(0, 0))

    @classmethod
    def of(cls, network: Network, slices: Tensor) -> "ReferenceSlices":
        """What normalised slices `(m, 1, s, s)`, one or more, are to a network in eval mode."""
        layers = [[layer.mean(dim=(2, 3)) for layer in _maps(network, part)[1:]] for part in slices.split(_BATCH)]
        means, scales = [], []
        for pooled in map(torch.cat, zip(*layers, strict=True)):
            deviation = pooled.std(dim=0, correction=0)
            typical = float(deviation.mean())
            # Where no channel varies, as with a single slice, distances are in the channels' own units.
            deviation = deviation.clamp_min(_LEAST_DEVIATION * typical if typical > 0 else 1.0)
            means.append(pooled.mean(dim=0))
            scales.append(1 / deviation / (pooled.size(1) * len(layers[0])) ** 0.5)
        mean, scale = torch.cat(means), torch.cat(scales)
        vectors = (torch.cat([torch.cat(parts, dim=1) for parts in layers]) - mean) * scale
        directions, damping = _widest(vectors)
        return cls(mean, scale, directions, damping, _damp(vectors, directions, damping))

    def forward(self, maps: list[Tensor]) -> Tensor:
        """Mean distance `(n, 1)` to the nearest reference slices, from the maps of the five layers of n slices."""
        if self.slices.size(0) == 0:
            return torch.full((maps[0].size(0), 1), float("nan"), device=maps[0].device)
        pooled = torch.cat([layer.mean(dim=(2, 3), dtype=self.mean.dtype) for layer in maps[1:]], dim=1)
        # Operations that oneDNN Graph leaves alone: on small matrices of this kind it fails (executor/cpu.py fuses).
        vectors = _damp(torch.addcmul(-self.mean * self.scale, pooled, self.scale), self.directions, self.damping)
        # Half the squared distance, less what is the same for all reference slices: good enough to find the nearest.
        order = torch.addmm(self.half_norms, vectors, self.slices.t(), alpha=-1.0)
        nearest = self.slices[order.topk(self.neighbours, dim=1, largest=False)[1]]
        exact = torch.cdist(vectors.unsqueeze(1), nearest, compute_mode="donot_use_mm_for_euclid_dist")
        return exact.mean(dim=2)


def measure(
    network: Network,
    folds: Iterable[tuple[Network, NDArray[np.int64], NDArray[np.int64]]],
    slices: Tensor,
    subjects: NDArray[np.str_],
    labels: NDArray[np.int64],
) -> tuple[ReferenceSlices, Reference]:
    """Reference slices of the network that is served, and how far slices of subjects that a network never saw lie.

    The second comes from the networks of cross-validation: each fold's held-out slices, by its network, from its
    training slices.

    Parameters
    ----------
    network
        The network to be served, in eval mode; an ensemble too.
    folds
        Of each fold, or of several repeats' folds: network, training rows, held-out rows.
    slices
        Normalised slices of the whole cohort `(n, 1, s, s)`.
    subjects, labels
        `(n,)` each.
    """
    distances = []
    for fold_network, train, held_out in folds:
        kept = train[thin(subjects[train], labels[train])]
        reference = ReferenceSlices.of(fold_network, slices[kept])
        distances += [reference(_maps(fold_network, part)).cpu() for part in slices[held_out].split(_BATCH)]
    kept = thin(subjects, labels)
    reference = ReferenceSlices.of(network, slices[kept])
    percentiles = np.percentile(torch.cat(distances).double().numpy(), np.arange(101))
    return reference, Reference(
        neighbours=reference.neighbours, slices=len(kept), percentiles=tuple(percentiles.tolist())
    )


def thin(
    subjects: Sequence[str] | NDArray[np.str_], labels: NDArray[np.int64], most: int = MOST_SLICES
) -> NDArray[np.int64]:
    """Rows of at most `most` slices, ascending: of each subject and label as many as of any other, evenly spaced.

    Parameters
    ----------
    subjects, labels
        `(n,)`, of each slice; slices of one subject in the order in which they lie.
    most
        1 or more.
    """
    _, group = np.unique(np.stack([labels.astype(np.str_), subjects]), axis=1, return_inverse=True)
    sizes = np.bincount(group)
    groups = np.split(np.argsort(group, kind="stable"), np.cumsum(sizes)[:-1])
    if len(groups) > most:
        groups = [groups[index] for index in _spaced(np.arange(len(groups)), most)]
        sizes = np.array([1])
    each = max(count for count in range(1, max(sizes) + 1) if np.minimum(sizes, count).sum() <= most)
    return np.sort(np.concatenate([_spaced(rows, each) for rows in groups]))


def _spaced(rows: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """So many of some rows, evenly spaced; all where there are not so many."""
    if count >= len(rows):
        return rows
    return rows[((np.arange(count) + 0.5) * len(rows) / count).astype(np.int64)]


def _damp(vectors: Tensor, directions: Tensor, damping: Tensor) -> Tensor:
    return torch.addmm(vectors, torch.mm(vectors, directions.t() * damping), directions, alpha=-1.0)


def _widest(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Directions `(d, c)` in which centred vectors `(m, c)` vary most, and the share `(d,)` to be taken from each."""
    # Of the m by m products, which are fewer than c by c: both matrices have the same eigenvalues.
    variances, weights = torch.linalg.eigh((vectors @ vectors.t()).double() / len(vectors))
    variances, weights = variances[-_DAMPED:], weights[:, -_DAMPED:]
    plain = _PLAIN_SHARE * vectors.double().square().sum() / len(vectors)
    wide = variances > plain / 100  # what is narrower is hardly damped, and may be rounding
    variances, weights = variances[wide], weights[:, wide]
    directions = weights.t() @ vectors.double() / (len(vectors) * variances).sqrt().unsqueeze(1)
    return directions.to(vectors.dtype), (1 - (plain / (variances + plain)).sqrt()).to(vectors.dtype)


@torch.no_grad()
def _maps(network: Network, slices: Tensor) -> list[Tensor]:
    """Maps of the five layers, on the network's device."""
    return network.maps(slices.to(next(network.parameters()).device))
