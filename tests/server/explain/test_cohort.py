"""Slices that stay on disk: the same as those in memory, read in blocks, whole or not there."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from limner.imaging.grid import Grid
from limner.imaging.slices import Slice
from limner_server.errors import WrongStateError
from limner_server.explain.cohort import BLOCK, Images, Rows, SliceCohort, SliceFile, spool_cohort
from limner_server.explain.pipeline import CONTROL_SLICES, Recipe
from limner_server.explain.realism import MOST_SLICES
from limner_server.explain.simulation import simulate
from limner_server.state.cohorts import CohortSnapshot, CohortStore, NewSlice
from tests.server.explain.test_simulation import quiet, stripes_card
from tests.server.explain.tiny import SIZE, stripes_artifact, stripes_cohort

GRID = Grid(fov_mm=40.0, size=32)


@pytest.fixture(scope="module")
def snapshot(tmp_path_factory: pytest.TempPathFactory) -> CohortSnapshot:
    root = tmp_path_factory.mktemp("store")
    store = CohortStore(f"sqlite:///{root / 'limner.sqlite'}", root)
    store.create("c", ("no", "yes"))
    rng = np.random.default_rng(0)
    slices = [
        NewSlice(f"i{9 - n}", f"s{n % 3}", "", ("no", "yes")[n % 3 == 1], False, Slice(pixels, 1.0, 1.0))
        for n, pixels in enumerate(rng.integers(0, 4000, (10, 48, 48), np.uint16))
    ]
    assert all(store.add("c", slices))
    return store.snapshot("c")


def test_the_slices_are_those_of_the_cohort_ordered_by_subject(snapshot: CohortSnapshot, tmp_path: Path) -> None:
    told: list[float] = []
    cohort = spool_cohort(snapshot, GRID, tmp_path / "slices", tell=told.append)
    assert len(cohort) == 10
    assert list(zip(cohort.subjects, cohort.instances, strict=True)) == sorted(
        (item.subject, item.instance) for item in snapshot.slices
    )
    stored = {item.instance: item for item in snapshot.slices}
    for row, instance in enumerate(cohort.instances.tolist()):
        np.testing.assert_array_equal(cohort.images[np.array([row])][0], GRID.resample(stored[instance].read()))
        assert cohort.classes[cohort.labels[row]] == stored[instance].label
    assert (cohort.name, cohort.digest) == ("c", snapshot.digest)
    assert told[-1] == 1.0


def test_a_whole_file_is_used_again_and_a_broken_one_is_not(snapshot: CohortSnapshot, tmp_path: Path) -> None:
    path = tmp_path / "slices"
    first = spool_cohort(snapshot, GRID, path).load()
    written = path.stat().st_mtime_ns
    np.testing.assert_array_equal(spool_cohort(snapshot, GRID, path).load(), first)
    assert path.stat().st_mtime_ns == written
    path.write_bytes(path.read_bytes()[:-4])
    np.testing.assert_array_equal(spool_cohort(snapshot, GRID, path).load(), first)
    assert [item.name for item in tmp_path.iterdir()] == ["slices"]


def test_a_file_that_was_cut_short_is_named(snapshot: CohortSnapshot, tmp_path: Path) -> None:
    cohort = spool_cohort(snapshot, GRID, tmp_path / "slices")
    (tmp_path / "slices").write_bytes(b"")
    with pytest.raises(WrongStateError, match="ends before slice 3 of 10"):
        cohort.images[np.array([3])]


def test_a_slice_that_cannot_be_read_leaves_no_file(snapshot: CohortSnapshot, tmp_path: Path) -> None:
    gone = replace(snapshot, slices=(*snapshot.slices[:5], replace(snapshot.slices[5], path=tmp_path / "gone")))
    with pytest.raises(FileNotFoundError):
        spool_cohort(gone, GRID, tmp_path / "slices")
    assert not list(tmp_path.iterdir())


@given(rows=st.lists(st.integers(0, 6), max_size=12), kept=st.lists(st.booleans(), min_size=7, max_size=7))
def test_reading_is_indexing(rows: list[int], kept: list[bool], tmp_path_factory: pytest.TempPathFactory) -> None:
    images = np.random.default_rng(0).normal(size=(7, 3, 3)).astype(np.float32)
    path = tmp_path_factory.getbasetemp() / "indexing"
    path.write_bytes(images.tobytes())
    wanted = np.array(rows, np.int64)
    np.testing.assert_array_equal(SliceFile(path, 7, 3)[wanted], images[wanted])
    names = np.array([str(row) for row in range(7)])
    cohort = SliceCohort(SliceFile(path, 7, 3), np.arange(7), names, names, ("a",), "c", "d")
    chosen = cohort.take(np.array(kept))
    np.testing.assert_array_equal(chosen.load(), images[kept])
    np.testing.assert_array_equal(chosen.take(np.arange(len(chosen))[::-1]).load(), images[kept][::-1])
    assert [names[row] for row in chosen.labels] == chosen.subjects.tolist()


class Watched:
    """Slices that remember how many were ever asked for at once."""

    def __init__(self, images: Images) -> None:
        self.images = images
        self.most = 0

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, rows: Rows, /) -> Images:
        self.most = max(self.most, len(rows))
        return self.images[rows]


def test_a_simulation_never_holds_a_large_cohort(tmp_path: Path) -> None:
    cohort = stripes_cohort(subjects=8, slices=max(MOST_SLICES, BLOCK, CONTROL_SLICES) // 4)
    watched = Watched(cohort.load())
    card = stripes_card(channels=(4,) * 5)
    halves = [stripes_artifact(), stripes_artifact()]
    found = simulate(
        *(stripes_artifact(), card, halves, replace(cohort, images=watched), Recipe(steps=1), tmp_path, quiet),
        sibling=stripes_artifact(),
    )
    assert all(check.ran for check in found.checks)
    assert found.images.shape == (2, SIZE, SIZE)
    assert len(cohort) >= 2 * CONTROL_SLICES
    assert watched.most <= MOST_SLICES
