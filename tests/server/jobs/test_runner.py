"""The job runner with real processes that are really killed."""

import asyncio
import json
import os
import signal
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from sqlalchemy import delete
from sqlalchemy.orm import Session

from limner_server.errors import NotFoundError, WrongStateError
from limner_server.jobs.runner import MAX_DEATHS, JobRunner
from limner_server.state.database import ServerRow, open_database
from limner_server.state.jobs import Job, JobKind, JobState, JobStore
from limner_server.state.servers import Membership

MODULES = dict.fromkeys(JobKind, "tests.server.jobs.counting_job")


def counting(job_id: str, **request: Any) -> Job:
    return Job(job_id, JobKind.TRAINING, "cohort", request)


@asynccontextmanager
async def joined(
    folder: Path, max_jobs: int = 1, modules: Mapping[JobKind, str] = MODULES, training_processes: int = 1
) -> AsyncIterator[JobRunner]:
    """Be one of the servers on a folder's database, as far as jobs are concerned."""
    database = open_database(f"sqlite:///{folder / 'jobs.sqlite'}")
    membership = Membership(database, folder / "servers")
    membership.join()
    runner = JobRunner(JobStore(database), membership, folder / "jobs", max_jobs, modules, training_processes)
    runner.start()
    try:
        yield runner
    finally:
        await runner.close()
        membership.leave()


def with_runner(folder: Path, story: Callable[[JobRunner], Awaitable[Any]], max_jobs: int = 1) -> Any:
    """Run a story on a runner whose database and folder outlive it, as those of a server do."""

    async def tell() -> Any:
        async with joined(folder, max_jobs) as runner:
            return await story(runner)

    return asyncio.run(tell())


async def until_counting(runner: JobRunner, job_id: str) -> Job:
    async for job in runner.watch(job_id, JobKind.TRAINING):
        if job.progress:
            return job
    pytest.fail("the job ended too soon")


async def until_ended(runner: JobRunner, job_id: str) -> list[Job]:
    return [job async for job in runner.watch(job_id, JobKind.TRAINING)]


def processes_of(folder: Path) -> list[psutil.Process]:
    return [process for process in psutil.process_iter() if str(folder) in " ".join(_command(process))]


def _command(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def test_a_job_is_followed_to_its_result(tmp_path: Path) -> None:
    async def story(runner: JobRunner) -> list[Job]:
        await runner.submit(counting("a", to=3, pause_s=0.1))
        return await until_ended(runner, "a")

    seen = with_runner(tmp_path, story)
    assert seen[-1].state is JobState.SUCCEEDED
    assert seen[-1].result == {"counted": 3}
    assert seen[-1].ended is not None
    assert JobState.RUNNING in {job.state for job in seen}
    assert [job.progress["fraction"] for job in seen if job.progress] == sorted(
        job.progress["fraction"] for job in seen if job.progress
    )


def test_a_killed_process_goes_on_where_it_was(tmp_path: Path) -> None:
    async def story(runner: JobRunner) -> Job:
        await runner.submit(counting("a", to=5, die_after=[1, 3]))
        return (await until_ended(runner, "a"))[-1]

    job = with_runner(tmp_path, story)
    assert (job.state, job.resumed, job.result) == (JobState.SUCCEEDED, 2, {"counted": 5})


def test_a_job_is_told_that_its_server_goes_and_is_taken_up_by_the_next(tmp_path: Path) -> None:
    async def leave(runner: JobRunner) -> None:
        await runner.submit(counting("a", to=3, pause_s=60))
        await until_counting(runner, "a")
        runner.leave_off()
        await runner.close()

    async def story(runner: JobRunner) -> Job:
        async with asyncio.timeout(30):
            return await anext(job async for job in runner.watch("a", JobKind.TRAINING) if job.resumed)

    with_runner(tmp_path, leave)
    assert (tmp_path / "jobs/a/left off").exists()
    job = with_runner(tmp_path, story)
    assert (job.state, job.resumed, job.error) == (JobState.RUNNING, 1, "")


def test_a_process_that_always_dies_fails_with_its_status(tmp_path: Path) -> None:
    async def story(runner: JobRunner) -> Job:
        await runner.submit(counting("a", to=0, die_always=True))
        return (await until_ended(runner, "a"))[-1]

    job = with_runner(tmp_path, story)
    assert job.state is JobState.FAILED
    assert f"{MAX_DEATHS} times" in job.error
    assert f"{-signal.SIGKILL}" in job.error


def test_a_refusal_is_told_and_not_tried_again(tmp_path: Path) -> None:
    async def story(runner: JobRunner) -> Job:
        await runner.submit(counting("a", to=1, refuse=True))
        return (await until_ended(runner, "a"))[-1]

    job = with_runner(tmp_path, story)
    assert (job.state, job.error, job.resumed) == (JobState.FAILED, "it was refused", 0)


def test_the_text_of_an_unexpected_error_stays_in_the_log(tmp_path: Path) -> None:
    async def story(runner: JobRunner) -> Job:
        await runner.submit(counting("a", to=1, crash=True))
        return (await until_ended(runner, "a"))[-1]

    job = with_runner(tmp_path, story)
    assert job.state is JobState.FAILED
    assert "secret" not in job.error
    log = (tmp_path / "jobs" / "a" / "job.log").read_text()
    assert "a secret" in log
    assert "a library's" in log
    (told,) = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    assert (told["job"], told["message"], told["level"]) == ("a", "the job failed", "error")
    assert "a secret" in told["exception"]


def test_an_unfinished_job_is_taken_up_by_the_next_runner(tmp_path: Path) -> None:
    async def first(runner: JobRunner) -> None:
        await runner.submit(counting("a", to=40, pause_s=0.05))
        await until_counting(runner, "a")

    with_runner(tmp_path, first)
    assert not processes_of(tmp_path), "closing the runner ends its processes"

    async def second(runner: JobRunner) -> Job:
        return (await until_ended(runner, "a"))[-1]

    job = with_runner(tmp_path, second)
    assert (job.state, job.resumed) == (JobState.SUCCEEDED, 1)


def test_cancelling_ends_the_process_and_drops_its_folder(tmp_path: Path) -> None:
    async def story(runner: JobRunner) -> Job:
        await runner.submit(counting("a", to=1000, pause_s=0.05))
        await until_counting(runner, "a")
        cancelled = await runner.cancel("a", JobKind.TRAINING)
        with pytest.raises(WrongStateError, match="cancelled"):
            await runner.cancel("a", JobKind.TRAINING)
        return cancelled

    assert with_runner(tmp_path, story).state is JobState.CANCELLED
    assert not (tmp_path / "jobs" / "a").exists()
    assert not processes_of(tmp_path)


def test_a_queued_job_waits_and_can_be_cancelled(tmp_path: Path) -> None:
    async def story(runner: JobRunner) -> tuple[Job, Job]:
        await runner.submit(counting("a", to=10, pause_s=0.05))
        await runner.submit(counting("b", to=1))
        waiting = await runner.get("b", JobKind.TRAINING)
        cancelled = await runner.cancel("b", JobKind.TRAINING)
        await until_ended(runner, "a")
        return waiting, cancelled

    waiting, cancelled = with_runner(tmp_path, story)
    assert (waiting.state, cancelled.state) == (JobState.QUEUED, JobState.CANCELLED)


def test_the_same_id_is_the_same_job(tmp_path: Path) -> None:
    async def story(runner: JobRunner) -> tuple[Job, Job]:
        await runner.submit(counting("a", to=2))
        again = await runner.submit(counting("a", to=99))
        await until_ended(runner, "a")
        finished = await runner.submit(counting("a", to=99))
        return again, finished

    again, finished = with_runner(tmp_path, story)
    assert again.request == {"to": 2}
    assert finished.result == {"counted": 2}


def test_an_unknown_job_is_named(tmp_path: Path) -> None:
    async def story(runner: JobRunner) -> None:
        await runner.get("nobody", JobKind.SIMULATION)

    with pytest.raises(NotFoundError, match="simulation 'nobody'"):
        with_runner(tmp_path, story)


def killed_while_counting(folder: Path, *, frozen: bool = False, **request: Any) -> None:
    """Let a server process start job "a", and kill it when the job counts, or has just been frozen."""

    async def start_and_die(runner: JobRunner) -> None:
        await runner.submit(counting("a", **request))
        await until_counting(runner, "a")
        for process in processes_of(folder) if frozen else ():
            process.suspend()
        os.kill(os.getpid(), signal.SIGKILL)

    server = os.fork()
    if server == 0:
        with_runner(folder, start_and_die)
        os._exit(0)
    _, status = os.waitpid(server, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL


def test_a_job_does_not_outlive_a_killed_server(tmp_path: Path) -> None:
    """The leash: a process whose server is gone ends by itself."""
    killed_while_counting(tmp_path, to=1000, pause_s=0.05)
    _, alive = psutil.wait_procs(processes_of(tmp_path), timeout=10)
    assert not alive


def test_a_job_of_a_killed_server_is_taken_up_by_another(tmp_path: Path) -> None:
    async def story(runner: JobRunner) -> Job:
        await asyncio.to_thread(killed_while_counting, tmp_path, to=40, pause_s=0.05)
        return (await until_ended(runner, "a"))[-1]

    job = with_runner(tmp_path, story)
    assert (job.state, job.resumed, job.result) == (JobState.SUCCEEDED, 1, {"counted": 40})
    assert starts(tmp_path, "a") == 2


def test_a_job_is_not_taken_up_while_its_process_has_not_ended(tmp_path: Path) -> None:
    async def story(runner: JobRunner) -> Job:
        await asyncio.to_thread(killed_while_counting, tmp_path, frozen=True, to=40, pause_s=0.05)
        (process,) = processes_of(tmp_path)
        for name in "bc":  # the runner looks round, and has a place
            await runner.submit(counting(name, to=2))
            await until_ended(runner, name)
        assert (await runner.get("a", JobKind.TRAINING)).resumed == 0
        process.resume()
        return (await until_ended(runner, "a"))[-1]

    job = with_runner(tmp_path, story, max_jobs=2)
    assert (job.state, job.resumed, job.result) == (JobState.SUCCEEDED, 1, {"counted": 40})


def starts(folder: Path, job_id: str) -> int:
    return (folder / "jobs" / job_id / "job.log").read_text().count("this line is a library's")


def test_any_server_is_asked_for_any_job(tmp_path: Path) -> None:
    async def story() -> tuple[list[Job], Job]:
        async with joined(tmp_path) as one, joined(tmp_path) as two:
            await one.submit(counting("a", to=20, pause_s=0.05))
            again = await two.submit(counting("a", to=99))
            seen = await asyncio.gather(until_ended(one, "a"), until_ended(two, "a"))
            assert seen[0][-1] == seen[1][-1] == await two.get("a", JobKind.TRAINING)
            assert len({job.progress["fraction"] for job in seen[0] + seen[1] if job.progress}) > 2, "it is live"
            return seen[1], again

    seen, again = asyncio.run(story())
    assert (seen[-1].state, seen[-1].result, again.request["to"]) == (JobState.SUCCEEDED, {"counted": 20}, 20)
    assert starts(tmp_path, "a") == 1


def test_servers_share_the_places_for_jobs(tmp_path: Path) -> None:
    names = "abcdef"

    async def story() -> int:
        most = 0
        async with joined(tmp_path, 2) as one, joined(tmp_path, 2) as two:
            for number, name in enumerate(names):
                await (one, two)[number % 2].submit(counting(name, to=4, pause_s=0.05))
            while True:
                jobs = [await one.get(name, JobKind.TRAINING) for name in names]
                most = max(most, len(processes_of(tmp_path)))
                if all(job.state is JobState.SUCCEEDED for job in jobs):
                    return most

    assert asyncio.run(story()) == 2
    assert {starts(tmp_path, name) for name in names} == {1}


def test_any_server_cancels_any_job(tmp_path: Path) -> None:
    async def story() -> list[Job]:
        async with joined(tmp_path) as one, joined(tmp_path) as two:
            await one.submit(counting("a", to=1000, pause_s=0.05))
            await until_counting(one, "a")
            await one.submit(counting("b", to=1000))
            cancelled = [await two.cancel(name, JobKind.TRAINING) for name in "ba"]
            assert not processes_of(tmp_path)
            with pytest.raises(WrongStateError, match="cancelled"):
                await one.cancel("a", JobKind.TRAINING)
            return cancelled

    assert [job.state for job in asyncio.run(story())] == [JobState.CANCELLED] * 2
    assert not list((tmp_path / "jobs").iterdir())


def test_a_server_that_lost_its_claim_ends_the_process(tmp_path: Path) -> None:
    """As one does that was paused for so long that another machine took it for dead."""

    async def story(runner: JobRunner) -> Job:
        await runner.submit(counting("a", to=1000, pause_s=0.05))
        await until_counting(runner, "a")
        (process,) = processes_of(tmp_path)
        with Session(open_database(f"sqlite:///{tmp_path / 'jobs.sqlite'}")) as session:
            session.execute(delete(ServerRow))
            session.commit()
        await asyncio.to_thread(process.wait, 10)
        return await runner.get("a", JobKind.TRAINING)

    assert with_runner(tmp_path, story).state is JobState.RUNNING, "as another server's it might be"


def test_a_training_of_several_processes_is_one_job(tmp_path: Path) -> None:
    """It succeeds once, fails by the first that says why, and is cancelled with all its processes."""

    async def tell() -> tuple[Job, Job, Job]:
        modules = dict.fromkeys(JobKind, "tests.server.jobs.ranked_job")
        async with joined(tmp_path, 3, modules, training_processes=2) as runner:
            await runner.submit(counting("good"))
            await runner.submit(counting("refused", refuse=True, pause_s=60))
            await runner.submit(counting("cancelled", pause_s=60))
            await until_counting(runner, "cancelled")
            cancelled = await runner.cancel("cancelled", JobKind.TRAINING)
            return (await until_ended(runner, "good"))[-1], (await until_ended(runner, "refused"))[-1], cancelled

    good, refused, cancelled = asyncio.run(tell())
    assert (good.state, good.result) == (JobState.SUCCEEDED, {"processes": 2})
    assert (refused.state, refused.error) == (JobState.FAILED, "the second one refused")
    assert cancelled.state is JobState.CANCELLED
    for _ in range(50):
        if not processes_of(tmp_path):
            break
        time.sleep(0.1)  # they go by the leash, a moment after torchrun
    assert processes_of(tmp_path) == []
