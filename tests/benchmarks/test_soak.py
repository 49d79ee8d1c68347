"""What the soak takes for a file that nothing accounts for."""

import shutil
import threading
from pathlib import Path

import pytest
from sqlalchemy import update
from sqlalchemy.orm import Session

from benchmarks.soak import count_strays
from limner_server.state.database import JobRow, open_database
from limner_server.state.jobs import JobState

STATES = {"running": JobState.RUNNING, "done": JobState.SUCCEEDED, "cancelled": JobState.QUEUED}


@pytest.fixture
def state(tmp_path: Path) -> Path:
    """A server's folders, in which all is as it should be; jobs are using theirs or have left what they may."""
    for folder in ("cohorts/trained", "jobs/running/networks", "jobs/done/tensorboard", "jobs/cancelled/networks"):
        (tmp_path / "data" / folder).mkdir(parents=True)
    (tmp_path / "model_repository/m/1").mkdir(parents=True)
    engine = open_database(f"sqlite:///{tmp_path}/data/limner.sqlite")
    with Session(engine) as session:
        for job, name in STATES.items():
            session.add(JobRow(id=job, kind="training", cohort="trained", request={}, state=name))
        session.commit()
    engine.dispose()
    return tmp_path


def strays(state: Path) -> int:
    return count_strays(state / "data", state / "model_repository")


@pytest.mark.parametrize(
    "left",
    [
        "data/cohorts/trained/.i0.npy.0123",
        "data/file",
        "data/servers/gone",
        "data/jobs/done/networks",
        "data/jobs/done/staging",
        "model_repository/m/.publishing-done",
        "model_repository/m/.deleted-0123",
    ],
)
def test_what_is_left_behind_is_counted(state: Path, left: str) -> None:
    before = strays(state)
    (state / left).mkdir(parents=True)
    assert strays(state) > before


def test_a_cancelled_job_may_leave_nothing_and_others_work_in_their_folders(state: Path) -> None:
    before = strays(state)
    (state / "data/jobs/running/networks/0.pt").touch()
    (state / "data/jobs/done/job.log").touch()
    assert strays(state) == before
    engine = open_database(f"sqlite:///{state}/data/limner.sqlite")
    with Session(engine) as session:
        session.execute(update(JobRow).where(JobRow.id == "cancelled").values(state=JobState.CANCELLED))
        session.commit()
    engine.dispose()
    assert strays(state) == before + 1


def test_a_cohort_that_comes_and_goes_is_neither_counted_nor_an_error(state: Path) -> None:
    before, ended = strays(state), threading.Event()
    cohort = state / "data/cohorts/short-lived"

    def come_and_go() -> None:
        while not ended.is_set():
            for number in range(40):
                (cohort / str(number)).mkdir(parents=True)
            shutil.rmtree(cohort)

    coming = threading.Thread(target=come_and_go)
    coming.start()
    try:
        seen = {strays(state) for _ in range(300)}
    finally:
        ended.set()
        coming.join()
    assert seen == {before}
