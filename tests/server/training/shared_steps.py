"""Two steps of one network under torchrun, or alone: each process leaves its weights in the folder it is given.

Batch normalisation does not learn here, since it is what several processes on the CPU do differently.
"""

import sys
from pathlib import Path

import torch

from limner_server.networks.resnet import build_network
from limner_server.training.config import TrainingConfig
from limner_server.training.distributed import World, joined
from limner_server.training.run import Run


def two_steps(world: World) -> tuple[dict[str, torch.Tensor], list[list[float]]]:
    """Weights after a batch of uneven shares and one too small to share, and what each step reported in all."""
    torch.manual_seed(0)
    weights = torch.tensor([0.5, 3.0])
    device = torch.device("cpu")
    run = Run(build_network("resnet18", 2), TrainingConfig(learning_rate=1e-3), 10, weights, device, world)
    run.network.eval()
    totals = []
    for labels in ([0, 0, 0, 1, 1], [0, 1, 1]):
        slices = torch.randn(len(labels), 1, 32, 32)
        totals.append(world.total(run.step(slices, torch.tensor(labels), *world.share(len(labels)))).tolist())
    return run.network.state_dict(), totals


if __name__ == "__main__":
    torch.set_num_threads(1)
    here = World.of_environment()
    with joined(torch.device("cpu"), here):
        torch.save(two_steps(here), Path(sys.argv[1]) / f"{here.rank}.pt")
