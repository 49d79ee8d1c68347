"""The tables, and how to open the database that holds them."""

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, DateTime, Engine, ForeignKey, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.types import TypeDecorator


class UtcDateTime(TypeDecorator[datetime]):
    """A time with its zone; SQLite forgets the zone, so UTC is put back on the way out."""

    impl = DateTime(timezone=True)
    cache_ok = True

    def process_result_value(self, value: datetime | None, dialect: object) -> datetime | None:
        """Say that a stored time is in UTC."""
        return value.replace(tzinfo=UTC) if value is not None and value.tzinfo is None else value


def now() -> datetime:
    """Say what time it is, in UTC."""
    return datetime.now(UTC)


class Table(DeclarativeBase):
    """Base of all tables."""

    type_annotation_map = {  # noqa: RUF012 - SQLAlchemy's own way of declaring it
        datetime: UtcDateTime,
        dict[str, Any]: JSON,
        list[str]: JSON,
        list[float]: JSON,
    }


class CohortRow(Table):
    """One cohort."""

    __tablename__ = "cohorts"

    name: Mapped[str] = mapped_column(primary_key=True)
    labels: Mapped[list[str]]
    created: Mapped[datetime] = mapped_column(default=now)


class SliceRow(Table):
    """One slice of a cohort; its pixels lie in the file `<instance>.npy` of the cohort's folder."""

    __tablename__ = "slices"

    cohort: Mapped[str] = mapped_column(ForeignKey("cohorts.name", ondelete="CASCADE"), primary_key=True)
    instance: Mapped[str] = mapped_column(primary_key=True)
    subject: Mapped[str] = mapped_column(index=True)
    series: Mapped[str]
    label: Mapped[str]
    slice_label: Mapped[bool]
    pixels_sha256: Mapped[str]
    row_spacing_mm: Mapped[float]
    column_spacing_mm: Mapped[float]
    orientation: Mapped[list[float] | None]
    position: Mapped[list[float] | None]


class JobRow(Table):
    """One training or simulation."""

    __tablename__ = "jobs"

    id: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(index=True)
    cohort: Mapped[str] = mapped_column(index=True)
    request: Mapped[dict[str, Any]]
    state: Mapped[str] = mapped_column(index=True)
    progress: Mapped[dict[str, Any]] = mapped_column(default=dict)
    result: Mapped[dict[str, Any]] = mapped_column(default=dict)
    error: Mapped[str] = mapped_column(default="")
    resumed: Mapped[int] = mapped_column(default=0)
    created: Mapped[datetime] = mapped_column(default=now)
    ended: Mapped[datetime | None]


class ServerRow(Table):
    """One serving process: it lives, or nobody has noticed yet that it died. What it holds goes with its row."""

    __tablename__ = "servers"

    id: Mapped[str] = mapped_column(primary_key=True)
    machine: Mapped[str] = mapped_column(index=True)
    beats: Mapped[int]


class ClaimRow(Table):
    """The server that runs a job, for as long as it does, and whether the job is to be cancelled."""

    __tablename__ = "claims"

    job: Mapped[str] = mapped_column(ForeignKey("jobs.id", ondelete="CASCADE"), primary_key=True)
    server: Mapped[str] = mapped_column(ForeignKey("servers.id", ondelete="CASCADE"), index=True)
    cancelled: Mapped[bool]


class LoadedRow(Table):
    """A model version that a server holds in an executor."""

    __tablename__ = "loaded"

    server: Mapped[str] = mapped_column(ForeignKey("servers.id", ondelete="CASCADE"), primary_key=True)
    model: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)


class AliasRow(Table):
    """An alias of a model: the version it points at."""

    __tablename__ = "aliases"

    model: Mapped[str] = mapped_column(primary_key=True)
    alias: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[str]


def open_database(url: str) -> Engine:
    """Open the database at a SQLAlchemy URL, creating file and tables where they are missing.

    SQLite is put in WAL mode, so that other processes read while one writes. A file of an older version gets the tables
    that have come since; no table has changed.
    """
    parsed = make_url(url)
    is_sqlite = parsed.get_backend_name() == "sqlite"
    if is_sqlite and parsed.database:
        Path(parsed.database).parent.mkdir(parents=True, exist_ok=True)
    engine = create_engine(parsed, pool_pre_ping=not is_sqlite)
    if is_sqlite:

        @event.listens_for(engine, "connect")
        def _configure(connection: Any, _record: object) -> None:
            for pragma in ("journal_mode=WAL", "synchronous=NORMAL", "foreign_keys=ON", "busy_timeout=10000"):
                connection.execute(f"PRAGMA {pragma}")

    Table.metadata.create_all(engine)
    return engine


@contextlib.contextmanager
def writing(engine: Engine) -> Iterator[Session]:
    """Open a session that is committed at the end, for a look and the leap that follows from it.

    On SQLite it is the only writer from its beginning, so that what it sees stays true until its end.
    """
    with Session(engine) as session:
        if engine.dialect.name == "sqlite":
            session.connection().exec_driver_sql("BEGIN IMMEDIATE")
        yield session
        session.commit()
