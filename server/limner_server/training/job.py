"""The training job, a process of its own: `python -m limner_server.training.job FOLDER`.

Cohort → splits → networks → artifacts and card → repository. It may be killed anywhere and started again on its folder:
networks go on from their checkpoints, and a version that is published already is not published twice.

Under torchrun (`torchrun --nproc-per-node 2 -m limner_server.training.job FOLDER`) its processes train each network
together; the first one alone reports, evaluates and writes.
"""

import shutil
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch

from limner_server.errors import WrongStateError
from limner_server.files import write_atomic
from limner_server.jobs.process import Reporter, run_job
from limner_server.networks.artifact import normalise
from limner_server.networks.card import ModelCard
from limner_server.networks.repository import ModelRepository
from limner_server.state.cohorts import CohortStore
from limner_server.training.config import TrainingConfig
from limner_server.training.data import GriddedCohort, grid_cohort
from limner_server.training.distributed import World, joined
from limner_server.training.folds import Role, Split, plan_splits
from limner_server.training.loop import NetworkPlan, StepReport, TrainedNetwork, Trainer, derived_seed, make_repeatable
from limner_server.training.outcome import Outcome, ScoredSplit, TrainedSplit, stage
from limner_server.training.request import TrainingRequest
from limner_server.training.stopping import choose_watched, usual_epochs
from limner_server.training.tracking import Scalars

REPORT_EVERY_S = 0.5


def run(folder: Path, reporter: Reporter) -> None:
    """Train, or go on training, what `folder/request.json` asks for, and report the published version."""
    request = TrainingRequest.model_validate_json((folder / "request.json").read_bytes())
    world = World.of_environment()
    repository = ModelRepository(request.model_repository)
    version = repository.published(request.model, request.id)
    if version is None:
        device = _prepare_device(request, world)
        with joined(device, world):
            _train(request, folder, reporter, device, world)
            if world.leads:
                version = repository.publish(request.model, folder / "staging")
    if version is None or not world.leads:
        return
    for spent in ("networks", "staging"):
        shutil.rmtree(folder / spent, ignore_errors=True)
    reporter.result(_result(repository.card(request.model, version), version))


def _result(card: ModelCard, version: int) -> dict[str, object]:
    metrics = [metric.model_dump() for metric in card.metrics]
    return {"name": card.name, "version": version, "digest": card.digest, "metrics": metrics}


def _train(request: TrainingRequest, folder: Path, reporter: Reporter, device: torch.device, world: World) -> None:
    """Train every network and, as the first process, write the version to `folder/staging`."""
    if world.leads:
        reporter.progress("reading the cohort", 0.0, -1.0)
    config = request.config
    cohort = _read_cohort(request, folder, world)
    splits = plan_splits(cohort, config)
    plans = _plans(cohort, splits, config, folder / "networks", request.pretrained_file())
    slices, labels = normalise(torch.from_numpy(cohort.images)), torch.from_numpy(cohort.labels)
    leaves_off = reporter.told_to_leave_off.is_set
    trainer = Trainer(slices, labels, len(cohort.classes), config, device, world, leaves_off)
    progress = _Progress(reporter, sum(plan.images for plan in plans))
    (folder / "networks").mkdir(exist_ok=True)
    scored: dict[int, ScoredSplit] = {}
    best: list[float] = []
    with Scalars(folder / "tensorboard") as scalars:
        for index in _order(splits, config):
            split, plan = splits[index], plans[index]
            if best and Role.FOLD not in split.roles:
                plan = plan.until(split.epochs(usual_epochs(best)))
                progress.skip(plans[index].images - plan.images)
            result = trainer.train(plan, progress.follow(split.phase), scalars.follow(index, split.phase))
            progress.advance(result.images)
            progress.skip(plan.images - result.images)
            if len(plan.watched):
                best.append(result.epochs / split.passes)
            if world.leads:
                scored[index] = _score(trainer, split, result)
                scalars.held_out(index, scored[index].held_out_logits, cohort.labels[split.held_out])
    if world.leads:
        reporter.progress("exporting", progress.fraction, -1.0)
        outcome = Outcome(request.id, request.model, config, cohort, [scored[index] for index in range(len(splits))])
        stage(outcome, folder / "staging")


def _plans(
    cohort: GriddedCohort, splits: Sequence[Split], config: TrainingConfig, folder: Path, pretrained: Path | None
) -> list[NetworkPlan]:
    """What each network learns from; where it may stop early, a fold's is watched on some of its training subjects."""
    plans = []
    for index, split in enumerate(splits):
        watched = np.zeros(len(split.train), np.bool_)
        if config.patience and Role.FOLD in split.roles:
            watched = choose_watched(cohort, split.train, config.patience, derived_seed(config.seed, index, 0))
        learnt, file = split.train[~watched], folder / f"{index}.pt"
        plans.append(
            NetworkPlan(index, learnt, split.epochs(config.epochs), file, pretrained, watched=split.train[watched])
        )
    return plans


def _order(splits: Sequence[Split], config: TrainingConfig) -> list[int]:
    """Numbers of the networks as they are trained: all folds first where they decide how long the others learn."""
    numbers = range(len(splits))
    return sorted(numbers, key=lambda number: config.patience > 0 and Role.FOLD not in splits[number].roles)


def _score(trainer: Trainer, split: Split, result: TrainedNetwork) -> ScoredSplit:
    held_out = trainer.logits(result.network, split.held_out)
    if not split.kept:
        return ScoredSplit(split, held_out, result.epochs)
    return TrainedSplit(
        split, held_out, result.epochs, result.network, trainer.channel_means(result.network, split.home)
    )


def _prepare_device(request: TrainingRequest, world: World) -> torch.device:
    """Set torch up; return where to train."""
    name = request.device
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and not torch.cuda.is_available():
        raise WrongStateError("the server was told to train on cuda, and there is no CUDA device")
    make_repeatable(request.cores(world.local_size))
    return torch.device(name, world.local_rank) if name == "cuda" and world.size > 1 else torch.device(name)


def _read_cohort(request: TrainingRequest, folder: Path, world: World) -> GriddedCohort:
    """Read the cohort; on a resume, make sure that the checkpoints come from the very same one."""
    snapshot = CohortStore(request.database_url, request.data_dir).snapshot(request.cohort)
    seen = folder / "cohort.sha256"
    if seen.exists() and seen.read_text() != snapshot.digest:
        raise WrongStateError(f"cohort {request.cohort!r} has changed since this training began; start a new one")
    if world.leads:
        write_atomic(seen, snapshot.digest.encode())
    return grid_cohort(snapshot, request.config.grid, request.cores(world.local_size))


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

    def skip(self, images: int) -> None:
        """Count on fewer images, since a network stops early."""
        self._images -= images

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
