"""What an engine is, and what goes through one. No queue, no thread, no torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

LARGEST = 1e37
"""Largest magnitude of an intensity: differences of such values, and so what normalises them, are finite in float32."""

Arrays = Mapping[str, NDArray[Any]]
"""By name; `Operation` tells the shape and type of each."""


class Operation(Enum):
    """What is wanted of an image."""

    PREDICT = "predict"
    """`logits` (k,), `probabilities` (k,), `embedding` (c,) and `distance` (1,), all float32.

    There is no distance where the card has no reference.
    """
    EXPLAIN = "explain"
    """Those; `target` () int64; for each layer asked for `maps.<layer>` and `gradients.<layer>` (C, h, w) float32."""
    ABLATE = "ablate"
    """Those of PREDICT; `target`; `ablation.<layer>` (C,) float32: drop of the margin with each channel at its mean."""


@dataclass(frozen=True, eq=False, slots=True)
class Item:
    """One image and what is wanted of it.

    Attributes
    ----------
    image
        (s, s) uint8, uint16, int16 or float32 within ±`LARGEST`, on the model's grid. Not to be written to until the
        item is answered.
    operation
        What is wanted.
    target
        Index of the class to explain; -1: the predicted one. Of no account to PREDICT.
    layers
        Names of the layers to explain, out of `Engine.layers`; none for PREDICT.
    """

    image: NDArray[Any]
    operation: Operation = Operation.PREDICT
    target: int = -1
    layers: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False, slots=True)
class Output:
    """The answer to one item.

    Attributes
    ----------
    arrays
        As `Operation` lists them; views into the batch's arrays, to be copied by whoever keeps one for long.
    queue_s
        Time from submission to the start of its batch, in seconds.
    compute_s
        Time of the batch in the engine, in seconds.
    batch_size
        Images in that batch.
    """

    arrays: Arrays
    queue_s: float
    compute_s: float
    batch_size: int


class OutOfMemory(Exception):  # noqa: N818 - a condition that the executor handles, not an error of the family
    """The device has no memory for a batch of this size; a smaller one may fit."""


class Engine(Protocol):
    """Runs one loaded model, one batch in each of its lanes at a time."""

    @property
    def lanes(self) -> int:
        """How many calls of `run` may be under way at a time, each from a thread of its own; 1 or more."""
        ...

    @property
    def spread(self) -> bool:
        """Whether each lane computes on its own, so that what waits is best divided among the free ones.

        Otherwise lanes only hide each other's copies and replies, and the larger batch is the faster one.
        """
        ...

    @property
    def healthy(self) -> bool:
        """Whether a batch given to `run` now would be answered. False until it recovers by itself, or for good."""
        ...

    @property
    def layers(self) -> tuple[str, ...]:
        """Names of the layers that can be explained, from input to output."""
        ...

    @property
    def labels(self) -> int:
        """Number of classes, k."""
        ...

    def warm(self, grid_size: int, max_batch_size: int) -> int:
        """Do everything that would make a first call slow, for batches of 1 to `max_batch_size`.

        Returns the size from which on larger batches gain nothing, `max_batch_size` at most. Called once, first.
        """
        ...

    def staging(self, images: int, grid_size: int) -> NDArray[np.float32]:
        """Return memory `(images, grid_size, grid_size)` for one lane, of the kind that `run` reads fastest."""
        ...

    def run(
        self,
        operation: Operation,
        layers: tuple[str, ...],
        images: NDArray[np.float32],
        targets: NDArray[np.int64],
    ) -> Arrays:
        """Run one batch.

        Parameters
        ----------
        operation, layers
            What is wanted of every image.
        images
            (n, s, s), the beginning of a lane's `staging`. Valid during the call only: no array of the result may share
            its memory.
        targets
            (n,) indices of classes; -1: the predicted one.

        Returns
        -------
        Mapping of str to ndarray
            As `Operation` lists them, with a first axis of n.

        Raises
        ------
        OutOfMemory
            For a batch that is too large for the device.
        LimnerError
            Nothing to do with the images: every caller of the batch gets it as it is.
        Exception
            Anything else: the executor finds out which image is to blame.
        """
        ...

    def close(self) -> None:
        """Free the device. Nothing is called afterwards."""
        ...


def bucket_sizes(largest: int) -> list[int]:
    """Powers of two below `largest`, and `largest`."""
    return [*(2**power for power in range((largest - 1).bit_length())), largest]
