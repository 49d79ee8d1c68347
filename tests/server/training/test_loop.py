"""One network: a resumed run ends on the same weights, bit for bit."""

import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from limner.imaging.grid import Grid
from limner_server.errors import LeftOffError, LimnerError, StorageFullError
from limner_server.networks.artifact import normalise
from limner_server.networks.resnet import Network, build_network
from limner_server.training import loop
from limner_server.training.config import TrainingConfig
from limner_server.training.distributed import World
from limner_server.training.loop import (
    EpochReport,
    NetworkPlan,
    StepReport,
    Trainer,
    class_weights,
    steps_per_epoch,
)
from limner_server.training.run import Run
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
    network = trainer.train(NetworkPlan(0, ROWS, CONFIG.epochs, checkpoint), reports.append).network
    return network, reports, checkpoint


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
    assert equal(trainer.train(plan, lambda _: None).network, undisturbed[0])


@pytest.mark.parametrize("step", [0, 1, 2, 3, 8])
def test_a_run_that_leaves_off_at_any_step_goes_on_from_there_to_the_same_weights(
    trainer: Trainer, undisturbed: tuple[Network, list[StepReport], Path], tmp_path: Path, step: int
) -> None:
    plan = NetworkPlan(0, ROWS, CONFIG.epochs, tmp_path / "0.pt")
    asked = iter([False] * step + [True])
    leaving = Trainer(trainer._slices, trainer._labels, 2, CONFIG, torch.device("cpu"), leaves_off=lambda: next(asked))
    with pytest.raises(LeftOffError):
        leaving.train(plan, lambda _: None)
    reports: list[StepReport] = []
    assert equal(trainer.train(plan, reports.append).network, undisturbed[0])
    assert len(reports) == len(undisturbed[1]) - step
    last, expected = reports[-1], undisturbed[1][-1]
    assert (last.images_done, last.loss) == (expected.images_done, expected.loss)


def test_a_finished_network_is_not_trained_again(
    trainer: Trainer, undisturbed: tuple[Network, list[StepReport], Path]
) -> None:
    reports: list[StepReport] = []
    again = trainer.train(NetworkPlan(0, ROWS, CONFIG.epochs, undisturbed[2]), reports.append).network
    assert equal(again, undisturbed[0])
    assert reports == []
    assert "optimiser" not in torch.load(undisturbed[2], weights_only=True)


def test_another_network_of_the_training_differs(
    trainer: Trainer, undisturbed: tuple[Network, list[StepReport], Path], tmp_path: Path
) -> None:
    other = trainer.train(NetworkPlan(1, ROWS, CONFIG.epochs, tmp_path / "1.pt"), lambda _: None).network
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
    network = trainer.train(NetworkPlan(0, np.arange(12), config.epochs, tmp_path / "0.pt"), lambda _: None).network
    unseen = np.arange(12, 24)
    assert (trainer.logits(network, unseen).argmax(axis=1) == labels[unseen].numpy()).all()


def test_labels_weigh_inversely_to_their_frequency() -> None:
    weights = class_weights(np.array([0, 0, 0, 1]), 2)
    torch.testing.assert_close(weights, torch.tensor([2 / 3, 2.0]))
    assert class_weights(np.array([0, 0]), 3).tolist() == pytest.approx([1 / 3, 2 / 3, 2 / 3])


def test_the_weighted_loss_is_the_one_of_the_book() -> None:
    """Probabilities 1/2 for a slice of the first label, 3/4 for one of the second."""
    logits, labels = torch.tensor([[0.0, 0.0], [0.0, np.log(3)]]), torch.tensor([0, 1])
    config = CONFIG.model_copy(update={"label_smoothing": 0.0})
    run = Run(build_network("resnet18", 2), config, 4, torch.tensor([2 / 3, 2.0]), torch.device("cpu"), World())
    assert run.loss(logits, labels) == pytest.approx((2 / 3 * np.log(2) + 2 * np.log(4 / 3)) / (2 / 3 + 2))


@pytest.mark.parametrize("weights", [None, torch.tensor([0.5, 3.0])])
def test_a_step_reports_torchs_own_loss(trainer: Trainer, weights: torch.Tensor | None) -> None:
    torch.manual_seed(0)
    network = build_network("resnet18", 2).train()
    slices, labels = torch.randn(5, 1, 32, 32), torch.tensor([0, 1, 1, 0, 1])
    expected = torch.nn.functional.cross_entropy(
        copy.deepcopy(network)(slices), labels, weights, label_smoothing=CONFIG.label_smoothing
    )
    run = Run(network, CONFIG, 4, weights, torch.device("cpu"), World())
    totals = run.step(slices, labels, slice(0, 5), 1.0)
    assert totals[0].item() / 5 == pytest.approx(expected.item(), rel=1e-5)


def test_class_weights_reach_the_training(trainer: Trainer, tmp_path: Path) -> None:
    rows = np.array([0, 1, 2, 4, 6, 8])  # one of the second label
    found = []
    for number, weighted in enumerate((False, True)):
        config = CONFIG.model_copy(update={"class_weights": weighted, "epochs": 1})
        other = Trainer(trainer._slices, trainer._labels, 2, config, torch.device("cpu"))
        found.append(other.train(NetworkPlan(0, rows, 1, tmp_path / f"{number}.pt"), lambda _: None).network)
    assert not equal(*found)


def test_a_loss_that_is_no_number_is_told_and_not_kept(trainer: Trainer, tmp_path: Path) -> None:
    config = CONFIG.model_copy(update={"learning_rate": 10.0})
    slices = trainer._slices.clone()
    slices[3] = float("nan")
    other = Trainer(slices, trainer._labels, 2, config, torch.device("cpu"))
    with pytest.raises(LimnerError, match="loss became nan in epoch 1"):
        other.train(NetworkPlan(0, ROWS, CONFIG.epochs, tmp_path / "0.pt"), lambda _: None)
    assert not (tmp_path / "0.pt").exists()


def watching(trainer: Trainer, patience: int) -> Trainer:
    """A trainer whose watched slices have labels by chance, so that a better loss on them does not last."""
    config = CONFIG.model_copy(update={"epochs": 12, "patience": patience, "learning_rate": 5e-3})
    labels = trainer._labels.clone()
    labels[9:] = 1 - labels[9:]
    return Trainer(trainer._slices, labels, 2, config, torch.device("cpu"))


def watched_plan(checkpoint: Path) -> NetworkPlan:
    return NetworkPlan(0, ROWS, 12, checkpoint, watched=np.arange(9, 12))


def test_it_stops_early_and_takes_the_best_epochs_weights(trainer: Trainer, tmp_path: Path) -> None:
    trainer = watching(trainer, 2)
    epochs: list[EpochReport] = []
    result = trainer.train(watched_plan(tmp_path / "0.pt"), lambda _: None, epochs.append)
    losses = [report.watched_loss for report in epochs]
    assert result.epochs == int(np.argmin(losses)) + 1
    assert len(epochs) == result.epochs + 2 < 12
    assert result.images == len(epochs) * len(ROWS)
    # The same as a network that was told to stop there, on the same schedule.
    cut = NetworkPlan(0, ROWS, 12, tmp_path / "cut.pt").until(result.epochs)
    expected = trainer.train(cut, lambda _: None)
    assert equal(result.network, expected.network)
    assert (expected.epochs, expected.images) == (result.epochs, result.epochs * len(ROWS))


@pytest.mark.parametrize("after", ["the best", "the last"])
def test_killed_while_watched_it_stops_at_the_same_epoch(trainer: Trainer, tmp_path: Path, after: str) -> None:
    trainer = watching(trainer, 2)
    undisturbed = trainer.train(watched_plan(tmp_path / "undisturbed.pt"), lambda _: None)
    epoch = undisturbed.epochs + (1 if after == "the best" else 2)
    plan = watched_plan(tmp_path / "0.pt")
    with pytest.raises(Killed):
        trainer.train(plan, kill_at(3 * epoch - 2))  # three steps an epoch
    resumed = trainer.train(plan, lambda _: None)
    assert (resumed.epochs, resumed.images) == (undisturbed.epochs, undisturbed.images)
    assert equal(resumed.network, undisturbed.network)
    again = trainer.train(plan, lambda _: pytest.fail("it was finished"))
    assert (again.epochs, again.images) == (undisturbed.epochs, undisturbed.images)


def test_the_schedule_does_not_depend_on_where_it_is_cut(trainer: Trainer, tmp_path: Path) -> None:
    rates: dict[int, list[float]] = {}
    for last in (2, 3):
        epochs: list[EpochReport] = []
        plan = NetworkPlan(0, ROWS, 3, tmp_path / f"{last}.pt").until(last)
        trainer.train(plan, lambda _: None, epochs.append)
        rates[last] = [report.learning_rate for report in epochs]
    assert rates[3][:2] == rates[2]
    assert rates[3][2] < 1e-4 * CONFIG.learning_rate
