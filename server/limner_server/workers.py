"""Several serving processes on one port, and the supervisor that keeps them.

The kernel deals new connections out to the processes that listen on a port with SO_REUSEPORT. A worker is
`python -m limner_server.workers`, a server like any other: the first line of its standard input is its settings, and
the rest is a leash, on which it ends when its supervisor does. What the workers have to know of each other stands in
the database (`state.servers`).
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
import threading
from asyncio.subprocess import PIPE, Process
from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry

from limner_server.jobs.process import hold_leash
from limner_server.serve import Announce, serve
from limner_server.settings import Settings
from limner_server.telemetry import logs, page
from limner_server.telemetry.machine import register_machine
from limner_server.telemetry.workers import WorkerPages

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 60.0
STEADY_S = 60.0

_log = logging.getLogger(__name__)


def supervise(settings: Settings, announce: Announce) -> None:
    """Keep `settings.workers` workers until told to stop; `announce` is called once all of them serve.

    A worker that dies is replaced, after a pause that doubles while it happens again and again. One that cannot even
    start ends the whole, with its exit status, unless the service has been announced: then it counts as dead.
    """
    logs.configure(settings.log_level)
    try:
        with contextlib.ExitStack() as held:
            port = held.enter_context(reserved_port(settings.host, settings.port))
            found = {"port": port}
            if settings.health_port is not None:
                found["health_port"] = held.enter_context(reserved_port(settings.host, settings.health_port))
            pages, metrics_port = WorkerPages(), None
            if settings.metrics_port is not None:
                metrics_port = _serve_metrics(settings.metrics_host, settings.metrics_port, pages)
            supervisor = _Supervisor(settings.model_copy(update=found), pages)
            status = asyncio.run(supervisor.run(lambda: announce(port, metrics_port)))
    except OSError as error:
        sys.exit(f"limner-server: {error}")
    sys.exit(status)


def _serve_metrics(host: str, port: int, pages: WorkerPages) -> int:
    registry = CollectorRegistry()
    registry.register(pages)
    register_machine(registry)
    return page.serve(host, port, registry)


@contextlib.contextmanager
def reserved_port(host: str, port: int) -> Iterator[int]:
    """Hold a port, a free one for 0, so that only workers can listen on it. OSError if somebody has it."""
    with contextlib.ExitStack() as held:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(
                host.strip("[]"), port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
            )[0]
            place = held.enter_context(socket.socket(family, kind, protocol))
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            place.bind(address)  # fails where any other process listens
            port = place.getsockname()[1]
            # To another supervisor whose workers do not listen yet, that is blind; but it has put up this sign.
            held.enter_context(socket.socket(socket.AF_UNIX)).bind(f"\0limner-server:{port}")
            place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        except OSError as error:
            raise OSError(f"cannot listen on {host}:{port}: the port is taken or the address not here") from error
        yield port


class _NotStartedError(Exception):
    """A worker ended before it served."""

    def __init__(self, status: int) -> None:
        self.status = status
        super().__init__(f"a worker ended with status {status} before it served")


class _Supervisor:
    """Keeps the workers of one service."""

    def __init__(self, settings: Settings, pages: WorkerPages) -> None:
        self._number = settings.workers
        self._pages = pages
        self._settings = settings.model_dump_json().encode() + b"\n"
        self._stopping = asyncio.Event()
        self._processes: set[Process] = set()

    async def run(self, announce: Callable[[], None]) -> int:
        """Start the workers, keep them until SIGTERM or SIGINT, let them drain, and return the exit status."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stop)
        try:
            # The first alone: it makes the database, and if it finds the settings wrong, it says so once.
            workers = [await self._start()]
            workers += await asyncio.gather(*(self._start() for _ in range(self._number - 1)))
        except _NotStartedError as error:
            stopped = self._stopping.is_set()
            self._stop()
            await asyncio.gather(*(process.wait() for process in self._processes))
            return 0 if stopped else max(error.status, 1)
        announce()
        statuses = await asyncio.gather(*(self._keep(worker) for worker in workers))
        return int(any(statuses))

    def _stop(self) -> None:
        self._stopping.set()
        for process in self._processes:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()

    async def _start(self) -> Process:
        """Start a worker, and return it when it serves."""
        process = await self._spawn()
        assert process.stdout is not None  # noqa: S101 - it was asked for
        if not await process.stdout.readline():
            raise _NotStartedError(await process.wait())
        return process

    async def _spawn(self) -> Process:
        ours, theirs = socket.socketpair()
        with theirs:
            process = await asyncio.create_subprocess_exec(
                *(sys.executable, "-m", "limner_server.workers", str(theirs.fileno())),
                stdin=PIPE,
                stdout=PIPE,
                start_new_session=True,  # Ctrl-C in a terminal is the supervisor's to pass on
                pass_fds=(theirs.fileno(),),
            )
        self._pages.add(process.pid, ours)
        self._processes.add(process)
        if self._stopping.is_set():
            process.terminate()
        assert process.stdin is not None  # noqa: S101 - it was asked for
        process.stdin.write(self._settings)
        return process

    async def _keep(self, worker: Process) -> int:
        """Wait for a worker's end, start another in its place, and so on; return the last one's exit status."""
        loop = asyncio.get_running_loop()
        pause = FIRST_PAUSE_S
        while True:
            born = loop.time()
            status = await worker.wait()
            self._processes.discard(worker)
            await asyncio.to_thread(self._pages.drop, worker.pid)
            if self._stopping.is_set():
                return status
            if loop.time() - born > STEADY_S:
                pause = FIRST_PAUSE_S
            _log.error("worker %d ended with status %d; another starts in %.3g s", worker.pid, status, pause)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(pause):
                    await self._stopping.wait()
                return 0
            pause = min(2 * pause, LONGEST_PAUSE_S)
            worker = await self._spawn()


def _work() -> None:
    """Be a worker."""
    settings = Settings.model_validate_json(sys.stdin.buffer.readline())
    threading.Thread(target=hold_leash, daemon=True).start()

    def announce(*_: int | None) -> None:
        print("serving", flush=True)
        # Nobody reads on; what a library prints goes where the logs go.
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())

    serve(settings, announce, socket.socket(fileno=int(sys.argv[1])))


if __name__ == "__main__":
    _work()
