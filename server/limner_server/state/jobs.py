"""What is known of each job: rows in the database. Running them is `limner_server.jobs`."""

from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from limner_server.errors import NotFoundError
from limner_server.state.database import JobRow, now


class JobKind(StrEnum):
    """What a job does."""

    TRAINING = "training"
    SIMULATION = "simulation"


class JobState(StrEnum):
    """Life of a job, named as in `limner.v1.JobState`."""

    QUEUED = "QUEUED"
    RUNNING = "RUNNING"
    SUCCEEDED = "SUCCEEDED"
    FAILED = "FAILED"
    CANCELLED = "CANCELLED"

    @property
    def ended(self) -> bool:
        """Whether nothing more will happen."""
        return self not in (JobState.QUEUED, JobState.RUNNING)


@dataclass(frozen=True)
class Job:
    """One job at one moment. `request`, `progress` and `result` are JSON objects whose shape its kind decides."""

    id: str
    kind: JobKind
    cohort: str
    request: dict[str, Any]
    state: JobState = JobState.QUEUED
    progress: dict[str, Any] = field(default_factory=dict)
    result: dict[str, Any] = field(default_factory=dict)
    error: str = ""
    resumed: int = 0
    created: datetime = field(default_factory=now)
    ended: datetime | None = None


_FIELDS = tuple(Job.__dataclass_fields__)


class JobStore:
    """All jobs of one database; safe to use from several threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def save(self, job: Job) -> None:
        """Insert or replace a job."""
        with Session(self._engine) as session:
            session.merge(JobRow(**{name: getattr(job, name) for name in _FIELDS}))
            session.commit()

    def get(self, job_id: str, kind: JobKind) -> Job:
        """Return the job of this id; NotFoundError if there is none of this kind."""
        with Session(self._engine) as session:
            row = session.get(JobRow, job_id)
            if row is None or row.kind != kind:
                raise NotFoundError(kind, job_id)
            return _job(row)

    def of_kind(self, kind: JobKind) -> list[Job]:
        """All jobs of a kind, newest first."""
        with Session(self._engine) as session:
            rows = session.scalars(select(JobRow).where(JobRow.kind == kind).order_by(JobRow.created.desc(), JobRow.id))
            return [_job(row) for row in rows]

    def unfinished(self, cohort: str | None = None) -> list[Job]:
        """All jobs that have not ended, oldest first; of one cohort where it is named."""
        states = [state for state in JobState if not state.ended]
        query = select(JobRow).where(JobRow.state.in_(states)).order_by(JobRow.created)
        if cohort is not None:
            query = query.where(JobRow.cohort == cohort)
        with Session(self._engine) as session:
            return [_job(row) for row in session.scalars(query)]


def _job(row: JobRow) -> Job:
    values = {name: getattr(row, name) for name in _FIELDS}
    return Job(**{**values, "kind": JobKind(row.kind), "state": JobState(row.state)})
