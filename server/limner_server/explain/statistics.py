"""One pass over a cohort: everything that a simulation needs to know of its slices, as sums that merge by addition.

Subjects, classes, shards and bootstrap resamples are sums of sums, so memory stays as it is for a larger cohort.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limner_server.explain.cohort import SliceCohort
from limner_server.explain.importance import alive_channels, default_top_k, gradient_x_deviation, top_channels
from limner_server.networks.artifact import Artifact

BATCH = 24


class LayerSums(NamedTuple):
    """Sums over slices in one layer; w is the weight of a channel among a slice's top channels, 0 for the others."""

    maps: Tensor
    """`(C, h, w)`, Σ a."""
    weighted: Tensor
    """`(C, h, w)`, Σ w·a."""
    weights: Tensor
    """`(C,)` float64, Σ w."""
    means: Tensor
    """`(C,)` float64, Σ of the map's mean."""
    squares: Tensor
    """`(C,)` float64, Σ of the square of the map's mean."""
    deviations: Tensor
    """`(C,)` float64, Σ of the map's standard deviation."""

    def plus(self, other: Self, times: float) -> "LayerSums":
        """Return this with `other` added `times` times."""
        return LayerSums(*(mine + times * theirs for mine, theirs in zip(self, other, strict=True)))

    def deviation(self, count: float) -> Tensor:
        """Return σ `(C,)`: the variance of the map's mean from slice to slice, and its own within a slice, together."""
        between = (self.squares / count - (self.means / count).square()).clamp(min=0)
        return (between + (self.deviations / count).square()).sqrt()


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over any set of slices.

    Attributes
    ----------
    count
        Number of slices, or sum of their multiplicities.
    image
        `(s, s)`, sum of the normalised slices.
    layers
        One for each layer, stem first.
    """

    count: float
    image: Tensor
    layers: tuple[LayerSums, ...]

    def plus(self, other: "Sums", times: float = 1.0) -> "Sums":
        """Return this with `other` added `times` times."""
        layers = tuple(mine.plus(theirs, times) for mine, theirs in zip(self.layers, other.layers, strict=True))
        return Sums(self.count + times * other.count, self.image + times * other.image, layers)


class Part(NamedTuple):
    """Sums over some slices of one subject and one class."""

    subject: str
    label: int
    sums: Sums


@dataclass(frozen=True, eq=False)
class Statistics:
    """What one pass found.

    Attributes
    ----------
    resamples
        For each resample, the sums of each class. The first resample is the cohort itself.
    weights
        For each subject and class, Σ w of each layer, `(C_l,)`.
    """

    resamples: list[list[Sums]]
    weights: dict[tuple[str, int], list[Tensor]]

    @property
    def cohort(self) -> list[Sums]:
        """The sums of each class over the cohort as it is."""
        return self.resamples[0]


def pooled(classes: Sequence[Sums]) -> Sums:
    """Return the sums over all classes."""
    total = classes[0]
    for sums in classes[1:]:
        total = total.plus(sums)
    return total


def select_channels(classes: Sequence[Sums]) -> list[tuple[Tensor, Tensor]]:
    """Choose each layer's most important tenth of channels over all classes, the dead ones left out.

    Returns
    -------
    For each layer, indices `(k,)`, the most important first, and their shares `(k,)` of accumulated importance, which
    sum to 1.
    """
    total = pooled(classes)
    chosen = []
    for layer in total.layers:
        alive = alive_channels(layer.deviation(total.count))
        k = min(default_top_k(len(alive)), max(1, int(alive.sum())))
        order, shares = top_channels(layer.weights[None], k, alive)
        chosen.append((order[0], shares[0]))
    return chosen


def gather(
    artifact: Artifact,
    cohort: SliceCohort,
    multiplicities: NDArray[np.int64] | None = None,
    tell: Callable[[float], None] = lambda _: None,
) -> Statistics:
    """Pass over the cohort once.

    Parameters
    ----------
    artifact
        The network that is looked into.
    cohort
        The slices.
    multiplicities
        `(r, subjects)`: how often each resample holds each subject, in the order of `np.unique(cohort.subjects)`.
        Default: no resamples.
    tell
        Told the share of the slices that are done, 0 to 1.
    """
    subjects = np.unique(cohort.subjects)
    rows = np.ones((1, len(subjects)), np.int64)
    if multiplicities is not None:
        rows = np.concatenate([rows, multiplicities])
    column = {subject: index for index, subject in enumerate(subjects.tolist())}
    found: list[dict[int, Sums]] = [{} for _ in rows]
    weights: dict[tuple[str, int], list[Tensor]] = {}
    done = 0.0
    for subject, label, sums in parts(artifact, cohort):
        for times, classes in zip(rows[:, column[subject]].tolist(), found, strict=True):
            if times:
                classes[label] = classes[label].plus(sums, times) if label in classes else zero(sums).plus(sums, times)
        shares = [layer.weights for layer in sums.layers]
        known = weights.get((subject, label))
        weights[subject, label] = shares if known is None else [a + b for a, b in zip(known, shares, strict=True)]
        done += sums.count
        tell(done / len(cohort))
    return Statistics([[classes[label] for label in range(len(cohort.classes))] for classes in found], weights)


def zero(like: Sums) -> Sums:
    """Return sums over no slice, of the same shapes."""
    return like.plus(like, -1.0)


def parts(artifact: Artifact, cohort: SliceCohort, batch: int = BATCH) -> Iterator[Part]:
    """Yield the sums of runs of slices of one subject and class, each slice in exactly one of them."""
    order = np.lexsort((cohort.labels, cohort.subjects))
    for start in range(0, len(order), batch):
        rows = order[start : start + batch]
        labels, subjects = cohort.labels[rows], cohort.subjects[rows]
        images = torch.from_numpy(cohort.images[rows]).to(artifact.temperature.device)
        slices = _Slices.of(artifact, images, torch.from_numpy(labels).to(images.device))
        borders = np.flatnonzero((labels[1:] != labels[:-1]) | (subjects[1:] != subjects[:-1])) + 1
        for first, last in zip([0, *borders.tolist()], [*borders.tolist(), len(rows)], strict=True):
            yield Part(str(subjects[first]), int(labels[first]), slices.sums(first, last))


@dataclass(frozen=True, eq=False)
class _Slices:
    """Maps of a batch of slices, and the weight of each channel, `(n, C)`, for the slice's own class."""

    images: Tensor
    maps: list[Tensor]
    weights: list[Tensor]

    @classmethod
    def of(cls, artifact: Artifact, images: Tensor, labels: Tensor) -> "_Slices":
        _, _, _, maps, gradients = artifact.explain(images, labels)
        weights = [
            _dense_weights(gradient_x_deviation(*layer))
            for layer in zip(maps, gradients, artifact.channel_means(), strict=True)
        ]
        return cls(artifact.normalise(images)[:, 0], maps, weights)

    def sums(self, first: int, last: int) -> Sums:
        """Sum over the slices from `first` to before `last`."""
        layers = tuple(
            _layer_sums(maps[first:last], weights[first:last])
            for maps, weights in zip(self.maps, self.weights, strict=True)
        )
        return Sums(float(last - first), self.images[first:last].sum(0), layers)


def _dense_weights(importance: Tensor) -> Tensor:
    """Weights `(n, C)`. A dead channel never deviates from its mean, so it cannot be chosen here."""
    order, weights = top_channels(importance, default_top_k(importance.shape[1]))
    return torch.zeros_like(importance).scatter_(1, order, weights)


def _layer_sums(maps: Tensor, weights: Tensor) -> LayerSums:
    means, deviations = maps.mean((2, 3)).double(), maps.std((2, 3), correction=0).double()
    return LayerSums(
        maps=maps.sum(0),
        weighted=torch.einsum("nc,nchw->chw", weights, maps),
        weights=weights.double().sum(0),
        means=means.sum(0),
        squares=means.square().sum(0),
        deviations=deviations.sum(0),
    )
