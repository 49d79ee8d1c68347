"""W2, W3: how much of the bare model's throughput is left when slices come through SDK, wire, server and executor."""

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks.harness import PAIRS, Result, interleaved
from benchmarks.models import fastest_bare, publish_untrained, random_slices
from limner import Client
from tests.live import LiveServer

REAL_SLICES = Path(__file__).parents[1] / "tests/data/prostatex/ProstateX-0000/t2-transverse"
"""Real T2-weighted slices of 384 x 384."""


@dataclass(frozen=True)
class StreamBenchmark:
    """A stream of slices to a live server, against a loop over the bare model in this process."""

    NAME: str
    SUMMARY: str
    bar: float
    size: int
    slices: int
    dicom: bool = False

    def run(self, pairs: int = PAIRS) -> Result:
        """Score as many slices by a stream to a server on this machine, and by a loop in this process."""
        with TemporaryDirectory() as folder:
            model = publish_untrained(Path(folder) / "model_repository", self.NAME, size=self.size)
            best = fastest_bare(model)
            images = torch.from_numpy(random_slices(self.slices, self.size))
            if torch.cuda.is_available():
                images = images.pin_memory()
            source = self._source()

            def bare() -> float:
                started = time.perf_counter()
                best.loop(images)
                return self.slices / (time.perf_counter() - started)

            with LiveServer(Path(folder), threads=0) as server, Client(server.address) as client:
                client.wait_ready()
                client.load_model(model.name)

                def stream() -> float:
                    started = time.perf_counter()
                    results = list(client.predict_stream(model.name, source))
                    elapsed = time.perf_counter() - started
                    assert len(results) == self.slices
                    assert all(result.ok for result in results)
                    return self.slices / elapsed

                found = interleaved(stream, bare, pairs)
        figures = {
            "ours_images_per_s": statistics.median(found.ours),
            "reference_images_per_s": statistics.median(found.reference),
            "reference_batch_size": best.batch_size,
            "reference_threads": best.threads,
        }
        unit = f"images/s of the stream / images/s of the bare loop ({best.form})"
        return Result(self.NAME, unit, self.bar, False, found.ratios, figures)

    def _source(self) -> Sequence[Any]:
        if not self.dicom:
            return list(random_slices(self.slices, self.size))
        files = sorted(REAL_SLICES.glob("*.dcm"))
        return [files[index % len(files)] for index in range(self.slices)]


W2 = StreamBenchmark(
    "W2", "SDK PredictStream of grid arrays / the bare loop (ResNet-18, 224x224)", bar=0.95, size=224, slices=256
)
W2_SMALL = StreamBenchmark(
    "W2-64", "SDK PredictStream of grid arrays / the bare loop (ResNet-18, 64x64)", bar=0.95, size=64, slices=2048
)
W3 = StreamBenchmark(
    "W3",
    "SDK PredictStream of real 384x384 DICOM / W2's bare loop (ResNet-18, 224x224)",
    bar=0.90,
    size=224,
    slices=256,
    dicom=True,
)
