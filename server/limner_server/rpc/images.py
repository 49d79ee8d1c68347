"""Images of requests to arrays on the model's grid, off the event loop where pixels are touched."""

import asyncio
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from limner.imaging.dicom import decode
from limner.imaging.grid import Grid
from limner.imaging.slices import Slice
from limner.v1 import common_pb2
from limner_server.errors import InvalidInputError

_DTYPES: dict[int, np.dtype[Any]] = {
    common_pb2.DATA_TYPE_UINT8: np.dtype("uint8"),
    common_pb2.DATA_TYPE_UINT16: np.dtype("<u2"),
    common_pb2.DATA_TYPE_INT16: np.dtype("<i2"),
    common_pb2.DATA_TYPE_FLOAT32: np.dtype("<f4"),
}
MAX_ID = 256
MAX_SUBJECT = 128


@dataclass(frozen=True)
class GridImage:
    """An image on the model's grid.

    Attributes
    ----------
    values
        `(size, size)` uint8, uint16, int16 or float32; of a grid array a view of its message, finite or not.
    source
        The slice it was resampled from, for laying results over it; None where it came as a grid array.
    center
        Where the grid was centred on the source, `(row, column)` in pixels; None for its middle.
    decode_s
        Seconds spent on decoding and resampling.
    """

    values: NDArray[Any]
    source: Slice | None
    center: tuple[float, float] | None
    decode_s: float


class ImageReader:
    """Reads images in a pool of threads; pydicom's decoders and Pillow free the interpreter lock."""

    def __init__(self, threads: int) -> None:
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="decode")

    async def read(self, image: common_pb2.Image, grid: Grid) -> GridImage:
        """Bring one image of a request onto a grid.

        Raises
        ------
        InvalidInputError, ImageError
            Naming the field of this image that is wrong.
        """
        check_text("id", image.id, MAX_ID, required=True)
        check_text("subject", image.subject, MAX_SUBJECT)
        if image.WhichOneof("content") == "grid":
            return _read_grid(image, grid)  # a view of the message: over before a thread would have begun
        return await asyncio.get_running_loop().run_in_executor(self._pool, _read, image, grid)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(wait=False, cancel_futures=True)


def check_text(field: str, text: str, longest: int, required: bool = False) -> None:
    """Refuse a text that is too long, or missing where it is required."""
    if len(text) > longest or (required and not text):
        raise InvalidInputError(field, text, f"{1 if required else 0} to {longest} characters")


def read_pixels(message: common_pb2.Pixels) -> Slice:
    """Translate decoded pixels, checking their number, type and geometry."""
    if not message.HasField("geometry"):
        raise InvalidInputError("pixels.geometry", "missing", "pixel spacing in mm")
    geometry = message.geometry
    return Slice(
        _array("pixels", message.data, message.data_type, message.rows, message.columns),
        geometry.row_spacing_mm,
        geometry.column_spacing_mm,
        tuple(geometry.image_orientation) or None,
        tuple(geometry.image_position) or None,
    )


def _read(image: common_pb2.Image, grid: Grid) -> GridImage:
    started = time.perf_counter()
    center = (image.center.row, image.center.column) if image.HasField("center") else None
    match image.WhichOneof("content"):
        case "dicom":
            source = decode(image.dicom, image.frame)
        case "pixels":
            source = read_pixels(image.pixels)
        case _:
            raise InvalidInputError("content", "missing", "one of dicom, pixels, grid")
    values = grid.resample(source, center)
    return GridImage(values, source, center, time.perf_counter() - started)


def _read_grid(image: common_pb2.Image, grid: Grid) -> GridImage:
    started = time.perf_counter()
    message = image.grid
    if image.HasField("center"):
        center = (image.center.row, image.center.column)
        raise InvalidInputError("center", center, "none with a grid array, which is centred already")
    if message.size != grid.size:
        raise InvalidInputError("grid.size", message.size, f"{grid.size}, the edge of the model's grid")
    values = _array("grid", message.data, message.data_type, message.size, message.size)
    return GridImage(values, None, None, time.perf_counter() - started)


def _array(field: str, data: bytes, data_type: int, rows: int, columns: int) -> NDArray[np.generic]:
    dtype = _DTYPES.get(data_type)
    if dtype is None:
        raise InvalidInputError(f"{field}.data_type", data_type, "UINT8, UINT16, INT16 or FLOAT32")
    expected = rows * columns * dtype.itemsize
    if len(data) != expected:
        raise InvalidInputError(
            f"{field}.data", f"{len(data)} bytes", f"{expected} bytes: {rows} x {columns} of {dtype.name}"
        )
    return np.frombuffer(data, dtype).reshape(rows, columns)
