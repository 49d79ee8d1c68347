"""Networks that learned nothing: the same pipeline is run on them for check 3."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from limner_server.explain.cohort import SliceCohort
from limner_server.networks.artifact import Artifact

BATCH = 24


def randomised(artifact: Artifact, cohort: SliceCohort, seed: int, *, shuffle: bool) -> Artifact:
    """Return a copy with fresh or shuffled weights, whose batch norms and channel means are those of the given slices.

    Parameters
    ----------
    artifact
        The trained model; left as it is.
    cohort
        The slices.
    seed
        Of the weights.
    shuffle
        True to permute the trained weights within each tensor, False to draw them anew.
    """
    copied = copy.deepcopy(artifact)
    generator = torch.Generator().manual_seed(seed)
    if shuffle:
        _shuffle(copied.network, generator)
    else:
        _draw(copied.network, generator)
    _estimate_batch_norm(copied, cohort)
    for mean, found in zip(copied.channel_means(), _channel_means(copied, cohort), strict=True):
        mean.copy_(found)
    return copied


def _shuffle(network: nn.Module, generator: torch.Generator) -> None:
    for parameter in network.parameters():
        order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
        parameter.copy_(parameter.flatten()[order].reshape(parameter.shape))


def _draw(network: nn.Module, generator: torch.Generator) -> None:
    """Draw weights as torchvision's ResNet does: He et al. 2015, doi:10.1109/ICCV.2015.123, for convolutions."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fresh = torch.empty(module.weight.shape)
            nn.init.kaiming_normal_(fresh, mode="fan_out", nonlinearity="relu", generator=generator)
            module.weight.copy_(fresh)
        elif isinstance(module, nn.BatchNorm2d):
            module.reset_parameters()
        elif isinstance(module, nn.Linear):
            bound = module.in_features**-0.5
            for parameter in module.parameters():
                parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))


@torch.no_grad()
def _estimate_batch_norm(artifact: Artifact, cohort: SliceCohort) -> None:
    norms = [module for module in artifact.modules() if isinstance(module, nn.BatchNorm2d)]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # the plain average over batches
        norm.train()
    for batch in _normalised(artifact, cohort):
        artifact.maps(batch)
    artifact.eval()


@torch.no_grad()
def _channel_means(artifact: Artifact, cohort: SliceCohort) -> list[Tensor]:
    totals = [torch.zeros_like(mean, dtype=torch.float64) for mean in artifact.channel_means()]
    for batch in _normalised(artifact, cohort):
        for total, maps in zip(totals, artifact.maps(batch), strict=True):
            total += maps.mean((2, 3)).double().sum(0)
    return [total / len(cohort) for total in totals]


def _normalised(artifact: Artifact, cohort: SliceCohort) -> Iterator[Tensor]:
    """Read the slices batch by batch, normalised, `(b, 1, s, s)`."""
    for rows in cohort.blocks(BATCH):
        yield artifact.normalise(torch.from_numpy(cohort.images[rows]).to(artifact.temperature.device))
