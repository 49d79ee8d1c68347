"""The model's grid: a square field of view in millimetres, and the way from a slice to it and back.

Every array that reaches a model comes from `Grid.resample`, on either side of the wire, or was made by the caller in
that shape. It resamples geometry only; intensities are normalised inside the exported model.

Lanczos, by measurement at 2 to 3.3 source pixels per grid pixel: of a wave at 0.25 cycles per grid pixel it keeps 1.01
(bilinear 0.81, bicubic 0.94), of one at 0.6, which can only alias, it lets through 0.18 (0.25, 0.27; box 0.54).
Back to the source it is bilinear, which cannot leave the range of the values.
"""

from dataclasses import dataclass
from math import ceil, floor, isfinite, prod

import numpy as np
from numpy.typing import NDArray

from limner.imaging.errors import ImageError
from limner.imaging.slices import Slice

Plane = NDArray[np.float32]
Center = tuple[float, float]
Span = tuple[float, float]

MAX_FOV_MM = 1000.0
MIN_SIZE, MAX_SIZE = 32, 1024
# Lines are resampled in strips of about this many pixels, so a large slice needs little more than itself.
STRIP_PIXELS = 1 << 22
# Pillow's filters, by its numbers (PIL.Image.Resampling), and how far they reach: in output pixels when reducing and in
# input pixels when enlarging. Pillow itself is imported where it works, since who only talks to a server needs none.
LANCZOS, BILINEAR = 1, 2
REACH = {LANCZOS: 3.0, BILINEAR: 1.0}


@dataclass(frozen=True)
class Grid:
    """A square raster around a point of a slice.

    Attributes
    ----------
    fov_mm
        Edge of the square in mm, over 0 and at most 1000.
    size
        Pixels along an edge, 32 to 1024.

    Raises
    ------
    ImageError
        Naming the attribute that is out of its range.
    """

    fov_mm: float = 128.0
    size: int = 64

    def __post_init__(self) -> None:
        if not (isfinite(self.fov_mm) and 0 < self.fov_mm <= MAX_FOV_MM):
            raise ImageError("fov_mm", self.fov_mm, f"a number over 0 and at most {MAX_FOV_MM:g}, in mm")
        if not MIN_SIZE <= self.size <= MAX_SIZE:
            raise ImageError("size", self.size, f"{MIN_SIZE} to {MAX_SIZE} pixels")

    def resample(self, image: Slice, center: Center | None = None) -> Plane:
        """Return the slice on the grid, antialiased.

        Parameters
        ----------
        image
            Any slice; pixels need not be square.
        center
            `(row, column)` of the grid's centre in the slice's pixels, (0, 0) being the centre of the first pixel; the
            middle of the slice when None.

        Returns
        -------
        NDArray[np.float32]
            `(size, size)`, in the units of the slice. Outside the slice it is the slice's minimum.

        Raises
        ------
        ImageError
            When `center` is outside the slice, or the slice and the grid are of incomparable size: the slice smaller
            than one pixel of the grid, or the grid than one pixel of the slice.
        """
        spans = (top, row_step), (left, column_step) = self._spans(image, center)
        seen = [_reached(*span, self.size) for span in spans]
        inside = all(low >= 0 and high <= edge for (low, high), edge in zip(seen, image.pixels.shape, strict=True))
        if inside and prod(high - low for low, high in seen) <= STRIP_PIXELS:
            return self._resample_inside(image.pixels, spans, *seen)
        outside = float(image.pixels.min())
        narrow = _stretch(image.pixels, left, column_step, self.size, LANCZOS, outside)
        return _stretch(narrow.T, top, row_step, self.size, LANCZOS, outside).T.copy()

    def _resample_inside(
        self, pixels: NDArray[np.generic], spans: tuple[Span, Span], rows: tuple[int, int], columns: tuple[int, int]
    ) -> Plane:
        """Resample both axes in one call, four times as fast, where the filter sees nothing but `pixels`."""
        from PIL import Image

        part = pixels[slice(*rows), slice(*columns)].astype(np.float32)
        (top, row_step), (left, column_step) = spans
        top, left = top - rows[0], left - columns[0]
        box = (left, top, left + self.size * column_step, top + self.size * row_step)
        picture = Image.fromarray(part).resize((self.size, self.size), LANCZOS, box)
        return np.array(picture)

    def project(self, values: NDArray[np.generic], image: Slice, center: Center | None = None) -> Plane:
        """Return values on the grid, such as a heat map, on the slice's own raster.

        Parameters
        ----------
        values
            `(size, size)`, finite.
        image, center
            As they were given to `resample`.

        Returns
        -------
        NDArray[np.float32]
            `(rows, columns)` of the slice, within the range of `values`; 0 outside the field of view.

        Raises
        ------
        ImageError
            When `values` has another shape or is not finite, and as `resample` does.
        """
        if values.shape != (self.size, self.size):
            raise ImageError("values.shape", values.shape, f"{(self.size, self.size)}, the grid's")
        if not np.isfinite(values).all():
            raise ImageError("values", "not finite", "finite values only")
        spans = self._spans(image, center)
        wide = self._unstretch(values, *spans[1], image.pixels.shape[1])
        return self._unstretch(wide.T, *spans[0], image.pixels.shape[0]).T.copy()

    def _spans(self, image: Slice, center: Center | None) -> tuple[Span, Span]:
        """Return, for rows and for columns, the grid's first edge and its step, in pixels of the slice."""
        shape, spacings = image.pixels.shape, (image.row_spacing_mm, image.column_spacing_mm)
        if center is None:
            center = ((shape[0] - 1) / 2, (shape[1] - 1) / 2)
        if not all(-0.5 <= place <= edge - 0.5 for place, edge in zip(center, shape, strict=True)):
            raise ImageError("center", center, f"(row, column) inside the slice of {shape[0]} x {shape[1]} pixels")
        for edge, spacing in zip(shape, spacings, strict=True):
            if edge * spacing < self.fov_mm / self.size or spacing > self.fov_mm:
                expected = f"a slice of at least one pixel of the grid ({self.fov_mm / self.size:g} mm), "
                expected += f"in pixels of at most its field of view ({self.fov_mm:g} mm)"
                raise ImageError("slice", f"{edge} pixels of {spacing:g} mm", expected)
        row, column = ((place + 0.5, self.fov_mm / mm) for place, mm in zip(center, spacings, strict=True))
        return (row[0] - row[1] / 2, row[1] / self.size), (column[0] - column[1] / 2, column[1] / self.size)

    def _unstretch(self, lines: NDArray[np.generic], start: float, step: float, length: int) -> Plane:
        """Return `(n, length)` pixels of the slice from `(n, size)` of the grid that lies there as `_spans` says."""
        result = _stretch(lines, -start / step, 1 / step, length, BILINEAR)
        centers = (np.arange(length) + 0.5 - start) / step
        result[:, (centers < 0) | (centers > self.size)] = 0
        return result


def _reached(start: float, step: float, length: int) -> tuple[int, int]:
    """Return the first pixel that the antialiasing filter sees, and the one after the last."""
    reach = REACH[LANCZOS] * max(step, 1.0)
    return floor(start - reach), ceil(start + length * step + reach)


def _stretch(
    lines: NDArray[np.generic],
    start: float,
    step: float,
    length: int,
    method: int,
    outside: float | None = None,
) -> Plane:
    """Resample the second axis.

    Parameters
    ----------
    lines
        `(n, m)`, of which output pixel i covers `start + i * step` to `start + (i + 1) * step`.
    outside
        The value past both ends; each line's own end value when None.

    Returns
    -------
    NDArray[np.float32]
        `(n, length)`.
    """
    from PIL import Image

    reach = REACH[method] * max(step, 1.0)
    # Only output pixels whose filter touches the input are computed, so padding stays within the filter's reach.
    first = max(0, floor((-reach - start) / step))
    last = min(length, ceil((lines.shape[1] + reach - start) / step))
    low, high = start + first * step, start + last * step
    before, after = max(0, ceil(reach - low)), max(0, ceil(high + reach - lines.shape[1]))
    box = (low + before, high + before)
    fill = 0.0 if outside is None else outside
    result = np.full((lines.shape[0], length), fill, np.float32)
    strip = max(1, STRIP_PIXELS // (lines.shape[1] + before + after))
    for row in range(0, lines.shape[0], strip):
        part = lines[row : row + strip].astype(np.float32)
        ends = ((0, 0), (before, after))
        padded = np.pad(part, ends, mode="edge") if outside is None else np.pad(part, ends, constant_values=outside)
        picture = Image.fromarray(padded)
        corners = (box[0], 0.0, box[1], float(len(part)))
        result[row : row + strip, first:last] = np.asarray(picture.resize((last - first, len(part)), method, corners))
    return result
