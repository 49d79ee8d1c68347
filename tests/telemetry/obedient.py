"""A model that does what its images tell it: an artifact like any other, on a real server."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from benchmarks.models import Identity, publish_module

SIZE = 32
NAME = "obedient"
HUGE = 1e6


class Obedient(Identity):
    """Fails on a value below 0, wants more memory than there is for `HUGE`, and for v multiplies matrices v times."""

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Logits, probabilities and embedding of images `(n, s, s)`."""
        if bool((images < 0).any()):
            raise RuntimeError("this image is below 0")
        work = torch.empty(1 << 25, 1 << 25) if bool((images >= 1e6).any()) else torch.eye(256)
        for _ in range(int(images.max())):
            work = work @ work
        row = images[:, 0] * work[0, 0]
        return row[:, :2], torch.softmax(row[:, :2], dim=1), row


def publish(repository: Path) -> None:
    """Publish it."""
    publish_module(repository, NAME, Obedient(), SIZE)


def image(value: float) -> NDArray[np.float32]:
    """An image of this value."""
    return np.full((SIZE, SIZE), value, np.float32)
