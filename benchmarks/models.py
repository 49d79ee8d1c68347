"""The models that benchmarks run: untrained ones, published as trained ones are, and their bare forward pass."""

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
_BATCH_SIZES = (1, 4, 16, 32)

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


def best_forward(model: Published, batch_size: int) -> Forward:
    """The fastest form of the artifact's forward pass on this machine with batches of one size."""
    images = torch.from_numpy(random_slices(batch_size, model.grid.size))
    forms = {form: _seconds(form, images) for form in _forms(model)}
    return min(forms, key=lambda form: forms[form])


def best_batch_size(forward: Forward, size: int) -> int:
    """The batch size with which a forward pass scores most slices in a second."""
    slices = torch.from_numpy(random_slices(max(_BATCH_SIZES), size))
    return min(_BATCH_SIZES, key=lambda n: _seconds(forward, slices[:n]) / n)


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
def _seconds(forward: Forward, images: Tensor, runs: int = 5) -> float:
    """Least time of a few runs, after TorchScript has optimised itself."""
    for _ in range(2):
        forward(images)
    times = []
    for _ in range(runs):
        started = time.perf_counter()
        forward(images)
        times.append(time.perf_counter() - started)
    return min(times)


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
