"""The forward pass on CUDA: what of it can be seen without a device, and all of it where there is one."""

from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from torch import nn

from limner_server.executor.cuda import PROBABILITY_TOLERANCE, CudaForward, Folded, fold_batch_norms
from limner_server.networks.artifact import Artifact
from limner_server.networks.reference import ReferenceSlices
from limner_server.networks.resnet import build_network

SIZE = 32


def artifact(architecture: str = "resnet18") -> Artifact:
    """A network whose batch normalisations all do something."""
    torch.manual_seed(0)
    network = build_network(architecture, 3)
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = 0.2 * torch.randn(module.num_features)
            module.running_var = 0.5 + torch.rand(module.num_features)
    reference = ReferenceSlices.of(network.eval(), torch.randn(12, 1, SIZE, SIZE))
    return Artifact(network, temperature=1.7, reference=reference)


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(8, SIZE, SIZE, generator=torch.Generator().manual_seed(1)) * 1000


@pytest.mark.parametrize("architecture", ["resnet18", "resnet50"])
@torch.inference_mode()
def test_folding_leaves_no_batch_normalisation_and_the_same_numbers(architecture: str, images: torch.Tensor) -> None:
    whole = artifact(architecture)
    before = whole(images)
    folded = Folded(whole, torch.float32)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    for found, expected in zip(folded(images), before, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-3)
    for found, expected in zip(whole(images), before, strict=True):
        assert torch.equal(found, expected), "the artifact itself is left as it was"
    assert fold_batch_norms(whole.network).stem[0].bias is not None


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_a_short_type_answers_in_float32_and_nearby(dtype: torch.dtype, images: torch.Tensor) -> None:
    whole = artifact()
    logits, probabilities, embedding, distance = Folded(whole, dtype)(images)
    assert {output.dtype for output in (logits, probabilities, embedding, distance)} == {torch.float32}
    torch.testing.assert_close(distance, whole(images)[3], rtol=0.02, atol=0)
    assert 0 < (probabilities - whole(images)[1]).abs().max() < 10 * PROBABILITY_TOLERANCE


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@pytest.mark.parametrize(("precision", "tolerance"), [("float32", 1e-4), ("auto", PROBABILITY_TOLERANCE)])
def test_batches_of_any_size_from_several_threads_on_a_device(precision: str, tolerance: float) -> None:
    device = torch.device("cuda")
    whole = artifact().to(device)
    forward = CudaForward(whole, device, precision)
    assert forward.warm(SIZE, 6) == 6

    def run(seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)
        for _ in range(30):
            n = int(torch.randint(1, 7, (1,), generator=generator))
            images = torch.rand(n, SIZE, SIZE, generator=generator).pin_memory()
            with torch.inference_mode():
                expected = whole(images.to(device))[1].cpu()
            torch.testing.assert_close(forward(images)[1], expected, rtol=0, atol=tolerance)

    with ThreadPoolExecutor(forward.lanes) as pool:
        list(pool.map(run, range(4)))
