"""Takes jobs and runs them, each in a process of its own.

Any number of servers may do so on one database and one data folder: what they have to agree on, the database decides.
"""

import asyncio
import contextlib
import json
import logging
import shutil
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.orm import Session

from limner_server.errors import LeftOffError, LimnerError, WrongStateError
from limner_server.files import write_atomic
from limner_server.jobs.process import LEAVE_OFF
from limner_server.state.jobs import Job, JobKind, JobState, JobStore
from limner_server.state.servers import Membership

MODULES = {JobKind.TRAINING: "limner_server.training.job", JobKind.SIMULATION: "limner_server.explain.job"}
MAX_DEATHS = 5
LEAVE_OFF_S = 10.0
"""How long a process that is told to leave off may take to keep where it is."""
_LINE_LIMIT = 64 * 1024 * 1024
_ROUND_S = 0.5
_WATCH_S = 0.25
_PROGRESS_S = 0.25

_log = logging.getLogger(__name__)


@dataclass
class _Progress:
    """How far a job is, on its way to the database."""

    latest: dict[str, Any]
    changed: asyncio.Event = field(default_factory=asyncio.Event)


class JobRunner:
    """Runs jobs, each `python -m MODULE FOLDER`; all servers of one machine together at most `max_jobs` at a time.

    Any server can be asked for any job: `submit` leaves it in the database, one server claims and runs it, `get` and
    `watch` read how far it is, and `cancel` leaves a word for the server that runs it. Twice a second each server looks
    what there is to do; the jobs of a server that has died are taken up by the others, or by the next one.

    A process that dies without a word (kill -9, out of memory) is started again on its folder, where it finds its
    checkpoint, up to five times; one that says why it failed is not.

    A training may be several processes that torchrun starts (`training_processes`): they speak on one pipe, the first
    failure counts, and where one of them dies all of them do.

    All methods belong to the event loop's thread.
    """

    def __init__(
        self,
        store: JobStore,
        membership: Membership,
        folder: Path,
        max_jobs: int,
        modules: Mapping[JobKind, str] = MODULES,
        training_processes: int = 1,
    ) -> None:
        self._store = store
        self._membership = membership
        self._root = folder
        self._max_jobs = max_jobs
        self._modules = modules
        self._training_processes = training_processes
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._processes: dict[str, asyncio.subprocess.Process] = {}  # those that hear what they are told
        self._progress: dict[str, tuple[JobKind, _Progress]] = {}
        self._leaving: float | None = None
        self._something_to_do = asyncio.Event()
        self._rounds: asyncio.Task[None] | None = None

    def start(self) -> None:
        """Begin to take jobs, first those that had not ended when their server did. The server has joined."""
        self._rounds = asyncio.create_task(self._go_round(), name="rounds of the job runner")

    def leave_off(self) -> None:
        """Take no more jobs, since this server is about to go, and have those that can keep where they are."""
        self._leaving = time.monotonic()
        for process in self._processes.values():
            assert process.stdin is not None  # noqa: S101 - it was asked for
            process.stdin.write(LEAVE_OFF)

    async def close(self) -> None:
        """End all processes. The jobs stay unfinished, for another server or the next one.

        What has been told to leave off may do so for a few seconds.
        """
        if self._rounds is not None:
            await _end(self._rounds)
        if self._leaving is not None and (telling := [self._tasks[job_id] for job_id in self._processes]):
            await asyncio.wait(telling, timeout=max(0.0, self._leaving + LEAVE_OFF_S - time.monotonic()))
        for task in list(self._tasks.values()):
            await _end(task)

    async def submit(self, job: Job, *, again: bool = True, check: Callable[[Session], None] = lambda _: None) -> Job:
        """Queue a job under its id; if there is one of that id, return that instead.

        With `again`, one that has failed or been cancelled does not count. `check` is as in `JobStore.submit`.
        """
        submitted = await asyncio.to_thread(self._store.submit, job, again=again, check=check)
        self._something_to_do.set()
        return submitted

    def running(self) -> dict[str, tuple[JobKind, Mapping[str, Any]]]:
        """Kind and progress of the jobs that this server runs, by id; may be called from any thread."""
        return {job_id: (kind, progress.latest) for job_id, (kind, progress) in list(self._progress.items())}

    def folder(self, job: Job) -> Path:
        """Folder of a job: its request, its checkpoints, its log, and for simulations its result."""
        return self._root / job.id

    async def get(self, job_id: str, kind: JobKind) -> Job:
        """Return the job as it is now; NotFoundError if there is none of this kind."""
        return await asyncio.to_thread(self._store.get, job_id, kind)

    async def watch(self, job_id: str, kind: JobKind) -> AsyncIterator[Job]:
        """Yield the job now and after every change until it has ended; states between two looks are missed."""
        seen = None
        while True:
            job = await self.get(job_id, kind)
            if job != seen:
                yield job
            if job.state.ended:
                return
            seen = job
            await asyncio.sleep(_WATCH_S)

    async def cancel(self, job_id: str, kind: JobKind) -> Job:
        """End a job, drop its folder, and return once that is done. WrongStateError if it has ended before."""
        job = await self.get(job_id, kind)
        if job.state.ended:
            raise WrongStateError(f"{kind} {job_id!r} has ended: {job.state.lower()}")
        while not job.state.ended:
            # Said again each time: the server that was told may die before it does it.
            await asyncio.to_thread(self._store.cancel, job_id, self._membership.id)
            self._something_to_do.set()
            await asyncio.sleep(_WATCH_S)
            job = await self.get(job_id, kind)
        return job

    async def _go_round(self) -> None:
        while True:
            self._something_to_do.clear()
            try:
                await self._round()
            except Exception:  # the database may be out of reach for a while; the next round finds everything there
                _log.exception("a round of the job runner failed")
            # Not wait_for: in Python 3.11 it loses a cancellation that comes together with the event.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_ROUND_S):
                    await self._something_to_do.wait()

    async def _round(self) -> None:
        server = self._membership
        await asyncio.to_thread(server.keep)
        claimed = await asyncio.to_thread(self._store.claimed, server.id)
        for job_id, task in list(self._tasks.items()):
            if job_id not in claimed:
                _log.info("job %s is not this server's any more", job_id)
                await _end(task)
        for job_id, cancelled in claimed.items():
            if cancelled:
                await self._carry_out_cancel(job_id)
            elif job_id not in self._tasks:  # its end could not be written down
                await asyncio.to_thread(self._store.release, job_id, server.id)
        while self._leaving is None:
            job = await asyncio.to_thread(self._store.claim, server.id, server.machine, self._max_jobs)
            if job is None:
                return
            task = asyncio.create_task(self._run(job), name=f"job {job.id}")
            self._tasks[job.id] = task
            task.add_done_callback(partial(self._forget, job.id))

    async def _carry_out_cancel(self, job_id: str) -> None:
        if job_id in self._tasks:
            await _end(self._tasks[job_id])
        # It may have ended, and be wanted, while it was being told to.
        if job_id in await asyncio.to_thread(self._store.claimed, self._membership.id):
            await asyncio.to_thread(shutil.rmtree, self._root / job_id, ignore_errors=True)
            await asyncio.to_thread(self._store.finish, job_id, self._membership.id, JobState.CANCELLED)

    def _forget(self, job_id: str, task: asyncio.Task[None]) -> None:
        del self._tasks[job_id]
        self._progress.pop(job_id, None)  # none of a job that was cancelled before it began
        self._something_to_do.set()
        if not task.cancelled() and task.exception() is not None:
            _log.error("the end of job %s could not be written down", job_id, exc_info=task.exception())

    async def _run(self, job: Job) -> None:
        """Run a job that this server has claimed until it ends."""
        progress = _Progress(job.progress)
        self._progress[job.id] = job.kind, progress
        try:
            outcome = await self._supervise(job, progress)
        except LeftOffError:
            return
        except LimnerError as error:
            outcome = {"error": str(error)}
        except Exception:
            _log.exception("the supervision of job %s failed", job.id)
            outcome = {"error": "its supervision failed; the server's log has the details"}
        state = JobState.FAILED if "error" in outcome else JobState.SUCCEEDED
        finish = partial(self._store.finish, job.id, self._membership.id, state, progress=progress.latest, **outcome)
        await _undisturbed(finish)

    async def _supervise(self, job: Job, progress: _Progress) -> dict[str, Any]:
        """Run the job's process, again where it dies without a word, and return the `result` or `error` of the job."""
        folder = self.folder(job)
        folder.mkdir(parents=True, exist_ok=True)
        write_atomic(folder / "request.json", json.dumps(job.request, indent=2).encode())
        status = 0
        for _ in range(MAX_DEATHS):
            outcome, status = await self._run_process(job, progress)
            if outcome is not None:
                return outcome
            if self._leaving is not None:
                raise LeftOffError
            _log.warning("the process of job %s ended with status %d; starting it again", job.id, status)
            await asyncio.to_thread(self._store.note_restart, job.id, self._membership.id)
        return {"error": f"its process ended {MAX_DEATHS} times without a word, the last time with status {status}"}

    async def _run_process(self, job: Job, progress: _Progress) -> tuple[dict[str, Any] | None, int]:
        """Run the job's process to its end; return its `result` or `error`, None if it gave none, and exit status."""
        folder = self.folder(job)
        with (folder / "job.log").open("ab") as log:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, *self._launcher(job.kind), "-m", self._modules[job.kind], str(folder)),
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=log,
                limit=_LINE_LIMIT,
                start_new_session=True,
                pass_fds=(self._membership.lock,),
            )
        assert process.stdin is not None  # noqa: S101 - it was asked for
        assert process.stdout is not None  # noqa: S101
        outcome = None
        # torchrun would hand what is told to one of its processes, and the others would wait for that one.
        if job.kind is JobKind.TRAINING and self._training_processes == 1:
            self._processes[job.id] = process
            if self._leaving is not None:
                process.stdin.write(LEAVE_OFF)
        saving = asyncio.create_task(self._save(job, progress))
        try:
            async for line in process.stdout:
                if not line.endswith(b"\n"):  # the last line of a killed process may be half a line
                    break
                match json.loads(line):
                    case {"progress": latest}:
                        progress.latest = latest
                        progress.changed.set()
                    case {"result": result}:
                        outcome = {"result": result}
                    case {"failure": message}:
                        outcome = outcome or {"error": message}
                    case event:
                        raise ValueError(f"job {job.id} said {event!r}")
            return outcome, await process.wait()
        finally:
            saving.cancel()
            self._processes.pop(job.id, None)
            if process.returncode is None:
                process.stdin.close()  # torchrun's own processes are not killed with it: they go by the leash
                process.kill()
                await process.wait()

    def _launcher(self, kind: JobKind) -> tuple[str, ...]:
        """What stands between the interpreter and the module: torchrun, on this machine alone, where it is needed."""
        if kind is not JobKind.TRAINING or self._training_processes == 1:
            return ()
        return ("-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={self._training_processes}")

    async def _save(self, job: Job, progress: _Progress) -> None:
        """Write progress to the database, a few times a second at most."""
        while True:
            await progress.changed.wait()
            progress.changed.clear()
            try:
                await asyncio.to_thread(self._store.note_progress, job.id, self._membership.id, progress.latest)
            except SQLAlchemyError:
                _log.exception("the progress of job %s could not be written down", job.id)
            await asyncio.sleep(_PROGRESS_S)


async def _end(task: asyncio.Task[None]) -> None:
    task.cancel()
    await asyncio.wait([task])


async def _undisturbed(function: Callable[[], object]) -> None:
    """Call a function in a thread; where this task is cancelled meanwhile, end only when the function has."""
    call = asyncio.ensure_future(asyncio.to_thread(function))
    try:
        await asyncio.shield(call)
    finally:
        await asyncio.wait([call])
