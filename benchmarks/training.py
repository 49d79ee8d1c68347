"""training: images/s of the Trainer as a job runs it, over those of the least loop that trains a torchvision network.

Both train one fold's network of the default training, from its first weights to its last: the same slices in memory,
optimiser, loss, batch size, epochs and number format. Ours also augments, schedules, counts, checks, logs for
TensorBoard, writes checkpoints and keeps to deterministic algorithms; the loop does none of it, and has its tensors in
whichever memory format is the faster.
"""

import os
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor, nn
from torchvision.models import resnet18

from benchmarks.harness import PAIRS, Result, interleaved
from benchmarks.models import LABELS, random_slices
from limner_server.networks.artifact import normalise
from limner_server.training.config import TrainingConfig
from limner_server.training.loop import NetworkPlan, Trainer, make_repeatable
from limner_server.training.tracking import Scalars

NAME = "training"
SUMMARY = (
    "images/s of a fold's training / of a minimal torchvision loop on the same tensors (ResNet-18, 64x64, batch 32)"
)

_BAR = 0.9
_SLICES = 216
"""Of a fold of the phantom: 18 subjects."""


def run(pairs: int = PAIRS) -> Result:
    """Measure in pairs of whole networks."""
    config = TrainingConfig()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    slices = normalise(torch.from_numpy(random_slices(_SLICES, config.grid.size))).to(device)
    labels = torch.arange(_SLICES, device=device) % len(LABELS)
    torch.set_num_threads(os.cpu_count() or 1)
    torch.set_flush_denormal(True)
    formats = (torch.contiguous_format, torch.channels_last)
    once = config.model_copy(update={"epochs": 1})
    best = min(formats, key=lambda form: _seconds(lambda: _minimal(slices, labels, once, form)))
    images = config.epochs * _SLICES
    found = interleaved(
        lambda: images / _seconds(lambda: _ours(slices, labels, config)),
        lambda: images / _seconds(lambda: _minimal(slices, labels, config, best)),
        pairs,
    )
    figures = {
        "ours_images_per_s": statistics.median(found.ours),
        "reference_images_per_s": statistics.median(found.reference),
        "reference_channels_last": float(best is torch.channels_last),
        "threads": torch.get_num_threads(),
    }
    return Result(NAME, "images/s of the Trainer / of the minimal loop", _BAR, False, found.ratios, figures)


def _seconds(work: Callable[[], None]) -> float:
    started = time.perf_counter()
    work()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter() - started


def _ours(slices: Tensor, labels: Tensor, config: TrainingConfig) -> None:
    make_repeatable(torch.get_num_threads())
    with TemporaryDirectory() as folder, Scalars(Path(folder) / "tensorboard") as scalars:
        trainer = Trainer(slices, labels, len(LABELS), config, slices.device)
        plan = NetworkPlan(0, np.arange(len(slices)), config.epochs, Path(folder) / "0.pt")
        trainer.train(plan, lambda _: None, scalars.follow(0, "fold 1 of 3"))
    torch.use_deterministic_algorithms(False)


def _minimal(slices: Tensor, labels: Tensor, config: TrainingConfig, form: torch.memory_format) -> None:
    device = slices.device
    network = resnet18(num_classes=len(LABELS))
    network.conv1 = nn.Conv2d(1, 64, kernel_size=7, stride=2, padding=3, bias=False)
    network = network.to(device).to(memory_format=form).train()
    optimiser = torch.optim.AdamW(
        network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
    )
    criterion = nn.CrossEntropyLoss(label_smoothing=config.label_smoothing)
    for _ in range(config.epochs):
        for part in torch.randperm(len(slices), device=device).split(config.batch_size):
            with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda"):
                loss = criterion(network(slices[part].contiguous(memory_format=form)), labels[part])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
