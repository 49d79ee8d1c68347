"""NIfTI by slice: the same pixels as the DICOM they came from, however the volume is stored."""

import gzip
from itertools import permutations, product
from pathlib import Path

import nibabel
import numpy as np
import pytest
from numpy.typing import NDArray

from limner.imaging import ImageError, decode, read_header
from limner.imaging.nifti import decode_nifti, is_nifti, slice_count

VOXELS = np.arange(2 * 3 * 4, dtype=np.int16).reshape(2, 3, 4)


def write(path: Path, voxels: NDArray[np.generic], affine: NDArray[np.float64], slice_axis: int | None = 2) -> Path:
    image = nibabel.Nifti1Image(voxels, affine)
    image.header.set_dim_info(slice=slice_axis)
    nibabel.save(image, path)
    return path


def volume_of(folder: Path) -> tuple[NDArray[np.generic], NDArray[np.float64]]:
    """A series as a volume, by the formula of nibabel's page on DICOM orientation: voxels (column, row, slice)."""
    files = sorted(folder.glob("*.dcm"))
    header, last = read_header(files[0]), read_header(files[-1])
    row, column = np.array(header.ImageOrientationPatient, float).reshape(2, 3)
    first = np.array(header.ImagePositionPatient, float)
    step = (np.array(last.ImagePositionPatient, float) - first) / (len(files) - 1)
    spacing = [float(one) for one in header.PixelSpacing]
    affine = np.eye(4)
    affine[:3] = np.column_stack([row * spacing[1], column * spacing[0], step, first])
    voxels = np.stack([decode(path).pixels.T for path in files], axis=2)
    return voxels, np.diag([-1, -1, 1, 1]) @ affine  # LPS to RAS


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_slices_are_those_of_the_dicom(phantom: Path, tmp_path: Path, suffix: str) -> None:
    files = sorted((phantom / "PH-000").glob("*.dcm"))
    path = write(tmp_path / f"volume{suffix}", *volume_of(phantom / "PH-000"))
    assert slice_count(path) == len(files)
    for index, file in enumerate(files):
        source, found = decode(file), decode_nifti(path, index)
        assert np.array_equal(found.pixels, source.pixels)
        assert found.pixels.dtype == source.pixels.dtype
        assert found.row_spacing_mm == pytest.approx(source.row_spacing_mm)
        assert found.column_spacing_mm == pytest.approx(source.column_spacing_mm)


@pytest.mark.parametrize("order", list(permutations(range(3))))
def test_however_a_volume_is_stored_its_slices_look_the_same(tmp_path: Path, order: tuple[int, int, int]) -> None:
    # In world axes (R, A, S) a transverse slice is shown with rows to the back and columns to the left.
    world = np.random.default_rng(0).integers(0, 9, (4, 5, 3)).astype(np.uint8)
    shown = world[::-1, ::-1, 1].T
    for signs in product((1, -1), repeat=3):
        affine = np.zeros((4, 4))
        affine[3, 3] = 1
        for axis, (kind, sign) in enumerate(zip(order, signs, strict=True)):
            affine[kind, axis] = sign * (2.0, 3.0, 7.0)[kind]
        voxels = np.transpose(world, order)[tuple(slice(None, None, sign) for sign in signs)]
        path = write(tmp_path / f"{signs}.nii", np.ascontiguousarray(voxels), affine, slice_axis=order.index(2))
        found = decode_nifti(path, 1)
        assert np.array_equal(found.pixels, shown), signs
        assert (found.row_spacing_mm, found.column_spacing_mm) == (3.0, 2.0)


def test_scaled_values_are_floats(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(VOXELS, np.eye(4))
    image.header.set_slope_inter(0.5, 10)
    nibabel.save(image, tmp_path / "scaled.nii")
    found = decode_nifti(tmp_path / "scaled.nii", 2).pixels
    assert found.dtype == np.float32
    assert np.array_equal(found, (0.5 * VOXELS[::-1, ::-1, 2].T + 10))


def test_units_are_brought_to_mm(tmp_path: Path) -> None:
    image = nibabel.Nifti1Image(VOXELS, np.diag([500, 250, 1000, 1]))
    image.header.set_xyzt_units("micron")
    nibabel.save(image, tmp_path / "small.nii")
    found = decode_nifti(tmp_path / "small.nii", 0)
    assert (found.row_spacing_mm, found.column_spacing_mm) == pytest.approx((0.25, 0.5))


def test_names() -> None:
    assert is_nifti("a/b.NII.GZ")
    assert is_nifti(Path("b.nii"))
    assert not is_nifti("nii.dcm")


def test_what_is_no_volume_is_refused_by_name(tmp_path: Path) -> None:
    volume = write(tmp_path / "good.nii", VOXELS, np.eye(4))
    with pytest.raises(ImageError, match=r"frame is 4; expected 0 to 3, as there are 4"):
        decode_nifti(volume, 4)
    with pytest.raises(ImageError, match=r"dim is \(2, 3, 2, 2\); expected a volume of three axes"):
        slice_count(write(tmp_path / "time.nii", VOXELS.reshape(2, 3, 2, 2), np.eye(4)))
    with pytest.raises(ImageError, match="datatype is complex64; expected integers or floats"):
        decode_nifti(write(tmp_path / "complex.nii", VOXELS.astype(np.complex64), np.eye(4)), 0)
    (tmp_path / "text.nii").write_text("no volume")
    with pytest.raises(ImageError, match=r"file is corrupt: .*; expected a readable NIfTI file"):
        slice_count(tmp_path / "text.nii")
    whole = gzip.compress(volume.read_bytes())
    (tmp_path / "torn.nii.gz").write_bytes(whole[: len(whole) - 20])
    with pytest.raises(ImageError, match=r"file is corrupt: .*; expected a readable NIfTI file"):
        decode_nifti(tmp_path / "torn.nii.gz", 0)
    with pytest.raises(FileNotFoundError):
        decode_nifti(tmp_path / "none.nii", 0)
