"""The engine that runs the TorchScript artifact in this process, on the CPU or on a CUDA device.

Predicting runs a frozen copy, with each batch normalisation folded into its convolution. Explaining needs what freezing
removes, the artifact's other methods and its gradients, and runs the artifact as loaded.
"""

import contextlib
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from limner_server.executor.engine import Arrays, Operation, OutOfMemory
from limner_server.networks.artifact import load, margins
from limner_server.networks.resnet import LAYERS

_ABLATION_CHUNK = 16
"""Channels that are ablated in one forward pass."""


class TorchScriptEngine:
    """An `Engine` for one artifact.

    Parameters
    ----------
    path, digest
        The artifact file and its sha256.
    device
        "cpu", "cuda" or "cuda:<index>".
    threads
        Threads of one forward pass on the CPU, for the whole process; 0: as many as torch takes by itself.

    Raises
    ------
    WrongStateError
        The file is missing, or its digest is another one.
    """

    def __init__(self, path: Path, digest: str, device: str = "cpu", threads: int = 0) -> None:
        self._device = torch.device(device)
        self._threads = threads
        self._whole = load(path, digest, self._device).to(memory_format=torch.channels_last)
        self._labels = int(self._whole.network.classifier.weight.shape[0])
        self._forward = torch.jit.freeze(self._whole)

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the five layers, from input to output."""
        return LAYERS

    @property
    def labels(self) -> int:
        """Number of classes."""
        return self._labels

    @property
    def channel_means(self) -> Mapping[str, NDArray[np.float32]]:
        """Mean of each channel over the training cohort, `(C,)` for each layer."""
        means = self._whole.channel_means()
        return {layer: mean.cpu().numpy() for layer, mean in zip(LAYERS, means, strict=True)}

    def warm(self, grid_size: int, max_batch_size: int) -> None:
        """Run batches of 1, 2, 4, ... `max_batch_size`, often enough for TorchScript to have optimised itself."""
        if self._threads:
            torch.set_num_threads(self._threads)  # here and not before: OpenMP keeps the number for each calling thread
        size = 1
        while size < 2 * max_batch_size:
            images = torch.zeros(min(size, max_batch_size), grid_size, grid_size, device=self._device)
            with torch.inference_mode():
                for _ in range(2):
                    self._forward(images)
            size *= 2

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
        with out_of_memory_named():
            batch = torch.from_numpy(images).to(self._device)
            if operation is Operation.PREDICT:
                found = self._predict(batch)
            else:
                target = torch.from_numpy(targets).to(self._device)
                explain = self._explain if operation is Operation.EXPLAIN else self._ablate
                found = explain(batch, target, tuple(LAYERS.index(layer) for layer in layers))
            arrays = {name: tensor.cpu().numpy() for name, tensor in found.items()}
        if not np.isfinite(arrays["logits"]).all():
            raise ArithmeticError("a logit is not finite")
        return arrays

    def close(self) -> None:
        """Let go of the weights, and give the device's cached memory back."""
        del self._whole, self._forward
        if self._device.type == "cuda":
            torch.cuda.empty_cache()

    @torch.inference_mode()
    def _predict(self, images: Tensor) -> dict[str, Tensor]:
        logits, probabilities, embedding = self._forward(images)
        return {"logits": logits, "probabilities": probabilities, "embedding": embedding}

    def _explain(self, images: Tensor, targets: Tensor, layers: tuple[int, ...]) -> dict[str, Tensor]:
        with torch.enable_grad():
            logits, target, embedding, maps, gradients = self._whole.explain(images, targets)
        found = {
            "logits": logits,
            "probabilities": torch.softmax(logits / self._whole.temperature, dim=1),
            "embedding": embedding,
            "target": target,
        }
        for layer in layers:
            found[f"maps.{LAYERS[layer]}"] = maps[layer]
            found[f"gradients.{LAYERS[layer]}"] = gradients[layer]
        return found

    @torch.inference_mode()
    def _ablate(self, images: Tensor, targets: Tensor, layers: tuple[int, ...]) -> dict[str, Tensor]:
        found = self._predict(images)
        logits = found["logits"]
        target = found["target"] = torch.where(targets < 0, logits.argmax(dim=1), targets)
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
