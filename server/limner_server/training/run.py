"""One network while it learns: optimiser, schedule, loss, what it was watched to do; and its checkpoint."""

import copy
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from limner_server.files import write_atomic
from limner_server.networks.resnet import Network
from limner_server.training.config import TrainingConfig
from limner_server.training.distributed import World
from limner_server.training.stopping import best_epoch


@dataclass(frozen=True, eq=False)
class Within:
    """Where in an epoch a network was left.

    Attributes
    ----------
    steps
        Number of steps of the epoch that are done.
    generator
        State of the epoch's generator.
    totals
        `(2,)` as `StepReport` has them.
    """

    steps: int
    generator: Tensor
    totals: Tensor


class Run:
    """A network with its optimiser and schedule.

    Parameters
    ----------
    network
        Taken over: it is the one that learns.
    config
        How it learns.
    steps
        Steps of the whole one-cycle schedule; the run may end before.
    weights
        `(k,)` float32 on the network's device, how much a slice of each label counts; None: all alike.
    device, world
        Where, and with whom.

    Attributes
    ----------
    network
        As it was last left by `step` or `restore`.
    epochs_done
        Number of epochs it has learnt.
    losses
        Loss on the watched subjects after each of them, where there are any.
    within
        Where in the next epoch it was left, if not before it.
    finished
        Whether it was saved so.
    learning_rate
        Of the last step.
    """

    def __init__(
        self,
        network: Network,
        config: TrainingConfig,
        steps: int,
        weights: Tensor | None,
        device: torch.device,
        world: World,
    ) -> None:
        self.network = network
        self.epochs_done = 0
        self.losses: list[float] = []
        self.within: Within | None = None
        self.finished = False
        self.learning_rate = 0.0
        self._best: dict[str, Tensor] = {}
        self._learner = world.learner(network, device)
        self._optimiser = torch.optim.AdamW(
            network.parameters(), lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self._schedule = torch.optim.lr_scheduler.OneCycleLR(
            self._optimiser, max_lr=config.learning_rate, total_steps=steps
        )
        self._smoothing = config.label_smoothing
        self._weights = weights
        self._device = device
        self._world = world

    def step(self, slices: Tensor, labels: Tensor, share: slice, weight: float) -> Tensor:
        """Learn from one batch.

        Parameters
        ----------
        slices, labels
            `(n, 1, s, s)` and `(n,)`, the whole batch.
        share, weight
            What of it is this process's, as `World.share` says.

        Returns
        -------
        Tensor
            `(2,)` float64 on the device: the share's part in the batch's loss times `n`, and its number of slices
            classified rightly, both times `weight`. The sum over all processes is the batch's.
        """
        own = labels[share]
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type == "cuda"):
            logits = self._learner(slices[share])
        loss = weight * self._sum(logits, own) / self._mass(labels)
        self._optimiser.zero_grad(set_to_none=True)
        # The processes' gradients are averaged where they are to be summed.
        (loss * self._world.size).backward()
        self._optimiser.step()
        self.learning_rate = float(self._schedule.get_last_lr()[0])
        self._schedule.step()
        right = weight * (logits.argmax(dim=1) == own).sum()
        return torch.stack([loss.detach() * len(labels), right]).double()

    def loss(self, logits: Tensor, labels: Tensor) -> float:
        """The loss that is learnt from, of logits `(n, k)`."""
        return float(self._sum(logits, labels) / self._mass(labels))

    def _sum(self, logits: Tensor, labels: Tensor) -> Tensor:
        return functional.cross_entropy(
            logits.float(), labels, self._weights, reduction="sum", label_smoothing=self._smoothing
        )

    def _mass(self, labels: Tensor) -> Tensor | int:
        """What a batch's summed loss is divided by."""
        return len(labels) if self._weights is None else self._weights[labels].sum()

    def end_epoch(self, loss: float | None) -> None:
        """Count an epoch; with a loss on the watched subjects, keep the weights if none was better."""
        self.epochs_done += 1
        self.within = None
        if loss is not None:
            self.losses.append(loss)
            if best_epoch(self.losses) == self.epochs_done:
                self._best = copy.deepcopy(self.network.state_dict())

    def finish(self) -> None:
        """Take the best epoch's weights, where it was watched."""
        self.finished = True
        if self._best:
            self.network.load_state_dict(self._best)

    @property
    def epochs_taken(self) -> int:
        """Number of epochs that the weights of a finished network have learnt."""
        return best_epoch(self.losses) if self.losses else self.epochs_done

    def save(self, path: Path) -> None:
        """Replace the checkpoint; a finished network needs its weights only, a third of the bytes."""
        state: dict[str, Any] = {
            "epochs_done": self.epochs_done,
            "losses": self.losses,
            "finished": self.finished,
            "network": self.network.state_dict(),
        }
        if not self.finished:
            state |= {
                "best": self._best,
                "optimiser": self._optimiser.state_dict(),
                "schedule": self._schedule.state_dict(),
                "within": vars(self.within) if self.within else None,
            }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        write_atomic(path, buffer.getvalue())

    def restore(self, path: Path) -> None:
        """Take up the state of the first process's checkpoint, if there is one."""
        data = self._world.agree(path.read_bytes() if self._world.leads and path.exists() else None)
        if data is None:
            return
        state = torch.load(io.BytesIO(data), map_location=self._device, weights_only=True)
        self.network.load_state_dict(state["network"])
        self.epochs_done, self.losses, self.finished = state["epochs_done"], state["losses"], state["finished"]
        if not self.finished:
            self._best = state["best"]
            self._optimiser.load_state_dict(state["optimiser"])
            self._schedule.load_state_dict(state["schedule"])
            within = state.get("within")  # not in what an older Limner left
            if within is not None:
                self.within = Within(within["steps"], within["generator"].cpu(), within["totals"])
