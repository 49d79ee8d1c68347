"""Trains one network, epoch by epoch, so that a killed run goes on to the same weights. Knows nothing of folds.

Every draw comes from a generator made of (seed, network, epoch): an epoch depends on the checkpoint before it, and on
nothing else.
"""

import io
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from limner_server.errors import LimnerError
from limner_server.files import write_atomic
from limner_server.networks.resnet import Network, build_network
from limner_server.training.config import TrainingConfig
from limner_server.training.data import augment

EVALUATION_BATCH = 64
MIN_SAVE_INTERVAL = 20
"""Time between two checkpoints over the time that one takes: saving costs a twentieth of a training at most."""


@dataclass(frozen=True)
class StepReport:
    """Where one network stands; `loss`, `accuracy` and `images_per_second` are of the epoch so far."""

    epoch: int
    epochs: int
    images_done: int
    loss: float
    accuracy: float
    images_per_second: float


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
        Passes over them.
    checkpoint
        File that holds its state after an epoch, not after each where writing is slow.
    pretrained
        torchvision weights to start from, or None.
    """

    index: int
    rows: NDArray[np.int64]
    epochs: int
    checkpoint: Path
    pretrained: Path | None = None


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
    """

    def __init__(
        self, slices: Tensor, labels: Tensor, classes: int, config: TrainingConfig, device: torch.device
    ) -> None:
        self._slices = slices.to(device)
        self._labels = labels.to(device)
        self._classes = classes
        self._config = config
        self._device = device

    def train(self, plan: NetworkPlan, on_step: Callable[[StepReport], None]) -> Network:
        """Train one network, or what is left of it according to its checkpoint, and return it in eval mode."""
        steps = plan.epochs * steps_per_epoch(len(plan.rows), self._config.batch_size)
        run = _Run(self._build(plan), self._config, steps, self._device)
        saved_at = save_s = 0.0
        for epoch in range(run.restore(plan.checkpoint), plan.epochs):
            self._run_epoch(run, plan, epoch, on_step)
            finished, started = epoch + 1 == plan.epochs, time.monotonic()
            if finished or started - saved_at >= MIN_SAVE_INTERVAL * save_s:
                run.save(plan.checkpoint, epoch + 1, finished=finished)
                saved_at = time.monotonic()
                save_s = saved_at - started
        return run.network.eval()

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

    def _index(self, rows: NDArray[np.int64]) -> Tensor:
        return torch.from_numpy(rows).to(self._device)

    def _run_epoch(self, run: "_Run", plan: NetworkPlan, epoch: int, on_step: Callable[[StepReport], None]) -> None:
        generator = torch.Generator().manual_seed(derived_seed(self._config.seed, plan.index, epoch + 1))
        count = len(plan.rows)
        order = torch.randperm(count, generator=generator).numpy()
        started, seen = time.monotonic(), 0
        loss_sum, right = 0.0, 0
        run.network.train()
        for part in np.array_split(order, steps_per_epoch(count, self._config.batch_size)):
            index = self._index(plan.rows[part])
            slices = augment(self._slices[index], generator).contiguous(memory_format=torch.channels_last)
            loss, correct = run.step(slices, self._labels[index])
            seen += len(part)
            loss_sum += loss * len(part)
            right += correct
            on_step(
                StepReport(
                    epoch=epoch + 1,
                    epochs=plan.epochs,
                    images_done=epoch * count + seen,
                    loss=loss_sum / seen,
                    accuracy=right / seen,
                    images_per_second=seen / (time.monotonic() - started),
                )
            )


class _Run:
    """One network with its optimiser and schedule: what a checkpoint holds."""

    def __init__(self, network: Network, config: TrainingConfig, steps: int, device: torch.device) -> None:
        self.network = network
        self._optimiser = torch.optim.AdamW(
            network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimiser, max_lr=config.learning_rate, total_steps=steps
        )
        self._loss = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
        self._device = device

    def step(self, slices: Tensor, labels: Tensor) -> tuple[float, int]:
        """Learn from one batch; return its mean loss and the number of slices classified rightly."""
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type == "cuda"):
            logits = self.network(slices)
            loss = self._loss(logits.float(), labels)
        self._optimiser.zero_grad(set_to_none=True)
        loss.backward()
        self._optimiser.step()
        self._schedule.step()
        if not torch.isfinite(loss):
            raise LimnerError(f"the loss became {loss.item()}; a lower learning_rate may help")
        return loss.item(), int((logits.argmax(dim=1) == labels).sum())

    def save(self, path: Path, epochs_done: int, *, finished: bool) -> None:
        """Replace the checkpoint; a finished network needs its weights only, a third of the bytes."""
        state: dict[str, Any] = {"epochs_done": epochs_done, "network": self.network.state_dict()}
        if not finished:
            state |= {"optimiser": self._optimiser.state_dict(), "schedule": self._schedule.state_dict()}
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(path, buffer.getvalue())

    def restore(self, path: Path) -> int:
        """Take up the state of a checkpoint; return the number of epochs that are done, 0 without a file."""
        if not path.exists():
            return 0
        state = torch.load(path, map_location=self._device, weights_only=True)
        self.network.load_state_dict(state["network"])
        if "optimiser" in state:
            self._optimiser.load_state_dict(state["optimiser"])
            self._schedule.load_state_dict(state["schedule"])
        return int(state["epochs_done"])


def steps_per_epoch(slices: int, batch_size: int) -> int:
    """Steps of one epoch: batches of nearly one size, at most `batch_size`, and none of a single slice (batch norm)."""
    return max(1, min(-(-slices // batch_size), slices // 2))


def derived_seed(*parts: int) -> int:
    """A 64-bit seed from numbers of which any change gives an unrelated stream."""
    return int(np.random.SeedSequence(parts).generate_state(1, np.uint64)[0] >> 1)
