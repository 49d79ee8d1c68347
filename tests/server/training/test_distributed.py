"""Several processes train as one does: two of gloo's, started by torchrun."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from limner.imaging.grid import Grid
from limner_server.networks.repository import ModelRepository
from limner_server.training.config import TrainingConfig
from limner_server.training.distributed import World
from limner_server.training.request import TrainingRequest
from tests.server.training.cohorts import stored
from tests.server.training.shared_steps import two_steps

AUC_TOLERANCE = 0.05
BRIER_TOLERANCE = 0.1
CONFIG = TrainingConfig(
    grid=Grid(128.0, 32), folds=2, epochs=8, batch_size=16, seed=1, halves=False, patience=8, class_weights=True
)


TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2")


@contextmanager
def started(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process that works on a folder, its leash held."""
    command = [sys.executable, *arguments, str(folder)]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log)
    with process:
        yield process


def finished(folder: Path, *arguments: str) -> list[dict[str, Any]]:
    """What a process that has to end well reports."""
    with started(folder, *arguments) as process:
        assert process.stdout is not None
        events = [json.loads(line) for line in process.stdout]
        process.wait(60)
    assert process.returncode == 0, (folder / "log").read_text()
    return events


@given(st.integers(2, 200), st.integers(1, 9))
def test_every_slice_is_learnt_from_once(count: int, size: int) -> None:
    shares = [World(rank, size).share(count) for rank in range(size)]
    times = np.zeros(count)
    for part, weight in shares:
        times[part] += weight
        assert part.stop - part.start >= 2  # batch statistics
    np.testing.assert_allclose(times, 1)
    sizes = {part.stop - part.start for part, _ in shares}
    assert max(sizes) - min(sizes) <= 1


def test_without_torchrun_a_process_is_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert World.of_environment() == World(0, 1, 0, 1)
    for name, value in {"RANK": 3, "WORLD_SIZE": 4, "LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": 2}.items():
        monkeypatch.setenv(name, str(value))
    assert World.of_environment() == World(3, 4, 1, 2)
    assert not World.of_environment().leads


def test_two_processes_take_the_steps_of_one(tmp_path: Path) -> None:
    """Uneven shares, weights of labels, label smoothing, and a batch that is too small to share."""
    finished(tmp_path, *TORCHRUN, "-m", "tests.server.training.shared_steps")
    expected, expected_totals = two_steps(World())
    for rank in range(2):
        weights, totals = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        np.testing.assert_allclose(totals, expected_totals, rtol=1e-4)
        for name, value in expected.items():
            torch.testing.assert_close(weights[name], value, atol=1e-4, rtol=1e-4, msg=name)


def prepare(folder: Path, config: TrainingConfig = CONFIG) -> None:
    request = TrainingRequest(
        id="t-1",
        cohort="tiny",
        model="m",
        config=config,
        database_url=stored(folder / "data", subjects=12),
        data_dir=folder / "data",
        model_repository=folder / "models",
        device="cpu",
        threads=1,
    )
    (folder / "request.json").write_text(request.model_dump_json())


def test_two_processes_train_a_model_like_that_of_one(tmp_path: Path) -> None:
    cards = []
    for name, launcher in (("alone", ()), ("together", TORCHRUN)):
        folder = tmp_path / name
        folder.mkdir()
        prepare(folder)
        events = finished(folder, *launcher, "-m", "limner_server.training.job")
        assert [event for event in events if "result" in event] == events[-1:]
        fractions = [event["progress"]["fraction"] for event in events[:-1]]
        assert fractions == sorted(fractions)
        assert fractions[-1] == 1
        cards.append(ModelRepository(folder / "models").card("m", 1))
    one, two = ({metric.name: metric.value for metric in card.metrics} for card in cards)
    assert one["auc"] == pytest.approx(two["auc"], abs=AUC_TOLERANCE)
    assert one["brier"] == pytest.approx(two["brier"], abs=BRIER_TOLERANCE)
    assert one["auc"] > 0.9


def test_a_process_that_dies_fails_the_training_and_hangs_nothing(tmp_path: Path) -> None:
    prepare(tmp_path, CONFIG.model_copy(update={"epochs": 500, "patience": 0}))
    with started(tmp_path, *TORCHRUN, "-m", "limner_server.training.job") as process:
        assert process.stdout is not None
        while b"fold 1 of 2" not in (line := process.stdout.readline()):
            assert line, (tmp_path / "log").read_text()
        workers = psutil.Process(process.pid).children(recursive=True)
        second = next(worker for worker in workers if worker.environ().get("RANK") == "1")
        os.kill(second.pid, signal.SIGKILL)
        rest = [json.loads(line) for line in process.stdout]
        assert process.wait(60) != 0
    # No last word, as of any process that is killed: the runner starts such a job again.
    assert all("progress" in event for event in rest)
    # Named among those that failed; first of them may be the other one, which ends since this one is gone.
    assert f"exitcode  : -9 (pid: {second.pid})" in (tmp_path / "log").read_text()
    assert not any(worker.is_running() and worker.status() != psutil.STATUS_ZOMBIE for worker in workers)
