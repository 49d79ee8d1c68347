"""The map of pseudonyms: private, complete before it is needed, and whole after a crash."""

import csv
import stat
from pathlib import Path

import pytest

from limner.imaging import ImageError, Pseudonymiser, PseudonymMap

KEY = bytes(range(32))


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_it_gives_the_pseudonyms_of_the_key_and_says_whose_they_are(tmp_path: Path) -> None:
    path = tmp_path / "new" / "map.csv"
    names = PseudonymMap(KEY, path)
    patient = 'Müller, "Anna"\n^x'
    given = [names.subject(patient), names.uid("1.2"), str(names.days(patient)), names.uid("1.2")]
    assert given[:2] == [Pseudonymiser(KEY).subject(patient), Pseudonymiser(KEY).uid("1.2")]
    assert not path.exists()
    names.save()
    names.save()
    assert rows(path) == [
        {"kind": "patient", "pseudonym": given[0], "original": patient},
        {"kind": "uid", "pseudonym": given[1], "original": "1.2"},
        {"kind": "days", "pseudonym": given[0], "original": given[2]},
    ]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_it_grows_and_holds_nothing_twice(tmp_path: Path) -> None:
    for uids in (("1.2", "1.3"), ("1.3", "1.4")):
        names = PseudonymMap(KEY, tmp_path / "map.csv")
        for uid in uids:
            names.uid(uid)
        names.save()
    assert [row["original"] for row in rows(tmp_path / "map.csv")] == ["1.2", "1.3", "1.4"]


@pytest.mark.parametrize("cut", [1, 5, 40])
def test_a_row_that_was_cut_off_is_written_again(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "map.csv"
    names = PseudonymMap(KEY, path)
    names.uid("1.2")
    names.uid("1.3")
    names.save()
    path.write_bytes(path.read_bytes()[:-cut])
    again = PseudonymMap(KEY, path)
    again.uid("1.2")
    again.uid("1.3")
    again.save()
    assert [row["original"] for row in rows(path)] == ["1.2", "1.3"]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


@pytest.mark.parametrize("text", ["", "subject,label\n", "kind,pseudonym,original\na,b\n", "\xff\n"])
def test_another_file_is_refused_and_kept(tmp_path: Path, text: str) -> None:
    path = tmp_path / "map.csv"
    path.write_text(text, encoding="latin-1")
    with pytest.raises(ImageError, match="a CSV file with the columns kind, pseudonym, original"):
        PseudonymMap(KEY, path)
    assert path.read_text(encoding="latin-1") == text
