"""The forward pass on the CPU: whatever form and division it takes, the artifact's numbers."""

import math
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from limner_server.executor.cpu import CpuForward, _exact, fastest_plans, use_threads
from limner_server.executor.engine import bucket_sizes

SIZE = 8


class Sums(nn.Module):
    """A convolution whose answers are known: the sum of each image, and its negative."""

    def __init__(self) -> None:
        super().__init__()
        self.sum = nn.Conv2d(1, 1, SIZE, bias=False)
        self.sum.weight = nn.Parameter(torch.ones(1, 1, SIZE, SIZE), requires_grad=False)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        total = torch.relu(self.sum(images.unsqueeze(1))).flatten(1)
        logits = torch.cat([total, -total], dim=1)
        return logits, torch.softmax(logits, dim=1), total


@pytest.fixture(params=[1, 2, 3])
def forward(request: pytest.FixtureRequest) -> CpuForward:
    forward = CpuForward(torch.jit.script(Sums().eval()), threads=request.param)
    assert forward.warm(SIZE, 6) == 6, "batches of so small a network never take long"
    return forward


@pytest.mark.parametrize("n", [1, 2, 3, 5, 6, 7, 20])
def test_any_number_of_images_is_answered_exactly_and_in_order(forward: CpuForward, n: int) -> None:
    images = torch.arange(n, dtype=torch.float32)[:, None, None].expand(n, SIZE, SIZE).contiguous()
    logits, probabilities, embedding = forward(images)
    expected = SIZE**2 * torch.arange(n, dtype=torch.float32)
    assert logits[:, 0].tolist() == expected.tolist()
    assert embedding.flatten().tolist() == expected.tolist()
    assert torch.allclose(probabilities.sum(1), torch.ones(n))


def test_lanes_do_not_mix_their_answers(forward: CpuForward) -> None:
    def run(seed: int) -> None:
        generator = np.random.default_rng(seed)
        for _ in range(50):
            values = torch.from_numpy(generator.integers(0, 100, generator.integers(1, 8)).astype(np.float32))
            images = values[:, None, None].expand(-1, SIZE, SIZE).contiguous()
            assert forward(images)[0][:, 0].tolist() == (SIZE**2 * values).tolist()

    with ThreadPoolExecutor(forward.lanes) as pool:
        list(pool.map(run, range(2 * forward.lanes)))


def test_a_lone_image_gets_all_cores_and_what_comes_beside_it_one(forward: CpuForward) -> None:
    with forward.turn(1) as alone:
        assert alone
        assert torch.get_num_threads() == forward.lanes
        with forward.turn(1) as second:
            assert not second
            assert torch.get_num_threads() == 1
    with forward.turn(2) as alone:
        assert not alone
        assert torch.get_num_threads() == 1


def test_a_model_loaded_while_another_runs_gets_its_cores_all_the_same() -> None:
    """Every new thread takes over the number that any thread of torch last set."""
    before = CpuForward(torch.jit.script(Sums().eval())).lanes
    everywhere = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(1) as lane:
            lane.submit(torch.set_num_threads, before + 1).result()
        with ThreadPoolExecutor(1) as loader:
            assert loader.submit(torch.get_num_threads).result() == before + 1, "or this test shows nothing"
        with ThreadPoolExecutor(1) as loader:
            assert loader.submit(lambda: CpuForward(torch.jit.script(Sums().eval())).lanes).result() == before
    finally:
        torch.set_num_threads(everywhere)


def test_the_number_of_threads_is_put_back() -> None:
    before = torch.get_num_threads()
    with use_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("off", "kept"), [(0.0, True), (1e-5, True), (1e-2, False), (math.nan, False)])
def test_a_form_with_other_numbers_is_no_candidate(off: float, kept: bool) -> None:
    images = torch.ones(2, SIZE, SIZE)

    def form(images: Tensor) -> tuple[Tensor, Tensor]:
        return images, images + off

    assert _exact(form, images, (images, images)) == ([form] if kept else [])


@pytest.mark.parametrize(
    ("largest", "sizes"), [(1, [1]), (2, [1, 2]), (3, [1, 2, 3]), (16, [1, 2, 4, 8, 16]), (20, [1, 2, 4, 8, 16, 20])]
)
def test_sizes_of_batches_double_up_to_the_largest(largest: int, sizes: list[int]) -> None:
    assert bucket_sizes(largest) == sizes


@pytest.mark.parametrize(
    ("seconds", "plans"),
    [
        ({1: 1.0, 2: 2.0, 4: 4.0}, [[], [1], [2], [2, 1], [4]]),
        ({1: 3.0, 2: 4.0, 4: 5.0}, [[], [1], [2], [4], [4]]),
        ({1: 1.0, 2: 5.0, 3: 5.0}, [[], [1], [1, 1], [1, 1, 1]]),
    ],
    ids=["as they come", "large ones not full", "small ones"],
)
def test_plans_are_the_fastest_way_to_cover_the_images(seconds: dict[int, float], plans: list[list[int]]) -> None:
    found = fastest_plans(seconds)
    assert [sum(seconds[size] for size in plan) for plan in found] == [
        sum(seconds[size] for size in plan) for plan in plans
    ]
    assert [len(plan) for plan in found[:2]] == [0, 1]
    assert all(sum(plan) >= n for n, plan in enumerate(found))
