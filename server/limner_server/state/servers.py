"""Which serving processes there are on one database, and which of them have died."""

import contextlib
import fcntl
import logging
import os
import time
import uuid
from pathlib import Path

from sqlalchemy import Engine, delete, select, update
from sqlalchemy.orm import Session

from limner_server.state.database import ServerRow

LEASE_S = 20.0
_BEATS_IN_LEASE = 4

_log = logging.getLogger(__name__)


class Membership:
    """The place of this process among the servers of one database.

    A server of this machine lives for as long as its lock file is held, by itself or by a job of its: the kernel lets
    go the moment they are dead. A lock on another machine says nothing here; a server there lives while the count in
    its row keeps growing. Each server judges that by its own clock, so no two clocks need to agree.

    All methods may be called from any thread, one at a time.
    """

    def __init__(self, engine: Engine, folder: Path, lease_s: float = LEASE_S) -> None:
        self.id = uuid.uuid4().hex
        # Who shares a kernel shares its locks, containers too.
        self.machine = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        self._engine = engine
        self._folder = folder
        self._lease_s = lease_s
        self._lock: int | None = None
        self._beats = 0
        self._last_beat = float("-inf")
        self._seen: dict[str, tuple[int, float]] = {}

    @property
    def lock(self) -> int:
        """Descriptor of the lock file, for jobs to hold too: a server is not dead while a job of its still writes."""
        if self._lock is None:
            raise RuntimeError("this process has not joined")
        return self._lock

    def join(self) -> None:
        """Take the lock, then be listed: a server that is listed and not locked is dead."""
        self._folder.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(self._lock_file(self.id), os.O_CREAT | os.O_RDWR)
        fcntl.flock(self._lock, fcntl.LOCK_EX)
        self._beat()

    def keep(self) -> None:
        """Stay listed, and strike off those that have died; to be called about every second."""
        if time.monotonic() - self._last_beat > self._lease_s / _BEATS_IN_LEASE:
            self._beat()
        with Session(self._engine) as session:
            others = session.scalars(select(ServerRow).where(ServerRow.id != self.id)).all()
        for other in others:
            if self._is_dead(other):
                self._strike_off(other)

    def leave(self) -> None:
        """Give up the place and all that is held with it."""
        with Session(self._engine) as session:
            session.execute(delete(ServerRow).where(ServerRow.id == self.id))
            session.commit()
        self._lock_file(self.id).unlink(missing_ok=True)
        os.close(self.lock)
        self._lock = None

    def _lock_file(self, server: str) -> Path:
        return self._folder / f"{server}.lock"

    def _beat(self) -> None:
        self._beats += 1
        with Session(self._engine) as session:
            mine = update(ServerRow).where(ServerRow.id == self.id).values(beats=self._beats).returning(ServerRow.id)
            # Another machine takes a process that was stopped for longer than its lease for dead; it comes back with
            # nothing, and what it held may be another's by now.
            if session.scalar(mine) is None:
                session.add(ServerRow(id=self.id, machine=self.machine, beats=self._beats))
            session.commit()
        self._last_beat = time.monotonic()

    def _is_dead(self, other: ServerRow) -> bool:
        if other.machine == self.machine:
            return not _is_held(self._lock_file(other.id))
        beats, since = self._seen.get(other.id, (None, 0.0))
        if beats != other.beats:
            self._seen[other.id] = (other.beats, time.monotonic())
            return False
        return time.monotonic() - since > self._lease_s

    def _strike_off(self, dead: ServerRow) -> None:
        with Session(self._engine) as session:
            # Not if it has shown itself since it was looked at.
            row = delete(ServerRow).where(ServerRow.id == dead.id, ServerRow.beats == dead.beats)
            struck_off = session.scalar(row.returning(ServerRow.id))
            session.commit()
        if struck_off is not None:
            self._seen.pop(dead.id, None)
            self._lock_file(dead.id).unlink(missing_ok=True)
            _log.warning("server %s is dead; what it held is free", dead.id)


def _is_held(lock_file: Path) -> bool:
    """Whether some process holds the lock; those who only look do not get in each other's way."""
    with contextlib.suppress(FileNotFoundError), lock_file.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
