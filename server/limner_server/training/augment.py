"""Varies normalised slices in training, a batch at a time. All chance comes from a CPU generator: no device changes it.

`full` goes through what differs between T2-weighted examinations: how the patient lies (rotation, scale), contrast
(gamma), the coil's sensitivity (bias field) and noise (of a magnitude image, so Rician: Gudbjartsson and Patz 1995,
doi:10.1002/mrm.1910340618).
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from limner_server.training.config import Augmentation

SHIFT = 6 / 128
"""Largest shift, as a share of the grid's edge."""
GAIN = 0.1
OFFSET = 0.1
ROTATION = math.radians(10)
"""Largest rotation, in radians."""
SCALE = 0.1
"""Largest change of size, as a natural logarithm."""
GAMMA = 0.2
"""Deviation of the exponent's natural logarithm."""
BIAS = 0.15
"""Deviation of the bias field's natural logarithm at its knots."""
BIAS_KNOTS = 4
"""Knots of the bias field along each edge: its period is not under half the grid."""
NOISE = 0.05
"""Largest deviation of the noise, as a share of the slice's range."""


def augment(slices: Tensor, generator: torch.Generator, level: Augmentation = Augmentation.LIGHT) -> Tensor:
    """Vary slices by the level's rules.

    Parameters
    ----------
    slices
        Normalised slices `(n, 1, s, s)`, on any device.
    generator
        On the CPU.
    level
        `NONE` returns the slices as they are and draws nothing.

    Returns
    -------
    Tensor
        `(n, 1, s, s)`. `LIGHT`: flipped left to right, shifted by whole pixels, with another gain and offset.
        `FULL`: those, and rotated, scaled, with another contrast, a bias field and noise.
    """
    if level is Augmentation.NONE:
        return slices
    count, _, size, _ = slices.shape
    light = _Light.draw(count, size, generator)
    if level is Augmentation.LIGHT:
        moved = _gathered(slices, light)
    else:
        rotation = ROTATION * (2 * torch.rand(count, generator=generator) - 1)
        scale = torch.exp(SCALE * (2 * torch.rand(count, generator=generator) - 1))
        moved = _intensities_varied(_resampled(slices, light, rotation, scale), generator)
    return moved * light.gain.to(slices.device) + light.offset.to(slices.device)


@dataclass(frozen=True)
class _Light:
    """What is drawn for a batch at every level: flips `(n,)`, shifts `(2, n, 1)`, gain and offset `(n, 1, 1, 1)`."""

    flipped: Tensor
    shifts: Tensor
    gain: Tensor
    offset: Tensor

    @classmethod
    def draw(cls, count: int, size: int, generator: torch.Generator) -> "_Light":
        """Draw for `count` slices of edge `size`."""
        margin = max(1, round(SHIFT * size))
        return cls(
            flipped=torch.rand(count, generator=generator) < 0.5,
            shifts=torch.randint(-margin, margin + 1, (2, count, 1), generator=generator),
            gain=1 + GAIN * torch.randn(count, 1, 1, 1, generator=generator),
            offset=OFFSET * torch.randn(count, 1, 1, 1, generator=generator),
        )


def _gathered(slices: Tensor, light: _Light) -> Tensor:
    """Flip and shift by whole pixels, without interpolation."""
    count, _, size, _ = slices.shape
    steps = torch.arange(size)
    columns = torch.where(light.flipped[:, None], steps.flip(0), steps)
    # Clamping repeats the edge where a shift would look outside.
    rows, columns = (steps + light.shifts[0]).clamp(0, size - 1), (columns + light.shifts[1]).clamp(0, size - 1)
    device = slices.device
    picked = slices[
        torch.arange(count, device=device)[:, None, None],
        0,
        rows.to(device)[:, :, None],
        columns.to(device)[:, None, :],
    ]
    return picked.unsqueeze(1)


def _resampled(slices: Tensor, light: _Light, rotation: Tensor, scale: Tensor) -> Tensor:
    """Flip, shift, rotate by radians `(n,)` and scale by factors `(n,)` about the middle, in one interpolation."""
    size = slices.shape[-1]
    sign = torch.where(light.flipped, -1.0, 1.0)
    cosine, sine = torch.cos(rotation) / scale, torch.sin(rotation) / scale
    down, right = 2 * light.shifts[..., 0] / size
    # Where each pixel of the result looks, in coordinates (x, y) from -1 to 1.
    affine = torch.stack(
        [torch.stack([sign * cosine, -sign * sine, right], dim=1), torch.stack([sine, cosine, down], dim=1)], dim=1
    ).to(slices.device)
    grid = functional.affine_grid(affine, list(slices.shape), align_corners=False)
    return functional.grid_sample(slices, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _intensities_varied(slices: Tensor, generator: torch.Generator) -> Tensor:
    """Vary contrast, bias field and noise, and standardise again, as the artifact does with whatever it is shown."""
    count, _, size, _ = slices.shape
    device = slices.device
    exponent = torch.exp(GAMMA * torch.randn(count, 1, 1, 1, generator=generator)).to(device)
    knots = torch.randn(count, 1, BIAS_KNOTS, BIAS_KNOTS, generator=generator).to(device)
    deviation = (NOISE * torch.rand(count, 1, 1, 1, generator=generator)).to(device)
    noise = torch.randn(2, count, 1, size, size, generator=generator).to(device) * deviation
    low, high = slices.amin(dim=(1, 2, 3), keepdim=True), slices.amax(dim=(1, 2, 3), keepdim=True)
    # From 0 to 1, as the physics has it: no signal stays none, and what multiplies it acts on the bright parts.
    signal = ((slices - low) / (high - low).clamp_min(1e-6)).pow(exponent)
    bias = functional.interpolate(BIAS * knots, size=(size, size), mode="bicubic", align_corners=True).exp()
    varied = torch.hypot(signal * bias + noise[0], noise[1])
    mean = varied.mean(dim=(1, 2, 3), keepdim=True)
    return (varied - mean) / varied.std(dim=(1, 2, 3), keepdim=True, correction=0).clamp_min(1e-6)
