"""From a NIfTI volume to `Slice`s: one at a time, seen as DICOM shows its plane, in the file's own units.

NIfTI tells neither modality nor series, so nothing is selected here. nibabel reads it (the extra `limner[nifti]`).
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from limner.imaging.errors import ImageError
from limner.imaging.slices import DTYPES, Slice, checked_frame

if TYPE_CHECKING:
    from nibabel.nifti1 import Nifti1Image

# NIfTI-1, xyzt_units; a header that names no unit means mm.
_MM = {"mm": 1.0, "unknown": 1.0, "meter": 1e3, "micron": 1e-3}
# A compressed volume is held whole, since its last slice cannot be read before its first.
_KEPT_VOLUMES = 2
_reading = Lock()


class _Volume(NamedTuple):
    """A volume as it is stored, and how its slices are to be seen.

    Attributes
    ----------
    slices
        `(slices, rows, columns)`, before scaling, each slice turned as DICOM shows it; of an uncompressed file a view
        of the disk.
    slope, intercept
        Of the stored values.
    spacing_mm
        Between rows and between columns.
    """

    slices: NDArray[np.generic]
    slope: float
    intercept: float
    spacing_mm: tuple[float, float]


def is_nifti(path: str | Path) -> bool:
    """Whether a file is NIfTI by its name."""
    return str(path).lower().endswith((".nii", ".nii.gz"))


def slice_count(path: Path) -> int:
    """Return the number of slices of a volume, from its header.

    Raises
    ------
    ImageError
        When it is not NIfTI or not a volume.
    OSError
        When the file cannot be opened.
    """
    with _image_errors():
        image = _open(path)
        return int(image.shape[_slice_axis(image)])


def decode_nifti(path: Path, index: int | None) -> Slice:
    """Return one slice of a volume.

    Slices are those that were acquired: along the axis that the header names (`dim_info`), else the third. Rows lie
    from front to back or from head to feet, columns from the patient's right to left or from front to back. Values keep
    their integer type where the scaling is the identity and are float32 otherwise.

    Parameters
    ----------
    path
        A `.nii` or `.nii.gz` of three axes.
    index
        0 to the number of slices less 1, in the order of the file; None: the only one.

    Raises
    ------
    ImageError
        When it is not NIfTI, not a volume of numbers, truncated, without a usable affine, or has no such slice.
    OSError
        When the file cannot be opened or read.
    """
    with _image_errors():
        with _reading:  # one thread reads a volume, the others wait for it
            volume = _read(path, path.stat().st_mtime_ns)
        stored = volume.slices[checked_frame(index, len(volume.slices))]
        return Slice(_values(volume, stored), *volume.spacing_mm)


@contextmanager
def _image_errors() -> Iterator[None]:
    """Turn whatever a broken file makes nibabel raise into `ImageError`; errors of the system pass."""
    try:
        yield
    except (ImageError, ModuleNotFoundError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        raise ImageError("file", f"corrupt: {type(error).__name__}: {error}", "a readable NIfTI file") from error


def _open(path: Path) -> "Nifti1Image":
    try:
        from nibabel.loadsave import load
        from nibabel.nifti1 import Nifti1Image
    except ModuleNotFoundError:
        raise ModuleNotFoundError("NIfTI needs nibabel: pip install 'limner[nifti]'", name="nibabel") from None
    image = load(path)
    if not isinstance(image, Nifti1Image):
        raise ImageError("file", type(image).__name__, "a NIfTI file")
    if len(image.shape) < 3 or any(length != 1 for length in image.shape[3:]):
        raise ImageError("dim", image.shape, "a volume of three axes")
    return image


def _slice_axis(image: "Nifti1Image") -> int:
    axis = image.header.get_dim_info()[2]
    return 2 if axis is None else int(axis)


@lru_cache(maxsize=_KEPT_VOLUMES)
def _read(path: Path, _changed_ns: int) -> _Volume:
    from nibabel.affines import voxel_sizes
    from nibabel.orientations import io_orientation

    image = _open(path)
    unit = image.header.get_xyzt_units()[0]
    if unit not in _MM:
        raise ImageError("xyzt_units", unit, f"one of {', '.join(_MM)}")
    axis = _slice_axis(image)
    # World axes of a NIfTI run to the right, the front and the head (RAS), those of DICOM to the left, the back and
    # the head (PS3.3 C.7.6.2.1.1). Each plane is shown with rows along its later axis and columns along its earlier
    # one, to the patient's left, back or feet.
    world, direction = io_orientation(image.affine).T
    if not np.isfinite(world).all():
        raise ImageError("affine", "singular", "three axes that differ")
    columns, rows = sorted((one for one in range(3) if one != axis), key=lambda one: world[one])
    # Unscaled, so that integers stay integers; of an uncompressed file this maps it, and reads nothing yet.
    stored = image.dataobj.get_unscaled().reshape(image.shape[:3])
    slices = np.moveaxis(stored, (axis, rows, columns), (0, 1, 2))
    slices = slices[:, :: -int(direction[rows]), :: -int(direction[columns])]
    sizes = _MM[unit] * voxel_sizes(image.affine)
    spacing = float(sizes[rows]), float(sizes[columns])
    return _Volume(slices, float(image.dataobj.slope), float(image.dataobj.inter), spacing)


def _values(volume: _Volume, stored: NDArray[np.generic]) -> NDArray[np.generic]:
    if stored.dtype.kind not in "iuf":
        raise ImageError("datatype", stored.dtype, "integers or floats")
    if (volume.slope, volume.intercept) != (1, 0):
        scaled: NDArray[np.float64] = stored.astype(np.float64) * volume.slope + volume.intercept
        return scaled.astype(np.float32)
    native = stored.dtype.newbyteorder("=")
    return stored.astype(native) if native in DTYPES else stored.astype(np.float32)
