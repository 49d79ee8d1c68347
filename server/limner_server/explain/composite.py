"""Step D, method `composite`, the paper's way: each class's most important maps averaged, upsampled and summed.

It does not pass the checks (docs/explain.md), and is offered as the paper's method with that verdict shown.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from limner_server.explain.importance import alive_channels
from limner_server.explain.statistics import LayerSums, Sums, pooled


def composite(classes: Sequence[Sums], intensities: Tensor) -> Tensor:
    """Make one image for each class.

    Parameters
    ----------
    classes
        The sums of each class.
    intensities
        `(q,)` ascending, evenly spaced quantiles of the cohort's normalised intensities; of all classes together, for a
        class's own would give the class away.

    Returns
    -------
    `(k, s, s)` in normalised units.
    """
    total = pooled(classes)
    polarities = [_polarity(layer.maps, total.image) for layer in total.layers]
    return torch.stack([_match(_class_sum(sums, total, polarities), intensities) for sums in classes])


def _class_sum(sums: Sums, total: Sums, polarities: Sequence[Tensor]) -> Tensor:
    layers = zip(sums.layers, total.layers, polarities, strict=True)
    planes = [_layer_plane(layer, whole, total.count, polarity) for layer, whole, polarity in layers]
    size = sums.image.shape[-1]
    upsampled = [functional.interpolate(plane[None, None], (size, size), mode="bilinear")[0, 0] for plane in planes]
    return torch.stack([_standardise(plane) for plane in upsampled]).sum(0)


def _layer_plane(layer: LayerSums, whole: LayerSums, count: float, polarity: Tensor) -> Tensor:
    """Sum mean maps, `(h, w)`, in deviations of their channel, bright where the image is, by share of selections."""
    deviation = whole.deviation(count)
    chosen = alive_channels(deviation) & (layer.weights > 0)
    mean_maps = layer.weighted[chosen] / layer.weights[chosen, None, None]
    scores = (mean_maps - (whole.means / count)[chosen, None, None]) / deviation[chosen, None, None]
    shares = layer.weights[chosen] / layer.weights[chosen].sum()
    return torch.einsum("c,chw->hw", shares * polarity[chosen], scores).float()


def _polarity(maps: Tensor, image: Tensor) -> Tensor:
    """Sign `(C,)` of the correlation over places of each channel's mean map with the mean image."""
    small = functional.interpolate(image[None, None], maps.shape[-2:], mode="bilinear", antialias=True)[0, 0]
    centred = maps - maps.mean((1, 2), keepdim=True)
    return torch.einsum("chw,hw->c", centred, small - small.mean()).sign().double()


def _standardise(plane: Tensor) -> Tensor:
    return (plane - plane.mean()) / plane.std().clamp(min=1e-12)


def _match(plane: Tensor, intensities: Tensor) -> Tensor:
    """Give the plane's pixels, in their order, the cohort's intensities."""
    ranks = plane.flatten().argsort(stable=True).argsort()
    places = ranks * (len(intensities) - 1) // (plane.numel() - 1)
    return intensities[places].reshape(plane.shape)
