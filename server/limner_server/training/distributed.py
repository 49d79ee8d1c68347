"""The processes that train one network together, one for each device, as torchrun starts them.

A step's batch is the same as that of one process, in the same order and with the same augmentation; each process takes
its share of it, and gradients are summed with the weights that the whole batch gives them. Knows nothing of networks.
"""

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from limner_server.errors import WrongStateError

# The others wait while the first one evaluates and exports.
_LONGEST_WAIT = timedelta(hours=1)
_LEAST_SHARE = 2
"""Slices: a single one has no batch statistics."""
_PEER_LOST = 4

_log = logging.getLogger(__name__)

Value = TypeVar("Value")


@dataclass(frozen=True)
class World:
    """The processes of one training, and which of them this is.

    Attributes
    ----------
    rank, size
        Number of this process, from 0, and of all.
    local_rank, local_size
        The same on this machine.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1

    @classmethod
    def of_environment(cls) -> "World":
        """Read what torchrun tells its processes (docs.pytorch.org/docs/stable/elastic/run.html); else: alone."""
        names = {"rank": "RANK", "size": "WORLD_SIZE", "local_rank": "LOCAL_RANK", "local_size": "LOCAL_WORLD_SIZE"}
        if "WORLD_SIZE" not in os.environ:
            return cls()
        return cls(**{field: int(os.environ[name]) for field, name in names.items()})

    @property
    def leads(self) -> bool:
        """Whether this process reports, evaluates and writes files."""
        return self.rank == 0

    def share(self, count: int) -> tuple[slice, float]:
        """Part of a batch of `count` slices that this process learns from, and its weight.

        A batch too small to give everyone two slices is everyone's whole, at the weight of one over their number.
        """
        if count < _LEAST_SHARE * self.size:
            return slice(0, count), 1 / self.size
        ends = np.linspace(0, count, self.size + 1).round().astype(int).tolist()
        return slice(ends[self.rank], ends[self.rank + 1]), 1.0

    def learner(self, network: nn.Module, device: torch.device) -> nn.Module:
        """The network with gradients averaged over all processes; alone, itself.

        On CUDA its batch normalisation is of the whole batch (in place). torch has no such layer for the CPU: there
        each process normalises its own share.
        """
        if self.size == 1:
            return network
        cuda = device.type == "cuda"
        if cuda:
            network = nn.SyncBatchNorm.convert_sync_batchnorm(network)
        # Running statistics are averaged after each epoch instead.
        return nn.parallel.DistributedDataParallel(
            network, device_ids=[device] if cuda else None, broadcast_buffers=False
        )

    def average_statistics(self, network: nn.Module) -> None:
        """Give all processes the mean of their running batch statistics."""
        if self.size > 1:
            for buffer in network.buffers():
                if buffer.is_floating_point():
                    dist.all_reduce(buffer)
                    buffer /= self.size

    def total(self, figures: Tensor) -> Tensor:
        """Sum over all processes, in place."""
        if self.size > 1:
            dist.all_reduce(figures)
        return figures

    def agree(self, value: Value) -> Value:
        """What the first process says."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0)
        return values[0]


@contextmanager
def joined(device: torch.device, world: World) -> Iterator[None]:
    """Be one of the processes of a training, until all of them are done.

    Where another one ends before, so does this one, at once and without a word to the reporter, as a process that is
    killed: torchrun tells in the job's log which was the first, and the runner starts them all again.

    Raises
    ------
    WrongStateError
        There are more processes on this machine than CUDA devices.
    """
    if world.size == 1:
        yield
        return
    if device.type == "cuda":
        if world.local_size > torch.cuda.device_count():
            devices = torch.cuda.device_count()
            raise WrongStateError(f"{world.local_size} processes train on this machine, of {devices} CUDA devices")
        torch.cuda.set_device(device)
    try:
        dist.init_process_group("nccl" if device.type == "cuda" else "gloo", timeout=_LONGEST_WAIT)
        yield
        dist.barrier()
    except RuntimeError as error:
        if isinstance(error, dist.DistError) or "gloo" in str(error):
            _log.exception("another of the %d processes of this training ended", world.size)
            os._exit(_PEER_LOST)
        raise
    # Not after an error: it would wait for processes that are gone.
    dist.destroy_process_group()
