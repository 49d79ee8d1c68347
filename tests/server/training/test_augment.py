"""Augmentation: what `light` does bit for bit, and what `full` adds, each part by itself."""

import math

import pytest
import torch
from torch import Tensor

from limner_server.training import augment as module
from limner_server.training.augment import augment
from limner_server.training.config import Augmentation


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def only(monkeypatch: pytest.MonkeyPatch, **strengths: float) -> None:
    """Leave of `full` what is named, at this strength."""
    for name in ("ROTATION", "SCALE", "GAMMA", "BIAS", "NOISE", "GAIN", "OFFSET"):
        monkeypatch.setattr(module, name, strengths.get(name, 0.0))


def standardised(slices: Tensor) -> Tensor:
    mean = slices.mean(dim=(1, 2, 3), keepdim=True)
    return (slices - mean) / slices.std(dim=(1, 2, 3), keepdim=True, correction=0)


def smooth(count: int, size: int = 64) -> Tensor:
    """Slices without detail finer than interpolation keeps, and without symmetry."""
    coarse = torch.randn(count, 1, 6, 6, generator=seeded(7))
    return torch.nn.functional.interpolate(coarse, size=(size, size), mode="bicubic", align_corners=True)


def test_none_returns_the_slices_and_draws_nothing() -> None:
    slices, generator = torch.randn(3, 1, 32, 32), seeded()
    before = generator.get_state()
    assert augment(slices, generator, Augmentation.NONE) is slices
    assert torch.equal(generator.get_state(), before)


@pytest.mark.parametrize("level", [Augmentation.LIGHT, Augmentation.FULL])
def test_the_generator_is_all_the_chance_there_is(level: Augmentation) -> None:
    slices = torch.randn(8, 1, 32, 32, generator=seeded())
    torch.manual_seed(1)
    first = augment(slices, seeded(1), level)
    torch.manual_seed(2)
    assert torch.equal(augment(slices, seeded(1), level), first)
    assert not torch.equal(augment(slices, seeded(2), level), first)
    assert first.shape == slices.shape


def test_light_is_flip_shift_gain_and_offset_bit_for_bit() -> None:
    """Slice by slice, from the same draws in the same order."""
    count, size = 12, 64
    slices = torch.randn(count, 1, size, size, generator=seeded(3))
    generator = seeded(5)
    flipped = torch.rand(count, generator=generator) < 0.5
    shifts = torch.randint(-3, 4, (2, count, 1), generator=generator)
    gain = 1 + 0.1 * torch.randn(count, 1, 1, 1, generator=generator)
    offset = 0.1 * torch.randn(count, 1, 1, 1, generator=generator)
    expected = torch.empty_like(slices)
    for index, image in enumerate(slices[:, 0]):
        for row in range(size):
            source_row = min(max(row + int(shifts[0, index]), 0), size - 1)
            columns = torch.arange(size)
            if flipped[index]:
                columns = columns.flip(0)
            columns = (columns + int(shifts[1, index])).clamp(0, size - 1)
            expected[index, 0, row] = image[source_row, columns] * gain[index, 0, 0] + offset[index, 0, 0]
    assert torch.equal(augment(slices, seeded(5)), expected)
    assert set(flipped.tolist()) == {True, False}
    assert len(set(map(tuple, shifts[..., 0].T.tolist()))) > 6


def test_full_without_its_own_parts_is_light(monkeypatch: pytest.MonkeyPatch) -> None:
    slices = torch.randn(8, 1, 64, 64, generator=seeded())
    only(monkeypatch, GAIN=0.1, OFFSET=0.1)
    light = augment(slices, seeded(4), Augmentation.LIGHT)
    full = augment(slices, seeded(4), Augmentation.FULL)
    torch.testing.assert_close(standardised(full), standardised(light), atol=1e-3, rtol=1e-3)


def test_a_quarter_turn_is_a_quarter_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    slices = smooth(4)
    monkeypatch.setattr(module, "SHIFT", 0.0)
    light = module._Light.draw(4, 64, seeded())
    light = module._Light(torch.zeros(4, dtype=torch.bool), torch.zeros(2, 4, 1), light.gain, light.offset)
    turned = module._resampled(slices, light, torch.full((4,), math.pi / 2), torch.ones(4))
    torch.testing.assert_close(turned, slices.rot90(1, (2, 3)), atol=1e-4, rtol=1e-4)
    doubled = module._resampled(slices, light, torch.zeros(4), torch.full((4,), 2.0))
    # Half-way between two pixels of the original lies one of the enlarged, and so the mean of four of these.
    inner = torch.nn.functional.avg_pool2d(doubled, 2)
    torch.testing.assert_close(inner, slices[..., 16:48, 16:48], atol=0.02, rtol=0.02)


def test_full_is_standardised_before_gain_and_offset() -> None:
    slices = smooth(16)
    generator = seeded(9)
    light = module._Light.draw(16, 64, seeded(9))
    full = augment(slices, generator, Augmentation.FULL)
    torch.testing.assert_close(full.mean(dim=(2, 3)), light.offset[..., 0, 0], atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(full.std(dim=(2, 3), correction=0), light.gain[..., 0, 0].abs(), atol=1e-5, rtol=1e-4)


def test_gamma_keeps_the_order_of_intensities(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, GAMMA=0.5)
    slices = smooth(6)
    varied = module._intensities_varied(slices, seeded(1))
    for before, after in zip(slices.flatten(1), varied.flatten(1), strict=True):
        assert (after[before.argsort()].diff() >= -1e-6).all()
    assert not torch.allclose(varied, standardised(slices), atol=0.05)


def test_the_bias_field_multiplies_and_is_smooth(monkeypatch: pytest.MonkeyPatch) -> None:
    only(monkeypatch, BIAS=0.15)
    slices = torch.rand(6, 1, 64, 64, generator=seeded(2)) + 1
    slices[..., 0, 0], slices[..., 0, 1] = 0.0, 2.0  # the range, so that 0 stays no signal
    varied = module._intensities_varied(slices, seeded(1))
    none = varied[..., :1, :1]
    field = ((varied - none) / slices)[..., 1:, 1:]
    field = field / field.mean(dim=(2, 3), keepdim=True)
    assert field.std(dim=(2, 3)).min() > 0.02
    assert field.diff(dim=2).abs().max() < 0.05
    assert field.diff(dim=3).abs().max() < 0.05


def test_noise_is_that_of_a_magnitude(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no signal its mean over its deviation is that of Rayleigh, sqrt(pi / (4 - pi))."""
    only(monkeypatch, NOISE=0.1)
    slices = torch.zeros(8, 1, 64, 64)
    slices[:, :, :, 32:] = 1.0
    varied = module._intensities_varied(slices, seeded(1))
    bright, dark = varied[..., 32:], varied[..., :32]
    # The level of no signal: the standardised image of the exact one, known by the step's height over the noise.
    spread = dark.std(dim=(2, 3))
    sigma = bright.std(dim=(2, 3))
    assert (spread / sigma - math.sqrt(2 - math.pi / 2)).abs().max() < 0.05


@pytest.mark.parametrize("level", Augmentation)
def test_a_constant_slice_stays_finite(level: Augmentation) -> None:
    assert augment(torch.zeros(2, 1, 32, 32), seeded(), level).isfinite().all()
