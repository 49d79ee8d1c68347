"""An engine of a few lines of numpy, hand-weighted, with switches for what can go wrong."""

import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner_server.executor.engine import Arrays, Operation, OutOfMemory


class NumpyEngine:
    """Logits are the sum of an image and its negative; the embedding is the image.

    Attributes
    ----------
    gate
        A batch begins to run when it is set.
    entered
        Released once for each batch that has begun.
    batches
        Sums of the images of each batch that was tried.
    poison
        A batch that holds an image of this sum fails.
    memory
        Images that fit on the device.
    crash
        Raised by every batch.
    """

    layers = ("stem", "layer1")
    labels = 2
    healthy = True

    def __init__(self, lanes: int = 1, spread: bool = False) -> None:
        self.lanes, self.spread = lanes, spread
        self.gate = threading.Event()
        self.gate.set()
        self.entered = threading.Semaphore(0)
        self.batches: list[list[float]] = []
        self.poison: float | None = None
        self.memory = 1000
        self.crash: BaseException | None = None
        self.warmed: tuple[int, int] | None = None
        self.closed = False

    def warm(self, grid_size: int, max_batch_size: int) -> int:
        self.warmed = (grid_size, max_batch_size)
        return max_batch_size

    def staging(self, images: int, grid_size: int) -> NDArray[np.float32]:
        return np.empty((images, grid_size, grid_size), np.float32)

    def run(
        self,
        operation: Operation,
        layers: tuple[str, ...],
        images: NDArray[np.float32],
        targets: NDArray[np.int64],
    ) -> Arrays:
        sums = images.sum(axis=(1, 2))
        self.batches.append(sums.tolist())
        self.entered.release()
        self.gate.wait()
        if self.crash is not None:
            raise self.crash
        if len(images) > self.memory:
            raise OutOfMemory(f"{len(images)} images")
        if self.poison in sums:
            raise RuntimeError("poisoned")
        found: dict[str, NDArray[Any]] = {"logits": np.stack([sums, -sums], axis=1), "embedding": images.copy()}
        if operation is not Operation.PREDICT:
            found["target"] = targets.copy()
        return found | {f"maps.{layer}": images[:, None] + index for index, layer in enumerate(layers)}

    def close(self) -> None:
        self.closed = True
