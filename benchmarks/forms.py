"""`python -m benchmarks.forms`: how fast every form of an artifact is on this machine, by threads and size of batch.

The table in docs/performance.md from which `limner_server.executor.cpu` takes its candidates.
"""

import os
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.models import FUSED_FORMS, forms, publish_untrained, random_slices, seconds

_BATCH_SIZES = (1, 2, 4, 8, 16)


def main(
    size: Annotated[int, typer.Option(help="Edge of the model's grid.")] = 64,
    architecture: Annotated[str, typer.Option(help="The network.")] = "resnet18",
) -> None:
    """Time every form in turns, and print ms per image: the fastest of three runs of each batch."""
    images = torch.from_numpy(random_slices(max(_BATCH_SIZES), size))
    found: dict[tuple[str, int, int], float] = {}
    with TemporaryDirectory() as folder:
        model = publish_untrained(Path(folder), "forms", architecture, size)
        for threads in track(range(1, (os.cpu_count() or 1) + 1), "threads", transient=True):
            torch.set_num_threads(threads)
            for batch in _BATCH_SIZES:
                for name, form in forms(model, images[:batch]):
                    each = seconds(form, images[:batch], fused=name in FUSED_FORMS) / batch
                    found[name, threads, batch] = each
    table = Table("form", "threads", *(f"batch {batch}" for batch in _BATCH_SIZES))
    for name, threads in dict.fromkeys((name, threads) for name, threads, _ in found):
        times = (f"{1e3 * found[name, threads, batch]:.2f}" for batch in _BATCH_SIZES)
        table.add_row(name, str(threads), *times)
    Console().print(table)


if __name__ == "__main__":
    typer.run(main)
