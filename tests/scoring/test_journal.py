"""The journal: whatever a kill leaves of its last line, the whole lines before it are there."""

from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from limner.errors import WrongStateError
from limner.scoring.journal import Journal
from limner.scoring.rows import Row


def row(position: int, name: str = "", code: str = "") -> Row:
    return Row(
        *(position, name or str(position), "s", "", None, "", "" if code else "yes"),
        *([] if code else [0.25, 0.75], [] if code else [-1.5, 2.0], None, None, None),
        *("m", "1", "d" * 64, "bad" if code else "", code, "", "", ""),
    )


def write(path: Path, rows: Iterable[Row]) -> None:
    with Journal(path) as journal:
        journal.append(rows)


def test_rows_come_back_by_position(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write(path, [row(3), row(0, "naïve ß")])
    write(path, [row(1)])
    with Journal(path) as journal:
        assert list(journal.rows()) == [row(0, "naïve ß"), row(1), row(3)]
        assert (len(journal), journal.last) == (3, 3)
        assert [position in journal for position in range(5)] == [True, True, False, True, False]
        assert journal[1] == row(1)


@pytest.mark.parametrize("garbage", [b"", b"\0" * 50, b"{}\n", b"[1]\n", b"no json\n", b"\xff\xfe"])
def test_a_torn_line_is_cut_off_wherever_it_is_torn(tmp_path: Path, garbage: bytes) -> None:
    path = tmp_path / "rows.jsonl"
    write(path, [row(0), row(1)])
    whole = path.read_bytes()
    first = whole.index(b"\n") + 1
    for length in (first, *range(first + 1, len(whole), 40), len(whole) - 1):
        path.write_bytes(whole[:length] + garbage)
        with Journal(path) as journal:
            assert list(journal.rows()) == [row(0)]
            journal.append([row(1)])
        assert path.read_bytes() == whole


@given(st.lists(st.tuples(st.integers(0, 20), st.sampled_from(["", "INTERNAL"]), st.text(max_size=3))))
def test_of_several_lines_of_a_position_the_last_counts(
    tmp_path_factory: pytest.TempPathFactory, lines: list[tuple[int, str, str]]
) -> None:
    path = tmp_path_factory.mktemp("journal") / "rows.jsonl"
    rows = [row(position, name, code) for position, code, name in lines]
    for one in rows:
        write(path, [one])
    last = {one.position: one for one in rows}
    with Journal(path) as journal:
        assert list(journal.rows()) == [last[position] for position in sorted(last)]
    good = {one.position: one for one in rows if not one.code}
    with Journal(path, forget_failures=True) as journal:
        assert list(journal.rows()) == [good[position] for position in sorted(good)]


def test_two_runs_do_not_write_one_journal(tmp_path: Path) -> None:
    with Journal(tmp_path / "rows.jsonl"), pytest.raises(WrongStateError, match=f"another process .* {tmp_path}"):
        Journal(tmp_path / "rows.jsonl")
    write(tmp_path / "rows.jsonl", [row(0)])
