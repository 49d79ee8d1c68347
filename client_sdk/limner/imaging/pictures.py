"""Values as 8-bit pictures: the grey window, the heat map over it, the caption burned in. Files are `export.py`'s."""

from math import ceil

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from limner.imaging.errors import ImageError

Window = tuple[float, float]
Bytes = NDArray[np.uint8]

# A picture with a caption is enlarged to this width at least, so that the caption can be read.
CAPTION_WIDTH = 384
OPACITY = 0.6
# Height of letters and margins, as a share of the picture's width.
FONT = 0.045
MARGIN = 0.02


def grey(pixels: NDArray[np.generic], window: Window | None = None) -> Bytes:
    """Return `(rows, columns)` as 8 bits, black to white over `window`, or over the 0.5th to the 99.5th percentile.

    Raises
    ------
    ImageError
        When the values have another shape or are not finite, or the window is empty.
    """
    if pixels.ndim != 2 or 0 in pixels.shape:
        raise ImageError("pixels.shape", pixels.shape, "(rows, columns)")
    values = pixels.astype(np.float32)
    if not np.isfinite(values).all():
        raise ImageError("pixels", "not finite", "finite values only")
    if window is not None and not window[0] < window[1]:
        raise ImageError("window", window, "(black, white), the second larger")
    low, high = window or (float(np.percentile(values, 0.5)), float(np.percentile(values, 99.5)))
    shown = np.clip(values, low, high) - low
    return np.asarray(np.rint(shown * (255 / (high - low)) if high > low else shown), np.uint8)


def overlay(grey: Bytes, heat_map: NDArray[np.generic]) -> Bytes:
    """Return a grey picture with a heat map blended in, red to yellow; `(rows, columns, 3)`.

    Parameters
    ----------
    grey
        `(rows, columns)`.
    heat_map
        `(rows, columns)`, 0 (left as it is) to 1 (most important).

    Raises
    ------
    ImageError
        When the heat map has another shape or range.
    """
    heat = check_heat_map(heat_map, grey.shape)
    colour = np.stack([np.ones_like(heat), np.clip(2 * heat - 1, 0, 1), np.zeros_like(heat)], axis=-1) * 255
    weight = (OPACITY * heat)[..., None]
    return np.asarray(np.rint(grey[..., None] * (1 - weight) + colour * weight), np.uint8)


def check_heat_map(heat_map: NDArray[np.generic], shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Return a heat map as float32.

    Raises
    ------
    ImageError
        When it is not of `shape`, the rows and columns of its source, or has values that are not from 0 to 1.
    """
    if heat_map.shape != shape:
        raise ImageError("heat_map.shape", heat_map.shape, f"{shape}, the source's rows and columns")
    heat = heat_map.astype(np.float32)
    if not (np.isfinite(heat).all() and heat.min() >= 0 and heat.max() <= 1):
        raise ImageError("heat_map", f"{heat.min():g} to {heat.max():g}", "values from 0 to 1")
    return heat


def captioned(picture: Image.Image, caption: str) -> tuple[Image.Image, int]:
    """Burn a caption into the lower edge, its last line lowest; return the picture and its enlargement."""
    picture, factor = _enlarged(picture)
    _write(picture, caption)
    return picture, factor


def with_legend(picture: Image.Image, caption: str) -> tuple[Image.Image, int]:
    """Put the scale of heat maps and a caption under a colour picture, of which nothing is hidden.

    Returns
    -------
    tuple[Image.Image, int]
        The picture on top of the legend, both of the same width, and its enlargement.
    """
    picture, factor = _enlarged(picture)
    width, margin = picture.width, round(MARGIN * picture.width)
    draw, lines = _typeset(picture, caption)
    text_height = ceil(draw.multiline_textbbox((0, 0), "\n".join(lines), anchor="la")[3])
    scale = _scale(width - 2 * margin, margin)
    legend = Image.new("RGB", (width, picture.height + scale.height + text_height + 4 * margin))
    legend.paste(picture)
    legend.paste(scale, (margin, picture.height + margin))
    _write(legend, caption)
    return legend, factor


def _scale(width: int, height: int) -> Image.Image:
    """Return the colours of a heat map from 0 to 1 over a middle grey."""
    heat = np.tile(np.linspace(0, 1, width, dtype=np.float32), (height, 1))
    return Image.fromarray(overlay(np.full(heat.shape, 128, np.uint8), heat))


def _enlarged(picture: Image.Image) -> tuple[Image.Image, int]:
    """Return a picture in which a caption can be read, and its enlargement."""
    factor = max(1, -(-CAPTION_WIDTH // picture.width))
    return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST), factor


def _typeset(picture: Image.Image, caption: str) -> tuple[ImageDraw.ImageDraw, list[str]]:
    """Return a caption in lines that fit a picture, and what draws them."""
    draw = ImageDraw.Draw(picture)
    draw.font = ImageFont.load_default(FONT * picture.width)
    width = (1 - 2 * MARGIN) * picture.width
    return draw, [part for line in caption.splitlines() for part in _wrapped(draw, line, width)]


def _write(picture: Image.Image, caption: str) -> None:
    draw, lines = _typeset(picture, caption)
    margin, stroke = MARGIN * picture.width, round(FONT * picture.width / 10)
    white = "white" if picture.mode == "RGB" else 255
    place = (margin, picture.height - margin)
    draw.multiline_text(place, "\n".join(lines), white, anchor="ld", stroke_width=stroke, stroke_fill=0)


def _wrapped(draw: ImageDraw.ImageDraw, line: str, width: float) -> list[str]:
    lines = [""]
    for word in line.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and draw.textlength(longer) > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines
