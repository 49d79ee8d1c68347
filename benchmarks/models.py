"""The models that benchmarks run: untrained ones, published as trained ones are, and their bare forward pass."""

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limner.imaging.grid import Grid
from limner_server.networks.artifact import HIGH_PERCENTILE, LOW_PERCENTILE, Artifact, export, load
from limner_server.networks.card import Calibration, CohortSummary, ModelCard, Normalisation, Threshold
from limner_server.networks.repository import ARTIFACT_FILE, CARD_FILE, ModelRepository
from limner_server.networks.resnet import build_network

LABELS = ("no", "yes")

Forward = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Published:
    """An untrained model in a repository: its name there, its grid, its artifact."""

    name: str
    grid: Grid
    path: Path
    digest: str


def publish_untrained(repository: Path, name: str, architecture: str = "resnet18", size: int = 96) -> Published:
    """Publish a network with random weights, which takes as long to run as a trained one."""
    torch.manual_seed(0)
    network = build_network(architecture, len(LABELS))
    channels = network.channels()
    grid = Grid(size=size)
    with TemporaryDirectory() as folder:
        staging = Path(folder)
        digest = export(Artifact(network), staging / ARTIFACT_FILE)
        card = _card(name, architecture, channels, grid, digest)
        (staging / CARD_FILE).write_text(card.model_dump_json())
        models = ModelRepository(repository)
        version = models.publish(name, staging)
    return Published(name, grid, models.get(name, version).artifact, digest)


def random_slices(count: int, size: int) -> NDArray[np.float32]:
    """Slices `(count, size, size)` on a grid, with the intensities of no particular scanner."""
    return np.random.default_rng(0).gamma(2.0, 100.0, (count, size, size)).astype(np.float32)


@dataclass(frozen=True)
class Bare:
    """A model without anything around it: the form, number of threads and batch size that are fastest here and now."""

    forward: Forward
    threads: int
    batch_size: int


def fastest_bare(model: Published, batch_sizes: tuple[int, ...] = (1, 4, 16, 32)) -> Bare:
    """Find the fastest way to run an artifact on this machine, and leave torch at its number of threads.

    More threads are not always faster: where other programs keep the cores busy, they wait for each other and lose
    several times what they gain. A reference that suffers from that would flatter whatever is held against it.
    """
    images = torch.from_numpy(random_slices(max(batch_sizes), model.grid.size))
    forms = _forms(model)
    candidates = [(threads, form) for threads in range(1, torch.get_num_threads() + 1) for form in forms]
    threads, forward = min(candidates, key=lambda each: _seconds(each[1], images, each[0]))
    batch_size = min(batch_sizes, key=lambda n: _seconds(forward, images[:n], threads) / n)
    torch.set_num_threads(threads)
    return Bare(forward, threads, batch_size)


def _forms(model: Published) -> list[Forward]:
    plain = load(model.path, model.digest)
    laid_out = load(model.path, model.digest).to(memory_format=torch.channels_last)
    return [
        plain,
        torch.jit.freeze(plain),
        torch.jit.freeze(laid_out),
        torch.jit.optimize_for_inference(torch.jit.freeze(plain)),
        torch.jit.optimize_for_inference(torch.jit.freeze(laid_out)),
    ]


@torch.inference_mode()
def _seconds(forward: Forward, images: Tensor, threads: int, runs: int = 5) -> float:
    """Median time of a few runs, after TorchScript has optimised itself."""
    torch.set_num_threads(threads)
    for _ in range(2):
        forward(images)
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        forward(images)
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def _card(name: str, architecture: str, channels: tuple[int, ...], grid: Grid, digest: str) -> ModelCard:
    return ModelCard(
        name=name,
        training="untrained",
        labels=LABELS,
        grid=grid,
        normalisation=Normalisation(low_percentile=LOW_PERCENTILE, high_percentile=HIGH_PERCENTILE),
        architecture=architecture,
        channels=channels,
        cohort=CohortSummary(name="none", digest="0" * 64, subjects={}, slices={}),
        seed=0,
        config={},
        folds=0,
        metrics=(),
        out_of_fold=(),
        calibration=Calibration(temperature=1.0, brier_before=0, brier_after=0, ece_before=0, ece_after=0),
        threshold=Threshold(value=0.5, rule="none: the model is untrained"),
        versions={"torch": torch.__version__},
        created=datetime.now(UTC),
        digest=digest,
    )
