"""The tables, and how to open the database that holds them."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from sqlalchemy import JSON, DateTime, Engine, ForeignKey, create_engine, event
from sqlalchemy.engine import make_url
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
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


class AliasRow(Table):
    """An alias of a model: the version it points at."""

    __tablename__ = "aliases"

    model: Mapped[str] = mapped_column(primary_key=True)
    alias: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[str]


def open_database(url: str) -> Engine:
    """Open the database at a SQLAlchemy URL, creating file and tables where they are missing.

    SQLite is put in WAL mode, so that the processes of jobs read while the server writes.
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
