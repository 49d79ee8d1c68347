"""Inversion on a network that looks for stripes: it must paint them, the same way every time."""

import numpy as np
import pytest
import torch
from torch import Tensor

from limner_server.explain.composite import composite
from limner_server.explain.inversion import AMPLITUDE, HIGHEST, LOWEST, Spectrum, class_aims, invert
from limner_server.explain.statistics import Sums, gather, select_channels
from tests.server.explain.tiny import SIZE, stripes_artifact, stripes_cohort

STEPS = 150


@pytest.fixture(scope="module")
def classes() -> list[Sums]:
    return gather(stripes_artifact(), stripes_cohort()).cohort


@pytest.fixture(scope="module")
def channels(classes: list[Sums]) -> list[Tensor]:
    return [order for order, _ in select_channels(classes)]


@pytest.fixture(scope="module")
def images(classes: list[Sums], channels: list[Tensor]) -> Tensor:
    return invert(stripes_artifact(), class_aims(classes, channels), STEPS)


def test_both_images_are_taken_for_their_class(classes: list[Sums], images: Tensor) -> None:
    artifact = stripes_artifact()
    start = ((classes[0].image + classes[1].image) / (classes[0].count + classes[1].count))[None]
    assert artifact(images)[1].argmax(1).tolist() == [0, 1]
    probabilities = artifact(images)[1][:, 1]
    assert probabilities[0] < 0.2 < artifact(start)[1][0, 1] < 0.8 < probabilities[1]


def test_the_images_come_near_the_maps_they_aim_at(classes: list[Sums], channels: list[Tensor], images: Tensor) -> None:
    aims = class_aims(classes, channels)

    def distance(shown: Tensor) -> float:
        means = stripes_artifact().maps(shown[:, None])[4].mean((2, 3))
        wanted = torch.stack([aim.layers[4].means for aim in aims])
        return float((means - wanted)[:, channels[4]].abs().mean())

    start = torch.stack([aim.start for aim in aims])
    assert distance(images) < 0.6 * distance(start)


def test_images_stay_in_range_and_start_from_the_same_mean(
    classes: list[Sums], channels: list[Tensor], images: Tensor
) -> None:
    aims = class_aims(classes, channels)
    assert torch.equal(aims[0].start, aims[1].start)
    assert images.min() >= LOWEST
    assert images.max() <= HIGHEST
    assert not images.requires_grad


def test_it_is_deterministic(classes: list[Sums], channels: list[Tensor], images: Tensor) -> None:
    again = invert(stripes_artifact(), class_aims(classes, channels), STEPS)
    assert torch.equal(again, images)


def test_a_batch_of_aims_is_each_aim_alone(classes: list[Sums], channels: list[Tensor]) -> None:
    aims = class_aims(classes, channels)
    together = invert(stripes_artifact(), [aims[0], aims[1], aims[0]], 10)
    torch.testing.assert_close(together[0], together[2])
    torch.testing.assert_close(together[1], invert(stripes_artifact(), [aims[1]], 10)[0], atol=1e-3, rtol=1e-3)


def test_progress_reaches_the_end(classes: list[Sums], channels: list[Tensor]) -> None:
    told: list[float] = []
    invert(stripes_artifact(), class_aims(classes, channels), 4, told.append)
    assert told == [0.25, 0.5, 0.75, 1.0]


@pytest.mark.parametrize("size", [32, 33, 96])
def test_the_spectrum_starts_at_the_mean_and_falls_off(size: int) -> None:
    spectrum = Spectrum(torch.full((1, size, size), 0.5))
    assert torch.equal(spectrum.images(), torch.full((1, size, size), 0.5))
    generator = torch.Generator().manual_seed(0)
    phases = torch.rand(spectrum.coefficients.shape, generator=generator) * 2 * torch.pi
    with torch.no_grad():
        spectrum.coefficients.copy_(torch.polar(torch.ones_like(phases), phases))
    found = spectrum.images()[0].detach()
    assert found.std() == pytest.approx(AMPLITUDE, rel=0.6)
    power = torch.fft.fft2(found - found.mean()).abs()
    assert power[1, 1] > 10 * power[size // 3, size // 3]


def test_a_clipped_pixel_can_come_back() -> None:
    spectrum = Spectrum(torch.full((1, 32, 32), HIGHEST + 1.0))
    (gradient,) = torch.autograd.grad(spectrum.images().sum(), [spectrum.coefficients])
    assert spectrum.images().max() == HIGHEST
    assert gradient.abs().max() > 0


def test_a_composite_has_the_cohorts_intensities_and_no_others(classes: list[Sums]) -> None:
    intensities = torch.linspace(-2, 3, 101)
    found = composite(classes, intensities)
    assert found.shape == (2, SIZE, SIZE)
    assert set(np.unique(found.numpy())) <= set(intensities.numpy())
    for image in found:
        torch.testing.assert_close(image.flatten().sort().values[[0, -1]], intensities[[0, -1]])
    assert not torch.equal(found[0], found[1])
