"""Malformed files, some hundreds of the generator's: each is decoded or refused with its cause, and quickly enough.

`python -m benchmarks.malformed` does the same with thousands, in processes whose memory is watched.
"""

from collections import Counter, defaultdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from limner.imaging import ImageError, Slice, decode, find_series, select
from tests.imaging.malformed import KINDS, attempt, healthy, malformed, study_of
from tests.imaging.malformed_bases import BASES

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

CASES = [malformed(number) for number in range(len(KINDS) * 20)]


def test_a_number_is_always_the_same_case() -> None:
    assert [malformed(case.number).content for case in CASES[:48]] == [case.content for case in CASES[:48]]
    assert len({case.content for case in CASES}) > 0.9 * len(CASES)


@pytest.mark.parametrize("base", BASES)
def test_what_is_broken_was_whole(base: str) -> None:
    assert isinstance(attempt(BASES[base]()), Slice)


def test_each_case_is_decoded_or_refused_with_its_cause() -> None:
    fields: dict[str, Counter[str]] = defaultdict(Counter)
    for case in CASES:
        try:
            found = attempt(case.content)
        except Exception as error:
            raise AssertionError(str(case)) from error
        fields[case.kind][found.field if isinstance(found, ImageError) else "decoded"] += 1
    # The generator does break things, each kind in its way, and leaves others whole.
    assert set(fields) == set(KINDS)
    assert sum(counts["decoded"] for counts in fields.values()) < len(CASES) / 2
    assert all(counts["decoded"] < counts.total() for kind, counts in fields.items() if kind != "wrong UID")
    assert set(fields["deflated"]) == {"TransferSyntaxUID"}
    assert {"Rows", "Columns", "PixelData"} >= set(fields["bomb"]) - {"decoded"}
    assert len({field for counts in fields.values() for field in counts}) > 20


def test_a_folder_of_them_is_surveyed_to_its_end(tmp_path: Path) -> None:
    study = study_of(0)
    for number in range(5):
        (tmp_path / f"healthy-{number}.dcm").write_bytes(healthy(number, study)[1])
    for case in CASES[::3]:
        (tmp_path / f"{case.number}.dcm").write_bytes(case.content)
    found = find_series(tmp_path)
    used = {part.path for series in found.series for part in series.slices}
    assert used | {path for path, _ in found.unreadable} == set(tmp_path.iterdir())
    assert all(reason for _, reason in found.unreadable)
    taken = {
        part.path.name for decision in select(found.series) if decision.accepted for part in decision.series.slices
    }
    assert {f"healthy-{number}.dcm" for number in range(5)} <= taken


@settings(max_examples=200, deadline=None)
@given(number=st.integers(0, 8_999_999))
def test_any_case_is_decoded_or_refused_with_its_cause(number: int) -> None:
    attempt(malformed(number).content)


@settings(max_examples=200, deadline=None)
@given(base=st.sampled_from(list(BASES)), fraction=st.floats(0, 1, exclude_max=True))
def test_what_is_left_of_a_file_is_never_another_image(base: str, fraction: float) -> None:
    whole = BASES[base]()
    found = attempt(whole[: int(fraction * len(whole))])
    if isinstance(found, Slice):  # of several frames, the first was left
        assert np.array_equal(found.pixels, decode(whole).pixels)
