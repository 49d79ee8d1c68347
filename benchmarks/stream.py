"""W2: how much of the bare model's throughput is left when slices come through SDK, wire, server and executor."""

import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.harness import Result, interleaved
from benchmarks.models import fastest_bare, publish_untrained, random_slices
from limner import Client
from tests.live import LiveServer

NAME = "W2"
SUMMARY = "SDK PredictStream of grid arrays over the bare loop at its best batch size (ResNet-18, 96x96, CPU)"

_BAR = 0.95
_SLICES = 256


def run() -> Result:
    """Score the same slices by a stream to a server on this machine, and by a loop in this process."""
    with TemporaryDirectory() as folder:
        model = publish_untrained(Path(folder) / "model_repository", NAME)
        best = fastest_bare(model)
        server = LiveServer(Path(folder), threads=best.threads)
        slices = random_slices(_SLICES, model.grid.size)
        images = torch.from_numpy(slices)

        @torch.inference_mode()
        def bare() -> float:
            started = time.perf_counter()
            for first in range(0, _SLICES, best.batch_size):
                [output.numpy() for output in best.forward(images[first : first + best.batch_size])]
            return _SLICES / (time.perf_counter() - started)

        with server, Client(server.address) as client:
            client.wait_ready()

            def stream() -> float:
                started = time.perf_counter()
                results = list(client.predict_stream(model.name, slices))
                elapsed = time.perf_counter() - started
                assert len(results) == _SLICES
                assert all(result.ok for result in results)
                return _SLICES / elapsed

            found = interleaved(stream, bare)
    figures = {
        "ours_images_per_s": statistics.median(found.ours),
        "reference_images_per_s": statistics.median(found.reference),
        "reference_batch_size": best.batch_size,
        "threads": best.threads,
    }
    return Result(NAME, "images/s of the stream / images/s of the bare loop", _BAR, False, found.ratios, figures)
