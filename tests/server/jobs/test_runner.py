"""The job runner with real processes that are really killed."""

import asyncio
import os
import signal
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from limner_server.errors import NotFoundError, WrongStateError
from limner_server.jobs.runner import MAX_DEATHS, JobRunner
from limner_server.state.database import open_database
from limner_server.state.jobs import Job, JobKind, JobState, JobStore

MODULES = dict.fromkeys(JobKind, "tests.server.jobs.counting_job")


def counting(job_id: str, **request: Any) -> Job:
    return Job(job_id, JobKind.TRAINING, "cohort", request)


def with_runner(folder: Path, story: Callable[[JobRunner], Awaitable[Any]], max_jobs: int = 1) -> Any:
    """Run a story on a runner whose database and folder outlive it, as those of a server do."""

    async def tell() -> Any:
        store = JobStore(open_database(f"sqlite:///{folder / 'jobs.sqlite'}"))
        runner = JobRunner(store, folder / "jobs", max_jobs, MODULES)
        await runner.recover()
        try:
            return await story(runner)
        finally:
            await runner.close()

    return asyncio.run(tell())


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


def test_an_unfinished_job_is_taken_up_by_the_next_runner(tmp_path: Path) -> None:
    async def first(runner: JobRunner) -> None:
        await runner.submit(counting("a", to=40, pause_s=0.05))
        async for job in runner.watch("a", JobKind.TRAINING):
            if job.progress:
                return

    with_runner(tmp_path, first)
    assert not processes_of(tmp_path), "closing the runner ends its processes"

    async def second(runner: JobRunner) -> Job:
        return (await until_ended(runner, "a"))[-1]

    job = with_runner(tmp_path, second)
    assert (job.state, job.resumed) == (JobState.SUCCEEDED, 1)


def test_cancelling_ends_the_process_and_drops_its_folder(tmp_path: Path) -> None:
    async def story(runner: JobRunner) -> Job:
        await runner.submit(counting("a", to=1000, pause_s=0.05))
        async for job in runner.watch("a", JobKind.TRAINING):
            if job.progress:
                break
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


def test_a_job_does_not_outlive_a_killed_server(tmp_path: Path) -> None:
    """The leash: a process whose server is gone ends by itself."""

    async def start_and_abandon(runner: JobRunner) -> None:
        await runner.submit(counting("a", to=1000, pause_s=0.05))
        async for job in runner.watch("a", JobKind.TRAINING):
            if job.progress:
                os.kill(os.getpid(), signal.SIGKILL)

    server = os.fork()
    if server == 0:
        with_runner(tmp_path, start_and_abandon)
        os._exit(0)
    _, status = os.waitpid(server, 0)
    assert os.WTERMSIG(status) == signal.SIGKILL
    _, alive = psutil.wait_procs(processes_of(tmp_path), timeout=10)
    assert not alive
