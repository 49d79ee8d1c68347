"""The engine that runs the TorchScript artifact in this process, on the CPU or on a CUDA device.

Predicting runs the fastest form of its forward pass (`cpu`, `cuda`). Explaining needs what those forms have lost, the
artifact's other methods and its gradients, and runs the artifact as loaded.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limner_server.executor.cpu import CpuForward
from limner_server.executor.cuda import CudaForward
from limner_server.executor.engine import Arrays, Operation, OutOfMemory
from limner_server.networks.artifact import eager, load, margins
from limner_server.networks.card import DISTANCE, ModelCard
from limner_server.networks.resnet import LAYERS

_ABLATION_CHUNK = 16
"""Channels that are ablated in one forward pass."""


class TorchScriptEngine:
    """An `Engine` for one artifact.

    Parameters
    ----------
    path, card
        The artifact file and its card.
    device
        "cpu", "cuda" or "cuda:<index>".
    threads
        Cores to use on the CPU; 0: as many as torch takes by itself.
    precision
        Of the forward pass on CUDA, see `CudaForward`. On the CPU it is float32.

    Raises
    ------
    WrongStateError
        The file is missing, or its digest is another one.
    """

    healthy = True

    def __init__(
        self, path: Path, card: ModelCard, device: str = "cpu", threads: int = 0, precision: str = "auto"
    ) -> None:
        self._device = torch.device(device)
        self._card = card
        self._whole = load(path, card.digest, self._device).to(memory_format=torch.channels_last)
        self._forward: CpuForward | CudaForward
        if self._device.type == "cuda":
            self._forward = CudaForward(eager(self._whole, card), self._device, precision)
        else:
            self._forward = CpuForward(self._whole, threads)

    @property
    def lanes(self) -> int:
        """On the CPU one for each core; on CUDA two, so that one copies while the other computes."""
        return self._forward.lanes

    @property
    def spread(self) -> bool:
        """On the CPU each lane has a core of its own; on CUDA they share the device."""
        return self._forward.spread

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the five layers, from input to output."""
        return LAYERS

    @property
    def labels(self) -> int:
        """Number of classes."""
        return len(self._card.labels)

    @property
    def channel_means(self) -> Mapping[str, NDArray[np.float32]]:
        """Mean of each channel over the training cohort, `(C,)` for each layer."""
        means = self._whole.channel_means()
        return {layer: mean.cpu().numpy() for layer, mean in zip(LAYERS, means, strict=True)}

    def warm(self, grid_size: int, max_batch_size: int) -> int:
        """Prepare the forward pass for every size of batch, see `Engine.warm`."""
        return self._forward.warm(grid_size, max_batch_size)

    def staging(self, images: int, grid_size: int) -> NDArray[np.float32]:
        """Return memory for the images of a lane; on CUDA pinned, so that the device reads it beside computing."""
        memory = torch.empty(images, grid_size, grid_size, pin_memory=self._device.type == "cuda")
        return memory.numpy()

    def run(
        self,
        operation: Operation,
        layers: tuple[str, ...],
        images: NDArray[np.float32],
        targets: NDArray[np.int64],
    ) -> Arrays:
        """Run one batch, see `Engine.run`.

        Raises
        ------
        OutOfMemory
            For a batch that is too large for the device.
        ArithmeticError
            A logit is not finite: one of the images has values beyond what float32 can standardise.
        """
        batch = torch.from_numpy(images)
        with out_of_memory_named():
            if operation is Operation.PREDICT:
                found = self._named(self._forward(batch))
            else:
                explain = self._explain if operation is Operation.EXPLAIN else self._ablate
                numbers = tuple(LAYERS.index(layer) for layer in layers)
                with self._forward.turn(len(images)):
                    found = explain(batch.to(self._device), torch.from_numpy(targets).to(self._device), numbers)
            arrays = {name: tensor.cpu().numpy() for name, tensor in found.items()}
        if not np.isfinite(arrays["logits"]).all():
            raise ArithmeticError("a logit is not finite")
        return arrays

    def close(self) -> None:
        """Let go of the weights, and give the device's cached memory back."""
        del self._whole, self._forward
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    def _named(self, outputs: Sequence[Tensor]) -> dict[str, Tensor]:
        """What `forward` gives, by name; without a reference its distance is nothing, and older artifacts have none."""
        return dict(zip(self._card.outputs, outputs, strict=False))

    def _explain(self, images: Tensor, targets: Tensor, layers: tuple[int, ...]) -> dict[str, Tensor]:
        # Unoptimised: two lanes whose first calls meet in torch's profiling of a graph with gradients can break it.
        with torch.enable_grad(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            logits, target, embedding, maps, gradients = self._whole.explain(images, targets)
        found = {
            "logits": logits,
            "probabilities": torch.softmax(logits / self._whole.temperature, dim=1),
            "embedding": embedding,
            "target": target,
        }
        if self._card.reference is not None:
            found[DISTANCE] = self._whole.distance(maps)
        for layer in layers:
            found[f"maps.{LAYERS[layer]}"] = maps[layer]
            found[f"gradients.{LAYERS[layer]}"] = gradients[layer]
        return found

    @torch.inference_mode()
    def _ablate(self, images: Tensor, targets: Tensor, layers: tuple[int, ...]) -> dict[str, Tensor]:
        found = self._named(self._whole(images))
        target = found["target"] = torch.where(targets < 0, found["logits"].argmax(dim=1), targets)
        maps = self._whole.maps(self._whole.normalise(images))
        for layer in layers:
            rows = [self._drops(layer, maps[layer][index], target[index]) for index in range(len(images))]
            found[f"ablation.{LAYERS[layer]}"] = torch.stack(rows)
        return found

    def _drops(self, layer: int, maps: Tensor, target: Tensor) -> Tensor:
        """Drop of one image's margin `(C,)` with each channel of its maps `(C, h, w)` at its cohort mean in turn."""
        whole = margins(self._whole.resume(layer, maps.unsqueeze(0)), target.reshape(1))
        means = self._whole.channel_means()[layer]
        ablated = []
        for first in range(0, len(maps), _ABLATION_CHUNK):
            channels = torch.arange(first, min(first + _ABLATION_CHUNK, len(maps)), device=self._device)
            copies = maps.repeat(len(channels), 1, 1, 1)
            copies[torch.arange(len(channels), device=self._device), channels] = means[channels, None, None]
            ablated.append(margins(self._whole.resume(layer, copies), target.expand(len(channels))))
        return whole - torch.cat(ablated)


@contextlib.contextmanager
def out_of_memory_named() -> Iterator[None]:
    """Turn torch's ways of saying that memory has run out into `OutOfMemory`."""
    try:
        yield
    except RuntimeError as error:
        # CUDA's allocator has an exception of its own; the CPU's and cuDNN's have only their words.
        if any(words in str(error) for words in ("out of memory", "can't allocate memory", "not enough memory")):
            raise OutOfMemory(str(error)) from error
        raise
