"""One network: a resumed run ends on the same weights, bit for bit."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from limner.imaging.grid import Grid
from limner_server.errors import StorageFullError
from limner_server.networks.artifact import normalise
from limner_server.networks.resnet import Network
from limner_server.training import loop
from limner_server.training.config import TrainingConfig
from limner_server.training.loop import NetworkPlan, StepReport, Trainer, steps_per_epoch
from tests.server.networks.test_artifact import full_disk

CONFIG = TrainingConfig(grid=Grid(128.0, 32), epochs=3, batch_size=4, seed=5)
ROWS = np.arange(9)


class Killed(BaseException):
    """Stands for the end of the process: nothing of ours catches it."""


@pytest.fixture(scope="module")
def trainer() -> Trainer:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(12) % 2
    images = torch.rand(12, 32, 32, generator=generator) + labels[:, None, None]
    images[:, :16] += 2 * labels[:, None, None]
    return Trainer(normalise(images), labels, 2, CONFIG, torch.device("cpu"))


@pytest.fixture(scope="module")
def undisturbed(trainer: Trainer, tmp_path_factory: pytest.TempPathFactory) -> tuple[Network, list[StepReport], Path]:
    reports: list[StepReport] = []
    checkpoint = tmp_path_factory.mktemp("undisturbed") / "0.pt"
    return trainer.train(NetworkPlan(0, ROWS, CONFIG.epochs, checkpoint), reports.append), reports, checkpoint


def equal(one: Network, other: Network) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def kill_at(step: int) -> Callable[[StepReport], None]:
    steps = iter(range(1000))

    def on_step(_: StepReport) -> None:
        if next(steps) == step:
            raise Killed

    return on_step


@pytest.mark.parametrize("step", [0, 4, 8])
def test_a_run_killed_at_any_step_goes_on_to_the_same_weights(
    trainer: Trainer, undisturbed: tuple[Network, list[StepReport], Path], tmp_path: Path, step: int
) -> None:
    plan = NetworkPlan(0, ROWS, CONFIG.epochs, tmp_path / "0.pt")
    with pytest.raises(Killed):
        trainer.train(plan, kill_at(step))
    torch.manual_seed(step)  # whatever the new process drew before
    assert equal(trainer.train(plan, lambda _: None), undisturbed[0])


def test_a_finished_network_is_not_trained_again(
    trainer: Trainer, undisturbed: tuple[Network, list[StepReport], Path]
) -> None:
    reports: list[StepReport] = []
    again = trainer.train(NetworkPlan(0, ROWS, CONFIG.epochs, undisturbed[2]), reports.append)
    assert equal(again, undisturbed[0])
    assert reports == []
    assert "optimiser" not in torch.load(undisturbed[2], weights_only=True)


def test_another_network_of_the_training_differs(
    trainer: Trainer, undisturbed: tuple[Network, list[StepReport], Path], tmp_path: Path
) -> None:
    other = trainer.train(NetworkPlan(1, ROWS, CONFIG.epochs, tmp_path / "1.pt"), lambda _: None)
    assert not equal(other, undisturbed[0])


def test_reports_count_every_slice(undisturbed: tuple[Network, list[StepReport], Path]) -> None:
    reports = undisturbed[1]
    assert [(r.epoch, r.images_done) for r in reports] == [
        (1, 3), (1, 6), (1, 9), (2, 12), (2, 15), (2, 18), (3, 21), (3, 24), (3, 27),
    ]  # fmt: skip
    assert all(0 <= r.accuracy <= 1 and r.images_per_second > 0 for r in reports)


def test_training_leaves_the_global_random_state_alone(trainer: Trainer, tmp_path: Path) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    trainer.train(NetworkPlan(2, ROWS[:2], CONFIG.epochs, tmp_path / "2.pt"), lambda _: None)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_full_disk_keeps_the_last_checkpoint(trainer: Trainer, tmp_path: Path) -> None:
    plan = NetworkPlan(0, ROWS[:2], CONFIG.epochs, tmp_path / "0.pt")
    with pytest.raises(Killed):
        trainer.train(plan, kill_at(1))
    before = plan.checkpoint.read_bytes()
    with full_disk(1_000_000), pytest.raises(StorageFullError):
        trainer.train(plan, lambda _: None)
    assert plan.checkpoint.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["0.pt"]


def test_channel_means_and_logits_do_not_depend_on_the_batches(
    trainer: Trainer, undisturbed: tuple[Network, list[StepReport], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    network = undisturbed[0]
    logits, means = trainer.logits(network, ROWS), trainer.channel_means(network, ROWS)
    monkeypatch.setattr(loop, "EVALUATION_BATCH", 2)
    np.testing.assert_allclose(trainer.logits(network, ROWS), logits, atol=1e-5)
    for one, other in zip(trainer.channel_means(network, ROWS), means, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("slices", "batch", "steps"), [(216, 32, 7), (3, 2, 1), (2, 32, 1), (64, 32, 2), (9, 4, 3)])
def test_no_batch_is_a_single_slice(slices: int, batch: int, steps: int) -> None:
    assert steps_per_epoch(slices, batch) == steps
    assert min(len(part) for part in np.array_split(np.arange(slices), steps)) >= 2


def test_a_network_learns_what_is_plain_to_see(tmp_path: Path) -> None:
    labels = torch.arange(24) % 2
    images = torch.rand(24, 32, 32, generator=torch.Generator().manual_seed(0))
    images[:, 12:20, 12:20] += labels[:, None, None]
    config = CONFIG.model_copy(update={"epochs": 8})
    trainer = Trainer(normalise(images), labels, 2, config, torch.device("cpu"))
    network = trainer.train(NetworkPlan(0, np.arange(12), config.epochs, tmp_path / "0.pt"), lambda _: None)
    unseen = np.arange(12, 24)
    assert (trainer.logits(network, unseen).argmax(axis=1) == labels[unseen].numpy()).all()
