"""Claims: however servers come, go and die, a job is run by one of them at a time, and ends once."""

import fcntl
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from sqlalchemy import delete, select
from sqlalchemy.orm import Session

from limner_server.state.database import ClaimRow, JobRow, open_database
from limner_server.state.jobs import Job, JobKind, JobState, JobStore
from limner_server.state.servers import Membership
from tests.postgres import Postgres

LIMIT = 2
IDS = st.sampled_from("abcd")
NUMBERS = st.integers(0, 2)
ENDS = st.sampled_from([JobState.SUCCEEDED, JobState.FAILED, JobState.CANCELLED])


@dataclass
class Expected:
    """What a job should be."""

    job: Job
    state: JobState = JobState.QUEUED
    server: Membership | None = None
    cancelled: bool = False
    resumed: int = 0


class Servers(RuleBasedStateMachine):
    """Three servers on two machines, and their jobs, beside the simplest account of what should be."""

    url = ""

    def __init__(self) -> None:
        super().__init__()
        self._folder = tempfile.TemporaryDirectory()
        self._engine = open_database(self.url or f"sqlite:///{self._folder.name}/db.sqlite")
        with Session(self._engine) as session:
            session.execute(delete(JobRow))
            session.commit()
        self._store = JobStore(self._engine)
        self._jobs: dict[str, Expected] = {}
        self._servers = [self._join(machine) for machine in ("here", "here", "there")]
        self._dead: list[Membership] = []

    def teardown(self) -> None:
        for server in self._servers + self._dead:
            server.leave()
        self._engine.dispose()
        self._folder.cleanup()

    def _join(self, machine: str) -> Membership:
        membership = Membership(self._engine, Path(self._folder.name) / "servers")
        membership.machine = machine
        membership.join()
        return membership

    @rule(number=NUMBERS)
    def a_server_dies_and_another_starts(self, number: int) -> None:
        dead = self._servers[number]
        fcntl.flock(dead.lock, fcntl.LOCK_UN)
        self._dead.append(dead)
        self._servers[number] = self._join(dead.machine)

    @rule(number=NUMBERS)
    def a_server_leaves_and_another_starts(self, number: int) -> None:
        self._servers[number].leave()
        self._free(self._servers[number])
        self._servers[number] = self._join(self._servers[number].machine)

    @rule(number=NUMBERS)
    def a_server_looks_round(self, number: int) -> None:
        self._servers[number].keep()
        for dead in self._dead:
            if dead.machine == self._servers[number].machine:
                self._free(dead)

    @rule(job_id=IDS)
    def a_job_is_submitted(self, job_id: str) -> None:
        job = Job(job_id, JobKind.TRAINING, "cohort", {})
        known = self._jobs.get(job_id)
        if known is None or known.state in (JobState.FAILED, JobState.CANCELLED):
            known = self._jobs[job_id] = Expected(job)
        assert self._store.submit(job).created == known.job.created

    @rule(number=NUMBERS)
    def a_server_takes_all_it_may(self, number: int) -> None:
        server = self._servers[number]
        while True:
            free = [job for job in self._jobs.values() if not job.state.ended and job.server is None]
            running = [job for job in self._jobs.values() if job.server and job.server.machine == server.machine]
            claimed = self._store.claim(server.id, server.machine, LIMIT)
            if not free or len(running) >= LIMIT:
                assert claimed is None
                return
            oldest = min(free, key=lambda each: (each.job.created, each.job.id))
            oldest.resumed += oldest.state is JobState.RUNNING
            oldest.state, oldest.server = JobState.RUNNING, server
            assert claimed is not None
            assert (claimed.id, claimed.state, claimed.resumed) == (oldest.job.id, oldest.state, oldest.resumed)

    @rule(number=NUMBERS, job_id=IDS, state=ENDS)
    def a_server_finishes_a_job(self, number: int, job_id: str, state: JobState) -> None:
        server, job = self._servers[number], self._jobs.get(job_id)
        held = job is not None and job.server is server
        assert self._store.finish(job_id, server.id, state) == held
        if job is not None and held:
            self._jobs[job_id] = Expected(job.job, state, resumed=job.resumed)

    @rule(number=NUMBERS, job_id=IDS)
    def a_server_writes_on_a_job(self, number: int, job_id: str) -> None:
        self._store.note_restart(job_id, self._servers[number].id)
        if (job := self._jobs.get(job_id)) is not None and job.server is self._servers[number]:
            job.resumed += 1

    @rule(number=NUMBERS, job_id=IDS)
    def a_server_gives_a_job_up(self, number: int, job_id: str) -> None:
        self._store.release(job_id, self._servers[number].id)
        if (job := self._jobs.get(job_id)) is not None and job.server is self._servers[number]:
            job.server, job.cancelled = None, False

    @rule(number=NUMBERS, job_id=IDS)
    def a_job_is_to_be_cancelled(self, number: int, job_id: str) -> None:
        self._store.cancel(job_id, self._servers[number].id)
        if (job := self._jobs.get(job_id)) is not None and not job.state.ended:
            job.server, job.cancelled = job.server or self._servers[number], True

    @invariant()
    def the_database_agrees(self) -> None:
        with Session(self._engine) as session:
            rows = {row.id: (row.state, row.resumed) for row in session.scalars(select(JobRow))}
            claims = {row.job: (row.server, row.cancelled) for row in session.scalars(select(ClaimRow))}
        assert rows == {name: (job.state, job.resumed) for name, job in self._jobs.items()}
        assert claims == {name: (job.server.id, job.cancelled) for name, job in self._jobs.items() if job.server}

    def _free(self, server: Membership) -> None:
        for job in self._jobs.values():
            if job.server is server:
                job.server, job.cancelled = None, False


TestServers = Servers.TestCase
TestServers.settings = settings(max_examples=40, stateful_step_count=25, deadline=None)


class ServersOnPostgresql(Servers):
    """The same on one database of PostgreSQL."""


@pytest.fixture(scope="class")
def _on_postgresql(postgresql: Postgres) -> None:
    ServersOnPostgresql.url = postgresql.database()


TestServersOnPostgresql = pytest.mark.usefixtures("_on_postgresql")(ServersOnPostgresql.TestCase)
TestServersOnPostgresql.settings = settings(max_examples=20, stateful_step_count=25, deadline=None)

_CLAIM_ALL = """
import sys
from pathlib import Path
from limner_server.state.database import open_database
from limner_server.state.jobs import JobState, JobStore
from limner_server.state.servers import Membership

engine = open_database(sys.argv[1])
membership, store = Membership(engine, Path(sys.argv[2])), JobStore(engine)
membership.join()
print("ready", flush=True)
sys.stdin.readline()
while (job := store.claim(membership.id, membership.machine, 1000)) is not None:
    print(job.id)
    store.finish(job.id, membership.id, JobState.SUCCEEDED)
"""


def test_processes_that_ask_at_once_share_the_jobs(tmp_path: Path, database_url: str) -> None:
    store = JobStore(open_database(database_url))
    names = {store.submit(Job(f"{number:03}", JobKind.TRAINING, "cohort", {})).id for number in range(100)}
    command = [sys.executable, "-c", _CLAIM_ALL, database_url, str(tmp_path / "servers")]
    servers = [subprocess.Popen(command, stdin=-1, stdout=-1, text=True) for _ in range(3)]
    for server in servers:
        assert server.stdout is not None
        assert server.stdout.readline() == "ready\n"
    outputs = []
    for server in servers:
        assert server.stdin is not None
        server.stdin.write("go\n")
        server.stdin.flush()
    for server in servers:
        outputs.append(server.communicate()[0].split())
        assert server.returncode == 0
    claimed = [name for output in outputs for name in output]
    assert len(claimed) == len(names)
    assert set(claimed) == names
