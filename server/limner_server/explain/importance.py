"""Step C: how much each channel of a layer matters for an image. docs/explain.md has the formulas and their sources.

Works on maps and gradients that somebody else computed; knows nothing of networks, cohorts or the wire.
"""

import hashlib
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from limner_server.errors import InvalidInputError

DEAD_SHARE = 1e-3
MIN_TOP = 4
TOP_SHARE = 0.10

Floats = NDArray[np.float32]


class ImportanceMethod(StrEnum):
    """How importance is measured, named as in `limner.v1.ImportanceMethod`."""

    GRADIENT_X_DEVIATION = "gradient_x_deviation"
    GRADIENT_X_ACTIVATION = "gradient_x_activation"
    GRAD_CAM = "grad_cam"
    CAM = "cam"
    ACTIVATION = "activation"
    MEAN_ABLATION = "mean_ablation"
    RANDOM = "random"


@dataclass(frozen=True, eq=False)
class LayerExplanation:
    """What matters in one layer for one image.

    Attributes
    ----------
    importance
        `(C,)`, signed; logits of the margin, without unit for `activation` and `random`.
    order
        `(k,)` int64, indices of the most important channels, the most important first.
    weights
        `(k,)`, their positive parts scaled to sum to 1; all 0 where none is positive.
    heat_map
        `(size, size)` on the grid, 0 to 1.
    """

    importance: Floats
    order: NDArray[np.int64]
    weights: Floats
    heat_map: Floats


def default_top_k(channels: int) -> int:
    """Return a tenth of a layer's channels, at least 4, at most all of them."""
    return min(channels, max(MIN_TOP, round(TOP_SHARE * channels)))


def content_seed(image: Floats) -> int:
    """Return a seed that depends on the values alone, for method `random`: one image, one answer, however it came."""
    values = np.ascontiguousarray(image, np.float32)
    return int.from_bytes(hashlib.sha256(values.tobytes()).digest()[:8], "little", signed=False)


def gradient_x_deviation(maps: Tensor, gradients: Tensor, means: Tensor) -> Tensor:
    """Sum over the map of gradient times deviation from the channel's cohort mean: mean ablation to first order.

    Parameters
    ----------
    maps, gradients
        `(n, C, h, w)`: activations, and the margin's derivative by them.
    means
        `(C,)`, the mean of each channel over the training cohort.

    Returns
    -------
    `(n, C)`, in logits.
    """
    return (gradients * maps).sum((2, 3)) - means * gradients.sum((2, 3))


def channel_importance(
    method: ImportanceMethod,
    maps: Tensor,
    gradients: Tensor,
    means: Tensor,
    *,
    ablation: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    """Signed importance of every channel of a layer, by any method.

    Parameters
    ----------
    maps, gradients
        `(n, C, h, w)`: activations, and the margin's derivative by them.
    means
        `(C,)`, the mean of each channel over the training cohort.
    ablation
        `(n, C)`, the margin's drop with the channel at its mean; needed by `mean_ablation` only.
    seed
        Of `random` only, 0 to 2^64 - 1.

    Returns
    -------
    `(n, C)`. `cam` is exact where the layer is followed by average pooling and a linear classifier, as layer4 is: the
    derivative by the pooled activation is then the sum of the derivative over the map.
    """
    match method:
        case ImportanceMethod.GRADIENT_X_DEVIATION:
            return gradient_x_deviation(maps, gradients, means)
        case ImportanceMethod.GRADIENT_X_ACTIVATION:
            return (gradients * maps).sum((2, 3))
        case ImportanceMethod.GRAD_CAM:
            return gradients.mean((2, 3)) * maps.mean((2, 3))
        case ImportanceMethod.CAM:
            return gradients.sum((2, 3)) * maps.mean((2, 3))
        case ImportanceMethod.ACTIVATION:
            return maps.mean((2, 3))
        case ImportanceMethod.MEAN_ABLATION:
            if ablation is None:
                raise InvalidInputError("ablation", None, "the margin's drop for each channel")
            return ablation
        case ImportanceMethod.RANDOM:
            random = np.random.default_rng(seed).random(maps.shape[:2], dtype=np.float32)
            return torch.from_numpy(random).to(maps.device)


def top_channels(importance: Tensor, k: int, alive: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Choose the k most important channels of each row, and weigh them.

    Parameters
    ----------
    importance
        `(n, C)`, signed.
    k
        1 to C.
    alive
        `(C,)` bool; channels outside it come last and weigh nothing. Default: all.

    Returns
    -------
    Indices `(n, k)`, the most important first (of equals the lower index), and weights `(n, k)`: positive parts scaled
    to sum to 1, all 0 where none is positive.
    """
    if alive is not None:
        importance = importance.masked_fill(~alive, -torch.inf)
    order = importance.argsort(dim=1, descending=True, stable=True)[:, :k]
    positive = importance.gather(1, order).clamp(min=0)
    return order, positive / positive.sum(1, keepdim=True).clamp(min=torch.finfo(positive.dtype).tiny)


def alive_channels(deviations: Tensor) -> Tensor:
    """Tell `(C,)` which channels deviate by a thousandth of the layer's largest deviation or more; others are dead."""
    return (deviations > 0) & (deviations >= DEAD_SHARE * deviations.max())


def heat_map(maps: Tensor, gradients: Tensor, means: Tensor, size: int) -> Tensor:
    """Where in the image the given channels speak for the target.

    Parameters
    ----------
    maps, gradients
        `(k, h, w)` of the chosen channels.
    means
        `(k,)`, their cohort means.
    size
        Edge of the result.

    Returns
    -------
    `(size, size)`: gradient times deviation summed over the channels, its positive part interpolated bilinearly and
    scaled to a largest value of 1 (all 0 where nothing is positive).
    """
    contributions = (gradients * (maps - means[:, None, None])).sum(0).clamp(min=0)
    values = functional.interpolate(contributions[None, None], (size, size), mode="bilinear", align_corners=False)[0, 0]
    return values / values.max().clamp(min=torch.finfo(values.dtype).tiny)


def explain_layer(
    layer: str,
    maps: Floats,
    gradients: Floats,
    means: Floats,
    *,
    size: int,
    method: ImportanceMethod = ImportanceMethod.GRADIENT_X_DEVIATION,
    top_k: int = 0,
    ablation: Floats | None = None,
    seed: int = 0,
) -> LayerExplanation:
    """Explain one layer of one image.

    Parameters
    ----------
    layer
        "stem", "layer1" ... "layer4".
    maps, gradients
        `(C, h, w)`: activations, and the margin's derivative by them.
    means
        `(C,)`, the mean of each channel over the training cohort.
    size
        Edge of the heat map.
    method
        How importance is measured.
    top_k
        Number of channels chosen, at most C; 0: `default_top_k`.
    ablation
        `(C,)`, needed by `mean_ablation` only.
    seed
        `content_seed` of the image, for `random` only.

    Raises
    ------
    InvalidInputError
        For `cam` on another layer than layer4, `mean_ablation` without `ablation`, or more channels than the layer has.
    """
    channels = maps.shape[0]
    if method is ImportanceMethod.CAM and layer != "layer4":
        raise InvalidInputError("layers", layer, "layer4, the only layer that method cam is defined for")
    if not 0 <= top_k <= channels:
        raise InvalidInputError("top_k", top_k, f"at most {channels}, the channels of {layer}; 0 for the default")
    maps_, gradients_, means_ = (torch.as_tensor(array) for array in (maps, gradients, means))
    importance = channel_importance(
        method,
        maps_[None],
        gradients_[None],
        means_,
        ablation=None if ablation is None else torch.as_tensor(ablation)[None],
        seed=seed,
    )
    order, weights = top_channels(importance, top_k or default_top_k(channels))
    chosen = order[0]
    return LayerExplanation(
        importance[0].numpy(),
        chosen.numpy(),
        weights[0].numpy(),
        heat_map(maps_[chosen], gradients_[chosen], means_[chosen], size).numpy(),
    )
