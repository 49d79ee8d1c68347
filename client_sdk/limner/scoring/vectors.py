"""What a run keeps of each image beside its row, as safetensors: the embedding, and the features of layers.

Each is a file with one tensor, which has a row for each row of the table of images. Rows are written as they come, each
at its place, so that neither a run nor a merge holds them all; the header is written last, and until then the file is
none.
"""

import json
import os
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Self

import numpy as np
from numpy.typing import NDArray

from limner.scoring.calls import Scored
from limner.scoring.run import Run
from limner.types import ImageFeatures

EMBEDDING = "embedding"

# The header and the eight bytes of its length: room for it is left at the beginning, and filled up with spaces.
_HEADER_BYTES = 512


def kept(run: Run) -> dict[Path, tuple[str, int]]:
    """Return the names of a run's files, each with that of its tensor and the numbers in a row."""
    found = {Path("embeddings.safetensors"): (EMBEDDING, run.model.width)} if run.embeddings else {}
    return found | {Path(f"features-{layer}.safetensors"): (layer, run.model.channels[layer]) for layer in run.features}


class Vectors:
    """One file, made where it is missing.

    Parameters
    ----------
    width
        Numbers in a row.
    """

    def __init__(self, path: Path, width: int) -> None:
        self._row_bytes = 4 * width
        self._nothing = np.full(width, np.nan, "<f4")
        self._file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __setitem__(self, row: int, vector: NDArray[np.float32] | None) -> None:
        """Keep a vector `(width,)`; None, of an image that failed, becomes NaN."""
        self._file.seek(_HEADER_BYTES + row * self._row_bytes)
        self._file.write((self._nothing if vector is None else vector.astype("<f4", copy=False)).tobytes())

    def flush(self, *, disk: bool = False) -> None:
        """Have it outlive this process, or with `disk` the machine."""
        self._file.flush()
        if disk:
            os.fsync(self._file.fileno())

    def finish(self, tensor: str, rows: int, **metadata: str) -> None:
        """Make a file of safetensors of it, with one tensor `(rows, width)` float32."""
        size = rows * self._row_bytes
        described = {"dtype": "F32", "shape": [rows, self._row_bytes // 4], "data_offsets": [0, size]}
        header = json.dumps({"__metadata__": metadata, tensor: described}).encode().ljust(_HEADER_BYTES - 8)
        self._file.seek(0)
        self._file.write(len(header).to_bytes(8, "little") + header)
        self._file.truncate(_HEADER_BYTES + size)
        self.flush(disk=True)


class Keeper:
    """All files of a run."""

    def __init__(self, folder: Path, run: Run) -> None:
        self._run = run
        self._files = {tensor: Vectors(folder / name, width) for name, (tensor, width) in kept(run).items()}
        self._opened = ExitStack()
        for file in self._files.values():
            self._opened.enter_context(file)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    def __setitem__(self, row: int, result: Scored) -> None:
        """Keep what there is to keep of a result."""
        for tensor, file in self._files.items():
            file[row] = _vector(result, tensor)

    def flush(self, *, disk: bool = False) -> None:
        """As `Vectors.flush`."""
        for file in self._files.values():
            file.flush(disk=disk)

    def finish(self, rows: int) -> None:
        """Make files of safetensors of them."""
        model, method = self._run.model.identity.digest, self._run.method
        for tensor, file in self._files.items():
            how = {} if tensor == EMBEDDING else {"method": method}
            file.finish(tensor, rows, model=model, source=self._run.digest, **how)


def _vector(result: Scored, tensor: str) -> NDArray[np.float32] | None:
    if tensor == EMBEDDING:
        return result.embedding
    layers = result.layers if isinstance(result, ImageFeatures) else ()
    for layer in layers:
        if layer.layer == tensor:
            values = np.zeros(layer.channels, np.float32)
            values[[channel.index for channel in layer.top]] = [channel.importance for channel in layer.top]
            return values
    return None


def each_vector(path: Path, width: int) -> Iterator[NDArray[np.float32]]:
    """Give the rows of a finished file, each `(width,)`."""
    with path.open("rb") as file:
        file.seek(_HEADER_BYTES)
        while row := file.read(4 * width):
            yield np.frombuffer(row, "<f4")
