"""`python -m benchmarks.duplicates`: how alike slices are, from which `NEAR_DUPLICATE` of training/similar.py is taken.

Altered copies of each slice (recompressed, noisy, shifted …) beside its neighbours in its own series and the slices of
other subjects, on the grid, by the correlation of what a network sees of them.
"""

import io
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Annotated

import numpy as np
import typer
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.table import Table
from scipy.ndimage import rotate, shift, zoom

from limner.imaging import Grid, Slice, decode
from limner.imaging.phantom import phantom_recurrent, phantom_subject
from limner.imaging.phantom_anatomy import PIXEL_MM
from limner.imaging.selection import select
from limner.imaging.series import find_series
from limner_server.training.similar import NEAR_DUPLICATE, unit_vectors

Pixels = NDArray[np.float32]
_NOISE = np.random.default_rng(0)


def _jpeg(pixels: Pixels) -> Pixels:
    low, high = float(pixels.min()), float(np.percentile(pixels, 99.5))
    eight = np.clip((pixels - low) / max(high - low, 1e-9) * 255, 0, 255).astype(np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(eight).save(buffer, "JPEG", quality=50)
    return np.asarray(Image.open(buffer), np.float32)


def _noisy(pixels: Pixels) -> Pixels:
    return pixels + _NOISE.normal(0, 0.1 * pixels.std(), pixels.shape).astype(np.float32)


def _rescaled(pixels: Pixels) -> Pixels:
    halved = zoom(pixels, 0.5, order=1)
    return np.asarray(zoom(halved, np.array(pixels.shape) / halved.shape, order=1), np.float32)


ALTERED: dict[str, Callable[[Pixels, float], Pixels]] = {
    "gain ×3, offset": lambda pixels, _: 3 * pixels + 100,
    "8 bits, JPEG quality 50": lambda pixels, _: _jpeg(pixels),
    "noise, 0.1 of the deviation": lambda pixels, _: _noisy(pixels),
    "halved and doubled in size": lambda pixels, _: _rescaled(pixels),
    "gamma 0.8": lambda pixels, _: np.power(pixels - pixels.min(), 0.8),
    "shifted by 1 pixel": lambda pixels, _: shift(pixels, (1, 1), order=1, mode="nearest"),
    "shifted by 2 mm": lambda pixels, spacing: shift(pixels, (2 / spacing, 2 / spacing), order=1, mode="nearest"),
    "turned by 2°": lambda pixels, _: rotate(pixels, 2, reshape=False, order=1, mode="nearest"),
    "mirrored": lambda pixels, _: pixels[:, ::-1],
}
"""By name, what is done to pixels `(rows, columns)` of so many millimetres."""


def main(
    dicom: Annotated[Path | None, typer.Argument(help="A folder of DICOM series; none: the phantom.")] = None,
    subjects: Annotated[int, typer.Option(min=2, help="Of the phantom.")] = 27,
    fov_mm: Annotated[float, typer.Option(help="Of the grid.")] = Grid().fov_mm,
    size: Annotated[int, typer.Option(help="Of the grid.")] = Grid().size,
) -> None:
    """Print the correlations of altered copies, neighbours and other subjects, as percentiles."""
    grid = Grid(fov_mm, size)
    series = _phantom(subjects) if dicom is None else _real(dicom)
    images = [(subject, image) for subject, slices in series for image in slices]
    units = _units(grid, [image for _, image in images])
    table = Table("correlation with", "pairs", "least", "1 %", "median", "99 %", "most", f"at least {NEAR_DUPLICATE}")
    for name, alter in ALTERED.items():
        altered = _units(grid, [_altered(image, alter) for _, image in images])
        _row(table, f"itself, {name}", np.einsum("ij,ij->i", units, altered))
    ends = np.cumsum([0, *(len(slices) for _, slices in series)])
    neighbours = [units[row] @ units[row + 1] for start, end in pairwise(ends) for row in range(start, end - 1)]
    _row(table, "the next slice of its series", np.array(neighbours))
    names = np.array([subject for subject, _ in images])
    _row(table, "slices of other subjects", (units @ units.T)[names[:, None] < names[None]])
    Console(width=120).print(table)


def _altered(image: Slice, alter: Callable[[Pixels, float], Pixels]) -> Slice:
    pixels = alter(image.pixels.astype(np.float32), image.row_spacing_mm)
    return replace(image, pixels=np.ascontiguousarray(pixels, np.float32))


def _units(grid: Grid, images: list[Slice]) -> Pixels:
    return unit_vectors(np.stack([grid.resample(image) for image in images]))


def _row(table: Table, name: str, found: NDArray[np.floating]) -> None:
    places = np.percentile(found, (0, 1, 50, 99, 100))
    table.add_row(
        name, str(len(found)), *(f"{place:.3f}" for place in places), f"{(found >= NEAR_DUPLICATE).mean():.1%}"
    )


def _phantom(subjects: int) -> list[tuple[str, list[Slice]]]:
    return [
        (f"{index:04d}", [Slice(pixels, PIXEL_MM, PIXEL_MM) for pixels in phantom_subject(0, index, recurrent)])
        for index, recurrent in enumerate(phantom_recurrent(subjects).tolist())
    ]


def _real(folder: Path) -> list[tuple[str, list[Slice]]]:
    """The T2-weighted series of a folder, each under its PatientID, which is not printed."""
    chosen = [decision.series for decision in select(find_series(folder).series) if decision.accepted]
    return [(series.patient_id, [decode(item.path, item.frame) for item in series.slices]) for series in chosen]


if __name__ == "__main__":
    typer.run(main)
