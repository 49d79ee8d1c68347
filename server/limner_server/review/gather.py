"""Which images a reading holds, and how all of them are made alike. Knows nothing of readers.

A real slice is resampled to the model's grid, as simulated images are; then every image, whatever it is, goes through
the same `blind`: nothing but its content is left to tell one from another.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from limner.imaging.grid import Grid
from limner_server.errors import InvalidInputError, WrongStateError
from limner_server.explain.checks import Verdict
from limner_server.explain.job import STAGES
from limner_server.explain.result import Source
from limner_server.explain.simulation import SimulationOutcome
from limner_server.explain.stages import load_arrays
from limner_server.networks.artifact import HIGH_PERCENTILE, LOW_PERCENTILE, normalise
from limner_server.state.cohorts import CohortSnapshot, StoredSlice

BLOCK = 64

Floats = NDArray[np.float32]


class ItemKind(StrEnum):
    """What an image is, named as in `limner.v1.ItemKind`."""

    REAL = "REAL"
    SIMULATED = "SIMULATED"
    RESAMPLED = "RESAMPLED"
    RANDOMISED = "RANDOMISED"
    CLASS_MEAN = "CLASS_MEAN"


@dataclass(frozen=True, eq=False)
class Candidate:
    """An image that is to be read.

    Attributes
    ----------
    kind, label
        What it is.
    image
        `(s, s)` on the model's grid, in any unit.
    subject, instance
        Of a real slice.
    simulation
        Which of the reading's simulations it is from; None of real slices and class means.
    verdict
        What that simulation may be called.
    """

    kind: ItemKind
    label: str
    image: Floats
    subject: str = ""
    instance: str = ""
    simulation: int | None = None
    verdict: Verdict | None = None


@dataclass(frozen=True)
class FinishedSimulation:
    """A simulation whose result is there.

    Attributes
    ----------
    folder
        Of its job.
    source
        What it was made from.
    outcome
        Its images.
    """

    folder: Path
    source: Source
    outcome: SimulationOutcome


@dataclass(frozen=True)
class Mixture:
    """How many images of each kind a reading has for each label; of a simulation's controls, for each simulation."""

    real: int = 10
    resampled: int = 0
    randomised: int = 0
    class_means: bool = False


def gather(
    snapshot: CohortSnapshot, grid: Grid, simulations: Sequence[FinishedSimulation], mixture: Mixture, seed: int
) -> list[Candidate]:
    """Collect the images of a reading.

    Parameters
    ----------
    snapshot
        The cohort.
    grid
        The model's: all images are on it.
    simulations
        Of the same labels and grid.
    mixture
        How many of what.
    seed
        Of the choice of slices.

    Raises
    ------
    InvalidInputError
        There are fewer than two images, or more controls are wanted than a simulation made.
    WrongStateError
        A simulation kept no such controls.
    """
    rng = np.random.default_rng(seed)
    found = list(_real(snapshot, grid, mixture.real, rng))
    if mixture.class_means:
        found += _class_means(snapshot, grid)
    for index, simulation in enumerate(simulations):
        found += _simulated(index, simulation, snapshot.labels, mixture)
    if len(found) < 2:
        raise InvalidInputError(
            "real_per_label", mixture.real, "more, or simulations: a reading has two images or more"
        )
    return found


def blind(images: Floats) -> NDArray[np.uint16]:
    """Make images `(n, s, s)` alike: each clipped to its 1st and 99th percentile, then stretched to 0 to 65535.

    That is what the network sees of a slice, and leaves unit, scale and extremes of none; a constant image becomes 0.
    """
    floor, ceiling = np.percentile(images, (LOW_PERCENTILE, HIGH_PERCENTILE), axis=(1, 2), keepdims=True)
    unit = (np.clip(images, floor, ceiling) - floor) / np.maximum(ceiling - floor, 1e-30)
    levels: NDArray[np.uint16] = np.rint(unit * 65535).astype("<u2")
    return levels


def _real(snapshot: CohortSnapshot, grid: Grid, count: int, rng: np.random.Generator) -> Iterator[Candidate]:
    """Draw slices of each label, the first of every subject before the second of any."""
    for label in snapshot.labels:
        by_subject: dict[str, list[StoredSlice]] = defaultdict(list)
        for item in snapshot.slices:
            if item.label == label:
                by_subject[item.subject].append(item)
        queues = [
            [of_subject[place] for place in rng.permutation(len(of_subject))] for of_subject in by_subject.values()
        ]
        order = [queues[place] for place in rng.permutation(len(queues))]
        turns = max(map(len, order), default=0)
        chosen = [queue[turn] for turn in range(turns) for queue in order if turn < len(queue)]
        for item in chosen[:count]:
            yield Candidate(ItemKind.REAL, label, grid.resample(item.read()), item.subject, item.instance)


def _class_means(snapshot: CohortSnapshot, grid: Grid) -> Iterator[Candidate]:
    """Average each label's slices as the network sees them, normalised one by one."""
    for label in snapshot.labels:
        slices = [item for item in snapshot.slices if item.label == label]
        if not slices:
            raise InvalidInputError("class_means", True, f"a cohort with slices of every label; none is {label!r}")
        total = np.zeros((grid.size, grid.size), np.float64)
        for first in range(0, len(slices), BLOCK):
            block = np.stack([grid.resample(item.read()) for item in slices[first : first + BLOCK]])
            total += normalise(torch.from_numpy(block)).double().sum((0, 1)).numpy()
        yield Candidate(ItemKind.CLASS_MEAN, label, (total / len(slices)).astype(np.float32))


def _simulated(
    index: int, simulation: FinishedSimulation, labels: Sequence[str], mixture: Mixture
) -> Iterator[Candidate]:
    verdict = simulation.outcome.verdict
    sets = [(ItemKind.SIMULATED, simulation.outcome.images[None])]
    if mixture.resampled:
        # The first is of the cohort itself.
        resampled = _stage(simulation, "resamples")["images"][1:]
        sets.append((ItemKind.RESAMPLED, _first(resampled, "resampled_per_label", mixture.resampled)))
    if mixture.randomised:
        folder = simulation.folder / STAGES
        names = sorted(path.stem for path in folder.glob("randomised-*.npz")) or ["randomised-0"]
        networks = np.stack([_stage(simulation, name)["images"] for name in names])
        sets.append((ItemKind.RANDOMISED, _first(networks, "randomised_per_label", mixture.randomised)))
    for kind, images in sets:
        for of_labels in images:
            for label, image in zip(labels, of_labels, strict=True):
                yield Candidate(kind, label, image, simulation=index, verdict=verdict)


def _stage(simulation: FinishedSimulation, name: str) -> dict[str, Floats]:
    """Read what a stage of a simulation kept, with its images."""
    path = simulation.folder / STAGES / f"{name}.npz"
    arrays = load_arrays(path) if path.is_file() else {}
    if "images" not in arrays:
        raise WrongStateError(
            f"simulation {simulation.folder.name} kept no images of {name}; simulate with checks, under another seed "
            "where it is of an older Limner"
        )
    return arrays


def _first(images: Floats, field: str, count: int) -> Floats:
    if count > len(images):
        raise InvalidInputError(field, count, f"at most {len(images)}, as many as the simulation made")
    return images[:count]
