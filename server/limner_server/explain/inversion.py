"""Step D, method `inversion`: images optimised to show the most important feature maps of their class.

Several images, of several classes and resamples, are optimised as one batch. docs/explain.md has the formulas.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import cos, pi

import torch
from torch import Tensor

from limner_server.explain.statistics import Sums, pooled
from limner_server.networks.artifact import Artifact

MAP_WEIGHTS = (0.0, 0.25, 0.5, 1.0, 1.0)
MOMENT_WEIGHTS = (1.0, 1.0, 1.0, 0.5, 0.5)
TOTAL_VARIATION = 0.02
LOWEST, HIGHEST = -3.0, 4.0
SPECTRUM_DECAY = 1.5
AMPLITUDE = 0.5
LEARNING_RATE, LAST_LEARNING_RATE = 0.05, 0.0025


@dataclass(frozen=True, eq=False)
class LayerAim:
    """What an image should show in one layer. Channels that do not count have a weight of 0.

    Attributes
    ----------
    maps
        `(C, h, w)`, mean map of the class.
    means, deviations
        `(C,)`, means over the class of the maps' spatial mean and standard deviation.
    weights
        `(C,)`, 1 / (k σ²) for the k chosen channels, 0 for the others.
    """

    maps: Tensor
    means: Tensor
    deviations: Tensor
    weights: Tensor


@dataclass(frozen=True, eq=False)
class Aim:
    """What one image should show, and the normalised image `(s, s)` it starts from."""

    start: Tensor
    layers: tuple[LayerAim, ...]


def class_aims(classes: Sequence[Sums], channels: Sequence[Tensor]) -> list[Aim]:
    """Return the aim of each class; all start from the same image, the mean over all classes.

    Parameters
    ----------
    classes
        The sums of each class.
    channels
        For each layer, the indices `(k,)` of the channels that count.
    """
    total = pooled(classes)
    start = total.image / total.count
    weights = [
        _weights(layer.deviation(total.count), chosen) for layer, chosen in zip(total.layers, channels, strict=True)
    ]
    return [
        Aim(
            start,
            tuple(
                LayerAim(
                    layer.maps / sums.count,
                    (layer.means / sums.count).float(),
                    (layer.deviations / sums.count).float(),
                    scale,
                )
                for layer, scale in zip(sums.layers, weights, strict=True)
            ),
        )
        for sums in classes
    ]


def invert(
    artifact: Artifact, aims: Sequence[Aim], steps: int, progress: Callable[[float], None] = lambda _: None
) -> Tensor:
    """Optimise one image for each aim, all as one batch.

    Parameters
    ----------
    artifact
        The network that is looked into.
    aims
        What the images should show.
    steps
        Of the optimiser, at least 1.
    progress
        Told the share of the steps that are done, 0 to 1.

    Returns
    -------
    `(n, s, s)` normalised images, -3 to 4, in the order of the aims.
    """
    start = torch.stack([aim.start for aim in aims])
    layers = [_stack([aim.layers[index] for aim in aims]) for index in range(len(aims[0].layers))]
    spectrum = Spectrum(start)
    optimiser = torch.optim.Adam([spectrum.coefficients], lr=LEARNING_RATE)
    for step in range(steps):
        optimiser.param_groups[0]["lr"] = _learning_rate(step, steps)
        images = spectrum.images()
        maps = artifact.maps(images[:, None].contiguous(memory_format=torch.channels_last))
        loss = _feature_loss(maps, layers) + TOTAL_VARIATION * _total_variation(images)
        (spectrum.coefficients.grad,) = torch.autograd.grad(loss, [spectrum.coefficients])
        optimiser.step()
        progress((step + 1) / steps)
    return spectrum.images().detach()


class Spectrum:
    """Images `x0 + IFFT(θ f^-1.5)` that are optimised through θ: coarse structure moves first, fine noise hardly."""

    def __init__(self, start: Tensor) -> None:
        gain = _gain(start.shape[-1]).to(start.device)
        self.coefficients = torch.zeros(
            len(start), *gain.shape, dtype=torch.complex64, device=start.device, requires_grad=True
        )
        self._start = start
        self._gain = gain

    def images(self) -> Tensor:
        """Return the images `(n, s, s)`, clipped. Gradients pass the clip unchanged: a pixel at its end can return."""
        free: Tensor = self._start + torch.fft.irfft2(
            self.coefficients * self._gain, s=self._start.shape[-2:], norm="ortho"
        )
        return free + (free.clamp(LOWEST, HIGHEST) - free).detach()


def _gain(size: int) -> Tensor:
    """Fall-off `(size, size // 2 + 1)` by f^-1.5; θ of modulus 1 makes an image of deviation `AMPLITUDE`."""
    frequencies = torch.fft.fftfreq(size)
    decay: Tensor = torch.hypot(frequencies[:, None], frequencies).clamp(min=1 / size) ** -SPECTRUM_DECAY
    gain: Tensor = AMPLITUDE * decay / decay.square().mean().sqrt()
    return gain[:, : size // 2 + 1]


def _weights(deviation: Tensor, chosen: Tensor) -> Tensor:
    """Return `1 / (k σ²)` for the chosen channels, `(C,)`; 0 for the others, and for a channel that never varies."""
    weights = torch.zeros_like(deviation)
    weights[chosen] = 1 / (len(chosen) * deviation[chosen].square())
    return torch.where(deviation > 0, weights, 0.0).float()


def _stack(aims: Sequence[LayerAim]) -> LayerAim:
    """Return the aims of one layer with a first axis for the images."""
    return LayerAim(
        torch.stack([aim.maps for aim in aims]),
        torch.stack([aim.means for aim in aims]),
        torch.stack([aim.deviations for aim in aims]),
        torch.stack([aim.weights for aim in aims]),
    )


def _learning_rate(step: int, steps: int) -> float:
    return LAST_LEARNING_RATE + (LEARNING_RATE - LAST_LEARNING_RATE) * 0.5 * (1 + cos(pi * step / steps))


def _feature_loss(maps: Sequence[Tensor], aims: Sequence[LayerAim]) -> Tensor:
    """Sum over images, so that each image's gradient is that of its own loss."""
    loss = maps[0].new_zeros(())
    for found, aim, on_maps, on_moments in zip(maps, aims, MAP_WEIGHTS, MOMENT_WEIGHTS, strict=True):
        means = found.mean((2, 3))
        deviations = (found.var((2, 3), correction=0) + 1e-8).sqrt()
        apart = (means - aim.means).square() + (deviations - aim.deviations).square()
        loss = loss + on_moments * (aim.weights * apart).sum()
        if on_maps:
            squares = (found - aim.maps).square().mean((2, 3))
            loss = loss + on_maps * (aim.weights * squares).sum()
    return loss


def _total_variation(images: Tensor) -> Tensor:
    rows, columns = images.diff(dim=1).abs().mean((1, 2)), images.diff(dim=2).abs().mean((1, 2))
    return (rows + columns).sum()
