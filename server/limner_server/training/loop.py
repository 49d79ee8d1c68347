"""Trains one network, epoch by epoch, so that a killed run goes on to the same weights. Knows nothing of folds.

Every draw comes from a generator made of (seed, network, epoch): an epoch depends on the checkpoint before it, and on
nothing else.
"""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limner_server.errors import LeftOffError, LimnerError
from limner_server.networks.resnet import Network, build_network
from limner_server.training.augment import augment
from limner_server.training.config import TrainingConfig
from limner_server.training.distributed import World
from limner_server.training.run import Run, Within
from limner_server.training.stopping import enough

EVALUATION_BATCH = 64
MIN_SAVE_INTERVAL = 20
"""Time between two checkpoints over the time that one takes: saving costs a twentieth of a training at most."""


@dataclass(frozen=True, eq=False)
class StepReport:
    """Where one network stands; `loss`, `accuracy` and `images_per_second` are of the epoch so far.

    Looking at loss or accuracy waits for the device, so look now and then.
    """

    epoch: int
    epochs: int
    images_done: int
    images_per_second: float
    totals: Tensor
    """`(2,)` loss times slices, and slices classified rightly."""
    seen: int
    """Slices of the epoch so far."""

    @property
    def loss(self) -> float:
        """Mean loss of a batch, weighed by its size."""
        return float(self.totals[0]) / self.seen

    @property
    def accuracy(self) -> float:
        """Share of the slices that were classified rightly when they were learnt from."""
        return float(self.totals[1]) / self.seen


@dataclass(frozen=True)
class EpochReport:
    """What one epoch came to."""

    epoch: int
    loss: float
    accuracy: float
    images_per_second: float
    learning_rate: float
    """Of its last step."""
    watched_loss: float | None
    """On the watched subjects, where there are any."""


@dataclass(frozen=True)
class NetworkPlan:
    """Which network of a training this is, and what it learns from.

    Attributes
    ----------
    index
        Number of the network in its training: part of every seed.
    rows
        `(m,)` indices of its training slices.
    epochs
        Passes over them that the one-cycle schedule is for.
    checkpoint
        File that holds its state after an epoch, not after each where writing is slow.
    pretrained
        torchvision weights to start from, or None.
    watched
        `(w,)` indices of other slices, on which its loss decides when it stops (`config.patience`) and which epoch's
        weights are taken. Without any it learns to the end.
    last
        Epoch after which it stops at the latest; None: `epochs`.
    """

    index: int
    rows: NDArray[np.int64]
    epochs: int
    checkpoint: Path
    pretrained: Path | None = None
    watched: NDArray[np.int64] = field(default_factory=lambda: np.empty(0, np.int64))
    last: int | None = None

    @property
    def longest(self) -> int:
        """Epochs that it learns at most."""
        return self.epochs if self.last is None else self.last

    @property
    def images(self) -> int:
        """Slices that it learns from at most, each as often as it is seen."""
        return self.longest * len(self.rows)

    def until(self, last: int) -> "NetworkPlan":
        """The same schedule, cut after an epoch."""
        return replace(self, last=min(last, self.epochs))


@dataclass(frozen=True, eq=False)
class TrainedNetwork:
    """A network in eval mode, the epochs that its weights have learnt, and the slices it was shown to find them."""

    network: Network
    epochs: int
    images: int


class Trainer:
    """Trains networks on one cohort that lies normalised on one device.

    Parameters
    ----------
    slices
        Normalised slices of the whole cohort `(n, 1, s, s)`.
    labels
        `(n,)` int64, on the CPU.
    classes
        Number of labels.
    config
        How.
    device
        Where.
    world
        The processes that train together; each has a Trainer on the same cohort, and calls `train` with the same plans.
    leaves_off
        Asked before each step whether to keep where it is and raise `LeftOffError`; only where `world` is one process.
    """

    def __init__(
        self,
        slices: Tensor,
        labels: Tensor,
        classes: int,
        config: TrainingConfig,
        device: torch.device,
        world: World | None = None,
        leaves_off: Callable[[], bool] = lambda: False,
    ) -> None:
        self._slices = slices.to(device)
        self._labels = labels.to(device)
        self._classes = classes
        self._config = config
        self._device = device
        self._world = world or World()
        self._leaves_off = leaves_off

    def train(
        self,
        plan: NetworkPlan,
        on_step: Callable[[StepReport], None],
        on_epoch: Callable[[EpochReport], None] = lambda _: None,
    ) -> TrainedNetwork:
        """Train one network, or what is left of it according to its checkpoint; only the first process reports.

        Raises
        ------
        LimnerError
            The loss became infinite or not a number.
        LeftOffError
            It was to leave off; the checkpoint says where.
        """
        steps = plan.epochs * steps_per_epoch(len(plan.rows), self._config.batch_size)
        run = Run(self._build(plan), self._config, steps, self._weights(plan.rows), self._device, self._world)
        run.restore(plan.checkpoint)
        saved_at = save_s = 0.0
        while not run.finished:
            report = self._run_epoch(run, plan, on_step)
            if self._world.leads:
                on_epoch(report)
            if run.epochs_done == plan.longest or enough(run.losses, self._config.patience):
                run.finish()
            started = time.monotonic()
            if self._world.leads and (run.finished or started - saved_at >= MIN_SAVE_INTERVAL * save_s):
                run.save(plan.checkpoint)
                saved_at = time.monotonic()
                save_s = saved_at - started
        network = self._plain(run.network, plan).eval()
        return TrainedNetwork(network, run.epochs_taken, run.epochs_done * len(plan.rows))

    def logits(self, network: Network, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Logits `(m, k)` of the slices of some rows `(m,)`."""
        network.eval()
        if len(rows) == 0:
            return np.empty((0, self._classes), np.float32)
        with torch.inference_mode():
            parts = [network(self._slices[part]) for part in self._index(rows).split(EVALUATION_BATCH)]
        return torch.cat(parts).float().cpu().numpy()

    def channel_means(self, network: Network, rows: NDArray[np.int64]) -> list[Tensor]:
        """Mean of each channel of the five layers over the slices of some rows `(m,)`: `(C_l,)` each."""
        network.eval()
        totals = [torch.zeros(count, dtype=torch.float64, device=self._device) for count in network.channels()]
        with torch.inference_mode():
            for part in self._index(rows).split(EVALUATION_BATCH):
                for total, maps in zip(totals, network.maps(self._slices[part]), strict=True):
                    total += maps.mean(dim=(2, 3)).double().sum(dim=0)
        return [(total / len(rows)).float().cpu() for total in totals]

    def _build(self, plan: NetworkPlan) -> Network:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derived_seed(self._config.seed, plan.index))
            network = build_network(self._config.architecture, self._classes, plan.pretrained)
        return network.to(self._device).to(memory_format=torch.channels_last)

    def _plain(self, network: Network, plan: NetworkPlan) -> Network:
        """The network without what training in several processes puts into it (`World.learner`)."""
        if self._world.size == 1:
            return network
        plain = self._build(plan)
        plain.load_state_dict(network.state_dict())
        return plain

    def _weights(self, rows: NDArray[np.int64]) -> Tensor | None:
        if not self._config.class_weights:
            return None
        return class_weights(self._labels[self._index(rows)].cpu().numpy(), self._classes).to(self._device)

    def _index(self, rows: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(rows).to(self._device)

    def _run_epoch(self, run: Run, plan: NetworkPlan, on_step: Callable[[StepReport], None]) -> EpochReport:
        epoch, count = run.epochs_done + 1, len(plan.rows)
        generator = torch.Generator().manual_seed(derived_seed(self._config.seed, plan.index, epoch))
        order = self._index(plan.rows[torch.randperm(count, generator=generator).numpy()])
        batches = order.tensor_split(steps_per_epoch(count, self._config.batch_size))
        done, totals = 0, torch.zeros(2, dtype=torch.float64, device=self._device)
        if run.within is not None:
            done, totals = run.within.steps, run.within.totals
            generator.set_state(run.within.generator)
        seen = seen_before = sum(map(len, batches[:done]))
        started = time.monotonic()
        run.network.train()
        for number, index in enumerate(batches[done:], done):
            if self._leaves_off():
                run.within = Within(number, generator.get_state(), totals)
                run.save(plan.checkpoint)
                raise LeftOffError
            slices = augment(self._slices[index], generator, self._config.augmentation)
            share, weight = self._world.share(len(index))
            figures = run.step(slices.contiguous(memory_format=torch.channels_last), self._labels[index], share, weight)
            # A new tensor each time: the reports of earlier steps keep theirs.
            totals = totals + self._world.total(figures)
            seen += len(index)
            speed = (seen - seen_before) / (time.monotonic() - started)
            if self._world.leads:
                on_step(StepReport(epoch, plan.longest, (epoch - 1) * count + seen, speed, totals, seen))
        last = StepReport(epoch, plan.epochs, epoch * count, 0.0, totals, seen)
        if not np.isfinite(last.loss):
            raise LimnerError(f"the loss became {last.loss} in epoch {epoch}; a lower learning_rate may help")
        speed = (seen - seen_before) / (time.monotonic() - started)
        self._world.average_statistics(run.network)
        run.end_epoch(self._watch(run, plan.watched))
        watched_loss = run.losses[-1] if run.losses else None
        return EpochReport(epoch, last.loss, last.accuracy, speed, run.learning_rate, watched_loss)

    def _watch(self, run: Run, rows: NDArray[np.int64]) -> float | None:
        """Loss on the watched slices, as the first process finds it; None without any."""
        if len(rows) == 0:
            return None
        loss = 0.0
        if self._world.leads:
            logits = torch.from_numpy(self.logits(run.network, rows)).to(self._device)
            loss = run.loss(logits, self._labels[self._index(rows)])
        return self._world.agree(loss)


def make_repeatable(threads: int) -> None:
    """Set torch up so that two runs with one seed on one machine agree, on the CPU with so many threads."""
    # cuBLAS reads this when it starts (docs.nvidia.com/cuda/cublas, 'Results reproducibility').
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    # Nothing here reads memory that it has not written; filling it first costs time and no more.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.set_flush_denormal(True)
    torch.set_num_threads(threads)


def class_weights(labels: NDArray[np.int64], classes: int) -> Tensor:
    """Weights `(k,)` float32 inverse to the labels' frequencies `n / (k n_l)`: a slice's is 1 on average.

    A label without slices counts as if it had one.
    """
    counts = np.bincount(labels, minlength=classes)
    return torch.from_numpy(len(labels) / (classes * np.maximum(counts, 1))).float()


def steps_per_epoch(slices: int, batch_size: int) -> int:
    """Steps of one epoch: batches of nearly one size, at most `batch_size`, and none of a single slice (batch norm)."""
    return max(1, min(-(-slices // batch_size), slices // 2))


def derived_seed(*parts: int) -> int:
    """A 64-bit seed from numbers of which any change gives an unrelated stream."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
