"""The images of the report as PNG: slices, heat maps over them, differences. Not for plots: those are in `figures`."""

from io import BytesIO

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from limner.imaging.pictures import Window, grey, overlay

# Display window in standard deviations of a normalised slice; the same for all, or they could not be compared.
NORMALISED_WINDOW = (-1.5, 3.0)

# Larger images are shrunk to this edge: what the page shows, at the pixels of a dense display.
MAX_EDGE = 400


def slice_png(pixels: NDArray[np.generic], window: Window | None = None) -> bytes:
    """Draw a slice `(rows, columns)` in grey, black to white over `window`; see `limner.imaging.pictures.grey`."""
    return _png(grey(pixels, window))


def overlay_png(pixels: NDArray[np.generic], heat_map: NDArray[np.floating]) -> bytes:
    """Draw a slice in grey under a heat map of the same shape, 0 to 1; see `limner.imaging.pictures.overlay`."""
    return _png(overlay(grey(pixels), heat_map))


def difference_png(difference: NDArray[np.floating], limit: float) -> bytes:
    """Draw a difference `(rows, columns)`: blue at `-limit`, white at 0, red at `limit`."""
    return _png(difference_colours(difference, limit))


def difference_colours(difference: NDArray[np.floating], limit: float) -> NDArray[np.uint8]:
    """Return the colours `(rows, columns, 3)` of `difference_png`."""
    colours = matplotlib.colormaps["RdBu_r"]((np.clip(difference / limit, -1, 1) + 1) / 2)[..., :3]
    return np.asarray(np.rint(colours * 255), np.uint8)


def _png(pixels: NDArray[np.uint8]) -> bytes:
    image = Image.fromarray(pixels)
    image.thumbnail((MAX_EDGE, MAX_EDGE))
    buffer = BytesIO()
    image.save(buffer, "PNG", optimize=True)
    return buffer.getvalue()
