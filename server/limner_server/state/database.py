"""The tables, and how to open the database that holds them: SQLite by default, PostgreSQL by its URL."""

import contextlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from alembic.util import CommandError
from sqlalchemy import JSON, Connection, DateTime, Engine, ForeignKey, create_engine, event, func, select
from sqlalchemy.engine import make_url
from sqlalchemy.exc import ArgumentError, NoSuchModuleError
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column
from sqlalchemy.types import TypeDecorator

from limner_server.errors import InvalidInputError, WrongStateError


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
    owner: Mapped[str | None]
    """The principal that made it; None for what was made before anybody was asked."""


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
    owner: Mapped[str | None]
    """As that of a cohort."""


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


class AuditRow(Table):
    """A call that changed, or was to change, what the server keeps."""

    __tablename__ = "audit"

    id: Mapped[int] = mapped_column(primary_key=True)
    time: Mapped[datetime] = mapped_column(default=now, index=True)
    peer: Mapped[str]
    principal: Mapped[str | None]
    method: Mapped[str]
    target: Mapped[str] = mapped_column(index=True)
    status: Mapped[str]
    request_id: Mapped[str]


class AliasRow(Table):
    """An alias of a model: the version it points at."""

    __tablename__ = "aliases"

    model: Mapped[str] = mapped_column(primary_key=True)
    alias: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[str]


def open_database(url: str) -> Engine:
    """Open the database at a SQLAlchemy URL, creating it or bringing it up to date where that is needed.

    SQLite is put in WAL mode, so that other processes read while one writes, and a commit is on the disk when it
    returns. A database of an older Limner is migrated, by one process however many open it at once.

    Raises
    ------
    InvalidInputError
        As `prepare` does.
    WrongStateError
        A newer Limner has made the database.
    SQLAlchemyError
        It cannot be reached.
    """
    engine = prepare(url)
    database = engine.url.database
    if engine.dialect.name == "sqlite" and database:
        Path(database).parent.mkdir(parents=True, exist_ok=True)
    _migrate(engine)
    return engine


def prepare(url: str) -> Engine:
    """Check a SQLAlchemy URL, and return what connects there; nothing is connected or made yet.

    InvalidInputError where the URL is none, names a database that there is no driver for, or has a password in it.
    """
    try:
        parsed = make_url(url)
        is_sqlite = parsed.get_backend_name() == "sqlite"
        engine = create_engine(parsed, pool_pre_ping=not is_sqlite)
    except (ArgumentError, NoSuchModuleError, ModuleNotFoundError) as error:
        expected = "a SQLAlchemy URL: sqlite:////FILE, or postgresql://USER@HOST/NAME (pip install 'limner[postgres]')"
        raise InvalidInputError("database_url", url.partition(":")[0] + ":…", expected) from error
    if parsed.password:
        # The URL is told to jobs in files, and a command line to everybody.
        raise InvalidInputError(
            "database_url", parsed, "none with a password; libpq takes it from PGPASSWORD or PGPASSFILE"
        )
    if is_sqlite:

        @event.listens_for(engine, "connect")
        def _configure(connection: Any, _record: object) -> None:
            for pragma in ("journal_mode=WAL", "synchronous=FULL", "foreign_keys=ON", "busy_timeout=10000"):
                connection.execute(f"PRAGMA {pragma}")

    return engine


@contextlib.contextmanager
def writing(engine: Engine, what: str) -> Iterator[Session]:
    """Open a session that is committed at the end, for a look and the leap that follows from it.

    Nobody else who is `writing` the same thing comes in between, in whatever process, so that what it sees of that
    stays true until its end. On SQLite it is the only writer of all.
    """
    with Session(engine) as session:
        _lock(session.connection(), what)
        yield session
        session.commit()


def _lock(connection: Connection, what: str) -> None:
    """Wait for one's turn at something, to the end of the transaction."""
    if connection.dialect.name == "sqlite":
        connection.exec_driver_sql("BEGIN IMMEDIATE")
    else:
        # PostgreSQL's own lock by name, which goes with the transaction or its process (postgresql.org, 13.3.5).
        connection.execute(select(func.pg_advisory_xact_lock(func.hashtextextended(what, 0))))


def _migrate(engine: Engine) -> None:
    config = Config()
    config.set_main_option("script_location", str(Path(__file__).with_name("migrations")))
    newest = ScriptDirectory.from_config(config).get_current_head()
    with engine.connect() as connection:
        if MigrationContext.configure(connection).get_current_revision() == newest:
            return
    with engine.connect() as connection:
        _lock(connection, "migrations")
        config.attributes["connection"] = connection
        try:
            command.upgrade(config, "head")
        except CommandError as error:
            found = MigrationContext.configure(connection).get_current_revision()
            raise WrongStateError(
                f"the database is of a newer Limner (revision {found!r}); this one knows up to {newest!r}"
            ) from error
        connection.commit()
