"""The artifact: one TorchScript file that holds a model whole, from normalisation to calibrated probabilities.

The only module that knows `torch.jit`. What is explained is what is served: maps and gradients come from the same file.
"""

import hashlib
import io
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from limner_server.errors import WrongStateError
from limner_server.files import write_atomic
from limner_server.networks.card import ModelCard
from limner_server.networks.ensemble import Ensemble
from limner_server.networks.reference import ReferenceSlices
from limner_server.networks.resnet import LAYERS, Network, build_network

LOW_PERCENTILE = 1.0
HIGH_PERCENTILE = 99.0


class Artifact(nn.Module):
    """Normalisation, network, temperature, channel means and reference in one scriptable module. Always in eval mode.

    Parameters
    ----------
    network
        The trained network; taken over, its parameters no longer learn.
    temperature
        Divides the logits before the softmax, over 0.
    channel_means
        Mean of each channel over the training cohort, `(C_l,)` for each of `LAYERS`; None: zeros.
    reference
        The training slices that distances are measured from; None: distances are NaN.
    """

    def __init__(
        self,
        network: Network,
        temperature: float = 1.0,
        channel_means: Sequence[Tensor] | None = None,
        reference: ReferenceSlices | None = None,
    ) -> None:
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.reference = reference or ReferenceSlices.none()
        means = channel_means or [torch.zeros(count) for count in network.channels()]
        self.register_buffer("temperature", torch.tensor(temperature, dtype=torch.float32))
        for layer, mean in zip(LAYERS, means, strict=True):
            self.register_buffer(f"mean_{layer}", mean.detach().float().clone())
        self.eval()

    temperature: Tensor
    mean_stem: Tensor
    mean_layer1: Tensor
    mean_layer2: Tensor
    mean_layer3: Tensor
    mean_layer4: Tensor

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Logits and probabilities `(n, k)`, embedding `(n, c)` and distance `(n, 1)` of images `(n, s, s)` float32.

        The distance is the one from the training slices, see `ReferenceSlices`.
        """
        maps = self.network.maps(self.normalise(images))
        logits, embedding = self.network.head(maps[4])
        return logits, torch.softmax(logits / self.temperature, dim=1), embedding, self.reference(maps)

    @torch.jit.export
    def normalise(self, images: Tensor) -> Tensor:
        """Each slice clipped to its 1st and 99th percentile, then to mean 0 and deviation 1: `(n, 1, s, s)`.

        A constant slice becomes 0.
        """
        return normalise(images)

    @torch.jit.export
    def maps(self, normalised: Tensor) -> list[Tensor]:
        """Activations after ReLU of the five layers, each `(n, C_l, h_l, w_l)`, of slices `(n, 1, s, s)`."""
        return self.network.maps(normalised)

    @torch.jit.export
    def resume(self, layer: int, maps: Tensor) -> Tensor:
        """Logits `(n, k)` by the rest of the network, from the maps of layer number `layer` on."""
        return self.network.resume(layer, maps)

    @torch.jit.export
    def distance(self, maps: list[Tensor]) -> Tensor:
        """Distance from the training slices `(n, 1)`, from the maps of the five layers."""
        distance: Tensor = self.reference(maps)
        return distance

    @torch.jit.export
    def channel_means(self) -> list[Tensor]:
        """Mean of each channel over the training cohort, `(C_l,)` for each of the five layers."""
        return [self.mean_stem, self.mean_layer1, self.mean_layer2, self.mean_layer3, self.mean_layer4]

    @torch.jit.export
    def explain(self, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor, Tensor, list[Tensor], list[Tensor]]:
        """One forward and one backward pass: what importance is computed from. The caller's grad mode must be on.

        Parameters
        ----------
        images
            `(n, s, s)` float32.
        target
            `(n,)` int64, label whose margin is explained; -1 for the predicted one.

        Returns
        -------
        tuple
            Logits `(n, k)`, target `(n,)`, embedding `(n, c)`, maps and gradients of the margin with respect to them,
            five each of `(n, C_l, h_l, w_l)`. The margin is the target's logit minus logsumexp of the others'.
        """
        stem = self.network.stem(self.normalise(images)).detach().requires_grad_(True)
        layer1 = self.network.layer1(self.network.pool(stem))
        layer2 = self.network.layer2(layer1)
        layer3 = self.network.layer3(layer2)
        layer4 = self.network.layer4(layer3)
        logits, embedding = self.network.head(layer4)
        chosen = torch.where(target < 0, logits.argmax(dim=1), target)
        margin = margins(logits, chosen)
        maps = [stem, layer1, layer2, layer3, layer4]
        found = torch.autograd.grad([margin.sum()], maps)
        gradients: list[Tensor] = []
        for gradient in found:
            assert gradient is not None  # noqa: S101 - narrows the Optional for TorchScript
            gradients.append(gradient)
        return logits.detach(), chosen, embedding.detach(), [m.detach() for m in maps], gradients


def normalise(images: Tensor, low: float = LOW_PERCENTILE, high: float = HIGH_PERCENTILE) -> Tensor:
    """Each slice of `(n, s, s)` clipped to two of its percentiles, then to mean 0 and deviation 1: `(n, 1, s, s)`."""
    flat = images.flatten(1)
    last = flat.size(1) - 1
    floor = flat.kthvalue(1 + int(low / 100 * last + 0.5), dim=1, keepdim=True)[0]
    ceiling = flat.kthvalue(1 + int(high / 100 * last + 0.5), dim=1, keepdim=True)[0]
    # Subtracting the lowest value first makes a constant slice exactly 0, whatever its value.
    unit = (torch.minimum(torch.maximum(flat, floor), ceiling) - floor) / (ceiling - floor).clamp_min(1e-30)
    centred = unit - unit.mean(dim=1, keepdim=True)
    deviation = centred.square().mean(dim=1, keepdim=True).sqrt().clamp_min(1e-6)
    return (centred / deviation).reshape(images.size(0), 1, images.size(1), images.size(2))


def margins(logits: Tensor, target: Tensor) -> Tensor:
    """Logit of the target minus logsumexp of the others, `(n,)`, of logits `(n, k)` and targets `(n,)` from 0."""
    index = target.unsqueeze(1)
    others = logits.scatter(1, index, float("-inf"))
    return logits.gather(1, index).squeeze(1) - torch.logsumexp(others, dim=1)


def export(artifact: nn.Module, path: Path) -> str:
    """Write the artifact as TorchScript in one step, and return the sha256 of the file, 64 hexadecimal digits.

    Raises
    ------
    StorageFullError
        The disk is full; nothing is left behind.
    """
    buffer = io.BytesIO()
    torch.jit.save(torch.jit.script(artifact.cpu()), buffer)
    data = buffer.getvalue()
    write_atomic(path, data)
    return hashlib.sha256(data).hexdigest()


def load(path: Path, digest: str, device: torch.device | str = "cpu") -> torch.jit.ScriptModule:
    """Load an artifact whose sha256 is `digest`; the bytes that are checked are the bytes that are loaded.

    Raises
    ------
    WrongStateError
        The file is missing, or its digest is another one.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise WrongStateError(f"artifact {path.name} cannot be read: {error.strerror}") from error
    found = hashlib.sha256(data).hexdigest()
    if found != digest:
        raise WrongStateError(f"artifact {path.name} has sha256 {found}; its card says {digest}: not loaded")
    module: torch.jit.ScriptModule = torch.jit.load(io.BytesIO(data), map_location=device)
    for parameter in module.parameters():
        parameter.requires_grad_(False)
    return module


def eager(module: torch.jit.ScriptModule, card: ModelCard) -> Artifact:
    """The same artifact as a plain module with the same weights, for code that must reach inside (simulation).

    Of an older file, which knows nothing of distances, it is an artifact without reference.
    """
    members = [build_network(card.architecture, len(card.labels)) for _ in range(card.members)]
    reference = None
    if hasattr(module, "reference"):
        found = module.reference
        reference = ReferenceSlices(
            found.mean, found.scale, found.directions, found.damping, found.slices, found.neighbours
        )
    artifact = Artifact(members[0] if card.members == 1 else Ensemble(members), reference=reference)
    artifact.load_state_dict(artifact.state_dict() | module.state_dict())
    return artifact.to(module.temperature.device)
