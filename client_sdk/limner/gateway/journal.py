"""What the gateway has received and what became of it: one SQLite file, and the instances and results beside it.

An instance is acknowledged only after `receive` has returned: its file and its row are then on the disk. A study goes
from `open` to `scored` to `done`, or to `dead`; each step is one transaction, so that a gateway that is killed anywhere
goes on from the step before. Holds whole DICOM files, so its folder is the owner's only.
"""

import re
import shutil
import sqlite3
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from limner.imaging.files import flush, replace_file

FILE = "journal.sqlite"

_UID = re.compile(r"[0-9.]{1,64}")
_SCHEMA = """
CREATE TABLE IF NOT EXISTS studies (
  uid TEXT PRIMARY KEY, state TEXT NOT NULL, revision INTEGER NOT NULL, received REAL NOT NULL,
  waits INTEGER NOT NULL, failures INTEGER NOT NULL, due REAL NOT NULL, reason TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS instances (
  uid TEXT PRIMARY KEY, study TEXT NOT NULL REFERENCES studies (uid), peer TEXT NOT NULL, received REAL NOT NULL,
  reason TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS instances_of_study ON instances (study);
CREATE TABLE IF NOT EXISTS results (
  uid TEXT PRIMARY KEY, study TEXT NOT NULL REFERENCES studies (uid), sent REAL);
CREATE INDEX IF NOT EXISTS results_of_study ON results (study);
"""


class State(StrEnum):
    """Where a study stands."""

    OPEN = "open"
    """Instances may still come, or its turn has not come yet."""
    SCORED = "scored"
    """Its results are kept, and not all of them are sent."""
    DONE = "done"
    DEAD = "dead"
    """Given up, with a reason; `Journal.retry` takes it up again."""


@dataclass(frozen=True)
class Study:
    """A study and where it stands.

    Attributes
    ----------
    uid
        StudyInstanceUID, an identifying attribute.
    revision
        Number of its instances that have been received so far: it grows where another comes.
    received
        When the last instance came, in seconds since 1970.
    waits, failures, due
        How often the present step was put off, how often of these since something was wrong with the study itself, and
        when it is tried next.
    reason
        Why it failed or died; of a study that is done, what was left out.
    """

    uid: str
    state: State
    revision: int
    received: float
    waits: int
    failures: int
    due: float
    reason: str


@dataclass(frozen=True)
class DeadInstance:
    """An instance that could not be scored, and why."""

    uid: str
    study: str
    peer: str
    reason: str


class Journal:
    """The journal of one gateway; safe to use from several threads, and to look at from another process.

    Parameters
    ----------
    folder
        Made where it is missing, readable by its owner only.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        for place in (folder, folder / "instances", folder / "results"):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._lock = threading.Lock()
        self._connection = sqlite3.connect(folder / FILE, timeout=10, check_same_thread=False, isolation_level=None)
        self._connection.row_factory = sqlite3.Row
        # FULL: a commit is on the disk when it returns (sqlite.org/pragma.html#pragma_synchronous).
        for pragma in ("journal_mode = WAL", "synchronous = FULL", "foreign_keys = ON"):
            self._connection.execute(f"PRAGMA {pragma}")
        self._connection.executescript(_SCHEMA)

    def close(self) -> None:
        """Close the file; everything is on the disk already."""
        self._connection.close()

    # Receiving

    def receive(self, uid: str, study: str, peer: str, content: bytes) -> bool:
        """Keep an instance for good; return False where it is here already, whatever its content is now.

        Parameters
        ----------
        uid, study
            SOPInstanceUID and StudyInstanceUID.
        peer
            AE title of the sender.
        content
            The whole file.

        Raises
        ------
        ValueError
            When a UID is none.
        OSError
            When it cannot be written; nothing is left behind.
        """
        if self._known(uid):
            return False
        path = self.instance_file(study, uid)
        if not path.parent.exists():
            path.parent.mkdir(mode=0o700, exist_ok=True)
            flush(path.parent.parent)
        with replace_file(path, private=True) as temporary:
            temporary.write_bytes(content)
            flush(temporary)
        flush(path.parent)
        now = time.time()
        with self._transaction() as connection:
            connection.execute(
                "INSERT OR IGNORE INTO studies VALUES (?, ?, 0, ?, 0, 0, 0, '')", (study, State.OPEN, now)
            )
            added = connection.execute(
                "INSERT OR IGNORE INTO instances VALUES (?, ?, ?, ?, '')", (uid, study, peer, now)
            ).rowcount
            if added:  # two associations may bring the same instance at once
                connection.execute(
                    "UPDATE studies SET state = ?, revision = revision + 1, received = ?, waits = 0, failures = 0,"
                    " due = 0, reason = '' WHERE uid = ?",
                    (State.OPEN, now, study),
                )
        return bool(added)

    def _known(self, uid: str) -> bool:
        with self._lock:
            return self._connection.execute("SELECT 1 FROM instances WHERE uid = ?", (uid,)).fetchone() is not None

    def instance_file(self, study: str, uid: str) -> Path:
        """Where an instance is kept. ValueError where a UID is none."""
        return self.study_folder(study) / f"{_checked(uid)}.dcm"

    def study_folder(self, study: str) -> Path:
        """Folder of a study's instances. ValueError where the UID is none."""
        return self._folder / "instances" / _checked(study)

    def result_file(self, uid: str) -> Path:
        """Where a result is kept until it is sent."""
        return self._folder / "results" / f"{_checked(uid)}.dcm"

    # Working

    def next_due(self, quiet_s: float) -> Study | None:
        """Return the study that has waited longest: scored and unsent, or open without an instance for `quiet_s`."""
        now = time.time()
        rows = self._select(
            "SELECT * FROM studies WHERE due <= ? AND (state = ? OR (state = ? AND received <= ?))"
            " ORDER BY received LIMIT 1",
            (now, State.SCORED, State.OPEN, now - quiet_s),
        )
        return _study(rows[0]) if rows else None

    def keep_results(self, study: Study, results: Iterable[str], dead: Mapping[str, str], left_out: str) -> bool:
        """Note what came of scoring; return False, and note nothing, where another instance came meanwhile.

        Parameters
        ----------
        study
            As `next_due` returned it.
        results
            SOPInstanceUIDs of the results, whose files are on the disk; one that is known already is not sent again.
        dead
            SOPInstanceUIDs that could not be scored, and why.
        left_out
            Which series were not asked about, and why.
        """
        with self._transaction() as connection:
            changed = connection.execute(
                "UPDATE studies SET state = ?, waits = 0, failures = 0, due = 0, reason = ?"
                " WHERE uid = ? AND revision = ?",
                (State.SCORED, left_out, study.uid, study.revision),
            )
            if changed.rowcount == 0:
                return False
            added = [(uid, study.uid) for uid in results]
            connection.executemany("INSERT OR IGNORE INTO results VALUES (?, ?, NULL)", added)
            connection.execute("UPDATE instances SET reason = '' WHERE study = ?", (study.uid,))
            reasons = [(reason, uid) for uid, reason in dead.items()]
            connection.executemany("UPDATE instances SET reason = ? WHERE uid = ?", reasons)
        return True

    def unsent(self, study: Study) -> list[str]:
        """Return the SOPInstanceUIDs of the results that are not sent yet."""
        rows = self._select("SELECT uid FROM results WHERE study = ? AND sent IS NULL ORDER BY rowid", (study.uid,))
        return [row["uid"] for row in rows]

    def mark_sent(self, uid: str) -> None:
        """Note that a result has arrived, and remove its file."""
        with self._transaction() as connection:
            connection.execute("UPDATE results SET sent = ? WHERE uid = ?", (time.time(), uid))
        self.result_file(uid).unlink(missing_ok=True)

    def finish(self, study: Study) -> None:
        """Note that a study is done, unless another instance came meanwhile."""
        with self._transaction() as connection:
            connection.execute(
                "UPDATE studies SET state = ? WHERE uid = ? AND revision = ? AND state = ?",
                (State.DONE, study.uid, study.revision, State.SCORED),
            )

    def postpone(self, study: Study, reason: str, delay_s: float, *, failed: bool) -> None:
        """Have the present step tried again after a while; `failed`: since something is wrong with the study itself."""
        self._put_off(study, study.state, reason, time.time() + delay_s, failed)

    def bury(self, study: Study, reason: str) -> None:
        """Give a study up."""
        self._put_off(study, State.DEAD, reason, 0, True)

    def _put_off(self, study: Study, state: State, reason: str, due: float, failed: bool) -> None:
        with self._transaction() as connection:
            connection.execute(
                "UPDATE studies SET state = ?, reason = ?, due = ?, waits = waits + 1, failures = failures + ?"
                " WHERE uid = ? AND revision = ?",
                (state, reason, due, failed, study.uid, study.revision),
            )

    # Looking

    def retry(self, study: str = "") -> int:
        """Score a dead study, or one with dead instances, again, all of them where none is named; return their number.

        Results that have been sent are not sent twice.
        """
        with self._transaction() as connection:
            found = connection.execute(
                "UPDATE studies SET state = ?, waits = 0, failures = 0, due = 0, reason = ''"
                " WHERE (uid = ? OR ? = '') AND (state = ? OR"
                " EXISTS (SELECT 1 FROM instances WHERE study = studies.uid AND reason <> ''))",
                (State.OPEN, study, study, State.DEAD),
            )
        return found.rowcount

    def forget_files(self, older_than_s: float) -> int:
        """Remove the instances of studies that were done so long ago; return the number of studies.

        Their UIDs stay known, so that an instance that is sent again is not scored again.
        """
        before = time.time() - older_than_s
        rows = self._select("SELECT uid FROM studies WHERE state = ? AND received < ?", (State.DONE, before))
        folders = [folder for row in rows if (folder := self.study_folder(row["uid"])).exists()]
        for folder in folders:
            shutil.rmtree(folder)
        return len(folders)

    def studies(self) -> list[Study]:
        """Return every study, the last received first."""
        return [_study(row) for row in self._select("SELECT * FROM studies ORDER BY received DESC", ())]

    def study(self, uid: str) -> Study | None:
        """Return a study, None where there is none of that UID."""
        rows = self._select("SELECT * FROM studies WHERE uid = ?", (uid,))
        return _study(rows[0]) if rows else None

    def dead_instances(self) -> list[DeadInstance]:
        """Return every instance that could not be scored."""
        rows = self._select("SELECT uid, study, peer, reason FROM instances WHERE reason <> '' ORDER BY received", ())
        return [DeadInstance(**row) for row in rows]

    def _select(self, query: str, values: tuple[object, ...]) -> list[sqlite3.Row]:
        with self._lock:
            return self._connection.execute(query, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._lock:
            self._connection.execute("BEGIN IMMEDIATE")
            try:
                yield self._connection
            except BaseException:
                self._connection.execute("ROLLBACK")
                raise
            self._connection.execute("COMMIT")


def _checked(uid: str) -> str:
    if not _UID.fullmatch(uid):
        raise ValueError(f"{uid!r} is no UID; expected digits and dots, at most 64 (PS3.5 9.1)")
    return uid


def _study(row: sqlite3.Row) -> Study:
    return Study(**{**row, "state": State(row["state"])})
