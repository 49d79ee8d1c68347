"""Who is there: servers of this machine by their locks, those of others by their heartbeats."""

import fcntl
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import Engine, select
from sqlalchemy.orm import Session

from limner_server.state.database import ServerRow, open_database
from limner_server.state.loaded import LoadedStore
from limner_server.state.servers import Membership

LEASE_S = 0.4
Join = Callable[..., Membership]


@pytest.fixture
def engine(database_url: str) -> Engine:
    return open_database(database_url)


@pytest.fixture
def join(engine: Engine, tmp_path: Path) -> Iterator[Join]:
    """Let servers join; those that neither left nor died leave in the end."""
    joined = []

    def join_one(machine: str = "") -> Membership:
        membership = Membership(engine, tmp_path / "servers", LEASE_S)
        membership.machine = machine or membership.machine
        membership.join()
        joined.append(membership)
        return membership

    yield join_one
    for membership in joined:
        membership.leave()


def listed(engine: Engine) -> set[str]:
    with Session(engine) as session:
        return set(session.scalars(select(ServerRow.id)))


def die(membership: Membership) -> None:
    """What the kernel does for a process that ends without a word."""
    fcntl.flock(membership.lock, fcntl.LOCK_UN)


def test_a_living_server_stays_however_long_it_says_nothing(engine: Engine, join: Join) -> None:
    silent, other = join(), join()
    time.sleep(2 * LEASE_S)
    other.keep()
    assert listed(engine) == {silent.id, other.id}


def test_a_dead_server_is_struck_off_at_once_with_what_it_held(engine: Engine, join: Join, tmp_path: Path) -> None:
    dead, other = join(), join()
    LoadedStore(engine, dead.id).add("model", 1)
    die(dead)
    other.keep()
    assert listed(engine) == {other.id}
    assert not LoadedStore(engine, dead.id).here()
    assert [path.stem for path in (tmp_path / "servers").iterdir()] == [other.id]


def test_a_server_is_not_dead_while_a_job_of_its_runs(engine: Engine, join: Join) -> None:
    server, other = join(), join()
    with subprocess.Popen(["/bin/cat"], stdin=subprocess.PIPE, pass_fds=(server.lock,)) as job:
        os.close(server.lock)
        other.keep()
        assert listed(engine) == {server.id, other.id}
        job.communicate()
    other.keep()
    assert listed(engine) == {other.id}
    server.join()  # for the fixture to leave


def test_of_another_machine_only_silence_tells(engine: Engine, join: Join) -> None:
    talking, silent, other = join("elsewhere"), join("far away"), join()
    die(talking)  # its lock, which says nothing here
    deadline = time.monotonic() + 30
    while silent.id in listed(engine) and time.monotonic() < deadline:
        talking.keep()
        other.keep()
    assert listed(engine) == {talking.id, other.id}


def test_a_server_taken_for_dead_comes_back_with_nothing(engine: Engine, join: Join) -> None:
    paused, other = join("elsewhere"), join()
    LoadedStore(engine, paused.id).add("model", 1)
    other.keep()
    time.sleep(2 * LEASE_S)
    other.keep()
    assert listed(engine) == {other.id}
    paused.keep()
    assert listed(engine) == {paused.id, other.id}
    assert not LoadedStore(engine, paused.id).here()


def test_leaving_leaves_nothing(engine: Engine, tmp_path: Path) -> None:
    membership = Membership(engine, tmp_path / "servers")
    membership.join()
    membership.leave()
    assert not listed(engine)
    assert not list((tmp_path / "servers").iterdir())
