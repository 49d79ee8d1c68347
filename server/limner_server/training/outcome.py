"""From trained networks to a version that is ready to be published: artifacts and card in one folder."""

import platform
import shutil
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limner_server.files import write_atomic
from limner_server.networks.artifact import HIGH_PERCENTILE, LOW_PERCENTILE, Artifact, export, margins, normalise
from limner_server.networks.card import (
    CohortSummary,
    Evaluation,
    HalfModel,
    HeldOutMargin,
    ModelCard,
    Normalisation,
    Reference,
    SiblingModel,
    SliceLogits,
    SubjectPrediction,
)
from limner_server.networks.ensemble import Ensemble
from limner_server.networks.reference import ReferenceSlices, measure
from limner_server.networks.repository import ARTIFACT_FILE, CARD_FILE
from limner_server.networks.resnet import Network
from limner_server.training.calibration import calibrate
from limner_server.training.config import TrainingConfig
from limner_server.training.data import GriddedCohort
from limner_server.training.evaluation import Units, evaluate, judge
from limner_server.training.folds import SHARES, Role, Split
from limner_server.training.loop import derived_seed
from limner_server.training.record import CurvePart, OutOfFold, evaluation
from limner_server.training.similar import find_similar


@dataclass(frozen=True, eq=False)
class ScoredSplit:
    """The logits `(m, k)` of a split's held-out slices, and the epochs that its network took."""

    split: Split
    held_out_logits: NDArray[np.float32]
    epochs: int


@dataclass(frozen=True, eq=False)
class TrainedSplit(ScoredSplit):
    """A split whose network is kept, with its channels' means over `split.home`."""

    network: Network
    channel_means: list[Tensor]


@dataclass(frozen=True, eq=False)
class Outcome:
    """Everything a training found; `scored` has the networks in the order of their plan."""

    training: str
    model: str
    config: TrainingConfig
    cohort: GriddedCohort
    scored: Sequence[ScoredSplit]

    def scored_for(self, role: Role, repeat: int = 0, share: float = 1.0) -> list[ScoredSplit]:
        """The splits of one role, of one repeat and of one share of the subjects, in order."""
        wanted = (repeat, share)
        return [
            item for item in self.scored if role in item.split.roles and (item.split.repeat, item.split.share) == wanted
        ]

    def trained_for(self, role: Role) -> list[TrainedSplit]:
        """Those of one role whose networks are kept, in order."""
        return [item for item in self.scored if isinstance(item, TrainedSplit) and role in item.split.roles]


def stage(outcome: Outcome, folder: Path) -> ModelCard:
    """Write `model.pt`, the halves, the sibling and `card.json` into a folder made anew, the card last."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    cohort, config = outcome.cohort, outcome.config
    found = _out_of_fold(outcome)
    # The logits of one network spread wider than their mean over repeats, which is nearer to what an ensemble says.
    alike = found if config.ensemble else found.one_by_one()
    calibration = calibrate(alike.logits, alike.labels)
    units = found.units(found.logits)
    metrics, threshold = evaluate(units, calibration.temperature)
    served, members = _served(outcome)
    kept, reference = _reference(outcome, served.network)
    card = ModelCard(
        name=outcome.model,
        training=outcome.training,
        labels=cohort.classes,
        grid=config.grid,
        normalisation=Normalisation(low_percentile=LOW_PERCENTILE, high_percentile=HIGH_PERCENTILE),
        architecture=config.architecture,
        channels=served.network.channels(),
        cohort=_summary(cohort),
        seed=config.seed,
        config=config.model_dump(mode="json"),
        folds=config.folds,
        metrics=metrics,
        out_of_fold=_predictions(cohort, units, found.logits, judge(units, calibration.temperature).chosen),
        halves=tuple(
            _export_half(outcome, number, half, folder) for number, half in enumerate(outcome.trained_for(Role.HALF))
        ),
        sibling=_export_sibling(outcome, folder),
        members=members,
        evaluation=_evaluation(outcome, found, alike, calibration.temperature),
        reference=reference,
        calibration=calibration,
        threshold=threshold,
        versions=_versions(),
        created=datetime.now(UTC),
        digest=_export(served, calibration.temperature, folder / ARTIFACT_FILE, kept),
    )
    write_atomic(folder / CARD_FILE, card.model_dump_json(indent=1).encode())
    return card


def _out_of_fold(outcome: Outcome) -> OutOfFold:
    cohort = outcome.cohort
    folds = np.full(len(cohort.labels), -1)
    for number, item in enumerate(outcome.scored_for(Role.FOLD)):
        folds[item.split.held_out] = number
    repeats = [_logits(outcome, outcome.scored_for(Role.FOLD, repeat)) for repeat in range(outcome.config.repeats)]
    return OutOfFold(cohort.subjects, cohort.labels, folds, np.stack(repeats))


def _logits(outcome: Outcome, folds: Sequence[ScoredSplit]) -> NDArray[np.float64]:
    """Logits `(n, k)` of each slice by the network that did not see its subject."""
    logits = np.full((len(outcome.cohort.labels), len(outcome.cohort.classes)), np.nan)
    for item in folds:
        logits[item.split.held_out] = item.held_out_logits
    return logits


def _evaluation(outcome: Outcome, found: OutOfFold, served: OutOfFold, temperature: float) -> Evaluation:
    cohort, config = outcome.cohort, outcome.config
    folds = outcome.scored_for(Role.FOLD)
    curve = []
    if config.learning_curve:
        for share in SHARES:
            parts = outcome.scored_for(Role.CURVE, share=share)
            curve.append(CurvePart(_subjects(cohort, parts), _logits(outcome, parts)))
        curve.append(CurvePart(_subjects(cohort, folds), found.repeats[0]))
    return evaluation(
        found,
        temperature,
        config.seed,
        curve,
        find_similar(cohort.images, cohort.subjects, cohort.instances),
        tuple(item.epochs for item in folds) if config.patience else (),
        served,
    )


def _subjects(cohort: GriddedCohort, splits: Sequence[ScoredSplit]) -> int:
    """Mean number of subjects that the networks of some splits learnt from."""
    return round(float(np.mean([len(np.unique(cohort.subjects[item.split.train])) for item in splits])))


def _served(outcome: Outcome) -> tuple[TrainedSplit, int]:
    """What becomes `model.pt`, and of how many networks it consists."""
    folds = outcome.trained_for(Role.FOLD)
    if not outcome.config.ensemble:
        return outcome.trained_for(Role.FINAL)[0], 1
    means = [torch.cat(layer) for layer in zip(*(item.channel_means for item in folds), strict=True)]
    return replace(folds[0], network=Ensemble([item.network for item in folds]), channel_means=means), len(folds)


def _reference(outcome: Outcome, served: Network) -> tuple[ReferenceSlices, Reference]:
    cohort = outcome.cohort
    folds = [(item.network, item.split.train, item.split.held_out) for item in outcome.trained_for(Role.FOLD)]
    slices = normalise(torch.from_numpy(cohort.images))
    return measure(served, folds, slices, cohort.subjects, cohort.labels)


def _export(item: TrainedSplit, temperature: float, path: Path, reference: ReferenceSlices | None = None) -> str:
    return export(Artifact(item.network, temperature, item.channel_means, reference), path)


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


def _export_sibling(outcome: Outcome, folder: Path) -> SiblingModel | None:
    for index, item in enumerate(outcome.scored):
        if isinstance(item, TrainedSplit) and Role.SIBLING in item.split.roles:
            file = "sibling.pt"
            digest = _export(item, 1.0, folder / file)
            return SiblingModel(file=file, digest=digest, seed=derived_seed(outcome.config.seed, index))
    return None


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


def _predictions(
    cohort: GriddedCohort, units: Units, logits: NDArray[np.float64], chosen: NDArray[np.int64]
) -> tuple[SubjectPrediction, ...]:
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
            chosen=cohort.classes[chosen[unit]],
        )
        for unit in range(len(slices))
    )


def _versions() -> dict[str, str]:
    packages = {name: version(name) for name in ("limner", "torch", "torchvision")}
    return {"python": platform.python_version(), **packages}
