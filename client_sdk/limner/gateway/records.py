"""What the journal holds: its tables, and how their rows are called in Python."""

import json
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

VERSION = 1
SCHEMA = """
CREATE TABLE IF NOT EXISTS studies (
  number INTEGER PRIMARY KEY, uid TEXT NOT NULL UNIQUE, state TEXT NOT NULL, given_up INTEGER NOT NULL,
  revision INTEGER NOT NULL, received REAL NOT NULL, waits INTEGER NOT NULL, failures INTEGER NOT NULL,
  due REAL NOT NULL, reason TEXT NOT NULL, left_out TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS studies_of_state ON studies (state, received);
CREATE TABLE IF NOT EXISTS instances (
  uid TEXT PRIMARY KEY, study TEXT NOT NULL REFERENCES studies (uid), peer TEXT NOT NULL, received REAL NOT NULL,
  kept INTEGER NOT NULL, committed INTEGER NOT NULL, scored INTEGER NOT NULL, reason TEXT NOT NULL);
CREATE INDEX IF NOT EXISTS instances_of_study ON instances (study);
CREATE INDEX IF NOT EXISTS instances_that_are_dead ON instances (received) WHERE reason <> '';
CREATE TABLE IF NOT EXISTS results (
  uid TEXT PRIMARY KEY, study TEXT NOT NULL REFERENCES studies (uid), sent REAL);
CREATE INDEX IF NOT EXISTS results_of_study ON results (study);
CREATE TABLE IF NOT EXISTS commitments (
  uid TEXT PRIMARY KEY, peer TEXT NOT NULL, held TEXT NOT NULL, failed TEXT NOT NULL, received REAL NOT NULL,
  waits INTEGER NOT NULL, due REAL NOT NULL, reason TEXT NOT NULL)
"""


DEAD = "dead"
"""What a study is called that was given up, whatever its state."""


class State(StrEnum):
    """Which step a study has behind it."""

    OPEN = "open"
    """None: instances may still come, or its turn has not come yet."""
    SCORED = "scored"
    """Its results are kept, and not all of them are sent."""
    DONE = "done"


@dataclass(frozen=True)
class Study:
    """A study and where it stands.

    Attributes
    ----------
    number
        What it is called in logs, where its UID would tell too much.
    uid
        StudyInstanceUID, an identifying attribute.
    given_up
        It failed too often, for the reason given; `Journal.retry` takes it up again.
    revision
        Grows where another of its instances comes, or a dead one with another content.
    received
        When the last instance came, in seconds since 1970.
    waits, failures, due
        How often the present step was put off, how often of these since something was wrong with the study itself, and
        when it is tried next.
    reason
        Why it waits or was given up; empty where all is well.
    left_out
        Which of its series were not scored, and why.
    """

    number: int
    uid: str
    state: State
    given_up: bool
    revision: int
    received: float
    waits: int
    failures: int
    due: float
    reason: str
    left_out: str

    @classmethod
    def of(cls, row: sqlite3.Row) -> Self:
        """Return the study of a row."""
        return cls(**{**row, "state": State(row["state"]), "given_up": bool(row["given_up"])})


@dataclass(frozen=True)
class Instance:
    """An instance of a study: who sent it, how often it was scored with results that were kept, why it could not be."""

    uid: str
    study: str
    study_number: int
    peer: str
    scored: int
    reason: str


@dataclass(frozen=True)
class Totals:
    """How many there are.

    Attributes
    ----------
    studies
        By state, and by `dead` where they were given up.
    instances
        That were received.
    sent, unsent
        Results.
    """

    studies: dict[str, int]
    instances: int
    sent: int
    unsent: int


@dataclass(frozen=True)
class Commitment:
    """What is to be reported to a peer that asked for storage commitment (PS3.4 annex J).

    Attributes
    ----------
    uid
        Of the transaction.
    peer
        AE title of who asked.
    held, failed
        Its instances, each as SOPClassUID and SOPInstanceUID, and of those that failed the reason too (PS3.3 C.14.1.1).
    received
        When it was asked for, in seconds since 1970.
    waits, reason
        How often the report was put off, and why it was.
    """

    uid: str
    peer: str
    held: Sequence[tuple[str, str]]
    failed: Sequence[tuple[str, str, int]]
    received: float
    waits: int = 0
    reason: str = ""

    @classmethod
    def of(cls, row: sqlite3.Row) -> Self:
        """Return the commitment of a row."""
        return cls(**{**row, "held": json.loads(row["held"]), "failed": json.loads(row["failed"])})
