"""The training job, a process of its own: `python -m limner_server.training.job FOLDER`.

Cohort → splits → networks → artifacts and card → repository. It may be killed anywhere and started again on its folder:
networks go on from their checkpoints, and a version that is published already is not published twice.
"""

import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import torch
from pydantic import BaseModel, ConfigDict

from limner_server.errors import InvalidInputError, WrongStateError
from limner_server.files import write_atomic
from limner_server.jobs.process import Reporter, run_job
from limner_server.networks.artifact import normalise
from limner_server.networks.card import ModelCard
from limner_server.networks.repository import ModelRepository
from limner_server.state.cohorts import CohortStore
from limner_server.training.config import TrainingConfig
from limner_server.training.data import GriddedCohort, grid_cohort
from limner_server.training.folds import plan_splits
from limner_server.training.loop import NetworkPlan, StepReport, Trainer
from limner_server.training.outcome import Outcome, TrainedSplit, stage

REPORT_EVERY_S = 0.5


class TrainingRequest(BaseModel):
    """`request.json`: what to train, from where, and where to."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    id: str
    cohort: str
    model: str
    config: TrainingConfig
    database_url: str
    data_dir: Path
    model_repository: Path
    weights_dir: Path | None = None
    """Where `config.pretrained` lies."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = 0
    """Of the CPU; 0: one for each core."""

    @property
    def cores(self) -> int:
        """Number of threads, the default filled in."""
        return self.threads or os.cpu_count() or 1


def run(folder: Path, reporter: Reporter) -> None:
    """Train, or go on training, what `folder/request.json` asks for, and report the published version."""
    request = TrainingRequest.model_validate_json((folder / "request.json").read_bytes())
    repository = ModelRepository(request.model_repository)
    version = repository.published(request.model, request.id)
    if version is None:
        reporter.progress("reading the cohort", 0.0, -1.0)
        _train(request, folder, reporter)
        version = repository.publish(request.model, folder / "staging")
    for spent in ("networks", "staging"):
        shutil.rmtree(folder / spent, ignore_errors=True)
    reporter.result(_result(repository.card(request.model, version), version))


def _result(card: ModelCard, version: int) -> dict[str, object]:
    metrics = [metric.model_dump() for metric in card.metrics]
    return {"name": card.name, "version": version, "digest": card.digest, "metrics": metrics}


def _train(request: TrainingRequest, folder: Path, reporter: Reporter) -> None:
    """Train every network and write the version to `folder/staging`."""
    config, device = request.config, _prepare_device(request)
    cohort = _read_cohort(request, folder)
    splits = plan_splits(cohort, config)
    slices, labels = normalise(torch.from_numpy(cohort.images)), torch.from_numpy(cohort.labels)
    trainer = Trainer(slices, labels, len(cohort.classes), config, device)
    progress = _Progress(reporter, config.epochs * sum(split.passes * len(split.train) for split in splits))
    (folder / "networks").mkdir(exist_ok=True)
    pretrained = _pretrained_file(request)
    trained = []
    for index, split in enumerate(splits):
        epochs = config.epochs * split.passes
        plan = NetworkPlan(index, split.train, epochs, folder / "networks" / f"{index}.pt", pretrained)
        network = trainer.train(plan, progress.follow(split.phase))
        held_out = trainer.logits(network, split.held_out)
        trained.append(TrainedSplit(split, network, held_out, trainer.channel_means(network, split.train)))
        progress.advance(epochs * len(split.train))
    reporter.progress("exporting", progress.fraction, -1.0)
    stage(Outcome(request.id, request.model, config, cohort, trained), folder / "staging")


def _prepare_device(request: TrainingRequest) -> torch.device:
    """Set torch up so that two runs with one seed on one machine agree; return where to train."""
    name = request.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise WrongStateError("the server was told to train on cuda, and there is no CUDA device")
    # cuBLAS reads this when it starts (docs.nvidia.com/cuda/cublas, 'Results reproducibility').
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.set_flush_denormal(True)
    torch.set_num_threads(request.cores)
    return torch.device(name)


def _read_cohort(request: TrainingRequest, folder: Path) -> GriddedCohort:
    """Read the cohort; on a resume, make sure that the checkpoints come from the very same one."""
    snapshot = CohortStore(request.database_url, request.data_dir).snapshot(request.cohort)
    seen = folder / "cohort.sha256"
    if seen.exists() and seen.read_text() != snapshot.digest:
        raise WrongStateError(f"cohort {request.cohort!r} has changed since this training began; start a new one")
    write_atomic(seen, snapshot.digest.encode())
    return grid_cohort(snapshot, request.config.grid, request.cores)


def _pretrained_file(request: TrainingRequest) -> Path | None:
    name = request.config.pretrained
    if not name:
        return None
    if request.weights_dir is None:
        raise InvalidInputError("config.pretrained", name, "none: the server has no weights folder")
    file = request.weights_dir / name
    if not file.is_file():
        raise InvalidInputError("config.pretrained", name, "the name of a file in the server's weights folder")
    return file


class _Progress:
    """Turns the steps of one network after the other into progress of the whole training, a few times a second."""

    def __init__(self, reporter: Reporter, images: int) -> None:
        self._reporter = reporter
        self._images = images
        self._before = 0
        self._first: tuple[float, int] | None = None
        self._last_report = float("-inf")

    @property
    def fraction(self) -> float:
        """Share of all images that is done, by the networks that are finished."""
        return self._before / self._images

    def advance(self, images: int) -> None:
        """Count a finished network, trained now or before a restart."""
        self._before += images

    def follow(self, phase: str) -> Callable[[StepReport], None]:
        """A callback for the steps of the network that comes next, of which the first is always reported."""
        self._last_report = float("-inf")

        def on_step(step: StepReport) -> None:
            now, done = time.monotonic(), self._before + step.images_done
            start, done_at_start = self._first = self._first or (now, done)
            if now - self._last_report < REPORT_EVERY_S:
                return
            self._last_report = now
            speed = (done - done_at_start) / max(now - start, 1e-9)
            self._reporter.progress(
                phase,
                done / self._images,
                (self._images - done) / speed if speed else -1.0,
                epoch=step.epoch,
                epochs=step.epochs,
                loss=step.loss,
                accuracy=step.accuracy,
                images_per_second=step.images_per_second,
            )

        return on_step


if __name__ == "__main__":
    run_job(run)
