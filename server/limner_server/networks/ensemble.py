"""Several networks that answer as one: what `config.ensemble` serves in place of one network on all subjects."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

from limner_server.networks.resnet import Network


class Ensemble(Network):
    """Networks of one architecture side by side. Scriptable, and to whoever uses it one wide `Network`.

    A layer's maps are the members' maps, one member's channels after the other's; so is the embedding. The head is
    linear, so the mean of the members' logits is itself a linear head on their embeddings: their weights side by side,
    divided by the number of members.

    Parameters
    ----------
    members
        The trained networks, one or more; their layers are taken over.
    """

    def __init__(self, members: Sequence[Network]) -> None:
        nn.Module.__init__(self)  # not Network's: there is no trunk to take apart
        self.stem = nn.Sequential(_Abreast((member.stem for member in members), shared=True))
        self.pool = members[0].pool
        self.layer1 = _Abreast(member.layer1 for member in members)
        self.layer2 = _Abreast(member.layer2 for member in members)
        self.layer3 = _Abreast(member.layer3 for member in members)
        self.layer4 = _Abreast(member.layer4 for member in members)
        self.average = nn.AdaptiveAvgPool2d(1)
        self.classifier = _mean_head([member.classifier for member in members])
        self._channels = tuple(map(sum, zip(*(member.channels() for member in members), strict=True)))

    def channels(self) -> tuple[int, ...]:
        """Number of channels of each of the five `LAYERS`, all members' together."""
        return self._channels


class _Abreast(nn.Module):
    """One part of each member: each gets its share of the channels, or all of them the same, and their outputs join."""

    def __init__(self, parts: Iterable[nn.Module], *, shared: bool = False) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self._shared = shared

    def forward(self, x: Tensor) -> Tensor:
        """Maps `(n, C, h, w)` of all members, of what the layer before gave `(n, C', h', w')`."""
        width = x.size(1) if self._shared else x.size(1) // len(self.parts)
        step = 0 if self._shared else width
        found: list[Tensor] = []
        for index, part in enumerate(self.parts):
            found.append(part(x.narrow(1, index * step, width)))
        return torch.cat(found, dim=1)


def _mean_head(heads: Sequence[nn.Linear]) -> nn.Linear:
    """The head `(k, all members' channels)` that gives the mean of the members' logits."""
    width = sum(head.in_features for head in heads)
    # Unlike the constructor it draws nothing from the random state.
    joined: nn.Linear = nn.utils.skip_init(nn.Linear, width, heads[0].out_features)
    with torch.no_grad():
        joined.weight.copy_(torch.cat([head.weight for head in heads], dim=1) / len(heads))
        joined.bias.copy_(torch.stack([head.bias for head in heads]).mean(dim=0))
    return joined
