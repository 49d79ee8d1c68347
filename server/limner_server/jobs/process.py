"""The inside of a job: says how far it is, and ends when its server does."""

import contextlib
import json
import logging
import os
import stat
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from limner.imaging.errors import ImageError
from limner_server.errors import LeftOffError, LimnerError
from limner_server.telemetry import logs

LEAVE_OFF = b"leave off\n"
"""What a server that is about to go says on the leash."""

_NICENESS = 10
"""A job yields to the calls of the server that runs it, the forward passes of their images among them."""

_FAILED = 1
_LEASH_CUT = 3
_LEFT_OFF = 4


class Reporter:
    """Writes one JSON object a line: any number of `progress`, then one `result` or one `failure`.

    Attributes
    ----------
    told_to_leave_off
        Set when the server is about to go: a job that can keeps where it is and raises `LeftOffError`.
    """

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self.told_to_leave_off = threading.Event()

    def progress(self, phase: str, fraction: float, remaining_s: float, **figures: float) -> None:
        """Say what is being done, the share of the whole that is done (0 to 1), the seconds left (-1: unknown)."""
        self._write({"progress": {"phase": phase, "fraction": fraction, "remaining_s": remaining_s, **figures}})

    def result(self, payload: dict[str, Any]) -> None:
        """Say that the job ended well, with a JSON object that its kind decides."""
        self._write({"result": payload})

    def failure(self, message: str) -> None:
        """Say why the job cannot be done; it is not tried again."""
        self._write({"failure": message})

    def _write(self, event: dict[str, Any]) -> None:
        self._out.write(json.dumps(event).encode() + b"\n")
        self._out.flush()


def run_job(main: Callable[[Path, Reporter], None]) -> None:
    """Run `main` on the folder named on the command line.

    Standard output belongs to the reporter, standard input is the leash. A `LimnerError` or `ImageError` is a failure
    with its own words; any other exception leaves its traceback in the job's log. After a failure the exit status is 1,
    by which torchrun knows that it has to end the other processes of the job.
    """
    _yield_to_calls()
    folder = Path(sys.argv[1])
    logs.configure("info", job=folder.name)
    reporter = Reporter(os.fdopen(os.dup(sys.stdout.fileno()), "wb"))
    # Whatever a library prints must not be taken for an event.
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    threading.Thread(target=hold_leash, args=(reporter.told_to_leave_off.set,), daemon=True).start()
    status = _FAILED
    try:
        main(folder, reporter)
    except LeftOffError:
        status = _LEFT_OFF
    except (LimnerError, ImageError) as error:
        reporter.failure(str(error))
    except Exception as error:
        logging.exception("the job failed")
        reporter.failure(f"{type(error).__name__}; the job's log on the server has the details")
    else:
        return
    sys.stderr.flush()
    os._exit(status)  # at once: a way out through torch's threads may wait for processes that are gone


def _yield_to_calls() -> None:
    os.nice(_NICENESS)
    # Linux shares the processor out among sessions first, and heeds niceness within each (sched(7), "autogroup"). In a
    # container there are no such groups; a session that is somebody else's is left as it is.
    if os.getsid(0) == os.getpid():
        with contextlib.suppress(OSError):
            Path("/proc/self/autogroup").write_text(str(_NICENESS))


def hold_leash(on_word: Callable[[], object] = lambda: None) -> None:
    """Leave at once when the other end of standard input closes, since who started this process is gone.

    What is said on it is `LEAVE_OFF`; `on_word` is called then.

    Without a pipe or socket there is no other end: started by hand, or in a container by torchrun.
    """
    mode = os.fstat(sys.stdin.fileno()).st_mode
    if not (stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode)):
        return
    # Not sys.stdin: its lock, held by this thread, would abort the interpreter's own way out.
    while os.read(sys.stdin.fileno(), 4096):
        on_word()
    os._exit(_LEASH_CUT)
