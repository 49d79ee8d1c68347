"""From trained networks to a version that is ready to be published: artifacts and card in one folder."""

import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limner_server.files import write_atomic
from limner_server.networks.artifact import HIGH_PERCENTILE, LOW_PERCENTILE, Artifact, export, margins
from limner_server.networks.card import (
    CohortSummary,
    HalfModel,
    HeldOutMargin,
    ModelCard,
    Normalisation,
    SliceLogits,
    SubjectPrediction,
)
from limner_server.networks.repository import ARTIFACT_FILE, CARD_FILE
from limner_server.networks.resnet import Network
from limner_server.training.calibration import calibrate
from limner_server.training.config import TrainingConfig
from limner_server.training.data import GriddedCohort
from limner_server.training.evaluation import Units, evaluate, roll_up
from limner_server.training.folds import Role, Split


@dataclass(frozen=True, eq=False)
class TrainedSplit:
    """The network of a split, its logits `(m, k)` of the held-out slices, its channels' means over the others."""

    split: Split
    network: Network
    held_out_logits: NDArray[np.float32]
    channel_means: list[Tensor]


@dataclass(frozen=True, eq=False)
class Outcome:
    """Everything a training found."""

    training: str
    model: str
    config: TrainingConfig
    cohort: GriddedCohort
    trained: Sequence[TrainedSplit]

    def having(self, role: Role) -> list[TrainedSplit]:
        """The trained splits of one role, in order."""
        return [item for item in self.trained if role in item.split.roles]


def stage(outcome: Outcome, folder: Path) -> ModelCard:
    """Write `model.pt`, the halves and `card.json` into a folder made anew, the card last."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    cohort, config = outcome.cohort, outcome.config
    logits, folds = _out_of_fold(outcome)
    calibration = calibrate(logits, cohort.labels)
    units = roll_up(cohort.subjects, cohort.labels, folds, logits)
    metrics, threshold = evaluate(units, calibration.temperature, config.seed)
    (final,) = outcome.having(Role.FINAL)
    card = ModelCard(
        name=outcome.model,
        training=outcome.training,
        labels=cohort.classes,
        grid=config.grid,
        normalisation=Normalisation(low_percentile=LOW_PERCENTILE, high_percentile=HIGH_PERCENTILE),
        architecture=config.architecture,
        channels=final.network.channels(),
        cohort=_summary(cohort),
        seed=config.seed,
        config=config.model_dump(mode="json"),
        folds=config.folds,
        metrics=metrics,
        out_of_fold=_predictions(cohort, units, logits),
        halves=tuple(
            _export_half(outcome, number, half, folder) for number, half in enumerate(outcome.having(Role.HALF))
        ),
        calibration=calibration,
        threshold=threshold,
        versions=_versions(),
        created=datetime.now(UTC),
        digest=_export(final, calibration.temperature, folder / ARTIFACT_FILE),
    )
    write_atomic(folder / CARD_FILE, card.model_dump_json(indent=1).encode())
    return card


def _out_of_fold(outcome: Outcome) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Logits `(n, k)` of each slice by the network that did not see its subject, and the fold `(n,)`."""
    labels = outcome.cohort.labels
    logits = np.full((len(labels), len(outcome.cohort.classes)), np.nan)
    folds = np.full(len(labels), -1)
    for number, item in enumerate(outcome.having(Role.FOLD)):
        logits[item.split.held_out], folds[item.split.held_out] = item.held_out_logits, number
    return logits, folds


def _export(item: TrainedSplit, temperature: float, path: Path) -> str:
    return export(Artifact(item.network, temperature, item.channel_means), path)


def _export_half(outcome: Outcome, number: int, half: TrainedSplit, folder: Path) -> HalfModel:
    cohort, held_out = outcome.cohort, half.split.held_out
    file = f"half-{number}.pt"
    logits = torch.from_numpy(half.held_out_logits)
    return HalfModel(
        file=file,
        digest=_export(half, 1.0, folder / file),
        subjects=tuple(np.unique(cohort.subjects[half.split.train]).tolist()),
        held_out=tuple(
            _held_out_margin(label, logits, index, cohort.labels[held_out] == index)
            for index, label in enumerate(cohort.classes)
        ),
    )


def _held_out_margin(label: str, logits: Tensor, index: int, own: NDArray[np.bool_]) -> HeldOutMargin:
    margin = margins(logits, torch.full((len(logits),), index)).double().numpy()
    difference = margin[own].mean() - margin[~own].mean()
    return HeldOutMargin(label=label, difference=float(difference), deviation=float(margin.std()))


def _summary(cohort: GriddedCohort) -> CohortSummary:
    own = {label: cohort.labels == index for index, label in enumerate(cohort.classes)}
    return CohortSummary(
        name=cohort.name,
        digest=cohort.digest,
        subjects={label: len(np.unique(cohort.subjects[rows])) for label, rows in own.items()},
        slices={label: int(rows.sum()) for label, rows in own.items()},
    )


def _predictions(cohort: GriddedCohort, units: Units, logits: NDArray[np.float64]) -> tuple[SubjectPrediction, ...]:
    slices: list[list[SliceLogits]] = [[] for _ in units.subjects]
    for unit, instance, row in zip(units.unit_of_slice, cohort.instances.tolist(), logits.tolist(), strict=True):
        slices[unit].append(SliceLogits(instance=instance, logits=tuple(row)))
    return tuple(
        SubjectPrediction(
            subject=str(units.subjects[unit]),
            label=cohort.classes[units.labels[unit]],
            fold=int(units.folds[unit]),
            logits=tuple(units.logits[unit].tolist()),
            slices=tuple(slices[unit]),
        )
        for unit in range(len(slices))
    )


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("limner", "torch", "torchvision")}
    return {"python": platform.python_version(), **packages}
