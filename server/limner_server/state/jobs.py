"""What is known of each job, and which server runs it: rows in the database. Running them is `limner_server.jobs`."""

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Engine, delete, false, func, insert, literal, select, true, update
from sqlalchemy.orm import Session

from limner_server.errors import NotFoundError
from limner_server.state.database import ClaimRow, JobRow, ServerRow, now, writing


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
    owner: str | None = None
    """The principal that asked for it; None where nobody is asked."""


_FIELDS = tuple(Job.__dataclass_fields__)
_CLAIMS = "claims"
_UNFINISHED = [state for state in JobState if not state.ended]


class JobStore:
    """All jobs of one database; safe to use from several threads and processes.

    A job that has not ended is run by the server that holds its claim, a row that each job can have only one of. A
    claim ends with its job or with its server; what has no claim is there for any server to take.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def submit(self, job: Job, *, again: bool = True, check: Callable[[Session], None] = lambda _: None) -> Job:
        """Queue a job under its id, and return it; where there is one of that id, that.

        With `again`, one that has failed or been cancelled does not count. `check` looks at the database in the same
        turn, so that no other submission comes in between; what it raises queues nothing.
        """
        with writing(self._engine, _CLAIMS) as session:
            known = session.get(JobRow, job.id)
            if known is not None and not (again and known.state in (JobState.FAILED, JobState.CANCELLED)):
                return _job(known)
            check(session)
            session.merge(JobRow(**{name: getattr(job, name) for name in _FIELDS}))
        return job

    def model_owners(self, model: str, session: Session | None = None) -> list[str | None]:
        """Whose a model is: one entry, who first asked for a training of it; none where nobody ever did."""
        first = (
            select(JobRow.owner)
            .where(JobRow.kind == JobKind.TRAINING, JobRow.request["model"].as_string() == model)
            .order_by(JobRow.created, JobRow.id)
            .limit(1)
        )
        if session is not None:
            return list(session.scalars(first))
        with Session(self._engine) as session:
            return list(session.scalars(first))

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

    def count(self) -> dict[tuple[JobKind, JobState], int]:
        """How many jobs of each kind are in each state, where there are any."""
        query = select(JobRow.kind, JobRow.state, func.count()).group_by(JobRow.kind, JobRow.state)
        with Session(self._engine) as session:
            return {(JobKind(kind), JobState(state)): number for kind, state, number in session.execute(query)}

    def unfinished(self, cohort: str) -> list[Job]:
        """All jobs of a cohort that have not ended, oldest first."""
        query = select(JobRow).where(JobRow.cohort == cohort, JobRow.state.in_(_UNFINISHED)).order_by(JobRow.created)
        with Session(self._engine) as session:
            return [_job(row) for row in session.scalars(query)]

    def claim(self, server: str, machine: str, limit: int) -> Job | None:
        """Take the oldest job that nobody runs, and return it as running; None if there is none.

        Parameters
        ----------
        server
            Who takes it.
        machine
            Where that is: None is returned too where all servers of the machine together run `limit` jobs.
        limit
            The most jobs of one machine.
        """
        running = (
            select(func.count()).select_from(ClaimRow).join(ServerRow).where(ServerRow.machine == machine)
        ).scalar_subquery()
        free = (
            select(JobRow.id, literal(server), false())
            .where(JobRow.state.in_(_UNFINISHED), ~_claimed(), running < limit)
            .order_by(JobRow.created, JobRow.id)
            .limit(1)
        )
        with Session(self._engine) as session:
            # Mostly there is none, and who only looks need not wait for another process's writing.
            if session.execute(free).first() is None:
                return None
        with writing(self._engine, _CLAIMS) as session:
            take = insert(ClaimRow).from_select(["job", "server", "cancelled"], free).returning(ClaimRow.job)
            job_id = session.scalar(take)
            if job_id is None:
                return None
            row = session.get_one(JobRow, job_id)
            row.resumed += row.state == JobState.RUNNING  # of a server that is gone
            row.state = JobState.RUNNING
            return _job(row)

    def claimed(self, server: str) -> dict[str, bool]:
        """Ids of the jobs that a server runs, and whether each is to be cancelled."""
        query = select(ClaimRow.job, ClaimRow.cancelled).where(ClaimRow.server == server)
        with Session(self._engine) as session:
            return {row.job: row.cancelled for row in session.execute(query)}

    def cancel(self, job_id: str, server: str) -> None:
        """Tell the server that runs a job to end it; where none does, `server` takes the claim for that."""
        free = select(JobRow.id, literal(server), true()).where(
            JobRow.id == job_id, JobRow.state.in_(_UNFINISHED), ~_claimed()
        )
        with writing(self._engine, _CLAIMS) as session:
            session.execute(update(ClaimRow).where(ClaimRow.job == job_id).values(cancelled=True))
            session.execute(insert(ClaimRow).from_select(["job", "server", "cancelled"], free))

    def release(self, job_id: str, server: str) -> None:
        """Give up a server's claim on a job that has not ended, for any server to take."""
        with Session(self._engine) as session:
            session.execute(delete(ClaimRow).where(ClaimRow.job == job_id, ClaimRow.server == server))
            session.commit()

    def note_progress(self, job_id: str, server: str, progress: dict[str, Any]) -> None:
        """Keep how far a job is, if the server still holds its claim."""
        self._update(job_id, server, progress=progress)

    def note_restart(self, job_id: str, server: str) -> None:
        """Count a restart of a job's process, if the server still holds its claim."""
        self._update(job_id, server, resumed=JobRow.resumed + 1)

    def finish(self, job_id: str, server: str, state: JobState, **outcome: Any) -> bool:
        """End a job and the server's claim on it; False, and nothing is done, if the server does not hold that.

        `outcome` are fields of `Job`: result, error, progress.
        """
        with Session(self._engine) as session:
            held = delete(ClaimRow).where(ClaimRow.job == job_id, ClaimRow.server == server).returning(ClaimRow.job)
            if session.scalar(held) is None:
                return False
            session.execute(update(JobRow).where(JobRow.id == job_id).values(state=state, ended=now(), **outcome))
            session.commit()
        return True

    def _update(self, job_id: str, server: str, **values: Any) -> None:
        with Session(self._engine) as session:
            session.execute(update(JobRow).where(JobRow.id == job_id, _claimed(server)).values(**values))
            session.commit()


def _claimed(server: str | None = None) -> ColumnElement[bool]:
    """Condition on a job: somebody, or this server, runs it."""
    claim = select(ClaimRow.job).where(ClaimRow.job == JobRow.id)
    if server is not None:
        claim = claim.where(ClaimRow.server == server)
    return claim.exists()


def _job(row: JobRow) -> Job:
    values = {name: getattr(row, name) for name in _FIELDS}
    return Job(**{**values, "kind": JobKind(row.kind), "state": JobState(row.state)})
