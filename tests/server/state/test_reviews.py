"""What is told of a reading without its rows being read."""

from pathlib import Path

import numpy as np

from limner_server.state.database import open_database
from limner_server.state.reviews import Definition, Done, NewVerdict, ReadingItem, ReviewStore, Tally

DEFINITION = Definition(
    title="t",
    question="q",
    label="b",
    labels=("a", "b"),
    lexicon=(),
    model="m",
    version=1,
    digest="",
    cohort="c",
    cohort_digest="",
    seed=1,
    fov_mm=160,
    size=4,
    secret="",
)
KINDS = (("simulated", "b"), ("real", "a"), ("real", "b"), ("real", "a"))


def test_the_tally_counts_images_by_kind_and_verdicts_by_reader(database_url: str, tmp_path: Path) -> None:
    store = ReviewStore(open_database(database_url), tmp_path)
    items = [ReadingItem(kind, label, "s", "1.2", None, None, (0.5, 0.5), True) for kind, label in KINDS]
    images = np.zeros((len(items), 4, 4), np.uint16)
    other, _ = store.create(DEFINITION, items[:1], images[:1], ["ann"])
    reading, _ = store.create(DEFINITION, items, images, ["ann", "bob"])
    counted = {("simulated", "b"): 1, ("real", "a"): 2, ("real", "b"): 1}
    assert store.tally(reading.id) == Tally(counted, {})
    assert list(store.tally(reading.id).items) == list(counted), "in the order of the images"
    for number, item in enumerate((0, 2, 0)):
        store.add(reading.readers[1], NewVerdict(f"verdict-{number}", item, 50, 3, 3, {}, "", 1))
    last = store.verdicts(reading.id)[-1].received
    assert store.tally(reading.id).readers == {"bob": Done(2, 3, last)}
    assert store.tally(other.id) == Tally({("simulated", "b"): 1}, {})
