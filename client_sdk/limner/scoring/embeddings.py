"""The embeddings of a run: one tensor with a row for each row of the table of images, as safetensors.

Rows are written as they come, each at its place, so that neither a run nor a merge holds them all; the header is
written last, and until then the file is none.
"""

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

EMBEDDINGS = "embeddings.safetensors"

# The header and the eight bytes of its length: room for it is left at the beginning, and filled up with spaces.
_HEADER_BYTES = 512


class Embeddings:
    """The file of embeddings of one run, made where it is missing.

    Parameters
    ----------
    width
        Numbers in an embedding.
    """

    def __init__(self, path: Path, width: int) -> None:
        self._row_bytes = 4 * width
        self._nothing = np.full(width, np.nan, "<f4")
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __setitem__(self, row: int, embedding: NDArray[np.float32] | None) -> None:
        """Keep an embedding `(width,)`; None, of an image that failed, becomes NaN."""
        self._file.seek(_HEADER_BYTES + row * self._row_bytes)
        self._file.write((self._nothing if embedding is None else embedding.astype("<f4", copy=False)).tobytes())

    def flush(self, *, disk: bool = False) -> None:
        """Have it outlive this process, or with `disk` the machine."""
        self._file.flush()
        if disk:
            os.fsync(self._file.fileno())

    def finish(self, rows: int, **metadata: str) -> None:
        """Make a file of safetensors of it, with the tensor `embedding` `(rows, width)` float32."""
        size = rows * self._row_bytes
        tensor = {"dtype": "F32", "shape": [rows, self._row_bytes // 4], "data_offsets": [0, size]}
        header = json.dumps({"__metadata__": metadata, "embedding": tensor}).encode().ljust(_HEADER_BYTES - 8)
        self._file.seek(0)
        self._file.write(len(header).to_bytes(8, "little") + header)
        self._file.truncate(_HEADER_BYTES + size)
        self.flush(disk=True)


def each_embedding(path: Path, width: int) -> Iterator[NDArray[np.float32]]:
    """Give the rows of a finished file, each `(width,)`."""
    with path.open("rb") as file:
        file.seek(_HEADER_BYTES)
        while row := file.read(4 * width):
            yield np.frombuffer(row, "<f4")
