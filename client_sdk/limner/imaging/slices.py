"""A decoded slice: pixels and geometry, nothing that identifies anybody."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from limner.imaging.errors import ImageError

MIN_EDGE = 2
MAX_EDGE = 8192
DTYPES = tuple(np.dtype(name) for name in ("uint8", "uint16", "int16", "float32"))


def checked_frame(frame: int | None, frames: int) -> int:
    """Return which of so many frames is meant, None standing for the only one, or raise `ImageError`."""
    if frame is None and frames == 1:
        return 0
    if frame is None or not 0 <= frame < frames:
        raise ImageError("frame", "missing" if frame is None else frame, f"0 to {frames - 1}, as there are {frames}")
    return frame


@dataclass(frozen=True, eq=False)
class Slice:
    """One 2-D slice of MRI.

    Attributes
    ----------
    pixels
        `(rows, columns)`, each 2 to 8192, of uint8, uint16, int16 or float32, finite; larger is brighter.
    row_spacing_mm, column_spacing_mm
        Distance between rows and between columns, over 0 (PS3.3 10.7.1.3, PixelSpacing).
    orientation
        Six direction cosines of a row and a column (PS3.3 C.7.6.2.1.1, ImageOrientationPatient), or None.
    position
        Centre of the first pixel in mm (ImagePositionPatient), or None.

    Raises
    ------
    ImageError
        Naming the attribute that is out of its range.
    """

    pixels: NDArray[np.generic]
    row_spacing_mm: float
    column_spacing_mm: float
    orientation: tuple[float, ...] | None = None
    position: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        pixels = self.pixels
        if pixels.dtype not in DTYPES:
            raise ImageError("pixels.dtype", pixels.dtype, "uint8, uint16, int16 or float32")
        if pixels.ndim != 2 or not all(MIN_EDGE <= edge <= MAX_EDGE for edge in pixels.shape):
            raise ImageError("pixels.shape", pixels.shape, f"(rows, columns), each {MIN_EDGE} to {MAX_EDGE}")
        if pixels.dtype.kind == "f" and not np.isfinite(pixels).all():
            raise ImageError("pixels", "not finite", "finite values only")
        for field in ("row_spacing_mm", "column_spacing_mm"):
            spacing = getattr(self, field)
            if not (np.isfinite(spacing) and 0 < spacing <= 100):
                raise ImageError(field, spacing, "a number over 0 and at most 100, in mm")
        for field, length in (("orientation", 6), ("position", 3)):
            numbers = getattr(self, field)
            if numbers is not None and (len(numbers) != length or not np.isfinite(numbers).all()):
                raise ImageError(field, numbers, f"{length} finite numbers, or none")
