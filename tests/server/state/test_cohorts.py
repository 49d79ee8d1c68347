"""The cohort store on a real database and a real folder."""

import errno
import resource
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from limner.imaging.slices import Slice
from limner_server.errors import InvalidInputError, LimnerError, NotFoundError, StorageFullError, WrongStateError
from limner_server.state.cohorts import CohortStore, NewSlice
from limner_server.state.database import open_database

LABELS = ("no", "yes")


@pytest.fixture
def store(tmp_path: Path, database_url: str) -> CohortStore:
    store = CohortStore(open_database(database_url), tmp_path)
    store.create("c", LABELS)
    return store


def new(instance: str, subject: str = "s", label: str = "yes", fill: int = 0, **changes: Any) -> NewSlice:
    image = Slice(np.full((4, 6), fill, np.uint16), 0.5, 0.75, (1, 0, 0, 0, 1, 0), (1, 2, 3))
    return NewSlice(
        **{"series": "", "slice_label": False, **changes}, instance=instance, subject=subject, label=label, image=image
    )


def test_what_is_added_is_read_back(store: CohortStore) -> None:
    assert store.add("c", [new("i2", fill=2), new("i1", "t", "no", fill=1)]) == [True, True]
    snapshot = store.snapshot("c")
    assert snapshot.labels == LABELS
    assert [(item.instance, item.subject, item.label) for item in snapshot.slices] == [
        ("i1", "t", "no"),
        ("i2", "s", "yes"),
    ]
    image = snapshot.slices[1].read()
    np.testing.assert_array_equal(image.pixels, np.full((4, 6), 2, np.uint16))
    assert (image.row_spacing_mm, image.column_spacing_mm) == (0.5, 0.75)
    assert (image.orientation, image.position) == ((1, 0, 0, 0, 1, 0), (1, 2, 3))
    assert snapshot.subjects() == {"s": ("yes", 1), "t": ("no", 1)}


def test_adding_again_changes_nothing(store: CohortStore) -> None:
    store.add("c", [new("i")])
    before = store.snapshot("c")
    assert store.add("c", [new("i")]) == [False]
    assert store.snapshot("c") == before


def test_the_digest_depends_on_pixels_and_not_on_order(tmp_path: Path) -> None:
    digests = []
    for name, slices in {
        "a": [new("i", fill=1), new("j", fill=2)],
        "b": [new("j", fill=2), new("i", fill=1)],
        "c": [new("i", fill=1), new("j", fill=3)],
    }.items():
        store = CohortStore(f"sqlite:///{tmp_path / 'db.sqlite'}", tmp_path)
        store.create(name, LABELS)
        store.add(name, slices)
        digests.append(store.snapshot(name).digest)
    assert digests[0] == digests[1] != digests[2]


@pytest.mark.parametrize(
    ("item", "error", "words"),
    [
        (new("../i"), InvalidInputError, "instance is '../i'"),
        (new("i", "a/b"), InvalidInputError, "subject is 'a/b'"),
        (new("i", label="maybe"), InvalidInputError, "label is 'maybe'; expected one of no, yes"),
        (new("there", fill=9), WrongStateError, "other pixels"),
        (new("i", "known", "no"), InvalidInputError, "label is 'no'; expected 'yes', the label of subject 'known'"),
        (new("i", "known", slice_label=True), InvalidInputError, "slice_label"),
    ],
)
def test_a_bad_slice_is_refused_alone(store: CohortStore, item: NewSlice, error: type[LimnerError], words: str) -> None:
    store.add("c", [new("there", "known", fill=1)])
    refused, accepted = store.add("c", [item, new("good", "other")])
    assert isinstance(refused, error)
    assert words in str(refused)
    assert accepted is True
    assert [stored.instance for stored in store.snapshot("c").slices] == ["good", "there"]


def test_labels_of_slices_may_differ_within_a_subject(store: CohortStore) -> None:
    slices = [new("i", label="no", slice_label=True), new("j", slice_label=True), new("k", slice_label=True)]
    assert store.add("c", slices) == [True] * 3
    assert store.snapshot("c").subjects() == {"s": ("yes", 3)}


@pytest.mark.parametrize("name", ["", ".hidden", "a/b", "a\\b", "..", "x" * 65, "ä", "a\n"])
def test_a_name_that_is_no_file_name_is_refused(store: CohortStore, name: str) -> None:
    with pytest.raises(InvalidInputError, match="cohort"):
        store.create(name, LABELS)


@pytest.mark.parametrize("labels", [(), ("one",), ("a", "a"), ("a", "")])
def test_labels_are_at_least_two_and_differ(store: CohortStore, labels: tuple[str, ...]) -> None:
    with pytest.raises(InvalidInputError, match="labels"):
        store.create("d", labels)


def test_an_existing_cohort_keeps_its_labels(store: CohortStore) -> None:
    store.create("c", LABELS)
    with pytest.raises(InvalidInputError, match=r"labels of the existing cohort 'c'"):
        store.create("c", ("yes", "no"))


def test_deleting_leaves_nothing(store: CohortStore, tmp_path: Path) -> None:
    store.add("c", [new("i")])
    store.delete("c")
    assert store.names() == []
    assert not list((tmp_path / "cohorts").iterdir())
    with pytest.raises(NotFoundError, match="no cohort 'c'"):
        store.snapshot("c")


def test_a_full_disk_keeps_what_was_whole(store: CohortStore, tmp_path: Path) -> None:
    """The limit on file size stands in for a full disk: the kernel refuses the write in the same way."""
    store.add("c", [new("first")])
    large = NewSlice("big", "s", "", "yes", False, Slice(np.zeros((512, 512), np.float32), 1, 1))
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (512 * 1024, hard))
    try:
        with pytest.raises(StorageFullError) as caught:
            store.add("c", [new("second"), large, new("third")])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.EFBIG
    assert [item.instance for item in store.snapshot("c").slices] == ["first", "second"]
    assert sorted(path.name for path in (tmp_path / "cohorts" / "c").iterdir()) == ["first.npy", "second.npy"]


@pytest.mark.parametrize("servers", [1, 2])
def test_the_same_slices_are_imported_at_once_and_added_once(tmp_path: Path, servers: int) -> None:
    """By two threads of one server, and by two servers, which share nothing but database and folder."""
    stores = [CohortStore(f"sqlite:///{tmp_path / 'db.sqlite'}", tmp_path) for _ in range(servers)]
    stores[0].create("c", LABELS)
    slices = [new(f"i{number}", fill=number) for number in range(30)]
    with ThreadPoolExecutor(2) as pool:
        added = [pool.submit(stores[number % servers].add, "c", slices) for number in range(2)]
    outcomes = [outcome for each in added for outcome in each.result()]
    assert sorted(map(bool, outcomes)) == [False] * 30 + [True] * 30
    assert not [outcome for outcome in outcomes if isinstance(outcome, LimnerError)]
    assert len(stores[0].snapshot("c").slices) == 30
