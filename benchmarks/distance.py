"""`python -m benchmarks.distance`: which slices a phantom-trained model calls far from home.

The table in docs/evaluation.md. Trains as a server's job does, then asks the artifact about new subjects of other
phantoms, about the same slices altered, and about the real series of a folder.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import numpy as np
import torch
import typer
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from scipy import ndimage

from benchmarks.cohorts import MODEL, store_phantom, train
from benchmarks.controls import Phantom, Subjects, Threads
from limner.imaging import Grid, Slice, decode
from limner.imaging.phantom import phantom_recurrent
from limner.imaging.phantom_anatomy import PIXEL_MM, phantom_subject
from limner.imaging.selection import select
from limner.imaging.series import find_series
from limner_server.networks.artifact import load
from limner_server.networks.card import Reference
from limner_server.networks.repository import ModelRepository
from limner_server.training.config import TrainingConfig

BATCH = 64

Images = NDArray[np.float32]


def main(
    real: Annotated[
        Path | None, typer.Argument(help="Folder of real DICOM, from which T2 series are selected.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Of the training.")] = 0,
    phantom: Phantom = 0,
    subjects: Subjects = 27,
    new: Annotated[int, typer.Option(min=1, help="Other phantoms, as many subjects each.")] = 3,
    ensemble: Annotated[bool, typer.Option("--ensemble", help="Serve the mean of the fold networks.")] = False,
    threads: Threads = 0,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object.")] = False,
) -> None:
    """Train on a phantom, and tell what share of other slices is far."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        cohort = store_phantom(folder / "data", subjects, phantom)
        card = train(folder, cohort, TrainingConfig(seed=seed, halves=False, ensemble=ensemble), threads)
        assert card.reference is not None
        artifact = load(ModelRepository(folder / "models").get(MODEL, 1).artifact, card.digest)
        rows = [
            {"slices": what, **_judged(artifact, card.reference, images)}
            for what, images in _asked(card.grid, real, phantom, subjects, new)
        ]
    if as_json:
        print(json.dumps({"limit": card.reference.percentiles[99], "rows": rows}))
        return
    table = Table(*rows[0], title=f"far: over {card.reference.percentiles[99]:.3f}")
    for row in rows:
        table.add_row(*(str(value) if isinstance(value, str | int) else f"{value:.2f}" for value in row.values()))
    Console().print(table)


@torch.inference_mode()
def _judged(artifact: torch.jit.ScriptModule, reference: Reference, images: Images) -> dict[str, float]:
    found = torch.cat([artifact(part)[3] for part in torch.from_numpy(images).split(BATCH)])[:, 0].numpy()
    far = [reference.judge(float(distance))[1] for distance in found]
    least, median, most = np.percentile(found, [0, 50, 100]).tolist()
    return {"number": len(images), "far, %": 100 * float(np.mean(far)), "least": least, "median": median, "most": most}


def _asked(grid: Grid, real: Path | None, phantom: int, subjects: int, new: int) -> Iterator[tuple[str, Images]]:
    yield "the training subjects'", _phantom(grid, subjects, phantom)
    for other in range(phantom + 1, phantom + 1 + new):
        yield f"new subjects', phantom {other}", _phantom(grid, subjects, other)
    images = _phantom(grid, subjects, phantom + 1)
    yield from _altered(images)
    for fov_mm in (0.75, 0.86, 1.14, 1.25, 1.5):
        other_grid = Grid(fov_mm * grid.fov_mm, grid.size)
        yield f"field of view of {other_grid.fov_mm:.0f} mm", _phantom(other_grid, subjects, phantom + 1)
    if real is not None:
        for decision in select(list(find_series(real).series)):
            said = "" if decision.accepted else " (not selected)"
            found = [grid.resample(decode(each.path, each.frame)) for each in decision.series.slices]
            yield f"real: {decision.series.description}{said}", np.stack(found)


def _altered(images: Images) -> Iterator[tuple[str, Images]]:
    """The same slices, of which those that a scanner may turn out otherwise should be near, and others far."""
    generator = np.random.default_rng(0)
    deviation = images.std(axis=(1, 2), keepdims=True)
    yield "gain 3, offset 100", 3 * images + 100
    yield "left and right exchanged", images[:, :, ::-1].copy()
    yield "upside down", images[:, ::-1].copy()
    for degrees in (5, 20, 90):
        turned = ndimage.rotate(images, degrees, axes=(1, 2), reshape=False, order=1, mode="nearest")
        yield f"rotated by {degrees}°", turned
    for share in (0.1, 0.2, 0.5):
        noise = generator.normal(size=images.shape)
        yield f"noise of {share} deviations", (images + share * deviation * noise).astype(np.float32)
    for sigma in (1, 2):
        yield f"blurred, σ {sigma} pixels", ndimage.gaussian_filter(images, (0, sigma, sigma))
    slope = np.exp(np.linspace(-0.5, 0.5, images.shape[2], dtype=np.float32))
    yield "bias field, 1 to e", images * slope
    yield "inverted", images.max(axis=(1, 2), keepdims=True) - images
    yield "noise alone", generator.normal(size=images.shape).astype(np.float32)


def _phantom(grid: Grid, subjects: int, seed: int) -> Images:
    recurrent = enumerate(phantom_recurrent(subjects, seed).tolist())
    volumes = (phantom_subject(seed, index, label) for index, label in recurrent)
    return np.stack([grid.resample(Slice(pixels, PIXEL_MM, PIXEL_MM)) for volume in volumes for pixels in volume])


if __name__ == "__main__":
    typer.run(main)
