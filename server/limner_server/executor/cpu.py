"""The forward pass on the CPU, in the fastest exact form that this machine has: found by trying when it is warmed.

Three forms compete for every batch size: the frozen artifact in channels-last order; the same fused by oneDNN Graph,
which keeps its weights in the processor's own layout but is tied to one shape and one number of threads, and whose
ReLU makes 0 of NaN: images must be such that none arises; and that with convolutions by Winograd's algorithm
(`winograd`). What else was tried, and all figures: docs/performance.md.
"""

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial

import torch
from torch import Tensor

from limner_server.executor.engine import bucket_sizes
from limner_server.executor.winograd import Forward, WinogradForms, fastest_seconds

_CORES = torch.get_num_threads()
"""What torch takes by itself. Asked at import: later it is what any thread last set."""

_LONGEST_BATCH_S = 0.15
"""Batches grow until one takes so long: nothing is gained by then, and what arrives meanwhile has to wait."""

_WARM_RUNS = 2
"""TorchScript looks at types and shapes in the first run, and compiles in the second."""

_TOLERANCE = 1e-4

_fusion = threading.Lock()


class CpuForward:
    """Runs batches side by side, one core each: no core waits for another. A lone image gets all of them.

    Parameters
    ----------
    artifact
        The loaded artifact, in channels-last order.
    threads
        Cores to use; 0: as many as torch takes by itself.
    """

    spread = True

    def __init__(self, artifact: torch.jit.ScriptModule, threads: int = 0) -> None:
        self._artifact = artifact
        self._frozen = torch.jit.freeze(artifact)
        self.lanes = threads or _CORES
        self._lone: Forward = self._frozen
        self._by_size: dict[int, Forward] = {}
        self._plans: list[list[int]] = []
        self._under_way = 0
        self._changed = threading.Lock()

    def warm(self, grid_size: int, max_batch_size: int) -> int:
        """Find the fastest form for batches of 1, 2, 4, ... images; return the largest size worth forming."""
        images = torch.rand(max_batch_size, grid_size, grid_size, generator=torch.Generator().manual_seed(0))
        winograd = WinogradForms(self._frozen)
        seconds: dict[int, float] = {}
        with use_threads(1):
            for size in bucket_sizes(max_batch_size):
                self._by_size[size], seconds[size] = self._fastest(images[:size], winograd)
                if seconds[size] >= _LONGEST_BATCH_S:
                    break
        self._lone = self._by_size[1]
        if self.lanes > 1:
            with use_threads(self.lanes):  # without Winograd's algorithm: one image is too little for it
                self._lone, _ = self._fastest(images[:1])
        self._plans = fastest_plans(seconds)
        return max(seconds)

    @contextmanager
    def turn(self, images: int) -> Iterator[bool]:
        """Take a lane for a batch of so many images; says whether it is a lone image, which gets all cores."""
        with self._changed:
            self._under_way += 1
            alone = images == 1 and self._under_way == 1
        try:
            with use_threads(self.lanes if alone else 1):
                yield alone
        finally:
            with self._changed:
                self._under_way -= 1

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> tuple[Tensor, ...]:
        """What the artifact's forward gives for images `(n, s, s)`, of any n, once warmed."""
        n = len(images)
        with self.turn(n) as alone:
            if alone:
                return self._lone(images)
            found = []
            while len(images):
                size = self._plans[min(len(images), len(self._plans) - 1)][0]
                part = images[:size]
                if len(part) < size:
                    part = torch.cat([part, part.new_zeros(size - len(part), *part.shape[1:])])
                found.append(self._by_size[size](part))
                images = images[size:]
            return tuple(torch.cat(parts)[:n] for parts in zip(*found, strict=True))

    @torch.inference_mode()
    def _fastest(self, images: Tensor, winograd: WinogradForms | None = None) -> tuple[Forward, float]:
        """The form that is fastest for batches of this size, and its time in seconds."""
        expected = _warm(self._frozen, images)
        forms = [self._frozen, *_exact(torch.jit.freeze(self._artifact), images, expected)]
        seconds = _seconds(forms, images)
        # Half of what fusing gains: a form is dear to compile, but single convolutions are hard to time.
        form = winograd and winograd.fastest(images, least_gain=(seconds[0] - min(seconds)) / 2)
        if form:
            forms = [forms[seconds.index(min(seconds))], *_exact(form, images, expected)]
            seconds = _seconds(forms, images)
        least = min(seconds)
        return forms[seconds.index(least)], least


def fastest_plans(seconds: Mapping[int, float]) -> list[list[int]]:
    """For 0, 1, 2, ... images the sizes of the batches that answer them soonest, the last of them perhaps not full.

    Parameters
    ----------
    seconds
        Time of a batch of each size; the largest size is the last number that is planned for.
    """
    plans: list[list[int]] = [[]]
    for n in range(1, max(seconds) + 1):
        candidates = [[size, *plans[max(0, n - size)]] for size in seconds]
        plans.append(min(candidates, key=lambda plan: sum(seconds[size] for size in plan)))
    return [sorted(plan, reverse=True) for plan in plans]


@contextmanager
def use_threads(count: int) -> Iterator[None]:
    """Let what this thread computes meanwhile run on so many cores. OpenMP keeps the number for each calling thread."""
    before = torch.get_num_threads()
    if count != before:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        if count != before:
            torch.set_num_threads(before)


def _warm(form: Forward, images: Tensor) -> tuple[Tensor, ...]:
    """The outputs of a form that has now seen its shape often enough for TorchScript to have optimised it."""
    for _ in range(_WARM_RUNS):
        outputs = form(images)
    return outputs


def _exact(form: Forward, images: Tensor, expected: Sequence[Tensor]) -> list[Forward]:
    """A form that has not run yet, fused by oneDNN Graph; none where its outputs are others than expected."""
    with _fusion:
        torch.jit.enable_onednn_fusion(True)
        try:
            found = _warm(form, images)
        finally:
            torch.jit.enable_onednn_fusion(False)
    exact = all(
        torch.allclose(ours, theirs, rtol=_TOLERANCE, atol=_TOLERANCE, equal_nan=True)
        for ours, theirs in zip(found, expected, strict=True)
    )
    return [form] if exact else []


def _seconds(forms: Sequence[Forward], images: Tensor) -> list[float]:
    return fastest_seconds(*(partial(form, images) for form in forms))
