"""Opening a database: made, migrated, refused; and writing in turn."""

import contextlib
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from alembic.autogenerate import compare_metadata
from alembic.migration import MigrationContext
from sqlalchemy import Engine, insert, text
from sqlalchemy.orm import Session

from limner_server.errors import InvalidInputError, WrongStateError
from limner_server.state.aliases import AliasStore
from limner_server.state.audit import AuditEntry, AuditLog
from limner_server.state.database import AliasRow, JobRow, Table, open_database, writing
from limner_server.state.jobs import JobStore
from limner_server.state.servers import Membership


def test_migrations_make_the_tables_that_the_code_declares(database_url: str) -> None:
    engine = open_database(database_url)
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts={"compare_type": True})
        assert compare_metadata(context, Table.metadata) == []


def test_a_database_of_0_1_keeps_its_jobs(tmp_path: Path, database_url: str) -> None:
    """It knew neither migrations, servers nor claims, and its one server was killed while a job ran."""
    engine = open_database(database_url)
    _make_as_in_0_1(engine)
    with Session(engine) as session:
        row = {"id": "a", "kind": "training", "cohort": "c", "request": {"to": 3}, "state": "RUNNING"}
        session.execute(insert(JobRow).values(**row, progress={"fraction": 0.5}))
        session.commit()
    engine = open_database(database_url)
    membership = Membership(engine, tmp_path / "servers")
    membership.join()
    job = JobStore(engine).claim(membership.id, membership.machine, 1)
    membership.leave()
    assert job is not None
    assert (job.id, job.request, job.progress, job.resumed) == ("a", {"to": 3}, {"fraction": 0.5}, 1)
    assert AuditLog(engine).entries() == []


def _make_as_in_0_1(engine: Engine) -> None:
    before = [Table.metadata.tables[name] for name in ("cohorts", "slices", "jobs", "aliases")]
    Table.metadata.drop_all(engine)
    with engine.begin() as connection:
        connection.execute(text("DROP TABLE alembic_version"))
    Table.metadata.create_all(engine, tables=before)
    with engine.begin() as connection:
        for table in ("cohorts", "jobs"):
            connection.execute(text(f"ALTER TABLE {table} DROP COLUMN owner"))


def test_a_database_of_a_newer_limner_is_refused(database_url: str) -> None:
    engine = open_database(database_url)
    with engine.begin() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    with pytest.raises(WrongStateError, match=r"newer Limner \(revision '9999'\)"):
        open_database(database_url)


def test_processes_that_open_a_new_database_at_once_all_find_it_whole(database_url: str) -> None:
    code = "import sys; from limner_server.state.database import open_database; open_database(sys.argv[1])"
    processes = [subprocess.Popen([sys.executable, "-c", code, database_url]) for _ in range(4)]
    assert [process.wait(timeout=60) for process in processes] == [0] * 4
    assert AliasStore(open_database(database_url)).of("m") == {}


@pytest.mark.parametrize("url", ["nonsense", "nosuch://host/name", "mysql+nosuch://host/name"])
def test_a_url_that_is_none_is_named_without_its_secrets(url: str) -> None:
    with pytest.raises(InvalidInputError, match="database_url") as caught:
        open_database(url)
    assert "host" not in caught.value.value


def test_a_password_does_not_belong_into_the_url() -> None:
    with pytest.raises(InvalidInputError, match="PGPASSWORD") as caught:
        open_database("postgresql://limner:hunter2@host/name")
    assert "hunter2" not in str(caught.value)


def test_who_writes_the_same_thing_takes_turns(database_url: str) -> None:
    engine = open_database(database_url)
    counts = []

    def count_up() -> None:
        for _ in range(10):
            with writing(engine, "count") as session:
                row = session.get(AliasRow, ("m", "a"))
                count = int(row.version) if row else 0
                time.sleep(0.001)
                session.merge(AliasRow(model="m", alias="a", version=str(count + 1)))
                counts.append(count)

    threads = [threading.Thread(target=count_up) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(counts) == list(range(40))


def test_what_fails_while_writing_leaves_nothing(database_url: str) -> None:
    engine = open_database(database_url)
    with contextlib.suppress(ZeroDivisionError), writing(engine, "m") as session:
        session.add(AliasRow(model="m", alias="a", version="1"))
        session.flush()
        raise ZeroDivisionError
    assert AliasStore(engine).of("m") == {}


def test_audit_entries_come_back_newest_first(database_url: str) -> None:
    audit = AuditLog(open_database(database_url))
    who = [None, "token:ada", "certificate:gateway"]
    made = enumerate(zip("aba", who, strict=True))
    entries = [AuditEntry("peer", "CohortService/DeleteCohort", name, "OK", f"{n}", by) for n, (name, by) in made]
    for entry in entries:
        audit.add(entry)
    assert audit.entries() == entries[::-1]
    assert audit.entries("a", limit=1) == [entries[2]]
    assert audit.entries(principal="token:ada") == [entries[1]]
