"""The models that benchmarks run: untrained ones, published as trained ones are, and their bare forward pass."""

import math
import os
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import lru_cache, partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from limner.imaging.grid import Grid
from limner_server.executor.cuda import Folded
from limner_server.executor.winograd import Forward, WinogradForms, fastest_seconds
from limner_server.networks.artifact import HIGH_PERCENTILE, LOW_PERCENTILE, Artifact, eager, export, load, normalise
from limner_server.networks.card import (
    Calibration,
    CohortSummary,
    ModelCard,
    Normalisation,
    Reference,
    Threshold,
)
from limner_server.networks.reference import ReferenceSlices
from limner_server.networks.repository import ARTIFACT_FILE, CARD_FILE, ModelRepository
from limner_server.networks.resnet import build_network

LABELS = ("no", "yes")
FUSED = "fused by oneDNN Graph"
WINOGRAD = "fused, convolutions by Winograd"
FUSED_FORMS = (FUSED, WINOGRAD)

REFERENCE_SLICES = 324
"""As many as 27 subjects of the phantom have."""


@dataclass(frozen=True)
class Published:
    """An untrained model in a repository: its name there, its grid, its artifact."""

    name: str
    grid: Grid
    path: Path
    card: ModelCard

    @property
    def digest(self) -> str:
        """Digest of the artifact."""
        return self.card.digest


def publish_untrained(repository: Path, name: str, architecture: str = "resnet18", size: int = 96) -> Published:
    """Publish a network with random weights, which takes as long to run as a trained one."""
    channels, artifact = _untrained(architecture, size)
    return _publish(repository, name, architecture, channels, artifact, size)


@lru_cache(maxsize=4)
def _untrained(architecture: str, size: int) -> tuple[tuple[int, ...], Artifact]:
    # Kept, since its reference takes seconds of forward passes, and tests publish the same one time and again.
    torch.manual_seed(0)
    network = build_network(architecture, len(LABELS)).eval()
    slices = torch.from_numpy(random_slices(REFERENCE_SLICES, size))
    return network.channels(), Artifact(network, reference=ReferenceSlices.of(network, normalise(slices)))


class Identity(nn.Module):
    """Hands out the first row of each image: an artifact that costs nothing to run."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, probabilities and embedding of images `(n, s, s)`."""
        row = images[:, 0]
        return row[:, :2], torch.softmax(row[:, :2], dim=1), row

    @torch.jit.export
    def channel_means(self) -> list[Tensor]:
        """One mean for each layer, as an artifact has."""
        return [torch.zeros(1) for _ in range(5)]


def publish_identity(repository: Path, name: str, size: int) -> Published:
    """Publish a model that does nothing, on a grid of this size."""
    return publish_module(repository, name, Identity(), size)


def publish_module(repository: Path, name: str, module: nn.Module, size: int) -> Published:
    """Publish a module with the interface of `Identity` on a grid of this size."""
    return _publish(repository, name, "identity", (1, 1, 1, 1, size), module.eval(), size)


def random_slices(count: int, size: int) -> NDArray[np.float32]:
    """Slices `(count, size, size)` on a grid, with the intensities of no particular scanner."""
    return np.random.default_rng(0).gamma(2.0, 100.0, (count, size, size)).astype(np.float32)


@dataclass(frozen=True)
class Bare:
    """A model without anything around it: the form, number of threads and batch size that are fastest here and now."""

    forward: Forward
    form: str
    threads: int
    batch_size: int

    @torch.inference_mode()
    def loop(self, images: Tensor) -> None:
        """Run all images, batch by batch, and bring the outputs where numpy has them."""
        for first in range(0, len(images), self.batch_size):
            [output.numpy() for output in self.forward(images[first : first + self.batch_size])]


def fastest_bare(model: Published, batch_sizes: tuple[int, ...] = (1, 4, 16)) -> Bare:
    """Find the fastest way to run an artifact on this machine in one loop, and leave torch at its number of threads.

    More threads are not always faster: where other programs keep the cores busy, they wait for each other and lose
    several times what they gain. A reference that suffers from that would flatter whatever is held against it.
    """
    if torch.cuda.is_available():
        return fastest_cuda_graph(model)
    images = torch.from_numpy(random_slices(max(batch_sizes), model.grid.size))
    found: list[tuple[float, Bare]] = []
    for threads in range(1, (os.cpu_count() or 1) + 1):
        torch.set_num_threads(threads)
        for size in batch_sizes:
            for name, form in forms(model, images[:size]):
                each = seconds(form, images[:size], fused=name in FUSED_FORMS) / size
                found.append((each, Bare(form, name, threads, size)))
    best = min(found, key=lambda each: each[0])[1]
    torch.set_num_threads(best.threads)
    return best


@torch.inference_mode()
def fastest_cuda_graph(model: Published, batch_sizes: tuple[int, ...] = (16, 64, 256)) -> Bare:
    """Find the best batch size of a loop over one CUDA graph in bfloat16. Not run yet: no GPU was at hand."""
    found: list[tuple[float, Bare]] = []
    network = Folded(eager(load(model.path, model.digest, "cuda"), model.card), torch.bfloat16)
    for size in batch_sizes:
        images = torch.from_numpy(random_slices(size, model.grid.size)).pin_memory()
        forward = _cuda_graph(network, images)
        each = seconds(forward, images, fused=False) / size
        found.append((each, Bare(forward, "bfloat16, CUDA graph", 1, size)))
    return min(found, key=lambda each: each[0])[1]


def _cuda_graph(network: Folded, images: Tensor) -> Forward:
    """The forward pass for batches of one size as a graph, with images and outputs on the host."""
    place = images.cuda()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        network(place)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        outputs = network(place)

    def forward(batch: Tensor) -> tuple[Tensor, ...]:
        place.copy_(batch, non_blocking=True)
        graph.replay()
        return tuple(output.cpu() for output in outputs)

    return forward


def forms(model: Published, images: Tensor) -> list[tuple[str, Forward]]:
    """Every form of an artifact for batches like these, none of them run yet, so that each can settle for one."""
    plain = load(model.path, model.digest)
    laid_out = load(model.path, model.digest).to(memory_format=torch.channels_last)
    found: list[tuple[str, Forward]] = [
        ("frozen", torch.jit.freeze(plain)),
        ("frozen, channels last", torch.jit.freeze(laid_out)),
        ("optimised for inference", torch.jit.optimize_for_inference(torch.jit.freeze(laid_out))),
        (FUSED, torch.jit.freeze(laid_out)),
    ]
    winograd = WinogradForms(torch.jit.freeze(laid_out)).fastest(images, least_gain=-math.inf)
    return found if winograd is None else [*found, (WINOGRAD, winograd)]


@torch.inference_mode()
def seconds(forward: Forward, images: Tensor, *, fused: bool) -> float:
    """Time of the fastest of a few runs, after TorchScript has optimised itself."""
    torch.jit.enable_onednn_fusion(fused)
    for _ in range(3):
        forward(images)
    torch.jit.enable_onednn_fusion(False)
    (fastest,) = fastest_seconds(partial(forward, images))
    return fastest


def _publish(
    repository: Path, name: str, architecture: str, channels: tuple[int, ...], artifact: nn.Module, size: int
) -> Published:
    grid = Grid(size=size)
    with TemporaryDirectory() as folder:
        staging = Path(folder)
        digest = export(artifact, staging / ARTIFACT_FILE)
        card = _card(name, architecture, channels, grid, digest)
        if isinstance(artifact, Artifact):
            card = card.model_copy(update={"reference": _reference(artifact)})
        (staging / CARD_FILE).write_text(card.model_dump_json())
        models = ModelRepository(repository)
        version = models.publish(name, staging)
    return Published(name, grid, models.get(name, version).artifact, card)


def _reference(artifact: Artifact) -> Reference:
    """Made up: of slices of noise there are no subjects to hold out."""
    kept = artifact.reference
    return Reference(
        neighbours=kept.neighbours, slices=len(kept.slices), percentiles=tuple(np.linspace(0, 1, 101).tolist())
    )


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
