"""Winograd's convolutions: torch's numbers, whatever the shapes, and no image's in another one's."""

import math
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from limner_server.executor.winograd import WinogradForms, convolve, tile_transforms, transform

EDGES = (2, 4)
counts = st.integers(1, 9)


class Residual(nn.Module):
    """Of all that a ResNet has: two convolutions that can be Winograd's, in a block, and three that cannot."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 6, 7, stride=2, padding=3)
        self.first, self.norm = nn.Conv2d(6, 6, 3, padding=1, bias=False), nn.BatchNorm2d(6)
        self.second = nn.Conv2d(6, 6, 3, padding=1)
        self.strided = nn.Conv2d(6, 4, 3, stride=2, padding=1)
        self.narrow = nn.Conv2d(4, 2, 1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        maps = torch.relu(self.stem(images.unsqueeze(1)))
        maps = torch.relu(self.second(torch.relu(self.norm(self.first(maps)))) + maps)
        return self.narrow(self.strided(maps)).mean(dim=(2, 3)), maps


class Counting(nn.Module):
    """Cannot be frozen into a function of its input, since it remembers."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0
        self.convolution = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        self.calls += 1
        return (self.convolution(images.unsqueeze(1)) + self.calls,)


def frozen(module: nn.Module) -> torch.jit.ScriptModule:
    return torch.jit.freeze(torch.jit.script(module.eval()).to(memory_format=torch.channels_last))


def by_winograd(x: Tensor, kernels: Tensor, bias: Tensor, edge: int) -> Tensor:
    return convolve(x, transform(kernels, edge), bias, *tile_transforms(edge), edge, *x.shape[2:])


@settings(deadline=None)  # the first call compiles
@given(n=counts, c=counts, k=counts, height=counts, width=counts, edge=st.sampled_from(EDGES), seed=st.integers(0, 99))
def test_it_is_the_convolution(n: int, c: int, k: int, height: int, width: int, edge: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, c, height, width, generator=generator)
    kernels, bias = torch.randn(k, c, 3, 3, generator=generator), torch.randn(k, generator=generator)
    found = by_winograd(x, kernels, bias, edge)
    expected = torch.conv2d(x.double(), kernels.double(), bias.double(), padding=1)
    assert found.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=(1e-5 if edge == 2 else 2e-4) * math.sqrt(c))


def test_whole_numbers_stay_whole() -> None:
    """The small tile needs halves and quarters only, which float32 has."""
    x = torch.arange(32.0).view(2, 1, 4, 4)
    kernels = torch.arange(9.0).view(1, 1, 3, 3)
    assert torch.equal(by_winograd(x, kernels, torch.tensor([1.0]), 2), torch.conv2d(x, kernels, padding=1) + 1)


def close(found: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    return all(torch.allclose(*pair, rtol=1e-5, atol=1e-5) for pair in zip(found, expected, strict=True))


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("edges", [(2, 2), (4, 4), (None, 4), (2, None), (None, None)])
@torch.inference_mode()
def test_a_form_answers_as_the_artifact_it_was_made_of(edges: tuple[int | None, ...], fused: bool) -> None:
    torch.manual_seed(0)
    artifact = frozen(Residual())
    images = torch.randn(3, 22, 22)
    forms = WinogradForms(artifact)
    form = forms.form(forms.inputs(images), edges)
    graph, replaced = str(form.graph), sum(edge is not None for edge in edges)  # type: ignore[attr-defined]
    assert (graph.count("aten::bmm"), graph.count("aten::conv2d")) == (3 * replaced, 5 - replaced)
    torch.jit.enable_onednn_fusion(fused)
    try:
        assert all(close(form(images), artifact(images)) for _ in range(3)), "the third time as compiled"
    finally:
        torch.jit.enable_onednn_fusion(False)
    with ThreadPoolExecutor(2) as lanes:
        several = [torch.randn(3, 22, 22) for _ in range(20)]
        assert all(map(close, lanes.map(form, several), map(artifact, several)))


@torch.inference_mode()
def test_the_fastest_form_answers_as_the_artifact_it_was_made_of() -> None:
    """Convolutions of three shapes, so that each must get the kernels of its own."""
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1)]
    artifact = frozen(nn.Sequential(nn.Unflatten(1, (1, 16)), *layers, nn.MaxPool2d(2), nn.Conv2d(8, 8, 3, padding=1)))
    images = torch.randn(4, 16, 16)
    form = WinogradForms(artifact).fastest(images, least_gain=-math.inf)
    assert form is not None
    assert close((form(images),), (artifact(images),))


@pytest.mark.parametrize("edge", EDGES)
def test_what_is_no_number_stays_in_its_image(edge: int) -> None:
    x = torch.randn(3, 2, 8, 8)
    x[1] = math.nan
    found = by_winograd(x, torch.randn(2, 2, 3, 3), torch.zeros(2), edge)
    assert found[1].isnan().all()
    assert found[[0, 2]].isfinite().all()


def test_no_form_is_made_where_it_gains_too_little() -> None:
    assert WinogradForms(frozen(Residual())).fastest(torch.randn(2, 32, 32), least_gain=math.inf) is None


@pytest.mark.parametrize(
    ("module", "dtype"),
    [
        (nn.Conv2d(5, 1, 5, padding=1), torch.float32),
        (nn.Conv2d(5, 1, 3), torch.float32),
        (nn.Conv2d(5, 1, 3, padding=1), torch.float64),
        (Counting(), torch.float32),
    ],
    ids=["kernels of 5 x 5", "no border", "double precision", "with a memory"],
)
def test_an_artifact_that_cannot_have_a_form_has_none(module: nn.Module, dtype: torch.dtype) -> None:
    images = torch.zeros(5, 8, 8, dtype=dtype)
    assert WinogradForms(frozen(module.to(dtype))).fastest(images, least_gain=-math.inf) is None
