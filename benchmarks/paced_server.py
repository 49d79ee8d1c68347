"""A limner-server whose device takes a fixed time for each image and leaves the processor alone, as a GPU does.

On a machine of two cores several servers that compute would only measure how these are shared. What is measured with
this one is everything around the model: gRPC, queue, batches, starting and draining are the real server's.
"""

import os
import time
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from limner_server import serving
from limner_server.__main__ import main
from limner_server.executor.engine import Arrays, Operation
from limner_server.executor.torchscript import TorchScriptEngine

IMAGE_MS = "LIMNER_BENCHMARK_IMAGE_MS"
"""Name of the environment variable that says how long."""


class PacedEngine(TorchScriptEngine):
    """Waits for the device that it has not."""

    def run(
        self,
        operation: Operation,
        layers: tuple[str, ...],
        images: NDArray[np.float32],
        targets: NDArray[np.int64],
    ) -> Arrays:
        """Run a batch in the time of its images."""
        time.sleep(float(os.environ[IMAGE_MS]) / 1e3 * len(images))
        return super().run(operation, layers, images, targets)


if __name__ == "__main__":
    with patch.object(serving, "TorchScriptEngine", PacedEngine):
        main()
