"""The cohorts that benchmarks train and simulate on, put where a server keeps its own; and a training as a server's.

Those that take the way of a user, over the wire, have a cohort of noise to import.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from benchmarks.models import LABELS, random_slices
from limner.cohorts import CohortPlan, CohortSlice
from limner.imaging.phantom import LABELS as PHANTOM_LABELS
from limner.imaging.phantom import STORED_PER_SIGNAL, phantom_recurrent
from limner.imaging.phantom_anatomy import PIXEL_MM, phantom_subject
from limner.imaging.slices import Slice
from limner_server.jobs.process import Reporter
from limner_server.networks.card import ModelCard
from limner_server.networks.repository import ModelRepository
from limner_server.state.cohorts import CohortSnapshot, CohortStore, NewSlice
from limner_server.training.config import TrainingConfig
from limner_server.training.job import run
from limner_server.training.request import TrainingRequest

SLICES_PER_SUBJECT = 12
MODEL = "model"


@dataclass(frozen=True)
class StoredCohort:
    """A cohort in a database and a folder of its own."""

    root: Path
    name: str

    @property
    def url(self) -> str:
        """Of the database."""
        return f"sqlite:///{(self.root / 'limner.sqlite').absolute()}"

    def snapshot(self) -> CohortSnapshot:
        """The cohort as it is."""
        return CohortStore(self.url, self.root).snapshot(self.name)


def store_phantom(root: Path, subjects: int = 27, seed: int = 0, permuted: int | None = None) -> StoredCohort:
    """Store the phantom cohort, as `limner phantom` and `limner cohort import` would.

    With `permuted`, the labels are permuted among the subjects by that seed, and tell nothing of their images.
    """
    return _store(root, "phantom", PHANTOM_LABELS, _phantom(subjects, seed, permuted))


def store_random(root: Path, slices: int, size: int, spacing_mm: float) -> StoredCohort:
    """Store a cohort of noise, 12 slices a subject, of which every second has the second label."""
    return _store(root, "random", LABELS, _random(slices, size, spacing_mm))


def noise_plan(count: int, size: int, seed: int) -> CohortPlan:
    """Plan the import of `count` slices of noise, `i0` and so on: 4 a subject, every second with the second label."""
    values = np.random.default_rng(seed).integers(0, 1000, (count, size, size), np.uint16)
    slices = [
        CohortSlice(f"i{number}", f"s{number // 4}", LABELS[number // 4 % 2], Slice(pixels, 1.0, 1.0))
        for number, pixels in enumerate(values)
    ]
    return CohortPlan(LABELS, slices)


def train(folder: Path, cohort: StoredCohort, config: TrainingConfig, threads: int = 0) -> ModelCard:
    """Run the training job in `folder`, or what is left of it; the model `MODEL` is then in `folder/models`."""
    request = TrainingRequest(
        id=f"seed-{config.seed}",
        cohort=cohort.name,
        model=MODEL,
        config=config,
        database_url=cohort.url,
        data_dir=cohort.root.absolute(),
        model_repository=(folder / "models").absolute(),
        threads=threads,
    )
    place = folder / "training"
    place.mkdir(exist_ok=True)
    (place / "request.json").write_text(request.model_dump_json())
    with Bar(f"training from seed {config.seed}") as bar:
        run(place, bar)
    return ModelRepository(request.model_repository).card(MODEL, 1)


class Bar(Reporter):
    """Shows a job's progress in place of writing it down."""

    def __init__(self, name: str) -> None:
        super().__init__(BytesIO())
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:.0f} %"),
            TimeRemainingColumn(),
            console=Console(stderr=True),  # standard output is the results'
        )
        self._name = name
        self._task = self._bar.add_task(name, total=1.0)

    def __enter__(self) -> "Bar":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def progress(self, phase: str, fraction: float, remaining_s: float, **figures: float) -> None:
        """Move the bar."""
        self._bar.update(self._task, completed=fraction, description=f"{self._name}: {phase}")


def _store(root: Path, name: str, labels: tuple[str, ...], slices: Iterator[NewSlice]) -> StoredCohort:
    cohort = StoredCohort(root, name)
    store = CohortStore(cohort.url, root)
    if name in store.names():
        store.delete(name)
    store.create(name, labels)
    assert all(store.add(name, slices))
    return cohort


def _phantom(subjects: int, seed: int, permuted: int | None) -> Iterator[NewSlice]:
    truth = phantom_recurrent(subjects, seed)
    labels = truth if permuted is None else np.random.default_rng([permuted, subjects]).permutation(truth)
    for index, (recurrent, label) in enumerate(zip(truth.tolist(), labels.tolist(), strict=True)):
        subject = f"PH-{index:03d}"
        for number, pixels in enumerate(phantom_subject(seed, index, recurrent)):
            stored = np.clip(np.rint(pixels * STORED_PER_SIGNAL), 0, 4095).astype(np.uint16)
            image = Slice(stored, PIXEL_MM, PIXEL_MM)
            yield NewSlice(f"{subject}-{number:02d}", subject, "", PHANTOM_LABELS[label], False, image)


def _random(slices: int, size: int, spacing_mm: float) -> Iterator[NewSlice]:
    some = random_slices(64, size)
    for index in range(slices):
        subject = index // SLICES_PER_SUBJECT
        # Rolled, so that no two are equal.
        image = Slice(np.roll(some[index % 64], index // 64, axis=1), spacing_mm, spacing_mm)
        yield NewSlice(f"i{index:06d}", f"s{subject:05d}", "", LABELS[subject % 2], False, image)
