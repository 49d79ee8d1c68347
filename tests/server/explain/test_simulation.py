"""A whole simulation with every check, on networks and cohorts of seconds."""

import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from limner.imaging.grid import Grid
from limner_server.errors import InvalidInputError
from limner_server.explain import checks
from limner_server.explain.checks import Verdict
from limner_server.explain.pipeline import Recipe, SimulationMethod, judge_images, resample_subjects
from limner_server.explain.realism import RealSlices
from limner_server.explain.result import FACTS_FILE, Source, load_result, save_result
from limner_server.explain.simulation import SimulationOutcome, simulate
from limner_server.explain.stages import load_arrays
from limner_server.networks.artifact import Artifact
from limner_server.networks.card import HalfModel, HeldOutMargin, ModelCard, SiblingModel, SubjectPrediction
from limner_server.networks.ensemble import Ensemble
from tests.server.explain.tiny import CLASSES, stripes_artifact, stripes_cohort
from tests.server.networks.cards import make_card

COHORT = stripes_cohort()
SUBJECTS = sorted(set(COHORT.subjects.tolist()))
RECIPE = Recipe(steps=150)


def quiet(phase: str, fraction: float, remaining_s: float) -> None:
    """Say nothing."""


def stripes_card(*, halves: bool = True, channels: tuple[int, ...] = (4,) * 5) -> ModelCard:
    held_out = tuple(HeldOutMargin(label=label, difference=12.0, deviation=6.0) for label in CLASSES)
    pairs = SUBJECTS[:4], SUBJECTS[4:]
    return make_card(
        labels=CLASSES,
        channels=channels,
        halves=tuple(
            HalfModel(file=f"half-{index}.pt", digest="0" * 64, subjects=tuple(names), held_out=held_out)
            for index, names in enumerate(pairs if halves else ())
        ),
        sibling=SiblingModel(file="sibling.pt", digest="0" * 64, seed=1) if halves else None,
        out_of_fold=tuple(
            SubjectPrediction(
                subject=subject, label=CLASSES[index % 2], fold=0, logits=(0.0, 4.0 * (index % 2) - 2.0), slices=()
            )
            for index, subject in enumerate(SUBJECTS)
        ),
    )


def run(
    folder: Path, artifact: Artifact, card: ModelCard, recipe: Recipe = RECIPE, workers: int = 2
) -> SimulationOutcome:
    return simulate(
        *(artifact, card, [artifact] * len(card.halves), COHORT, recipe, folder, quiet),
        sibling=artifact if card.sibling else None,
        workers=workers,
    )


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("stages")


@pytest.fixture(scope="module")
def outcome(folder: Path) -> SimulationOutcome:
    return run(folder, stripes_artifact(), stripes_card())


def test_images_are_those_of_their_classes(outcome: SimulationOutcome) -> None:
    assert outcome.images.shape == (2, 32, 32)
    assert outcome.probabilities.argmax(1).tolist() == [0, 1]


def test_every_check_ran(outcome: SimulationOutcome, folder: Path) -> None:
    assert [check.number for check in outcome.checks] == list(checks.NAMES)
    assert all(check.ran for check in outcome.checks)
    by_name = {check.name: check for check in outcome.checks}
    assert len(by_name["weight_randomisation"].values) == checks.RANDOMISED_NETWORKS
    assert len(by_name["stability"].values) == checks.RESAMPLES
    assert by_name["own_verdict"].passed
    assert by_name["label_permutation"].passed
    gaps = [checks.gap(load_arrays(folder / f"half-{index}.npz")["logits"]) for index in range(2)]
    assert by_name["independent_judge"].value == pytest.approx(np.mean(gaps) / 6)  # 6: the card's deviation
    assert by_name["another_seed"].value == pytest.approx(1)  # the sibling is the model itself
    assert len(by_name["label_permutation"].null) == 101
    assert outcome.verdict is checks.verdict(outcome.checks)


def test_the_nearest_slices_are_real_and_of_the_same_class(outcome: SimulationOutcome) -> None:
    for label, (instance, subject, nearest) in enumerate(
        zip(outcome.nearest_instances, outcome.nearest_subjects, outcome.nearest, strict=True)
    ):
        row = COHORT.instances.tolist().index(instance)
        assert (COHORT.labels[row], COHORT.subjects[row]) == (label, subject)
        assert abs(nearest.mean()) < 1e-4
        assert nearest.std() == pytest.approx(1, abs=1e-3)


def test_lineage_adds_up(outcome: SimulationOutcome) -> None:
    for layer in outcome.layers:
        assert layer.channels == 4
        assert 3 not in layer.selected  # the dead one
        assert sum(layer.weights) == pytest.approx(1)
    for label in CLASSES:
        mine = [subject for subject in outcome.subjects if subject.label == label]
        assert sum(subject.weight for subject in mine) == pytest.approx(1)
        assert sum(subject.slices for subject in mine) == 12
    assert [subject.subject for subject in outcome.subjects] == SUBJECTS


def test_the_same_again_and_after_a_kill(outcome: SimulationOutcome, folder: Path, tmp_path: Path) -> None:
    # What a run that was killed leaves: some stages, whole.
    for stage in folder.glob("*.npz"):
        if stage.stem not in ("images", "half-1", "randomised-2"):
            (tmp_path / stage.name).write_bytes(stage.read_bytes())
    again = run(tmp_path, stripes_artifact(), stripes_card(), workers=1)
    np.testing.assert_array_equal(again.images, outcome.images)
    assert again.checks == outcome.checks


def test_without_halves_the_result_is_unchecked_at_best(
    outcome: SimulationOutcome, folder: Path, tmp_path: Path
) -> None:
    for stage in folder.glob("*.npz"):
        (tmp_path / stage.name).write_bytes(stage.read_bytes())
    found = run(tmp_path, stripes_artifact(), stripes_card(halves=False))
    assert not found.checks[1].ran
    assert "half-cohort" in found.checks[1].detail
    assert found.verdict is not Verdict.EXPLANATION


def test_a_half_model_that_saw_all_subjects_is_no_judge(tmp_path: Path) -> None:
    card = stripes_card()
    seen_all = tuple(half.model_copy(update={"subjects": tuple(SUBJECTS)}) for half in card.halves)
    found = run(tmp_path, stripes_artifact(), card.model_copy(update={"halves": seen_all}), Recipe(steps=10))
    assert not found.checks[1].ran
    assert "half-0.pt was trained on every subject" in found.checks[1].detail


def test_a_composite_is_checked_too(tmp_path: Path) -> None:
    found = run(tmp_path, stripes_artifact(), stripes_card(), Recipe(method=SimulationMethod.COMPOSITE))
    assert [check.ran for check in found.checks] == [True] * 5 + [False, True, True]


def test_without_checks_only_the_images_are_made(tmp_path: Path) -> None:
    artifact, card = stripes_artifact(), stripes_card()
    found = simulate(artifact, card, [], COHORT, Recipe(steps=10), tmp_path, quiet, with_checks=False)
    assert found.checks == ()
    assert found.verdict is Verdict.UNCHECKED
    assert [path.name for path in tmp_path.iterdir()] == ["images.npz"]


def test_three_labels(tmp_path: Path) -> None:
    labels = ("a", "b", "c")
    cohort = replace(COHORT, classes=labels, labels=np.repeat(np.arange(8) % 3, 3))
    artifact, card = stripes_artifact(classes=3), stripes_card(halves=False)
    thirds = tuple(
        SubjectPrediction(subject=f"s{i:02d}", label=labels[i % 3], fold=0, logits=(0.0, 0.1, 0.2), slices=())
        for i in range(8)
    )
    card = card.model_copy(update={"labels": labels, "out_of_fold": thirds})
    found = simulate(artifact, card, [], cohort, Recipe(steps=10), tmp_path, quiet)
    assert found.images.shape == (3, 32, 32)
    assert found.probabilities.shape == (3, 3)
    assert [check.ran for check in found.checks] == [True, False, *[True] * 5, False]


@pytest.mark.parametrize(
    ("changes", "expected"),
    [({"classes": ("yes", "no")}, "the model's labels"), ({"labels": COHORT.labels * 0}, "it has none of 'yes'")],
)
def test_a_cohort_that_does_not_fit_is_refused(tmp_path: Path, changes: dict[str, object], expected: str) -> None:
    with pytest.raises(InvalidInputError, match=expected) as refused:
        simulate(stripes_artifact(), stripes_card(), [], replace(COHORT, **changes), RECIPE, tmp_path, quiet)
    assert refused.value.field == "cohort"
    assert not list(tmp_path.iterdir())


def test_resamples_hold_every_class_and_as_many_subjects() -> None:
    rare = COHORT.take(np.flatnonzero((COHORT.labels == 0) | (COHORT.subjects == "s01")))
    found = resample_subjects(rare, 20, 0)
    assert found.shape == (20, 5)
    assert (found.sum(1) == 5).all()
    assert (found[:, 1] > 0).all()  # s01 alone has the label


def test_thinning_keeps_every_class_and_spreads_over_subjects() -> None:
    found = COHORT.thin(8)
    assert np.bincount(found.labels).tolist() == [4, 4]
    assert len(set(found.subjects.tolist())) == 8
    assert len(COHORT.thin(1000).labels) == len(COHORT.labels)


def test_a_real_slice_is_realistic_and_a_blurred_one_is_not() -> None:
    rng = np.random.default_rng(0)
    slices = rng.normal(size=(30, 32, 32)).astype(np.float32)
    real = RealSlices.measure(slices[:29], np.array([f"s{index}" for index in range(29)]))
    same, mean = real.judge(slices[29]), real.judge(slices.mean(0))
    assert same.high_frequencies == pytest.approx(1, abs=0.2)
    assert same.spectrum < 2
    assert same.nearest_real == pytest.approx(1, abs=0.1)
    assert mean.high_frequencies < 0.2
    assert mean.spectrum > 2


def test_an_ensemble_has_the_channels_of_all_its_members(tmp_path: Path) -> None:
    single = stripes_artifact()
    artifact = Artifact(Ensemble([stripes_artifact().network, stripes_artifact().network]))
    card = stripes_card(halves=False, channels=(8,) * 5)
    found = simulate(artifact, card, [], COHORT, Recipe(steps=20), tmp_path, quiet)
    assert [layer.channels for layer in found.layers] == [8] * 5
    assert all(not {3, 7} & set(layer.selected) for layer in found.layers)  # each member's dead channel
    assert found.faithfulness
    # Equal members answer as one of them does.
    np.testing.assert_allclose(found.logits, judge_images(single, found.images).logits, atol=1e-4)


def test_a_result_survives_its_file_whatever_its_figures(outcome: SimulationOutcome, tmp_path: Path) -> None:
    strange = replace(outcome.checks[2], value=math.inf, values=(math.inf, -math.inf, 0.5))
    saved = replace(outcome, checks=(strange, *outcome.checks[3:]))
    source = Source("m", 1, "0" * 64, "c", "1" * 64, Grid(fov_mm=32, size=32), RECIPE)
    save_result(tmp_path, source, saved)
    json.loads((tmp_path / FACTS_FILE).read_text(), parse_constant=pytest.fail)
    found_source, found = load_result(tmp_path)
    assert found_source == source
    assert (found.checks, found.faithfulness, found.layers) == (saved.checks, saved.faithfulness, saved.layers)
    np.testing.assert_array_equal(found.distances, saved.distances)
