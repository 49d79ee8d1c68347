"""Instances as they arrive: each has its row on the disk before it is acknowledged, many of them by one commit."""

import sqlite3
import threading
from collections import deque
from dataclasses import dataclass

from limner.gateway.database import Database
from limner.gateway.records import State


@dataclass
class Arrival:
    """An instance whose file is on the disk; `new` is None until its row is, too.

    One that `corrects` takes the place of a dead one.
    """

    uid: str
    study: str
    peer: str
    received: float
    corrects: bool = False
    new: bool | None = None


class Arrivals:
    """Notes instances that arrive by several associations at a time; safe to use from several threads."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._waiting: deque[Arrival] = deque()
        self._committing = threading.Lock()

    def note(self, arrival: Arrival) -> bool:
        """Commit an arrival, and with it all that wait meanwhile: the disk is waited for once for all of them."""
        self._waiting.append(arrival)
        with self._committing:
            if arrival.new is None:
                waiting = list(self._waiting)
                try:
                    with self._database.transaction() as connection:
                        new = [_insert(connection, one) for one in waiting]
                except BaseException:
                    self._waiting.remove(arrival)  # the others try it themselves
                    raise
                for one, is_new in zip(waiting, new, strict=True):
                    one.new = is_new
                    self._waiting.popleft()
        assert arrival.new is not None  # noqa: S101 - set by this thread or by another
        return arrival.new


def _insert(connection: sqlite3.Connection, arrival: Arrival) -> bool:
    """Note an instance; return whether it is new, or corrects one."""
    known = connection.execute("SELECT kept FROM instances WHERE uid = ?", (arrival.uid,)).fetchone()
    if known and not arrival.corrects:  # by another association at the same time, or removed since it was scored
        connection.execute("UPDATE instances SET kept = TRUE WHERE uid = ? AND study = ?", (arrival.uid, arrival.study))
        connection.execute("UPDATE studies SET received = ? WHERE uid = ?", (arrival.received, arrival.study))
        return False
    connection.execute(
        "INSERT OR IGNORE INTO studies VALUES (NULL, ?, ?, FALSE, 0, 0, 0, 0, 0, '', '')", (arrival.study, State.OPEN)
    )
    connection.execute(
        "INSERT INTO instances VALUES (?, ?, ?, ?, TRUE, FALSE, 0, '')"
        " ON CONFLICT (uid) DO UPDATE SET kept = TRUE, reason = ''",
        (arrival.uid, arrival.study, arrival.peer, arrival.received),
    )
    connection.execute(
        "UPDATE studies SET state = ?, given_up = FALSE, revision = revision + 1, received = ?, waits = 0,"
        " failures = 0, due = 0, reason = '' WHERE uid = ?",
        (State.OPEN, arrival.received, arrival.study),
    )
    return True
