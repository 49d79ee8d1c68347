"""What the executor adds to the latency of a lone image: p50 through an idle executor over p50 of the bare forward."""

import contextlib
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks.harness import PAIRS, Result, interleaved
from benchmarks.models import fastest_bare, publish_untrained, random_slices
from limner_server.executor.engine import Item
from limner_server.executor.executor import Executor
from limner_server.executor.torchscript import TorchScriptEngine
from limner_server.settings import Settings

NAME = "latency"
SUMMARY = "one image through an idle executor, p50, over the bare forward pass (ResNet-18, 96x96, CPU)"

_BAR = 1.15
_CALLS = 30


def run(pairs: int = PAIRS) -> Result:
    """Measure in pairs of p50 over calls that follow one another."""
    settings = Settings.model_construct()
    with TemporaryDirectory() as folder:
        model = publish_untrained(Path(folder), NAME)
        bare = fastest_bare(model, batch_sizes=(1,))
        engine = TorchScriptEngine(model.path, model.card)
    size = model.grid.size
    image = random_slices(1, size)[0]
    executor = Executor(
        engine, size, settings.max_batch_size, settings.max_queue_delay_ms / 1e3, settings.max_queue_images
    )

    def through_executor() -> None:
        executor.submit(Item(image)).result()

    @torch.inference_mode()
    def directly() -> None:
        [output.numpy() for output in bare.forward(torch.from_numpy(image[None]))]

    with contextlib.closing(executor):
        found = interleaved(lambda: _p50(through_executor), lambda: _p50(directly), pairs)
    figures = {
        "ours_ms": 1e3 * statistics.median(found.ours),
        "reference_ms": 1e3 * statistics.median(found.reference),
        "threads": bare.threads,
    }
    return Result(NAME, "p50 through the executor / p50 of the bare forward", _BAR, True, found.ratios, figures)


def _p50(call: Callable[[], None]) -> float:
    times = []
    for _ in range(_CALLS):
        started = time.perf_counter()
        call()
        times.append(time.perf_counter() - started)
    return statistics.median(times)
