"""simulation: images per second of a simulation with all its checks, over the passes through the network that it needs.

A pass is one image through the network, forth and back or forth only. The bare reference makes the same passes, in
batches of the same sizes and on as many threads, from arrays in memory: no file, no normalisation, no sum, no loss.
"""

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from torch import Tensor

from benchmarks.cohorts import SLICES_PER_SUBJECT, StoredCohort, store_random
from benchmarks.harness import PAIRS, Result, interleaved
from benchmarks.models import LABELS, Published, publish_untrained, random_slices
from limner_server.explain import checks, faithfulness, pipeline, randomise, statistics
from limner_server.explain.job import SimulationRequest
from limner_server.explain.job import run as run_simulation
from limner_server.jobs.process import Reporter
from limner_server.networks.artifact import eager, load, margins, normalise
from limner_server.networks.card import HalfModel, HeldOutMargin, SiblingModel, SubjectPrediction
from limner_server.networks.repository import CARD_FILE
from limner_server.networks.resnet import LAYERS, Network

NAME = "simulation"
SUMMARY = "images/s of a simulation with all checks / its passes through the network, bare (ResNet-18, 64x64)"

_BAR = 0.8
_SIZE = 64
_SLICES = 240


@dataclass(frozen=True)
class World:
    """A model with the networks that every check needs, and the cohort of noise that is simulated from."""

    root: Path
    model: Published
    cohort: StoredCohort

    @classmethod
    def make(cls, root: Path, slices: int, size: int = _SIZE) -> "World":
        """Publish the model, untrained, and store so many slices on its grid."""
        model = publish_untrained(root / "models", "simulation", size=size)
        cohort = store_random(root, slices, size, model.grid.fov_mm / size)
        _add_judges(model, slices // SLICES_PER_SUBJECT)
        return cls(root, model, cohort)

    def request(self, folder: Path, steps: int = 150) -> None:
        """Make a job's folder, with a request of the defaults."""
        folder.mkdir()
        request = SimulationRequest(
            model=self.model.name,
            version=1,
            cohort=self.cohort.name,
            cohort_digest=self.cohort.snapshot().digest,
            steps=steps,
            database_url=self.cohort.url,
            data_dir=self.root,
            model_repository=self.root / "models",
            device="cpu",
        )
        (folder / "request.json").write_text(request.model_dump_json())


def run(pairs: int = PAIRS) -> Result:
    """Simulate, and make the passes bare, in turns; a process's start is in neither."""
    with TemporaryDirectory() as folder:
        world = World.make(Path(folder), _SLICES)
        bare = Bare(world.model, _SLICES)
        jobs = iter(range(10_000))

        def simulate() -> float:
            place = world.root / f"job-{next(jobs)}"
            world.request(place)
            with (place / "progress").open("wb") as progress:
                return bare.images / _seconds(lambda: run_simulation(place, Reporter(progress)))

        found = interleaved(simulate, lambda: bare.images / _seconds(bare.run), pairs)
    figures = {
        "passes": bare.images,
        "simulation_images_per_s": float(np.median(found.ours)),
        "bare_images_per_s": float(np.median(found.reference)),
    }
    return Result(NAME, "images/s: simulation / its passes, bare", _BAR, False, found.ratios, figures)


class Bare:
    """The passes of one simulation, stage by stage as `explain.simulation` has them, side by side on all cores.

    Parameters
    ----------
    model
        The model, whose network all stages run.
    slices
        Of the cohort.
    """

    def __init__(self, model: Published, slices: int) -> None:
        artifact = eager(load(model.path, model.digest), model.card)
        self._network = artifact.to(memory_format=torch.channels_last).network
        some = normalise(torch.from_numpy(random_slices(min(slices, 512), model.grid.size)))
        self._some = some.contiguous(memory_format=torch.channels_last)
        labels, control, thinned = len(LABELS), pipeline.CONTROL_STEPS, min(slices, pipeline.CONTROL_SLICES)
        explained = min(slices, faithfulness.SLICES)
        images = partial(self._invert, labels, control)
        half = [partial(self._gather, slices // 2), images]
        steps = pipeline.Recipe().steps
        shown = partial(self._invert, labels, steps)
        randomised = [partial(self._forth, 2 * thinned), partial(self._gather, thinned), shown]
        self._stages: list[list[partial[int]]] = [
            [partial(self._gather, slices), partial(self._invert, 2 * labels, steps)],
            *(half, half),
            [partial(self._gather, slices), images],
            *(randomised for _ in range(checks.RANDOMISED_NETWORKS)),
            [partial(self._gather, explained), partial(self._resume, explained)],
            [partial(self._invert, labels * (1 + checks.RESAMPLES), control)],
        ]
        self.images = 0
        self.images = self.run()

    def run(self) -> int:
        """Make all passes; return how many images they are."""
        torch.set_num_threads(1)
        with ThreadPoolExecutor(os.cpu_count()) as pool:
            return sum(pool.map(lambda stage: sum(step() for step in stage), self._stages))

    def _gather(self, images: int) -> int:
        for batch in self._batches(images, statistics.BATCH):
            maps = self._maps_with_gradient(batch)
            logits, _ = self._network.head(maps[-1])
            target = torch.zeros(len(batch), dtype=torch.int64)
            torch.autograd.grad([margins(logits, target).sum()], maps)
        return images

    def _invert(self, images: int, steps: int) -> int:
        for _ in range(steps):
            batch = self._some[:images].clone().requires_grad_(True)
            torch.autograd.grad([layer.sum() for layer in self._network.maps(batch)], [batch])
        return images * steps

    @torch.no_grad()
    def _forth(self, images: int) -> int:
        for batch in self._batches(images, randomise.BATCH):
            self._network.maps(batch)
        return images

    @torch.no_grad()
    def _resume(self, images: int) -> int:
        """Go on from every layer for every point of two curves in two orders, as many images as go on."""
        points = len(faithfulness.METHODS) * (2 * (len(faithfulness.FRACTIONS) - 2) + 1)
        for batch in self._batches(images, faithfulness.BATCH):
            for layer, maps in enumerate(self._network.maps(batch)):
                for _ in range(points):
                    self._network.resume(layer, maps)
        return images * points * len(LAYERS)

    def _batches(self, images: int, size: int) -> list[Tensor]:
        places = torch.arange(images) % len(self._some)
        return [self._some[part].contiguous(memory_format=torch.channels_last) for part in places.split(size)]

    def _maps_with_gradient(self, batch: Tensor) -> list[Tensor]:
        network: Network = self._network
        maps = [network.stem(batch).detach().requires_grad_(True)]
        maps.append(network.layer1(network.pool(maps[0])))
        for layer in (network.layer2, network.layer3, network.layer4):
            maps.append(layer(maps[-1]))
        return maps


def _seconds(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def _add_judges(model: Published, subjects: int) -> None:
    """Give a published model two halves and a sibling, all of them the model itself, so that every check is run."""
    names = [f"s{subject:05d}" for subject in range(subjects)]
    held_out = tuple(HeldOutMargin(label=label, difference=1.0, deviation=1.0) for label in LABELS)
    halves = []
    for index, mine in enumerate((names[: subjects // 2], names[subjects // 2 :])):
        file = f"half-{index}.pt"
        (model.path.parent / file).write_bytes(model.path.read_bytes())
        halves.append(HalfModel(file=file, digest=model.digest, subjects=tuple(mine), held_out=held_out))
    (model.path.parent / "sibling.pt").write_bytes(model.path.read_bytes())
    card = model.card.model_copy(
        update={
            "halves": tuple(halves),
            "sibling": SiblingModel(file="sibling.pt", digest=model.digest, seed=1),
            "out_of_fold": tuple(
                SubjectPrediction(subject=name, label=LABELS[index % 2], fold=0, logits=(0.0, float(index)), slices=())
                for index, name in enumerate(names)
            ),
        }
    )
    (model.path.parent / CARD_FILE).write_text(card.model_dump_json())
