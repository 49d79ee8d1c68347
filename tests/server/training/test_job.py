"""The job as the server starts it: a process on a folder, killed and started again."""

import hashlib
import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from limner.imaging.grid import Grid
from limner_server.errors import InvalidInputError, WrongStateError
from limner_server.jobs.process import Reporter
from limner_server.networks.artifact import load
from limner_server.networks.card import ModelCard
from limner_server.networks.repository import ModelRepository
from limner_server.state.cohorts import CohortStore
from limner_server.training.config import TrainingConfig
from limner_server.training.job import run
from limner_server.training.request import TrainingRequest
from tests.server.training.cohorts import stored

CONFIG = TrainingConfig(grid=Grid(128.0, 32), folds=2, epochs=2, batch_size=8, seed=1)


@pytest.fixture(scope="module", autouse=True)
def torch_as_it_was() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The server's data folder, with a cohort of six subjects, and the URL of its database."""
    folder = tmp_path_factory.mktemp("data")
    return folder, stored(folder)


def prepare(
    folder: Path, data: tuple[Path, str], config: TrainingConfig = CONFIG, cohort: str = "tiny"
) -> TrainingRequest:
    folder.mkdir(exist_ok=True)
    request = TrainingRequest(
        id="t-1",
        cohort=cohort,
        model="m",
        config=config,
        database_url=data[1],
        data_dir=data[0],
        model_repository=folder / "models",
        device="cpu",
        threads=1,
    )
    (folder / "request.json").write_text(request.model_dump_json())
    return request


def run_here(folder: Path) -> list[dict[str, object]]:
    """Run the job in this process and return what it reported."""
    out = io.BytesIO()
    run(folder, Reporter(out))
    return [json.loads(line) for line in out.getvalue().splitlines()]


@pytest.fixture(scope="module")
def undisturbed(
    data: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[dict[str, object]]]:
    folder = tmp_path_factory.mktemp("undisturbed")
    prepare(folder, data)
    return folder, run_here(folder)


def card_of(folder: Path) -> ModelCard:
    return ModelRepository(folder / "models").card("m", 1)


def assert_same_weights(one: Path, other: Path) -> None:
    for file in ("model.pt", "half-0.pt", "half-1.pt"):
        ours, theirs = (weights_of(folder / "models/m/1" / file) for folder in (one, other))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(value, theirs[name]) for name, value in ours.items())


def weights_of(file: Path) -> dict[str, torch.Tensor]:
    return load(file, hashlib.sha256(file.read_bytes()).hexdigest()).state_dict()  # type: ignore[no-any-return]


def start(folder: Path) -> subprocess.Popen[bytes]:
    command = [sys.executable, "-m", "limner_server.training.job", str(folder)]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)


def test_the_card_tells_what_was_trained(undisturbed: tuple[Path, list[dict[str, object]]]) -> None:
    folder, events = undisturbed
    card = card_of(folder)
    assert events[-1] == {
        "result": {
            "name": "m",
            "version": 1,
            "digest": card.digest,
            "metrics": [metric.model_dump() for metric in card.metrics],
        }
    }
    assert card.training == "t-1"
    assert card.cohort.subjects == {"no": 3, "yes": 3}
    assert card.cohort.slices == {"no": 9, "yes": 9}
    assert [prediction.subject for prediction in card.out_of_fold] == [f"s{n}" for n in range(6)]
    assert {len(prediction.slices) for prediction in card.out_of_fold} == {3}
    assert {prediction.fold for prediction in card.out_of_fold} == {0, 1}
    counted = Counter((prediction.label, prediction.chosen) for prediction in card.out_of_fold)
    assert card.evaluation is not None
    assert [[counted[label, chosen] for chosen in card.labels] for label in card.labels] == [
        list(row) for row in card.evaluation.confusion
    ]
    assert TrainingConfig.model_validate(card.config) == CONFIG
    first, second = card.halves
    assert set(first.subjects).isdisjoint(second.subjects)
    assert len(first.subjects) + len(second.subjects) == 6
    assert first.held_out[0].difference == pytest.approx(first.held_out[1].difference)


def test_progress_rises_to_the_end(undisturbed: tuple[Path, list[dict[str, object]]]) -> None:
    progress = [event["progress"] for event in undisturbed[1] if "progress" in event]
    fractions = [item["fraction"] for item in progress]  # type: ignore[index]
    assert fractions == sorted(fractions)
    assert fractions[0] == 0
    assert fractions[-1] == 1


def test_every_artifact_loads_by_its_digest(
    undisturbed: tuple[Path, list[dict[str, object]]], data: tuple[Path, str]
) -> None:
    folder = undisturbed[0]
    entry = ModelRepository(folder / "models").get("m", 1)
    assert entry.card is not None
    load(entry.artifact, entry.card.digest)
    for half in entry.card.halves:
        load(entry.folder / half.file, half.digest)
    assert not (folder / "networks").exists()
    assert not (folder / "staging").exists()


def test_served_logits_equal_the_training_sides(
    undisturbed: tuple[Path, list[dict[str, object]]], data: tuple[Path, str]
) -> None:
    """The half's held-out statistics were computed by the training side; the exported half gives the same."""
    entry = ModelRepository(undisturbed[0] / "models").get("m", 1)
    assert entry.card is not None
    snapshot = CohortStore(data[1], data[0]).snapshot("tiny")
    for half in entry.card.halves:
        held_out = [item for item in snapshot.slices if item.subject not in half.subjects]
        images = torch.from_numpy(np.stack([entry.card.grid.resample(item.read()) for item in held_out]))
        logits = load(entry.folder / half.file, half.digest)(images)[0].detach().numpy()
        margin = logits[:, 1] - logits[:, 0]
        own = np.array([item.label == "yes" for item in held_out])
        judge = half.held_out[1]
        assert judge.difference == pytest.approx(margin[own].mean() - margin[~own].mean(), abs=1e-4)
        assert judge.deviation == pytest.approx(margin.std(), abs=1e-4)


def test_killed_and_started_again_it_gives_the_same_card(
    undisturbed: tuple[Path, list[dict[str, object]]], data: tuple[Path, str], tmp_path: Path
) -> None:
    """Kill -9 in the second network, then again while the job is exporting; and no second version at the end."""
    folder = tmp_path / "job"
    prepare(folder, data)
    for until in ('"fold 2 of 2"', '"exporting"'):
        process = start(folder)
        assert process.stdout is not None
        while until.encode() not in (line := process.stdout.readline()):
            assert line, "the job ended before it could be killed"
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    assert ModelRepository(folder / "models").list_versions() == []
    process = start(folder)
    assert process.stdout is not None
    *_, last = process.stdout  # to its end, the leash held
    process.wait()
    process.communicate()
    assert json.loads(last)["result"]["version"] == 1
    found, expected = card_of(folder), card_of(undisturbed[0])
    # TorchScript numbers its types by process, so the files differ where their weights do not.
    own = {"created", "digest", "halves"}
    assert found.model_dump(exclude=own) == expected.model_dump(exclude=own)
    assert [half.held_out for half in found.halves] == [half.held_out for half in expected.halves]
    assert_same_weights(folder, undisturbed[0])
    # Every epoch is in the log once, those that were learnt twice too.
    assert points(folder, "train/loss") == points(undisturbed[0], "train/loss")
    assert points(folder, "held_out/auc") == points(undisturbed[0], "held_out/auc")


def points(folder: Path, tag: str) -> dict[str, list[tuple[int, float]]]:
    """Steps and values of a tag in each run of a job's TensorBoard log that has it."""
    found = {}
    for run_folder in sorted((folder / "tensorboard").iterdir()):
        events = EventAccumulator(str(run_folder)).Reload()
        if tag in events.Tags()["scalars"]:
            found[run_folder.name] = [(event.step, event.value) for event in events.Scalars(tag)]
    return found


def test_the_log_has_every_network_and_nobody(undisturbed: tuple[Path, list[dict[str, object]]]) -> None:
    folder = undisturbed[0]
    passes = {name: [step for step, _ in steps] for name, steps in points(folder, "train/loss").items()}
    assert passes == {
        "000-fold-1-of-2": [1, 2, 3, 4],  # two folds are the halves, which learn twice as long
        "001-fold-2-of-2": [1, 2, 3, 4],
        "002-all-subjects": [1, 2],
    }
    (rates,) = points(folder, "train/learning_rate")["002-all-subjects"][-1:]
    assert 0 < rates[1] < CONFIG.learning_rate / 100  # the end of one cycle
    speeds = points(folder, "train/images_per_second")
    assert all(value > 0 for steps in speeds.values() for _, value in steps)
    held_out = {name: points(folder, f"held_out/{name}")["held-out"] for name in ("loss", "accuracy", "auc")}
    assert all([step for step, _ in steps] == [0, 1] for steps in held_out.values())
    for run_folder in (folder / "tensorboard").iterdir():
        tags = EventAccumulator(str(run_folder)).Reload().Tags()
        assert set(tags.pop("scalars")) <= {
            *(f"train/{name}" for name in ("loss", "accuracy", "learning_rate", "images_per_second")),
            *(f"held_out/{name}" for name in ("loss", "accuracy", "auc")),
        }
        assert not any(tags.values()), "scalars are all there is: no text, no image, no graph"


def test_a_log_that_cannot_be_written_does_not_stop_the_training(data: tuple[Path, str], tmp_path: Path) -> None:
    prepare(tmp_path, data, CONFIG.model_copy(update={"epochs": 1}))
    (tmp_path / "tensorboard").write_text("in the way")
    assert "result" in run_here(tmp_path)[-1]


def test_folds_stop_early_and_the_others_learn_their_median(data: tuple[Path, str], tmp_path: Path) -> None:
    stored(data[0], subjects=12, name="more")
    config = TrainingConfig(
        grid=Grid(128.0, 32), folds=3, epochs=6, batch_size=8, seed=1, patience=1, learning_rate=5e-3
    )
    prepare(tmp_path, data, config, "more")
    events = run_here(tmp_path)
    watched, learnt = points(tmp_path, "watched/loss"), points(tmp_path, "train/loss")
    assert list(watched) == [f"00{index}-fold-{index + 1}-of-3" for index in range(3)]
    best = []
    for name, steps in watched.items():
        losses = [loss for _, loss in steps]
        best.append(int(np.argmin(losses)) + 1)
        assert len(learnt[name]) == len(losses) == min(config.epochs, best[-1] + config.patience)
    assert min(best) < config.epochs, "none stopped early: this test shows nothing"
    usual = round(float(np.median(best)))
    assert len(learnt["003-half-1-of-2"]) == len(learnt["004-half-2-of-2"]) == 2 * usual
    assert len(learnt["005-all-subjects"]) == usual
    card = card_of(tmp_path)
    assert card.evaluation is not None
    assert card.evaluation.epochs == tuple(best)
    progress = [event["progress"]["fraction"] for event in events[:-1]]  # type: ignore[index]
    assert progress == sorted(progress)
    assert progress[-1] == 1


def test_a_job_started_again_after_publishing_publishes_nothing(
    undisturbed: tuple[Path, list[dict[str, object]]], tmp_path: Path
) -> None:
    folder = tmp_path / "job"
    shutil.copytree(undisturbed[0], folder)
    request = TrainingRequest.model_validate_json((folder / "request.json").read_bytes())
    moved = request.model_copy(update={"model_repository": folder / "models"})
    (folder / "request.json").write_text(moved.model_dump_json())
    events = run_here(folder)
    assert events == undisturbed[1][-1:]
    assert ModelRepository(folder / "models").numbers("m") == [1]


def test_a_cohort_that_changed_is_not_trained_on(data: tuple[Path, str], tmp_path: Path) -> None:
    prepare(tmp_path, data)
    (tmp_path / "cohort.sha256").write_text("0" * 64)
    with pytest.raises(WrongStateError, match="changed"):
        run_here(tmp_path)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"folds": 4}, "'no' has 3"),
        ({"pretrained": "none.pt"}, r"config\.pretrained"),
        ({"patience": 2}, "two training subjects"),
    ],
)
def test_what_cannot_be_trained_is_refused_before_training(
    data: tuple[Path, str], tmp_path: Path, changes: dict[str, object], named: str
) -> None:
    prepare(tmp_path, data, CONFIG.model_copy(update=changes))
    with pytest.raises(InvalidInputError, match=named):
        run_here(tmp_path)
    assert not (tmp_path / "models").exists()
