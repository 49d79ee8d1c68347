"""From scores and networks to a version: which network is served, and what the card says of the added ones."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from limner.imaging.grid import Grid
from limner_server.networks.artifact import load
from limner_server.networks.card import Evaluation, ModelCard
from limner_server.networks.resnet import Network, build_network
from limner_server.training.calibration import calibrate
from limner_server.training.config import TrainingConfig
from limner_server.training.data import GriddedCohort
from limner_server.training.folds import Role, Split, plan_splits
from limner_server.training.outcome import Outcome, ScoredSplit, TrainedSplit, stage
from tests.server.training.cohorts import gridded

CONFIG = TrainingConfig(grid=Grid(128.0, 32), folds=3, epochs=1, halves=False)
FULL = CONFIG.model_copy(update={"repeats": 2, "learning_curve": True, "sibling": True, "patience": 2})


def cohort() -> GriddedCohort:
    """Twelve subjects of two slices each."""
    subjects = [f"s{number // 2:02d}" for number in range(24)]
    return gridded(subjects, [number // 2 % 2 for number in range(24)])


def network(seed: int) -> Network:
    torch.manual_seed(seed)
    return build_network("resnet18", 2).eval()


def logits(split: Split, place: int) -> np.ndarray:
    """What the network in some place of the plan says: of each slice its row, and the place."""
    return np.stack([np.zeros(len(split.held_out)), (split.held_out + 100 * place) / 100], axis=1).astype(np.float32)


def outcome(config: TrainingConfig) -> Outcome:
    scored: list[ScoredSplit] = []
    for place, split in enumerate(plan_splits(cohort(), config)):
        if split.kept:
            means = [torch.full((count,), float(place)) for count in (64, 64, 128, 256, 512)]
            scored.append(TrainedSplit(split, logits(split, place), place + 1, network(place), means))
        else:
            scored.append(ScoredSplit(split, logits(split, place), place + 1))
    return Outcome("t-1", "m", config, cohort(), scored)


@pytest.fixture(scope="module")
def staged(tmp_path_factory: pytest.TempPathFactory) -> tuple[Outcome, Path, ModelCard, Evaluation]:
    """A version with everything but an ensemble, of a cohort in which slice 20 is a copy of slice 1."""
    found = outcome(FULL)
    found.cohort.images[20] = found.cohort.images[1]
    folder = tmp_path_factory.mktemp("version") / "staging"
    card = stage(found, folder)
    assert card.evaluation is not None
    return found, folder, card, card.evaluation


def test_the_mean_of_the_repeats_goes_on_the_card(staged: tuple[Outcome, Path, ModelCard, Evaluation]) -> None:
    found, _, card, evaluation = staged
    assert evaluation.repeats == len(evaluation.per_repeat) == 2
    folds = [item.split for item in found.scored if Role.FOLD in item.split.roles]
    of_slice = {slice_.instance: slice_.logits[1] for entry in card.out_of_fold for slice_ in entry.slices}
    for row in range(24):
        first = next(place for place in range(3) if row in folds[place].held_out)
        # Networks 0 to 2 are the first repeat's, 3 the one on all subjects, 4 to 6 the second repeat's.
        second = next(place for place in range(3, 6) if row in folds[place].held_out) + 1
        assert of_slice[f"i{row}"] == pytest.approx((row + 50 * (first + second)) / 100)
        assert {entry.fold for entry in card.out_of_fold if entry.subject == f"s{row // 2:02d}"} == {first}


@pytest.mark.parametrize("ensemble", [False, True])
def test_the_temperature_is_of_single_networks_unless_several_are_served(tmp_path: Path, ensemble: bool) -> None:
    found = outcome(CONFIG.model_copy(update={"repeats": 4, "ensemble": ensemble}))
    labels, generator = found.cohort.labels, np.random.default_rng(0)
    said = (2 * np.eye(2)[labels] + generator.normal(size=(4, 24, 2), scale=2)).astype(np.float32)
    scored = [
        replace(item, held_out_logits=said[item.split.repeat][item.split.held_out])
        if Role.FOLD in item.split.roles
        else item
        for item in found.scored
    ]
    card = stage(replace(found, scored=scored), tmp_path / "staging")
    single = calibrate(said.reshape(-1, 2).astype(np.float64), np.tile(labels, 4))
    together = calibrate(said.astype(np.float64).mean(axis=0), labels)
    assert single.temperature > 1.2 * together.temperature
    assert card.calibration.temperature == pytest.approx((together if ensemble else single).temperature)
    assert card.evaluation is not None
    assert sum(place.count for place in card.evaluation.calibration_after) == (24 if ensemble else 96)


def test_the_learning_curve_ends_with_the_first_repeat(staged: tuple[Outcome, Path, ModelCard, Evaluation]) -> None:
    points = staged[3].learning_curve
    assert [point.subjects for point in points] == [2, 4, 6, 8]
    assert points[-1].auc.value == staged[3].per_repeat[0]


def test_the_sibling_is_another_network(staged: tuple[Outcome, Path, ModelCard, Evaluation]) -> None:
    _, folder, card, _ = staged
    assert card.sibling is not None
    assert card.sibling.seed != card.seed
    ours, theirs = load(folder / "model.pt", card.digest), load(folder / card.sibling.file, card.sibling.digest)
    assert not torch.equal(ours.network.classifier.weight, theirs.network.classifier.weight)


def test_a_copy_under_another_subject_is_on_the_card(staged: tuple[Outcome, Path, ModelCard, Evaluation]) -> None:
    (pair,) = staged[3].similar
    assert (pair.first_subject, pair.second_subject, pair.similarity) == ("s00", "s10", 1.0)
    assert staged[3].similar_found == 1


def test_the_folds_epochs_are_told_where_they_could_stop(staged: tuple[Outcome, Path, ModelCard, Evaluation]) -> None:
    assert staged[3].epochs == (1, 2, 3)


def test_an_ensemble_serves_the_mean_of_the_folds(tmp_path: Path) -> None:
    card = stage(outcome(CONFIG.model_copy(update={"ensemble": True})), tmp_path / "staging")
    assert (card.members, card.channels, card.sibling) == (3, (192, 192, 384, 768, 1536), None)
    assert card.evaluation is not None
    assert card.evaluation.epochs == ()
    served = load(tmp_path / "staging" / "model.pt", card.digest)
    assert [means.tolist() for means in served.channel_means()] == [
        np.repeat([0.0, 1.0, 2.0], count).tolist() for count in (64, 64, 128, 256, 512)
    ]
    images = torch.from_numpy(cohort().images[:4])
    with torch.no_grad():
        expected = torch.stack([network(place)(served.normalise(images)) for place in range(3)]).mean(dim=0)
        assert torch.allclose(served(images)[0], expected, atol=1e-4)


@pytest.mark.parametrize("changes", [{}, {"ensemble": True}])
def test_the_plan_and_the_outcome_agree(changes: dict[str, object]) -> None:
    found = outcome(CONFIG.model_copy(update={"repeats": 2, "learning_curve": True, **changes}))
    assert len(found.scored_for(Role.FOLD)) == len(found.scored_for(Role.FOLD, 1)) == 3
    assert len(found.scored_for(Role.CURVE, share=0.5)) == 3
    assert len(found.trained_for(Role.FOLD)) == 3
