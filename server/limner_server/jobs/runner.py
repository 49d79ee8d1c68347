"""Starts jobs, follows them, restarts what was killed, and takes up unfinished ones when the server starts."""

import asyncio
import contextlib
import json
import logging
import shutil
import sys
from collections.abc import AsyncIterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from limner_server.errors import NotFoundError, WrongStateError
from limner_server.state.database import now
from limner_server.state.jobs import Job, JobKind, JobState, JobStore

MODULES = {JobKind.TRAINING: "limner_server.training.job", JobKind.SIMULATION: "limner_server.explain.job"}
MAX_DEATHS = 5
_LINE_LIMIT = 64 * 1024 * 1024

_log = logging.getLogger(__name__)


class JobRunner:
    """Runs at most `max_jobs` jobs at a time, each `python -m MODULE FOLDER` in a process of its own.

    All methods belong to the event loop's thread. A process that dies without a word (kill -9, out of memory) is
    started again on its folder, where it finds its checkpoint, up to five times; one that says why it failed is not.
    """

    def __init__(self, store: JobStore, folder: Path, max_jobs: int, modules: Mapping[JobKind, str] = MODULES) -> None:
        self._store = store
        self._modules = modules
        self._root = folder
        self._slots = asyncio.Semaphore(max_jobs)
        self._live: dict[str, Job] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._changed: dict[str, asyncio.Event] = {}

    async def recover(self) -> None:
        """Take up every job that had not ended when the last server did."""
        for job in await asyncio.to_thread(self._store.unfinished):
            was_running = job.state is JobState.RUNNING
            self._start(replace(job, state=JobState.QUEUED, resumed=job.resumed + was_running))

    async def submit(self, job: Job) -> Job:
        """Queue a job under its id; if one of that id is unfinished or has succeeded, return that instead."""
        with contextlib.suppress(NotFoundError):
            known = await self.get(job.id, job.kind)
            if known.state is JobState.SUCCEEDED or job.id in self._tasks:
                return known
        folder = self.folder(job)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "request.json").write_text(json.dumps(job.request, indent=2))
        await asyncio.to_thread(self._store.save, job)
        self._start(job)
        return job

    def folder(self, job: Job) -> Path:
        """Folder of a job: its request, its checkpoints, its log, and for simulations its result."""
        return self._root / job.id

    async def get(self, job_id: str, kind: JobKind) -> Job:
        """Return the job as it is now; NotFoundError if there is none of this kind."""
        live = self._live.get(job_id)
        if live is not None and live.kind is kind:
            return live
        return await asyncio.to_thread(self._store.get, job_id, kind)

    async def watch(self, job_id: str, kind: JobKind) -> AsyncIterator[Job]:
        """Yield the job now and after every change until it has ended; a slow reader misses states between."""
        while True:
            changed = self._changed.setdefault(job_id, asyncio.Event())
            job = await self.get(job_id, kind)
            yield job
            if job.state.ended:
                return
            await changed.wait()

    async def cancel(self, job_id: str, kind: JobKind) -> Job:
        """End a job now and drop its folder. WrongStateError if it has ended."""
        job = await self.get(job_id, kind)
        task = self._tasks.get(job_id)
        if job.state.ended or task is None:
            raise WrongStateError(f"{kind} {job_id!r} has ended: {job.state.lower()}")
        await _end(task)
        job = await self.get(job_id, kind)
        if not job.state.ended:  # it may have ended while it was being told to
            job = await self._update(job, state=JobState.CANCELLED, ended=now())
            shutil.rmtree(self.folder(job), ignore_errors=True)
        return job

    async def close(self) -> None:
        """End all processes. The jobs stay unfinished, and the next server takes them up."""
        for task in list(self._tasks.values()):
            await _end(task)

    def _start(self, job: Job) -> None:
        self._live[job.id] = job
        task = asyncio.create_task(self._run(job), name=f"job {job.id}")
        self._tasks[job.id] = task
        task.add_done_callback(lambda done: self._forget(job.id, done))

    def _forget(self, job_id: str, task: asyncio.Task[None]) -> None:
        self._tasks.pop(job_id, None)
        self._live.pop(job_id, None)
        if not task.cancelled() and task.exception() is not None:
            _log.error("the supervision of job %s failed", job_id, exc_info=task.exception())

    async def _update(self, job: Job, **changes: Any) -> Job:
        job = replace(job, **changes)
        self._live[job.id] = job
        await asyncio.to_thread(self._store.save, job)
        self._changed.pop(job.id, asyncio.Event()).set()
        return job

    async def _run(self, job: Job) -> None:
        async with self._slots:
            for _ in range(MAX_DEATHS):
                job = await self._update(job, state=JobState.RUNNING)
                job, status = await self._run_process(job)
                if job.state.ended:
                    return
                _log.warning("the process of job %s ended with status %d; starting it again", job.id, status)
                job = await self._update(job, resumed=job.resumed + 1)
            message = f"its process ended {MAX_DEATHS} times without a word, the last time with status {status}"
            await self._update(job, state=JobState.FAILED, error=message, ended=now())

    async def _run_process(self, job: Job) -> tuple[Job, int]:
        """Run the job's process to its end; return the job as it then is, and the exit status."""
        folder = self.folder(job)
        with (folder / "job.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", self._modules[job.kind], str(folder)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=_LINE_LIMIT,
                start_new_session=True,
            )
        assert process.stdout is not None  # noqa: S101 - it was asked for
        try:
            async for line in process.stdout:
                if line.endswith(b"\n"):  # the last line of a killed process may be half a line
                    job = await self._apply(job, json.loads(line))
            return job, await process.wait()
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()

    async def _apply(self, job: Job, event: dict[str, Any]) -> Job:
        match event:
            case {"progress": progress}:
                return await self._update(job, progress=progress)
            case {"result": result}:
                return await self._update(job, state=JobState.SUCCEEDED, result=result, ended=now())
            case {"failure": message}:
                return await self._update(job, state=JobState.FAILED, error=message, ended=now())
        raise ValueError(f"job {job.id} said {event!r}")


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])
