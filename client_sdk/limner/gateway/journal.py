"""What the gateway has received and what became of it: one SQLite file, and the instances and results beside it.

An instance is acknowledged only after `receive` has returned: its file and its row are then on the disk. A study goes
from `open` to `scored` to `done`; each step is one transaction, so that a gateway that is killed anywhere goes on from
the step before. Holds whole DICOM files, so its folder is the owner's only.
"""

import errno
import json
import logging
import os
import re
import shutil
import threading
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TextIO

from limner.gateway.arrivals import Arrival, Arrivals
from limner.gateway.database import Database, JournalError
from limner.gateway.locks import claim, claimant, shared_folder, whole_folder
from limner.gateway.records import DEAD, SCHEMA, VERSION, Commitment, Instance, State, Study, Totals
from limner.imaging.files import flush, replace_file

FILE = "journal.sqlite"
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 60.0

_INSTANCES = (
    "SELECT instances.uid, study, studies.number AS study_number, peer, scored, instances.reason"
    " FROM instances JOIN studies ON study = studies.uid"
)
_UID = re.compile(r"(?=.{1,64}$)[0-9]+(\.[0-9]+)*")

_log = logging.getLogger(__name__)


class Journal:
    """The journal of one gateway; safe to use from several threads and processes.

    Parameters
    ----------
    folder
        Made where it is missing, readable by its owner only.
    min_free_bytes
        Nothing is received that would leave less free on the disk.

    Raises
    ------
    JournalError
        It is no journal, or one of another version.
    """

    def __init__(self, folder: Path, min_free_bytes: int = 0) -> None:
        self._folder = folder
        self._min_free_bytes = min_free_bytes
        for place in (folder, folder / "instances", folder / "results"):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._database = Database(folder / FILE, SCHEMA, VERSION)
        self._claim: TextIO | None = None
        self._arrivals = Arrivals(self._database)
        self._correcting = threading.Lock()

    def close(self) -> None:
        """Close the file, and give it up to another gateway; everything is on the disk already."""
        self._database.close()
        if self._claim:
            self._claim.close()

    # Being the gateway

    def claim(self) -> None:
        """Be the one gateway of this journal until it is closed; remove results that a killed one left half done.

        Raises
        ------
        JournalError
            Another has it.
        """
        self._claim = claim(self._folder / "gateway.lock")
        if self._claim is None:
            raise JournalError(f"{self._folder} is served by another gateway, process {self.gateway_process()}")
        unsent = {row["uid"] for row in self._database.select("SELECT uid FROM results WHERE sent IS NULL")}
        for path in (self._folder / "results").iterdir():
            if path.stem not in unsent:
                path.unlink()

    def gateway_process(self) -> int | None:
        """Return the process of the gateway that serves this journal, None where none does."""
        return claimant(self._folder / "gateway.lock")

    # Receiving

    def receive(self, uid: str, study: str, peer: str, content: bytes) -> bool:
        """Keep an instance for good; return False where it was received before, and changes nothing.

        One that is dead gives way to another content, and its study is scored again; any other one is kept as it came
        first.

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
            When it cannot be written; its number is ENOSPC where the disk is full, or full enough.
        """
        arrival = Arrival(uid, study, peer, time.time())
        if self.locate(uid):
            with self._correcting:
                arrival.corrects = self._is_corrected(arrival, content)
                return arrival.corrects and self._write(arrival, content)
        return self._write(arrival, content)

    def _is_corrected(self, arrival: Arrival, content: bytes) -> bool:
        """Whether an instance that is kept is dead, and comes with another content now."""
        for kept in self._instances("instances.uid = ? AND kept", arrival.uid):
            file = self.instance_file(kept.study, kept.uid)
            try:
                is_other = file.stat().st_size != len(content) or file.read_bytes() != content
            except FileNotFoundError:  # removed meanwhile, as its study is done
                return False
            if is_other and kept.reason and kept.study == arrival.study:
                return True
            if is_other:
                _log.warning(
                    "an instance of study %d came again from %s with another content; the first is kept",
                    *(kept.study_number, arrival.peer),
                )
        return False

    def _write(self, arrival: Arrival, content: bytes) -> bool:
        path = self.instance_file(arrival.study, arrival.uid)
        if shutil.disk_usage(self._folder).free - len(content) < self._min_free_bytes:
            raise OSError(errno.ENOSPC, f"less than {self._min_free_bytes / 2**30:.3g} GiB would be free")
        with shared_folder(path.parent) as descriptor:
            if arrival.corrects:  # a crash leaves what can be found dead again, and so corrected
                self._arrivals.note(replace(arrival))
            with replace_file(path, private=True) as temporary:
                temporary.write_bytes(content)
                flush(temporary)
            os.fsync(descriptor)
            return self._arrivals.note(arrival)

    def holds(self, uid: str) -> bool:
        """Whether an instance was ever received, if only to be removed since."""
        return bool(self._database.select("SELECT 1 FROM instances WHERE uid = ?", uid))

    def locate(self, uid: str) -> Path | None:
        """Return where an instance is kept; None where it was never received, or has been removed."""
        rows = self._database.select("SELECT study FROM instances WHERE uid = ? AND kept", uid)
        return self.instance_file(rows[0]["study"], uid) if rows else None

    def instance_file(self, study: str, uid: str) -> Path:
        """Where an instance is kept. ValueError where a UID is none."""
        return self.study_folder(study) / f"{_checked(uid)}.dcm"

    def study_folder(self, study: str) -> Path:
        """Folder of a study's instances. ValueError where the UID is none."""
        return self._folder / "instances" / _checked(study)

    def commit(self, commitment: Commitment) -> None:
        """Note what is to be reported to a peer, and that what it holds is all that will come.

        One transaction of the same UID that is not reported yet gives way.
        """
        held, failed = json.dumps(commitment.held), json.dumps(commitment.failed)
        with self._database.transaction() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO commitments VALUES (?, ?, ?, ?, ?, 0, 0, '')",
                (commitment.uid, commitment.peer, held, failed, commitment.received),
            )
            connection.executemany(
                "UPDATE instances SET committed = TRUE WHERE uid = ?", [(uid,) for _, uid in commitment.held]
            )

    # Working

    def next_due(self, state: State, quiet_s: float = 0, since: float = 0, count: int = 0) -> Study | None:
        """Return the study of a state that has waited longest for its next step, None where there is none.

        An open one is due when it is complete: no instance of it has come for a while, or all that have come are
        committed, or there are so many of them.

        Parameters
        ----------
        quiet_s, since
            How long that while is, and since when instances could come at all, in seconds since 1970.
        count
            Number of instances that makes a study complete; 0: none does.
        """
        now = time.time()
        rows = self._database.select(
            "SELECT * FROM studies WHERE state = ? AND NOT given_up AND due <= ? AND (state <> ?"
            " OR max(received, ?) <= ? OR (SELECT count(*) FROM instances WHERE study = studies.uid) = ?"
            " OR NOT EXISTS (SELECT 1 FROM instances WHERE study = studies.uid AND NOT committed))"
            " ORDER BY received LIMIT 1",
            *(state, now, State.OPEN, since, now - quiet_s, count),
        )
        return Study.of(rows[0]) if rows else None

    @contextmanager
    def writing_result(self, uid: str) -> Iterator[Path]:
        """Give a file to write a result to; it is on the disk when the block ends."""
        path = self.result_file(uid)
        with replace_file(path, private=True) as temporary:
            yield temporary
            flush(temporary)
        flush(path.parent)

    def keep_results(
        self, study: Study, results: Collection[str], scored: Iterable[str], dead: Mapping[str, str], left_out: str
    ) -> bool:
        """Note what came of scoring; return False, and note nothing, where another instance came meanwhile.

        Parameters
        ----------
        study
            As `next_due` returned it.
        results
            SOPInstanceUIDs of the results, each written by `writing_result`. One that has been sent is not sent again;
            those of an earlier scoring that have not been are dropped.
        scored
            SOPInstanceUIDs that were scored.
        dead
            SOPInstanceUIDs that could not be, and why.
        left_out
            Which series were not asked about, and why.
        """
        with self._database.transaction() as connection:
            changed = connection.execute(
                "UPDATE studies SET state = ?, waits = 0, failures = 0, due = 0, reason = '', left_out = ?"
                " WHERE uid = ? AND revision = ?",
                (State.SCORED, left_out, study.uid, study.revision),
            )
            if changed.rowcount == 0:
                return False
            earlier = connection.execute(
                "DELETE FROM results WHERE study = ? AND sent IS NULL RETURNING uid", (study.uid,)
            ).fetchall()
            added = [(uid, study.uid) for uid in results]
            connection.executemany("INSERT OR IGNORE INTO results VALUES (?, ?, NULL)", added)
            connection.execute("UPDATE instances SET reason = '' WHERE study = ?", (study.uid,))
            connection.executemany("UPDATE instances SET scored = scored + 1 WHERE uid = ?", [(uid,) for uid in scored])
            reasons = [(reason, uid) for uid, reason in dead.items()]
            connection.executemany("UPDATE instances SET reason = ? WHERE uid = ?", reasons)
        for uid in {*results, *(row["uid"] for row in earlier)} - {*self.unsent(study)}:
            self.result_file(uid).unlink(missing_ok=True)
        return True

    def result_file(self, uid: str) -> Path:
        """Where a result is kept until it is sent."""
        return self._folder / "results" / f"{_checked(uid)}.dcm"

    def unsent(self, study: Study) -> list[str]:
        """Return the SOPInstanceUIDs of the results that are not sent yet."""
        return [uid for uid, sent in self.results(study).items() if sent is None]

    def mark_sent(self, uids: Collection[str]) -> None:
        """Note that results have arrived, and remove their files."""
        now = time.time()
        with self._database.transaction() as connection:
            connection.executemany("UPDATE results SET sent = ? WHERE uid = ?", [(now, uid) for uid in uids])
        for uid in uids:
            self.result_file(uid).unlink(missing_ok=True)

    def finish(self, study: Study) -> None:
        """Note that a study is done, unless another instance came meanwhile."""
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE studies SET state = ?, waits = 0, reason = '' WHERE uid = ? AND revision = ? AND state = ?",
                (State.DONE, study.uid, study.revision, State.SCORED),
            )

    def postpone(self, study: Study, reason: str, *, failed: bool) -> float:
        """Have the present step tried again later; return after how many seconds, more with each time.

        Parameters
        ----------
        failed
            Whether something is wrong with the study itself.
        """
        pause_s = _pause_s(study.waits)
        self._put_off(study, reason, time.time() + pause_s, failed=failed, given_up=False)
        return pause_s

    def hasten(self, state: State) -> None:
        """Have what waits in a state for somebody else tried now: they answer again."""
        with self._database.transaction() as connection:
            connection.execute("UPDATE studies SET due = 0 WHERE state = ? AND NOT failures", (state,))

    def give_up(self, study: Study, reason: str) -> None:
        """Try the present step no more."""
        self._put_off(study, reason, 0, failed=True, given_up=True)

    def _put_off(self, study: Study, reason: str, due: float, *, failed: bool, given_up: bool) -> None:
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE studies SET reason = ?, due = ?, waits = waits + 1, failures = failures + ?, given_up = ?"
                " WHERE uid = ? AND revision = ?",
                (reason, due, failed, given_up, study.uid, study.revision),
            )

    def due_commitments(self) -> list[Commitment]:
        """Return the commitments whose report is due."""
        return self._commitments("due <= ?", time.time())

    def postpone_report(self, commitment: Commitment, reason: str) -> float:
        """Have a commitment reported later; return after how many seconds, more with each time."""
        pause_s = _pause_s(commitment.waits)
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE commitments SET reason = ?, due = ?, waits = waits + 1 WHERE uid = ?",
                (reason, time.time() + pause_s, commitment.uid),
            )
        return pause_s

    def drop_commitment(self, commitment: Commitment) -> None:
        """Forget a commitment that has been reported."""
        with self._database.transaction() as connection:
            connection.execute("DELETE FROM commitments WHERE uid = ?", (commitment.uid,))

    def forget_files(self, older_than_s: float) -> int:
        """Remove the instances of studies that have been done for so long; return the number of studies.

        Their UIDs stay known, so that an instance that is sent again is kept again, but not scored again.
        """
        with self._database.transaction() as connection:
            connection.execute(
                "UPDATE instances SET kept = FALSE WHERE kept AND study IN"
                " (SELECT uid FROM studies WHERE state = ? AND received < ?)",
                (State.DONE, time.time() - older_than_s),
            )
        return sum(self._remove_unless_kept(folder) for folder in (self._folder / "instances").iterdir())

    def _remove_unless_kept(self, folder: Path) -> bool:
        with whole_folder(folder) as is_free:  # nobody is receiving into it
            query = "SELECT 1 FROM instances WHERE study = ? AND kept LIMIT 1"
            if not is_free or self._database.select(query, folder.name):
                return False
            shutil.rmtree(folder)
            return True

    # Looking

    def retry(self, study: str = "") -> int:
        """Take up again what was given up, what waits, and what has dead instances; return the number of studies.

        Parameters
        ----------
        study
            UID or number of one; empty: all of them. Those with dead instances are scored again; what has been sent is
            not sent twice.
        """
        with self._database.transaction() as connection:
            found = connection.execute(
                "UPDATE studies SET waits = 0, failures = 0, due = 0, given_up = FALSE, reason = '',"
                " state = CASE WHEN state = ? THEN ? ELSE state END"
                " WHERE (uid = ? OR number = ? OR ? = '') AND (given_up OR waits OR"
                " EXISTS (SELECT 1 FROM instances WHERE study = studies.uid AND reason <> ''))",
                (State.DONE, State.OPEN, study, study, study),
            )
        return found.rowcount

    def dismiss(self, study: str = "") -> int:
        """Count as done what was given up, unsent results and all, and dead instances as seen to; return the number.

        Parameters
        ----------
        study
            UID or number of one; empty: all of them.
        """
        with self._database.transaction() as connection:
            found = connection.execute(
                "SELECT uid, given_up FROM studies WHERE (uid = ? OR number = ? OR ? = '') AND (given_up OR"
                " EXISTS (SELECT 1 FROM instances WHERE study = studies.uid AND reason <> ''))",
                (study, study, study),
            ).fetchall()
            dropped = []
            for uid, given_up in found:
                connection.execute("UPDATE instances SET reason = '' WHERE study = ?", (uid,))
                if given_up:
                    connection.execute(
                        "UPDATE studies SET state = ?, given_up = FALSE, reason = '' WHERE uid = ?", (State.DONE, uid)
                    )
                    query = "DELETE FROM results WHERE study = ? AND sent IS NULL RETURNING uid"
                    dropped += connection.execute(query, (uid,)).fetchall()
        for row in dropped:
            self.result_file(row["uid"]).unlink(missing_ok=True)
        return len(found)

    def study(self, name: str) -> Study | None:
        """Return a study by its UID or number, None where there is none."""
        rows = self._database.select("SELECT * FROM studies WHERE uid = ? OR number = ?", name, name)
        return Study.of(rows[0]) if rows else None

    def unfinished(self) -> list[Study]:
        """Return every study that is not done, the one that has waited longest first."""
        rows = self._database.select("SELECT * FROM studies WHERE state <> ? ORDER BY received", State.DONE)
        return [Study.of(row) for row in rows]

    def totals(self) -> Totals:
        """Count studies by their state, instances and results."""
        studies = dict.fromkeys([*State, DEAD], 0)
        query = "SELECT iif(given_up, ?, state) AS state, count(*) AS number FROM studies GROUP BY 1"
        studies |= {row["state"]: row["number"] for row in self._database.select(query, DEAD)}
        (counts,) = self._database.select(
            "SELECT (SELECT count(*) FROM instances) AS instances,"
            " count(sent) AS sent, count(*) - count(sent) AS unsent FROM results"
        )
        return Totals({str(state): number for state, number in studies.items()}, **counts)

    def instances(self, study: Study) -> list[Instance]:
        """Return every instance of a study that was received, in the order of their arrival."""
        return self._instances("study = ?", study.uid)

    def dead_instances(self) -> list[Instance]:
        """Return every instance that could not be scored."""
        return self._instances("instances.reason <> ''")

    def _instances(self, condition: str, *values: object) -> list[Instance]:
        query = f"{_INSTANCES} WHERE {condition} ORDER BY instances.received"
        return [Instance(**row) for row in self._database.select(query, *values)]

    def results(self, study: Study) -> dict[str, float | None]:
        """Return the SOPInstanceUIDs of a study's results, and when each was sent, in seconds since 1970."""
        rows = self._database.select("SELECT uid, sent FROM results WHERE study = ? ORDER BY rowid", study.uid)
        return {row["uid"]: row["sent"] for row in rows}

    def commitments(self) -> list[Commitment]:
        """Return every commitment that is not reported yet."""
        return self._commitments("TRUE")

    def _commitments(self, condition: str, *values: object) -> list[Commitment]:
        rows = self._database.select(
            f"SELECT uid, peer, held, failed, received, waits, reason FROM commitments WHERE {condition}"  # noqa: S608
            " ORDER BY received",
            *values,
        )
        return [Commitment.of(row) for row in rows]


def _pause_s(waits: int) -> float:
    return min(FIRST_PAUSE_S * 2.0 ** min(waits, 30), LONGEST_PAUSE_S)


def is_uid(text: str) -> bool:
    """Whether a text may be a UID (PS3.5 9.1), and so the name of a file; with leading zeros, as some senders write."""
    return _UID.fullmatch(text) is not None


def _checked(uid: str) -> str:
    if not is_uid(uid):
        raise ValueError(f"{uid!r} is no UID; expected numbers with dots between them, at most 64 characters")
    return uid
