"""Who asked for what change, when, and how it ended: rows that are only ever added."""

from dataclasses import dataclass, field
from datetime import datetime

from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from limner_server.state.database import AuditRow, now


@dataclass(frozen=True)
class AuditEntry:
    """One call, and one thing that it names.

    Attributes
    ----------
    peer
        Address that it came from, as gRPC writes it.
    method
        "CohortService/DeleteCohort".
    target
        The cohort, version, alias or job that it names; empty where it names none.
    status
        "OK", or the name of the gRPC status it ended with.
    request_id
        As the caller was told, and as in the log.
    principal
        Who it was by; None where nobody was asked.
    """

    peer: str
    method: str
    target: str
    status: str
    request_id: str
    principal: str | None = None
    time: datetime = field(default_factory=now)


_FIELDS = tuple(AuditEntry.__dataclass_fields__)


class AuditLog:
    """The audit log of one database; safe to use from several threads."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def add(self, *entries: AuditEntry) -> None:
        """Keep the entries of a call for good."""
        with Session(self._engine) as session:
            session.add_all([AuditRow(**vars(entry)) for entry in entries])
            session.commit()

    def entries(self, target: str = "", limit: int = 100, principal: str = "") -> list[AuditEntry]:
        """Return the last entries, newest first; of one cohort, model or job, or of one principal, where named."""
        query = select(AuditRow).order_by(AuditRow.id.desc()).limit(limit)
        if target:
            query = query.where(AuditRow.target == target)
        if principal:
            query = query.where(AuditRow.principal == principal)
        with Session(self._engine) as session:
            return [AuditEntry(**{name: getattr(row, name) for name in _FIELDS}) for row in session.scalars(query)]
