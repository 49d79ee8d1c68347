"""`python -m benchmarks.sizing`: what a server takes, from which docs/operate.md and the manifests have their requests.

Memory with nothing loaded, with each model more, and under load; processor time and images in a second under that load;
and what a training takes beside it. Callers are 32 unary calls of one image at a time, as many as keep batches full.
"""

import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import psutil
import typer
from rich.console import Console
from rich.table import Table

from benchmarks.models import publish_untrained, random_slices
from limner import Client
from limner.imaging.phantom import write_phantom
from limner.types import Grid, TrainingConfig
from tests.e2e.phantoms import import_phantom
from tests.live import LiveServer

MODELS = (("resnet18", 64), ("resnet50", 64), ("resnet18", 224), ("resnet50", 224))
SIZE = 64
"""Of what is trained."""
CALLERS = 32
_MIB = 2**20


def main(
    seconds: Annotated[float, typer.Option(help="Of load on each model.")] = 20.0,
    threads: Annotated[int, typer.Option(help="Cores of the server; 0: all.")] = 0,
) -> None:
    """Load one model after the other, each under load for a while, and print a row for each; then a training."""
    table = Table("", "memory, MiB", "under load", "images/s", "CPU ms/image", "cores")
    with TemporaryDirectory() as folder, LiveServer(Path(folder), threads=threads) as server:
        process = psutil.Process(server.pid)
        table.add_row("nothing loaded", f"{_memory(process):,.0f}")
        with Client(server.address) as client:
            for architecture, size in MODELS:
                name = f"{architecture}-{size}"
                publish_untrained(server.model_repository, name, architecture, size)
                client.load_model(name)
                loaded = _memory(process)
                images, spent, most, took = _load(client, process, name, size, seconds)
                figures = (loaded, most, images / took, 1e3 * spent / images, spent / took)
                table.add_row(f"and {architecture}, {size}x{size}", *(f"{one:,.2f}" for one in figures))
            training = _training(client, process, Path(folder) / "phantom")
            table.add_row(f"a training of resnet18, {SIZE}x{SIZE}, its own", f"{training:,.0f}")
    Console().print(table)


def _load(
    client: Client, process: psutil.Process, name: str, size: int, seconds: float
) -> tuple[int, float, float, float]:
    """Images answered, seconds of the processor that the server spent, its most memory, and how long it took."""
    image = random_slices(1, size)[0]
    ends = time.monotonic() + seconds
    most = 0.0

    def call() -> int:
        count = 0
        while time.monotonic() < ends:
            client.predict(name, [image])
            count += 1
        return count

    start, before = time.monotonic(), sum(process.cpu_times()[:2])
    with ThreadPoolExecutor(CALLERS) as callers:
        calls = [callers.submit(call) for _ in range(CALLERS)]
        while time.monotonic() < ends:
            most = max(most, _memory(process))
            time.sleep(0.2)
        images = sum(one.result() for one in calls)
    return images, sum(process.cpu_times()[:2]) - before, most, time.monotonic() - start


def _training(client: Client, process: psutil.Process, folder: Path) -> float:
    """Most memory of the processes of a training."""
    write_phantom(folder, subjects=27, seed=3)
    import_phantom(client, folder, "phantom", bytes(range(32)))
    config = TrainingConfig(grid=Grid(fov_mm=160, size=SIZE), folds=2, epochs=1)
    training = client.start_training("phantom", "trained", config)
    most = 0.0
    while not client.training(training.id).state.ended:
        most = max(most, sum(_memory(child) for child in process.children(recursive=True) if child.is_running()))
        time.sleep(0.2)
    return most


def _memory(process: psutil.Process) -> float:
    try:
        return float(process.memory_info().rss) / _MIB
    except psutil.NoSuchProcess:
        return 0.0


if __name__ == "__main__":
    typer.run(main)
