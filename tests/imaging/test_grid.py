"""The grid: exact geometry, antialiased, in bounded memory, and back again."""

import tracemalloc

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from limner.imaging import Grid, ImageError, Slice

spacings = st.floats(0.3, 3.0)
edges = st.integers(40, 160)


def mm(image_edge: int, spacing: float) -> NDArray[np.floating]:
    """Return the place of each pixel's centre from the middle of an axis."""
    return (np.arange(image_edge) - (image_edge - 1) / 2) * spacing


def lanczos(x: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.where(np.abs(x) < 3, np.sinc(x) * np.sinc(x / 3), 0.0)


def brute_force(line: NDArray[np.float64], spacing: float, grid: Grid, center: float, outside: float) -> list[float]:
    """Return the grid's pixels of one axis by the definition of a resampling filter, pixel by pixel."""
    step = grid.fov_mm / grid.size / spacing
    width = max(step, 1.0)
    values = []
    for place in center + (np.arange(grid.size) - (grid.size - 1) / 2) * step:
        source = np.arange(np.floor(place - 3 * width), np.ceil(place + 3 * width) + 1)
        inside = (source >= 0) & (source < len(line))
        sampled = np.where(inside, line[np.clip(source, 0, len(line) - 1).astype(int)], outside)
        weights = lanczos((source - place) / width)
        values.append(float((weights * sampled).sum() / weights.sum()))
    return values


@settings(max_examples=30, deadline=None)
@given(rows=edges, columns=edges, row_mm=spacings, column_mm=spacings, value=st.integers(-1000, 1000))
def test_a_constant_stays_constant(rows: int, columns: int, row_mm: float, column_mm: float, value: int) -> None:
    image = Slice(np.full((rows, columns), value, np.int16), row_mm, column_mm)
    assert Grid(100, 32).resample(image) == pytest.approx(value, abs=1e-3)


@settings(max_examples=30, deadline=None)
@given(row_mm=st.floats(0.5, 2.0), column_mm=st.floats(0.5, 2.0))
def test_a_ramp_in_mm_keeps_its_places_whatever_the_spacing(row_mm: float, column_mm: float) -> None:
    rows, columns = int(220 / row_mm), int(220 / column_mm)
    ramp = 3 * mm(rows, row_mm)[:, None] + mm(columns, column_mm)
    grid = Grid(120, 48)
    places = mm(grid.size, grid.fov_mm / grid.size)
    # A sampled Lanczos kernel leaves a ripple of a hundredth of a pixel on a ramp.
    tolerance = 0.02 * 4 * max(row_mm, column_mm, 2.5)
    resampled = grid.resample(Slice(ramp.astype(np.float32), row_mm, column_mm))
    assert np.abs(resampled - (3 * places[:, None] + places)).max() < tolerance


@settings(max_examples=25, deadline=None)
@given(
    edge=st.integers(20, 120),
    spacing=st.floats(0.4, 3.0),
    place=st.floats(0.0, 1.0),
    fov=st.floats(40, 200),
    seed=st.integers(0, 9),
)
@example(edge=120, spacing=1.0, place=0.5, fov=40.0, seed=0).via("a grid inside the slice")
@example(edge=40, spacing=1.0, place=0.5, fov=80.0, seed=0).via("a grid over its edges")
def test_pixels_are_those_of_the_filter_s_definition(
    edge: int, spacing: float, place: float, fov: float, seed: int
) -> None:
    line = np.random.default_rng(seed).uniform(10, 20, edge)
    grid, center = Grid(fov, 32), place * (edge - 1)
    image = Slice(np.tile(line, (edge, 1)).astype(np.float32), spacing, spacing)
    expected = brute_force(line, spacing, grid, center, outside=float(image.pixels.min()))
    middle = grid.resample(image, ((edge - 1) / 2, center))
    inside = np.abs(mm(32, fov / 32)) < edge * spacing / 2 - 4 * max(spacing, fov / 32)
    assert np.allclose(middle[inside], expected, atol=1e-3)
    transposed = grid.resample(Slice(image.pixels.T.copy(), spacing, spacing), (center, (edge - 1) / 2))
    assert np.allclose(transposed, middle.T, atol=1e-4)


def test_a_box_is_the_area_mean_of_a_smooth_image() -> None:
    rows, columns = np.mgrid[:96, :96]
    smooth = np.sin(rows / 11) + np.cos(columns / 13)
    area_means = smooth[16:80, 16:80].reshape(32, 2, 32, 2).mean(axis=(1, 3))
    resampled = Grid(64, 32).resample(Slice(smooth.astype(np.float32), 1.0, 1.0))
    assert np.abs(resampled - area_means).max() < 0.005


def test_frequencies_that_would_alias_are_taken_out() -> None:
    stripes = np.tile(np.arange(192) % 2 * 2 - 1, (192, 1)).astype(np.float32)
    resampled = Grid(48, 32).resample(Slice(stripes, 0.5, 0.5))
    assert np.abs(resampled).max() < 0.01


def test_a_center_moves_the_image_by_whole_pixels() -> None:
    image = Slice(np.random.default_rng(0).uniform(size=(80, 90)).astype(np.float32), 1.0, 1.0)
    grid = Grid(32, 32)
    middle, moved = grid.resample(image, (40.5, 44.5)), grid.resample(image, (43.5, 39.5))
    assert np.allclose(moved[:-3, 5:], middle[3:, :-5], atol=1e-5)
    assert np.allclose(middle, image.pixels[25:57, 29:61], atol=1e-5)


def test_the_middle_is_the_default_center() -> None:
    image = Slice(np.random.default_rng(0).uniform(size=(80, 91)).astype(np.float32), 1.0, 0.7)
    assert np.array_equal(Grid().resample(image), Grid().resample(image, (39.5, 45.0)))


def test_outside_the_image_is_its_minimum() -> None:
    image = Slice(np.full((20, 20), 7, np.uint8), 1.0, 1.0)
    image.pixels[3, 3] = 5
    resampled = Grid(100, 50).resample(image)
    assert (resampled[:15] == 5).all()
    assert (resampled[:, -15:] == 5).all()
    assert resampled[25, 25] == pytest.approx(7, abs=1e-4)


def test_pixels_of_any_type_give_the_same_grid() -> None:
    values = np.random.default_rng(0).integers(0, 200, (64, 64))
    grids = [Grid().resample(Slice(values.astype(name), 1.0, 1.0)) for name in ("uint8", "uint16", "int16", "float32")]
    assert all(np.array_equal(grids[0], other) for other in grids[1:])
    assert grids[0].dtype == np.float32
    assert grids[0].flags.c_contiguous


@settings(max_examples=20, deadline=None)
@given(row_mm=st.floats(0.4, 2.0), column_mm=st.floats(0.4, 2.0))
def test_projecting_a_resampled_smooth_image_gives_it_back(row_mm: float, column_mm: float) -> None:
    rows, columns = int(160 / row_mm), int(140 / column_mm)
    smooth = np.cos(mm(rows, row_mm)[:, None] / 25) * np.cos(mm(columns, column_mm) / 20) + 2
    image = Slice(smooth.astype(np.float32), row_mm, column_mm)
    grid = Grid(96, 96)
    back = grid.project(grid.resample(image), image)
    inside = (np.abs(mm(rows, row_mm)) <= 44)[:, None] & (np.abs(mm(columns, column_mm)) <= 44)
    outside = (np.abs(mm(rows, row_mm)) > 48.01)[:, None] | (np.abs(mm(columns, column_mm)) > 48.01)
    assert back.shape == image.pixels.shape
    assert np.abs(back - smooth)[inside].max() < 0.02
    assert not back[outside].any()


def test_a_projected_heat_map_stays_within_its_range_up_to_the_edge() -> None:
    image = Slice(np.zeros((100, 120), np.uint8), 2.0, 1.0)
    heat = np.random.default_rng(0).uniform(size=(32, 32)) > 0.5
    projected = Grid(100, 32).project(heat, image, center=(10.0, 100.0))
    assert projected.min() == 0
    assert 0.9 < projected.max() <= 1
    assert (Grid(100, 32).project(np.ones((32, 32)), image)[25:75, 10:110] == 1).all()


def test_a_projected_peak_lands_where_it_came_from() -> None:
    image = Slice(np.zeros((200, 150), np.uint16), 0.8, 1.1)
    image.pixels[120:124, 60:64] = 1000
    grid = Grid(80, 64)
    back = grid.project(grid.resample(image, (110.0, 70.0)), image, (110.0, 70.0))
    row, column = np.unravel_index(back.argmax(), back.shape)
    assert abs(row - 121.5) <= 1
    assert abs(column - 61.5) <= 1


@pytest.mark.parametrize("spacing", [0.02, 0.004, 1.0])
def test_the_largest_image_takes_little_more_than_itself(spacing: float) -> None:
    image = Slice(np.ones((8192, 8192), np.uint8), spacing, spacing)
    tracemalloc.start()
    assert Grid(160, 96).resample(image).max() == pytest.approx(1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 64 << 20


def test_extreme_sizes_are_refused_before_they_take_memory() -> None:
    speck = Slice(np.ones((8192, 8192), np.uint8), 1e-6, 1e-6)
    with pytest.raises(ImageError, match="8192 pixels of 1e-06 mm"):
        Grid(160, 96).resample(speck)
    coarse = Slice(np.ones((64, 64), np.uint8), 50.0, 50.0)
    with pytest.raises(ImageError, match="64 pixels of 50 mm"):
        Grid(1e-9, 96).project(np.zeros((96, 96)), coarse)


@pytest.mark.parametrize("center", [(-1.0, 5.0), (5.0, 40.0), (float("nan"), 5.0)])
def test_a_center_outside_the_image_is_refused(center: tuple[float, float]) -> None:
    with pytest.raises(ImageError) as error:
        Grid().resample(Slice(np.ones((30, 40), np.uint8), 1.0, 1.0), center)
    assert error.value.field == "center"


@pytest.mark.parametrize(
    ("field", "value"),
    [("fov_mm", 0.0), ("fov_mm", -1.0), ("fov_mm", 1000.1), ("fov_mm", float("nan")), ("size", 31), ("size", 1025)],
)
def test_a_grid_out_of_range_is_refused(field: str, value: float) -> None:
    with pytest.raises(ImageError) as error:
        Grid(**{field: value})  # type: ignore[arg-type]
    assert error.value.field == field


@pytest.mark.parametrize(
    ("values", "field"), [(np.zeros((96, 95)), "values.shape"), (np.full((96, 96), np.nan), "values")]
)
def test_values_that_are_no_grid_are_refused(values: NDArray[np.float64], field: str) -> None:
    with pytest.raises(ImageError) as error:
        Grid(160, 96).project(values, Slice(np.ones((30, 40), np.uint8), 1.0, 1.0))
    assert error.value.field == field
