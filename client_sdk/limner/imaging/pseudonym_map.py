"""The way back from pseudonyms: a private CSV file of every pseudonym that was given, and of what it stands for.

It holds what de-identification takes away, so it stays with the key, where the images came from.
"""

import csv
import os
from io import StringIO
from pathlib import Path

from limner.imaging.deidentify import Pseudonymiser
from limner.imaging.errors import ImageError
from limner.imaging.files import replace_file

COLUMNS = ("kind", "pseudonym", "original")


class PseudonymMap(Pseudonymiser):
    """Gives pseudonyms under one key, and notes them in a file.

    Parameters
    ----------
    key
        As of `Pseudonymiser`.
    path
        The file; made at the first `save`, readable by its owner only. What is there already is kept.

    Attributes
    ----------
    path
        The file.

    Raises
    ------
    ImageError
        When the key is too short, or the file is none of these.
    """

    def __init__(self, key: bytes, path: Path) -> None:
        super().__init__(key)
        self.path = path
        self._known = _read(path)
        self._new: list[tuple[str, str, str]] = []

    def subject(self, patient_id: str) -> str:
        """As `Pseudonymiser.subject`, and noted."""
        return self._note("patient", super().subject(patient_id), patient_id)

    def uid(self, uid: str) -> str:
        """As `Pseudonymiser.uid`, and noted."""
        return self._note("uid", super().uid(uid), uid)

    def days(self, patient_id: str) -> int:
        """As `Pseudonymiser.days`, and noted under the patient's pseudonym."""
        days = super().days(patient_id)
        self._note("days", super().subject(patient_id), str(days))
        return days

    def save(self) -> None:
        """Have on the disk what is new: before the files that bear it."""
        if not self._new:
            return
        text = StringIO()
        csv.writer(text, lineterminator="\n").writerows(self._new)
        if not self.path.exists():
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replace_file(self.path, private=True, overwrite=False) as temporary:
                temporary.write_text(",".join(COLUMNS) + "\n", encoding="utf-8")
        with self.path.open("a", encoding="utf-8", newline="") as file:
            file.write(text.getvalue())
            file.flush()
            os.fsync(file.fileno())
        self._new.clear()

    def _note(self, kind: str, pseudonym: str, original: str) -> str:
        if (kind, pseudonym) not in self._known:
            self._known.add((kind, pseudonym))
            self._new.append((kind, pseudonym, original))
        return pseudonym


def _read(path: Path) -> set[tuple[str, str]]:
    """Return kind and pseudonym of every row; a row that was cut off by the end of its process is dropped."""
    if not path.exists():
        return set()
    try:
        text = path.read_bytes().decode()
        whole = text[: text.rfind("\n") + 1]
        header, *rows = csv.reader(StringIO(whole, newline=""))
        known = {(kind, pseudonym) for kind, pseudonym, _ in rows}
    except (ValueError, csv.Error):
        header, known = [], set()
    if tuple(header) != COLUMNS:
        raise ImageError("map", f"unreadable in {path}", f"a CSV file with the columns {', '.join(COLUMNS)}")
    if whole != text:
        with replace_file(path, private=True) as temporary:
            temporary.write_text(whole, encoding="utf-8", newline="")
    return known
